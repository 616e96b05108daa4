"""Forecasts on disk: frozen once under runs/SWEEP/forecasts, graded when their runs have ended."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

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
from analysis.forecasting.seal import read_with_checksum, save_with_checksum
from analysis.table.table import Table, load_results
from pipelines.planning.targets import (
    SIZES,
    begun_at,
    caveats,
    find_target,
    like_target,
    refuse_unlike,
    sizes_of,
)
from pipelines.results.table import collect_results, rows_of
from pipelines.workspace.damage import LOG, damage_in
from pipelines.workspace.log_end import latest_line
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import ConfigMismatchError, Home, drift, file_lock, natural
from var_scaling.disk import is_done, read_json, write_json
from var_scaling.experiment import ImportedModel, Sweep, Trial

METRICS = ("val_loss", "val_loss_last", "val_error", "val_error_last")
_OUTCOMES = "outcomes.json"


@dataclass(frozen=True)
class Frozen:
    """A forecast and the file that holds it. `new` is False where it was there already."""

    forecast: Forecast
    path: Path
    sha256: str
    new: bool


def forecasts_folder(home: Home, sweep: Sweep) -> Path:
    return home.sweep(sweep.name) / "forecasts"


def finished_runs(home: Home, sweep: Sweep) -> Table:
    """The results of `sweep`, collected anew. Raises Drift, ValueError where there are none."""
    collect_results(home, sweep)
    return load_results(home.sweep(sweep.name) / "results.parquet")


def make_forecasts(
    home: Home, sweep: Sweep, at: Sequence[str], variable: str, now: float | None = None
) -> list[Frozen]:
    """Freeze what the finished runs of `sweep` say of each target, all of them or none.

    `now` in seconds since 1970. Raises ValueError where a target cannot be predicted.
    """
    now = time.time() if now is None else now
    table = finished_runs(home, sweep)
    made = [_forecast(home, sweep, table, one, variable, now) for one in dict.fromkeys(at)]
    folder = forecasts_folder(home, sweep)
    with file_lock(folder, wait=10.0):
        known = _frozen_before(folder)
        found = [_placed(folder, forecast, known, now) for forecast in made]
        for one in found:
            if one.new:
                write_json(one.path, save_with_checksum(one.forecast))
    return found


def _forecast(
    home: Home, sweep: Sweep, table: Table, at: str, variable: str, now: float
) -> Forecast:
    owner, trial = find_target(sweep, at)
    begun = begun_at(home, owner, trial)
    things: tuple[Trial | ImportedModel, ...] = (*sweep.trials, *sweep.imported)
    finished = set(table.finals.trial)
    used = like_target([one for one in things if one.name in finished], trial)
    ends = table.finals[table.finals.trial.isin({one.name for one in used})]
    runs = [_run(row) for row in ends.to_dict("records")]
    refuse_unlike(used, set(ends["data"]), trial)
    trained = [one for one in used if isinstance(one, Trial)]
    return freeze(
        Target(owner, trial.name, sizes_of(trial), trial.model_dump(mode="json"), begun),
        runs,
        variable,
        sweep=sweep.name,
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        commit=code_version(),
        data=table.fingerprint,
        caveats=caveats(trained, trial, begun),
    )


def _run(row: dict[Any, Any]) -> Run:
    def known(names: Sequence[str]) -> dict[str, float]:
        return {n: float(row[n]) for n in names if row[n] is not None and row[n] == row[n]}

    return Run(str(row["trial"]), known(SIZES), known(METRICS))


def _placed(folder: Path, made: Forecast, known: list[tuple[Path, Any]], now: float) -> Frozen:
    """`made` and its file, or the one that said the same before. Raises ForecastError."""
    for path, content in known:
        before = read_with_checksum(content)
        if before.says_what(made):
            return Frozen(before, path, content["sha256"], new=False)
    target = made.target
    name = target.trial if target.sweep == made.sweep else f"{target.trial}@{target.sweep}"
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    path = folder / f"{name}-{when}.json"
    if path.exists():
        raise ForecastError(f"{path} is frozen already and says something else; ask again later")
    return Frozen(made, path, save_with_checksum(made)["sha256"], new=True)


def _frozen_before(folder: Path) -> list[tuple[Path, Any]]:
    """What is intact of the forecasts in `folder`."""
    found = []
    for path in _files(folder):
        try:
            read_with_checksum(content := read_json(path))
        except ValueError:  # named and counted by `score`
            continue
        found.append((path, content))
    return found


def _files(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("*.json") if path.name != _OUTCOMES]
    return sorted(paths, key=lambda path: natural(path.name))


# Outcomes -----------------------------------------------------------------------------------------


def graded(home: Home, sweep: Sweep) -> list[Outcome]:
    """What has come of every forecast of `sweep`; nothing is written."""
    folder = forecasts_folder(home, sweep)
    found = [_outcome(home, path) for path in _files(folder)]
    before = read_json(folder / _OUTCOMES) if (folder / _OUTCOMES).exists() else []
    gone = [row["file"] for row in before if not (folder / row["file"]).exists()]
    return found + [Outcome(name, "missing", "it was scored before", None) for name in gone]


def score_all(home: Home, sweep: Sweep) -> list[Outcome]:
    """The same, kept in outcomes.json. Raises ValueError where nothing was ever frozen."""
    outcomes = graded(home, sweep)
    if not outcomes:
        raise ValueError(f"{sweep.name}: no forecast has been frozen; `var-scaling forecast` does")
    write_json(forecasts_folder(home, sweep) / _OUTCOMES, outcomes_as_json(outcomes))
    return outcomes


def outcomes_as_json(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Plain rows: the file, the target, what became of it, and the grades."""
    return [
        {
            "file": one.file,
            "target": _address(one.forecast) if one.forecast else None,
            "frozen": one.forecast.time if one.forecast else None,
            "state": one.state,
            "said": one.said,
            "grades": [asdict(grade) for grade in one.grades],
        }
        for one in outcomes
    ]


def _outcome(home: Home, path: Path) -> Outcome:
    try:
        forecast = read_with_checksum(read_json(path))
    except ValueError as error:  # no JSON, a changed one, or that of another version
        return Outcome(path.name, "tampered", str(error), None)
    target = forecast.target
    folder = home.trial(target.sweep, target.trial)
    try:
        trial = Trial.model_validate_json(json.dumps(target.record))
        unlike = drift(folder / "trial.json", trial)
    except (ValidationError, ConfigMismatchError) as error:
        return Outcome(path.name, "void", f"the run cannot be told: {error}", forecast)
    if unlike:
        said = "the run is another than was predicted: " + "; ".join(unlike[:3])
        return Outcome(path.name, "void", said, forecast)
    if not is_done(folder):
        line = latest_line(folder / "metrics.jsonl", "train")
        said = f"at step {line['step']:,} of {trial.steps:,}" if line else "not begun"
        return Outcome(path.name, "waiting", said, forecast)
    found = damage_in(folder)
    if found is not None and LOG in found.files:
        return Outcome(path.name, "waiting", str(found), forecast)
    return _graded(home, path, forecast, trial)


def _graded(home: Home, path: Path, forecast: Forecast, trial: Trial) -> Outcome:
    """The grade of a run that has ended."""
    target = forecast.target
    folder = home.trial(target.sweep, target.trial)
    alone = Sweep(name=target.sweep, question="What was predicted?", trials=(trial,))
    ends = [
        row
        for row in rows_of(home, alone)
        if row["step"] == row["steps"] and row["status"] == "done"
    ]
    line = latest_line(folder / "metrics.jsonl", "validation")
    if not ends or line is None:
        return Outcome(path.name, "diverged", "the run ended without a score", forecast)
    ended, frozen = line["time_ms"] / 1000, datetime.fromisoformat(forecast.time).timestamp()
    if ended < frozen:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ended))
        said = f"the run had ended at {when}, before it was predicted at {forecast.time}"
        return Outcome(path.name, "void", said, forecast)
    measured = {m: value for m in METRICS if (value := ends[-1][m]) is not None}
    try:
        return Outcome(path.name, "graded", "", forecast, score(forecast, measured))
    except ForecastError as error:
        return Outcome(path.name, "void", str(error), forecast)


def _address(forecast: Forecast) -> str:
    target = forecast.target
    other = target.sweep != forecast.sweep
    return f"{target.sweep}/{target.trial}" if other else target.trial
