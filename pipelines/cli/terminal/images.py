"""Progress and speed of sampling: a bar on a terminal, otherwise a line at intervals."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from pipelines.cli.terminal.console import status_bars
from pipelines.execution.status import format_duration

_INTERVAL = 20.0  # seconds between lines without a terminal

ReportProgress = Callable[[str, int, int], None]  # (task, images done, images in total)


@contextmanager
def image_progress(
    console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[ReportProgress]:
    """Yield a function that displays the progress it is called with."""
    speed = _Speed(clock)
    if not console.is_terminal:
        yield _Lines(console, speed)
        return
    with status_bars(console) as bars:
        task = bars.add_task("", total=None, status="")
        yield lambda what, done, total: bars.update(
            task, description=what, completed=done, total=total, status=speed(done, total)
        )


class _Speed:
    """The rate in images/s since the first new image was waited for, and the time left."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.start: tuple[int, float] | None = None  # (images done, time)

    def __call__(self, done: int, total: int) -> str:
        now = self.clock()
        # Restart the clock until the first image is done, so that loading does not count.
        if self.start is None or self.start[0] == done:
            self.start = (done, now)
        drawn, seconds = done - self.start[0], now - self.start[1]
        if not drawn or seconds <= 0:
            return ""
        rate = drawn / seconds
        left = f", {format_duration((total - done) / rate)} left" if done < total else ""
        return f"{rate:,.3g} images/s{left}"


class _Lines:
    def __init__(self, console: Console, speed: _Speed):
        self.console, self.speed = console, speed
        self.last_print: float | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        speed, now = self.speed(done, total), self.speed.clock()
        if (
            self.last_print is None
            or now - self.last_print > _INTERVAL
            or (done >= total and speed)
        ):
            self.last_print = now
            line = "  ".join(filter(None, (f"{what}: {done:,} of {total:,} images", speed)))
            self.console.print(line, soft_wrap=True, highlight=False)
