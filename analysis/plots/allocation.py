"""Figures of compute-optimal allocation: isoFLOP curves, and three approaches to N and D."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.compute_optimal.allocation import Approaches
from analysis.compute_optimal.approach import Approach
from analysis.compute_optimal.isoflop import IsoFlops
from analysis.compute_optimal.surface_optimum import optimum
from analysis.plots.axes import logarithmic, signed, tick
from analysis.plots.compute import COMPUTE
from analysis.plots.laws import SIZES
from analysis.plots.style import (
    BLUE,
    DASHES,
    DOUBLE,
    GREEN,
    INK,
    SINGLE,
    VERMILION,
    SeriesStyle,
    legend_above,
    new_figure,
    sequential_styles,
    styled,
)
from analysis.study import Study
from analysis.uncertainty.bootstrap import bootstrap
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

APPROACH_STYLES = {
    1: SeriesStyle(GREEN, "^", DASHES[3]),
    2: SeriesStyle(BLUE, "s", DASHES[1]),
    3: SeriesStyle(VERMILION, "o", DASHES[0]),
}
_RESAMPLES = 400  # of a band: enough for a figure


@styled
def isoflop(study: Study) -> Figure | None:
    """Loss against size at each budget with an optimum; None if there is no such budget."""
    approaches = study.allocation
    if approaches is None or not approaches.isoflops.minima:
        return None
    return isoflop_figure(
        approaches.isoflops, xlabel=SIZES[study.size], ylabel=f"$L$ ({study.unit('val_loss')})"
    )


@styled
def isoflop_figure(
    isoflops: IsoFlops, *, xlabel: str = SIZES["params_blocks"], ylabel: str = "$L$ (nats/token)"
) -> Figure:
    """The runs of each budget, their curve, and its minimum with the interval of N."""
    # Three keys in each row of the legend below the panel.
    rows = -(-len(isoflops.minima) // 3)
    figure, ((panel,),) = new_figure(SINGLE, 2.3 + 0.14 * rows)
    styles = sequential_styles(each.budget for each in isoflops.minima)
    for each in isoflops.minima:
        style = styles[each.budget]
        panel.plot(each.sizes, each.losses, style.marker, color=style.colour, ms=2.8, zorder=3)
        line = np.geomspace(each.sizes.min(), each.sizes.max(), 80)
        panel.plot(line, each.predict(line), color=style.colour, ls=style.line, lw=0.9, zorder=2)
        # The interval can be unbounded; an end far from the data would stretch the axis.
        ends = np.clip([each.N_interval.low, each.N_interval.high], line[0] / 1.5, line[-1] * 1.5)
        panel.plot(ends, [each.L, each.L], color=INK, lw=0.8, zorder=4)
        panel.plot(each.N, each.L, "*", ms=6.5, color=INK, mec="white", mew=0.4, zorder=5)
    panel.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    logarithmic(panel)
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, ls=style.line, ms=2.8,
               label=tick(float(f"{budget:.2g}")))
        for budget, style in styles.items()
    ]  # fmt: skip
    figure.legend(handles=handles, title="$C$ (FLOP)", loc="outside lower center", ncols=3)
    return figure


@styled
def allocation(study: Study) -> Figure | None:
    """The best N and D for a budget by each approach; None if no approach has a result."""
    approaches = study.allocation
    return (
        allocation_figure(approaches) if approaches is not None and approaches.estimates else None
    )


@styled
def allocation_figure(approaches: Approaches) -> Figure:
    """Best N (left) and D (right) against C: lines and points of each approach, and a band."""
    figure, ((sizes, tokens),) = new_figure(DOUBLE, 2.7, 1, 2)
    draw_allocation(sizes, tokens, approaches)
    handles = [approach_handle(each, _approach_label(each)) for each in approaches.estimates]
    for panel, label in ((sizes, SIZES[_size_of(approaches)]), (tokens, "$D$, training tokens")):
        panel.set(xlabel=COMPUTE, ylabel="best " + label)
    legend_above(figure, handles, 1)
    return figure


def draw_allocation(sizes: Axes, tokens: Axes, approaches: Approaches) -> None:
    """Draw the best N on one panel and the best D on the other, against C."""
    _points(sizes, tokens, approaches)
    for approach in approaches.estimates:
        style = APPROACH_STYLES[approach.number]
        low, high = approach.budgets
        for panel, best in ((sizes, approach.N), (tokens, approach.D)):
            # Within the data, and dotted up to the requested budget. Two points are enough: a
            # power law is a straight line on log axes.
            for start, stop, line in (
                (low, high, style.line),
                (high, approaches.budget, DASHES[3]),
            ):
                if stop > start:
                    ends = [start, stop]
                    panel.plot(ends, [best(C) for C in ends], color=style.colour, ls=line, lw=1.1)
    _band(sizes, tokens, approaches)
    for panel in (sizes, tokens):
        panel.set(xscale="log", yscale="log")
        logarithmic(panel)


def approach_handle(approach: Approach, label: str) -> Line2D:
    """The key of an approach in a legend."""
    style = APPROACH_STYLES[approach.number]
    return Line2D([], [], color=style.colour, ls=style.line, marker=style.marker, mfc="white",
                  mew=0.8, label=label)  # fmt: skip


def _size_of(approaches: Approaches) -> str:
    """The column of the sizes."""
    return approaches.frontier.params


def with_interval(value: float, span: Interval | None) -> str:
    """An exponent and its interval, if it has one, for a legend."""
    text = signed(value, ".3f")
    if span is None:
        return text
    return f"{text} [{signed(span.low, '.3f')}, {signed(span.high, '.3f')}]"


def _approach_label(approach: Approach) -> str:
    a = with_interval(approach.a, approach.a_interval)
    b = with_interval(approach.b, approach.b_interval)
    exponents = f"$N$ ∝ $C^a$, a = {a}; $D$ ∝ $C^b$, b = {b}"
    return f"{approach.number}, {approach.name}: {exponents}"


def _points(sizes: Axes, tokens: Axes, approaches: Approaches) -> None:
    """Draw the points of approach 1 (frontier points that are not bounds) and of approach 2 (minima
    of the isoFLOPs with intervals).
    """
    with_result = {each.number for each in approaches.estimates}
    front = approaches.frontier
    if 1 in with_result and front is not None:
        exact = ~front.censored
        style = APPROACH_STYLES[1]
        options: dict[str, Any] = {"color": style.colour, "mfc": "white", "mew": 0.8, "ms": 3}
        sizes.plot(front.flops[exact], front.size[exact], style.marker, **options)
        tokens.plot(front.flops[exact], front.tokens[exact], style.marker, **options)
    if 2 in with_result:
        style, cost = APPROACH_STYLES[2], approaches.isoflops.cost
        for each in approaches.isoflops.minima:
            ends = np.array([each.N_interval.low, each.N_interval.high])
            # As in isoflop_figure: an interval can be unbounded.
            ends = np.clip(ends, each.sizes.min() / 2, each.sizes.max() * 2)
            spans = ((sizes, each.N, ends), (tokens, each.D, cost.tokens(ends, each.budget)))
            for panel, best, span in spans:
                panel.plot([each.budget] * 2, span, color=style.colour, lw=0.8, zorder=3)
                panel.plot(each.budget, best, style.marker, color=style.colour, mfc="white",
                           mew=0.9, ms=3.4, zorder=4)  # fmt: skip


def _band(sizes: Axes, tokens: Axes, approaches: Approaches) -> None:
    """Draw the 95 % bootstrap band over runs of the surface's optimum, for approach 3."""
    answer = approaches.preferred
    if answer is None or approaches.fit is None:
        return
    budgets = np.geomspace(answer.budgets[0], max(answer.budgets[1], approaches.budget), 25)
    draws = bootstrap(approaches.fit, _RESAMPLES)
    # (resamples, 1), so that `optimum` broadcasts them against the budgets.
    columns = {name: values[:, None] for name, values in draws.values.items()}
    for panel, drawn in zip(
        (sizes, tokens), optimum(columns, approaches.isoflops.cost, budgets)[:2], strict=True
    ):
        # nan: the law of a resample can have no optimum.
        low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
        panel.fill_between(
            budgets, low, high, color=APPROACH_STYLES[3].colour, alpha=0.16, lw=0, zorder=1
        )
