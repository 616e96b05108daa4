"""Multi-start minimisation: the best of many starts, for one problem or a batch of problems."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.objectives import Objective
from analysis.fitting.solver import minimise
from analysis.fitting.terms import Points, means_of_equal_x, residuals

Array = NDArray[np.float64]

_CELLS = 1_000_000  # (problem, point) pairs at a time, to limit memory
_SAME_OPTIMUM = 1e-6  # relative difference of objectives that counts as the same optimum


@dataclass(frozen=True)
class SearchResult:
    """The best optimum of each problem of a batch, (B, ...)."""

    theta: Array
    objective: Array
    gradient: Array  # largest component, relative: see solver.Minima
    agreed: Array  # share of starts that reached it
    best: NDArray[np.intp]  # index of the best start


def solve(
    points: Points,
    weights: Array,
    starts: Array,
    objective: Objective,
    log_floor: float | None = None,
    fixed: tuple[int, ...] = (),
    tolerance: float = 1e-11,
    near_optimum: bool = False,
) -> SearchResult:
    """The best optimum over `starts` (S, B or 1, p) under `weights` (B or 1, n).

    `fixed`, `tolerance`, `near_optimum`: see solver.minimise. Where E goes to zero it is set to
    exactly 0 (log E = -inf) and the other parameters are minimised again. Least squares of many
    points of equal x is solved on their means (terms.means_of_equal_x).
    """
    if objective.is_gaussian and not objective.of_loss:
        means = means_of_equal_x(points, weights)
        if means is not None:
            found = _solve(*means, starts, objective, log_floor, fixed, tolerance, near_optimum)
            return replace(found, objective=_sums_of_squares(points, weights, found.theta))
    return _solve(points, weights, starts, objective, log_floor, fixed, tolerance, near_optimum)


def _sums_of_squares(points: Points, weights: Array, theta: Array) -> Array:
    """(B,) weighted sums of the squared residuals at θ (B, p)."""
    rows = max(1, _CELLS // points.count)
    parts = []
    for first in range(0, len(theta), rows):
        part = np.arange(first, min(first + rows, len(theta)))
        w = weights if len(weights) == 1 else weights[part]
        parts.append((w * residuals(points.rows(part), theta[part]) ** 2).sum(1))
    return np.concatenate(parts)


def _solve(
    points: Points, weights: Array, starts: Array, objective: Objective, log_floor: float | None,
    fixed: tuple[int, ...], tolerance: float, near_optimum: bool,
) -> SearchResult:  # fmt: skip
    # The number of problems B: starts, weights and data sets have B rows or are shared by all.
    rows = max(starts.shape[1], len(weights), points.z.shape[0] if points.z.ndim == 2 else 1)
    floor_at = 2 * points.powers
    if points.law.floor and log_floor is not None:
        fixed = (*fixed, floor_at)
    start_count = len(starts)
    # Every start of every problem is a row of one batch, (S · B, p), in the order start by start.
    # Weights and data sets are repeated in the same order.
    all_starts = np.broadcast_to(starts, (start_count, rows, starts.shape[2]))
    all_starts = all_starts.reshape(start_count * rows, -1)
    all_points = (
        points if points.z.ndim == 1 else points.rows(np.tile(np.arange(rows), start_count))
    )
    shared = len(weights) == 1 or start_count == 1
    all_weights = weights if shared else np.tile(weights, (start_count, 1))
    minima = minimise(
        all_points, all_weights, all_starts, objective, fixed, tolerance, near_optimum
    )
    thetas, objectives, gradients = (
        array.reshape(start_count, rows, *array.shape[1:])
        for array in (minima.theta, minima.objective, minima.gradient)
    )
    best, row = objectives.argmin(0), np.arange(rows)
    least = objectives[best, row]
    # 1e-14: the objective of points exactly on the law is 0, and so is a relative tolerance.
    agreed = (objectives <= least * (1 + _SAME_OPTIMUM) + 1e-14).mean(0)
    theta, gradient = thetas[best, row], gradients[best, row]
    if points.law.floor and floor_at not in fixed:
        theta, least, gradient = _without_floor(
            points, weights, theta, least, gradient, objective, fixed, tolerance
        )
    return SearchResult(theta, least, gradient, agreed, best)


def _without_floor(
    points: Points, weights: Array, theta: Array, least: Array, gradient: Array,
    objective: Objective, fixed: tuple[int, ...], tolerance: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The optimum with E = 0 where E is almost zero and the objective with E = 0 is as low."""
    at = 2 * points.powers
    low = np.flatnonzero(theta[:, at] < points.bounds[0][at] + 5)  # E below e^5 times its bound
    if not len(low):
        return theta, least, gradient
    start = theta[low].copy()
    # No finite step reaches log E = -inf, so it is set, and the other parameters are minimised.
    start[:, at] = -np.inf
    low_weights = weights if len(weights) == 1 else weights[low]
    low_points = points.rows(low)
    minima = minimise(low_points, low_weights, start, objective, (*fixed, at), tolerance)
    # Where E is at its bound the minimum lies below the bound, so a larger rise is allowed.
    allowed = np.where(theta[low, at] <= points.bounds[0][at], 1e-4, _SAME_OPTIMUM)
    as_good = minima.objective <= least[low] * (1 + allowed) + 1e-14
    chosen = low[as_good]
    theta, least, gradient = theta.copy(), least.copy(), gradient.copy()
    theta[chosen], least[chosen] = minima.theta[as_good], minima.objective[as_good]
    gradient[chosen] = minima.gradient[as_good]
    return theta, least, gradient
