"""The best of many starts, for one problem or a batch of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.objectives import Objective
from analysis.fitting.solver import minimise
from analysis.fitting.terms import Points

Array = NDArray[np.float64]

_SAME = 1e-6  # relative difference of objectives that counts as the same optimum


@dataclass(frozen=True)
class Solved:
    """The best optimum of each problem of a batch, (B, ...)."""

    theta: Array
    objective: Array
    gradient: Array
    agreed: Array  # share of starts that reached it
    best: NDArray[np.intp]  # which start did


def solve(
    points: Points,
    weights: Array,
    starts: Array,
    objective: Objective,
    log_floor: float | None = None,
    held: tuple[int, ...] = (),
    tolerance: float = 1e-11,
    near: bool = False,
) -> Solved:
    """The best optimum over `starts` (S, B or 1, p) under `weights` (B or 1, n).

    `near`: see solver.minimise. A floor that runs to nothing is set to exactly nothing,
    log E = -inf, and the rest solved again.
    """
    rows = max(starts.shape[1], len(weights), points.z.shape[0] if points.z.ndim == 2 else 1)
    floor_at = 2 * points.powers
    if points.law.floor and log_floor is not None:
        held = (*held, floor_at)
    many = len(starts)
    all_starts = np.broadcast_to(starts, (many, rows, starts.shape[2])).reshape(many * rows, -1)
    repeated = points if points.z.ndim == 1 else points.rows(np.tile(np.arange(rows), many))
    all_weights = weights if len(weights) == 1 else np.tile(weights, (many, 1))
    ends = minimise(repeated, all_weights, all_starts, objective, held, tolerance, near)
    thetas, reached, gradients = (
        piece.reshape(many, rows, *piece.shape[1:])
        for piece in (ends.theta, ends.objective, ends.gradient)
    )
    best, row = reached.argmin(0), np.arange(rows)
    least = reached[best, row]
    agreed = (reached <= least * (1 + _SAME) + 1e-14).mean(0)
    theta, gradient = thetas[best, row], gradients[best, row]
    if points.law.floor and floor_at not in held:
        theta, least, gradient = _without_floor(
            points, weights, theta, least, gradient, objective, held, tolerance
        )
    return Solved(theta, least, gradient, agreed, best)


def _without_floor(
    points: Points, weights: Array, theta: Array, least: Array, gradient: Array,
    objective: Objective, held: tuple[int, ...], tolerance: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Where E has run to (nearly) nothing: the law without it, if that is as good."""
    at = 2 * points.powers
    low = np.flatnonzero(theta[:, at] < points.bounds[0][at] + 5)
    if not len(low):
        return theta, least, gradient
    start = theta[low].copy()
    start[:, at] = -np.inf
    some = weights if len(weights) == 1 else weights[low]
    fewer = points.rows(low)
    end = minimise(fewer, some, start, objective, (*held, at), tolerance)
    allowed = np.where(theta[low, at] <= points.bounds[0][at], 1e-4, _SAME)  # at rest: E wants less
    as_good = end.objective <= least[low] * (1 + allowed) + 1e-14
    chosen = low[as_good]
    theta, least, gradient = theta.copy(), least.copy(), gradient.copy()
    theta[chosen], least[chosen] = end.theta[as_good], end.objective[as_good]
    gradient[chosen] = end.gradient[as_good]
    return theta, least, gradient
