"""How sure a fit is: a bootstrap over runs, and the profile interval of the floor."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.fit import FitError, check_points, solve
from analysis.laws import PURE, Law

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, and what it rests on."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Bootstrap:
    """Refits of resampled runs."""

    alpha: Interval
    floor: Interval | None
    resamples: int
    rejected: int  # resamples with too few different sizes to carry the law


def bootstrap(law: Law, x: np.ndarray, y: np.ndarray, seed: int = 0) -> Bootstrap | None:
    """Percentile intervals over resampled runs; None where there are too few sizes to resample.

    A resample must hold one size more than the law has parameters; others are drawn again, which
    narrows the interval somewhat when sizes are few, so the number of them is reported.
    """
    x, y = check_points(law, x, y)
    least = law.parameters + 1
    if len(np.unique(x)) <= least:  # every resample would be the whole again
        return None
    generator = np.random.default_rng(seed)
    _, size = np.unique(x, return_inverse=True)
    kept: list[np.ndarray] = []
    drawn = 0
    while len(kept) < RESAMPLES:
        counts = generator.multinomial(len(x), np.full(len(x), 1 / len(x)))
        drawn += 1
        if len(np.unique(size[counts > 0])) >= least:
            kept.append(counts)
    solved = solve(law, x, y, np.array(kept, dtype=float))
    method = f"percentile bootstrap over {len(x)} runs"
    return Bootstrap(
        alpha=_percentiles(solved.alpha, method),
        floor=_percentiles(solved.floor, method) if law.floor else None,
        resamples=len(kept),
        rejected=drawn - len(kept),
    )


def floor_profile(x: np.ndarray, y: np.ndarray, best: float, objective: float) -> Interval | None:
    """The floors E whose best fit is not significantly worse (F test, 95 %) than the free one.

    `best` is the fitted E and `objective` its sum of squares. None without spare points.
    """
    x, y = check_points(PURE, x, y)
    spare = len(x) - 3
    if spare < 1:
        return None
    limit = objective * (1 + stats.f.ppf(0.95, 1, spare) / spare)
    floors = np.unique(np.concatenate([
        np.linspace(0, y.min(), 4001)[:-1],
        y.min() * (1 - np.geomspace(1e-6, 1e-3, 50)),
        [best],
    ]))  # fmt: skip
    allowed = floors[[_objective_at(x, y, floor) <= limit for floor in floors]]
    if not len(allowed):
        raise FitError("the profile found no floor as good as the fit's own: the fit is no optimum")
    return Interval(float(allowed.min()), float(allowed.max()), f"profile, F(1, {spare})")


def _objective_at(x: np.ndarray, y: np.ndarray, floor: float) -> float:
    """Least sum of squared log residuals with E fixed: a line, then a few Gauss-Newton steps."""
    u, log_y = np.log(x) - np.log(x).mean(), np.log(y)
    reducible = y - floor
    slope, a = np.polyfit(u, np.log(reducible), 1, w=reducible / y)
    for _ in range(8):
        power = np.exp(a + slope * u)
        residual = np.log(floor + power) - log_y
        share = power / (floor + power)
        step, *_ = np.linalg.lstsq(np.stack([share, share * u], 1), residual, rcond=None)
        a, slope = a - step[0], slope - step[1]
    return float(residual @ residual)


def _percentiles(values: np.ndarray, method: str) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high), method)
