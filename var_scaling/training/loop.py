"""The training loop as a generator: mechanics live here once, the caller owns the `for`."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any

from torch import Tensor

from var_scaling.metrics import Line
from var_scaling.training import checkpoint
from var_scaling.training.world import World

Stats = dict[str, Tensor]
Log = Callable[[str, int, Line], None]  # kind, steps done, values


class Signal(IntEnum):
    """What a training is asked to do between two steps."""

    CONTINUE = 0
    CHECKPOINT = 1  # write a checkpoint now, go on
    STOP = 2  # write a checkpoint now, leave


PollSignal = Callable[[int], Signal]  # given the number of steps done


class Diverged(RuntimeError):
    """The loss or its gradient stopped being finite; nothing after that step is worth a FLOP."""


class Interrupted(RuntimeError):
    """Asked to stop, and stopped between two steps with all progress on disk."""


def updates(update: Callable[[int], Stats], start: int, stop: int) -> Iterator[tuple[int, Stats]]:
    """Yield (steps done, stats) after each `update(step)`. Raises Diverged on a non-finite stat."""
    for step in range(start, stop):
        stats = update(step)
        refuse_non_finite(stats, step + 1, stop)
        yield step + 1, stats


def refuse_non_finite(stats: Mapping[str, Any], step: int, stop: int) -> None:
    for name, value in stats.items():
        if not math.isfinite(float(value)):
            raise Diverged(f"{name} = {float(value)} at step {step} of {stop}")


class Window:
    """Means of the stats since the last look; saved, so that a resume averages the same."""

    def __init__(self, state: dict[str, tuple[float, int]] | None = None):
        self.sums = dict(state or {})

    def add(self, stats: Stats) -> None:
        for name, value in stats.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + float(value), count + 1)

    def take(self) -> dict[str, float]:
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums = {}
        return means


class Stopwatch:
    """Seconds of training, evaluation left out, over all attempts; and when to save next."""

    def __init__(
        self, seconds: float, save_every: float, clock: Callable[[], float] = time.monotonic
    ):
        self._clock = clock
        self._save_every = save_every
        self._since = self._saved = clock()
        self._before = seconds
        self._paused = False

    def lap(self) -> float:
        """Seconds of training until now; stands still during a pause."""
        return self._before + (0.0 if self._paused else self._clock() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in this block is off the clock."""
        self._before, self._paused = self.lap(), True
        yield
        self._since, self._paused = self._clock(), False

    def save_is_due(self) -> bool:
        return self._clock() - self._saved >= self._save_every

    def saved(self) -> None:
        self._saved = self._clock()


class Journal:
    """What a training keeps of itself in `folder` and `log`: lines, checkpoints, the time spent.

    `progress(done, seconds)` is added to every line. A training that has no checkpoint of its own
    begins with the state in the file `start`, if one is given. Only the first process of `world`
    writes; RuntimeError if not all find the same checkpoint.
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
        self.folder, self.log, self.progress, self.writes = folder, log, progress, world.first
        self.resumed = checkpoint.latest(folder, set_aside=world.first)
        if self.resumed is None and start is not None:
            self.resumed = checkpoint.read(start)
        begun = self.resumed or {"step": 0, "seconds": 0.0, "window": None}
        self.start: int = begun["step"]
        if (last := world.most(self.start)) != -world.most(-self.start):
            raise RuntimeError(f"{folder}: step {last} is not there for all; is it a shared disk?")
        self.window = Window(begun["window"])
        self.watch = Stopwatch(begun["seconds"], save_every)

    def note(self, kind: str, done: int, values: Line) -> None:
        if self.writes:
            self.log(kind, done, {**values, **self.progress(done, self.watch.lap())})

    def save(self, done: int, state: checkpoint.State) -> None:
        """Write `state` and all that is needed to go on from it as if nothing had happened."""
        if self.writes:
            checkpoint.save(self.folder, done, self._whole(state))
        self.watch.saved()

    def keep(self, path: Path, done: int, state: checkpoint.State) -> None:
        """Write the same for other trainings to start from; it stays."""
        if self.writes:
            checkpoint.write(path, done, self._whole(state))

    def _whole(self, state: checkpoint.State) -> checkpoint.State:
        return {**state, "seconds": self.watch.lap(), "window": self.window.sums}


def log_steps(steps: int, lines: int = 200) -> frozenset[int]:
    """About `lines` steps, evenly spread, the last among them."""
    return frozenset(max(1, round(steps * k / lines)) for k in range(1, lines + 1))
