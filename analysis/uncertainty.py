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
    # Few points have few different resamples: each is solved once.
    different, which = np.unique(np.array(kept, dtype=float), axis=0, return_inverse=True)
    solved = solve(law, x, y, different)
    method = f"percentile bootstrap over {len(x)} runs"
    return Bootstrap(
        alpha=_percentiles(solved.alpha[which], method),
        floor=_percentiles(solved.floor[which], method) if law.floor else None,
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
    near = y.min() * (1 - np.geomspace(1e-6, 1e-3, 50))
    floors = np.unique(np.concatenate([np.linspace(0, y.min(), 2001)[:-1], near, [best]]))
    allowed = floors[_objectives_at(x, y, floors) <= limit * (1 + 1e-9)]
    if not len(allowed):
        raise FitError("the profile found no floor as good as the fit's own: the fit is no optimum")
    return Interval(float(allowed.min()), float(allowed.max()), f"profile, F(1, {spare})")


def _objectives_at(x: np.ndarray, y: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """Least sum of squared log residuals with E fixed at each of `floors`, (F,), below min(y).

    A straight line through log(y - E), then Gauss-Newton steps in its two parameters.
    """
    u, log_y, floors_F1 = np.log(x) - np.log(x).mean(), np.log(y), floors[:, None]
    reducible = y - floors_F1
    theta = _weighted_lines(u, np.log(reducible), reducible / y)
    for _ in range(10):
        power = np.exp(theta[:, :1] + theta[:, 1:] * u)
        residual = np.log(floors_F1 + power) - log_y
        share = power / (floors_F1 + power)
        theta = theta - _weighted_lines(u, residual / share, share)
    power = np.exp(theta[:, :1] + theta[:, 1:] * u)
    return np.square(np.log(floors_F1 + power) - log_y).sum(1)


def _weighted_lines(u: np.ndarray, v: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(F, 2) offset and slope that minimise the sum of (share × (v - offset - slope u))²."""
    design = np.stack([share, share * u], axis=-1)
    normal = np.einsum("fnp,fnq->fpq", design, design)
    return np.linalg.solve(normal, np.einsum("fnp,fn->fp", design, share * v)[..., None])[..., 0]


def _percentiles(values: np.ndarray, method: str) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high), method)
