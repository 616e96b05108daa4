"""A forecast is frozen before the run, protected by a checksum, and graded afterwards."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import images, tokenizer, trial
from typer.testing import CliRunner

from analysis.forecasting.forecast import ForecastError, Run, Target, freeze, score
from analysis.forecasting.prediction import LawMethod
from analysis.forecasting.seal import ChecksumError, read_with_checksum, save_with_checksum
from pipelines.cli.main import app
from pipelines.planning import forecasts
from pipelines.planning.forecasts import grade_forecasts, make_forecasts, score_all
from pipelines.workspace.store import ConfigMismatchError, Home, init_run_dir
from var_scaling.datasets import ImageFiles
from var_scaling.disk import read_json, write_json
from var_scaling.experiment import Sweep
from var_scaling.experiment.ledger import trial_ledger
from var_scaling.ladder import tiny_optimiser
from var_scaling.metrics import MetricsLog
from var_scaling.models.var.config import VarModel

SIZES = 1152.0 * np.arange(1, 7) ** 3
NOISE = 0.003 * np.random.default_rng(1).standard_normal(6)


def runs(floor=2.0, sizes=SIZES, noise=NOISE) -> list[Run]:
    losses = (floor + 20 * sizes**-0.25) * np.exp(noise[: len(sizes)])
    return [
        Run(f"d{i}", {"params_blocks": float(n)}, {"val_loss": float(loss)})
        for i, (n, loss) in enumerate(zip(sizes, losses, strict=True), 1)
    ]


def frozen(given=None, at=8, **changes):
    target = Target("s", f"d{at}", {"params_blocks": 1152.0 * at**3}, {})
    settings = {"sweep": "s", "time": "2026-01-01T00:00:00Z", "commit": "c", "data": "f"}
    given = runs() if given is None else given
    return freeze(target, given, "params_blocks", **{**settings, **changes})


# The forecast itself ------------------------------------------------------------------------------


def test_both_laws_predict_and_the_preferred_law_contains_the_truth():
    (loss,) = frozen().metrics
    assert {one.law for one in loss.predictions} == {"pure", "floor"}
    assert loss.headline == "floor"
    truth = 2 + 20 * (1152.0 * 8**3) ** -0.25
    assert loss.quoted.low < truth < loss.quoted.high
    assert loss.quoted.predicted == pytest.approx(truth, rel=0.01)
    assert "AICc" in loss.why
    assert loss.quoted.certificate["converged"]


def test_a_forecast_from_a_loss_that_rises_has_a_caveat():
    assert not [caveat for caveat in frozen().caveats if "no law" in caveat]
    rising = [replace(run, measured={"val_loss": 9 - run.measured["val_loss"]}) for run in runs()]
    (caveat,) = frozen(rising).caveats
    assert caveat.startswith("val_loss follows no law: its exponent is not positive, α = -0.")


def test_an_interval_without_an_end_contains_no_measured_value():
    made = frozen()
    (loss,) = made.metrics
    open_ended = tuple(replace(each, high=None) for each in loss.predictions)
    made = replace(made, metrics=(replace(loss, predictions=open_ended),))
    measured = {"val_loss": loss.quoted.predicted}
    assert {grade.covered for grade in score(made, measured)} == {None}
    assert {grade.covered for grade in score(frozen(), measured)} == {True}


def test_three_runs_give_a_prediction_by_the_pure_law_only_with_the_reason():
    (loss,) = frozen(runs(sizes=SIZES[:3])).metrics
    assert loss.headline == "pure"
    assert "3 parameters and only 3 points" in loss.refused[0]


def test_too_few_runs_give_no_prediction():
    with pytest.raises(ForecastError, match="val_loss is not predicted from 2 finished runs"):
        frozen(runs(sizes=SIZES[:2]))


def test_a_run_whose_size_is_unknown_is_left_out_and_named():
    third_party = Run("elsewhere", {"params_total": 1e6}, {"val_loss": 3.0})
    made = frozen([*runs(sizes=SIZES[:3]), third_party])
    assert [run.trial for run in made.runs] == ["d1", "d2", "d3"]
    assert "params_blocks of elsewhere is not known" in made.caveats[0]


def test_extrapolation_counts_from_the_largest_run_used():
    assert frozen(runs(sizes=SIZES[:3]), at=6).extrapolation == 8


def test_a_finished_run_is_not_predicted():
    with pytest.raises(ForecastError, match="d6 is one of the fitted runs"):
        frozen(at=6)


# Grades -------------------------------------------------------------------------------------------


def test_a_run_at_the_end_of_the_interval_is_196_standard_deviations_away():
    made = frozen(runs(sizes=SIZES[:3]))
    one = made.metrics[0].quoted
    for measured, sign in ((one.high, 1), (one.low, -1)):
        (grade,) = score(made, {"val_loss": measured})
        assert grade.covered
        assert grade.half_widths == pytest.approx(sign)
        assert grade.z == pytest.approx(sign * 1.95996, rel=1e-4)
    (grade,) = score(made, {"val_loss": one.predicted / 1.1})
    assert grade.error == pytest.approx(0.1)
    (grade,) = score(made, {"val_loss": one.high * 1.0001})
    assert not grade.covered


def test_a_prediction_of_an_unmeasured_metric_is_not_graded():
    with pytest.raises(ForecastError, match="has no measured val_loss"):
        score(frozen(runs(sizes=SIZES[:3])), {"val_error": 0.5})


# The seal -----------------------------------------------------------------------------------------


def test_a_saved_forecast_is_loaded_unchanged():
    made = frozen(runs(sizes=SIZES[:3]))
    assert read_with_checksum(json.loads(json.dumps(save_with_checksum(made)))) == made


@pytest.mark.parametrize("change", [
    lambda inside: inside["metrics"][0]["predictions"][0].update(high=9.0),
    lambda inside: inside.update(time="2020-01-01T00:00:00Z"),
    lambda inside: inside["target"].update(begun_at=None) or inside["runs"].pop(),
])  # fmt: skip
def test_any_change_of_a_saved_forecast_is_detected(change):
    content = save_with_checksum(frozen(runs(sizes=SIZES[:3])))
    change(content["forecast"])
    with pytest.raises(ChecksumError, match="does not match its SHA-256"):
        read_with_checksum(content)


def test_another_format_is_refused_by_its_number():
    made = replace(frozen(runs(sizes=SIZES[:3])), format=2)
    with pytest.raises(ForecastError, match="format 2: this version reads 1"):
        read_with_checksum(save_with_checksum(made))


# On disk ------------------------------------------------------------------------------------------


def rung(depth: int, **changes):
    model = VarModel(depth=depth, width_per_depth=8, drop_path_per_depth=0.0)
    optimiser = tiny_optimiser(8 * depth)
    return trial(**{"name": f"d{depth}", "model": model, "optimiser": optimiser, **changes})


def sweep(*more, depths=(1, 2, 3, 4), name="s") -> Sweep:
    return Sweep(name=name, question="?", trials=(*map(rung, depths), *more))


def loss_of(one) -> float:
    wiggle = 0.002 * np.sin(7 * one.model.depth + one.seed)
    return float((1 + 8 * trial_ledger(one)["params_blocks"] ** -0.2) * np.exp(wiggle))


def finish(home: Home, owner: Sweep, *names: str, status="done") -> None:
    for one in owner.trials:
        if one.name in names:
            folder = home.trial(owner.name, one.name)
            evaluate(home, owner, one, one.steps)
            write_json(folder / "done.json", {"status": status})


def evaluate(home: Home, owner: Sweep, one, step: int) -> None:
    folder = home.trial(owner.name, one.name)
    init_run_dir(folder, "trial.json", one)
    log = MetricsLog(folder / "metrics.jsonl")
    loss = loss_of(one)
    scores = {"loss": loss, "loss_last": loss + 1, "error": loss / 10, "error_last": loss / 9}
    log("validation", step, {**scores, "seconds": 1.0, "images_per_second": 5.0})
    log.close()


@pytest.fixture
def home(tmp_path) -> Home:
    found = Home(tmp_path / "runs")
    finish(found, sweep(), "d1", "d2", "d3")
    return found


def test_a_forecast_is_frozen_then_waiting_then_graded(home):
    (made,) = make_forecasts(home, sweep(), ["d4"], "params_blocks")
    assert made.new
    assert made.path.parent == home.root / "s" / "forecasts"
    assert made.forecast.target.begun_at is None
    assert made.forecast.extrapolation == pytest.approx((4 / 3) ** 3)
    assert [(one.state, one.reason) for one in grade_forecasts(home, sweep())] == [
        ("waiting", "not begun")
    ]
    finish(home, sweep(), "d4")
    (outcome,) = score_all(home, sweep())
    assert outcome.state == "graded"
    grade = outcome.grades[0]
    assert [one.metric for one in outcome.grades] == list(forecasts.METRICS)
    assert grade.measured == loss_of(rung(4))
    (row,) = read_json(made.path.parent / "outcomes.json")
    assert row["grades"][0]["measured"] == grade.measured
    assert (row["target"], row["file"]) == ("d4", made.path.name)


def test_a_repeated_forecast_writes_nothing_and_a_different_one_does_not_overwrite(home):
    (first,) = make_forecasts(home, sweep(), ["d4"], "params_blocks", now=1e9)
    before = first.path.read_bytes()
    (again,) = make_forecasts(home, sweep(), ["d4"], "params_blocks", now=1e9 + 60)
    assert (again.path, again.sha256, again.new) == (first.path, first.sha256, False)
    with pytest.raises(ForecastError, match="holds a different forecast"):
        make_forecasts(home, sweep(), ["d4"], "train_flops", now=1e9)
    assert first.path.read_bytes() == before
    (later,) = make_forecasts(home, sweep(), ["d4"], "train_flops", now=1e9 + 60)
    assert later.new
    assert later.path != first.path


def test_a_forecast_of_a_sweep_takes_a_fixed_E_and_weights_that_score_judges_by(home):
    method = LawMethod(E=0.1, weights="depth")
    (made,) = make_forecasts(home, sweep(), ["d4"], "params_blocks", method=method)
    assert [run.weight for run in made.forecast.runs] == [1.0, 2.0, 3.0]
    loss = made.forecast.metrics[0]
    assert (loss.headline, loss.why) == ("floor", "the law with the fixed E = 0.1")
    assert loss.quoted.values["E"] == pytest.approx(0.1)
    assert loss.quoted.spare == 1
    with pytest.raises(ValueError, match="--weights none: there is no such column"):
        make_forecasts(home, sweep(), ["d4"], "params_blocks", method=LawMethod(weights="none"))
    finish(home, sweep(), "d4")
    (outcome,) = score_all(home, sweep())
    (grade,) = (each for each in outcome.grades if each.headline and each.metric == "val_loss")
    assert (grade.law, grade.predicted) == ("floor", loss.quoted.predicted)


def test_a_finished_or_unknown_target_is_refused(home):
    with pytest.raises(ValueError, match="s/d3 is done: its results are known"):
        make_forecasts(home, sweep(), ["d3"], "params_blocks")
    with pytest.raises(ValueError, match="s has no trial d9; its trials are d1, d2, d3, d4"):
        make_forecasts(home, sweep(), ["d9"], "params_blocks")
    finish(home, sweep(), "d4", status="diverged")
    with pytest.raises(ValueError, match="s/d4 is diverged"):
        make_forecasts(home, sweep(), ["d4"], "params_blocks")


def test_a_run_with_its_final_evaluation_counts_as_finished_without_the_mark(home):
    evaluate(home, sweep(), rung(4), 12)
    with pytest.raises(ValueError, match="evaluated at its end"):
        make_forecasts(home, sweep(), ["d4"], "params_blocks")


def test_no_forecast_is_frozen_if_one_target_is_invalid(home):
    with pytest.raises(ValueError, match="no trial d9"):
        make_forecasts(home, sweep(), ["d4", "d9"], "params_blocks")
    assert grade_forecasts(home, sweep()) == []


def test_a_running_target_is_predicted_without_its_rows_and_marked_as_begun(home):
    evaluate(home, sweep(), rung(4), 6)
    (begun,) = make_forecasts(home, sweep(), ["d4"], "params_blocks")
    assert begun.forecast.target.begun_at == 6
    assert "d4 had begun: it was at step 6 of 12" in begun.forecast.caveats
    assert {run.trial for run in begun.forecast.runs} == {"d1", "d2", "d3"}


def test_too_few_finished_runs_are_refused(tmp_path):
    home = Home(tmp_path)
    with pytest.raises(ValueError, match="no trial has been evaluated yet"):
        make_forecasts(home, sweep(), ["d4"], "params_blocks")
    finish(home, sweep(), "d1", "d2")
    with pytest.raises(ForecastError, match="2 finished runs"):
        make_forecasts(home, sweep(), ["d4"], "params_blocks")


def other(tmp_path, one) -> str:
    """Write another sweep to a file; returns the address of its trial."""
    record = Sweep(name="big", question="?", trials=(one,)).model_dump_json()
    code = (
        f"from var_scaling.experiment import Sweep\nsweep = Sweep.model_validate_json({record!r})\n"
    )
    (tmp_path / "big.py").write_text(code)
    return f"{tmp_path / 'big.py'}/{one.name}"


def test_a_larger_run_of_another_sweep_is_predicted_with_its_differences(home, tmp_path):
    large = images(name="more", train_images=6000)
    at = other(tmp_path, rung(8, steps=24, data=large, optimiser=tiny_optimiser(64, 0.5)))
    (made,) = make_forecasts(home, sweep(), [at], "params_blocks")
    assert made.path.name.startswith("d8@big-")
    assert made.forecast.target.sizes["tokens_seen"] == 24 * 8 * 21
    assert "tokens_seen is 4,032, but 2,016 in the runs" in made.forecast.caveats
    assert "data.train_images is 6,000, but 600 in the runs" in made.forecast.caveats
    assert "rate x width is 0.5, but 0.25 in the runs" in made.forecast.caveats
    assert len(made.forecast.caveats) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": tokenizer(seed=1)}, "tokenizer.seed: recorded 0, expected 1$"),
        ({"data": images(seed=1, name="new")}, "held-out images, seed: recorded 0, expected 1$"),
        ({"data": ImageFiles(name="pets", side=16, classes=8)}, "held-out images, "),
        ({"model": rung(3).model, "optimiser": rung(3).optimiser}, "is d3 by another name"),
    ],
)
def test_a_target_that_is_not_comparable_with_the_law_is_refused(home, tmp_path, change, message):
    at = other(tmp_path, rung(8, **change))
    with pytest.raises(ValueError, match=message):
        make_forecasts(home, sweep(), [at], "params_blocks")


def test_a_tampered_forecast_is_reported_and_not_graded_and_a_missing_one_reported(home):
    (made,) = make_forecasts(home, sweep(), ["d4"], "params_blocks")
    finish(home, sweep(), "d4")
    assert score_all(home, sweep())[0].state == "graded"
    made.path.write_text(made.path.read_text().replace('"commit"', '"comit"'))
    (outcome,) = score_all(home, sweep())
    assert (outcome.state, outcome.grades, outcome.file) == ("tampered", (), made.path.name)
    made.path.unlink()
    (outcome,) = score_all(home, sweep())
    assert outcome.state == "missing"


def test_a_run_that_ended_before_its_forecast_is_not_graded(home):
    make_forecasts(home, sweep(), ["d4"], "params_blocks", now=time.time() + 3600)
    finish(home, sweep(), "d4")
    (outcome,) = grade_forecasts(home, sweep())
    assert outcome.state == "void"
    assert "before it was predicted" in outcome.reason


def test_a_run_with_another_record_does_not_grade_the_forecast(home):
    make_forecasts(home, sweep(), ["d4"], "params_blocks")
    changed = Sweep(name="s", question="?", trials=(rung(4, steps=24),))
    finish(home, changed, "d4")
    (outcome,) = grade_forecasts(home, sweep())
    assert outcome.state == "void"
    assert "steps: recorded 24, expected 12" in outcome.reason
    with pytest.raises(ConfigMismatchError):
        make_forecasts(home, sweep(), ["d4"], "params_blocks")


def test_a_predicted_run_that_diverged_is_reported_as_diverged(home):
    make_forecasts(home, sweep(), ["d4"], "params_blocks")
    folder = home.trial("s", "d4")
    folder.mkdir(parents=True)
    write_json(folder / "done.json", {"status": "diverged", "reason": "nan"})
    assert grade_forecasts(home, sweep())[0].state == "diverged"


def test_the_command_prints_tables_or_json_and_exits_with_1_for_a_tampered_file(home, tmp_path):
    record = sweep().model_dump_json()
    code = (
        f"from var_scaling.experiment import Sweep\nsweep = Sweep.model_validate_json({record!r})\n"
    )
    (tmp_path / "s.py").write_text(code)
    place = [str(tmp_path / "s.py"), "--home", str(home.root)]
    message = CliRunner().invoke(app, ["forecast", *place, "--at", "d4"], catch_exceptions=False)
    assert message.exit_code == 0
    assert "written to" in message.output
    finish(home, sweep(), "d4")
    reported = CliRunner().invoke(app, ["score", *place], catch_exceptions=False)
    assert (reported.exit_code, "[" in reported.output) == (0, True)
    plain = CliRunner().invoke(app, ["score", *place, "--json"], catch_exceptions=False)
    (row,) = json.loads(plain.output)
    assert row["state"] == "graded"
    (path,) = forecasts.forecasts_folder(home, sweep()).glob("d4-*.json")
    path.write_text("{}")
    assert CliRunner().invoke(app, ["score", *place]).exit_code == 1
