"""One life of a stage in its folder: a number that only grows, a pulse, an error that is the cause.

Where several processes may be at one folder (a node that Slurm took for dead still computes), the
newest attempt is the right one; an older finds out within a second, and leaves.
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

from pipelines.stages.context import Seat
from pipelines.workspace.damage import mark_done
from pipelines.workspace.provenance import note_attempt, revise_attempt
from pipelines.workspace.store import held
from var_scaling.disk import read_json, write_json
from var_scaling.metrics import Line, MetricsLog

if TYPE_CHECKING:
    from var_scaling.training.loop import Log, Wish

FAILED = "failed.json"
OWNER = "attempt.json"
PULSE = "pulse.json"
_LOOK = 0.5  # seconds between two looks at who owns the folder
_PATIENCE = 120.0  # seconds that a disk may be away
_BEAT = 5.0  # seconds between two signs of life
# Two sweeps may want the same tokenizer, or the remnant of a killed run may still be at it: the
# second waits for the first, and then finds the work done.
WAIT = 24 * 3600.0


class Stopped(RuntimeError):
    """The stage was asked to stop, and did, with all progress on disk."""


class Superseded(RuntimeError):
    """A newer attempt works in this folder: what this one does no longer counts."""


class Attempt:
    """This process at work in `folder`: it may write there for as long as it is the newest."""

    def __init__(self, folder: Path, seat: Seat, wish: "Callable[[], Wish]"):
        self.folder, self.seat, self.wish = folder, seat, wish
        self.nonce = f"{socket.gethostname()}-{time.time_ns()}"
        self.begun = False
        self.looked = self.beaten = 0.0
        self.blind: float | None = None  # since when the disk does not answer
        self.began: tuple[int, float] | None = None  # steps done and time at the first pulse
        self.before: dict[str, Any] | None = None  # the last pulse of the attempt before

    def begin(self, facts: dict[str, Any]) -> None:
        """Become the newest attempt; a process that is not the first only takes part in one."""
        if self.seat.first:
            pulse = self.folder / PULSE
            self.before = read_json(pulse) if pulse.exists() else None
            number = note_attempt(self.folder, self.seat.threads, {**self.seat.facts, **facts})
            owner = {"number": number, "nonce": self.nonce, **self.seat.facts}
            write_json(self.folder / OWNER, owner)
            self.begun = True

    def check(self) -> None:
        """Raise Superseded if a newer attempt has begun."""
        if not self.begun:
            return
        owner = read_json(self.folder / OWNER)
        if owner["nonce"] != self.nonce:
            raise Superseded(f"{self.folder}: attempt {owner['number']} is at it now")

    def heed(self, done: int) -> "Wish":
        """Between two steps: is it still the one? Leave a sign of life; hear what is wanted."""
        now = time.monotonic()
        if self.seat.first and now - self.looked > _LOOK:
            self.looked = now
            try:
                self.check()
                if now - self.beaten > _BEAT:
                    self.beaten = now
                    self._beat(done, now)
                self.blind = None
            except OSError as error:  # a disk may be away for a moment
                self.blind = self.blind or now
                if now - self.blind > _PATIENCE:
                    raise
                print(f"{self.folder}: {error}; going on without a sign of life", flush=True)
        return self.wish()

    def stop(self, done: int) -> bool:
        """The same, of a stage that can only go on or leave."""
        from var_scaling.training.loop import Wish

        return self.heed(done) == Wish.STOP

    def finish(self, marker: dict[str, Any], files: Iterable[str] = ()) -> None:
        """Mark the folder as done, last of all; `files` are those that results rest on."""
        self.check()
        mark_done(self.folder, marker, files)

    def log(self) -> "Log":
        """Where metrics go: metrics.jsonl, and in a job a line each to its output."""
        if not self.seat.first:
            return lambda kind, step, values: None
        keep = MetricsLog(self.folder / "metrics.jsonl")

        def note(kind: str, step: int, values: Line) -> None:
            self.check()
            keep(kind, step, values)
            if self.seat.speaks:
                shown = {k: values[k] for k in ("loss", "images_per_second") if k in values}
                said = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
                print(f"{time.strftime('%F %T')}  {kind:10} step {step:,}  {said}", flush=True)

        return note

    def _beat(self, done: int, now: float) -> None:
        if self.began is None:
            self.began = (done, now)
            if self.before is not None:
                self._count_lost(self.before, done - 1)
        steps, seconds = done - self.began[0], now - self.began[1]
        each = seconds / steps if steps else 0.0
        pulse = {"step": done, "seconds_per_step": each, "time": time.time()}
        write_json(self.folder / PULSE, pulse)

    def _count_lost(self, before: dict[str, Any], resumed: int) -> None:
        """What the attempt before did after its last checkpoint: done, and to be done again."""
        lost = max(0, before["step"] - resumed)
        seconds = lost * before["seconds_per_step"]
        facts = {"reached": before["step"], "lost_steps": lost, "lost_seconds": seconds}
        revise_attempt(self.folder, -2, facts)


@contextmanager
def at_work(folder: Path, seat: Seat, wish: "Callable[[], Wish]") -> Iterator[Attempt]:
    """The only one in `folder`, on `seat.threads` threads; an error is left there to be read.

    Raises Stopped where the block was interrupted, Superseded where a newer attempt took over.
    """
    import torch

    from var_scaling.training.loop import Interrupted

    torch.set_num_threads(seat.threads)
    with held(folder, wait=WAIT) if seat.alone else nullcontext():
        _forget_failure(folder, seat)
        attempt = Attempt(folder, seat, wish)
        try:
            yield attempt
        except Interrupted as error:
            raise Stopped(str(error)) from error
        except (Stopped, Superseded):
            raise
        except Exception as error:
            if seat.size > 1 and _of_another(error):
                print(f"{error}\na process of this job is gone: it, not this, is the reason")
                raise
            attempt.check()  # an error of one that no longer counts is nobody's concern
            said = {
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
                "life": seat.life,
                "rank": seat.rank,
                "host": socket.gethostname(),
            }
            _write_first(folder / FAILED, said)
            raise


def _of_another(error: Exception) -> bool:
    """Whether this only says that another process is gone: if it left no error, it was killed."""
    from torch.distributed import DistError

    text = str(error)
    gloo = "gloo" in text or "Connection closed by peer" in text or "Connection reset" in text
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and gloo)


def _write_first(path: Path, value: dict[str, Any]) -> None:
    """Write `value` unless another process of the same life has: it failed first, so it is why."""
    with suppress(FileNotFoundError):
        if read_json(path)["life"] != value["life"]:
            path.unlink()
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    beside.write_text(json.dumps(value, indent=1) + "\n")
    try:
        os.link(beside, path)
    except OSError:
        if not path.exists():  # not that another was first: a disk without hard links
            os.replace(beside, path)
    beside.unlink(missing_ok=True)


def _forget_failure(folder: Path, seat: Seat) -> None:
    """Remove the error of an earlier life; one of this life is another process's, just now."""
    path = folder / FAILED
    if seat.first and path.exists() and not (seat.life and read_json(path)["life"] == seat.life):
        path.unlink(missing_ok=True)


def pulse_age(folder: Path) -> float | None:
    """Seconds since the last sign of life in `folder`."""
    try:
        return max(0.0, time.time() - float(read_json(folder / PULSE)["time"]))
    except FileNotFoundError:
        return None
