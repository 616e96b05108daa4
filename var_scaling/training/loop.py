"""The training loop as a generator (the caller owns the `for`), its log and its checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from var_scaling.metrics import Line
from var_scaling.training import checkpoint
from var_scaling.training.world import World

Stats = dict[str, Tensor]
Log = Callable[[str, int, Line], None]  # kind, steps done, values


# Ordered by strength: over several processes the largest signal applies (World.max).
class Signal(IntEnum):
    """What the training must do after the current step."""

    CONTINUE = 0
    CHECKPOINT = 1  # write a checkpoint, then continue
    STOP = 2  # write a checkpoint, then exit


# Polled between two steps, never inside one: a signal handler only sets a flag, and the weights of
# a checkpoint are those after a whole step.
PollSignal = Callable[[int], Signal]  # given the number of steps done


class Diverged(RuntimeError):
    """The loss or its gradient is not finite, so that further steps would be useless."""


class Interrupted(RuntimeError):
    """Training stopped on request between two steps, after it wrote a checkpoint."""


# A GPU works through queued steps while the host prepares the next ones. Each number that the host
# reads makes it wait for all of them, so the numbers of several steps are read together.
_STEPS_PER_READ = {"cpu": 1, "cuda": 10}


def updates(
    update: Callable[[int], Stats],
    journal: "Journal",
    stop: int,
    poll_signal: PollSignal,
    pauses: Set[int] = frozenset(),
) -> Iterator[tuple[int, Signal]]:
    """Call `update(step)` for each step; yield (steps done, signal) when the stats were read.

    That is after every step on a CPU, after every tenth on a GPU, and after those of `pauses`.
    Raises Diverged if a stat is not finite: before the caller logs or saves anything after it.
    """
    try:
        for step in range(journal.start, stop):
            journal.add(step + 1, update(step))
            done = step + 1
            if done in pauses or done == stop or done % journal.steps_per_read == 0:
                signal = poll_signal(done)
                if journal.stopwatch.save_is_due():  # by the clock of any process
                    signal = max(signal, Signal.CHECKPOINT)
                yield done, journal.read_stats(stop, signal)
    finally:
        journal.wait()


def refuse_non_finite(stats: Mapping[str, float], step: int, stop: int) -> None:
    for name, value in stats.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} = {value} at step {step} of {stop}")


class MeanStats:
    """Means of the stats since the last log line. Checkpoints have them: a resume logs the same."""

    def __init__(self, state: dict[str, tuple[float, int]] | None = None):
        self.sums = dict(state or {})

    def add(self, stats: Mapping[str, float]) -> None:
        for name, value in stats.items():
            total, count = self.sums.get(name, (0.0, 0))
            # A stat may be absent from a step (an overflow), so each has its own count.
            self.sums[name] = (total + value, count + 1)

    def pop(self) -> dict[str, float]:
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means


class Stopwatch:
    """Seconds of training over all attempts, without evaluation; and whether a save is due."""

    def __init__(
        self, seconds: float, save_every: float, clock: Callable[[], float] = time.monotonic
    ):
        self._clock = clock
        self._save_every = save_every
        # Monotonic by default: a corrected system clock must not change the training time.
        self._started = self._saved = clock()
        self._seconds_before = seconds
        self._paused = False

    def seconds(self) -> float:
        """Seconds of training until now, without the pauses."""
        return self._seconds_before + (0.0 if self._paused else self._clock() - self._started)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of this block."""
        self._seconds_before, self._paused = self.seconds(), True
        yield
        self._started, self._paused = self._clock(), False

    def save_is_due(self) -> bool:
        return self._clock() - self._saved >= self._save_every

    def saved(self) -> None:
        # The interval begins after the write, so slow writes do not follow each other directly.
        self._saved = self._clock()


class Journal:
    """The checkpoints of a training in `folder`, its log lines, and its training time.

    Every log line contains `progress(done, seconds)`. Without a checkpoint in `folder`, the
    training starts from the checkpoint file `start`, if given. Only process 0 of `world` writes;
    on a GPU it copies a checkpoint and writes it while the training goes on.
    Raises RuntimeError if the processes read different checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        log: Log,
        progress: Callable[[int, float], Line],
        save_every: float,
        world: World,
        start: Path | None = None,
    ):
        self.folder, self.log, self.progress, self.world = folder, log, progress, world
        self.writes = world.first
        # Only process 0 renames damaged files: the others read the same folder at the same time.
        self.resumed = checkpoint.latest(folder, rename_damaged=world.first)
        if self.resumed is None and start is not None:
            self.resumed = checkpoint.read(start)
        initial = self.resumed or {"step": 0, "seconds": 0.0, "window": None}
        self.start: int = initial["step"]
        # Largest against smallest step: with a disk of its own, a process would train from another
        # step than the rest without an error.
        if (last := world.max(self.start)) != -world.max(-self.start):
            raise RuntimeError(
                f"{folder}: not all processes see step {last}; use a disk that all processes share"
            )
        self.means = MeanStats(initial["window"])
        self.stopwatch = Stopwatch(initial["seconds"], save_every)
        self.steps_per_read = _STEPS_PER_READ.get(world.device.type, 1)
        self.in_background = world.device.type != "cpu"
        self._unread: list[tuple[int, Stats]] = []
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def add(self, done: int, stats: Stats) -> None:
        """Keep the stats of this process's rows after `done` steps, without waiting for them."""
        self._unread.append((done, stats))

    def read_stats(self, stop: int, signal: Signal) -> Signal:
        """Average the kept stats over the processes and add them to `means`; return the strongest
        `signal` of all processes. One collective call and one wait. Raises Diverged.
        """
        unread, self._unread = self._unread, []
        values = [value.detach().double() for _, stats in unread for value in stats.values()]
        # Two flags, because the sum over processes must give the largest signal. Stats are matched
        # by their order: all processes have the same ones.
        flags = [float(signal >= Signal.CHECKPOINT), float(signal >= Signal.STOP)]
        given = torch.tensor(flags, dtype=torch.float64).to(self.world.device, non_blocking=True)
        numbers = iter(self.world.sum(torch.cat([torch.stack(values), given])).tolist())
        for done, stats in unread:
            means = {name: next(numbers) / self.world.size for name in stats}
            # fp16: after an overflow the step is skipped, and the norm is no number. This is normal
            # as long as the loss scale adapts; below 1 the training has diverged.
            if means.get("skipped", 0) > 0 and means["loss_scale"] >= 1:
                del means["grad_norm"]
            refuse_non_finite(means, done, stop)
            self.means.add(means)
        checkpoint_flags, stop_flags = numbers
        return Signal((checkpoint_flags > 0) + (stop_flags > 0))

    def write_line(self, kind: str, done: int, values: Line) -> None:
        if self.writes:
            self.log(kind, done, {**values, **self.progress(done, self.stopwatch.seconds())})

    def save(self, done: int, state: checkpoint.State) -> None:
        """Write a checkpoint: `state`, and what a resume needs to log the same numbers."""
        self.wait()
        if self.writes and self.in_background:
            # Copied first: the next step changes the tensors of `state`.
            copied = _copied(self._with_log_state(state))
            self._writing = self._writer.submit(checkpoint.save, self.folder, done, copied)
        elif self.writes:
            checkpoint.save(self.folder, done, self._with_log_state(state))
        self.stopwatch.saved()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. Raises the error of its writing."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def save_permanent(self, path: Path, done: int, state: checkpoint.State) -> None:
        """Write a checkpoint that is never deleted, for other trainings to start from."""
        if self.writes:
            checkpoint.write(path, done, self._with_log_state(state))

    def _with_log_state(self, state: checkpoint.State) -> checkpoint.State:
        return {**state, "seconds": self.stopwatch.seconds(), "window": self.means.sums}


def _copied(state: Any) -> Any:
    """`state` with copies of its tensors in the memory of the host."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def log_steps(steps: int, lines: int = 200) -> frozenset[int]:
    """About `lines` evenly spaced steps, including the last."""
    # Fewer steps than lines: equal entries merge, and every step is logged.
    return frozenset(max(1, round(steps * k / lines)) for k in range(1, lines + 1))
