"""Forecasts on disk: written once to SWEEP/forecasts, graded when the run has ended."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from analysis.forecasting.forecast import (
    Forecast,
    ForecastError,
    Outcome,
    Run,
    Target,
    freeze,
    score,
)
from analysis.forecasting.prediction import DEFAULT_METHOD, LAWS_IN_ONE, LawMethod
from analysis.forecasting.seal import read_with_checksum, save_with_checksum
from analysis.selection.options import Options
from analysis.table.table import Table, load_results
from pipelines.planning.targets import (
    SIZES,
    caveats,
    check_comparable,
    comparable_models,
    find_target,
    reached_step,
    sizes_of,
)
from pipelines.results.table import collect_results, rows_of
from pipelines.workspace.damage import LOG, damage_in
from pipelines.workspace.log_end import latest_line
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import (
    ConfigMismatchError,
    Home,
    file_lock,
    natural_key,
    record_differences,
)
from var_scaling.disk import is_done, read_json, write_json
from var_scaling.experiment import ImportedModel, Sweep, Trial

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("val_loss", "val_loss_last", "val_error", "val_error_last")
_OUTCOMES = "outcomes.json"


@dataclass(frozen=True)
class FrozenForecast:
    """A forecast and its file. `new` is False if the same forecast had been written before."""

    forecast: Forecast
    path: Path
    sha256: str
    new: bool


def forecasts_folder(home: Home, sweep: Sweep) -> Path:
    return home.sweep(sweep.name) / "forecasts"


def finished_runs(home: Home, sweep: Sweep) -> Table:
    """The results of `sweep`, collected from the disk.

    Raises ConfigMismatchError; ValueError if there are no results.
    """
    collect_results(home, sweep)
    return load_results(home.sweep(sweep.name) / "results.parquet")


def make_forecasts(
    home: Home, sweep: Sweep, at: Sequence[str], variable: str, now: float | None = None,
    method: LawMethod = DEFAULT_METHOD,
) -> list[FrozenForecast]:  # fmt: skip
    """Predict each target in `at` from the finished runs of `sweep`, and write the forecasts.

    Writes all of them or none. `now`: seconds since 1970. Raises ValueError if a target cannot be
    predicted.
    """
    now = time.time() if now is None else now
    method.refuse_others(LAWS_IN_ONE, f"a law in {variable}")
    table = finished_runs(home, sweep)
    forecasts = [
        _forecast(home, sweep, table, address, variable, now, method)
        for address in dict.fromkeys(at)
    ]
    return write_forecasts(forecasts_folder(home, sweep), forecasts, now)


def write_forecasts(
    folder: Path, forecasts: Sequence[Forecast], now: float
) -> list[FrozenForecast]:
    """Write each forecast to a file of its own, except those that are in `folder` already."""
    with file_lock(folder, wait=10.0):
        existing = _intact_forecasts(folder)
        frozen = [_assign_file(folder, forecast, existing, now) for forecast in forecasts]
        for one in frozen:
            if one.new:
                write_json(one.path, save_with_checksum(one.forecast))
    return frozen


def _forecast(
    home: Home, sweep: Sweep, table: Table, at: str, variable: str, now: float, method: LawMethod
) -> Forecast:
    owner, trial = find_target(sweep, at)
    begun = reached_step(home, owner, trial)
    models: tuple[Trial | ImportedModel, ...] = (*sweep.trials, *sweep.imported)
    finished = set(table.finals.trial)
    used = comparable_models([model for model in models if model.name in finished], trial)
    ends = table.finals[table.finals.trial.isin({model.name for model in used})]
    runs = runs_of(ends, [str(name) for name in ends["trial"]], method)
    check_comparable(used, set(ends["data"]), trial)
    trained = [model for model in used if isinstance(model, Trial)]
    return freeze(
        Target(owner, trial.name, sizes_of(trial), trial.model_dump(mode="json"), begun),
        runs,
        variable,
        sweep=sweep.name,
        time=utc(now),
        commit=code_version(),
        data=table.fingerprint,
        caveats=caveats(trained, trial, begun),
        method=method,
    )


def utc(now: float) -> str:
    """`now`, seconds since 1970, in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))


def runs_of(finals: "pd.DataFrame", names: Sequence[str], method: LawMethod) -> list[Run]:
    """The runs of these final rows: their known sizes and metrics, and the weights of `method`.

    Raises TableError for weights that are missing or not positive.
    """
    weights = Options(weights=method.weights).weights_of(finals)

    def present(row: dict[Any, Any], names: Sequence[str]) -> dict[str, float]:
        return {n: float(row[n]) for n in names if row[n] is not None and row[n] == row[n]}

    return [
        Run(name, present(row, SIZES), present(row, METRICS), float(weight))
        for row, name, weight in zip(
            finals.to_dict("records"), names,
            [1.0] * len(finals) if weights is None else weights, strict=True,
        )
    ]  # fmt: skip


def _assign_file(
    folder: Path, forecast: Forecast, existing: list[tuple[Path, Any]], now: float
) -> FrozenForecast:
    """`forecast` with a new file name, or the existing forecast with the same prediction.

    Raises ForecastError if the name is taken.
    """
    for path, content in existing:
        before = read_with_checksum(content)
        if before.same_prediction(forecast):
            return FrozenForecast(before, path, content["sha256"], new=False)
    target = forecast.target
    name = target.trial if target.sweep == forecast.sweep else f"{target.trial}@{target.sweep}"
    name = name.replace("=", "").replace(",", "-")  # the point of a table: N=1e10,D=2e11
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    path = folder / f"{name}-{when}.json"
    if path.exists():
        raise ForecastError(f"{path} exists and holds a different forecast; try again in a second")
    return FrozenForecast(forecast, path, save_with_checksum(forecast)["sha256"], new=True)


def _intact_forecasts(folder: Path) -> list[tuple[Path, Any]]:
    """(path, content) of the forecasts in `folder` whose checksum is right."""
    intact = []
    for path in _files(folder):
        try:
            read_with_checksum(content := read_json(path))
        except ValueError:  # `grade_forecasts` reports it as tampered
            continue
        intact.append((path, content))
    return intact


def _files(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("*.json") if path.name != _OUTCOMES]
    return sorted(paths, key=lambda path: natural_key(path.name))


# Outcomes -----------------------------------------------------------------------------------------


def grade_forecasts(home: Home, sweep: Sweep) -> list[Outcome]:
    """The outcome of every forecast of `sweep`. Writes nothing."""
    return grade_folder(forecasts_folder(home, sweep), partial(_outcome, home))


def grade_folder(folder: Path, grade: Callable[[Path], Outcome]) -> list[Outcome]:
    """The outcome of every forecast in `folder`, and of those that were graded before and are
    missing now.
    """
    outcomes = [grade(path) for path in _files(folder)]
    before = read_json(folder / _OUTCOMES) if (folder / _OUTCOMES).exists() else []
    missing = [row["file"] for row in before if not (folder / row["file"]).exists()]
    return outcomes + [Outcome(name, "missing", "it was graded before", None) for name in missing]


def score_all(home: Home, sweep: Sweep) -> list[Outcome]:
    """The same, written to outcomes.json. Raises ValueError if there are no forecasts."""
    outcomes = grade_forecasts(home, sweep)
    return save_outcomes(outcomes, forecasts_folder(home, sweep), sweep.name)


def save_outcomes(outcomes: list[Outcome], folder: Path, name: str) -> list[Outcome]:
    """Write the outcomes to outcomes.json in `folder`. Raises ValueError if there are none."""
    if not outcomes:
        raise ValueError(f"{name}: there are no forecasts; `var-scaling forecast` makes them")
    write_json(folder / _OUTCOMES, outcomes_as_json(outcomes))
    return outcomes


def outcomes_as_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """JSON rows: the file, the target, its state with the reason, and the grades."""
    return [
        {
            "file": outcome.file,
            "target": _address(outcome.forecast) if outcome.forecast else None,
            "frozen": outcome.forecast.time if outcome.forecast else None,
            "state": outcome.state,
            "said": outcome.reason,
            "grades": [asdict(grade) for grade in outcome.grades],
        }
        for outcome in outcomes
    ]


def _outcome(home: Home, path: Path) -> Outcome:
    try:
        forecast = read_with_checksum(read_json(path))
    except ValueError as error:  # not JSON, changed, or of another version
        return Outcome(path.name, "tampered", str(error), None)
    target = forecast.target
    folder = home.trial(target.sweep, target.trial)
    try:
        trial = Trial.model_validate_json(json.dumps(target.record))
        differences = record_differences(folder / "trial.json", trial)
    except (ValidationError, ConfigMismatchError) as error:
        return Outcome(
            path.name, "void", f"the record of the run cannot be read: {error}", forecast
        )
    if differences:
        reason = "the run is not the one that was predicted: " + "; ".join(differences[:3])
        return Outcome(path.name, "void", reason, forecast)
    if not is_done(folder):
        line = latest_line(folder / "metrics.jsonl", "train")
        reason = f"at step {line['step']:,} of {trial.steps:,}" if line else "not begun"
        return Outcome(path.name, "waiting", reason, forecast)
    damage = damage_in(folder)
    if damage is not None and LOG in damage.files:
        return Outcome(path.name, "waiting", str(damage), forecast)
    return _graded(home, path, forecast, trial)


def _graded(home: Home, path: Path, forecast: Forecast, trial: Trial) -> Outcome:
    """The grade of a run that has ended."""
    target = forecast.target
    folder = home.trial(target.sweep, target.trial)
    one_trial = Sweep(name=target.sweep, question="What was predicted?", trials=(trial,))
    ends = [
        row
        for row in rows_of(home, one_trial)
        if row["step"] == row["steps"] and row["status"] == "done"
    ]
    line = latest_line(folder / "metrics.jsonl", "validation")
    if not ends or line is None:
        return Outcome(path.name, "diverged", "the run ended without an evaluation", forecast)
    ended, frozen = line["time_ms"] / 1000, datetime.fromisoformat(forecast.time).timestamp()
    if ended < frozen:
        reason = f"the run had ended at {utc(ended)}, before it was predicted at {forecast.time}"
        return Outcome(path.name, "void", reason, forecast)
    measured = {m: value for m in METRICS if (value := ends[-1][m]) is not None}
    try:
        return Outcome(path.name, "graded", "", forecast, score(forecast, measured))
    except ForecastError as error:
        return Outcome(path.name, "void", str(error), forecast)


def _address(forecast: Forecast) -> str:
    target = forecast.target
    other = target.sweep != forecast.sweep
    return f"{target.sweep}/{target.trial}" if other else target.trial
