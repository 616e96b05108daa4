"""Figures of how best to spend compute: isoFLOP parabolas, and three approaches to N and D."""

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
    Look,
    key_above,
    ordered,
    sheet,
    styled,
)
from analysis.study import Study
from analysis.uncertainty.bootstrap import bootstrap

Array = NDArray[np.float64]

LOOKS = {
    1: Look(GREEN, "^", DASHES[3]),
    2: Look(BLUE, "s", DASHES[1]),
    3: Look(VERMILION, "o", DASHES[0]),
}
_RESAMPLES = 400  # of a band that is only looked at


@styled
def isoflop(study: Study) -> Figure | None:
    """Loss against size at each budget that shows an optimum; None where none does."""
    found = study.allocation
    if found is None or not found.isoflops.parabolas:
        return None
    return isoflop_figure(found.isoflops, ylabel=f"$L$ ({study.unit('val_loss')})")


@styled
def isoflop_figure(
    found: IsoFlops, *, xlabel: str = SIZES["params_blocks"], ylabel: str = "$L$ (nats/token)"
) -> Figure:
    """The parabola of each budget through its runs, its minimum with the interval of N there."""
    rows = -(-len(found.parabolas) // 3)
    figure, ((panel,),) = sheet(SINGLE, 2.3 + 0.14 * rows)
    looks = ordered(each.budget for each in found.parabolas)
    for each in found.parabolas:
        look = looks[each.budget]
        panel.plot(each.sizes, each.losses, look.marker, color=look.colour, ms=2.8, zorder=3)
        line = np.geomspace(each.sizes.min(), each.sizes.max(), 80)
        panel.plot(line, each.predict(line), color=look.colour, ls=look.line, lw=0.9, zorder=2)
        ends = np.clip([each.N_interval.low, each.N_interval.high], line[0] / 1.5, line[-1] * 1.5)
        panel.plot(ends, [each.L, each.L], color=INK, lw=0.8, zorder=4)
        panel.plot(each.N, each.L, "*", ms=6.5, color=INK, mec="white", mew=0.4, zorder=5)
    panel.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    logarithmic(panel)
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, ls=look.line, ms=2.8,
               label=tick(float(f"{budget:.2g}")))
        for budget, look in looks.items()
    ]  # fmt: skip
    figure.legend(handles=handles, title="$C$ (FLOP)", loc="outside lower center", ncols=3)
    return figure


@styled
def allocation(study: Study) -> Figure | None:
    """The best N and D for a budget by each approach; None where all three are refused."""
    found = study.allocation
    return allocation_figure(found) if found is not None and found.answers else None


@styled
def allocation_figure(found: Approaches) -> Figure:
    """Best N (left) and D (right) against C: lines of the approaches, their points, 3's band."""
    figure, ((sizes, tokens),) = sheet(DOUBLE, 2.7, 1, 2)
    _points(sizes, tokens, found)
    handles = []
    for each in found.answers:
        look = LOOKS[each.number]
        low, high = each.budgets
        for panel, best in ((sizes, each.N), (tokens, each.D)):
            for start, stop, line in ((low, high, look.line), (high, found.budget, DASHES[3])):
                if stop > start:
                    ends = [start, stop]
                    panel.plot(ends, [best(C) for C in ends], color=look.colour, ls=line, lw=1.1)
        handles.append(Line2D([], [], color=look.colour, ls=look.line, marker=look.marker,
                              mfc="white", mew=0.8, label=_said(each)))  # fmt: skip
    _band(sizes, tokens, found)
    for panel, label in ((sizes, SIZES[_size_of(found)]), (tokens, "$D$, training tokens")):
        panel.set(xscale="log", yscale="log", xlabel=COMPUTE, ylabel="best " + label)
        logarithmic(panel)
    key_above(figure, handles, 1)
    return figure


def _size_of(found: Approaches) -> str:
    """The column that sizes are counted by."""
    return found.frontier.params if found.frontier is not None else "params_blocks"


def _said(each: Approach) -> str:
    spans = [
        f"{signed(value, '.3f')} [{signed(span.low, '.3f')}, {signed(span.high, '.3f')}]"
        for value, span in ((each.a, each.a_interval), (each.b, each.b_interval))
    ]
    return f"{each.number}, {each.name}: $N$ ∝ $C^a$, a = {spans[0]}; $D$ ∝ $C^b$, b = {spans[1]}"


def _points(sizes: Axes, tokens: Axes, found: Approaches) -> None:
    """What approaches 1 and 2 read off: frontier points that are no bound, vertices and spans."""
    numbers = {each.number for each in found.answers}
    front = found.frontier
    if 1 in numbers and front is not None:
        own = ~front.censored
        look = LOOKS[1]
        style: dict[str, Any] = {"color": look.colour, "mfc": "white", "mew": 0.8, "ms": 3}
        sizes.plot(front.flops[own], front.size[own], look.marker, **style)
        tokens.plot(front.flops[own], front.tokens[own], look.marker, **style)
    if 2 in numbers:
        look, cost = LOOKS[2], found.isoflops.cost
        for each in found.isoflops.parabolas:
            ends = np.array([each.N_interval.low, each.N_interval.high])
            ends = np.clip(ends, each.sizes.min() / 2, each.sizes.max() * 2)
            spans = ((sizes, each.N, ends), (tokens, each.D, cost.tokens(ends, each.budget)))
            for panel, best, span in spans:
                panel.plot([each.budget] * 2, span, color=look.colour, lw=0.8, zorder=3)
                panel.plot(each.budget, best, look.marker, color=look.colour, mfc="white", mew=0.9,
                           ms=3.4, zorder=4)  # fmt: skip


def _band(sizes: Axes, tokens: Axes, found: Approaches) -> None:
    """95 % of the surface's optima, by resampled runs, for approach 3."""
    answer = found.decided
    if answer is None or found.fit is None:
        return
    at = np.geomspace(answer.budgets[0], max(answer.budgets[1], found.budget), 25)
    draws = bootstrap(found.fit, _RESAMPLES)
    columns = {name: values[:, None] for name, values in draws.values.items()}
    for panel, drawn in zip(
        (sizes, tokens), optimum(columns, found.isoflops.cost, at)[:2], strict=True
    ):
        low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
        panel.fill_between(at, low, high, color=LOOKS[3].colour, alpha=0.16, lw=0, zorder=1)
