"""A law at work on points, in centred logs: residuals, the share of each term, derivatives."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.laws import Law

Array = NDArray[np.float64]

_STEEPEST = 30.0  # exponent
_REPEATS = (1e-2, 1e5)  # passes: R* within these
_LEAST_FLOOR = 1e-5  # of the least loss: below this, E is zero for all that data can tell


@dataclass(frozen=True)
class Points:
    """The data in the centred logs that a fit works in, (n,) each; θ belongs to these centres."""

    law: Law
    logs: tuple[Array, ...]  # log of each variable, less its mean
    centres: tuple[float, ...]
    z: Array  # log L less its mean; (n,), or (B, n) for a data set a row
    height: float  # that mean
    repeats: tuple[Array, Array] | None = None  # log D and log U, where the law repeats data

    @property
    def count(self) -> int:
        return len(self.logs[0])

    def rows(self, chosen: NDArray[np.intp]) -> "Points":
        """The data sets of these rows, where each row has its own."""
        return self if self.z.ndim == 1 else replace(self, z=self.z[chosen])

    @property
    def powers(self) -> int:
        return len(self.law.powers)

    @property
    def parameters(self) -> int:
        """Length of θ: (c, exponent) of each power, then log E, then log R*."""
        return 2 * self.powers + self.law.floor + self.law.repeats

    @property
    def bounds(self) -> tuple[Array, Array]:
        """Lowest and highest θ. A fit that rests here says so: it is no optimum of the law."""
        lowest, highest = np.full(self.parameters, -np.inf), np.full(self.parameters, np.inf)
        exponents = slice(1, 2 * self.powers, 2)
        lowest[exponents], highest[exponents] = -_STEEPEST, _STEEPEST
        if self.law.floor:
            at = 2 * self.powers
            lowest[at], highest[at] = np.log(_LEAST_FLOOR) + self.z.min(), self.z.max()
        if self.law.repeats:
            lowest[-1], highest[-1] = np.log(_REPEATS)
        return lowest, highest


def residuals(points: Points, theta: Array) -> Array:
    """(B, n) log L predicted less log L measured."""
    return terms_of(points, theta, points.z)[0]


def information(points: Points, weights: Array, theta: Array) -> Array:
    """(B, p, p) Σ w g gᵀ over points, g the gradient of log L by θ: what least squares knows."""
    slopes = jacobian(points, theta)
    return np.matmul(slopes * weights[:, None], slopes.transpose(0, 2, 1))


def jacobian(points: Points, theta: Array) -> Array:
    """(B, p, n) derivatives of log L at each point by θ (B, p)."""
    return slopes_of(points, theta, terms_of(points, theta, points.z))


def slopes_of(points: Points, theta: Array, terms: "Terms") -> Array:
    _, shares, logs, slopes = terms
    found = np.empty((len(theta), points.parameters, points.count))
    for k, log in enumerate(logs):
        found[:, 2 * k] = shares[k]
        np.multiply(shares[k], -log, out=found[:, 2 * k + 1])
    if points.law.floor:
        found[:, 2 * points.powers] = shares[points.powers]
    if slopes is not None:
        exponent = theta[:, 2 * points.powers - 1, None]
        found[:, -1] = shares[points.powers - 1] * -exponent * slopes[0]
    return found


Terms = tuple[Array, list[Array], list[Array], tuple[Array, Array] | None]


def terms_of(points: Points, theta: Array, z: Array) -> Terms:
    """Residual (B, n), the share of each term in L, the logs of the powers, and d log D'/d log R*.

    Shares are of the powers, then of the floor.
    """
    logs, slopes = list(points.logs), None
    if points.repeats is not None:
        logs[-1], *slope = repeated(points, theta[:, -1:])
        slopes = (slope[0], slope[1])
    exponents = [
        theta[:, 2 * k, None] - theta[:, 2 * k + 1, None] * log for k, log in enumerate(logs)
    ]
    shape = exponents[0].shape
    if points.law.odds:
        exponents = [-exponents[0], np.zeros(shape)]
    elif points.law.floor:
        exponents.append(np.broadcast_to(theta[:, 2 * points.powers, None], shape))
    if len(exponents) == 1:
        return exponents[0] - z, [np.ones(shape)], logs, slopes
    most = exponents[0]
    for exponent in exponents[1:]:
        most = np.maximum(most, exponent)
    powers = [np.exp(exponent - most) for exponent in exponents]
    total = powers[0] + sum(powers[1:])
    log_sum = most + np.log(total)
    if points.law.odds:
        return -log_sum - z, [powers[0] / total], logs, slopes
    return log_sum - z, [power / total for power in powers], logs, slopes


def repeated(points: Points, rho: Array) -> tuple[Array, Array, Array]:
    """Centred log D' (B, n) and its first and second derivative by ρ = log R*."""
    assert points.repeats is not None
    log_D, log_U = points.repeats
    R_star = np.exp(rho)
    over = np.maximum(np.expm1(log_D - log_U), 0) / R_star  # R / R*
    base = np.minimum(np.exp(log_D - log_U), 1)  # D' / U without repeats
    gone = np.exp(-over)
    worth = base - R_star * np.expm1(-over)
    first = R_star * (-np.expm1(-over) - over * gone)
    second = first - R_star * over**2 * gone
    slope = first / worth
    return (
        log_U + np.log(worth) - points.centres[-1],
        slope,
        second / worth - slope**2,
    )
