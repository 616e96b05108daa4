"""Figures of what a law is worth: countings, objectives, hold-out, influence, forecasts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.fitting.fit import Fit
from analysis.fitting.points import FitError
from analysis.plots.axes import logarithmic, signed, symbol
from analysis.plots.law_panel import LAW_LOOKS
from analysis.plots.laws import SIZES
from analysis.plots.style import (
    BLUE,
    DOUBLE,
    GREEN,
    GREY,
    INK,
    PALE,
    SINGLE,
    VERMILION,
    dot_size,
    finish,
    key_above,
    sheet,
    styled,
)
from analysis.selection.holdout import HeldOut
from analysis.study import METRICS, Study
from analysis.uncertainty.intervals import Interval, interval

_NAMES = {"pure": "pure power law", "floor": "with a fitted floor"}
_TALL = 0.17  # inches a row of a dot plot


@dataclass(frozen=True)
class Dot:
    """A row of a dot-and-interval plot; an end of None or infinity runs off the panel."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    marker: str = "o"
    colour: str = BLUE
    filled: bool = True


@styled
def conventions(study: Study) -> Figure | None:
    """The exponent of each loss under every counting of parameters and of FLOPs."""
    looks = {"N": ("o", BLUE), "C": ("s", VERMILION)}
    groups = {}
    for metric, found in study.conventions.items():
        dots = [
            _dot(f"${each.variable}$: {each.name}", each.fit, each.interval, *looks[each.variable])
            for each in found if each.fit is not None
        ]  # fmt: skip
        if dots:
            groups[symbol(METRICS[metric][0])] = dots
    return dots_figure(groups, "α, exponent") if groups else None


@styled
def objectives(study: Study) -> Figure | None:
    """The exponent of each metric in N under every objective of the fit."""
    looks = {"huber": ("o", BLUE), "squares": ("s", VERMILION), "absolute": ("^", GREEN)}
    groups = {}
    for metric, fits in study.objectives.items():
        dots = [
            _dot(name, fit, _alpha(fit), *looks.get(name, ("o", INK))) for name, fit in fits.items()
        ]
        if dots:
            groups[symbol(METRICS[metric][0])] = dots
    return dots_figure(groups, "α, exponent of $N$") if groups else None


def _dot(name: str, fit: Fit, span: Interval | None, marker: str, colour: str) -> Dot:
    low, high = (span.low, span.high) if span else (None, None)
    return Dot(name, fit.alpha, low, high, marker, colour)


def _alpha(fit: Fit) -> Interval | None:
    try:
        return interval(fit, "alpha")
    except FitError:  # no point to spare: the dot stands without its interval
        return None


@styled
def dots_figure(groups: Mapping[str, Sequence[Dot]], xlabel: str) -> Figure:
    """Dots with intervals: a panel for each group, four abreast, rows by the dots' names."""
    columns = min(4, len(groups))
    deep = -(-len(groups) // columns)
    names = list(dict.fromkeys(dot.name for dots in groups.values() for dot in dots))
    width = DOUBLE if columns > 1 else SINGLE
    figure, panels = sheet(width, 0.5 + deep * (0.4 + _TALL * len(names)), deep, columns)
    for k, (panel, (heading, dots)) in enumerate(zip(panels.flat, groups.items(), strict=False)):
        for dot in dots:
            draw_dot(panel, names.index(dot.name), dot)
        panel.set_title(heading)
        panel.set_yticks(range(len(names)), names if k % columns == 0 else [""] * len(names))
        panel.tick_params(axis="y", length=0)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.locator_params(axis="x", nbins=5 if columns < 3 else 3)
        panel.grid(True, axis="x", lw=0.4, color=PALE)
        panel.set_axisbelow(True)
    finish(panels, len(groups))
    figure.supxlabel(xlabel, size=7.5, color=INK)
    return figure


def draw_dot(panel: Axes, row: float, dot: Dot) -> None:
    """One row; an end without a number goes as far as the panel, and has no cap."""
    ends = [end if end is not None and np.isfinite(end) else None for end in (dot.low, dot.high)]
    for end, side in zip(ends, (0.0, 1.0), strict=True):
        if end is not None:
            panel.plot([dot.value, end], [row, row], color=dot.colour, lw=1, zorder=2)
            panel.plot(end, row, "|", color=dot.colour, ms=4, zorder=2)
        elif (dot.low, dot.high) != (None, None):
            panel.annotate(
                "", (side, row), (dot.value, row), annotation_clip=False,
                xycoords=panel.get_yaxis_transform(), textcoords="data",
                arrowprops={"arrowstyle": "->", "color": dot.colour, "lw": 0.8},
            )  # fmt: skip
    face = dot.colour if dot.filled else "white"
    panel.plot(dot.value, row, dot.marker, color=dot.colour, mfc=face, mew=0.9, ms=4, zorder=3)


@styled
def holdout(study: Study) -> Figure | None:
    """How far L_mean beyond a cut was missed, against how far beyond it was; None without cuts."""
    rolled = {law: found for law, found in study.rolled.items() if found}
    return holdout_figure(rolled) if rolled else None


@styled
def holdout_figure(rolled: Mapping[str, Sequence[HeldOut]]) -> Figure:
    """Relative error in per cent against size over cut, by law's name; the largest size marked."""
    figure, ((panel,),) = sheet(SINGLE, 2.5)
    panel.axhline(0, color=INK, lw=0.6, zorder=1)
    handles: list[Any] = []
    for k, (law, found) in enumerate(rolled.items()):
        look = LAW_LOOKS[law]
        ratio = np.array([held.x / held.cut for held in found])
        error = 100 * np.array([held.relative_error for held in found])
        last = np.array([held.x for held in found]) == max(held.x for held in found)
        face = look.colour if law == "floor" else "white"
        shift = 1.015 ** (2 * k - len(rolled) + 1)  # so that equal errors do not hide each other
        dot = dot_size(len(found), 1.2)
        for chosen, size in ((~last, 0.8 * dot), (last, 1.25 * dot)):
            panel.plot(
                ratio[chosen] * shift, error[chosen], look.marker, color=look.colour, ms=size,
                mfc=face, mew=0.22 * dot, zorder=3,
            )  # fmt: skip
        steps, which = np.unique(ratio[last], return_inverse=True)
        means = np.bincount(which, error[last]) / np.bincount(which)
        panel.plot(steps * shift, means, color=look.colour, ls=look.line, lw=0.8, zorder=4)
        handles.append(
            Line2D([], [], color=look.colour, ls=look.line, marker=look.marker, mfc=face,
                   lw=0.8, label=_NAMES.get(law, law))
        )  # fmt: skip
    panel.set(xscale="log", xlabel="size predicted / largest size fitted")
    panel.set_ylabel("predicted / measured − 1 (%)")
    logarithmic(panel, y=False)
    handles.append(Line2D([], [], color=GREY, lw=0.8, label="line: mean of the largest size"))
    key_above(figure, handles, 2)
    return figure


@styled
def influence(study: Study) -> Figure | None:
    """What each run, left out, does to the exponent of L_mean in N; None where none can be."""
    choice = study.choices.get(("val_loss", study.size))
    found = [] if choice is None else [choice.get(law) for law in ("pure", "floor")]
    given = [one for one in found if one is not None and one.influence]
    if not given:
        return None
    finding = study.get("val_loss", study.size, "pure")
    trials = finding.trials if finding is not None else ()
    figure, ((panel,),) = sheet(SINGLE, 2.5)
    panel.axhline(0, color=INK, lw=0.6, zorder=1)
    handles: list[Any] = []
    for k, one in enumerate(given):
        look = LAW_LOOKS[one.name]
        shift = 1.04 ** (2 * k - len(given) + 1)
        x = np.array([each.x for each in one.influence]) * shift
        change = np.array([each.alpha_change for each in one.influence])
        face = look.colour if one.name == "floor" else "white"
        panel.vlines(x, 0, change, color=look.colour, lw=0.8, ls=look.line, zorder=2)
        size = dot_size(len(x), 2.0)
        panel.plot(x, change, look.marker, color=look.colour, mfc=face, mew=0.8, ms=size, zorder=3)
        said = f"{_NAMES[one.name]}, α = {signed(one.fit.alpha, '.3f')}"
        handles.append(
            Line2D([], [], ls="", marker=look.marker, color=look.colour, mfc=face, label=said)
        )
    panel.set(xscale="log", xlabel=SIZES[study.size])
    panel.set_ylabel("change of α without the run")
    panel.margins(x=0.1, y=0.15)
    _name_largest(panel, given, trials)
    logarithmic(panel, y=False)
    key_above(figure, handles, 1)
    return figure


def _name_largest(panel: Axes, given: Sequence[Any], trials: Sequence[str]) -> None:
    """The run that moves the exponent most, by its name."""
    most = max((each for one in given for each in one.influence), key=lambda e: abs(e.alpha_change))
    if most.point < len(trials):
        side = 1 if most.x < np.sqrt(np.prod(panel.get_xlim())) else -1
        panel.annotate(
            trials[most.point], (most.x, most.alpha_change), (6 * side, 0),
            textcoords="offset points", ha="left" if side > 0 else "right", va="center", size=7,
            parse_math=False,  # a name in anyone's table may hold a dollar
        )  # fmt: skip


@styled
def forecasts(study: Study) -> Figure | None:
    """Each frozen forecast that was graded: its interval about what was then measured."""
    graded = [one for one in study.forecasts if getattr(one, "state", None) == "graded"]
    if not graded:
        return None
    groups: dict[str, list[Dot]] = {}
    for outcome in graded:
        target = outcome.forecast.target.trial if outcome.forecast else outcome.file
        for grade in outcome.grades:
            groups.setdefault(target, []).append(_grade_dot(grade))
    figure = dots_figure(groups, "forecast / measured − 1 (%)")
    for panel in figure.axes:
        panel.axvline(0, color=INK, lw=0.8, zorder=1)
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, lw=1,
               label=f"{_NAMES[law]}")
        for law, look in LAW_LOOKS.items() if law in ("pure", "floor")
    ]  # fmt: skip
    handles.append(Line2D([], [], color=INK, lw=0.8, label="measured"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if len(groups) > 1 else 2)
    return figure


def _grade_dot(grade: Any) -> Dot:
    look = LAW_LOOKS[grade.law]
    low, high = (
        None if end is None else 100 * (end / grade.measured - 1) for end in (grade.low, grade.high)
    )
    name = f"{symbol(METRICS[grade.metric][0])}, {grade.law}"
    return Dot(name, 100 * grade.error, low, high, look.marker, look.colour, grade.headline)
