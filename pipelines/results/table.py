"""results.parquet: the table with one row per evaluation of each model of a sweep. No torch."""

import hashlib
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.evaluation import scores as measured
from pipelines.execution.status import state_of
from pipelines.stages.graph import refuse_mismatch, sweep_stages
from pipelines.workspace.damage import LOG, damage_in, status_of
from pipelines.workspace.log_end import latest_line
from pipelines.workspace.provenance import attempts, commit_of, lost_work
from pipelines.workspace.store import Home
from var_scaling.disk import DONE, atomic_write, is_done, read_json
from var_scaling.experiment import ImportedModel, Sweep, Trial
from var_scaling.experiment.ledger import model_ledger, trial_ledger
from var_scaling.metrics import Line, read_metrics
from var_scaling.recipe import Optimiser
from var_scaling.results import COLUMNS, Row, Status, make_row, scores_in

if TYPE_CHECKING:
    import pyarrow as pa


def rows_of(home: Home, sweep: Sweep) -> list[Row]:
    """One row for each evaluation of each model of `sweep` so far."""
    # The trials of a sweep share their tokens, which are checked once.
    trial_rows = partial(_trial_rows, training_images=cache(_training_images))
    make: dict[str, Callable[..., list[Row]]] = {"trial": trial_rows, "imported": _imported_rows}
    return [
        row
        for stage in sweep_stages(home, sweep)
        if stage.kind.name in make
        for row in make[stage.kind.name](home, sweep, stage.config)
    ]


def _imported_rows(home: Home, sweep: Sweep, model: ImportedModel) -> list[Row]:
    """The latest evaluation of an imported model. Its training is unknown."""
    folder = home.imported(model.name)
    line = latest_line(folder / "metrics.jsonl", "validation")
    if line is None:
        return []
    return [
        make_row(
            {
                **_identity(sweep, model),
                **model_ledger(model),
                **_scores(line),
                **measured.columns(folder),
                "data": line["data"],
                "status": "imported",
                "commit": line["commit"],
            }
        )
    ]


def _check_same_data(rows: list[Row]) -> None:
    """Raise ValueError if losses are of different tokens or images: one law cannot compare them."""
    scored = sorted({_evaluated_on(row) for row in rows})
    if len(scored) > 1:
        raise ValueError(
            "these models were evaluated on different tokens or images, so their losses cannot be "
            "compared: "
            + "; ".join(f"{', '.join(_models_on(rows, data))} on {data}" for data in scored)
            + ". Evaluate all on the same data, or write a sweep with the comparable models only"
        )


def _check_same_crop(home: Home, sweep: Sweep) -> None:
    """Raise ValueError if imported models were evaluated on different crops of the images.

    Evaluations that do not record the crop are not checked.
    """
    crops: dict[str, list[str]] = {}
    for model in sweep.imported:
        line = latest_line(home.imported(model.name) / "metrics.jsonl", "validation")
        if line is not None and "cut" in line:
            crop = ", ".join(f"{name} {value:g}" for name, value in line["cut"].items())
            crops.setdefault(crop, []).append(model.name)
    if len(crops) > 1:
        listed = "; ".join(f"{', '.join(names)} with {crop}" for crop, names in crops.items())
        raise ValueError(
            f"these models were evaluated on different crops or splits: {listed}. Evaluate all "
            "with the same --enlarge and --validation-share"
        )


def _models_on(rows: list[Row], data: str) -> list[str]:
    return sorted({row["trial"] for row in rows if _evaluated_on(row) == data})


def _evaluated_on(row: Row) -> str:
    return f"{row['data']} in tokens of {row['tokenizer']}"


def _identity(sweep: Sweep, model: Trial | ImportedModel) -> dict[str, Any]:
    return {
        "sweep": sweep.name,
        "trial": model.name,
        "family": model.family.name,
        "depth": model.model.depth,
        "width": model.model.width,
        "heads": model.model.heads,
        "tokenizer": model.tokenizer.name,
        "codebook_size": model.tokenizer.codebook_size,
        "loss_unit": model.family.validation(model.spec).loss_unit,
    }


def _scores(line: Line) -> Row:
    """The scores of an evaluation, its number of images and its FLOPs."""
    images, flops = line.get("images_scored"), line.get("evaluation_flops")
    return {**scores_in(line), "val_images": images, "evaluation_flops": flops}


def _training_images(tokens: Path) -> int | None:
    """The number of images in the token cache `tokens`. None if it is damaged: its columns stay
    empty, and the losses are still valid.
    """
    if not (tokens / "manifest.json").exists() or damage_in(tokens) is not None:
        return None
    images: int | None = read_json(tokens / "manifest.json").get("images")
    return images


def _trial_rows(
    home: Home, sweep: Sweep, trial: Trial, training_images: Callable[[Path], int | None]
) -> list[Row]:
    folder = home.trial(sweep.name, trial.name)
    lines = read_metrics(folder / "metrics.jsonl")
    kind = trial.family.cache_kind(trial.model)
    images = training_images(home.tokens(trial.tokenizer.name, trial.data.name, "train", kind))
    status, damage = _row_status(folder)
    ledger, recorded = trial_ledger(trial), attempts(folder)
    facts = {
        "commit": commit_of(recorded), "damage": damage, **_lost_columns(recorded, trial, ledger)
    }  # fmt: skip
    # Samples and speed are measured with the final weights only.
    later = measured.columns(folder) if status == "done" else {}
    evaluations = [line for line in lines if line["kind"] == "validation"]
    # The last step of a failed trial is a row too, although it has no evaluation.
    if status == "diverged" or (status == "damaged" and not evaluations):
        # A trial may diverge before its first line is written.
        last = lines[-1] if lines else {"step": 0, "seconds": 0.0, "images_per_second": 0.0}
        evaluations.append({key: last[key] for key in ("step", "seconds", "images_per_second")})
    train_losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    return [
        _row(sweep, trial, ledger, line, train_losses, images, status,
             facts | (later if line["step"] == trial.steps else {}))
        for line in evaluations
    ]  # fmt: skip


def _lost_columns(
    recorded: list[dict[str, Any]], trial: Trial, ledger: dict[str, int]
) -> dict[str, Any]:
    """Compute that was lost with failed attempts. It is not part of the trial's train_flops."""
    steps, seconds = lost_work(recorded)
    flops = ledger["train_flops"] // trial.steps  # of one step
    return {
        "attempts": len(recorded), "lost_seconds": seconds, "lost_flops": steps * flops,
    }  # fmt: skip


def _row(
    sweep: Sweep,
    trial: Trial,
    ledger: dict[str, int],
    line: Line,
    train_losses: dict[int, float],
    images: int | None,
    status: Status,
    facts: dict[str, Any],
) -> Row:
    """The row of `trial` at the step of `line`. `images`: number of images in its token cache."""
    step = line["step"]
    # The ledger is of the whole training. What grows with the steps is scaled to this step, in
    # exact integers; sizes stay.
    growing = [key for key in ledger if key.endswith("_seen") or key.startswith("train_flops")]
    scaled = {key: ledger[key] * step // trial.steps for key in growing}
    losses_so_far = [loss for at, loss in train_losses.items() if at <= step]
    return make_row(
        {
            **_identity(sweep, trial),
            "seed": trial.seed,
            "start": f"{trial.start.trial.name}@{trial.start.step}" if trial.start else None,
            "data": trial.data.name,
            "step": step,
            "steps": trial.steps,
            "batch_size": trial.batch_size,
            "precision": trial.precision,
            "learning_rate": trial.optimiser.learning_rate,
            "schedule": schedule_class(trial.optimiser),
            "unique_tokens": images * trial.family.sequence_length(trial.spec) if images else None,
            "epochs": step * trial.batch_size / images if images else None,
            "train_loss": losses_so_far[-1] if losses_so_far else None,
            "seconds": line["seconds"],
            "images_per_second": line["images_per_second"],
            "status": status,
            **facts,
            **ledger,
            **scaled,
            **_scores(line),
        }
    )


def schedule_class(optimiser: Optimiser) -> str:
    """A description of the learning rate schedule, relative to its peak and length.

    Runs with the same description differ in peak rate and length only, so a frontier of losses may
    compare them.
    """
    words = []
    if optimiser.warm_up > 0:
        words.append(f"warm-up {optimiser.warm_up} from {optimiser.warm_up_from}")
    if optimiser.plateau == 1 or optimiser.final == 1:  # never leaves its peak
        return ", ".join([*words, "constant"])
    if optimiser.plateau > 0:
        # For two_slopes, `plateau` is where the slope changes.
        bend = "bend" if optimiser.decay == "two_slopes" else "plateau"
        words.append(f"{bend} {optimiser.plateau}")
    return ", ".join([*words, f"{optimiser.decay} to {optimiser.final}"])


def _row_status(folder: Path) -> tuple[Status, str | None]:
    """The status of the trial in `folder`, and a description of its damage."""
    damage = damage_in(folder)
    # Without a valid log or marker the losses cannot be used. Other damage, such as lost weights,
    # leaves them valid, and the marker still has the status.
    if damage is not None and (LOG in damage.files or DONE in damage.files):
        return "damaged", str(damage)
    # The damage has just been looked for: `state_of` would do it again.
    match status_of(folder) if is_done(folder) else state_of(folder)[0]:
        case "done" | "diverged" | "failed" as status:
            return status, None if damage is None else str(damage)
    return "running", None


def collect_results(home: Home, sweep: Sweep) -> str:
    """Write results.parquet of the sweep, and return the fingerprint of its rows.

    Raises ConfigMismatchError; ValueError if no trial has been evaluated.
    """
    # Without this check, old losses would appear with the sizes of a changed sweep.
    refuse_mismatch(sweep_stages(home, sweep))
    fingerprint = write_results(home, sweep)
    if fingerprint is None:
        raise ValueError(
            f"{sweep.name}: no trial has been evaluated yet; `var-scaling run` trains and evaluates"
        )
    return fingerprint


def write_results(home: Home, sweep: Sweep) -> str | None:
    """Write the rows of `sweep` to results.parquet, the table that the analysis reads.

    Returns the fingerprint of the rows, or None if there are none.
    """
    rows = rows_of(home, sweep)
    if not rows:
        return None
    if sweep.imported:
        _check_same_data(rows)
        _check_same_crop(home, sweep)
    import pyarrow.parquet as pq

    from pipelines.results.images import write_images

    with atomic_write(home.sweep(sweep.name) / "results.parquet") as temporary_path:
        pq.write_table(arrow_table(rows), temporary_path)
    write_images(home.sweep(sweep.name), sweep_stages(home, sweep))
    text = json.dumps(rows)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def arrow_table(rows: list[Row]) -> "pa.Table":
    """The rows as a table with fixed column types. FLOPs are float64, because they overflow int64.

    Scores that no row has are left out, such as the token error of families without tokens.
    """
    import pyarrow as pa

    arrow = {
        "text": pa.string(), "whole": pa.int64(), "number": pa.float64(),
        "list": pa.list_(pa.float64()),
    }  # fmt: skip
    arrays = {}
    for column in COLUMNS:
        values = [row[column.name] for row in rows]
        if column.score and all(value is None for value in values):
            continue
        if column.kind == "number":
            values = [None if value is None else float(value) for value in values]
        arrays[column.name] = pa.array(values, arrow[column.kind])
    return pa.table(arrays)
