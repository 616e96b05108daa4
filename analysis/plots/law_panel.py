"""One fitted law on one panel: its points, line and 95 % band, and where it is only a guess."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.fitting.fit import Fit
from analysis.fitting.terms import information, jacobian
from analysis.plots.axes import logarithmic
from analysis.plots.style import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    INK,
    SINGLE,
    VERMILION,
    Look,
    dot_size,
    few,
    key_above,
    key_inside,
    ordered,
    sheet,
    styled,
)
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

LAW_LOOKS = {
    "pure": Look(INK, "s", DASHES[1]),
    "floor": Look(VERMILION, "o", DASHES[0]),
    "logit": Look(GREEN, "^", DASHES[2]),
}
_BEYOND: Any = {"ls": (0, (1, 1.3)), "alpha": 0.6}  # where no point is
_ON, _BACK = 0.3, 0.06  # how far a line goes on past the largest and smallest, of the log range
_MOST_SEEDS = 6  # told apart by colour and marker; more by rising brightness


def law_band(fit: Fit, x: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Low and high of the law itself at `x`, pointwise, as `fit.law` takes it; units of L.

    Linearised: log L ± t s √(gᵀ M⁻¹ g), g the gradient by θ, M = Σ w g gᵀ over the points, s² the
    mean squared log residual over the degrees of freedom. It is for a picture: the profile
    (`analysis.prediction_interval`) is exact where a floor bends it. Raises ValueError for a law of
    repeated data.
    """
    points, theta = fit.given.points, fit.theta[None]
    if points.repeats is not None:
        raise ValueError(f"{fit.law.name}: the band of a law of repeated data is not drawn")
    arrays = [np.atleast_1d(each) for each in fit.law.arrays(x)]
    logs = tuple(np.log(a) - centre for a, centre in zip(arrays, points.centres, strict=True))
    at = replace(points, logs=logs, z=np.zeros_like(logs[0]))
    slopes = jacobian(at, theta)[0]
    known = information(points, fit.given.weights[None], theta)[0]
    free = np.array([
        k for k in range(len(known))
        if known[k, k] > 0 and not (fit.floor is not None and k == 2 * points.powers)
    ])  # fmt: skip
    spare = fit.points - fit.free
    variance = float(np.sum(fit.given.weights * fit.residuals**2)) / spare
    spread = np.linalg.pinv(known[np.ix_(free, free)])
    error = np.sqrt(np.maximum(np.einsum("im,ij,jm->m", slopes[free], spread, slopes[free]), 0))
    reach = float(stats.t.ppf((1 + level) / 2, spare)) * np.sqrt(variance) * error
    line = np.log(fit.predict(x))
    return np.exp(line - reach), np.exp(line + reach)


def draw_law(
    panel: Axes,
    fit: Fit,
    *,
    look: Look | None = None,
    label: str | None = None,
    band: bool | tuple[Array, Array, Array] = True,
    offset: float = 0.0,
    on: float = _ON,
) -> None:
    """The line of a law of one variable, dotted beyond its points. `offset` is taken off L.

    `band`: True for the linearised one, or (x, low, high) of another. `on`: how far the line goes
    on past the largest point, in shares of the log range.
    """
    look = LAW_LOOKS[fit.law.name] if look is None else look
    x = np.asarray(fit.given.x, dtype=float)
    low, high = np.log(x.min()), np.log(x.max())
    ends = (low - _BACK * (high - low), low, high, high + on * (high - low))
    for k, (start, stop) in enumerate(pairwise(ends)):
        at = np.exp(np.linspace(start, stop, 100 if k == 1 else 40))
        how = {"ls": look.line} if k == 1 else _BEYOND
        panel.plot(
            at, fit.predict(at) - offset, color=look.colour, lw=1.1 if k == 1 else 0.9,
            label=label if k == 1 else None, zorder=2.5, **how,
        )  # fmt: skip
    if band is True:
        at = np.exp(np.linspace(ends[0], ends[-1], 120))
        band = (at, *law_band(fit, at))
    if band:
        at, under, over = band
        panel.fill_between(
            at, under - offset, over - offset, color=look.colour, alpha=0.14, lw=0, zorder=1.5
        )


def seed_looks(seeds: Sequence[Any] | None) -> dict[Any, Look]:
    """One look a seed; all alike where there is one, or none is known."""
    different = (
        [] if seeds is None else sorted(set(seeds), key=lambda seed: (str(type(seed)), seed))
    )
    if len(different) < 2:
        return dict.fromkeys(different, Look(BLUE, "o", "-"))
    if len(different) <= _MOST_SEEDS:
        return few(different)
    looks = ordered(range(len(different)))
    return {seed: looks[k] for k, seed in enumerate(different)}


def draw_points(panel: Axes, x: Array, y: Array, seeds: Sequence[Any] | None = None) -> None:
    """The measured points, (n,) each; `seeds` (n,) tells runs apart that differ in it alone."""
    if seeds is None or len(set(seeds)) < 2:
        size = dot_size(len(x))
        panel.plot(x, y, "o", color=BLUE, mec="white", mew=0.1 * size, ms=size, zorder=2.2)
        return
    labels = np.array([str(seed) for seed in seeds])
    for seed, look in seed_looks(seeds).items():
        own = labels == str(seed)
        panel.plot(x[own], y[own], look.marker, color=look.colour, mfc="none", mew=0.9, zorder=2.2)


def law_handles(laws: Sequence[str], seeds: Sequence[Any] | None, band: bool = True) -> list[Any]:
    """What points, lines and bands mean, for a legend of the whole figure."""
    looks = {f"seed {seed}": look for seed, look in seed_looks(seeds).items()}
    several = len(looks) > 1
    if not several:
        looks = {"measured": Look(BLUE, "o", "-")}
    elif len(looks) > _MOST_SEEDS:
        looks = {f"{len(looks)} seeds, dark to bright": Look(GREY, "o", "-")}
    handles: list[Any] = [
        Line2D([], [], ls="", marker=look.marker, color=look.colour, mew=0.9,
               mfc="none" if several else look.colour, label=name)
        for name, look in looks.items()
    ]  # fmt: skip
    names = {"pure": "pure power law", "floor": "power law above a floor", "logit": "law of odds"}
    for law in laws:
        look = LAW_LOOKS[law]
        handles.append(Line2D([], [], color=look.colour, ls=look.line, label=names[law]))
    handles.append(Line2D([], [], color=GREY, ls=_BEYOND["ls"], label="beyond the data"))
    if band:
        handles.append(Patch(color=GREY, alpha=0.3, lw=0, label="95 % of the law"))
    return handles


def numbers(fit: Fit, alpha: Interval | None = None) -> str:
    """α with its interval, and E: what a line's entry in a legend says."""
    digits = 3 if abs(fit.alpha) >= 0.05 else 4
    said = f"α = {fit.alpha:.{digits}f}"
    if alpha is not None:
        said += f" [{_end(alpha.low, digits)}, {_end(alpha.high, digits)}]"
    if fit.law.floor:
        said += f", E = {fit.E:.3g}"
    return said.replace("-", "−")


def _end(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "−∞" if value < 0 else "∞"


@styled
def law_figure(
    fit: Fit,
    band: bool = True,
    *,
    xlabel: str = "x",
    ylabel: str = "L",
    seeds: Sequence[Any] | None = None,
    alpha: Interval | None = None,
) -> Figure:
    """One law of one variable with its points, one column wide. Raises ValueError for another."""
    if len(fit.law.variables) != 1:
        raise ValueError(f"{fit.law.formula} has {len(fit.law.variables)} variables: draw a slice")
    figure, ((panel,),) = sheet(SINGLE, 2.5)
    draw_points(panel, np.asarray(fit.given.x, dtype=float), fit.given.y, seeds)
    draw_law(panel, fit, band=band, label=numbers(fit, alpha))
    panel.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    key_inside(panel)
    logarithmic(panel)
    if len(set(seeds or ())) > 1:
        key_above(figure, law_handles([], seeds, band=False)[:-1], 3)
    return figure
