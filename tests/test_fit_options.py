"""The options of `fit`: which rows, which laws, fixed E, weights, predictions, budgets."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.selection.options import Options
from analysis.selection.predict import predict
from analysis.study import study
from analysis.table.table import TableError, check, select
from pipelines.cli.main import app
from pipelines.cli.terminal.laws import surface_lines
from pipelines.report.fit_options import FitOptions


def rows(**columns):
    """36 runs of L = 1.7 + 400 N^-.34 + 410 D^-.28, of two families."""
    N, D = (
        each.ravel() for each in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(2e8, 2e10, 6))
    )
    L = 1.7 + 400 * N**-0.34 + 410 * D**-0.28
    L *= np.exp(np.random.default_rng(1).normal(0, 0.003, len(N)))
    content = {
        "trial": [f"r{k}" for k in range(len(N))], "seed": 0, "params_total": N, "tokens_seen": D,
        "train_flops": 6 * N * D, "val_loss": L,
    }  # fmt: skip
    return pd.DataFrame({**content, **columns})


def line():
    """Twelve runs of one number of tokens: a law in N alone."""
    N = np.geomspace(1e6, 1e9, 12)
    L = (1.8 + 90 * N**-0.3) * np.exp(np.random.default_rng(0).normal(0, 0.002, 12))
    return pd.DataFrame({"params_total": N, "val_loss": L})


def says(folder, frame, *words):
    frame.to_csv(folder / "runs.csv", index=False)
    done = CliRunner().invoke(
        app, ["fit", str(folder / "runs.csv"), *words], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.output


def laws_of(folder, frame, *words):
    return json.loads(says(folder, frame, *words, "--json"))


def test_a_report_that_cannot_be_written_is_refused_before_the_fits(tmp_path):
    line().to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "file").write_text("")
    words = ["fit", str(tmp_path / "runs.csv"), "--out", str(tmp_path / "file" / "inside")]
    with pytest.raises(ValueError, match=r"--out .*file is not a folder that can be written to"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_the_laws_in_n_alone_of_runs_that_differ_in_d_say_that_they_are_none(tmp_path):
    laws = laws_of(tmp_path, rows())
    reasons = {law["variable"]: law["no_law"] for law in laws["laws"]}
    assert reasons["params_total"].startswith("its runs have different D: runs of one size")
    assert reasons["train_flops"] is None


def test_the_first_sentence_of_each_group_names_it(tmp_path):
    groups = [line().assign(family=family) for family in ("var", "ar")]
    said = says(tmp_path, pd.concat(groups))
    assert all(f"{family}: L_mean (loss" in said for family in ("var", "ar"))


# Rows ----------------------------------------------------------------------------------------


def test_only_the_rows_of_the_condition_are_fitted(tmp_path):
    mixed = pd.concat([rows(family="var"), rows(family="ar").assign(val_loss=9.0)])
    laws = laws_of(tmp_path, mixed, "--where", "family == 'var' and params_total > 2e7")
    (surface,) = laws["surfaces"]
    assert min(surface["N"]) > 2e7
    assert len(surface["y"]) == 30
    assert max(surface["y"]) < 9
    assert laws["options"] == {"--where": "family == 'var' and params_total > 2e7"}
    assert any("30 of 72 rows" in note for note in laws["notes"])
    page = (tmp_path / "runs-laws" / "index.html").read_text()
    assert "--where" in page


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("sed == 0", "there is no column sed; did you mean one of seed"),
        ("family == var", "there is no column var"),
        ("`Model Size` > 1", "there is no column Model_Size"),
        ("seed ==", "is no expression; write a condition such as"),
        ("seed = 1", "is not true or false for each row"),
        ("seed", "is not true or false for each row"),
        ("params_total > 1e12", "true for none of 36 rows"),
        ("trial > 3", "not supported"),
        ("@pd > 1", "there is no column pd"),
        ("__import__('os').getcwd() == ''", "is not a supported function"),
    ],
)
def test_a_wrong_condition_is_refused_with_the_option(condition, message):
    with pytest.raises(TableError, match=message) as refused:
        select(check(rows()), condition)
    assert str(refused.value).startswith("--where ")


# Laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["pure", "floor", "surface"])
def test_only_the_named_law_is_fitted(law, tmp_path):
    laws = laws_of(tmp_path, rows(), "--law", law)
    forms = {each["fit"]["law"] for each in laws["laws"]} | {
        each["fit"]["law"] for each in laws["surfaces"]
    }
    assert forms == {law}
    assert laws["choices"] == []
    assert not any("fitted" in line for line in laws["refused"])


def test_a_law_without_a_metric_is_named(tmp_path):
    output = says(tmp_path, line(), "--law", "pure", "--law", "logit")
    assert "not fitted: --law logit: no metric of this table has it" in output


def test_the_page_of_a_single_law_has_its_verdict(tmp_path):
    says(tmp_path, line(), "--law", "floor")
    assert (
        "A power law above an irreducible loss"
        in (tmp_path / "runs-laws" / "index.html").read_text()
    )
    says(tmp_path, rows(), "--law", "surface")
    page = (tmp_path / "runs-laws" / "index.html").read_text()
    assert "a power law in both N and D" in page
    assert "No law could be fitted" not in page


# Fixed E and weights ---------------------------------------------------------------------------


def test_a_fixed_E_is_fixed_in_every_law_that_has_one():
    found = study(check(rows()), options=Options(E=1.7))
    fits = [each.fit for each in found.findings if each.fit.law.name == "floor"]
    fits += [found.surfaces["val_loss"].fit, found.allocation.fit]
    assert len(fits) == 4
    assert {fit.floor for fit in fits} == {1.7}
    assert [fit["E"] for fit in fits] == pytest.approx([1.7] * 4)
    surface = found.surfaces["val_loss"]
    assert "E" not in surface.intervals
    free = study(check(rows())).surfaces["val_loss"].intervals["alpha"]
    fixed = surface.intervals["alpha"]
    assert fixed.low < 0.34 < fixed.high
    assert fixed.high - fixed.low < free.high - free.low


def test_a_fixed_E_is_shown_as_fixed(tmp_path):
    output = says(tmp_path, line(), "--fixed", "E=1.8")
    assert "1.800 fixed" in output
    assert "E = 1.8 (fixed)" in (tmp_path / "runs-laws" / "index.html").read_text()


def test_weights_reach_every_law_of_runs():
    table = rows(weight=1.0)
    table.loc[7, ["val_loss", "weight"]] = [table.val_loss[7] * 1.3, 1e-9]
    clean = study(check(table.drop(index=7)))
    found = study(check(table), options=Options(weights="weight"))
    for name in ("pure", "floor"):
        fits = [s.get("val_loss", "params_total", name).fit for s in (clean, found)]
        assert fits[1].alpha == pytest.approx(fits[0].alpha, rel=1e-3)
    for fits in (
        [s.surfaces["val_loss"].fit for s in (clean, found)],
        [s.allocation.fit for s in (clean, found)],
        [s.objectives["val_loss"]["squares"] for s in (clean, found)],
        [
            s.conventions["val_loss"][0].fit or s.conventions["val_loss"][1].fit
            for s in (clean, found)
        ],
    ):
        assert fits[1].alpha == pytest.approx(fits[0].alpha, rel=1e-3)


def test_equal_weights_change_nothing():
    plain, weighted = (
        study(check(rows(w=3.0)), options=options).surfaces["val_loss"]
        for options in (Options(), Options(weights="w"))
    )
    assert weighted.fit.values == pytest.approx(plain.fit.values)


# Predictions and budgets -----------------------------------------------------------------------


def test_the_predicted_loss_contains_the_true_one(tmp_path):
    laws = laws_of(tmp_path, rows(), "--predict", "N=1e10,D=2e11")
    (prediction,) = laws["predictions"]
    true = 1.7 + 400 * 1e10**-0.34 + 410 * 2e11**-0.28
    assert prediction["interval"]["low"] < true < prediction["interval"]["high"]
    assert "of a new run" in prediction["interval"]["method"]
    assert "N_total is 10 times the largest fitted" in prediction["notes"]
    assert laws["unpredicted"] == [
        "L_mean(N_total): its runs have different D", "L_mean(C): --predict has no value of C",
    ]  # fmt: skip


def test_a_prediction_is_printed_and_on_the_page(tmp_path):
    output = says(tmp_path, line(), "--predict", "N=2e9")
    assert "L_mean(N_total), floor" in output
    assert "95 % of a new run" in output
    page = (tmp_path / "runs-laws" / "index.html").read_text()
    assert 'id="predictions"' in page


def test_a_prediction_without_its_variables_is_refused_in_words(tmp_path):
    with pytest.raises(
        ValueError, match=r"--predict N=1e\+10: no law predicts L there: .*value of D"
    ):
        says(tmp_path, rows(), "--predict", "N=1e10")
    fit = study(check(line())).get("val_loss", "params_total", "pure").fit
    with pytest.raises(ValueError, match="--predict has no value of N"):
        predict(fit, "L_mean(N)", ("N",), {"D": 1e9})


def test_budgets_of_a_column_group_the_runs():
    budgets = np.repeat([1e18, 1e19], 7)
    N = np.concatenate([np.geomspace(0.4, 2.5, 7) * best for best in (3e8, 9e8)])
    # The FLOPs that were spent differ from the budget by a few per cent.
    C = budgets * np.tile([0.97, 1.04, 0.98, 1.04, 0.97, 1.03, 1.02], 2)
    L = 1.7 + 400 * N**-0.34 + 410 * (C / (6 * N)) ** -0.28
    table = pd.DataFrame(
        {"params_total": N, "tokens_seen": C / (6 * N), "train_flops": C, "val_loss": L,
         "nominal": budgets}
    )  # fmt: skip
    found = study(check(table), options=Options(budgets="nominal")).allocation.isoflops
    assert found.unused == 0
    shown = [each.budget for each in found.minima] + [each.budget for each in found.refused]
    assert shown == pytest.approx([1e18, 1e19])


def near_budgets(second, *factors):
    """Seven sizes for each of two budgets; the FLOPs spent are `factors` of the budget."""
    budgets = np.repeat([1e18, second], 7)
    N = np.concatenate([np.geomspace(0.4, 2.5, 7) * best for best in (3e8, 3.05e8)])
    C = budgets * np.resize(factors, 14)
    L = 1.7 + 400 * N**-0.34 + 410 * (C / (6 * N)) ** -0.28
    return check(
        pd.DataFrame(
            {"params_total": N, "tokens_seen": C / (6 * N), "train_flops": C, "val_loss": L,
             "nominal": budgets}
        )
    )  # fmt: skip


def test_budgets_that_differ_by_less_than_the_tolerance_are_kept_apart():
    options = Options(budgets="nominal", laws=("surface",))
    found = study(near_budgets(1.03e18, 0.99, 1.01, 1.0), options=options).allocation.isoflops
    shown = [each.budget for each in found.minima] + [each.budget for each in found.refused]
    assert sorted(shown) == pytest.approx([1e18, 1.03e18])
    assert found.unused == 0


@pytest.mark.parametrize("second", [1.03e18, 1.07e18])
def test_runs_nearer_to_another_budget_than_to_their_own_are_refused(second):
    """The isoFLOPs would count them as runs of the other budget, without a word."""
    message = r"--budget-column nominal: the budgets 1e\+18 and .* row-2 has the first one, and its"
    with pytest.raises(TableError, match=message):
        study(near_budgets(second, 1.0, 1.045), options=Options(budgets="nominal"))


# Words that do not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"laws": ("powerful",)}, "--law powerful: the laws are pure, floor, logit, surface"),
        ({"fixed": ("alpha=0.3",)}, "--fixed alpha=0.3: only E"),
        ({"fixed": ("E",)}, "--fixed E: write NAME=NUMBER, as in E=1.8"),
        ({"fixed": ("E=-1",)}, "E must be finite and at least 0"),
        ({"fixed": ("E=1", "E=2")}, "E is given twice"),
        ({"predict": "N=big"}, "--predict N=big: big is no number"),
        ({"predict": "N=0"}, "N must be finite and above 0"),
        ({"predict": "M=1"}, "the variables are N, N_total, D, C"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(options, message):
    with pytest.raises(ValueError, match=message):
        FitOptions(**options).parsed()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(weights="w"), "--weights w: there is no such column; there are: trial"),
        (Options(weights="bad"), "--weights bad: 1 of 36 runs have no positive number there"),
        (Options(budgets="b"), "--budget-column b: there is no such column"),
    ],
)
def test_a_wrong_column_is_refused_before_the_first_fit(options, message):
    with pytest.raises(TableError, match=message):
        study(check(rows(bad=[0.0] + [1.0] * 35)), options=options)


def test_a_table_without_a_score_names_the_option_that_renames():
    with pytest.raises(TableError, match="--column 'YOURS=val_loss'"):
        check(rows().rename(columns={"val_loss": "loss"}))


def test_runs_far_from_every_budget_are_counted():
    given = rows(nominal=1e18)
    laws = {
        "allocation": {"approaches": [], "isoflops_unused": 7}, "surfaces": [], "forms": [],
    }  # fmt: skip
    (line_of_budgets,) = surface_lines(laws)
    assert line_of_budgets.startswith(
        "--budget-column: the FLOPs of 7 runs differ by more than 5 %"
    )
    found = study(check(given), options=Options(budgets="nominal", laws=("surface",))).allocation
    assert found.isoflops.unused == np.sum(np.abs(np.log(given.train_flops / 1e18)) > np.log(1.05))
