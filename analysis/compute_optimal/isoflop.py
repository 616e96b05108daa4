"""Approach 2: runs grouped by budget, a parabola for each (Hoffmann et al. 2022, §3.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.compute_optimal.cost import Cost, six_nd
from analysis.compute_optimal.parabola import (
    BUDGET_TOLERANCE,
    MAX_FACTOR,
    IsoFlopError,
    Parabola,
    parabola,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class IsoFlops:
    """The parabolas in order of budget, and the errors of the budgets that have none."""

    parabolas: tuple[Parabola, ...]
    refused: tuple[IsoFlopError, ...]
    unused: int  # number of runs that belong to no budget
    cost: Cost


def isoflops(
    N: ArrayLike,
    C: ArrayLike,
    L: ArrayLike,
    *,
    budgets: Sequence[float] | None = None,
    cost: Cost | None = None,
    budget_tolerance: float = BUDGET_TOLERANCE,
    max_factor: float = MAX_FACTOR,
    drop_far_points: bool = True,
) -> IsoFlops:
    """A parabola for each budget: sizes N, training FLOPs C and losses L of runs, (n,) each.

    With `budgets`, a run belongs to the nearest budget if it differs by at most `budget_tolerance`,
    otherwise it is unused. Without, runs are grouped at the gaps of log C above `budget_tolerance`.
    See `parabola` for the other arguments.
    """
    sizes, flops, losses = (np.asarray(each, dtype=float).ravel() for each in (N, C, L))
    if not len(sizes) == len(flops) == len(losses):
        raise ValueError(
            f"{len(sizes)} sizes, {len(flops)} FLOPs and {len(losses)} losses must be equally many"
        )
    log_C = np.log(flops)
    if budgets is not None:
        log_budgets = np.log(np.sort(np.asarray(budgets, dtype=float)))
        nearest = np.abs(log_C[:, None] - log_budgets).argmin(1)
        within = np.abs(log_C - log_budgets[nearest]) <= np.log1p(budget_tolerance)
        groups = [np.flatnonzero(within & (nearest == k)) for k in range(len(log_budgets))]
    else:
        # Neighbours in log C closer than the tolerance are one group; `parabola` refuses a group
        # whose whole range is too wide.
        order = np.argsort(log_C, kind="stable")
        groups = np.split(
            order, np.flatnonzero(np.diff(log_C[order]) > np.log1p(budget_tolerance)) + 1
        )
    parabolas, refused = [], []
    for k, group in enumerate(groups):
        budget = float(np.exp(log_budgets[k])) if budgets is not None else None
        try:
            parabolas.append(
                parabola(
                    sizes[group], flops[group], losses[group],
                    budget=budget, cost=cost, budget_tolerance=budget_tolerance,
                    max_factor=max_factor, drop_far_points=drop_far_points,
                )
            )  # fmt: skip
        except IsoFlopError as error:
            refused.append(error)
    unused = len(sizes) - sum(map(len, groups))
    return IsoFlops(tuple(parabolas), tuple(refused), unused, cost or six_nd())


def vertices(parabolas: Sequence[Parabola], resamples: int, seed: int = 0) -> tuple[Array, Array]:
    """(B, budgets) log N* and log L* of parabolas refitted to resampled residuals.

    The residuals of all budgets are pooled and inflated for the three parameters of each parabola.
    NaN where a refit opens downward.
    """
    generator = np.random.default_rng(seed)
    # A parabola of five points has two degrees of freedom, too few residuals to resample alone.
    residuals = np.concatenate([each.residuals for each in parabolas])
    degrees_of_freedom = len(residuals) - 3 * len(parabolas)
    pool = residuals * np.sqrt(len(residuals) / degrees_of_freedom)
    log_N, log_L = [], []
    for each in parabolas:
        drawn = generator.choice(pool, size=(resamples, len(each.sizes)))
        # Coefficients are linear in log L: a change of residuals (B, n) moves them by (B, 3).
        change = drawn @ np.linalg.pinv(each.design).T
        c0, c1, c2 = (each.coefficients + change).T
        vertex = -c1 / (2 * np.where(c2 > 0, c2, np.nan))
        # u = log(N / centre); L at the vertex is c0 + c1 u + c2 u².
        log_N.append(np.log(each.centre) + vertex)
        log_L.append(c0 + vertex * (c1 + vertex * c2))
    return np.stack(log_N, axis=1), np.stack(log_L, axis=1)
