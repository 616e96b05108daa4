"""How far the drawing of images is, and how fast: a bar on a terminal, else a line at times."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from pipelines.cli.terminal.console import said_bars
from pipelines.execution.status import since

_EVERY = 20.0  # seconds between lines where there is no terminal to redraw

ReportProgress = Callable[[str, int, int], None]


@contextmanager
def counting(
    console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[ReportProgress]:
    """Hears what is made, how many images there are, of how many."""
    speed = _Speed(clock)
    if not console.is_terminal:
        yield _Lines(console, speed)
        return
    with said_bars(console) as bars:
        task = bars.add_task("", total=None, said="")
        yield lambda what, done, total: bars.update(
            task, description=what, completed=done, total=total, said=speed(done, total)
        )


class _Speed:
    """Images a second since the last word before the first came, and what is left at that rate."""

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self.first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> str:
        now = self.clock()
        if self.first is None or self.first[0] == done:
            self.first = (done, now)
        made, seconds = done - self.first[0], now - self.first[1]
        if not made or seconds <= 0:
            return ""
        rate = made / seconds
        left = f", {since((total - done) / rate)} left" if done < total else ""
        return f"{rate:,.3g} images/s{left}"


class _Lines:
    def __init__(self, console: Console, speed: _Speed):
        self.console, self.speed = console, speed
        self.spoke: float | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        said, now = self.speed(done, total), self.speed.clock()
        if self.spoke is None or now - self.spoke > _EVERY or (done >= total and said):
            self.spoke = now
            line = "  ".join(filter(None, (f"{what}: {done:,} of {total:,} images", said)))
            self.console.print(line, soft_wrap=True, highlight=False)
