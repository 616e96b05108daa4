"""Two families by laws of their own: x for a loss, its ratio, and whether one shape would do."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.fitting.fit import Fit
from analysis.fitting.laws import Law
from analysis.uncertainty.bootstrap import bootstrap
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]
Both = tuple[Fit, Fit]

_EXACT = 1e-20  # squared log residual, below which nothing scatters
_UNLIKELY = 0.05


@dataclass(frozen=True)
class ShapeTest:
    """F test of one exponent and floor for both against own ones for each, by least squares."""

    F: float
    freedom: tuple[int, int]
    p: float

    @property
    def admissible(self) -> bool:
        return self.p >= _UNLIKELY


@dataclass(frozen=True)
class AtLoss:
    """The multiplier at one loss, C_b / C_a of the two laws; inf where only b never reaches it."""

    loss: float
    value: float
    interval: Interval


def size_for(law: Law, values: Mapping[str, float | Array], loss: float) -> Array:
    """x at which the law predicts `loss`; inf at and below its floor. `values` may be (B,)."""
    A, alpha = np.asarray(values["A"], dtype=float), np.asarray(values["alpha"], dtype=float)
    above = np.asarray(loss / (1 - loss) if law.odds else loss - values.get("E", 0.0))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found = np.exp((np.log(A) - np.log(np.maximum(above, 0))) / alpha)
    return np.asarray(np.where(above > 0, found, np.inf))


def shape_test(joint: float, separate: Both) -> ShapeTest | None:
    """`joint`: sum of squares of the joint fit. None where the separate ones spare no point."""
    a, b = separate
    count, parameters = a.points + b.points, a.free + b.free
    more, spare = a.free - 1, count - parameters
    if spare < 1:
        return None
    own = sum(float(fit.residuals @ fit.residuals) for fit in separate) + _EXACT * count
    F = max(joint - own, 0.0) / more / (own / spare)
    return ShapeTest(F, (more, spare), float(stats.f.sf(F, more, spare)))


def at_losses(
    fits: Both, losses: Array, level: float, resamples: int, seed: int
) -> tuple[tuple[AtLoss, ...], tuple[str, ...]]:
    """m at each loss with the percentiles of independent bootstraps; and losses without, and why.

    Resamples in which neither law reaches the loss say nothing of m and are left out.
    """
    a, b = fits
    drawn = [bootstrap(fit, resamples, seed + place).values for place, fit in enumerate(fits)]
    found, refused = [], []
    for loss in map(float, losses):
        value = _ratio(size_for(b.law, b.values, loss), size_for(a.law, a.values, loss))
        ratios = _ratio(*(size_for(a.law, values, loss) for values in reversed(drawn)))
        ratios = ratios[~np.isnan(ratios)]
        if np.isnan(value) or not len(ratios):
            refused.append(f"m at {loss:.4g}: below the floors of both laws")
            continue
        tail = (1 - level) / 2
        low, high = np.quantile(ratios, [tail, 1 - tail], method="nearest")  # some may be infinite
        method = f"percentiles of {len(ratios)} bootstraps over the runs of each"
        basis = f"{a.points} and {b.points} points"
        span = Interval(float(low), float(high), level, method, basis)
        found.append(AtLoss(loss, float(value), span))
    return tuple(found), tuple(refused)


def _ratio(above: Array, below: Array) -> Array:
    """NaN where both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.asarray(above / below)
