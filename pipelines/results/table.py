"""The disk to the results table: one row for each evaluation of each model of a sweep. No torch."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluation import scores as measured
from pipelines.execution.status import state_of
from pipelines.results.images import write_images
from pipelines.stages.graph import refuse_mismatch, sweep_stages
from pipelines.workspace.damage import LOG, damage_in, status_of
from pipelines.workspace.log_end import latest_line
from pipelines.workspace.provenance import attempts, commit_of, lost
from pipelines.workspace.store import Home
from var_scaling.disk import DONE, read_json, whole
from var_scaling.experiment import ImportedModel, Sweep, Trial
from var_scaling.experiment.ledger import model_ledger, trial_ledger
from var_scaling.metrics import Line, read_metrics
from var_scaling.recipe import Optimiser
from var_scaling.results import COLUMNS, Row, Status, make_row, scores_in


def rows_of(home: Home, sweep: Sweep) -> list[Row]:
    """One row for each evaluation so far of each model of `sweep`."""
    make: dict[str, Callable[..., list[Row]]] = {"trial": _trial_rows, "imported": _imported_rows}
    return [
        row
        for stage in sweep_stages(home, sweep)
        if stage.kind.name in make
        for row in make[stage.kind.name](home, sweep, stage.config)
    ]


def _imported_rows(home: Home, sweep: Sweep, model: ImportedModel) -> list[Row]:
    """The latest evaluation of a model that was trained elsewhere: how is not known here."""
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


def _refuse_unlike(rows: list[Row]) -> None:
    """Nats a token of other tokens, or of other images, are no points of one law."""
    scored = sorted({_scored_what(row) for row in rows})
    if len(scored) > 1:
        raise ValueError(
            "these models were scored on different things, which no law compares: "
            + "; ".join(f"{', '.join(_scored_on(rows, what))} on {what}" for what in scored)
            + ". Evaluate all alike, or put those that belong together into a sweep of your own"
        )


def _refuse_other_cuts(home: Home, sweep: Sweep) -> None:
    """The same images cut in another way are other images. What is not recorded is not compared."""
    cuts: dict[str, list[str]] = {}
    for model in sweep.imported:
        line = latest_line(home.imported(model.name) / "metrics.jsonl", "validation")
        if line is not None and "cut" in line:
            said = ", ".join(f"{name} {value:g}" for name, value in line["cut"].items())
            cuts.setdefault(said, []).append(model.name)
    if len(cuts) > 1:
        listed = "; ".join(f"{', '.join(names)} with {said}" for said, names in cuts.items())
        raise ValueError(
            f"these models were scored on images that were cut differently: {listed}. Evaluate all "
            "alike, with the same --enlarge and --validation-share"
        )


def _scored_on(rows: list[Row], what: str) -> list[str]:
    return sorted({row["trial"] for row in rows if _scored_what(row) == what})


def _scored_what(row: Row) -> str:
    return f"{row['data']} in tokens of {row['tokenizer']}"


def _identity(sweep: Sweep, thing: Trial | ImportedModel) -> dict[str, Any]:
    return {
        "sweep": sweep.name,
        "trial": thing.name,
        "family": thing.family.name,
        "depth": thing.model.depth,
        "width": thing.model.width,
        "heads": thing.model.heads,
        "tokenizer": thing.tokenizer.name,
        "loss_unit": thing.family.validation(thing.spec).loss_unit,
    }


def _scores(line: Line) -> Row:
    """What an evaluation found, and what that took."""
    images, spent = line.get("images_scored"), line.get("evaluation_flops")
    return {**scores_in(line), "val_images": images, "evaluation_flops": spent}


def _trial_rows(home: Home, sweep: Sweep, trial: Trial) -> list[Row]:
    folder = home.trial(sweep.name, trial.name)
    lines = read_metrics(folder / "metrics.jsonl")
    kind = trial.family.reads(trial.model)
    tokens = home.tokens(trial.tokenizer.name, trial.data.name, "train", kind)
    status, damage = _row_status(folder)
    known_tokens = (tokens / "manifest.json").exists() and damage_in(tokens) is None
    images = read_json(tokens / "manifest.json").get("images") if known_tokens else None
    known = {"commit": commit_of(folder), "damage": damage, **_lost(folder, trial)}
    later = measured.columns(folder) if status == "done" else {}  # of the weights at the end
    shown = [line for line in lines if line["kind"] == "validation"]
    # Where it ended is a result too, though nothing was measured there.
    if status == "diverged" or (status == "damaged" and not shown):
        last = lines[-1] if lines else {"step": 0, "seconds": 0.0, "images_per_second": 0.0}
        shown.append({key: last[key] for key in ("step", "seconds", "images_per_second")})
    train_losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    return [
        _row(sweep, trial, line, train_losses, images, status,
             known | (later if line["step"] == trial.steps else {}))
        for line in shown
    ]  # fmt: skip


def _lost(folder: Path, trial: Trial) -> dict[str, Any]:
    """What was paid for and led to no number: kept apart from the trial's own compute."""
    steps, seconds = lost(folder)
    flops = trial_ledger(trial)["train_flops"] // trial.steps
    return {
        "attempts": len(attempts(folder)), "lost_seconds": seconds, "lost_flops": steps * flops,
    }  # fmt: skip


def _row(
    sweep: Sweep,
    trial: Trial,
    line: Line,
    train_losses: dict[int, float],
    images: int | None,
    status: Status,
    known: dict[str, Any],
) -> Row:
    """`trial` as it stood when `line` was written, trained on tokens of `images` images."""
    step = line["step"]
    ledger: dict[str, Any] = dict(trial_ledger(trial))
    grown = [key for key in ledger if key.endswith("_seen") or key.startswith("train_flops")]
    ledger.update({key: ledger[key] * step // trial.steps for key in grown})
    reached = [loss for at, loss in train_losses.items() if at <= step]
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
            "train_loss": reached[-1] if reached else None,
            "seconds": line["seconds"],
            "images_per_second": line["images_per_second"],
            "status": status,
            **known,
            **ledger,
            **_scores(line),
        }
    )


def schedule_class(optimiser: Optimiser) -> str:
    """The learning rate as a share of its peak over the share of the steps done, in words.

    Two runs of equal class differ in peak rate and length alone, as a frontier of losses wants.
    """
    words = []
    if optimiser.warm_up > 0:
        words.append(f"warm-up {optimiser.warm_up} from {optimiser.warm_up_from}")
    if optimiser.plateau == 1 or optimiser.final == 1:
        return ", ".join([*words, "constant"])
    if optimiser.plateau > 0:
        bend = "bend" if optimiser.decay == "two_slopes" else "plateau"
        words.append(f"{bend} {optimiser.plateau}")
    return ", ".join([*words, f"{optimiser.decay} to {optimiser.final}"])


def _row_status(folder: Path) -> tuple[Status, str | None]:
    """The status of the trial in `folder`, and what is damaged of it."""
    found = damage_in(folder)
    if found is not None and (LOG in found.files or DONE in found.files):
        return "damaged", str(found)
    match state_of(folder)[0] if found is None else status_of(folder):
        case "done" | "diverged" | "failed" as status:
            return status, None if found is None else str(found)
    return "running", None


def collect_results(home: Home, sweep: Sweep) -> str:
    """Collect the sweep into results.parquet; the fingerprint of what stands there.

    Raises Drift, ValueError where nothing has been evaluated yet.
    """
    refuse_mismatch(sweep_stages(home, sweep))  # else old losses would stand beside new sizes
    fingerprint = write_results(home, sweep)
    if fingerprint is None:
        raise ValueError(f"{sweep.name}: no trial has been evaluated yet; `var-scaling run` does")
    return fingerprint


def write_results(home: Home, sweep: Sweep) -> str | None:
    """Collect `sweep` into its results.parquet: the one table that analysis reads.

    Returns the fingerprint of the rows, or None where there is nothing to write yet.
    """
    rows = rows_of(home, sweep)
    if not rows:
        return None
    if sweep.imported:
        _refuse_unlike(rows)
        _refuse_other_cuts(home, sweep)
    with whole(home.sweep(sweep.name) / "results.parquet") as beside:
        pq.write_table(arrow_table(rows), beside)
    write_images(home.sweep(sweep.name), sweep_stages(home, sweep))
    text = json.dumps(rows)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def arrow_table(rows: list[Row]) -> pa.Table:
    """One type a column, whatever is in it. FLOPs are float64: those of a d16 overflow int64.

    A score that no row has, such as a token error where no family has tokens, is no column.
    """
    there = [c for c in COLUMNS if not c.score or any(row[c.name] is not None for row in rows)]
    types = {column.name: _ARROW[column.kind] for column in there}
    records = [
        {name: float(row[name]) if row[name] is not None and kind == pa.float64() else row[name]
         for name, kind in types.items()}
        for row in rows
    ]  # fmt: skip
    return pa.Table.from_pylist(records, schema=pa.schema(types))


_ARROW = {
    "text": pa.string(), "whole": pa.int64(), "number": pa.float64(),
    "list": pa.list_(pa.float64()),
}  # fmt: skip
