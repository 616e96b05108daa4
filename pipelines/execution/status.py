"""Read the state of every stage of a sweep from disk, for display. Does not import torch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.execution.backend import Queue
from pipelines.stages.attempt import FAILED, HEARTBEAT, heartbeat_age
from pipelines.stages.graph import Stage, Stages, of_kind
from pipelines.stages.registry import IMPORTED, KINDS, NETWORK, TRIAL
from pipelines.workspace import job_log as jobs
from pipelines.workspace.damage import damage_in, status_in
from pipelines.workspace.job_log import JobRecord
from pipelines.workspace.log_end import LatestLines, latest_line
from pipelines.workspace.provenance import attempts
from pipelines.workspace.store import in_use, natural_key, part_folders
from var_scaling.config import ImportedTokenizer
from var_scaling.disk import DONE, is_done, read_json
from var_scaling.metrics import Line


@dataclass(frozen=True)
class View:
    """The state of one stage, for display."""

    kind: str  # tokenizer, tokens, trial, imported, network, floor, score
    name: str
    # waiting, queued, running, stopped, cancelled, failed, diverged, done. If a file of a finished
    # stage is damaged: "to repair" (`run` can do it) or "damaged" (the user must restore the file).
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
        """Whether there is nothing left to do for `run`."""
        return self.finished or self.state == "damaged"


class SweepState:
    """The views of all stages, for repeated polling: a finished stage is read only once, and of a
    log only what is new.
    """

    def __init__(self, stages: Stages):
        trials = sorted(of_kind(stages, TRIAL), key=lambda stage: natural_key(stage.name))
        others = [stage for stage in stages if stage.kind != TRIAL]
        self.stages = sorted([*others, *trials], key=lambda stage: KINDS.index(stage.kind))
        self._finished: dict[str, View] = {}
        self._absent: dict[str, View] = {}  # of stages without a directory
        self._latest = LatestLines(("train", "validation"))

    def poll(self, queue: Queue | None = None) -> list[View]:
        """The view of every stage, each after the stages it needs. `queue`: Slurm's jobs."""
        return [self._view(stage, queue) for stage in self.stages]

    def _view(self, stage: Stage, queue: Queue | None) -> View:
        if (finished := self._finished.get(stage.address)) is not None:
            return finished
        if not stage.directory.exists():
            if stage.address not in self._absent:
                self._absent[stage.address] = self._read(stage, queue)
            return self._absent[stage.address]
        view = self._read(stage, queue)
        if view.finished and stage.kind != IMPORTED:  # an imported model may be evaluated later
            self._finished[stage.address] = view
        return view

    def _read(self, stage: Stage, queue: Queue | None) -> View:
        return _VIEWS[stage.kind.name](stage, queue, self._latest)


def overview(stages: Stages, queue: Queue | None = None) -> list[View]:
    """The views of `stages`, read once."""
    return SweepState(stages).poll(queue)


def _imported_view(stage: Stage, queue: Queue | None, latest: LatestLines) -> View:
    folder = stage.directory
    line = latest_line(folder / "metrics.jsonl", "validation")
    if not is_done(folder):
        return View("imported", stage.name, "waiting", 0, 0, "", note="not imported yet")
    if (damage := damage_in(folder)) is not None:
        return View("imported", stage.name, "damaged", 0, 0, "", note=str(damage))
    if line is None:
        return View("imported", stage.name, "done", 0, 0, "", note="not evaluated yet")
    note = f"{line['images_scored']:,} images of {line['data']}"
    return View("imported", stage.name, "done", 0, 0, "", line["loss"], note=note)


def _tokenizer_view(stage: Stage, queue: Queue | None, latest: LatestLines) -> View:
    if isinstance(stage.config, ImportedTokenizer):
        state, note = state_of(stage.directory, queue)
        return View("tokenizer", stage.name, state, 0, 0, "", note=note or "imported")
    lines = latest(stage.directory / "metrics.jsonl")
    view, scores = _training_view(stage, queue, lines), lines.get("validation")
    if not scores:
        return view
    quality = f"PSNR {scores['psnr_db']:.1f} dB, {scores['codes_used_all']:.0%} of codes used"
    return replace(view, note="; ".join(filter(None, (view.note, quality))))


def _trial_view(stage: Stage, queue: Queue | None, latest: LatestLines) -> View:
    return _training_view(stage, queue, latest(stage.directory / "metrics.jsonl"))


def _training_view(stage: Stage, queue: Queue | None, lines: dict[str, Line]) -> View:
    folder, steps = stage.directory, stage.config.steps
    state, note = state_of(folder, queue)
    if state == "running" and not lines:
        note = _reading_progress(folder)
    train, scores = lines.get("train"), lines.get("validation")
    logged = max((line["step"] for line in lines.values()), default=0)
    # Metrics are logged every few steps only; the heartbeat is newer.
    done = max(logged, _heartbeat_step(folder)) if state == "running" else logged
    rate = train["images_per_second"] if train else None
    seconds = train["seconds"] if train else None
    # The rate is the mean over all attempts, at the last logged step, to which `seconds` belongs.
    left = seconds / logged * (steps - done) if seconds and logged and state == "running" else None
    loss = scores.get("loss") if scores else None
    if loss is None and train:
        loss = train["loss"]
    return View(
        stage.kind.name, stage.name, state, done, steps, "steps", loss, rate, seconds, left, note,
        **_attempt_and_job(folder, queue),
    )  # fmt: skip


def _heartbeat_step(folder: Path) -> int:
    path = folder / HEARTBEAT
    return int(read_json(path)["step"]) if path.exists() else 0


def _attempt_and_job(folder: Path, queue: Queue | None) -> dict[str, Any]:
    """The fields attempt, job and node of a View."""
    begun = attempts(folder)
    record = jobs.latest(folder)
    last = begun[-1] if begun else {}
    job = (record.job if record is not None else None) or last.get("job", "")
    status = _job_status(record, queue) if record is not None and record.live else None
    node = status.node if status is not None and status.node else last.get("node", "")
    return {"attempt": len(begun), "job": job, "node": node}


def _job_status(record: JobRecord, queue: Queue | None) -> Any:
    return queue.find(record.job, record.name, record.index) if queue is not None else None


def parts_of(tokens: Path) -> list[Path]:
    """The folders of all parts of the token cache `tokens`; empty if it is not split into parts."""
    begun = sorted((tokens / "parts").glob("*-of-*"))
    if not begun:
        return []
    return part_folders(tokens, count=int(begun[0].name.rpartition("-")[2]))


# Worst first: the state of tokens encoded in parts is the worst state among the parts.
_WORST = (
    "damaged", "to repair", "failed", "cancelled", "stopped", "running", "queued", "waiting",
    "done",
)  # fmt: skip


def _tokens_view(stage: Stage, queue: Queue | None, latest: LatestLines) -> View:
    name, folder, parts = stage.name, stage.directory, parts_of(stage.directory)
    if not parts or is_done(folder):
        state, note = state_of(folder, queue)
        progress, attempt = _progress(folder), _attempt_and_job(folder, queue)
        done, total = progress["done"], progress["total"]
        if parts:
            done, total = _total_progress(parts)
        note = note or _reading_progress(folder)
        return View("tokens", name, state, done, total, "images", note=note, **attempt)
    states = [state_of(part, queue) for part in parts]
    if all(part_state == "done" for part_state, _ in states):
        # The job that finishes the last part joins them; if it was killed, one more job does.
        states = [("running", "parts must be joined")]
    state, note = min(states, key=lambda state_and_note: _WORST.index(state_and_note[0]))
    ended = sum(is_done(part) for part in parts)
    note = "; ".join(filter(None, (f"{ended} of {len(parts)} parts", note)))
    done, total = _total_progress(parts)
    return View("tokens", name, state, done, total, "images", note=note)


def _scoring_view(stage: Stage, queue: Queue | None, latest: LatestLines) -> View:
    """View of a scoring stage: sample scores, reconstruction scores or the feature network. Shows
    the progress while it runs, and the distance or accuracy when it is done.
    """
    folder = stage.directory
    state, note = state_of(folder, queue)
    progress = _progress(folder)
    if is_done(folder):
        marker = read_json(folder / DONE)
        name = "distance" if "distance" in marker else "accuracy"
        note = note or f"{name} {marker[name]:.4g}"
    unit = "steps" if stage.kind == NETWORK else "images"
    return View(
        stage.kind.name, stage.name, state, progress["done"], progress["total"], unit,
        note=note, **_attempt_and_job(folder, queue),
    )  # fmt: skip


_VIEWS = {
    "tokenizer": _tokenizer_view, "tokens": _tokens_view, "trial": _trial_view,
    "imported": _imported_view, "network": _scoring_view, "floor": _scoring_view,
    "score": _scoring_view,
}  # fmt: skip


def _total_progress(parts: list[Path]) -> tuple[int, int]:
    progress = [_progress(part) for part in parts]
    return sum(part["done"] for part in progress), sum(part["total"] for part in progress)


def _progress(folder: Path) -> dict[str, Any]:
    path = folder / "progress.json"
    return read_json(path) if path.exists() else {"what": "", "done": 0, "total": 0}


def _reading_progress(folder: Path) -> str:
    """The progress of reading the image files, which happens before a stage's own work; "" if the
    stage is not at that point.
    """
    progress = _progress(folder)
    if not progress["what"].startswith("reading"):
        return ""
    return f"{progress['what']}: {progress['done']:,} of {progress['total']:,}"


_SILENT_AFTER = 600.0  # seconds without a heartbeat: longer than an evaluation should take
_SUBMISSION_TIMEOUT = 300.0  # seconds after which an unconfirmed submission counts as failed
_FRESH_HEARTBEAT = 120.0  # seconds; with a younger heartbeat, a stage counts as running


def state_of(folder: Path, queue: Queue | None = None) -> tuple[str, str]:
    """(state, note) as in View; the note is, for example, the error of a failed stage."""
    if is_done(folder):
        damage = damage_in(folder)
        if damage is None:
            marker = read_json(folder / DONE)
            return status_in(folder, marker), marker.get("reason", "")
        # A locked folder is being repaired now, and counts as running.
        if not in_use(folder):
            return "to repair" if damage.repaired_by_run else "damaged", str(damage)
    if in_use(folder):
        return "running", ""
    record = jobs.latest(folder)
    # Before the error file: a live job may have been submitted after a failure.
    if record is not None and record.live:
        return _state_of_job(folder, record, queue)
    if (folder / FAILED).exists():
        return "failed", read_json(folder / FAILED)["error"]
    if record is not None and not record.again and record.ended in ("failed", "cancelled"):
        return record.ended, record.reason
    # Every attempt writes provenance.json when it begins.
    started = (folder / "provenance.json").exists() or record is not None
    return ("stopped", "run again to resume") if started else ("waiting", "")


def _state_of_job(folder: Path, record: JobRecord, queue: Queue | None) -> tuple[str, str]:
    """(state, note) of a stage whose job may still run: as Slurm reports it; if Slurm does not
    answer, by the age of the last heartbeat.
    """
    age = heartbeat_age(folder)
    status = _job_status(record, queue)
    if status is not None and status.active:
        if status.phase == "running":
            silent = age is not None and age > _SILENT_AFTER
            return "running", f"no heartbeat for {format_duration(age)}" if silent else ""
        return "queued", status.note
    # Without an answer of Slurm, or with a job that it no longer lists, the disk decides.
    if age is not None and age < _FRESH_HEARTBEAT:
        return "running", ""
    if (folder / FAILED).exists():
        return "failed", read_json(folder / FAILED)["error"]
    if queue is None:
        return "queued", "Slurm was not queried or does not answer"
    # jobs.jsonl is written before sbatch is called: the call may still be in progress.
    pending = record.job is None and queue.queried_at - record.time < _SUBMISSION_TIMEOUT
    if status is None and pending:
        return "queued", "being submitted"
    if status is not None and status.end == "cancelled":
        return "cancelled", f"job {record.job} was cancelled"
    end = f"ended ({status.state.lower()})" if status is not None else "no longer exists"
    return "stopped", f"its job {end}: the driver, or the next run, resumes it"


def format_duration(seconds: float | None) -> str:
    """A duration for display, with a suitable unit; "" for None."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    days = seconds / 86400
    return f"{days:.1f} d" if days < 1e6 else f"{days:.3g} d"
