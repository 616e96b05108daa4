"""An MLflow experiment as a run table: one row for each step at which a run logged a score."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.table.schema import BY_NAME, SCORES
from analysis.table.table import Table, check, check_column_mapping
from analysis.table.validate import TableError

# Metrics of our tracker that do not follow the rules of `_column`.
_NAMES = {"val/images_scored": "val_images", "train/loss": "train_loss"}
# Columns that are valid only at the step at which they were logged.
_EXACT_STEP = ("val_", "fid", "inception_score", "kid", "fd_", "evaluation_flops")
# Columns whose last value up to a step is valid at that step.
_RUNNING = (
    "train_loss", "train_flops", "images_", "tokens_seen", "epochs", "seconds", "training_",
    "sampling_images", "sampling_latency", "sampling_peak",
)  # fmt: skip
_TAGS = ("commit", "attempts")
# Tags that describe the evaluation at the end of the run.
_FINAL_TAGS = ("fidelity_set", "fidelity_reference", "speed_machine")
_STATUS = {"FINISHED": "done", "FAILED": "failed"}  # every other status counts as "running"
_PAGE_SIZE = 500
History = dict[int, float]  # value by step


def from_mlflow(client: Any, experiment: str, columns: Mapping[str, str] | None = None) -> Table:
    """The runs of `experiment` as a checked table; `client` is an `mlflow.MlflowClient`.

    Metrics and params that our tracker logs, and those named like a column of the schema, are
    recognised. `columns` maps other names to columns: {"eval_loss": "val_loss"}. A param that grows
    with training (tokens_seen, train_flops, ...) is the value of the whole run, so it is scaled by
    step / steps. Raises TableError where no run has a score.
    """
    columns, where = dict(columns or {}), f"MLflow experiment {experiment}"
    runs = _runs(client, experiment)
    if not runs:
        raise TableError(f"{where}: there is no run in it")
    logged_names = {name for run in runs for name in (*run.data.metrics, *run.data.params)}
    check_column_mapping(columns, logged_names, where)
    names = pd.Series([_name(run) for run in runs])
    # Runs that share a name get a part of their id, so that their rows stay apart.
    ambiguous = names[names.duplicated(keep=False)].index
    rows: list[dict[str, Any]] = []
    without_score: list[str] = []
    for i, run in enumerate(runs):
        name = f"{names[i]}-{run.info.run_id[:8]}" if i in ambiguous else names[i]
        run_rows = _run_rows(client, run, columns)
        rows += [{"sweep": experiment, **row, "trial": name} for row in run_rows]
        if not run_rows:
            without_score.append(f"run {name}: logged no score")
    if not rows:
        raise TableError(
            f"{where}: no run logged a score ({', '.join(SCORES)}); there are: "
            f"{', '.join(sorted(logged_names)) or 'no metrics'}. Rename yours with "
            f"--column 'YOURS={SCORES[0]}'"
        )
    table = check(pd.DataFrame(rows), where)
    return replace(table, dropped=(*without_score, *table.dropped))


def _runs(client: Any, experiment: str) -> list[Any]:
    """Every run of the experiment, oldest first. Raises TableError where it does not exist."""
    experiment_info = client.get_experiment_by_name(experiment)
    if experiment_info is None or experiment_info.lifecycle_stage == "deleted":
        existing = ", ".join(sorted(each.name for each in client.search_experiments()))
        raise TableError(f"there is no MLflow experiment {experiment!r}; there are: {existing}")
    runs: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_info.experiment_id], max_results=_PAGE_SIZE, page_token=token
        )
        runs += page
        token = page.token
        if not token:
            return sorted(runs, key=lambda run: (run.info.start_time or 0, run.info.run_id))


def _name(run: Any) -> str:
    """The trial's name from the address that our tracker logs; otherwise the run's name or id."""
    address = run.data.tags.get("var_scaling.address", "")
    return str(address.rpartition("/")[2] or run.info.run_name or run.info.run_id)


def _column(name: str, columns: Mapping[str, str]) -> str | None:
    """The column of a metric or param: by `columns`, by our tracker's name, or by its own name."""
    if name in columns:
        return columns[name]
    group, _, base = name.rpartition("/")
    guess = _NAMES.get(name, name)
    if group == "val" and name not in _NAMES:
        # Our tracker logs whole validation lines: val/loss is a score, val/tokens_seen is not.
        guess = f"val_{base}" if f"val_{base}" in BY_NAME else base
    # A name that the caller maps to a column takes precedence over a guess.
    return guess if guess in BY_NAME and guess not in columns.values() else None


def _run_rows(client: Any, run: Any, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row for each step with a score. If all scores are at step 0, the tool did not log steps:
    then there is one row without a step.
    """
    tags = run.data.tags
    named = {name: tags[name] for name in _TAGS if name in tags}
    final_tags = {name: _value(tags[name], name) for name in _FINAL_TAGS if name in tags}
    # Params and these tags hold for the whole run; metrics have a value at each step.
    named |= {column: text for name, text in run.data.params.items()
              if (column := _column(name, columns))}  # fmt: skip
    constants = {name: _value(text, name) for name, text in named.items()}
    constants["status"] = _STATUS.get(run.info.status, "running")
    histories = _histories(client, run, columns)
    scored = sorted({step for name in SCORES for step in histories.get(name, {})})
    if scored == [0]:
        logged = {name: _value_at(name, history, 0) for name, history in histories.items()}
        return [constants | final_tags | logged]
    # A finished run without the param `steps` ended at its last score.
    ended = scored and constants["status"] == "done"
    steps = constants.get("steps") or (scored[-1] if ended else None)
    rows = []
    for step in scored:
        scaled = {
            name: _scaled_to_step(constants[name], step, steps)
            for name in constants
            if _grows_with_training(name)
        }
        logged = {name: _value_at(name, history, step) for name, history in histories.items()}
        # A None would replace the param of the same column.
        logged = {name: value for name, value in logged.items() if value is not None}
        final = final_tags if step == steps else {}
        rows.append({**constants, **scaled, **final, **logged, "step": step})
    return rows


def _histories(client: Any, run: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    """Each column's values by step; the later value where a step was logged twice.

    Metrics `name/k1`, `name/k2`, ... of the scales become one list in column `name`.
    """
    histories: dict[str, Any] = {}
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
            histories[column] = history
    for column, parts in scales.items():
        # Only steps with all scales: with a gap, a value would get the index of another scale.
        steps = set.intersection(*(set(history) for history in parts.values()))
        histories[column] = {step: [parts[k][step] for k in sorted(parts)] for step in steps}
    return histories


def _value_at(name: str, history: dict[int, Any], step: int) -> Any:
    """The value of `name` at `step`, or None.

    A score must be logged at this step; a running quantity has its last value up to this step; the
    learning rate is its peak over the run; anything else is constant, so its last value counts.
    """
    if name.startswith(_EXACT_STEP):
        return history.get(step)
    if name == "learning_rate":
        return max(history.values())
    reached = [at for at in history if at <= step]
    if name.startswith(_RUNNING):
        return history[max(reached)] if reached else None
    return history[max(history)]


def _grows_with_training(name: str) -> bool:
    """Whether a param of this column is the total of the whole run."""
    return name.endswith("_seen") or name.startswith("train_flops")


def _scaled_to_step(total: Any, step: int, steps: Any) -> Any:
    """The part of `total` that was reached by `step` of `steps`; None where one is unknown."""
    if not isinstance(total, int | float) or not isinstance(steps, int | float):
        return None
    # Integers stay exact, so that this table equals the one from disk.
    exact = isinstance(total, int) and isinstance(steps, int)
    return total * step // steps if exact else total * step / steps


def _value(text: str, name: str) -> Any:
    """The value of a param of column `name`; MLflow stores params as text."""
    if text in ("None", "unknown", ""):
        return None
    if BY_NAME[name].kind == "text":
        return text
    # int first, for the same reason as in `_scaled_to_step`.
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
