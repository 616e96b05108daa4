"""The disk to views: the state of every stage of a sweep, as a person would see it. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.stages import FAILED
from pipelines.store import Home, in_use, natural
from var_scaling.config import ImportedModel, ImportedTokenizer, SomeTokenizer, Sweep, Trial
from var_scaling.disk import DONE, is_done, read_json
from var_scaling.results import Line, last_of, read_metrics


@dataclass(frozen=True)
class View:
    """One stage as a person would see it now."""

    kind: str  # tokenizer, tokens, trial, imported
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
    return tokenizers + tokens + trials + [_imported_view(home, m) for m in sweep.imported]


def _imported_view(home: Home, model: ImportedModel) -> View:
    folder = home.imported(model.name)
    line = last_of(read_metrics(folder / "metrics.jsonl"), "validation")
    if not is_done(folder):
        return View("imported", model.name, "waiting", 0, 0, "", note="not imported yet")
    if line is None:
        return View("imported", model.name, "done", 0, 0, "", note="not evaluated yet")
    scored = f"{line['images_scored']:,} images of {line['data']}"
    return View("imported", model.name, "done", 0, 0, "", line["loss"], note=scored)


def _tokenizer_view(home: Home, t: SomeTokenizer) -> View:
    folder = home.tokenizer(t.name)
    if isinstance(t, ImportedTokenizer):
        state, note = state_of(folder)
        return View("tokenizer", t.name, state, 0, 0, "", note=note or "imported")
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
    state, note = state_of(folder)
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
    state, note = state_of(folder)
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


def state_of(folder: Path) -> tuple[str, str]:
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


def since(seconds: float | None) -> str:
    """A span of time as people say it."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
