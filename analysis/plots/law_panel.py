"""One fitted law on one panel: its points, line, 95 % band and extrapolation."""

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
from analysis.plots.axes import logarithmic, signed
from analysis.plots.style import (
    BLUE,
    DASHES,
    GREEN,
    GREY,
    INK,
    SINGLE,
    VERMILION,
    SeriesStyle,
    categorical_styles,
    legend_above,
    legend_inside,
    marker_size,
    new_figure,
    sequential_styles,
    styled,
)
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

LAW_STYLES = {
    "pure": SeriesStyle(INK, "s", DASHES[1]),
    "floor": SeriesStyle(VERMILION, "o", DASHES[0]),
    "logit": SeriesStyle(GREEN, "^", DASHES[2]),
}
_EXTRAPOLATED: Any = {"ls": (0, (1, 1.3)), "alpha": 0.6}  # line style outside the data
# Length of a line beyond the largest and the smallest point, as a fraction of the log range.
_AHEAD, _BACK = 0.3, 0.06
_MAX_SEEDS = 6  # shown by colour and marker; more seeds are shown by brightness


def law_band(fit: Fit, x: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Low and high end of the pointwise band of the law itself at `x`, in units of L.

    Linearised: log L ± t s √(gᵀ M⁻¹ g), with g the gradient with respect to θ, M = Σ w g gᵀ over
    the points, and s² the sum of squared log residuals over the degrees of freedom. It is an
    approximation for figures; the profile (`analysis.prediction_interval`) is exact for a law with
    E. Raises ValueError for a law of repeated data, FitError for parameters that are no optimum.
    """
    fit.refuse_other_origin()
    points, theta = fit.data.points, fit.theta[None]
    if points.repeats is not None:
        raise ValueError(f"{fit.law.name}: the band of a law of repeated data is not drawn")
    # The gradient at `x` in the fit's centred logs, to which θ refers. It does not depend on the
    # measured losses, so z = 0.
    arrays = [np.atleast_1d(each) for each in fit.law.arrays(x)]
    logs = tuple(np.log(a) - centre for a, centre in zip(arrays, points.centres, strict=True))
    at = replace(points, logs=logs, z=np.zeros_like(logs[0]))
    slopes = jacobian(at, theta)[0]
    information_matrix = information(points, fit.data.weights[None], theta)[0]
    # Not a fixed E (index 2 × powers of θ), nor an E of 0, whose gradient is 0 everywhere.
    free = np.array([
        k for k in range(len(information_matrix))
        if information_matrix[k, k] > 0 and not (fit.floor is not None and k == 2 * points.powers)
    ])  # fmt: skip
    degrees_of_freedom = fit.points - fit.free
    variance = float(np.sum(fit.data.weights * fit.residuals**2)) / degrees_of_freedom
    covariance = np.linalg.pinv(information_matrix[np.ix_(free, free)])
    # (m,): √(gᵀ M⁻¹ g) at each x. Rounding can make the square slightly negative.
    error = np.sqrt(np.maximum(np.einsum("im,ij,jm->m", slopes[free], covariance, slopes[free]), 0))
    half_width = float(stats.t.ppf((1 + level) / 2, degrees_of_freedom)) * np.sqrt(variance) * error
    log_L = np.log(fit.predict(x))
    return np.exp(log_L - half_width), np.exp(log_L + half_width)


def draw_law(
    panel: Axes,
    fit: Fit,
    *,
    style: SeriesStyle | None = None,
    label: str | None = None,
    band: bool | tuple[Array, Array, Array] = True,
    offset: float = 0.0,
    ahead: float = _AHEAD,
) -> None:
    """Draw the line of a law of one variable, dotted beyond its points.

    `offset` is subtracted from L. `band`: True for the linearised band, or (x, low, high) of
    another one. `ahead`: length of the line beyond the largest point, as a fraction of the log
    range.
    """
    style = LAW_STYLES[fit.law.name] if style is None else style
    x = np.asarray(fit.data.x, dtype=float)
    low, high = np.log(x.min()), np.log(x.max())
    # Three pieces: below, within and beyond the data.
    ends = (low - _BACK * (high - low), low, high, high + ahead * (high - low))
    for k, (start, stop) in enumerate(pairwise(ends)):
        x_line = np.exp(np.linspace(start, stop, 100 if k == 1 else 40))
        line_style = {"ls": style.line} if k == 1 else _EXTRAPOLATED
        panel.plot(
            x_line, fit.predict(x_line) - offset, color=style.colour, lw=1.1 if k == 1 else 0.9,
            label=label if k == 1 else None, zorder=2.5, **line_style,
        )  # fmt: skip
    if band is True:
        x_line = np.exp(np.linspace(ends[0], ends[-1], 120))
        band = (x_line, *law_band(fit, x_line))
    if band:
        x_line, band_low, band_high = band
        panel.fill_between(
            x_line,
            band_low - offset,
            band_high - offset,
            color=style.colour,
            alpha=0.14,
            lw=0,
            zorder=1.5,
        )


def seed_styles(seeds: Sequence[Any] | None) -> dict[Any, SeriesStyle]:
    """A style for each seed; the default style if there is only one."""
    # Seeds can be of several types, which Python does not compare with each other.
    different = (
        [] if seeds is None else sorted(set(seeds), key=lambda seed: (str(type(seed)), seed))
    )
    if len(different) < 2:
        return dict.fromkeys(different, SeriesStyle(BLUE, "o", "-"))
    if len(different) <= _MAX_SEEDS:
        return categorical_styles(different)
    # By rank: sequential_styles sorts its keys, but seeds can be of several types.
    styles = sequential_styles(range(len(different)))
    return {seed: styles[k] for k, seed in enumerate(different)}


def draw_points(panel: Axes, x: Array, y: Array, seeds: Sequence[Any] | None = None) -> None:
    """Draw the measured points, (n,) each; `seeds` (n,), if given, sets their styles."""
    if seeds is None or len(set(seeds)) < 2:
        size = marker_size(len(x))
        panel.plot(x, y, "o", color=BLUE, mec="white", mew=0.1 * size, ms=size, zorder=2.2)
        return
    labels = np.array([str(seed) for seed in seeds])
    for seed, style in seed_styles(seeds).items():
        of_seed = labels == str(seed)
        panel.plot(
            x[of_seed],
            y[of_seed],
            style.marker,
            color=style.colour,
            mfc="none",
            mew=0.9,
            zorder=2.2,
        )


def law_handles(laws: Sequence[str], seeds: Sequence[Any] | None, band: bool = True) -> list[Any]:
    """The handles of points, lines and bands for a legend of the whole figure."""
    styles = {f"seed {seed}": style for seed, style in seed_styles(seeds).items()}
    several = len(styles) > 1
    if not several:
        styles = {"measured": SeriesStyle(BLUE, "o", "-")}
    elif len(styles) > _MAX_SEEDS:
        styles = {f"{len(styles)} seeds, dark to bright": SeriesStyle(GREY, "o", "-")}
    handles: list[Any] = [
        Line2D([], [], ls="", marker=style.marker, color=style.colour, mew=0.9,
               mfc="none" if several else style.colour, label=name)
        for name, style in styles.items()
    ]  # fmt: skip
    names = {"pure": "pure power law", "floor": "power law above E", "logit": "law of odds"}
    for law in laws:
        style = LAW_STYLES[law]
        handles.append(Line2D([], [], color=style.colour, ls=style.line, label=names[law]))
    handles.append(Line2D([], [], color=GREY, ls=_EXTRAPOLATED["ls"], label="beyond the data"))
    if band:
        handles.append(Patch(color=GREY, alpha=0.3, lw=0, label="95 % of the law"))
    return handles


def fit_label(fit: Fit, alpha: Interval | None = None) -> str:
    """The legend label of a law's line: α with its interval, and E."""
    # A small exponent gets one more decimal, for about three significant digits.
    digits = 3 if abs(fit.alpha) >= 0.05 else 4
    text = f"α = {signed(fit.alpha, f'.{digits}f')}"
    if alpha is not None:
        text += f" [{_end(alpha.low, digits)}, {_end(alpha.high, digits)}]"
    if fit.law.floor:
        text += f", E = {fit.E:.3g}"
    return text.replace("-", "−")


def _end(value: float, digits: int) -> str:
    return signed(value, f".{digits}f") if np.isfinite(value) else "−∞" if value < 0 else "∞"


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
    """One law of one variable with its points, one column wide. Raises ValueError for a law of
    several variables.
    """
    if len(fit.law.variables) != 1:
        raise ValueError(
            f"{fit.law.formula} has {len(fit.law.variables)} variables; a figure needs a law of one"
        )
    figure, ((panel,),) = new_figure(SINGLE, 2.5)
    draw_points(panel, np.asarray(fit.data.x, dtype=float), fit.data.y, seeds)
    draw_law(panel, fit, band=band, label=fit_label(fit, alpha))
    panel.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    legend_inside(panel)
    logarithmic(panel)
    if len(set(seeds or ())) > 1:
        # [:-1]: without the handle "beyond the data".
        legend_above(figure, law_handles([], seeds, band=False)[:-1], 3)
    return figure
