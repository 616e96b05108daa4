"""Two families with separate laws: x for a given loss, its ratio, and a test for a common shape."""

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
FitPair = tuple[Fit, Fit]

_EXACT = 1e-20  # squared log residual below which points count as exactly on the law
_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class ShapeTest:
    """F test by least squares: common α and E for both families against separate ones."""

    F: float
    freedom: tuple[int, int]  # degrees of freedom of numerator and denominator
    p: float

    @property
    def admissible(self) -> bool:
        return self.p >= _SIGNIFICANCE


@dataclass(frozen=True)
class AtLoss:
    """The multiplier at one loss, C_b / C_a of the two laws; inf if only b never reaches it."""

    loss: float
    value: float
    interval: Interval


def size_for(law: Law, values: Mapping[str, float | Array], loss: float) -> Array:
    """x at which the law predicts `loss`; inf where `loss` is not above E. `values` may be (B,)."""
    A, alpha = np.asarray(values["A"], dtype=float), np.asarray(values["alpha"], dtype=float)
    above = np.asarray(loss / (1 - loss) if law.odds else loss - values.get("E", 0.0))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        x = np.exp((np.log(A) - np.log(np.maximum(above, 0))) / alpha)
    return np.asarray(np.where(above > 0, x, np.inf))


def shape_test(joint: float, separate: FitPair) -> ShapeTest | None:
    """`joint`: the joint fit's sum of squares. None if the separate fits leave no degree of
    freedom.
    """
    a, b = separate
    count, parameters = a.points + b.points, a.free + b.free
    # The joint fit has one law's parameters and the shift, the separate fits those of two laws.
    extra, spare = a.free - 1, count - parameters
    if spare < 1:
        return None
    residual_squares = (
        sum(float(fit.residuals @ fit.residuals) for fit in separate) + _EXACT * count
    )
    F = max(joint - residual_squares, 0.0) / extra / (residual_squares / spare)
    return ShapeTest(F, (extra, spare), float(stats.f.sf(F, extra, spare)))


def at_losses(
    fits: FitPair, losses: Array, level: float, resamples: int, seed: int
) -> tuple[tuple[AtLoss, ...], tuple[str, ...]]:
    """m at each loss with percentiles of independent bootstraps; and why some losses have none.

    Resamples in which neither law reaches the loss have no m and are left out.
    """
    a, b = fits
    # Different seeds: the resamples of the two families must be independent.
    drawn = [bootstrap(fit, resamples, seed + k).values for k, fit in enumerate(fits)]
    results, refused = [], []
    for loss in map(float, losses):
        # C_b / C_a: b's x in the numerator. Infinite where only b never reaches the loss, 0 where
        # only a does not.
        value = _ratio(size_for(b.law, b.values, loss), size_for(a.law, a.values, loss))
        ratios = _ratio(*(size_for(a.law, values, loss) for values in reversed(drawn)))
        ratios = ratios[~np.isnan(ratios)]
        if np.isnan(value) or not len(ratios):
            refused.append(f"m at {loss:.4g}: below the irreducible loss E of both laws")
            continue
        tail = (1 - level) / 2
        # Some ratios may be infinite: "nearest" does not interpolate, which would give NaN.
        low, high = np.quantile(ratios, [tail, 1 - tail], method="nearest")
        method = f"percentiles of {len(ratios)} bootstraps over the runs of each"
        basis = f"{a.points} and {b.points} points"
        span = Interval(float(low), float(high), level, method, basis)
        results.append(AtLoss(loss, float(value), span))
    return tuple(results), tuple(refused)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """The quotient; NaN where both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.asarray(numerator / denominator)
