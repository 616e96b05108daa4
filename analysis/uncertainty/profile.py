"""The rise of the objective at which a value is rejected, and the values that reach it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.fitting.fit import Fit
from analysis.fitting.points import FitError
from analysis.fitting.search import solve
from analysis.fitting.terms import MANY, Points, information, residuals

Array = NDArray[np.float64]
Rise = Callable[[Array], Array]  # from values to the rise of the objective above its optimum

SIMULATIONS = 999
# The p value below which a lack of fit counts. At .05 a lack of fit as large as the noise is missed
# so often that intervals cover 88 to 91 %; at .2 they cover 92 to 94 %, and 96 % without any.
DOUBT = 0.2
# Points from which the optimum of a simulation is so close to the true law that the search starts
# there with the narrow losses.
_CLOSE = 400
# The ends of a profile can lie many standard errors away, unequally on the two sides. An end beyond
# 60 of them counts as infinite.
_STEPS = np.array([0.1, 0.3, 0.6, 1, 1.4, 1.8, 2.3, 3, 4, 6, 9, 14, 22, 36, 60])  # standard errors
_REFINEMENT = np.linspace(0, 1, 12)


@dataclass(frozen=True)
class Problem:
    """A fit in the form that the solver needs, possibly with other centres than the fit's own."""

    points: Points
    weights: Array  # (1, n)
    theta: Array  # (p,)
    objective: float  # scaled, at the optimum
    log_floor: float | None

    @staticmethod
    def of(fit: Fit, points: Points | None = None, theta: Array | None = None) -> "Problem":
        fit.refuse_other_origin()
        points = points or fit.data.points
        theta = fit.theta if theta is None else theta
        weights, log_floor = fit.data.weights[None], fit.data.log_floor(fit.floor)
        # Solved again: the rise is measured in the solver's scaled objective, and θ may have other
        # centres.
        best = solve(
            points, weights, theta[None, None], fit.objective, log_floor, near_optimum=True
        )
        return Problem(points, weights, best.theta[0], float(best.objective[0]), log_floor)


def standard_error(fit: Fit, problem: Problem, column: int) -> float:
    """The linearised standard error of a column of θ: the first step of the search for the ends."""
    matrix = information(problem.points, problem.weights, problem.theta[None])[0]
    # A column without effect on L (log E at E = 0) would make the matrix singular.
    free = [j for j in range(len(matrix)) if matrix[j, j] > 0]
    scale = np.sqrt(np.diag(matrix)[free])
    inverse = np.linalg.pinv(matrix[np.ix_(free, free)] / np.outer(scale, scale))
    # Residual standard deviation with n - p degrees of freedom.
    spread = np.sqrt(np.mean(fit.residuals**2) * fit.points / max(fit.points - fit.free, 1))
    if column not in free:
        return 1.0
    at = free.index(column)
    return float(max(spread * np.sqrt(inverse[at, at]) / scale[at], 1e-12))


@dataclass(frozen=True)
class LackOfFit:
    """The sum of squares S of a fit, divided by the means of the points with equal x.

    The lack of fit is the part of S between the law and these means. The scatter is the rest.
    """

    freedom: int  # of the lack of fit: different x minus parameters
    within: int  # of the scatter: points minus different x
    share: float  # of S that is lack of fit, 0 to 1

    @property
    def counts(self) -> bool:
        """Whether the scatter does not explain the lack of fit (extra-sum-of-squares F test).

        Then points of equal x repeat one error of the law, and are no independent evidence.
        """
        if self.within < 1 or self.freedom < 1:
            return False
        # Compared as products, so that a scatter of 0 (every repeated run alike) is allowed.
        critical = float(stats.f.isf(DOUBT, self.freedom, self.within))
        return self.share * self.within > critical * (1 - self.share) * self.freedom


def lack_of_fit(fit: Fit) -> LackOfFit:
    """The lack of fit of a least-squares fit, in the residuals of its objective."""
    group = groups_of_equal_x(fit)
    sizes = int(group.max()) + 1
    weights, residual = fit.data.weights, fit.misfits
    means = np.bincount(group, weights * residual) / np.bincount(group, weights)
    total = float(weights @ residual**2)
    scatter = float(weights @ (residual - means[group]) ** 2)
    share = max(total - scatter, 0.0) / total if total > 0 else 0.0
    return LackOfFit(sizes - fit.free, fit.points - sizes, share)


def groups_of_equal_x(fit: Fit) -> NDArray[np.intp]:
    """(n,) integers from 0, equal for points with equal x."""
    if fit.data.points.repeats is None:
        return fit.data.points.group
    x = np.stack(fit.law.arrays(fit.data.x))  # the logs lack the number of unique samples
    return np.asarray(np.unique(x, axis=1, return_inverse=True)[1].ravel())


def freedom_of(fit: Fit) -> tuple[int, float]:
    """The degrees of freedom of the F test of a least-squares fit, and the share of the sum of
    squares S that belongs to them: n - p and 1, or those of the lack of fit where it counts.
    """
    lack = lack_of_fit(fit)
    return (lack.freedom, lack.share) if lack.counts else (fit.points - fit.free, 1.0)


def critical_rise(
    fit: Fit, problem: Problem, column: int | None, level: float,
    points: Points | None = None, weight: float = 0.0, best: float = 0.0,
) -> float:  # fmt: skip
    """The relative rise of the objective above which a value is rejected.

    `column` is the column of θ that is fixed; None for a prediction, which is an added last point
    of `points` with this `weight` and the predicted log L `best`.
    """
    if fit.points - fit.free < 1:
        raise FitError(f"{fit.points} points and {fit.free} parameters leave no degree of freedom")
    # (S_fixed - S) / (S / (n - p)) is F(1, n - p) distributed for Gaussian log residuals.
    if fit.objective.is_gaussian:
        freedom, share = freedom_of(fit)
        return float(stats.f.ppf(level, 1, freedom) / freedom) * share
    share, problem, points = _simulated_points(fit, problem, points)
    return share * _simulated_rise(fit, problem, column, level, points, weight, best)


def _simulated_points(
    fit: Fit, problem: Problem, points: Points | None
) -> tuple[float, Problem, Points | None]:
    """The points to simulate: all, or evenly spaced ones in order of x, and their share.

    The rise is a sum over one parameter, the objective one over points, so their ratio falls as
    one over the number of points. Of many points a part is simulated, which limits time and memory.
    """
    if fit.points <= MANY:
        return 1.0, problem, points
    chosen = np.lexsort(problem.points.logs[::-1])[:: -(-fit.points // MANY)]
    weights = problem.weights[:, chosen]
    part = _at(problem.points, chosen)
    extended = None if points is None else _at(points, np.append(chosen, fit.points))
    if extended is not None:
        weights = weights / weights.mean()
    share = float(weights.sum() / problem.weights.sum())
    return share, replace(problem, points=part, weights=weights), extended


def _at(points: Points, chosen: NDArray[np.intp]) -> Points:
    """These points; `z` is kept where it has another length, as the caller replaces it."""
    z = points.z[chosen] if points.z.ndim == 1 and len(points.z) > chosen.max() else points.z
    repeats = points.repeats
    if repeats is not None:
        repeats = (repeats[0][chosen], repeats[1][chosen])
    return replace(points, logs=tuple(log[chosen] for log in points.logs), z=z, repeats=repeats)


def _simulated_rise(
    fit: Fit, problem: Problem, column: int | None, level: float, points: Points | None,
    weight: float, best: float,
) -> float:  # fmt: skip
    """The quantile of the relative rise of the objective in simulations of `problem`."""
    count = problem.points.count
    noise = _noise(fit, count + 1)
    # Residuals against z = 0 are the law's predictions. In the simulations the fitted law is the
    # truth.
    law = residuals(replace(problem.points, z=np.zeros(count)), problem.theta[None])[0]
    simulated = replace(problem.points, z=law + noise[:, :-1])
    start = np.repeat(problem.theta[None], len(noise), 0)[None]
    precision: Any = {"tolerance": 1e-8, "near_optimum": count >= _CLOSE}
    unconstrained = solve(
        simulated, problem.weights, start, fit.objective, problem.log_floor, **precision
    )
    # The parameter or prediction is held at its true value in the simulations, the fitted one.
    if column is not None:
        constrained = solve(
            simulated,
            problem.weights,
            start,
            fit.objective,
            problem.log_floor,
            (column,),
            **precision,
        )
    else:
        assert points is not None
        new = best + (noise[:, -1:] if weight == 1 else 0 * noise[:, -1:])
        extended = replace(points, z=np.column_stack([simulated.z, new]))
        weights = np.append(problem.weights[0], weight)[None]
        constrained = solve(extended, weights, start, fit.objective, problem.log_floor, **precision)
    # Without any scatter, as for equal losses, both are 0 and there is no critical value.
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.quantile(constrained.objective / unconstrained.objective - 1, level))


def _noise(fit: Fit, count: int) -> Array:
    """(SIMULATIONS, count) log residuals: a smoothed bootstrap of the fit's residuals, which are
    first inflated by sqrt(n / (n - p)).
    """
    # A fixed seed: the same fit always has the same interval.
    generator = np.random.default_rng(0)
    # Of log L. Where runs above the law count less, the law lies below their mean.
    residual = fit.residuals - (fit.residuals.mean() if fit.objective.above == 1 else 0)
    residual = residual * np.sqrt(fit.points / (fit.points - fit.free))
    # n^(-1/5) is the rate of the optimal bandwidth (Silverman). The division below keeps the
    # variance, which the smoothing noise would raise.
    bandwidth = fit.points**-0.2  # of the kernel, in standard deviations
    drawn = generator.choice(residual, size=(SIMULATIONS, count))
    drawn += bandwidth * residual.std() * generator.standard_normal(drawn.shape)
    return np.asarray(drawn / np.sqrt(1 + bandwidth**2))


def crossings(
    rise: Rise, best: float, error: float, allowed: float, least: float
) -> tuple[float, float]:
    """The values below and above `best` where `rise` reaches `allowed`.

    An end is infinite if no value on its side does; the lower end is at least `least`. `error`: the
    unit of the steps.
    """
    if allowed <= 1e-24:  # the points are exactly on the law: only the optimum is accepted
        return best, best
    ends = []
    for side in (-1, 1):
        # One call for all steps, because a batch of refits costs little more than one.
        tried = np.maximum(best + side * error * _STEPS, least)
        over = rise(tried) > allowed
        if not over.any():
            ends.append(least if side < 0 else np.inf)
            continue
        first = int(np.argmax(over))
        inside, outside = (tried[first - 1] if first else best), tried[first]
        # Each round narrows the bracket to 1/11: about 1/1,300 of it is left.
        for _ in range(3):
            between = inside + (outside - inside) * _REFINEMENT
            over = rise(between) > allowed
            first = int(np.argmax(over)) if over.any() else len(between) - 1
            inside, outside = between[max(first - 1, 0)], between[first]
        ends.append((inside + outside) / 2)
    return ends[0], ends[1]
