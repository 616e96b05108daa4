"""What each point does to a fit: the fit again, exactly, without it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.fit import Fit
from analysis.fitting.initialization import seeds
from analysis.fitting.points import FitError
from analysis.fitting.search import solve
from analysis.fitting.terms import residuals

_FEW = 40  # points, up to which all starts are tried again
_EXACT = 1e-24  # squared log residual, below which nothing scatters


@dataclass(frozen=True)
class Influence:
    """What leaving out one point changes: without it, less with it."""

    point: int  # in the order given
    x: float  # its size, in the law's first variable
    alpha_change: float
    E_change: float | None  # in units of L; None where E is not fitted
    prediction_change: float  # relative, of the predicted loss at the largest size
    distance: float  # Cook's: mean squared move of log L at all points, in p residual variances


def influence(fit: Fit) -> tuple[Influence, ...]:
    """Refit without each point in turn, all in one batch; a point that cannot be spared is not in.

    That is a point without which there would be fewer sizes than parameters. `distance` is D of
    Cook (1977, Technometrics 19) with exact refits; above about 1, one point carries the law.
    Under least absolute deviations refits are to 1e-6, not to the corner itself. Raises FitError
    where n - 1 points are no more than the parameters.
    """
    given = fit.given
    if fit.points <= fit.free + 1:
        raise FitError(
            f"{fit.points} points and {fit.free} parameters: without one point nothing is to spare"
        )
    points, log_floor = given.points, given.log_floor(fit.floor)
    spared = _spared(fit)
    if not len(spared):
        return ()
    weights = np.repeat(given.weights[None], len(spared), 0)
    weights[np.arange(len(spared)), spared] = 0
    again = seeds(points, given.weights, log_floor)
    if fit.points > _FEW:
        again = again[:2]
    if np.isfinite(fit.theta).all():  # a free E that ran to nothing would never leave it
        again = np.concatenate([fit.theta[None], again])
    theta = solve(points, weights, again[:, None], fit.objective, log_floor).theta
    columns = given.columns(theta)
    before = residuals(points, fit.theta[None])
    moved = residuals(points, theta) - before  # of log L predicted, (B, n)
    variance = float(np.mean(given.weights * before[0] ** 2))
    variance *= fit.points / (fit.points - fit.free)
    distances = np.mean(moved**2, 1) * fit.points / (fit.free * max(variance, _EXACT))
    sizes = fit.law.arrays(given.x)[0]
    changes = np.expm1(moved[:, int(np.argmax(sizes))])
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
        for row, point in enumerate(spared)
    )


def _spared(fit: Fit) -> NDArray[np.intp]:
    """Points without which as many sizes are left as the law has parameters."""
    if len(fit.law.powers) > 1:
        return np.arange(fit.points)
    _, size, runs = np.unique(fit.given.x, return_inverse=True, return_counts=True)
    left = len(runs) - (runs[size] == 1)
    return np.flatnonzero(left >= fit.free)
