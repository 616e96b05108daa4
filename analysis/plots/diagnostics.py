"""Diagnostic figures of laws: countings, objectives, hold-out, influence, forecasts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.fitting.fit import Fit
from analysis.law_result import METRICS
from analysis.plots.axes import logarithmic, signed, symbol
from analysis.plots.law_panel import LAW_STYLES
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
    hide_empty_panels,
    legend_above,
    marker_size,
    new_figure,
    styled,
)
from analysis.selection.holdout import HeldOut
from analysis.study import Study
from analysis.uncertainty.intervals import Interval

_NAMES = {"pure": "pure power law", "floor": "with a fitted E"}
_ROW_HEIGHT = 0.17  # inches, of a dot plot


@dataclass(frozen=True)
class Dot:
    """A row of a dot-and-interval plot; an open end (None or infinity) is drawn as an arrow."""

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
    styles = {"N": ("o", BLUE), "C": ("s", VERMILION)}
    groups = {}
    for metric, fitted in study.conventions.items():
        dots = [
            _dot(f"${each.variable}$: {each.name}", each.fit, each.interval, *styles[each.variable])
            for each in fitted if each.fit is not None
        ]  # fmt: skip
        if dots:
            groups[symbol(METRICS[metric][0])] = dots
    return dots_figure(groups, "α, exponent") if groups else None


@styled
def objectives(study: Study) -> Figure | None:
    """The exponent of each metric in N under every objective of the fit."""
    styles = {"huber": ("o", BLUE), "squares": ("s", VERMILION), "absolute": ("^", GREEN)}
    groups = {}
    for metric, fits in study.objectives.items():
        spans = study.objective_intervals.get(metric, {})
        dots = [
            _dot(name, fit, spans.get(name), *styles.get(name, ("o", INK)))
            for name, fit in fits.items()
        ]
        if dots:
            groups[symbol(METRICS[metric][0])] = dots
    return dots_figure(groups, "α, exponent of $N$") if groups else None


def _dot(name: str, fit: Fit, span: Interval | None, marker: str, colour: str) -> Dot:
    low, high = (span.low, span.high) if span else (None, None)
    return Dot(name, fit.alpha, low, high, marker, colour)


@styled
def dots_figure(groups: Mapping[str, Sequence[Dot]], xlabel: str) -> Figure:
    """Dots with intervals: a panel for each group, four in a row; one line for each dot's name."""
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    # The same rows in all panels: names are written only at the left.
    names = list(dict.fromkeys(dot.name for dots in groups.values() for dot in dots))
    width = DOUBLE if columns > 1 else SINGLE
    figure, panels = new_figure(width, 0.5 + rows * (0.4 + _ROW_HEIGHT * len(names)), rows, columns)
    for k, (panel, (heading, dots)) in enumerate(zip(panels.flat, groups.items(), strict=False)):
        for dot in dots:
            draw_dot(panel, names.index(dot.name), dot)
        panel.set_title(heading)
        panel.set_yticks(range(len(names)), names if k % columns == 0 else [""] * len(names))
        panel.tick_params(axis="y", length=0)
        # Inverted: the first name is at the top.
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.locator_params(axis="x", nbins=5 if columns < 3 else 3)
        panel.grid(True, axis="x", lw=0.4, color=PALE)
        panel.set_axisbelow(True)
    hide_empty_panels(panels, len(groups))
    figure.supxlabel(xlabel, size=7.5, color=INK)
    return figure


def draw_dot(panel: Axes, row: float, dot: Dot) -> None:
    """Draw one row; an open end is an arrow to the edge of the panel."""
    ends = [end if end is not None and np.isfinite(end) else None for end in (dot.low, dot.high)]
    for end, side in zip(ends, (0.0, 1.0), strict=True):
        if end is not None:
            panel.plot([dot.value, end], [row, row], color=dot.colour, lw=1, zorder=2)
            panel.plot(end, row, "|", color=dot.colour, ms=4, zorder=2)
        elif (dot.low, dot.high) != (None, None):
            # The tip is at a share of the panel's width (0 or 1), the tail in data coordinates.
            panel.annotate(
                "", (side, row), (dot.value, row), annotation_clip=False,
                xycoords=panel.get_yaxis_transform(), textcoords="data",
                arrowprops={"arrowstyle": "->", "color": dot.colour, "lw": 0.8},
            )  # fmt: skip
    face = dot.colour if dot.filled else "white"
    panel.plot(dot.value, row, dot.marker, color=dot.colour, mfc=face, mew=0.9, ms=4, zorder=3)


@styled
def holdout(study: Study) -> Figure | None:
    """Rolling hold-out errors of L_mean against the ratio of size to cut; None without cuts."""
    rolled = {law: held_out for law, held_out in study.rolled.items() if held_out}
    return holdout_figure(rolled) if rolled else None


@styled
def holdout_figure(rolled: Mapping[str, Sequence[HeldOut]]) -> Figure:
    """Relative error in per cent against size / cut, by law; large symbols: the largest size."""
    figure, ((panel,),) = new_figure(SINGLE, 2.5)
    panel.axhline(0, color=INK, lw=0.6, zorder=1)
    handles: list[Any] = []
    for k, (law, held_out) in enumerate(rolled.items()):
        style = LAW_STYLES[law]
        ratio = np.array([each.x / each.cut for each in held_out])
        error = 100 * np.array([each.relative_error for each in held_out])
        # Every cut predicts all larger runs, so the largest size has an error for each cut.
        last = np.array([each.x for each in held_out]) == max(each.x for each in held_out)
        face = style.colour if law == "floor" else "white"
        shift = 1.015 ** (2 * k - len(rolled) + 1)  # laws side by side: equal errors stay visible
        base_size = marker_size(len(held_out), 1.2)
        for chosen, size in ((~last, 0.8 * base_size), (last, 1.25 * base_size)):
            panel.plot(
                ratio[chosen] * shift, error[chosen], style.marker, color=style.colour, ms=size,
                mfc=face, mew=0.22 * base_size, zorder=3,
            )  # fmt: skip
        # The mean over runs of the largest size, for each cut.
        steps, which = np.unique(ratio[last], return_inverse=True)
        means = np.bincount(which, error[last]) / np.bincount(which)
        panel.plot(steps * shift, means, color=style.colour, ls=style.line, lw=0.8, zorder=4)
        handles.append(
            Line2D([], [], color=style.colour, ls=style.line, marker=style.marker, mfc=face,
                   lw=0.8, label=_NAMES.get(law, law))
        )  # fmt: skip
    panel.set(xscale="log", xlabel="size predicted / largest size fitted")
    panel.set_ylabel("predicted / measured − 1 (%)")
    logarithmic(panel, y=False)
    handles.append(Line2D([], [], color=GREY, lw=0.8, label="line: mean of the largest size"))
    legend_above(figure, handles, 2)
    return figure


@styled
def influence(study: Study) -> Figure | None:
    """Change of the exponent of L_mean in N without each run; None if it cannot be computed."""
    choice = study.choices.get(("val_loss", study.size))
    laws = [] if choice is None else [choice.get(law) for law in ("pure", "floor")]
    candidates = [each for each in laws if each is not None and each.influence]
    if not candidates:
        return None
    finding = study.get("val_loss", study.size, "pure")
    trials = finding.trials if finding is not None else ()
    figure, ((panel,),) = new_figure(SINGLE, 2.5)
    panel.axhline(0, color=INK, lw=0.6, zorder=1)
    handles: list[Any] = []
    for k, candidate in enumerate(candidates):
        style = LAW_STYLES[candidate.name]
        # The laws side by side, as in holdout_figure.
        shift = 1.04 ** (2 * k - len(candidates) + 1)
        x = np.array([each.x for each in candidate.influence]) * shift
        change = np.array([each.alpha_change for each in candidate.influence])
        face = style.colour if candidate.name == "floor" else "white"
        panel.vlines(x, 0, change, color=style.colour, lw=0.8, ls=style.line, zorder=2)
        size = marker_size(len(x), 2.0)
        panel.plot(
            x, change, style.marker, color=style.colour, mfc=face, mew=0.8, ms=size, zorder=3
        )
        label = f"{_NAMES[candidate.name]}, α = {signed(candidate.fit.alpha, '.3f')}"
        handles.append(
            Line2D([], [], ls="", marker=style.marker, color=style.colour, mfc=face, label=label)
        )
    panel.set(xscale="log", xlabel=SIZES[study.size])
    panel.set_ylabel("change of α without the run")
    panel.margins(x=0.1, y=0.15)
    _name_largest(panel, candidates, trials)
    logarithmic(panel, y=False)
    legend_above(figure, handles, 1)
    return figure


def _name_largest(panel: Axes, candidates: Sequence[Any], trials: Sequence[str]) -> None:
    """Annotate the run that changes the exponent most with its name."""
    influences = (each for candidate in candidates for each in candidate.influence)
    most = max(influences, key=lambda each: abs(each.alpha_change))
    # Point k of the fit is trial k. Without a finding there are no names.
    if most.point < len(trials):
        # The label goes to the side with more room: the square root is the middle of a log axis.
        side = 1 if most.x < np.sqrt(np.prod(panel.get_xlim())) else -1
        panel.annotate(
            trials[most.point], (most.x, most.alpha_change), (6 * side, 0),
            textcoords="offset points", ha="left" if side > 0 else "right", va="center", size=7,
            parse_math=False,  # a run's name may contain a dollar sign
        )  # fmt: skip


@styled
def forecasts(study: Study) -> Figure | None:
    """The graded forecasts: their intervals relative to the measured values; None without any."""
    graded = [each for each in study.forecasts if getattr(each, "state", None) == "graded"]
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
        Line2D([], [], color=style.colour, marker=style.marker, lw=1,
               label=f"{_NAMES[law]}")
        for law, style in LAW_STYLES.items() if law in ("pure", "floor")
    ]  # fmt: skip
    handles.append(Line2D([], [], color=INK, lw=0.8, label="measured"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3 if len(groups) > 1 else 2)
    return figure


def _grade_dot(grade: Any) -> Dot:
    style = LAW_STYLES[grade.law]
    low, high = (
        None if end is None else 100 * (end / grade.measured - 1) for end in (grade.low, grade.high)
    )
    name = f"{symbol(METRICS[grade.metric][0])}, {grade.law}"
    return Dot(name, 100 * grade.error, low, high, style.marker, style.colour, grade.headline)
