"""How far an objective may rise before a value is rejected, and where it has risen so far."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.fitting.fit import Fit
from analysis.fitting.points import FitError
from analysis.fitting.search import solve
from analysis.fitting.terms import Points, information, residuals

Array = NDArray[np.float64]
Rise = Callable[[Array], Array]

SIMULATIONS = 999
_STEPS = np.array([0.1, 0.3, 0.6, 1, 1.4, 1.8, 2.3, 3, 4, 6, 9, 14, 22, 36, 60])  # standard errors
_FINER = np.linspace(0, 1, 12)


@dataclass(frozen=True)
class Problem:
    """A fit as the solver sees it, perhaps with other centres."""

    points: Points
    weights: Array  # (1, n)
    theta: Array
    objective: float  # scaled, at the optimum
    log_floor: float | None

    @staticmethod
    def of(fit: Fit, points: Points | None = None, theta: Array | None = None) -> "Problem":
        points = points or fit.given.points
        theta = fit.theta if theta is None else theta
        weights, log_floor = fit.given.weights[None], fit.given.log_floor(fit.floor)
        best = solve(points, weights, theta[None, None], fit.objective, log_floor, near=True)
        return Problem(points, weights, best.theta[0], float(best.objective[0]), log_floor)


def standard_error(fit: Fit, problem: Problem, column: int) -> float:
    """Of θ's column, linearised: only a first guess of how far to look."""
    known = information(problem.points, problem.weights, problem.theta[None])[0]
    free = [j for j in range(len(known)) if known[j, j] > 0]
    scale = np.sqrt(np.diag(known)[free])
    inverse = np.linalg.pinv(known[np.ix_(free, free)] / np.outer(scale, scale))
    spread = np.sqrt(np.mean(fit.residuals**2) * fit.points / max(fit.points - fit.free, 1))
    if column not in free:
        return 1.0
    at = free.index(column)
    return float(max(spread * np.sqrt(inverse[at, at]) / scale[at], 1e-12))


def critical_rise(
    fit: Fit, problem: Problem, column: int | None, level: float,
    points: Points | None = None, weight: float = 0.0, best: float = 0.0,
) -> float:  # fmt: skip
    """By what share of itself the objective may rise before a value is rejected."""
    spare = fit.points - fit.free
    if spare < 1:
        raise FitError(f"{fit.points} points and {fit.free} parameters leave nothing to judge by")
    if np.isinf(fit.objective.delta):
        return float(stats.f.ppf(level, 1, spare) / spare)
    noise = _noise(fit, fit.points + 1)
    law = residuals(replace(problem.points, z=np.zeros(fit.points)), problem.theta[None])[0]
    free = replace(problem.points, z=law + noise[:, :-1])
    start = np.repeat(problem.theta[None], len(noise), 0)[None]
    found = solve(free, problem.weights, start, fit.objective, problem.log_floor, tolerance=1e-8)
    if column is not None:
        held = solve(
            free, problem.weights, start, fit.objective, problem.log_floor, (column,), 1e-8
        )
    else:
        assert points is not None
        new = best + (noise[:, -1:] if weight == 1 else 0 * noise[:, -1:])
        more = replace(points, z=np.column_stack([free.z, new]))
        weights = np.append(problem.weights[0], weight)[None]
        held = solve(more, weights, start, fit.objective, problem.log_floor, tolerance=1e-8)
    return float(np.quantile(held.objective / found.objective - 1, level))


def _noise(fit: Fit, count: int) -> Array:
    """(simulations, count) log residuals like the fit's: resampled, widened, and smoothed."""
    generator = np.random.default_rng(0)
    residual = fit.residuals - fit.residuals.mean()
    residual = residual * np.sqrt(fit.points / (fit.points - fit.free))
    smooth = fit.points**-0.2
    drawn = generator.choice(residual, size=(SIMULATIONS, count))
    drawn += smooth * residual.std() * generator.standard_normal(drawn.shape)
    return np.asarray(drawn / np.sqrt(1 + smooth**2))


def crossings(
    rise: Rise, best: float, error: float, allowed: float, least: float
) -> tuple[float, float]:
    """The two values around `best` where `rise` reaches `allowed`; `least` is as low as it goes."""
    if allowed <= 1e-24:  # nothing scatters: nothing but the optimum is left
        return best, best
    ends = []
    for side in (-1, 1):
        tried = np.maximum(best + side * error * _STEPS, least)
        over = rise(tried) > allowed
        if not over.any():
            ends.append(least if side < 0 else np.inf)
            continue
        first = int(np.argmax(over))
        inside, outside = (tried[first - 1] if first else best), tried[first]
        for _ in range(3):
            between = inside + (outside - inside) * _FINER
            over = rise(between) > allowed
            first = int(np.argmax(over)) if over.any() else len(between) - 1
            inside, outside = between[max(first - 1, 0)], between[first]
        ends.append((inside + outside) / 2)
    return ends[0], ends[1]
