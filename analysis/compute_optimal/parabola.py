"""The best size at one budget: the vertex of a parabola of log L in log N, or a typed refusal.

A parabola is a fair picture of a loss only near its minimum, so runs get one where the minimum was
seen from both sides and the sizes lie close about it (Hoffmann et al. 2022, §3.2).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.compute_optimal.cost import Cost, different, six_nd
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

LEAST = 5  # points: three make a parabola, two are left to judge it by
WIDEST = 4.0  # factor on either side of the minimum; at 16 the vertex is some 5 % off
SPREAD = 0.05  # relative, of C about its median
_SLACK = 1.1  # a grid's minimum is not on its middle point


class IsoFlopError(ValueError):
    """These runs show no optimum at this budget; `budget` in FLOPs."""

    def __init__(self, budget: float, why: str) -> None:
        super().__init__(budget, why)  # so that it can be pickled
        self.budget, self.why = budget, why

    def __str__(self) -> str:
        return f"{self.budget:.3g} FLOPs: {self.why}"


class TooFewPoints(IsoFlopError):
    """Fewer sizes than LEAST."""


class NotIsoFlop(IsoFlopError):
    """The runs did not spend the same."""


class OpensDownward(IsoFlopError):
    """The parabola has a maximum."""


class NoInteriorMinimum(IsoFlopError):
    """The best size is at an edge of the grid, or beyond."""


class TooWide(IsoFlopError):
    """Too few sizes lie near the minimum."""


@dataclass(frozen=True)
class Parabola:
    """The best size at one budget. `N_interval` by Fieller, `L_interval` by the delta method."""

    budget: float  # FLOPs
    N: float
    D: float  # tokens that the budget pays for at N
    L: float
    N_interval: Interval  # infinite where the data do not tell that it opens upward
    L_interval: Interval
    sizes: Array = field(repr=False)  # (n,), what it was fitted to
    losses: Array = field(repr=False)
    coefficients: Array = field(repr=False)  # of log L in 1, u, u², u = log(sizes / centre)
    centre: float
    left_out: int  # points outside the window

    def predict(self, N: ArrayLike) -> Array:
        """L at sizes N, for a figure."""
        u = np.log(np.asarray(N, dtype=float) / self.centre)
        return np.asarray(np.exp(np.polynomial.polynomial.polyval(u, self.coefficients)))

    @property
    def residuals(self) -> Array:
        """log(measured / parabola), (n,)."""
        return np.asarray(np.log(self.losses / self.predict(self.sizes)))

    @property
    def design(self) -> Array:
        """(n, 3): 1, u, u²."""
        return _powers(self.sizes, self.centre)

    @property
    def uncertainty(self) -> float:
        """Variance of log N* for residuals of variance one, linearised: small where it is sharp."""
        _, slope, curvature = self.coefficients
        gradient = np.array([0, -1 / (2 * curvature), slope / (2 * curvature**2)])
        return float(np.square(np.linalg.pinv(self.design).T @ gradient).sum())


def parabola(
    N: ArrayLike,
    C: ArrayLike,
    L: ArrayLike,
    *,
    budget: float | None = None,
    cost: Cost | None = None,
    spread: float = SPREAD,
    widest: float = WIDEST,
    narrow: bool = True,
    level: float = 0.95,
) -> Parabola:
    """The parabola of log L in log N of runs at one budget (by default the median of `C`).

    Points further than a factor `widest` from the minimum are left out if `narrow`, else refused.
    Raises one of the IsoFlopErrors. `cost` (by default 6 N D) gives D.
    """
    order = np.lexsort((np.asarray(L, dtype=float), np.asarray(N, dtype=float)))
    sizes, flops, losses = (np.asarray(each, dtype=float)[order] for each in (N, C, L))
    budget = float(np.median(flops)) if budget is None and len(flops) else budget or np.nan
    _refuse_group(budget, sizes, flops, losses, spread)
    inside = _window(budget, sizes, losses, widest)
    if not narrow and not inside.all():
        raise TooWide(budget, f"{(~inside).sum()} of {len(sizes)} sizes are over {widest:g}× off")
    left_out = int((~inside).sum())
    sizes, losses = sizes[inside], losses[inside]
    centre = float(np.exp(np.log(sizes).mean()))
    design, coefficients = _fitted(sizes, losses, centre)
    vertex = _vertex(budget, coefficients, sizes, centre)
    residuals = np.log(losses) - design @ coefficients
    spare = len(sizes) - 3
    covariance = np.linalg.inv(design.T @ design) * (residuals @ residuals) / spare
    t = float(stats.t.ppf((1 + level) / 2, spare))
    low, high = _fieller(coefficients, covariance, t, vertex)
    at = np.array([1.0, vertex, vertex**2])
    log_L, error = float(at @ coefficients), t * float(np.sqrt(at @ covariance @ at))
    size = float(centre * np.exp(vertex))
    basis = f"{len(sizes)} points, {different(sizes)} N, at {budget:.3g} FLOPs"
    return Parabola(
        budget, size, float((cost or six_nd()).tokens(size, budget)), float(np.exp(log_L)),
        Interval(float(centre * np.exp(low)), float(centre * np.exp(high)), level,
                 f"Fieller, t({spare})", basis),
        Interval(float(np.exp(log_L - error)), float(np.exp(log_L + error)), level,
                 f"delta method, t({spare})", basis),
        sizes, losses, coefficients, centre, left_out,
    )  # fmt: skip


def _refuse_group(budget: float, sizes: Array, flops: Array, losses: Array, spread: float) -> None:
    if not all((np.isfinite(each) & (each > 0)).all() for each in (sizes, flops, losses)):
        raise IsoFlopError(budget, "sizes, FLOPs and losses must be positive numbers")
    count = different(sizes)
    if count < LEAST:
        raise TooFewPoints(budget, f"{count} sizes; {LEAST} are the least")
    off = float(np.exp(np.abs(np.log(flops / budget)).max()) - 1)
    if off > spread * (1 + 1e-9):
        raise NotIsoFlop(
            budget, f"runs spent up to {off:.1%} more or less; {spread:.0%} is the most"
        )


def _window(budget: float, sizes: Array, losses: Array, widest: float) -> NDArray[np.bool_]:
    """The points about the minimum, found by fitting and looking again until they stay the same."""
    u, reach, seen = np.log(sizes), np.log(widest * _SLACK), set[bytes]()
    middle, lowest = float(u.mean()), int(losses.argmin())
    coefficients = _fitted(sizes, losses, float(np.exp(middle)))[1]
    try:
        middle += _vertex(budget, coefficients, sizes, float(np.exp(middle)))
    except NoInteriorMinimum:
        if lowest in (0, len(u) - 1):
            raise
        middle = float(u[lowest])  # far from its minimum the loss is no parabola
    while True:
        inside = np.abs(u - middle) <= reach
        if different(sizes[inside]) < LEAST:
            raise TooWide(
                budget,
                f"of {len(sizes)} points {inside.sum()} lie within {widest:g}× of the minimum near "
                f"N = {np.exp(middle):.3g}; {LEAST} sizes are the least: add sizes there",
            )
        if inside.tobytes() in seen:
            return np.asarray(inside)
        seen.add(inside.tobytes())
        centre = float(np.exp(u[inside].mean()))
        coefficients = _fitted(sizes[inside], losses[inside], centre)[1]
        middle = float(np.log(centre)) + _vertex(budget, coefficients, sizes[inside], centre)


def _fitted(sizes: Array, losses: Array, centre: float) -> tuple[Array, Array]:
    design = _powers(sizes, centre)
    return design, np.asarray(np.linalg.pinv(design) @ np.log(losses), dtype=float)


def _powers(sizes: Array, centre: float) -> Array:
    u = np.log(sizes / centre)
    return np.stack([np.ones_like(u), u, u**2], axis=1)


def _vertex(budget: float, coefficients: Array, sizes: Array, centre: float) -> float:
    _, slope, curvature = coefficients
    if curvature <= 0:
        raise OpensDownward(budget, "the parabola opens downward: its vertex is the worst size")
    vertex = -slope / (2 * curvature)
    low, high = np.log(sizes[[0, -1]] / centre)
    if not low < vertex < high:
        end = "smallest" if vertex <= low else "largest"
        at = f"N = {centre * np.exp(vertex):.3g}" if abs(vertex) < 100 else "far away"
        raise NoInteriorMinimum(
            budget,
            f"the minimum ({at}) is not inside the sizes tried, {sizes[0]:.3g} to "
            f"{sizes[-1]:.3g}: go on past the {end}",
        )
    return float(vertex)


def _fieller(c: Array, covariance: Array, t: float, vertex: float) -> tuple[float, float]:
    """All v for which slope + 2 v · curvature = 0 is not rejected by a t test."""
    s = t**2 * covariance
    quadratic = 4 * (c[2] ** 2 - s[2, 2])
    linear = 4 * (c[1] * c[2] - s[1, 2])
    constant = c[1] ** 2 - s[1, 1]
    if quadratic <= 0:
        return -np.inf, np.inf
    root = np.sqrt(max(linear**2 - 4 * quadratic * constant, 0.0))
    ends = (-linear - root) / (2 * quadratic), (-linear + root) / (2 * quadratic)
    return min(float(ends[0]), vertex), max(float(ends[1]), vertex)
