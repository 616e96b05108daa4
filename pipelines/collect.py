"""The disk to tables: the state of every stage, and the results rows of a sweep. No torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.provenance import commit_of
from pipelines.stages import FAILED
from pipelines.store import Home, in_use, natural
from var_scaling.accounting import trial_ledger
from var_scaling.config import Sweep, Tokenizer, Trial
from var_scaling.disk import DONE, is_done, read_json, whole
from var_scaling.results import Line, Row, Status, last_of, read_metrics


@dataclass(frozen=True)
class View:
    """One stage as a person would see it now."""

    kind: str  # tokenizer, tokens, trial
    name: str
    state: str  # waiting, running, stopped, failed, diverged, done
    done: int
    total: int
    unit: str
    loss: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    note: str = ""

    @property
    def finished(self) -> bool:
        return self.state in ("done", "diverged")


def overview(home: Home, sweep: Sweep) -> list[View]:
    """Every stage of `sweep`, in the order of need."""
    tokenizers = [_tokenizer_view(home, t) for t in sweep.tokenizers]
    tokens = [
        _tokens_view(home.tokens(t.name, data.name, split))
        for t, data in sweep.token_sets
        for split in ("train", "validation")
    ]
    trials = [
        _trial_view(home.trial(sweep.name, trial.name), trial)
        for trial in sorted(sweep.trials, key=lambda trial: natural(trial.name))
    ]
    return tokenizers + tokens + trials


def _tokenizer_view(home: Home, t: Tokenizer) -> View:
    folder = home.tokenizer(t.name)
    lines = read_metrics(folder / "metrics.jsonl")
    view = _training_view("tokenizer", t.name, folder, lines, t.steps)
    scores = last_of(lines, "validation")
    if not scores:
        return view
    quality = f"PSNR {scores['psnr_db']:.1f} dB, {scores['codes_used_all']:.0%} of codes used"
    return _with_note(view, quality)


def _trial_view(folder: Path, trial: Trial) -> View:
    return _training_view(
        "trial", trial.name, folder, read_metrics(folder / "metrics.jsonl"), trial.steps
    )


def _training_view(kind: str, name: str, folder: Path, lines: list[Line], steps: int) -> View:
    state, note = _state(folder)
    if state == "running" and not lines:
        note = _reading(folder)
    train, scores = last_of(lines, "train"), last_of(lines, "validation")
    done = max((line["step"] for line in lines), default=0)
    rate = train["images_per_second"] if train else None
    seconds = train["seconds"] if train else None
    left = seconds / done * (steps - done) if seconds and done and state == "running" else None
    loss = scores.get("loss") if scores else None
    if loss is None and train:
        loss = train["loss"]
    return View(kind, name, state, done, steps, "steps", loss, rate, seconds, left, note)


def _tokens_view(folder: Path) -> View:
    state, note = _state(folder)
    name, progress = f"{folder.parent.name}/{folder.name}", _progress(folder)
    done, total = progress["done"], progress["total"]
    return View("tokens", name, state, done, total, "images", note=note or _reading(folder))


def _progress(folder: Path) -> dict[str, Any]:
    path = folder / "progress.json"
    return read_json(path) if path.exists() else {"what": "", "done": 0, "total": 0}


def _reading(folder: Path) -> str:
    """How far a stage has come in looking at its images, before its own work begins."""
    progress = _progress(folder)
    if not progress["what"].startswith("reading"):
        return ""
    return f"{progress['what']}: {progress['done']:,} of {progress['total']:,}"


def _state(folder: Path) -> tuple[str, str]:
    """(state, note): the note is the error of a failed stage, the reason of a diverged one."""
    if is_done(folder):
        marker = read_json(folder / DONE)
        return marker["status"], marker.get("reason", "")
    if in_use(folder):
        return "running", ""
    if (folder / FAILED).exists():
        return "failed", read_json(folder / FAILED)["error"]
    started = (folder / "provenance.json").exists()
    return ("stopped", "run again to go on") if started else ("waiting", "")


def _with_note(view: View, note: str) -> View:
    return View(**{**vars(view), "note": "; ".join(filter(None, (view.note, note)))})


def rows_of(home: Home, sweep: Sweep) -> list[Row]:
    """One row for each evaluation so far of each trial of `sweep`."""
    return [row for trial in sweep.trials for row in _trial_rows(home, sweep, trial)]


def _trial_rows(home: Home, sweep: Sweep, trial: Trial) -> list[Row]:
    folder = home.trial(sweep.name, trial.name)
    lines = read_metrics(folder / "metrics.jsonl")
    tokens = home.tokens(trial.tokenizer.name, trial.data.name, "train") / "manifest.json"
    status = _row_status(_state(folder)[0])
    images = read_json(tokens).get("images") if tokens.exists() else None
    commit = commit_of(folder)
    shown = [line for line in lines if line["kind"] == "validation"]
    if status == "diverged":  # where it ended is a result too, though nothing was measured there
        last = lines[-1] if lines else {"step": 0, "seconds": 0.0, "images_per_second": 0.0}
        shown.append({key: last[key] for key in ("step", "seconds", "images_per_second")})
    train_losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    return [_row(sweep, trial, line, train_losses, images, status, commit) for line in shown]


def _row(
    sweep: Sweep,
    trial: Trial,
    line: Line,
    train_losses: dict[int, float],
    images: int | None,
    status: Status,
    commit: str | None,
) -> Row:
    """`trial` as it stood when `line` was written, trained on tokens of `images` images."""
    step = line["step"]
    ledger: dict[str, Any] = dict(trial_ledger(trial))
    grown = [key for key in ledger if key.endswith("_seen") or key.startswith("train_flops")]
    ledger.update({key: ledger[key] * step // trial.steps for key in grown})
    reached = [loss for at, loss in train_losses.items() if at <= step]
    scores: dict[str, Any] = {f"val_{name}": line.get(name) for name in _SCORES}
    for name in _PER_SCALE:
        scores[f"val_{name}"] = tuple(line[name]) if name in line else None
    return Row(
        sweep=sweep.name,
        trial=trial.name,
        family=trial.family,
        depth=trial.model.depth,
        width=trial.model.width,
        heads=trial.model.heads,
        seed=trial.seed,
        tokenizer=trial.tokenizer.name,
        data=trial.data.name,
        step=step,
        steps=trial.steps,
        batch=trial.batch,
        learning_rate=trial.optimiser.learning_rate,
        epochs=step * trial.batch / images if images else None,
        train_loss=reached[-1] if reached else None,
        seconds=line["seconds"],
        images_per_second=line["images_per_second"],
        status=status,
        commit=commit,
        **ledger,
        **scores,
    )


_SCORES = ("loss", "loss_last", "error", "error_last", "loss_stderr", "error_stderr")
_PER_SCALE = ("loss_per_scale", "error_per_scale")


def _row_status(state: str) -> Status:
    match state:
        case "done" | "diverged" | "failed":
            return state
    return "running"


def write_results(home: Home, sweep: Sweep) -> str | None:
    """Collect `sweep` into its results.parquet: the one table that analysis reads.

    Returns the fingerprint of the rows, or None where there is nothing to write yet.
    """
    rows = rows_of(home, sweep)
    if not rows:
        return None
    with whole(home.sweep(sweep.name) / "results.parquet") as beside:
        pq.write_table(pa.Table.from_pylist([row.model_dump() for row in rows]), beside)
    text = "".join(row.model_dump_json() for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def since(seconds: float | None) -> str:
    """A span of time as people say it."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
