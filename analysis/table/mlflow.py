"""An MLflow experiment as a run table: a row for each step at which a run logged a score."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.table.schema import BY_NAME, SCORES
from analysis.table.table import Table, check, refuse_names
from analysis.table.validate import TableError

_NAMES = {"val/images_scored": "val_images", "train/loss": "train_loss"}
# Measured then and there.
_AT_THE_STEP = ("val_", "fid", "inception_score", "kid", "fd_", "evaluation_flops")
_SO_FAR = (
    "train_loss", "train_flops", "images_", "tokens_seen", "epochs", "seconds", "training_",
    "sampling_images", "sampling_latency", "sampling_peak",
)  # fmt: skip
_TAGS = ("commit", "attempts")
_TAGS_OF_THE_END = ("fidelity_set", "fidelity_reference", "speed_machine")
_STATUS = {"FINISHED": "done", "FAILED": "failed"}  # any other run may go on
_PAGE = 500
History = dict[int, float]  # value by step


def from_mlflow(client: Any, experiment: str, columns: Mapping[str, str] | None = None) -> Table:
    """The runs of `experiment` as `client`, an `mlflow.MlflowClient`, finds them there.

    What our mirror logs is known by its names, and so is what has the name of a column of the
    schema. `columns` maps a third-party metrics and params to columns: {"eval_loss": "val_loss"}.
    A param that grows with training (tokens_seen, train_flops, ...) is of the whole run, and is
    scaled by step / steps. Raises TableError.
    """
    columns, where = dict(columns or {}), f"MLflow experiment {experiment}"
    runs = _runs(client, experiment)
    if not runs:
        raise TableError(f"{where}: holds no run")
    there = {name for run in runs for name in (*run.data.metrics, *run.data.params)}
    refuse_names(columns, there, where)
    names = pd.Series([_name(run) for run in runs])
    shared = names[names.duplicated(keep=False)].index
    rows: list[dict[str, Any]] = []
    silent: list[str] = []
    for i, run in enumerate(runs):
        name = f"{names[i]}-{run.info.run_id[:8]}" if i in shared else names[i]
        found = _run_rows(client, run, columns)
        rows += [{"sweep": experiment, **row, "trial": name} for row in found]
        if not found:
            silent.append(f"run {name}: logged no score")
    if not rows:
        raise TableError(
            f"{where}: no run logged a score ({', '.join(SCORES)}); there are: "
            f"{', '.join(sorted(there)) or 'no metrics'}. Say which is which: "
            f"columns={{'yours': '{SCORES[0]}'}}"
        )
    table = check(pd.DataFrame(rows), where)
    return replace(table, dropped=(*silent, *table.dropped))


def _runs(client: Any, experiment: str) -> list[Any]:
    """Every run of the experiment, oldest first. Raises TableError where there is no such one."""
    found = client.get_experiment_by_name(experiment)
    if found is None or found.lifecycle_stage == "deleted":
        known = ", ".join(sorted(one.name for one in client.search_experiments()))
        raise TableError(f"there is no MLflow experiment {experiment!r}; there are: {known}")
    runs: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_runs([found.experiment_id], max_results=_PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return sorted(runs, key=lambda run: (run.info.start_time or 0, run.info.run_id))


def _name(run: Any) -> str:
    """The trial's name in our mirror's address; elsewhere the run's, or its id."""
    address = run.data.tags.get("var_scaling.address", "")
    return str(address.rpartition("/")[2] or run.info.run_name or run.info.run_id)


def _column(name: str, columns: Mapping[str, str]) -> str | None:
    """The column that a metric or param stands for: as told, as ours, or by its very name."""
    if name in columns:
        return columns[name]
    room, _, own = name.rpartition("/")
    guess = _NAMES.get(name, name)
    if room == "val" and name not in _NAMES:
        guess = f"val_{own}" if f"val_{own}" in BY_NAME else own
    return guess if guess in BY_NAME and guess not in columns.values() else None


def _run_rows(client: Any, run: Any, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each step with a score; one without a step where all was logged at step 0."""
    tags = run.data.tags
    named = {name: tags[name] for name in _TAGS if name in tags}
    of_the_end = {name: _value(tags[name], name) for name in _TAGS_OF_THE_END if name in tags}
    named |= {column: text for name, text in run.data.params.items()
              if (column := _column(name, columns))}  # fmt: skip
    known = {name: _value(text, name) for name, text in named.items()}
    known["status"] = _STATUS.get(run.info.status, "running")
    histories = _histories(client, run, columns)
    scored = sorted({step for name in SCORES for step in histories.get(name, {})})
    if scored == [0]:
        logged = {name: _at(name, history, 0) for name, history in histories.items()}
        return [known | of_the_end | logged]
    ended = scored and known["status"] == "done"
    steps = known.get("steps") or (scored[-1] if ended else None)
    rows = []
    for step in scored:
        grown = {name: _part(known[name], step, steps) for name in known if _grows(name)}
        logged = {name: _at(name, history, step) for name, history in histories.items()}
        logged = {name: value for name, value in logged.items() if value is not None}
        later = of_the_end if step == steps else {}
        rows.append({**known, **grown, **later, **logged, "step": step})
    return rows


def _histories(client: Any, run: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    """Each column's values by step; of a step logged twice the later; lists put together."""
    found: dict[str, Any] = {}
    scales: dict[str, dict[int, History]] = {}
    for name in run.data.metrics:
        base, _, scale = name.rpartition("/k")
        column = _column(base if scale.isdigit() else name, columns)
        if column is None:
            continue
        logged = client.get_metric_history(run.info.run_id, name)
        logged = sorted(logged, key=lambda metric: (metric.step, metric.timestamp))
        history = {metric.step: metric.value for metric in logged}
        if scale.isdigit():
            scales.setdefault(column, {})[int(scale)] = history
        else:
            found[column] = history
    for column, parts in scales.items():
        steps = set.intersection(*(set(history) for history in parts.values()))
        found[column] = {step: [parts[k][step] for k in sorted(parts)] for step in steps}
    return found


def _at(name: str, history: dict[int, Any], step: int) -> Any:
    """What `history` says of `name` at `step`: a score of that very step, a state as last known,
    the peak of the learning rate; what does not change with the step, whenever it was logged.
    """
    if name.startswith(_AT_THE_STEP):
        return history.get(step)
    if name == "learning_rate":
        return max(history.values())
    reached = [at for at in history if at <= step]
    if name.startswith(_SO_FAR):
        return history[max(reached)] if reached else None
    return history[max(history)]


def _grows(name: str) -> bool:
    return name.endswith("_seen") or name.startswith("train_flops")


def _part(whole: Any, step: int, steps: Any) -> Any:
    """What of `whole`, spent in `steps`, was spent by `step`; None where that cannot be known."""
    if not isinstance(whole, int | float) or not isinstance(steps, int | float):
        return None
    exact = isinstance(whole, int) and isinstance(steps, int)
    return whole * step // steps if exact else whole * step / steps


def _value(text: str, name: str) -> Any:
    """A param of column `name` as what it was before MLflow made it text."""
    if text in ("None", "unknown", ""):
        return None
    if BY_NAME[name].kind == "text":
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
