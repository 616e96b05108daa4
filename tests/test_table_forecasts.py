"""Forecasts of a table: sealed before the table has the run, graded when it has it; next runs."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR, SURFACE
from analysis.forecasting.forecast import ForecastError
from analysis.forecasting.prediction import LawMethod
from analysis.forecasting.seal import digest, read_with_checksum
from pipelines.cli.main import app
from pipelines.cli.terminal.console import format_number
from pipelines.planning.external_table import TableSource
from pipelines.planning.table_forecasts import grade_table, make_table_forecasts, score_table
from pipelines.planning.table_next import TablePlanOptions, next_runs_of_table
from pipelines.workspace.store import Home
from var_scaling.disk import read_json


def loss(N, D):
    return 1.7 + 400 * np.asarray(N, float) ** -0.34 + 410 * np.asarray(D, float) ** -0.28


def frame(N, D, **columns):
    N, D = (np.asarray(each, float) for each in np.broadcast_arrays(N, D))
    noise = np.exp(np.random.default_rng(1).normal(0, 0.003, len(N)))
    content = {
        "trial": [f"r{k}" for k in range(len(N))], "params_total": N, "tokens_seen": D,
        "train_flops": 6 * N * D, "val_loss": loss(N, D) * noise,
    }  # fmt: skip
    return pd.DataFrame({**content, **columns})


def grid():
    """Six sizes with five numbers of tokens each."""
    N, D = np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(2e8, 2e10, 5))
    return frame(N.ravel(), D.ravel())


def line(**columns):
    """Nine sizes with equal D."""
    return frame(np.geomspace(1e7, 1e9, 9), 2e10, **columns)


def source_of(folder, rows, **options) -> TableSource:
    rows.to_csv(folder / "runs.csv", index=False)
    return TableSource(str(folder / "runs.csv"), **options)


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path / "home")


def with_run(rows, N, D, **columns):
    one = pd.DataFrame({"trial": ["big"], "params_total": N, "tokens_seen": D,
                        "train_flops": 6 * N * D, "val_loss": loss(N, D), **columns})  # fmt: skip
    return pd.concat([rows, one], ignore_index=True)


def test_a_forecast_of_a_table_is_frozen_then_waiting_then_graded(tmp_path, home):
    source = source_of(tmp_path, grid())
    (made,) = make_table_forecasts(source, home, ["D=2e11,N=1e10"], LawMethod())
    assert made.path.parent == tmp_path / "runs-laws" / "forecasts"
    assert made.path.name.startswith("N1e10-D2e11-")
    assert made.forecast.variable == "params_total,tokens_seen"
    assert made.forecast.extrapolation == pytest.approx(10)
    (metric,) = made.forecast.metrics
    assert metric.quoted.law == "surface"
    assert metric.quoted.low < loss(1e10, 2e11) < metric.quoted.high
    (outcome,) = score_table(source, home)
    assert outcome.state == "waiting"
    assert "no run of runs.csv is at N=1e10,D=2e11 (within 1%)" in outcome.reason
    # Models are rarely of exactly the planned size.
    source_of(tmp_path, with_run(grid(), 1.004e10, 2e11))
    (outcome,) = score_table(source, home)
    assert (outcome.state, outcome.reason) == ("graded", "run big")
    (grade,) = outcome.grades
    assert grade.covered
    assert grade.measured == pytest.approx(loss(1.004e10, 2e11))
    (row,) = read_json(made.path.parent / "outcomes.json")
    assert row["state"] == "graded"


def test_a_repeated_forecast_is_not_written_again_and_a_changed_file_is_detected(tmp_path, home):
    source = source_of(tmp_path, line())
    (first,) = make_table_forecasts(source, home, ["N=1e10"], LawMethod(), now=1e9)
    (again,) = make_table_forecasts(source, home, ["N=1e10"], LawMethod(), now=1e9 + 60)
    assert (again.path, again.new) == (first.path, False)
    assert {each.law for each in first.forecast.metrics[0].predictions} == {"pure", "floor"}
    first.path.write_text(first.path.read_text().replace("2001", "2002"))
    (outcome,) = grade_table(source, home)
    assert outcome.state == "tampered"


def test_laws_and_objective_are_those_of_the_options(tmp_path, home):
    source = source_of(tmp_path, grid())
    method = LawMethod(("tied", "interaction"), "huber:L")
    (made,) = make_table_forecasts(source, home, ["N=1e10,D=2e11"], method)
    assert made.forecast.objective == "huber:L"
    assert [each.law for each in made.forecast.metrics[0].predictions] == ["tied", "interaction"]
    source_of(tmp_path, line())
    (made,) = make_table_forecasts(source, home, ["N=1e10"], LawMethod(("pure",)))
    assert [each.law for each in made.forecast.metrics[0].predictions] == ["pure"]
    assert made.forecast.metrics[0].headline == "pure"


@pytest.mark.parametrize(
    ("rows", "at", "law"), [(line, "N=1e10", FLOOR), (grid, "N=1e10,D=2e11", SURFACE)]
)
def test_a_fixed_E_and_weights_are_those_of_the_fit_and_of_the_grade(tmp_path, home, rows, at, law):
    table = rows().assign(size_of_set=lambda rows: np.linspace(1, 9, len(rows)))
    source = source_of(tmp_path, table)
    method = LawMethod(E=1.9, weights="size_of_set")
    (made,) = make_table_forecasts(source, home, [at], method)
    assert (made.forecast.E, made.forecast.weights) == (1.9, "size_of_set")
    assert {run.trial: run.weight for run in made.forecast.runs}["r0"] == 1.0
    (metric,) = made.forecast.metrics
    assert metric.quoted.law == law.name
    assert metric.quoted.values["E"] == pytest.approx(1.9)
    columns = {"N": table.params_total, "D": table.tokens_seen}
    x = tuple(columns[name].to_numpy() for name in ("N", "D")[: len(law.variables)])
    fit = fit_law(
        law, x if len(x) > 1 else x[0], table.val_loss, "squares", floor=1.9,
        weights=table.size_of_set,
    )  # fmt: skip
    predicted = fit.predict((1e10, 2e11) if len(x) > 1 else 1e10)
    assert metric.quoted.predicted == pytest.approx(float(predicted))
    assert metric.quoted.spare == len(table) - fit.free
    # The forecast is another one without these options, and `score` grades each by its own.
    make_table_forecasts(source, home, [at], LawMethod(), now=1e9)
    make_table_forecasts(source, home, [at], LawMethod(E=1.7), now=1e9 + 60)
    source_of(tmp_path, with_run(rows(), 1e10, 2e11))  # without the column of the weights
    outcomes = score_table(TableSource(source.name), home)
    assert [outcome.state for outcome in outcomes] == ["graded"] * 3
    by_E = {outcome.forecast.E: outcome.grades for outcome in outcomes}
    assert set(by_E) == {None, 1.7, 1.9}
    (grade,) = (each for each in by_E[1.9] if each.headline)
    assert grade.predicted == metric.quoted.predicted


def test_a_fixed_E_that_the_points_reject_is_a_caveat_of_the_forecast(tmp_path, home):
    source = source_of(tmp_path, line())
    (made,) = make_table_forecasts(source, home, ["N=1e10"], LawMethod(E=0.5), now=1e9)
    caveats = "\n".join(made.forecast.caveats)
    assert "val_loss rejects the fixed E = 0.5: the 95 % interval of a fitted E is" in caveats
    near = LawMethod(E=2.24)  # at 2e10 tokens
    (made,) = make_table_forecasts(source, home, ["N=1e10"], near, now=1e9 + 60)
    assert not any("rejects" in text for text in made.forecast.caveats)
    page = says("forecast", source.name, "--at", "N=1e10", "--fixed", "E=2.3")
    assert "the law with E = 2.3" in " ".join(page.split())


def test_a_forecast_without_the_fields_of_these_options_is_read(tmp_path, home):
    """Files of earlier versions have neither a fixed E nor weights."""
    source = source_of(tmp_path, line())
    (made,) = make_table_forecasts(source, home, ["N=1e10"], LawMethod())
    content = read_json(made.path)["forecast"]
    del content["E"], content["weights"]
    for run in content["runs"]:
        del run["weight"]
    assert read_with_checksum({"sha256": digest(content), "forecast": content}) == made.forecast


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fixed", "alpha=1"), "--fixed alpha=1: only E, the irreducible loss, can be fixed"),
        (("--fixed", "E=1.8", "--law", "pure"), "--fixed E=1.8: --law pure has no E"),
        (("--fixed", "E=9"), "--fixed E=9: no law with it can be fitted: .* below all losses"),
        (("--fixed", "E=9", "--law", "floor"), "the fixed E = 9 must be below all losses"),
        (("--weights", "none"), "--weights none: there is no such column"),
        (("--weights", "zero"), "--weights zero: 9 of 9 runs have no positive number there"),
    ],
)
def test_an_E_or_weights_that_no_law_can_use_are_refused_by_the_option(tmp_path, options, message):
    path = source_of(tmp_path, line(zero=0)).name
    with pytest.raises(ValueError, match=message):
        says("forecast", path, "--at", "N=1e10", *options)
    assert not (tmp_path / "runs-laws").exists()


@pytest.mark.parametrize(
    ("at", "laws", "message"),
    [
        ("N=1e8", (), "--at N=1e8: .* give D, too, such as N=1e8,D=2e11"),
        ("N=5e8,D=1e10", (), "inside the runs, which have N from 1e.07 to 1e.09 and D from 2e.08"),
        ("N=1e9,D=2e10", (), "has this run already, r29: its loss is known"),
        ("D=1e12", (), "give N, or N and D, or C"),
        ("N=1e10,C=1e22", (), "give N, or N and D, or C"),
        ("N=1e10,N_total=1e10", (), "give N, or N and D, or C"),
        ("M=1", (), "--at M=1: the variables are N, N_total, D, C"),
        ("N=big", (), "--at N=big: big is no number"),
        ("d16", (), "--at d16: write NAME=NUMBER, as in N=1e10,D=2e11"),
        ("N=1e10", ("surface",), "--law surface with --at N=1e10: this law needs N and D"),
        ("N=1e10,D=2e11", ("floor",), "--law floor: with --at .* one of surface, tied, interac"),
        ("N=1e10", ("logit",), "--law logit: with --at N=1e10, a law in one variable is one of"),
    ],
)
def test_a_point_that_cannot_be_predicted_is_refused_by_the_option(
    tmp_path, home, at, laws, message
):
    source = source_of(tmp_path, grid())
    with pytest.raises(ValueError, match=message):
        make_table_forecasts(source, home, [at], LawMethod(laws))
    assert not (tmp_path / "runs-laws").exists()


def test_a_run_that_where_leaves_out_is_known_all_the_same(tmp_path, home):
    source = source_of(tmp_path, line(), where="params_total < 5e8")
    with pytest.raises(ValueError, match="has this run already, r8"):
        make_table_forecasts(source, home, ["N=1e9"], LawMethod())


def test_score_reads_the_table_with_the_options_of_the_forecast(tmp_path, home):
    theirs = line(family="var").rename(columns={"val_loss": "loss"}).drop(columns="train_flops")
    options = {"columns": ("loss=val_loss",), "completed": "train_flops"}
    source = source_of(tmp_path, theirs, where="family == 'var'", **options)
    make_table_forecasts(source, home, ["C=1e22"], LawMethod())
    assert grade_table(TableSource(source.name), home)[0].state == "waiting"
    run = with_run(line(family="var"), 1e22 / 6 / 2e10, 2e10, family="ar")
    source_of(tmp_path, run.rename(columns={"val_loss": "loss"}))
    (outcome,) = grade_table(TableSource(source.name), home)
    assert "does not fulfil --where \"family == 'var'\"" in outcome.reason
    (outcome,) = grade_table(TableSource(source.name, where="depth != depth"), home)
    assert outcome.state == "graded"


def test_a_run_without_its_loss_is_waited_for(tmp_path, home):
    source = source_of(tmp_path, line())
    make_table_forecasts(source, home, ["N=1e10"], LawMethod())
    source_of(tmp_path, with_run(line(), 1e10, 2e10, val_loss=np.nan))
    (outcome,) = grade_table(source, home)
    assert outcome.state == "waiting"


def test_several_families_are_refused(tmp_path, home):
    rows = pd.concat([line(family="var"), line(family="ar")])
    with pytest.raises(ValueError, match=r"2 groups of runs .* Choose one by --where"):
        make_table_forecasts(source_of(tmp_path, rows), home, ["N=1e10"], LawMethod())


def test_too_few_runs_are_refused(tmp_path, home):
    with pytest.raises(ForecastError, match="val_loss is not predicted from 2 finished runs"):
        make_table_forecasts(source_of(tmp_path, line()[:2]), home, ["N=1e10"], LawMethod())


# Next runs ---------------------------------------------------------------------------------------


def test_next_runs_of_a_table_narrow_the_interval_within_the_budget(tmp_path, home):
    source = source_of(tmp_path, grid())
    options = TablePlanOptions("N=1e10,D=2e11", budget=1e21)
    advice = next_runs_of_table(source, home, options)
    assert advice.fit.law.name == "surface"
    assert advice.target == (1e10, 2e11)
    assert advice.plan.planned < advice.plan.half_width
    assert advice.plan.flops <= 1e21
    for step in advice.plan.ranking:
        N, D = step.candidate.x
        assert step.candidate.flops == pytest.approx(6 * N * D)
    assert "24 of the 30 points of the table are candidates" in advice.notes[-1]


def test_candidates_are_those_that_the_user_names(tmp_path, home):
    source = source_of(tmp_path, line())
    named = ("N=3e9", "N=1e9,C=1e20")
    advice = next_runs_of_table(
        source, home, TablePlanOptions("N=1e10", 1e21, candidates=named, law="floor", seeds=1)
    )
    flops = {step.candidate.x: step.candidate.flops for step in advice.plan.ranking}
    assert flops == pytest.approx({(3e9,): 6 * 3e9 * 2e10, (1e9,): 1e20})
    long = next_runs_of_table(
        source_of(tmp_path, grid()), home,
        TablePlanOptions("N=1e10,D=1e11", 1e21, candidates=("N=1e9,D=1e10",), lengths=(1, 2)),
    )  # fmt: skip
    assert {step.candidate.x for step in long.plan.ranking} == {(1e9, 1e10), (1e9, 2e10)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TablePlanOptions("N=1e10", 1e21, lengths=(0.5,)), "--lengths with --at N=1e10"),
        (TablePlanOptions("N=1e10", 1e21, law="surface"), "allowed are pure, floor; surface needs"),
        (TablePlanOptions("N=1e10", 1e21), "no law in N alone describes them; give D, too"),
        (TablePlanOptions("N=1e10,D=1e11", 1e21, law="pure"), "allowed are surface"),
        (TablePlanOptions("N=1e10,D=1e11", 1e21, candidates=("N=1e9",)), "has no tokens_seen"),
        (TablePlanOptions("N=1e10,D=1e11", 1e21, metric="val_error"), "no run has .*val_error"),
        (TablePlanOptions("N=1e10,D=1e11", 1e3), "is below the cheapest run"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused_by_the_option(tmp_path, home, options, message):
    with pytest.raises(ValueError, match=message):
        next_runs_of_table(source_of(tmp_path, grid()), home, options)


def test_unknown_flops_are_refused_with_the_options_that_give_them(tmp_path, home):
    rows = line().drop(columns=["train_flops", "tokens_seen"])
    with pytest.raises(ValueError, match=r"--candidate with D or C.* --complete train_flops"):
        next_runs_of_table(source_of(tmp_path, rows), home, TablePlanOptions("N=1e10", 1e21))


# The commands ------------------------------------------------------------------------------------


def says(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def test_the_commands_take_a_table(tmp_path):
    path = source_of(tmp_path, grid()).name
    out = ("--out", str(tmp_path / "out"))
    assert "written to" in says("forecast", path, "--at", "N=1e10,D=2e11", *out)
    assert "waiting" in says("score", path, *out)
    source_of(tmp_path, with_run(grid(), 1e10, 2e11))
    (row,) = json.loads(says("score", path, *out, "--json"))
    assert row["grades"][0]["covered"]
    (file,) = (tmp_path / "out" / "forecasts").glob("N*.json")
    file.write_text("{}")
    assert "tampered" in says("score", path, *out, code=1)
    plan = says("next", path, "--at", "N=1e11,D=2e12", "--budget", "1e21")
    assert "×" in plan
    assert "narrower" in plan


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("forecast", "TABLE", "--at", "N=1e10", "--variable", "train_flops"), "--variable: only"),
        (("next", "TABLE", "--at", "N=1e10", "--budget", "1e21", "--depths", "3"), "--depths: onl"),
        (("forecast", "smoke", "--at", "d4", "--complete", "train_flops"), "--complete: only for"),
        (("score", "smoke", "--where", "depth > 1"), "--where: only for a table"),
        (("next", "smoke", "--at", "d4", "--budget", "1", "--candidate", "N=1"), "--candidate: on"),
        (("score", "TABLE"), "there are no forecasts; `var-scaling forecast` makes them"),
    ],
)
def test_an_option_of_the_other_kind_is_refused_by_its_name(tmp_path, words, message):
    path = source_of(tmp_path, line()).name
    with pytest.raises(ValueError, match=message):
        says(*(path if word == "TABLE" else word for word in words))


@pytest.mark.slow
def test_the_report_of_a_table_lists_its_forecasts(tmp_path):
    path = source_of(tmp_path, line()).name
    says("forecast", path, "--at", "N=1e10")
    source_of(tmp_path, with_run(line(), 1e10, 2e10))
    says("fit", path, "--law", "floor", "--where", "params_total < 5e9")
    page = (tmp_path / "runs-laws" / "index.html").read_text()
    assert "N=1e10" in page
    assert "waiting" not in page
    assert (tmp_path / "runs-laws" / "forecasts.png").exists()


def test_a_number_just_below_a_prefix_is_rounded_to_that_prefix():
    numbers = (12, 999.6, 999_999, 2.4e6, 9.9999999e17, 1.2e21)
    shown = [format_number(number) for number in numbers]
    assert shown == ["12", "1 k", "1 M", "2.4 M", "1.00e+18", "1.20e+21"]
