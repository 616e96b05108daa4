"""Terminal output: tables, progress bars, messages."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column, Table
from rich.text import Text

from pipelines.execution.status import View, format_duration
from var_scaling.experiment import Sweep
from var_scaling.models.base import Validation
from var_scaling.text import printable


class LiteralConsole(Console):
    """Prints text literally: brackets are not markup, colons are not emoji, and control characters,
    which names and messages of users may contain, are escaped.
    """

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


_WIDE = None if sys.stdout.isatty() else 150  # columns of a file or pipe, which has no width
console = LiteralConsole(width=_WIDE)
errors = LiteralConsole(stderr=True, width=_WIDE)

_COLOURS = {
    "done": "green", "running": "cyan", "queued": "yellow", "failed": "red", "diverged": "red",
    "cancelled": "red", "damaged": "red", "to repair": "yellow",
}  # fmt: skip
_ENDED = ("done", "damaged", "diverged", "failed", "cancelled", "imported")
_LISTED = 50  # maximum number of stages of one kind and state that a table lists
_HEARTBEAT = 20.0  # seconds between lines without a terminal


def warn(text: str) -> None:
    print_error(text, "yellow")


def print_error(text: str, colour: str = "red") -> None:
    errors.print(text, style=colour, soft_wrap=True, highlight=False)


def print_line(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def sweeps_table(sweeps: list[Sweep]) -> Table:
    table = new_table("sweep", "question", "trials", "depths", "images")
    for sweep in sweeps:
        depths = sorted({trial.model.depth for trial in sweep.trials})
        data = ", ".join(sorted({trial.data.name for trial in sweep.trials}))
        span = f"{depths[0]}–{depths[-1]}" if len(depths) > 1 else str(depths[0])
        table.add_row(sweep.name, sweep.question, str(len(sweep.trials)), span, data)
    return table


def new_table(*columns: str, title: str = "", caption: str = "") -> Table:
    """A table that wraps long words, because a path cut off with "…" is of no use."""
    return Table(
        *(Column(header, overflow="fold") for header in columns),
        title=title, caption=caption, box=SIMPLE_HEAD, title_justify="left",
        caption_justify="left", pad_edge=False, padding=(0, 1),
    )  # fmt: skip


def status_table(sweep: Sweep, views: list[View], driver: str = "") -> Table:
    """The state of each stage. `driver`: the process that drives the sweep, and its notes.

    Many finished or waiting stages of one kind, without notes, share one line.
    """
    jobs = any(view.job for view in views)
    job_columns = ("attempt", "job", "node") if jobs else ()
    table = new_table(
        "stage", "name", "state", "step", "", "loss", "images/s", "left", *job_columns, "",
        title=sweep.name, caption=driver,
    )  # fmt: skip
    for view in _merge_groups(views):
        job_cells = (str(view.attempt or ""), view.job, view.node) if jobs else ()
        table.add_row(
            view.kind, view.name, coloured(view.state),
            f"{view.done:,}/{view.total:,}" if view.total else "", _share(view),
            "" if view.loss is None else f"{view.loss:#.5g}",
            "" if view.images_per_second is None else f"{view.images_per_second:,.0f}",
            format_duration(view.seconds_left), *job_cells, view.note,
        )  # fmt: skip
    return table


def _merge_groups(views: list[View]) -> list[View]:
    """`views`, with large groups of done or waiting stages of one kind merged into one view."""
    groups: dict[tuple[str, str], list[View]] = {}
    for view in views:
        if view.state in ("done", "waiting") and not view.note:
            groups.setdefault((view.kind, view.state), []).append(view)
    lines: list[View] = []
    for view in views:
        group = groups.get((view.kind, view.state), [])
        if len(group) <= _LISTED or view.note:
            lines.append(view)
        elif view is group[0]:
            lines.append(_merge(group))
    return lines


def _merge(group: list[View]) -> View:
    """One view of all stages of `group`; `status --json` lists each of them."""
    first, losses = group[0], [view.loss for view in group if view.loss is not None]
    note = f"loss {min(losses):#.5g}–{max(losses):#.5g}; " if losses else ""
    done, total = sum(view.done for view in group), sum(view.total for view in group)
    return View(
        first.kind, f"{len(group):,} stages", first.state, done, total, first.unit,
        note=f"{note}details: --json",
    )  # fmt: skip


def watch(sweep: Sweep, poll: Callable[[], tuple[list[View], str]], interval: float = 5.0) -> None:
    """Redraw the status table every `interval` seconds until every stage has ended, or Ctrl-C."""
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            views, driver = poll()
            live.update(status_table(sweep, views, driver), refresh=True)
            if all(view.state in _ENDED for view in views):
                return
            time.sleep(interval)


@contextmanager
def progress(console: Console) -> Iterator[Callable[[list[View]], None]]:
    """A bar for each stage on a terminal; otherwise a line when a stage changes its state."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    # Redrawn when the views are read: a redraw of 100 bars takes 10 ms, and Rich makes 10 a second.
    with status_bars(console, auto_refresh=False) as bars:
        yield _Bars(bars)


class _Bars:
    """A bar for each stage that has begun; many stages that are done share one."""

    def __init__(self, bars: Progress):
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.shown: dict[str, View] = {}  # as last drawn
        self.done = bars.add_task("stages that are done", status="", visible=False)

    def __call__(self, views: list[View]) -> None:
        done = sum(view.state == "done" for view in views)
        many = done > _LISTED
        self.bars.update(self.done, completed=done, total=len(views), visible=many)
        for view in views:
            name, hidden = f"{view.kind} {view.name}", many and view.state == "done"
            if hidden and name in self.tasks:
                self.bars.remove_task(self.tasks.pop(name))
                del self.shown[name]
            if hidden or view.state == "waiting" or self.shown.get(name) == view:
                continue
            self.shown[name] = view
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task(name, status="", total=view.total or None)
            self.bars.update(
                self.tasks[name], completed=view.done, total=view.total or None,
                status=_status_text(view),
            )  # fmt: skip
        self.bars.refresh()


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{printable(task.description):34}")


class _Status(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(printable(task.fields["status"]))


def status_bars(console: Console, auto_refresh: bool = True) -> Progress:
    """Progress bars, each followed by the text of its field `status`."""
    return Progress(
        _Description(),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        _Status(),
        console=console,
        auto_refresh=auto_refresh,
    )


class _Lines:
    """Progress as lines, for output that is not a terminal: a log file, CI."""

    def __init__(self, console: Console):
        self.console = console
        self.states: dict[str, str] = {}
        self.last_print = time.monotonic()

    def __call__(self, views: list[View]) -> None:
        due = time.monotonic() - self.last_print > _HEARTBEAT
        for view in views:
            name = f"{view.kind} {view.name}"
            changed = self.states.get(name, "waiting") != view.state
            if changed or (due and view.state == "running"):
                self.states[name] = view.state
                self.last_print = time.monotonic()
                self.console.print(
                    f"{name:34} {view.state:9} {_share(view):>8} {_status_text(view)}",
                    soft_wrap=True, highlight=False,
                )  # fmt: skip


def _status_text(view: View) -> str:
    parts = [
        "" if view.loss is None else f"loss {view.loss:#.4g}",
        "" if view.images_per_second is None else f"{view.images_per_second:,.0f} images/s",
        f"{format_duration(view.seconds_left)} left" if view.seconds_left else "",
        view.note,
    ]
    return "  ".join(filter(None, parts))


def _share(view: View) -> str:
    return f"{view.done / view.total:.0%}" if view.total else ""


def coloured(state: str) -> Text:
    return Text(state, style=_COLOURS.get(state, ""))


def format_number(number: float) -> str:
    """A large number with an SI prefix: 2.4 M, 61 T, 1.2e21."""
    number = float(f"{number:.3g}")  # so that 999,999 is 1 M
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}" if number < 1e18 else f"{number:.2e}"
    return f"{number:.0f}"


def evaluation_table(name: str, scores: dict[str, Any], validation: Validation) -> Table:
    """Each score in total and by part: conditional on the true label, and unconditional."""
    from analysis.format import fixed  # with pandas and SciPy, which other commands do not need

    images = f"{scores['images_scored']:,} images"
    flops = f"{format_number(scores['evaluation_flops'])}FLOPs"
    errors = ", error as a share of tokens" if "error" in validation.scores else ""
    table = new_table(
        "", "all", "± s.e.", *(validation.parts if len(validation.parts) > 1 else ()),
        title=f"{name} on {images} of {scores['data']}",
        caption=f"loss in {validation.loss_unit}{errors}; {flops}",
    )  # fmt: skip
    for suffix, condition in (("", "true label"), ("_no_label", "no label")):
        for score in validation.scores:
            key = f"{score}{suffix}"
            if key in scores:
                stderr = scores[f"{key}_stderr"]
                parts = scores[f"{key}_parts"] if len(validation.parts) > 1 else ()
                table.add_row(
                    f"{score}, {condition}", fixed(scores[key]),
                    "–" if stderr is None else fixed(stderr),
                    *(fixed(value, 3) for value in parts),
                )  # fmt: skip
    return table


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (task, done, total) that updates a progress bar on a terminal."""
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (_Description(), BarColumn(bar_width=28), MofNCompleteColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(title, total=None)
        yield lambda what, done, total: bars.update(
            task, description=what, completed=done, total=total
        )
