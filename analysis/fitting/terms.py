"""A law evaluated at points, in centred logs: residuals, share of each term, derivatives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.laws import Law
from analysis.fitting.objectives import Objective

Array = NDArray[np.float64]

# It only stops a fit that diverges; a fit that rests on it has a flag.
_MAX_EXPONENT = 30.0
_R_STAR_RANGE = (1e-2, 1e5)  # lowest and highest R*
# The range of the middle of a sigmoid in ranges of the loss, and of its ceiling in greatest scores.
_MAX_MIDDLE, _MAX_CEILING = 5.0, 100.0
_MIN_E = 1e-5  # share of the least loss: a smaller E cannot be distinguished from 0
MANY = 400  # points from which least squares is solved on the means of equal x
# Runs per distinct x from which the law is evaluated once for each x: below, copying costs more.
_RUNS_PER_X = 4


@dataclass(frozen=True)
class Points:
    """The points in the centred logs that the solver uses, (n,) each; θ refers to these centres."""

    law: Law
    logs: tuple[Array, ...]  # log of each variable (Law.coordinates) minus its mean
    centres: tuple[float, ...]
    z: Array  # log L minus `height`; (n,), or (B, n) with one data set per row
    height: float  # mean of log L; 0 for the law in the odds
    repeats: tuple[Array, Array] | None = None  # log D and log U, where the law repeats data

    @property
    def count(self) -> int:
        return len(self.logs[0])

    def rows(self, chosen: NDArray[np.intp]) -> "Points":
        """The data sets of these rows of `z`; the same points where all rows share one data set."""
        return self if self.z.ndim == 1 else replace(self, z=self.z[chosen])

    @cached_property
    def distinct(self) -> tuple[tuple[Array, ...], NDArray[np.intp]] | None:
        """The logs of the distinct x, (u,) each, and the index of each point's x among them.

        None where few points share their x, and where the logs depend on θ.
        """
        if self.repeats is not None:
            return None
        first, index = self._groups
        if _RUNS_PER_X * len(first) > self.count:
            return None
        return tuple(log[first] for log in self.logs), index

    @property
    def group(self) -> NDArray[np.intp]:
        """(n,) integers from 0, in order of the logs: equal for points with equal logs."""
        return self._groups[1]

    @cached_property
    def _groups(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The first point of each group of equal logs, (u,), and the group of each point, (n,)."""
        code = np.zeros(self.count, dtype=np.intp)
        for log in self.logs:  # much faster than the unique columns of a matrix
            values, index = np.unique(log, return_inverse=True)
            # Renumbered after each variable, so that the codes stay below n².
            code = np.unique(code * len(values) + index.ravel(), return_inverse=True)[1].ravel()
        return np.unique(code, return_index=True)[1], code

    @property
    def powers(self) -> int:
        """The number of power terms of the law."""
        return len(self.law.powers)

    @property
    def parameters(self) -> int:
        """Length of θ: (log coefficient, exponent) of each power, then log E, then log R*, γ and δ,
        or log S. The exponents are those of a fall. For the sigmoid the first two are L0, centred,
        and k. Tied exponents have a column each, with the same value.
        """
        law = self.law
        crosses = bool(law.cross) + bool(law.bend)
        return 2 * self.powers + law.floor + law.repeats + crosses + law.sigmoid

    @property
    def crossed(self) -> int:
        """The column of θ of γ; that of δ is the next."""
        return 2 * self.powers + self.law.floor

    @cached_property
    def idle(self) -> list[int]:
        """The columns of θ that copy the first exponent, if all are tied; with derivatives 0."""
        return list(range(3, 2 * self.powers, 2)) if self.law.tied else []

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest θ, (p,). A fit at a bound is no interior optimum and has a flag."""
        lowest, highest = np.full(self.parameters, -np.inf), np.full(self.parameters, np.inf)
        exponents = slice(1, 2 * self.powers, 2)
        lowest[exponents], highest[exponents] = -_MAX_EXPONENT, _MAX_EXPONENT
        if self.law.floor:
            at = 2 * self.powers
            lowest[at], highest[at] = np.log(_MIN_E) + self.z.min(), self.z.max()
        if self.law.repeats:
            lowest[-1], highest[-1] = np.log(_R_STAR_RANGE)
        if self.law.cross:
            lowest[self.crossed :], highest[self.crossed :] = -_MAX_EXPONENT, _MAX_EXPONENT
        if self.law.sigmoid:
            extent = float(np.ptp(self.logs[0]))
            lowest[:2] = -_MAX_MIDDLE * extent, 0.0
            highest[:2] = _MAX_MIDDLE * extent, 10 * _MAX_EXPONENT / extent
            # E may be above S: then the score rises with the loss, and the fit has a flag.
            highest[2:] = self.z.max() + np.log(_MAX_CEILING)
            lowest[-1] = lowest[2]
        return lowest, highest


def means_of_equal_x(points: Points, weights: Array) -> tuple[Points, Array] | None:
    """One point for each distinct x: the weighted mean of its z, and the sum of its weights.

    `weights` (B or 1, n) and the result's z and weights, (B or 1, u). Least squares of log L has
    the same optimum on these u points. None for few points, or where few share their x.
    """
    if points.count <= MANY or points.distinct is None:
        return None
    logs, index = points.distinct
    order = None if (np.diff(index) >= 0).all() else np.argsort(index, kind="stable")
    first = np.searchsorted(index if order is None else index[order], np.arange(len(logs[0])))

    def sums(values: Array) -> Array:
        rows = np.atleast_2d(values)
        rows = rows if order is None else rows[:, order]
        return np.asarray(np.add.reduceat(rows, first, axis=1))

    total = sums(weights)
    # An x without weight has no mean: any z serves.
    z = sums(weights * points.z) / np.where(total > 0, total, 1)
    z = z[0] if len(z) == 1 and points.z.ndim == 1 else z
    return replace(points, logs=logs, z=z), total


class Terms(NamedTuple):
    """A law at points: what the derivatives of log L are made of."""

    residual: Array  # (B, n)
    # Share of each power in L, then that of E, (B, n) each. Of the sigmoid: the derivative of log L
    # by k (L0 - L), the shares of E and of S, and the sigmoid itself.
    shares: list[Array]
    logs: list[Array]  # centred log of each power's variable: (n,), or (B, n) where θ changes it
    slopes: tuple[Array, Array] | None  # first and second derivative of log D' by log R*, (B, n)

    def rows(self, chosen: NDArray[np.bool_]) -> "Terms":
        """The terms of these problems of a batch."""
        logs = [log if log.ndim == 1 else log[chosen] for log in self.logs]
        slopes = None if self.slopes is None else (self.slopes[0][chosen], self.slopes[1][chosen])
        return Terms(self.residual[chosen], [each[chosen] for each in self.shares], logs, slopes)

    def overwrite(self, chosen: NDArray[np.generic], other: "Terms") -> None:
        """Replace the rows `chosen` by the rows of `other`, in place."""
        for mine, theirs in zip(self._by_problem(), other._by_problem(), strict=True):
            mine[chosen] = theirs

    def _by_problem(self) -> list[Array]:
        logs = [log for log in self.logs if log.ndim == 2]
        return [self.residual, *self.shares, *logs, *(self.slopes or ())]


def residuals(points: Points, theta: Array, objective: Objective | None = None) -> Array:
    """(B, n) predicted minus measured log L, or the residuals of `objective`, which may be of L."""
    residual = terms_of(points, theta, points.z).residual
    return residual if objective is None else objective.residual(residual, points.z)


def information(points: Points, weights: Array, theta: Array) -> Array:
    """(B, p, p) Gauss-Newton information matrix: Σ w g gᵀ over points, g the gradient of log L."""
    slopes = jacobian(points, theta)
    return np.matmul(slopes * weights[:, None], slopes.transpose(0, 2, 1))


def jacobian(points: Points, theta: Array, objective: Objective | None = None) -> Array:
    """(B, p, n) derivatives by θ (B, p) of log L at each point, or of the residuals of `objective`.

    The columns of tied exponents are 0 but for the first, which moves all.
    """
    terms = terms_of(points, theta, points.z)
    slopes = slopes_of(points, theta, terms)
    if objective is not None and objective.of_loss:
        slopes *= np.exp(terms.residual + points.z)[:, None]
    return slopes


def slopes_of(points: Points, theta: Array, terms: Terms) -> Array:
    """`jacobian` from terms that are already computed."""
    _, shares, logs, slopes = terms
    jacobian = np.empty((len(theta), points.parameters, points.count))
    for k, log in enumerate(logs):
        # log L is a log-sum-exp, so its derivative by the exponent t_k is the share of term k, and
        # t_k = c - α log x. In the odds log L = -log(1 + exp(-t)): the derivative by t is the share
        # of exp(-t), so the same lines serve.
        jacobian[:, 2 * k] = shares[k]
        np.multiply(shares[k], -log, out=jacobian[:, 2 * k + 1])
    if points.law.floor:
        jacobian[:, 2 * points.powers] = shares[points.powers]
    for k, factor in enumerate(cross_factors(points.law, logs), points.crossed):
        np.multiply(shares[points.powers - 1], factor, out=jacobian[:, k])
    if points.law.sigmoid:  # of k (L0 - L): by L0, by k; and by log S
        jacobian[:, 0] = shares[0] * theta[:, 1, None]
        jacobian[:, 1] = shares[0] * (theta[:, 0, None] - logs[0])
        jacobian[:, -1] = shares[2]
    for idle in points.idle:
        jacobian[:, 1] += jacobian[:, idle]
        jacobian[:, idle] = 0
    if slopes is not None:
        # t_k = c - β log D', so the derivative by log R* is -β dlog D'/dlog R*.
        exponent = theta[:, 2 * points.powers - 1, None]
        jacobian[:, -1] = shares[points.powers - 1] * -exponent * slopes[0]
    return jacobian


def terms_of(points: Points, theta: Array, z: Array) -> Terms:
    """The law at θ (B, p) and the points, with z (n,) or (B, n) in place of `points.z`."""
    logs, slopes = list(points.logs), None
    if points.repeats is not None:
        logs[-1], *slope = log_effective_data(points, theta[:, -1:])
        slopes = (slope[0], slope[1])
    if points.distinct is None:
        log_L, shares = _sum_of_terms(points, theta, logs)
        return Terms(log_L - z, shares, logs, slopes)
    # Runs of one x have equal terms, bit for bit: each is computed once and copied to the runs.
    distinct, index = points.distinct
    log_L, shares = _sum_of_terms(points, theta, distinct)
    if (np.diff(index) >= 0).all():  # runs in the order of x: copied in blocks
        at_points = partial(np.repeat, repeats=np.bincount(index), axis=1)
    else:
        at_points = partial(np.take, indices=index, axis=1)
    return Terms(at_points(log_L) - z, [at_points(share) for share in shares], logs, slopes)


def _sum_of_terms(points: Points, theta: Array, logs: Sequence[Array]) -> tuple[Array, list[Array]]:
    """log L and the share of each term, (B, m) each, at these m values of the variables."""
    if points.law.sigmoid:
        return _sigmoid(theta, logs[0])
    # t_k of each power at each point, (B, m) each.
    exponents = [
        theta[:, 2 * k, None] - theta[:, 2 * k + 1, None] * log for k, log in enumerate(logs)
    ]
    for k, factor in enumerate(cross_factors(points.law, logs), points.crossed):
        exponents[-1] = exponents[-1] + theta[:, k, None] * factor
    shape = exponents[0].shape
    if points.law.odds:
        # log L = -log(1 + exp(-t)), t the log odds: a log-sum-exp of -t and 0.
        exponents = [-exponents[0], np.zeros(shape)]
    elif points.law.floor:
        exponents.append(np.broadcast_to(theta[:, 2 * points.powers, None], shape))
    # A single power needs neither exp nor log.
    if len(exponents) == 1:
        return exponents[0], [np.ones(shape)]
    largest = exponents[0]  # subtracted so that no exp overflows
    for exponent in exponents[1:]:
        largest = np.maximum(largest, exponent)
    powers = [np.exp(exponent - largest) for exponent in exponents]
    total = powers[0] + sum(powers[1:])
    log_sum = largest + np.log(total)
    if points.law.odds:
        return -log_sum, [powers[0] / total]
    return log_sum, [power / total for power in powers]


def cross_factors(law: Law, logs: Sequence[Array]) -> list[Array]:
    """What γ and δ are multiplied by in t of the last power: log N, and -log N log D."""
    if not law.cross:
        return []
    return [logs[0], -logs[0] * logs[-1]] if law.bend else [logs[0]]


def _sigmoid(theta: Array, loss: Array) -> tuple[Array, list[Array]]:
    """log score and `Terms.shares`: log((E + S exp(s)) / (1 + exp(s))) with s = k (L0 - L)."""
    middle, slope, log_E, log_S = (theta[:, j, None] for j in range(4))
    s = slope * (middle - loss)
    upper = np.logaddexp(log_E, log_S + s)
    share_of_S = np.exp(log_S + s - upper)
    sigmoid = np.exp(-np.logaddexp(0, -s))
    shares = [share_of_S - sigmoid, 1 - share_of_S, share_of_S, sigmoid]
    return upper - np.logaddexp(0, s), shares


def log_effective_data(points: Points, rho: Array) -> tuple[Array, Array, Array]:
    """Centred log D' and its first and second derivative by ρ = log R*, (B, n) each."""
    assert points.repeats is not None
    log_D, log_U = points.repeats
    R_star = np.exp(rho)
    ratio = np.maximum(np.expm1(log_D - log_U), 0) / R_star  # R / R*
    base = np.minimum(np.exp(log_D - log_U), 1)  # D' / U without repeats
    decay = np.exp(-ratio)
    effective = base - R_star * np.expm1(-ratio)  # D' / U
    # Derivatives of R* (1 - exp(-r)) by ρ = log R*, with r = R / R*, so dr/dρ = -r.
    first = R_star * (-np.expm1(-ratio) - ratio * decay)
    second = first - R_star * ratio**2 * decay
    slope = first / effective
    return (
        # points.centres[-1] is the mean of log D: the same centre for D' and D, at any R*.
        log_U + np.log(effective) - points.centres[-1],
        slope,
        second / effective - slope**2,
    )
