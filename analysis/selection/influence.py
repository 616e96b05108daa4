"""The influence of each point on a fit: exact refits that leave one point out."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.fit import Fit
from analysis.fitting.initialization import starting_points
from analysis.fitting.points import FitError
from analysis.fitting.search import solve
from analysis.fitting.terms import MANY, Points, residuals

Array = NDArray[np.float64]

_FEW = 40  # points; up to this number every refit has all starts
_EXACT = 1e-24  # squared log residual below which points count as exactly on the law


@dataclass(frozen=True)
class Influence:
    """The change of a fit when one point is left out: value without it minus value with it."""

    point: int  # index in the order of the input
    x: float  # its size, in the law's first variable
    alpha_change: float
    E_change: float | None  # in units of L; None where E is not fitted
    prediction_change: float  # relative change of the predicted loss at the largest size
    distance: float  # Cook's: mean squared change of log L at all points / (p · residual variance)


def influence(fit: Fit) -> tuple[Influence, ...]:
    """Refit without each point, all in one batch.

    Points without which there would be fewer sizes than parameters are not in the result.
    `distance` is D of Cook (1977, Technometrics 19) with exact refits; above about 1, a single
    point determines the law. For least absolute deviations the refits are the Huber optimum of
    width 1e-6, not the exact corner. Raises FitError where n - 1 points are no more than the
    parameters.
    """
    fit.refuse_other_origin()
    data = fit.data
    if fit.points <= fit.free + 1:
        raise FitError(
            f"{fit.points} points and {fit.free} parameters: a refit without one "
            "point would have no degree of freedom"
        )
    points, log_floor = data.points, data.log_floor(fit.floor)
    removable = _removable(fit)
    if not len(removable):
        return ()
    # Without a point the optimum can be elsewhere, most of all when points are few.
    starts = starting_points(points, data.weights, log_floor)
    if fit.points > _FEW:
        starts = starts[:2]
    if np.isfinite(fit.theta).all():  # no step leaves log E = -inf
        # One of many points moves the optimum little.
        starts = np.concatenate([fit.theta[None], starts[: 0 if fit.points > MANY else None]])
    refits, weights = _without_each(fit, removable)
    theta = solve(refits, weights, starts[:, None], fit.objective, log_floor).theta
    columns = data.columns(theta)
    # s² of the full fit with n - p degrees of freedom, as in Cook's D.
    variance = float(np.mean(data.weights * residuals(points, fit.theta[None])[0] ** 2))
    variance *= fit.points / (fit.points - fit.free)
    sizes = fit.law.arrays(data.x)[0]
    # The largest size is the one that extrapolation starts from.
    largest = int(np.argmax(sizes))
    # The change of predicted log L at each point, or at each distinct x with its number of points.
    if points.distinct is None:
        change = residuals(points, theta) - residuals(points, fit.theta[None])  # (B, n)
        mean_square = np.mean(change**2, 1)
    else:
        logs, index = points.distinct
        at = replace(points, logs=logs, z=np.zeros(len(logs[0])))
        change = residuals(at, theta) - residuals(at, fit.theta[None])  # (B, u)
        mean_square = change**2 @ np.bincount(index) / fit.points
        largest = int(index[largest])
    distances = mean_square * fit.points / (fit.free * max(variance, _EXACT))
    changes = np.expm1(change[:, largest])
    exponent = fit.law.powers[0][1]
    free_floor = fit.law.floor and fit.floor is None
    return tuple(
        Influence(
            point=int(point),
            x=float(sizes[point]),
            alpha_change=float(columns[exponent][row] - fit[exponent]),
            E_change=float(columns["E"][row] - fit.E) if free_floor else None,
            prediction_change=float(changes[row]),
            distance=float(distances[row]),
        )
        for row, point in enumerate(removable)
    )


def _without_each(fit: Fit, removed: NDArray[np.intp]) -> tuple[Points, Array]:
    """The points and the weights (B, m) of refits that leave out one point of `removed` (B,) each.

    By least squares the runs of one size act as one run: of their weighted mean, with the sum of
    their weights. Many runs are therefore solved as one point per size.
    """
    points, weights, row = fit.data.points, fit.data.weights, np.arange(len(removed))
    as_sizes = fit.points > _FEW and np.isinf(fit.objective.delta)
    if not as_sizes or points.distinct is None:
        # A point of weight 0 is left out. Its row keeps the same arrays: all refits are one batch.
        one_less = np.repeat(weights[None], len(removed), 0)
        one_less[row, removed] = 0
        return points, one_less
    logs, size = points.distinct
    runs, of_removed = np.bincount(size), size[removed]
    left: Array = np.repeat(np.bincount(size, weights)[None], len(removed), 0)
    total: Array = np.repeat(np.bincount(size, weights * points.z)[None], len(removed), 0)
    left[row, of_removed] -= weights[removed]
    total[row, of_removed] -= weights[removed] * points.z[removed]
    # The only run of its size leaves weight 0, possibly with a rounding error, and no mean.
    alone = np.flatnonzero(runs[of_removed] == 1)
    left[alone, of_removed[alone]] = total[alone, of_removed[alone]] = 0
    return replace(points, logs=logs, z=total / np.where(left > 0, left, 1)), left


def _removable(fit: Fit) -> NDArray[np.intp]:
    """The points without which there are still as many sizes as the law has parameters."""
    if len(fit.law.powers) > 1:
        return np.arange(fit.points)
    _, size, runs = np.unique(fit.data.x, return_inverse=True, return_counts=True)
    # A point that is the only run of its size takes the size with it.
    sizes_left = len(runs) - (runs[size] == 1)
    return np.flatnonzero(sizes_left >= fit.free)
