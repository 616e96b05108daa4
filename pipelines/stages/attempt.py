"""One attempt at a stage: its number, its heartbeat, and the error that ended it.

Several processes may work in one folder, for example when Slurm restarts a job while the old node
still computes. The newest attempt is the valid one; an older one notices within a second and exits.
"""

import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.stages.context import ProcessContext
from pipelines.workspace.damage import mark_done
from pipelines.workspace.provenance import record_attempt, update_attempt
from pipelines.workspace.store import file_lock
from var_scaling.disk import read_json, write_json
from var_scaling.metrics import Line, MetricsLog

if TYPE_CHECKING:
    from var_scaling.training.loop import Log, Signal

FAILED = "failed.json"
OWNER = "attempt.json"
HEARTBEAT = "heartbeat.json"
_OWNER_CHECK = 0.5  # seconds between two checks of who owns the folder
_DISK_TIMEOUT = 120.0  # seconds for which a disk may fail
_HEARTBEAT_INTERVAL = 5.0  # seconds
# Two sweeps may need the same tokenizer, or a killed run may have left a process that still trains
# it: the second process waits for the first and then finds the stage done.
WAIT = 24 * 3600.0


class Stopped(RuntimeError):
    """The stage stopped on request, with all progress on disk."""


class Superseded(RuntimeError):
    """A newer attempt works in this folder, so this one must not write any more."""


class Attempt:
    """This process's attempt in `folder`. It may write there as long as it is the newest one."""

    def __init__(
        self, folder: Path, process: ProcessContext, requested_signal: "Callable[[], Signal]"
    ):
        self.folder, self.process, self.requested_signal = folder, process, requested_signal
        # The number of an attempt may not be unique: cluster jobs have no lock, and two of them
        # that begin at the same moment count the same earlier attempts.
        self.nonce = f"{socket.gethostname()}-{time.time_ns()}"
        self.begun = False
        self.checked = self.last_beat = 0.0
        self.disk_failing_since: float | None = None
        self.began: tuple[int, float] | None = None  # steps done, and time, at the first heartbeat
        self.before: dict[str, Any] | None = None  # the last heartbeat of the previous attempt

    def begin(self, facts: dict[str, Any]) -> None:
        """Become the newest attempt. Processes of rank > 0 take part in that of rank 0."""
        if self.process.first:
            # Read before this attempt writes its own: the last step that the previous one reached.
            heartbeat = self.folder / HEARTBEAT
            self.before = read_json(heartbeat) if heartbeat.exists() else None
            number = record_attempt(
                self.folder, self.process.threads, {**self.process.facts, **facts}
            )
            owner = {"number": number, "nonce": self.nonce, **self.process.facts}
            write_json(self.folder / OWNER, owner)
            self.begun = True

    def check(self) -> None:
        """Raise Superseded if a newer attempt has begun."""
        if not self.begun:
            return
        owner = read_json(self.folder / OWNER)
        if owner["nonce"] != self.nonce:
            raise Superseded(f"{self.folder}: superseded by attempt {owner['number']}")

    def poll_signal(self, done: int) -> "Signal":
        """Between two steps: check ownership, write a heartbeat, return the requested signal."""
        now = time.monotonic()
        # A step may take milliseconds, and the folder may be on a network disk. The other ranks
        # need no check of their own: rank 0 ends the job for all.
        if self.process.first and now - self.checked > _OWNER_CHECK:
            self.checked = now
            try:
                self.check()
                if now - self.last_beat > _HEARTBEAT_INTERVAL:
                    self.last_beat = now
                    self._beat(done, now)
                self.disk_failing_since = None
            except OSError as error:  # a network disk may fail for a moment
                self.disk_failing_since = self.disk_failing_since or now
                if now - self.disk_failing_since > _DISK_TIMEOUT:
                    raise
                print(f"{self.folder}: {error}; continuing without a heartbeat", flush=True)
        return self.requested_signal()

    def stop(self, done: int) -> bool:
        """Like `poll_signal`, for a stage without checkpoints: whether to stop."""
        from var_scaling.training.loop import Signal

        return self.poll_signal(done) == Signal.STOP

    def note_compilation(self, error: str | None) -> None:
        """Record that the training step was compiled, or the `error` because of which it was not.

        Each process prints its own error; the record is of rank 0.
        """
        if error is not None:
            print(
                f"{self.folder}: torch.compile failed, so the training continues with eager code, "
                f"which is slower: {error}",
                flush=True,
            )
        if self.process.first:
            self.check()
            facts = {"compiled": error is None, "compile_error": error}
            update_attempt(self.folder, -1, facts if error else {"compiled": True})

    def finish(self, marker: dict[str, Any], files: Iterable[str] = ()) -> None:
        """Mark the folder as done. `files`: those whose checksums are recorded."""
        self.check()
        mark_done(self.folder, marker, files)

    def log(self) -> "Log":
        """The function that writes metrics to metrics.jsonl and, in a job, to its output."""
        if not self.process.first:
            return lambda kind, step, values: None
        keep = MetricsLog(self.folder / "metrics.jsonl")

        def note(kind: str, step: int, values: Line) -> None:
            self.check()
            keep(kind, step, values)
            if self.process.logs_to_stdout:
                shown = {k: values[k] for k in ("loss", "images_per_second") if k in values}
                line = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
                print(f"{time.strftime('%F %T')}  {kind:10} step {step:,}  {line}", flush=True)

        return note

    def _beat(self, done: int, now: float) -> None:
        if self.began is None:
            self.began = (done, now)
            if self.before is not None:
                # The first heartbeat comes after one step, so the training resumed at `done` - 1.
                self._count_lost(self.before, done - 1)
        steps, seconds = done - self.began[0], now - self.began[1]
        each = seconds / steps if steps else 0.0
        heartbeat = {"step": done, "seconds_per_step": each, "time": time.time()}
        write_json(self.folder / HEARTBEAT, heartbeat)

    def _count_lost(self, before: dict[str, Any], resumed: int) -> None:
        """Record the steps of the previous attempt after its last checkpoint: they are repeated."""
        lost = max(0, before["step"] - resumed)
        seconds = lost * before["seconds_per_step"]
        facts = {"reached": before["step"], "lost_steps": lost, "lost_seconds": seconds}
        # -1 is this attempt, -2 the previous one, which did the lost steps.
        update_attempt(self.folder, -2, facts)


@contextmanager
def at_work(
    folder: Path, process: ProcessContext, requested_signal: "Callable[[], Signal]"
) -> Iterator[Attempt]:
    """Lock `folder`, use `process.threads` threads, and write an error of the block to the folder.

    Raises Stopped if the block was interrupted, Superseded if a newer attempt took over.
    """
    from var_scaling.process import prepare_process
    from var_scaling.training.loop import Interrupted

    prepare_process(process.threads)
    with file_lock(folder, wait=WAIT) if process.alone else nullcontext():
        _forget_failure(folder, process)
        attempt = Attempt(folder, process, requested_signal)
        try:
            yield attempt
        except Interrupted as error:
            raise Stopped(str(error)) from error
        except (Stopped, Superseded):
            raise
        except Exception as error:
            # If a process was killed, the others fail with a closed connection. That is no error of
            # the stage: without an error on disk, the driver submits the job again.
            if process.world_size > 1 and _reports_other_process(error):
                print(f"{error}\na process of this job has ended: see its error")
                raise
            attempt.check()  # errors of a superseded attempt are not recorded
            failure = {
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
                "restart_id": process.restart_id,
                "rank": process.rank,
                "host": socket.gethostname(),
            }
            _write_first(folder / FAILED, failure)
            raise


def _reports_other_process(error: Exception) -> bool:
    """Whether `error` only reports that another process of the job has ended."""
    from torch.distributed import DistError

    text = str(error)
    gloo = "gloo" in text or "Connection closed by peer" in text or "Connection reset" in text
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and gloo)


def _write_first(path: Path, value: dict[str, Any]) -> None:
    """Write `value`, unless a process of the same restart has done so: the first error is the cause
    of the others.
    """
    with suppress(FileNotFoundError):
        if read_json(path)["restart_id"] != value["restart_id"]:
            path.unlink()
    # `link` fails if the file exists, so of several processes exactly one writes its error. The
    # host is in the name because two nodes may have the same process id.
    temporary_path = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    temporary_path.write_text(json.dumps(value, indent=1) + "\n")
    try:
        os.link(temporary_path, path)
    except OSError:
        if not path.exists():  # the disk has no hard links; else another process was first
            os.replace(temporary_path, path)
    temporary_path.unlink(missing_ok=True)


def _forget_failure(folder: Path, process: ProcessContext) -> None:
    """Remove the error of an earlier restart; keep that of another process of this restart."""
    path = folder / FAILED
    # Another process of this restart may have failed before rank 0 reached this line.
    if (
        process.first
        and path.exists()
        and not (process.restart_id and read_json(path)["restart_id"] == process.restart_id)
    ):
        path.unlink(missing_ok=True)


def heartbeat_age(folder: Path) -> float | None:
    """Seconds since the last heartbeat in `folder`."""
    try:
        return max(0.0, time.time() - float(read_json(folder / HEARTBEAT)["time"]))
    except FileNotFoundError:
        return None
