"""Approach 2: a parabola at each budget, and the law that their vertices follow.

Runs are grouped by what they spent. Hoffmann et al. 2022, §3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.compute_optimal.cost import Cost, six_nd
from analysis.compute_optimal.parabola import SPREAD, WIDEST, IsoFlopError, Parabola, parabola

Array = NDArray[np.float64]


@dataclass(frozen=True)
class IsoFlops:
    """The parabolas of all budgets that have one, by rising budget, and the refusals of others."""

    parabolas: tuple[Parabola, ...]
    refused: tuple[IsoFlopError, ...]
    unused: int  # runs of no budget
    cost: Cost


def isoflops(
    N: ArrayLike,
    C: ArrayLike,
    L: ArrayLike,
    *,
    budgets: Sequence[float] | None = None,
    cost: Cost | None = None,
    spread: float = SPREAD,
    widest: float = WIDEST,
    narrow: bool = True,
) -> IsoFlops:
    """A parabola for each budget: sizes N, training FLOPs C and losses L of runs, (n,) each.

    With `budgets`, runs within `spread` of one belong to it, those of none are `unused`. Without,
    runs are grouped where log C has gaps over `spread`. See `parabola` for the rest.
    """
    sizes, flops, losses = (np.asarray(each, dtype=float).ravel() for each in (N, C, L))
    if not len(sizes) == len(flops) == len(losses):
        raise ValueError(f"{len(sizes)} sizes, {len(flops)} FLOPs and {len(losses)} losses")
    log_C = np.log(flops)
    if budgets is not None:
        given = np.log(np.sort(np.asarray(budgets, dtype=float)))
        nearest = np.abs(log_C[:, None] - given).argmin(1)
        near = np.abs(log_C - given[nearest]) <= np.log1p(spread)
        groups = [np.flatnonzero(near & (nearest == k)) for k in range(len(given))]
    else:
        order = np.argsort(log_C, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(log_C[order]) > np.log1p(spread)) + 1)
    found, refused = [], []
    for k, group in enumerate(groups):
        budget = float(np.exp(given[k])) if budgets is not None else None
        try:
            found.append(
                parabola(
                    sizes[group], flops[group], losses[group],
                    budget=budget, cost=cost, spread=spread, widest=widest, narrow=narrow,
                )
            )  # fmt: skip
        except IsoFlopError as error:
            refused.append(error)
    unused = len(sizes) - sum(map(len, groups))
    return IsoFlops(tuple(found), tuple(refused), unused, cost or six_nd())


def vertices(found: Sequence[Parabola], resamples: int, seed: int = 0) -> tuple[Array, Array]:
    """(B, budgets) log N* and log L* of parabolas refitted to resampled residuals.

    Residuals of all budgets are one pool, widened for the three parameters that each parabola took;
    NaN where a refit opens downward.
    """
    generator = np.random.default_rng(seed)
    residuals = np.concatenate([each.residuals for each in found])
    spare = len(residuals) - 3 * len(found)
    pool = residuals * np.sqrt(len(residuals) / spare)
    log_N, log_L = [], []
    for each in found:
        drawn = generator.choice(pool, size=(resamples, len(each.sizes)))
        moved = drawn @ np.linalg.pinv(each.design).T
        c0, c1, c2 = (each.coefficients + moved).T
        vertex = -c1 / (2 * np.where(c2 > 0, c2, np.nan))
        log_N.append(np.log(each.centre) + vertex)
        log_L.append(c0 + vertex * (c1 + vertex * c2))
    return np.stack(log_N, axis=1), np.stack(log_L, axis=1)
