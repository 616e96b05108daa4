"""Starting points of a fit, by variable projection: for given exponents, the rest is linear."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.terms import Points, log_effective_data, means_of_equal_x

Array = NDArray[np.float64]

# Only the starts lie in this range: the exponents of the fit are free up to the bounds of Points.
_EXPONENTS = np.geomspace(0.01, 4.0, 24)
# Muennighoff et al. (arXiv 2305.16264) find R* of about 15; the starts lie on both sides of it.
_R_STARS = (1.0, 6.0, 40.0)  # initial values of R*
_GAMMAS = (-0.2, 0.0, 0.2)  # initial values of the exponent of an interaction
# Starts of the sigmoid: slopes per range of the loss, and middles in ranges from the mean.
_SLOPES, _MIDDLES = np.geomspace(0.3, 60.0, 24), np.linspace(-1.0, 1.0, 24)
_MIN_COEFFICIENT = 1e-3  # replaces a coefficient that the linear solve makes smaller or negative
_MAX_STARTS = 10
_ENOUGH = 2000  # points for the starts


def starting_points(points: Points, weights: Array, floor: float | None) -> Array:
    """(starts, p) values of θ to start from, best first.

    For each exponent (or pair of exponents) of a grid, linear least squares of the relative
    residuals under `weights` (n,) gives the coefficients and E. Only the best grid point of each
    neighbourhood is kept, so that the starts are far apart. `floor`: the centred log E where E is
    fixed. Many points are reduced to the means of equal x, or else to every k-th in order of size.
    """
    points, weights = _fewer(points, weights)
    if points.law.odds:
        return _log_odds_line(points, weights)
    if points.law.sigmoid:
        return _projected_sigmoid(points, weights, floor)
    if points.law.cross:
        starts = []
        for gamma in _GAMMAS:
            projected = _projected(points, points.logs, weights, floor, gamma)
            columns = [projected, np.full(len(projected), gamma)]
            columns += [np.zeros(len(projected))] if points.law.bend else []
            starts.append(np.column_stack(columns))
        return np.concatenate(starts)
    if points.repeats is None:
        return _projected(points, points.logs, weights, floor)
    starts = []
    for R_star in _R_STARS:
        log_D = log_effective_data(points, np.array([[np.log(R_star)]]))[0][0]
        projected = _projected(points, (points.logs[0], log_D), weights, floor)
        # R* is the last column of θ, as its log.
        starts.append(np.column_stack([projected, np.full(len(projected), np.log(R_star))]))
    return np.concatenate(starts)


def _fewer(points: Points, weights: Array) -> tuple[Points, Array]:
    """Points and weights (n,) that give nearly the same starts in less time and memory."""
    means = means_of_equal_x(points, weights[None])
    if means is not None:
        points, weights = means[0], means[1][0]
    if points.count <= _ENOUGH or points.repeats is not None:
        return points, weights
    order = np.lexsort(points.logs[::-1])[:: -(-points.count // _ENOUGH)]
    logs = tuple(log[order] for log in points.logs)
    return replace(points, logs=logs, z=points.z[order]), weights[order]


def _log_odds_line(points: Points, weights: Array) -> Array:
    """The straight line through the log odds, which is the law itself."""
    # log(L / (1 - L)), with 1 - L = -expm1(log L); z + height is log L.
    odds = points.z + points.height - np.log(-np.expm1(points.z + points.height))
    # polyfit multiplies residuals, not their squares, by w: hence the root.
    slope, offset = np.polyfit(points.logs[0], odds, 1, w=np.sqrt(weights))
    return np.array([[offset, -slope]])


def _projected(
    points: Points,
    logs: tuple[Array, ...],
    weights: Array,
    floor: float | None,
    gamma: float = 0.0,
) -> Array:
    """The starts for laws whose variables have these centred logs, (n,) each.

    `gamma`: the exponent of the first variable in the last power.
    """
    axes = [_EXPONENTS * points.law.sign] * len(logs)
    grid = axes if points.law.tied else np.meshgrid(*axes, indexing="ij")
    exponents = np.stack([axis.ravel() for axis in grid], axis=1)  # (grid, powers)
    if not points.law.floor and len(logs) == 1:  # a straight line in logs; it may rise
        slope, offset = np.polyfit(logs[0], points.z, 1, w=np.sqrt(weights))
        return np.array([[offset, -slope]])
    # Relative residuals, Σ_k c_k x^-α_k / y - 1, are linear in the coefficients and nearly equal to
    # log residuals where they are small. Columns are therefore divided by y, and the target is 1
    # (less a fixed E).
    y = np.exp(points.z)
    columns = [np.exp(-exponents[:, k, None] * log) / y for k, log in enumerate(logs)]
    if gamma:
        columns[-1] = columns[-1] * np.exp(gamma * logs[0])
    target = np.ones_like(y)
    if points.law.floor and floor is None:
        columns.append(np.broadcast_to(1 / y, columns[0].shape))
    elif floor is not None:
        target = 1 - np.exp(floor) / y
    coefficients, misfit = _linear_fits(columns, target, weights)
    chosen = _best_of_blocks(misfit, 1 if points.law.tied else len(logs))
    theta = np.empty((len(chosen), 2 * len(logs) + points.law.floor))
    for k in range(len(logs)):
        theta[:, 2 * k] = np.log(coefficients[chosen, k])
        theta[:, 2 * k + 1] = exponents[chosen, k]
    if points.law.floor:
        # A fixed E may be 0, which is log E = -inf.
        theta[:, 2 * len(logs)] = floor if floor is not None else np.log(coefficients[chosen, -1])
    return theta


def _projected_sigmoid(points: Points, weights: Array, floor: float | None) -> Array:
    """The starts of the sigmoid: for given L0 and k the score is linear in E and S."""
    extent = float(np.ptp(points.logs[0]))
    middle = np.repeat(_MIDDLES * extent, len(_SLOPES))
    slope = np.tile(_SLOPES / extent, len(_MIDDLES))
    y = np.exp(points.z)
    share = np.exp(-np.logaddexp(0, slope[:, None] * (points.logs[0] - middle[:, None])))
    columns, target = [share / y], np.ones_like(share)
    if floor is None:
        columns.append((1 - share) / y)
    else:
        target = 1 - np.exp(floor) * (1 - share) / y
    coefficients, misfit = _linear_fits(columns, target, weights)
    chosen = _best_of_blocks(misfit, 2)
    logs = np.log(coefficients[chosen])
    log_E = np.full(len(chosen), floor) if floor is not None else logs[:, 1]
    return np.column_stack([middle[chosen], slope[chosen], log_E, logs[:, 0]])


def _linear_fits(columns: list[Array], target: Array, weights: Array) -> tuple[Array, Array]:
    """Positive coefficients (grid, terms) and misfits (grid,) of weighted least squares.

    `columns`: (grid, n) each; `target` (n,) or (grid, n).
    """
    design = np.stack(columns, axis=-1) * np.sqrt(weights)[:, None]  # (grid, n, terms)
    weighted_target = target * np.sqrt(weights)
    # The normal equations of all grid points at once, (grid, terms, terms).
    normal = np.einsum("gnp,gnq->gpq", design, design)
    diagonal = np.einsum("gpp->gp", normal)
    # A ridge of 1e-9, because two columns with nearly equal exponents make the matrix singular.
    normal = normal + 1e-9 * diagonal[:, :, None] * np.eye(normal.shape[-1])
    equation = "gnp,n->gp" if target.ndim == 1 else "gnp,gn->gp"
    right = np.einsum(equation, design, weighted_target)
    coefficients = np.linalg.solve(normal, right[..., None])[..., 0]
    coefficients = np.maximum(coefficients, _MIN_COEFFICIENT)  # their logs are taken below
    misfit = np.square(np.einsum("gnp,gp->gn", design, coefficients) - weighted_target).sum(1)
    return coefficients, misfit


def _best_of_blocks(misfit: Array, powers: int) -> NDArray[np.intp]:
    """The best grid point of each block of 4 (4 × 4) neighbours, the best blocks first."""
    blocks = np.arange(len(_EXPONENTS)) // 4
    if powers == 2:
        width = len(_EXPONENTS)
        blocks = (blocks[:, None] * width + blocks[None, :]).ravel()
    # `first` is the rank of the best point of each block, so sorting it puts the best blocks first.
    order = np.argsort(misfit, kind="stable")
    _, first = np.unique(blocks[order], return_index=True)
    return order[np.sort(first)][:_MAX_STARTS]
