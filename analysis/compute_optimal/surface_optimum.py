"""The best N and D for a budget, of a fitted surface under the true C(N, D): approach 3.

Where C = k N^q D the optimum has a closed form (Hoffmann et al. 2022, Eq. 4, has q = 1); for other
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
from analysis.uncertainty.bootstrap import Bootstrap, bootstrap
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

RESAMPLES = 1000
_GRID = 240  # sizes on which the neighbourhood of the least loss is looked for
_HALVINGS = 50


class AllocationError(FitError):
    """This law has no optimum under a budget; the message says why."""


@dataclass(frozen=True)
class Allocation:
    """How best to spend `budget` FLOPs, by the law and the cost; intervals by resampled runs."""

    budget: float
    cost: str
    N: float
    D: float  # tokens
    L: float  # what the law expects there
    N_interval: Interval
    D_interval: Interval
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

    N must be counted for `cost` as it was for `fit`. `draws`: resampled fits, made here if not
    given. Raises AllocationError for another law, or one that does not fall in both N and D.
    """
    best = [float(each) for each in optimum(_surface(fit), cost, budget)]
    draws = bootstrap(fit, resamples, seed) if draws is None else draws
    drawn = np.stack(optimum(draws.values, cost, budget))
    usable = drawn[:, np.isfinite(drawn).all(axis=0)]
    if usable.shape[1] < 20:
        raise AllocationError(f"{usable.shape[1]} of {draws.resamples} resamples have an optimum")
    N_interval, D_interval, L_interval = (draws.interval_of(each, level) for each in usable)
    N, D, L = best
    return Allocation(
        float(budget), cost.name, N, D, L, N_interval, D_interval, L_interval,
        drawn.shape[1] - usable.shape[1], _flags(fit, cost, N, D),
    )  # fmt: skip


def optimum(
    values: Mapping[str, ArrayLike], cost: Cost, budget: ArrayLike
) -> tuple[Array, Array, Array]:
    """(N, D, L) of least loss E + A N^-α + B D^-β with C(N, D) = budget; all broadcast.

    NaN where there is none: where A, B, α or β is not positive.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        surface = _Surface.of(values, budget)
        places = [surface.beyond(cost, 0)]
        if not cost.power:
            low, high = np.log(cost.sizes[0]), np.log(cost.sizes[-1])
            places[0] = np.minimum(places[0], low)
            places += [np.maximum(surface.beyond(cost, 1), high), surface.between(cost, low, high)]
        losses = np.stack([surface.loss(u, cost.logs(u)[0]) for u in places])
        least = np.where(np.isnan(losses), np.inf, losses).argmin(0)
        u = np.take_along_axis(np.stack(places), least[None], axis=0)[0]
        u = np.where(surface.falls & np.isfinite(u), u, np.nan)
        log_f = cost.logs(u)[0]
        L = surface.loss(u, log_f)
        found = (np.exp(u), np.exp(surface.log_C - log_f), L)
    N, D, L = (each.reshape(surface.shape) for each in found)
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
        names = [values["A"], values["alpha"], values["B"], values["beta"], values.get("E", 0.0)]
        arrays = np.broadcast_arrays(*(np.asarray(each, dtype=float) for each in (*names, budget)))
        A, alpha, B, beta, E, C = (each.ravel() for each in arrays)
        return _Surface(np.log(A), alpha, np.log(B), beta, E, np.log(C), arrays[0].shape)

    @property
    def falls(self) -> NDArray[np.bool_]:
        """The loss falls in both N and D, so an optimum lies between."""
        finite = np.isfinite(self.log_A) & np.isfinite(self.log_B) & np.isfinite(self.log_C)
        return np.asarray(finite & (self.alpha > 0) & (self.beta > 0))

    def loss(self, u: Array, log_f: Array) -> Array:
        """At u = log N, where the budget buys exp(log C - log f) tokens."""
        above_N = np.exp(self.log_A - self.alpha * u)
        return np.asarray(self.E + above_N + np.exp(self.log_B - self.beta * (self.log_C - log_f)))

    def beyond(self, cost: Cost, end: int) -> Array:
        """log N* under the power law by which `cost` goes on below (0) or above (1) its sizes."""
        q = cost.ends[end]
        log_k = np.log(cost.flops_per_token[-end]) - q * np.log(cost.sizes[-end])
        ratio = np.log(self.alpha / (q * self.beta)) + self.log_A - self.log_B
        return np.asarray((ratio + self.beta * (self.log_C - log_k)) / (self.alpha + q * self.beta))

    def between(self, cost: Cost, low: float, high: float) -> Array:
        """log N of least loss where `cost` is no power law: a grid, then bisection."""
        grid = np.linspace(low, high, _GRID)
        log_f = cost.logs(grid)[0]
        rows = [self._row(at) for at in np.array_split(np.arange(len(self.log_A)), 16)]
        nearest = np.concatenate([row.loss(grid, log_f).argmin(1) for row in rows])
        left = grid[np.maximum(nearest - 1, 0)]
        right = grid[np.minimum(nearest + 1, _GRID - 1)]
        for _ in range(_HALVINGS):
            middle = (left + right) / 2
            log_f, q = cost.logs(middle)
            falls_by = np.log(self.alpha) + self.log_A - self.alpha * middle
            rises_by = np.log(self.beta * q) + self.log_B - self.beta * (self.log_C - log_f)
            falling = falls_by > rises_by
            left, right = np.where(falling, middle, left), np.where(falling, right, middle)
        return np.asarray((left + right) / 2)

    def _row(self, at: NDArray[np.intp]) -> "_Surface":
        """The surfaces `at`, (b, 1) each, to be met by a grid."""
        return _Surface(
            self.log_A[at, None], self.alpha[at, None], self.log_B[at, None],
            self.beta[at, None], self.E[at, None], self.log_C[at, None], (),
        )  # fmt: skip


def _surface(fit: Fit) -> dict[str, float]:
    if fit.law is not SURFACE:
        raise AllocationError(f"{fit.law.formula} does not say what both N and D are worth")
    for name in ("A", "alpha", "B", "beta"):
        if not fit[name] > 0:
            raise AllocationError(f"{name} = {fit[name]:.3g}: the loss does not fall in N and D")
    return fit.values


def _flags(fit: Fit, cost: Cost, N: float, D: float) -> tuple[str, ...]:
    """Unmeasured quantities that the optimum depends on."""
    found = list(fit.flags)
    for name, value, fitted in zip(("N", "D"), (N, D), fit.law.arrays(fit.given.x), strict=True):
        if value > fitted.max():
            found.append(f"{name} = {value:.3g} is {value / fitted.max():.2g}× the largest fitted")
        elif value < fitted.min():
            found.append(f"{name} = {value:.3g} is below the smallest fitted, {fitted.min():.3g}")
    if cost.beyond(N):
        found.append(f"FLOPs a token at N = {N:.3g} were not counted: a power law continues them")
    return tuple(found)
