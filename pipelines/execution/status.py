"""The disk to views: the state of every stage of a sweep, as a person would see it. No torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.execution.backend import Queue
from pipelines.stages.attempt import FAILED, HEARTBEAT, heartbeat_age
from pipelines.stages.graph import Stage, Stages, of_kind
from pipelines.stages.registry import IMPORTED, KINDS, NETWORK, TRIAL
from pipelines.workspace import job_log as jobs
from pipelines.workspace.damage import damage_in, status_of
from pipelines.workspace.job_log import JobRecord
from pipelines.workspace.log_end import latest_line, latest_lines
from pipelines.workspace.provenance import attempts
from pipelines.workspace.store import in_use, natural, part_folders
from var_scaling.config import ImportedTokenizer
from var_scaling.disk import DONE, is_done, read_json


@dataclass(frozen=True)
class View:
    """One stage as a person would see it now."""

    kind: str  # tokenizer, tokens, trial, imported
    name: str
    # waiting, queued, running, stopped, cancelled, failed, diverged, done; of a finished stage of
    # which a file is damaged: to repair (by `run`), damaged (by the user)
    state: str
    done: int
    total: int
    unit: str
    loss: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    seconds_left: float | None = None
    note: str = ""
    attempt: int = 0
    job: str = ""
    node: str = ""

    @property
    def finished(self) -> bool:
        return self.state in ("done", "diverged")

    @property
    def over(self) -> bool:
        """Whether there is nothing for `run` to do here."""
        return self.finished or self.state == "damaged"


class SweepState:
    """The views of stages, look after look: what has finished is read once."""

    def __init__(self, stages: Stages):
        trials = sorted(of_kind(stages, TRIAL), key=lambda stage: natural(stage.name))
        others = [stage for stage in stages if stage.kind != TRIAL]
        self.stages = sorted([*others, *trials], key=lambda stage: KINDS.index(stage.kind))
        self._finished: dict[str, View] = {}

    def look(self, queue: Queue | None = None) -> list[View]:
        """Every stage in the order of need; `queue` is what Slurm says of its jobs."""
        return [self._view(stage, queue) for stage in self.stages]

    def _view(self, stage: Stage, queue: Queue | None) -> View:
        if (known := self._finished.get(stage.address)) is not None:
            return known
        view = _VIEWS[stage.kind.name](stage, queue)
        if view.finished and stage.kind != IMPORTED:  # those may still be evaluated
            self._finished[stage.address] = view
        return view


def overview(stages: Stages, queue: Queue | None = None) -> list[View]:
    """One look at `stages`."""
    return SweepState(stages).look(queue)


def _imported_view(stage: Stage, queue: Queue | None) -> View:
    folder = stage.directory
    line = latest_line(folder / "metrics.jsonl", "validation")
    if not is_done(folder):
        return View("imported", stage.name, "waiting", 0, 0, "", note="not imported yet")
    if (found := damage_in(folder)) is not None:
        return View("imported", stage.name, "damaged", 0, 0, "", note=str(found))
    if line is None:
        return View("imported", stage.name, "done", 0, 0, "", note="not evaluated yet")
    scored = f"{line['images_scored']:,} images of {line['data']}"
    return View("imported", stage.name, "done", 0, 0, "", line["loss"], note=scored)


def _tokenizer_view(stage: Stage, queue: Queue | None) -> View:
    if isinstance(stage.config, ImportedTokenizer):
        state, note = state_of(stage.directory, queue)
        return View("tokenizer", stage.name, state, 0, 0, "", note=note or "imported")
    view = _training_view(stage, queue)
    scores = latest_line(stage.directory / "metrics.jsonl", "validation")
    if not scores:
        return view
    quality = f"PSNR {scores['psnr_db']:.1f} dB, {scores['codes_used_all']:.0%} of codes used"
    return replace(view, note="; ".join(filter(None, (view.note, quality))))


def _training_view(stage: Stage, queue: Queue | None) -> View:
    folder, steps = stage.directory, stage.config.steps
    lines = latest_lines(folder / "metrics.jsonl", ("train", "validation"))
    state, note = state_of(folder, queue)
    if state == "running" and not lines:
        note = _reading(folder)
    train, scores = lines.get("train"), lines.get("validation")
    logged = max((line["step"] for line in lines.values()), default=0)
    done = max(logged, _heartbeat_step(folder)) if state == "running" else logged
    rate = train["images_per_second"] if train else None
    seconds = train["seconds"] if train else None
    left = seconds / logged * (steps - done) if seconds and logged and state == "running" else None
    loss = scores.get("loss") if scores else None
    if loss is None and train:
        loss = train["loss"]
    return View(
        stage.kind.name, stage.name, state, done, steps, "steps", loss, rate, seconds, left, note,
        **_whereabouts(folder, queue),
    )  # fmt: skip


def _heartbeat_step(folder: Path) -> int:
    path = folder / HEARTBEAT
    return int(read_json(path)["step"]) if path.exists() else 0


def _whereabouts(folder: Path, queue: Queue | None) -> dict[str, Any]:
    """Which attempt, in which job, on which node."""
    known = attempts(folder)
    record = jobs.latest(folder)
    last = known[-1] if known else {}
    job = (record.job if record is not None else None) or last.get("job", "")
    seen = _seen(record, queue) if record is not None and record.live else None
    node = seen.node if seen is not None and seen.node else last.get("node", "")
    return {"attempt": len(known), "job": job, "node": node}


def _seen(record: JobRecord, queue: Queue | None) -> Any:
    return queue.find(record.job, record.name, record.index) if queue is not None else None


def parts_of(whole: Path) -> list[Path]:
    """The folders of the parts in which these tokens are being encoded, if they are."""
    begun = sorted((whole / "parts").glob("*-of-*"))
    if not begun:
        return []
    return part_folders(whole, of=int(begun[0].name.rpartition("-")[2]))


# Of many parts the one that most needs a look says what state the whole is in.
_WORST = (
    "damaged", "to repair", "failed", "cancelled", "stopped", "running", "queued", "waiting",
    "done",
)  # fmt: skip


def _tokens_view(stage: Stage, queue: Queue | None) -> View:
    name, folder, parts = stage.name, stage.directory, parts_of(stage.directory)
    if not parts or is_done(folder):
        state, note = state_of(folder, queue)
        progress, where = _progress(folder), _whereabouts(folder, queue)
        done, total = progress["done"], progress["total"]
        if parts:
            done, total = _together(parts)
        note = note or _reading(folder)
        return View("tokens", name, state, done, total, "images", note=note, **where)
    states = [state_of(part, queue) for part in parts]
    if all(one[0] == "done" for one in states):
        states = [("running", "to be joined")]
    state, note = min(states, key=lambda one: _WORST.index(one[0]))
    ended = sum(is_done(part) for part in parts)
    note = "; ".join(filter(None, (f"{ended} of {len(parts)} parts", note)))
    done, total = _together(parts)
    return View("tokens", name, state, done, total, "images", note=note)


def _scoring_view(stage: Stage, queue: Queue | None) -> View:
    """Samples, reconstructions or a network that looks: how far they are, then what came out."""
    folder = stage.directory
    state, note = state_of(folder, queue)
    progress = _progress(folder)
    if is_done(folder):
        found = read_json(folder / DONE)
        name = "distance" if "distance" in found else "accuracy"
        note = note or f"{name} {found[name]:.3f}"
    unit = "steps" if stage.kind == NETWORK else "images"
    return View(
        stage.kind.name, stage.name, state, progress["done"], progress["total"], unit,
        note=note, **_whereabouts(folder, queue),
    )  # fmt: skip


_VIEWS = {
    "tokenizer": _tokenizer_view, "tokens": _tokens_view, "trial": _training_view,
    "imported": _imported_view, "network": _scoring_view, "floor": _scoring_view,
    "score": _scoring_view,
}  # fmt: skip


def _together(parts: list[Path]) -> tuple[int, int]:
    reached = [_progress(part) for part in parts]
    return sum(one["done"] for one in reached), sum(one["total"] for one in reached)


def _progress(folder: Path) -> dict[str, Any]:
    path = folder / "progress.json"
    return read_json(path) if path.exists() else {"what": "", "done": 0, "total": 0}


def _reading(folder: Path) -> str:
    """How far a stage has come in looking at its images, before its own work begins."""
    progress = _progress(folder)
    if not progress["what"].startswith("reading"):
        return ""
    return f"{progress['what']}: {progress['done']:,} of {progress['total']:,}"


_SILENT = 600.0  # seconds: longer than an evaluation should take
_SUBMITTED = 300.0  # seconds after which what was to be submitted never was
_FRESH = 120.0  # seconds after which a heartbeat is an old one


def state_of(folder: Path, queue: Queue | None = None) -> tuple[str, str]:
    """(state, note): the note is the error of a failed stage, the reason of a diverged one."""
    if is_done(folder):
        found = damage_in(folder)
        if found is None:
            return status_of(folder), read_json(folder / DONE).get("reason", "")
        if not in_use(folder):
            return "to repair" if found.by_run else "damaged", str(found)
    if in_use(folder):
        return "running", ""
    record = jobs.latest(folder)
    if record is not None and record.live:
        return _state_of_job(folder, record, queue)
    if (folder / FAILED).exists():
        return "failed", read_json(folder / FAILED)["error"]
    if record is not None and not record.again and record.ended in ("failed", "cancelled"):
        return record.ended, record.reason
    started = (folder / "provenance.json").exists() or record is not None
    return ("stopped", "run again to go on") if started else ("waiting", "")


def _state_of_job(folder: Path, record: JobRecord, queue: Queue | None) -> tuple[str, str]:
    """By Slurm's word; where it does not answer, by the last heartbeat."""
    age = heartbeat_age(folder)
    seen = _seen(record, queue)
    if seen is not None and seen.active:
        if seen.phase == "running":
            silent = age is not None and age > _SILENT
            return "running", f"no heartbeat for {since(age)}" if silent else ""
        return "queued", seen.note
    if age is not None and age < _FRESH:
        return "running", ""
    if (folder / FAILED).exists():
        return "failed", read_json(folder / FAILED)["error"]
    if queue is None:
        return "queued", "Slurm was not asked or does not answer"
    if seen is None and record.job is None and queue.at - record.time < _SUBMITTED:
        return "queued", "being submitted"
    if seen is not None and seen.end == "cancelled":
        return "cancelled", f"job {record.job} was cancelled"
    how = f"ended ({seen.state.lower()})" if seen is not None else "is gone"
    return "stopped", f"its job {how}: the driver, or the next run, goes on"


def since(seconds: float | None) -> str:
    """A span of time as people say it."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
