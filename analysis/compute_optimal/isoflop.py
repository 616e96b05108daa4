"""Approach 2: runs grouped by budget, a curve with a minimum for each (Hoffmann et al. 2022, §3.2).

The curve is a parabola of log L in log N, a parabola of L, or an Akima spline.
"""

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
    refuse_group,
)
from analysis.compute_optimal.spline import Knots, Spline, drawn_minima, knots_of, splines

Array = NDArray[np.float64]

# The curves through the runs of a budget, by name.
LOG_PARABOLA, PARABOLA, SPLINE = "parabola of log L", "parabola of L", "Akima spline of log L"
CURVES = (LOG_PARABOLA, PARABOLA, SPLINE)


@dataclass(frozen=True)
class IsoFlops:
    """The curves with a minimum in order of budget, and the errors of the budgets without one."""

    minima: tuple[Parabola, ...] | tuple[Spline, ...]
    refused: tuple[IsoFlopError, ...]
    unused: int  # number of runs that belong to no budget
    cost: Cost
    curve: str = LOG_PARABOLA  # one of CURVES

    @property
    def noise(self) -> tuple[float, float]:
        """Variance of a run about its curve, over all budgets, and its degrees of freedom."""
        if self.curve == SPLINE:
            noise = self.minima[0].noise  # type: ignore[union-attr]
            return noise.deviation**2, noise.degrees_of_freedom
        residuals = np.concatenate([each.residuals for each in self.minima])  # type: ignore[union-attr]
        degrees_of_freedom = len(residuals) - 3 * len(self.minima)
        return float(residuals @ residuals) / degrees_of_freedom, degrees_of_freedom


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
    curve: str = LOG_PARABOLA,
) -> IsoFlops:
    """A curve for each budget: sizes N, training FLOPs C and losses L of runs, (n,) each.

    With `budgets`, a run belongs to the nearest budget if it differs by at most `budget_tolerance`,
    otherwise it is unused. Without, runs are grouped at the gaps of log C above `budget_tolerance`.
    `curve` is one of CURVES. See `parabola` for the other arguments; a spline uses all runs of its
    budget, also far ones.
    """
    sizes, flops, losses = (np.asarray(each, dtype=float).ravel() for each in (N, C, L))
    if not len(sizes) == len(flops) == len(losses):
        raise ValueError(
            f"{len(sizes)} sizes, {len(flops)} FLOPs and {len(losses)} losses must be equally many"
        )
    if curve not in CURVES:
        raise ValueError(f"curve {curve!r}: one of {', '.join(CURVES)}")
    groups = _groups(np.log(flops), budgets, budget_tolerance)
    parabolas, knots, refused = list[Parabola](), list[Knots](), list[IsoFlopError]()
    for budget, group in groups:
        N_of, C_of, L_of = sizes[group], flops[group], losses[group]
        try:
            if curve == SPLINE:
                budget = float(np.median(C_of)) if budget is None else budget
                refuse_group(budget, N_of, C_of, L_of, budget_tolerance)
                knots.append(knots_of(budget, N_of, L_of))
            else:
                parabolas.append(
                    parabola(
                        N_of, C_of, L_of,
                        budget=budget, cost=cost, budget_tolerance=budget_tolerance,
                        max_factor=max_factor, drop_far_points=drop_far_points,
                        in_loss=curve == PARABOLA,
                    )
                )  # fmt: skip
        except IsoFlopError as error:
            refused.append(error)
    unused = len(sizes) - sum(len(group) for _, group in groups)
    cost = cost or six_nd()
    if curve == SPLINE:
        found, without = splines(knots, cost)
        refused = sorted([*refused, *without], key=lambda error: error.budget)
        return IsoFlops(tuple(found), tuple(refused), unused, cost, curve)
    return IsoFlops(tuple(parabolas), tuple(refused), unused, cost, curve)


def _groups(
    log_C: Array, budgets: Sequence[float] | None, budget_tolerance: float
) -> list[tuple[float | None, NDArray[np.intp]]]:
    """(budget, indices of its runs) in order of budget; None where no budgets are given."""
    if budgets is not None:
        log_budgets = np.log(np.sort(np.asarray(budgets, dtype=float)))
        nearest = np.abs(log_C[:, None] - log_budgets).argmin(1)
        within = np.abs(log_C - log_budgets[nearest]) <= np.log1p(budget_tolerance)
        return [
            (float(np.exp(each)), np.flatnonzero(within & (nearest == k)))
            for k, each in enumerate(log_budgets)
        ]
    # Neighbours in log C closer than the tolerance are one group; a group whose whole range is too
    # wide is refused.
    order = np.argsort(log_C, kind="stable")
    gaps = np.flatnonzero(np.diff(log_C[order]) > np.log1p(budget_tolerance)) + 1
    return [(None, group) for group in np.split(order, gaps)]


def minima_of_resamples(isoflops: IsoFlops, resamples: int, seed: int = 0) -> tuple[Array, Array]:
    """(B, budgets) log N* and L* of curves refitted to resampled runs: log L*, or L* if the
    parabola is of L. Normal noise is added to the runs of splines, residuals to those of parabolas.
    """
    if isoflops.curve == SPLINE:
        return drawn_minima(isoflops.minima, resamples, seed)  # type: ignore[arg-type]
    return vertices(isoflops.minima, resamples, seed)  # type: ignore[arg-type]


def vertices(parabolas: Sequence[Parabola], resamples: int, seed: int = 0) -> tuple[Array, Array]:
    """(B, budgets) log N* and log L* (or L*) of parabolas refitted to resampled residuals.

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
        # Coefficients are linear in log L, or L: a change of residuals (B, n) moves them by (B, 3).
        change = drawn @ np.linalg.pinv(each.design).T
        c0, c1, c2 = (each.coefficients + change).T
        vertex = -c1 / (2 * np.where(c2 > 0, c2, np.nan))
        # u = log(N / centre); L at the vertex is c0 + c1 u + c2 u².
        log_N.append(np.log(each.centre) + vertex)
        log_L.append(c0 + vertex * (c1 + vertex * c2))
    return np.stack(log_N, axis=1), np.stack(log_L, axis=1)
