"""The best size at one budget: the vertex of a parabola in log N of log L, or of L, or an error.

A parabola approximates a loss only near its minimum, so it is fitted only where there are sizes on
both sides of the minimum and close to it (Hoffmann et al. 2022, §3.2).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.compute_optimal.cost import Cost, count_sizes, six_nd
from analysis.format import percent
from analysis.uncertainty.intervals import Interval
from var_scaling.text import counted

Array = NDArray[np.float64]

MIN_SIZES = 5  # three parameters and two degrees of freedom
MAX_FACTOR = 4.0  # of N, on either side of the minimum; at 16 the vertex has an error of about 5 %
BUDGET_TOLERANCE = 0.05  # relative difference of C from the budget
_SLACK = 1.1  # of MAX_FACTOR, because the minimum lies between grid points


class IsoFlopError(ValueError):
    """These runs show no optimum at this `budget` (FLOPs)."""

    def __init__(self, budget: float, reason: str) -> None:
        super().__init__(budget, reason)  # both arguments, so that the error can be pickled
        self.budget, self.reason = budget, reason

    def __str__(self) -> str:
        return f"{self.budget:.3g} FLOPs: {self.reason}"


class TooFewPoints(IsoFlopError):
    """Fewer sizes than MIN_SIZES."""


class NotIsoFlop(IsoFlopError):
    """The runs have different training FLOPs."""


class OpensDownward(IsoFlopError):
    """The parabola has a maximum instead of a minimum."""


class NoInteriorMinimum(IsoFlopError):
    """The best size is at an edge of the sizes tried, or outside."""


class TooWide(IsoFlopError):
    """Too few sizes lie near the minimum."""


@dataclass(frozen=True)
class Parabola:
    """The best size at one budget. `N_interval` by Fieller, `L_interval` by the delta method."""

    budget: float  # FLOPs
    N: float
    D: float  # tokens that the budget pays for at N
    L: float
    N_interval: Interval  # infinite where the curvature is not significantly positive
    L_interval: Interval
    sizes: Array = field(repr=False)  # (n,), the fitted points
    losses: Array = field(repr=False)
    coefficients: Array = field(repr=False)  # of log L, or L, in 1, u, u², u = log(sizes / centre)
    centre: float
    left_out: int  # points outside the window
    in_loss: bool = False  # the parabola is of L; of log L else

    def predict(self, N: ArrayLike) -> Array:
        """L at sizes N."""
        u = np.log(np.asarray(N, dtype=float) / self.centre)
        value = np.polynomial.polynomial.polyval(u, self.coefficients)
        return np.asarray(value if self.in_loss else np.exp(value))

    @property
    def residuals(self) -> Array:
        """log(measured / parabola), or measured - parabola where it is of L, (n,)."""
        fitted = self.predict(self.sizes)
        return np.asarray(self.losses - fitted if self.in_loss else np.log(self.losses / fitted))

    @property
    def design(self) -> Array:
        """(n, 3): 1, u, u²."""
        return _powers(self.sizes, self.centre)

    @property
    def uncertainty(self) -> float:
        """Linearised variance of log N* for residuals of variance 1."""
        _, slope, curvature = self.coefficients
        # The gradient of -slope / (2 curvature) by the three coefficients.
        gradient = np.array([0, -1 / (2 * curvature), slope / (2 * curvature**2)])
        return float(np.square(np.linalg.pinv(self.design).T @ gradient).sum())


def parabola(
    N: ArrayLike,
    C: ArrayLike,
    L: ArrayLike,
    *,
    budget: float | None = None,
    cost: Cost | None = None,
    budget_tolerance: float = BUDGET_TOLERANCE,
    max_factor: float = MAX_FACTOR,
    drop_far_points: bool = True,
    in_loss: bool = False,
    level: float = 0.95,
) -> Parabola:
    """The parabola of log L in log N for runs at one budget (by default the median of `C`), or of L
    with `in_loss`.

    Points further than `max_factor` from the minimum are left out if `drop_far_points`; otherwise
    they raise TooWide. Raises an IsoFlopError where there is no optimum. `cost` (by default 6 N D)
    gives D.
    """
    # By size, then by loss: the ends of `sizes` are first and last, and row order has no effect.
    order = np.lexsort((np.asarray(L, dtype=float), np.asarray(N, dtype=float)))
    sizes, flops, losses = (np.asarray(each, dtype=float)[order] for each in (N, C, L))
    budget = float(np.median(flops)) if budget is None and len(flops) else budget or np.nan
    refuse_group(budget, sizes, flops, losses, budget_tolerance)
    y = losses if in_loss else np.log(losses)
    inside = _window(budget, sizes, y, max_factor)
    if not drop_far_points and not inside.all():
        raise TooWide(
            budget,
            f"over {max_factor:g}× from the minimum: {(~inside).sum()} of {len(sizes)} sizes",
        )
    left_out = int((~inside).sum())
    sizes, losses, y = sizes[inside], losses[inside], y[inside]
    # u = log(N / centre) keeps 1, u, u² far from collinear.
    centre = float(np.exp(np.log(sizes).mean()))
    design, coefficients = _fitted(sizes, y, centre)
    vertex = _vertex(budget, coefficients, sizes, centre)
    residuals = y - design @ coefficients
    degrees_of_freedom = len(sizes) - 3
    covariance = np.linalg.inv(design.T @ design) * (residuals @ residuals) / degrees_of_freedom
    t = float(stats.t.ppf((1 + level) / 2, degrees_of_freedom))
    low, high = _fieller(coefficients, covariance, t, vertex)
    # The parabola is flat at its vertex: to first order the error of N* adds nothing to that of L.
    at = np.array([1.0, vertex, vertex**2])
    value, error = float(at @ coefficients), t * float(np.sqrt(at @ covariance @ at))
    ends = np.array([value - error, value, value + error])
    L_low, at_vertex, L_high = map(float, ends if in_loss else np.exp(ends))
    size = float(centre * np.exp(vertex))
    basis = f"{len(sizes)} points, {count_sizes(sizes)} N, at {budget:.3g} FLOPs"
    return Parabola(
        budget, size, float((cost or six_nd()).tokens(size, budget)), at_vertex,
        Interval(float(centre * np.exp(low)), float(centre * np.exp(high)), level,
                 f"Fieller, t({degrees_of_freedom})", basis),
        Interval(L_low, L_high, level, f"delta method, t({degrees_of_freedom})", basis),
        sizes, losses, coefficients, centre, left_out, in_loss,
    )  # fmt: skip


def refuse_group(
    budget: float, sizes: Array, flops: Array, losses: Array, budget_tolerance: float
) -> None:
    """Raises an IsoFlopError for too few sizes, other budgets and wrong numbers."""
    if not all((np.isfinite(each) & (each > 0)).all() for each in (sizes, flops, losses)):
        raise IsoFlopError(budget, "sizes, FLOPs and losses must be positive numbers")
    count = count_sizes(sizes)
    if count < MIN_SIZES:
        raise TooFewPoints(budget, f"{counted(count, 'size')}; at least {MIN_SIZES} are needed")
    deviation = float(np.exp(np.abs(np.log(flops / budget)).max()) - 1)
    if deviation > budget_tolerance * (1 + 1e-9):
        raise NotIsoFlop(
            budget,
            f"runs differ by up to {percent(deviation, 1)} from it; "
            f"{budget_tolerance:.0%} is allowed",
        )


def _window(budget: float, sizes: Array, y: Array, max_factor: float) -> NDArray[np.bool_]:
    """(n,) the points near the minimum of `y`, by repeated fits until they stay the same."""
    u, max_distance, seen = np.log(sizes), np.log(max_factor * _SLACK), set[bytes]()
    middle, lowest = float(u.mean()), int(y.argmin())
    # The window depends on the minimum and the minimum on the window, hence the repeated fits. The
    # first fit uses all points.
    coefficients = _fitted(sizes, y, float(np.exp(middle)))[1]
    try:
        middle += _vertex(budget, coefficients, sizes, float(np.exp(middle)))
    except NoInteriorMinimum:
        # The best measured size is an end of the grid: the minimum lies outside the sizes tried.
        if lowest in (0, len(u) - 1):
            raise
        middle = float(u[lowest])  # with far points the parabola may have no minimum inside
    while True:
        inside = np.abs(u - middle) <= max_distance
        if count_sizes(sizes[inside]) < MIN_SIZES:
            raise TooWide(
                budget,
                f"of {len(sizes)} points {inside.sum()} are within {max_factor:g}× of the minimum "
                f"near N = {np.exp(middle):.3g}; at least {MIN_SIZES} sizes are needed: add sizes "
                "there",
            )
        # A window seen before means that the fits have settled, or alternate between a few windows.
        if inside.tobytes() in seen:
            return np.asarray(inside)
        seen.add(inside.tobytes())
        centre = float(np.exp(u[inside].mean()))
        coefficients = _fitted(sizes[inside], y[inside], centre)[1]
        middle = float(np.log(centre)) + _vertex(budget, coefficients, sizes[inside], centre)


def _fitted(sizes: Array, y: Array, centre: float) -> tuple[Array, Array]:
    """The design matrix (n, 3) and the coefficients (3,) by least squares of `y`, log L or L."""
    design = _powers(sizes, centre)
    return design, np.asarray(np.linalg.pinv(design) @ y, dtype=float)


def _powers(sizes: Array, centre: float) -> Array:
    """(n, 3): 1, u, u² with u = log(sizes / centre)."""
    u = np.log(sizes / centre)
    return np.stack([np.ones_like(u), u, u**2], axis=1)


def _vertex(budget: float, coefficients: Array, sizes: Array, centre: float) -> float:
    """u at the minimum. Raises OpensDownward or NoInteriorMinimum."""
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
            f"{sizes[-1]:.3g}: add sizes beyond the {end}",
        )
    return float(vertex)


def _fieller(c: Array, covariance: Array, t: float, vertex: float) -> tuple[float, float]:
    """Fieller's interval: all v for which a t test does not reject slope + 2 v · curvature = 0."""
    # slope + 2 v curvature is 0 at the vertex v; (this)² ≤ t² · variance is quadratic in v.
    s = t**2 * covariance
    quadratic = 4 * (c[2] ** 2 - s[2, 2])
    linear = 4 * (c[1] * c[2] - s[1, 2])
    constant = c[1] ** 2 - s[1, 1]
    # The curvature itself is not significantly positive: no v is rejected far away.
    if quadratic <= 0:
        return -np.inf, np.inf
    root = np.sqrt(max(linear**2 - 4 * quadratic * constant, 0.0))
    ends = (-linear - root) / (2 * quadratic), (-linear + root) / (2 * quadratic)
    # Rounding must not put the vertex outside its own interval.
    return min(float(ends[0]), vertex), max(float(ends[1]), vertex)
