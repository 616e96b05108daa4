"""One law for two families, the second's x divided by a factor: optimum, profile and bootstrap."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from analysis.fitting.initialization import starting_points
from analysis.fitting.laws import Law
from analysis.fitting.objectives import Objective
from analysis.fitting.points import FitData, FitError, check_points
from analysis.fitting.search import SearchResult, solve
from analysis.fitting.terms import Points

Array = NDArray[np.float64]

_MAX_SHIFT = 30.0  # log factor beyond which an end of an interval counts as infinite
_EXACT = 1e-24  # squared log residual below which points count as exactly on the law
_TOLERANCE = 1e-9  # of the log factor
_FIRST_STEP = 0.01  # of the profile, from the best shift
_GRID = np.linspace(-1, 1, 21)


@dataclass(frozen=True)
class PooledPoints:
    """The points of both families. A shift s divides the second family's x by exp(s)."""

    data: FitData
    second: NDArray[np.bool_]  # (n,), whether a point is of the second family
    objective: Objective

    @property
    def law(self) -> Law:
        return self.data.law

    @property
    def degrees_of_freedom(self) -> int:
        """Points minus parameters; the shift is one of the parameters."""
        return len(self.second) - len(self.law.names) - 1

    def shifted(self, shift: float) -> Points:
        points = self.data.points
        return replace(points, logs=(points.logs[0] - shift * self.second,))

    def at(
        self, shift: float, near: Array | None = None, weights: Array | None = None
    ) -> SearchResult:
        """The law's best fit at this shift, from the start `near` (p,) or from new starting points.

        `weights` (B, n): one row for each of B resamples.
        """
        points, point_weights = self.shifted(shift), self.data.weights
        if near is not None and np.isfinite(near).all():
            starts = near[None]
        else:  # also where log E is -inf: no step leaves E = 0, so `near` is no use as a start
            starts, near = starting_points(points, point_weights, None)[:3], None
        all_weights = point_weights[None] if weights is None else weights
        # The scatter of resamples needs less precision than an estimate.
        tolerance = 1e-11 if weights is None else 1e-8
        return solve(
            points, all_weights, starts[:, None], self.objective, tolerance=tolerance,
            near_optimum=near is not None,
        )  # fmt: skip


@dataclass(frozen=True)
class JointOptimum:
    """The joint optimum of shift and law parameters; the objective is scaled as in the solver."""

    shift: float
    objective: float
    theta: Array


def pool_points(
    law: Law, first: tuple[Array, Array], second: tuple[Array, Array], objective: Objective
) -> PooledPoints:
    """The points (x, y) of both families. Raises FitError if they are too few for law and shift."""
    x, y = (np.concatenate(both) for both in zip(first, second, strict=True))
    if len(law.variables) > 1:
        raise FitError(
            f"a multiplier needs a law of one variable; {law.formula} has {len(law.variables)}"
        )
    pooled = PooledPoints(check_points(law, x, y), np.arange(len(x)) >= len(first[0]), objective)
    if pooled.degrees_of_freedom < 1:
        raise FitError(
            f"both families have {len(x)} points together; {law.formula} and a factor have "
            f"{len(law.names) + 1} parameters and need at least {len(law.names) + 2} points"
        )
    return pooled


def best_shift(pooled: PooledPoints, initial_shifts: ArrayLike) -> JointOptimum:
    """The shift with the least objective: a grid around `initial_shifts`, then a line search.

    The grid is extended while its edge is best. Raises FitError if there is no minimum.
    """
    # The objective may have several minima in the shift: a grid first, then a search between the
    # neighbours of its best point.
    grid = np.unique(np.asarray(initial_shifts, dtype=float))
    middle = float(grid.mean())
    grid = np.concatenate([[grid[0] - 1], grid, [grid[-1] + 1]])
    solved = [pooled.at(shift) for shift in grid]
    while True:
        best = int(np.argmin([float(each.objective[0]) for each in solved]))
        if 0 < best < len(grid) - 1:
            break
        side = -1 if best == 0 else 1
        # Twice the present width, so few extensions are needed.
        further = grid[best] + side * 2 * (grid[-1] - grid[0])
        if abs(further - middle) > 10 * _MAX_SHIFT:
            raise FitError(
                "no compute factor between the families fits best: the losses hardly fall with x"
            )
        index = 0 if side < 0 else len(grid)
        grid = np.insert(grid, index, further)
        solved.insert(index, pooled.at(further))
    # From here on each fit starts at the last optimum, which is close.
    near = solved[best].theta[0]
    low, high = grid[best - 1], grid[best + 1]
    minimum = optimize.minimize_scalar(
        lambda shift: float(pooled.at(shift, near).objective[0]),
        bounds=(low, high), method="bounded", options={"xatol": _TOLERANCE},
    )  # fmt: skip
    fit = pooled.at(float(minimum.x), near)
    return JointOptimum(float(minimum.x), float(fit.objective[0]), fit.theta[0])


def profile_of_shift(pooled: PooledPoints, best: JointOptimum, level: float) -> tuple[float, float]:
    """The interval of shifts that an F test does not reject: its ends raise the sum of squares by
    the factor 1 + F(1, n - p) / (n - p).

    For least squares, and families of equal scatter. An end is infinite if no shift on its side is
    rejected.
    """
    if best.objective <= _EXACT * len(pooled.second):
        return best.shift, best.shift
    free = pooled.degrees_of_freedom
    # (S_fixed - S) / (S / (n - p)) ≤ F(1, n - p).
    allowed = best.objective * stats.f.ppf(level, 1, free) / free

    def excess(move: float) -> float:
        """The root of the objective's rise, minus its allowed value: nearly linear in `move`."""
        rise = float(pooled.at(best.shift + move, best.theta).objective[0]) - best.objective
        return float(np.sqrt(max(rise, 0.0)) - np.sqrt(allowed))

    ends = []
    for side in (-1, 1):
        # S is nearly quadratic in the shift, so its root is extrapolated linearly to the end, plus
        # 10 % so that the end lies inside the bracket. The step doubles where that is not enough.
        inside, root_rise = 0.0, excess(side * _FIRST_STEP) + np.sqrt(allowed)
        step = min(1.1 * _FIRST_STEP * np.sqrt(allowed) / root_rise, 1.0) if root_rise > 0 else 1.0
        while step < _MAX_SHIFT and excess(side * step) <= 0:
            inside, step = step, 2 * step
        if step >= _MAX_SHIFT:
            ends.append(side * np.inf)
        else:
            ends.append(optimize.brentq(excess, side * inside, side * step, xtol=1e-4 * step))
    return best.shift + ends[0], best.shift + ends[1]


def resampled_shifts(
    pooled: PooledPoints, best: JointOptimum, width: float, resamples: int, seed: int
) -> Array:
    """(B,) best shifts of bootstrap resamples, drawn within each family.

    All resamples are evaluated on a common grid around the best shift; each one's optimum is the
    vertex of the parabola through its three best grid points. The half-width of the grid starts at
    `width` and doubles until fewer than 1 % of the optima are at its edge. The remaining ones are
    set to the edge.
    """
    generator = np.random.default_rng(seed)
    weights = np.array([_drawn(pooled, generator) for _ in range(resamples)])
    for _ in range(5):
        shifts = best.shift + width * _GRID
        # All resamples share the grid, so each grid point is one batch of refits.
        objective = np.stack(
            [pooled.at(shift, best.theta, weights).objective for shift in shifts]
        )  # (grid, B)
        best_index = objective.argmin(0)
        edge = (best_index == 0) | (best_index == len(shifts) - 1)
        if edge.mean() < 0.01:
            break
        width *= 2
    # The vertex of the parabola through three points at distance `step`: (before - after) / (2
    # curvature) steps from the middle one.
    middle = np.clip(best_index, 1, len(shifts) - 2)
    before, at, after = (objective[middle + k, np.arange(resamples)] for k in (-1, 0, 1))
    curvature = before - 2 * at + after
    move = np.divide(
        before - after, 2 * curvature, out=np.zeros_like(curvature), where=curvature > 0
    )
    step = shifts[1] - shifts[0]
    return np.asarray(
        np.where(edge, shifts[best_index], shifts[middle] + step * np.clip(move, -1, 1))
    )


def _drawn(pooled: PooledPoints, generator: np.random.Generator) -> Array:
    """(n,) weights of one resample within each family; drawn again while it has too few different
    sizes for law and shift.
    """
    x = pooled.data.points.logs[0]
    for _ in range(1000):
        weights = np.zeros(len(x))
        # Within each family, so that both keep their number of runs.
        for family in (~pooled.second, pooled.second):
            count = int(family.sum())
            weights[family] = generator.multinomial(count, np.full(count, 1 / count))
        sizes = {(float(x[i]), bool(pooled.second[i])) for i in np.flatnonzero(weights)}
        if len(sizes) > len(pooled.law.names) + 1:
            return weights
    raise FitError("resamples of these points have too few different sizes for law and factor")
