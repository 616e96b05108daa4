"""Where a fit starts: variable projection. With the exponents given, the rest is linear."""

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.terms import Points, repeated

Array = NDArray[np.float64]

_EXPONENTS = np.geomspace(0.01, 4.0, 24)
_REPEATS = (1.0, 6.0, 40.0)  # R* to start from
_LEAST_SHARE = 1e-3  # of the typical loss, for a term that the linear solve wants negative
_BEST = 10


def seeds(points: Points, weights: Array, floor: float | None) -> Array:
    """(starts, p) values of θ to start from, the most promising first.

    For each exponent, or pair of them, of a grid: the coefficients and the floor by linear least
    squares of relative residuals under `weights` (n,). Of the grid, the best of its neighbourhood
    are kept, so that starts lie apart. `floor`: log E centred where it is fixed.
    """
    if points.law.odds:
        return _line(points, weights)
    if points.repeats is None:
        return _projected(points, points.logs, weights, floor)
    starts = []
    for passes in _REPEATS:
        log_worth = repeated(points, np.array([[np.log(passes)]]))[0][0]
        found = _projected(points, (points.logs[0], log_worth), weights, floor)
        starts.append(np.column_stack([found, np.full(len(found), np.log(passes))]))
    return np.concatenate(starts)


def _line(points: Points, weights: Array) -> Array:
    """The straight line of the log odds."""
    odds = points.z + points.height - np.log(-np.expm1(points.z + points.height))
    slope, offset = np.polyfit(points.logs[0], odds, 1, w=np.sqrt(weights))
    return np.array([[offset, -slope]])


def _projected(
    points: Points, logs: tuple[Array, ...], weights: Array, floor: float | None
) -> Array:
    exponents = np.stack(
        [axis.ravel() for axis in np.meshgrid(*[_EXPONENTS] * len(logs), indexing="ij")], axis=1
    )  # (grid, powers)
    if not points.law.floor and len(logs) == 1:  # a straight line needs no grid, and may rise
        slope, offset = np.polyfit(logs[0], points.z, 1, w=np.sqrt(weights))
        return np.array([[offset, -slope]])
    y = np.exp(points.z)
    columns = [np.exp(-exponents[:, k, None] * log) / y for k, log in enumerate(logs)]
    target = np.ones_like(y)
    if points.law.floor and floor is None:
        columns.append(np.broadcast_to(1 / y, columns[0].shape))
    elif floor is not None:
        target = 1 - np.exp(floor) / y
    design = np.stack(columns, axis=-1) * np.sqrt(weights)[:, None]  # (grid, n, terms)
    aim = target * np.sqrt(weights)
    normal = np.einsum("gnp,gnq->gpq", design, design)
    diagonal = np.einsum("gpp->gp", normal)
    normal = normal + 1e-9 * diagonal[:, :, None] * np.eye(normal.shape[-1])
    right = np.einsum("gnp,n->gp", design, aim)
    solved = np.linalg.solve(normal, right[..., None])[..., 0]
    solved = np.maximum(solved, _LEAST_SHARE)
    misfit = np.square(np.einsum("gnp,gp->gn", design, solved) - aim).sum(1)
    chosen = _apart(misfit, len(logs))
    theta = np.empty((len(chosen), 2 * len(logs) + points.law.floor))
    for k in range(len(logs)):
        theta[:, 2 * k] = np.log(solved[chosen, k])
        theta[:, 2 * k + 1] = exponents[chosen, k]
    if points.law.floor:
        theta[:, 2 * len(logs)] = floor if floor is not None else np.log(solved[chosen, -1])
    return theta


def _apart(misfit: Array, powers: int) -> NDArray[np.intp]:
    """The best grid point of each block of 4 (4 × 4) neighbours, the best blocks first."""
    blocks = np.arange(len(_EXPONENTS)) // 4
    if powers == 2:
        width = len(_EXPONENTS)
        blocks = (blocks[:, None] * width + blocks[None, :]).ravel()
    order = np.argsort(misfit, kind="stable")
    _, first = np.unique(blocks[order], return_index=True)
    return order[np.sort(first)][:_BEST]
