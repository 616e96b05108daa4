"""Approach 3: the best N and D for a budget, from a fitted surface under the cost C(N, D).

For C = k N^q D the optimum has a closed form (Hoffmann et al. 2022, Eq. 4, for q = 1). For other
costs it is found by bisection of the derivative, for all budgets and resamples at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.compute_optimal.cost import Cost
from analysis.fitting.fit import Fit
from analysis.fitting.laws import SURFACE
from analysis.fitting.points import FitError
from analysis.uncertainty.bootstrap import Bootstrap, bootstrap_of_surface
from analysis.uncertainty.intervals import Interval, prediction_interval

Array = NDArray[np.float64]

RESAMPLES = 1000
_GRID = 240  # sizes of the grid search that precedes the bisection
_BISECTIONS = 50


class AllocationError(FitError):
    """The law has no optimum under a budget; the message says why."""


@dataclass(frozen=True)
class Allocation:
    """The best use of `budget` FLOPs by the law and the cost."""

    budget: float
    cost: str
    N: float
    D: float  # tokens
    L: float  # predicted by the law
    N_interval: Interval  # from resampled runs
    D_interval: Interval  # from resampled runs
    L_interval: Interval  # of the law, not of a new run
    rejected: int  # resamples whose law has no optimum
    flags: tuple[str, ...]


def optimal(
    fit: Fit,
    cost: Cost,
    budget: float,
    draws: Bootstrap | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Allocation:
    """N*, D* and L* of a fitted surface for `budget` FLOPs under `cost`.

    `cost` must count N in the same way as `fit`. `draws`: resampled fits, by default computed here.
    Raises AllocationError for another law than the surface, or where the loss does not fall in both
    N and D.
    """
    best = [float(each) for each in optimum(_surface(fit), cost, budget)]
    draws = bootstrap_of_surface(fit, resamples, seed) if draws is None else draws
    drawn = np.stack(optimum(draws.values, cost, budget))
    usable = drawn[:, np.isfinite(drawn).all(axis=0)]
    # Percentiles at 2.5 % need more draws than this.
    if usable.shape[1] < 20:
        raise AllocationError(
            f"{usable.shape[1]} of {draws.resamples} resamples have an optimum, fewer than 20"
        )
    N_interval, D_interval = (draws.interval_of(each, level) for each in usable[:2])
    N, D, L = best
    return Allocation(
        float(budget), cost.name, N, D, L, N_interval, D_interval,
        _interval_of_loss(fit, N, D, draws, usable[2], level),
        drawn.shape[1] - usable.shape[1], _flags(fit, cost, N, D),
    )  # fmt: skip


def _interval_of_loss(
    fit: Fit, N: float, D: float, draws: Bootstrap, drawn: Array, level: float
) -> Interval:
    """The interval of the least loss, by profile of the law at N* and D*; for another objective
    than least squares the percentiles of `drawn`.

    Along the budget the loss has no slope at the optimum, so an error of N* changes it only to
    second order: the error of L* is that of the law at this point (envelope theorem).
    """
    if fit.objective.is_gaussian:
        return prediction_interval(fit, (N, D), level, new_run=False)
    return draws.interval_of(drawn, level)


def optimum(
    values: Mapping[str, ArrayLike], cost: Cost, budget: ArrayLike
) -> tuple[Array, Array, Array]:
    """(N, D, L) with the least loss E + A N^-α + B D^-β at C(N, D) = budget; arrays broadcast.

    NaN where there is no optimum, because A, B, α or β is not positive.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        surface = _Surface.of(values, budget)
        minima = [surface.minimum_outside(cost, 0)]
        if not cost.is_power_law:
            # A minimum of each of the three pieces of the cost; the best of them is the optimum.
            low, high = np.log(cost.sizes[0]), np.log(cost.sizes[-1])
            minima[0] = np.minimum(minima[0], low)
            minima += [
                np.maximum(surface.minimum_outside(cost, 1), high),
                surface.minimum_inside(cost, low, high),
            ]
        losses = np.stack([surface.loss(u, cost.logs(u)[0]) for u in minima])
        best = np.where(np.isnan(losses), np.inf, losses).argmin(0)
        u = np.take_along_axis(np.stack(minima), best[None], axis=0)[0]
        # Without falling terms in both N and D the formulas still give numbers, but no optimum.
        u = np.where(surface.has_optimum & np.isfinite(u), u, np.nan)
        log_f = cost.logs(u)[0]
        L = surface.loss(u, log_f)
        optimum_NDL = (np.exp(u), np.exp(surface.log_C - log_f), L)
    N, D, L = (each.reshape(surface.shape) for each in optimum_NDL)
    return N, D, L


@dataclass(frozen=True)
class _Surface:
    """Many surfaces and budgets, (B,) each, in logs."""

    log_A: Array
    alpha: Array
    log_B: Array
    beta: Array
    E: Array
    log_C: Array
    shape: tuple[int, ...]

    @staticmethod
    def of(values: Mapping[str, ArrayLike], budget: ArrayLike) -> "_Surface":
        """The surfaces with these parameters and budgets, broadcast and flattened."""
        names = [values["A"], values["alpha"], values["B"], values["beta"], values.get("E", 0.0)]
        arrays = np.broadcast_arrays(*(np.asarray(each, dtype=float) for each in (*names, budget)))
        A, alpha, B, beta, E, C = (each.ravel() for each in arrays)
        return _Surface(np.log(A), alpha, np.log(B), beta, E, np.log(C), arrays[0].shape)

    @property
    def has_optimum(self) -> NDArray[np.bool_]:
        """(B,) whether the loss falls in both N and D, so that there is an optimum between."""
        finite = np.isfinite(self.log_A) & np.isfinite(self.log_B) & np.isfinite(self.log_C)
        return np.asarray(finite & (self.alpha > 0) & (self.beta > 0))

    def loss(self, u: Array, log_f: Array) -> Array:
        """L at u = log N, where the budget pays for exp(log C - log f) tokens."""
        N_term = np.exp(self.log_A - self.alpha * u)
        return np.asarray(self.E + N_term + np.exp(self.log_B - self.beta * (self.log_C - log_f)))

    def minimum_outside(self, cost: Cost, end: int) -> Array:
        """log N* under the power law of `cost` below (`end` 0) or above (1) its sizes."""
        # Index -end: 0 is the first size and -1 the last. f = k N^q there.
        q = cost.end_exponents[end]
        log_k = np.log(cost.flops_per_token[-end]) - q * np.log(cost.sizes[-end])
        # dL/dlog N = 0 with D = C / (k N^q): α A N^-α = q β B (k N^q / C)^β, solved for log N.
        ratio = np.log(self.alpha / (q * self.beta)) + self.log_A - self.log_B
        return np.asarray((ratio + self.beta * (self.log_C - log_k)) / (self.alpha + q * self.beta))

    def minimum_inside(self, cost: Cost, low: float, high: float) -> Array:
        """log N* between the sizes of `cost`: by a grid search, then bisection."""
        # The exponent q of a counted cost varies with N, so L may have several minima between the
        # sizes: the grid finds the lowest one, bisection its place.
        grid = np.linspace(low, high, _GRID)
        log_f = cost.logs(grid)[0]
        # In 16 parts, to limit memory: a part computes losses of shape (b, 240).
        parts = [self._columns(at) for at in np.array_split(np.arange(len(self.log_A)), 16)]
        nearest = np.concatenate([part.loss(grid, log_f).argmin(1) for part in parts])
        # The minimum lies between the two neighbours of the best grid point.
        left = grid[np.maximum(nearest - 1, 0)]
        right = grid[np.minimum(nearest + 1, _GRID - 1)]
        for _ in range(_BISECTIONS):
            middle = (left + right) / 2
            log_f, q = cost.logs(middle)
            # Logs of |dL/dlog N| of the terms of N and of D, which are equal at the optimum.
            N_slope = np.log(self.alpha) + self.log_A - self.alpha * middle
            D_slope = np.log(self.beta * q) + self.log_B - self.beta * (self.log_C - log_f)
            falling = N_slope > D_slope
            left, right = np.where(falling, middle, left), np.where(falling, right, middle)
        return np.asarray((left + right) / 2)

    def _columns(self, at: NDArray[np.intp]) -> "_Surface":
        """The surfaces `at` as columns, (b, 1) each, which broadcast with a grid."""
        return _Surface(
            self.log_A[at, None], self.alpha[at, None], self.log_B[at, None],
            self.beta[at, None], self.E[at, None], self.log_C[at, None], (),
        )  # fmt: skip


def _surface(fit: Fit) -> dict[str, float]:
    """The parameters of a fitted surface. Raises AllocationError where it has no optimum."""
    if fit.law is not SURFACE:
        raise AllocationError(f"{fit.law.formula} is not a law in both N and D; fit `surface`")
    for name in ("A", "alpha", "B", "beta"):
        if not fit[name] > 0:
            raise AllocationError(f"{name} = {fit[name]:.3g}: the loss does not fall in N and D")
    return fit.values


def _flags(fit: Fit, cost: Cost, N: float, D: float) -> tuple[str, ...]:
    """Warnings: those of the fit, and the extrapolations that the optimum depends on."""
    flags = list(fit.flags)
    for name, value, fitted in zip(("N", "D"), (N, D), fit.law.arrays(fit.data.x), strict=True):
        if value > fitted.max():
            flags.append(f"{name} = {value:.3g} is {value / fitted.max():.2g}× the largest fitted")
        elif value < fitted.min():
            flags.append(f"{name} = {value:.3g} is below the smallest fitted, {fitted.min():.3g}")
    if cost.is_extrapolated(N):
        flags.append(
            f"FLOPs per token at N = {N:.3g} were not counted but extrapolated by a power law"
        )
    return tuple(flags)
