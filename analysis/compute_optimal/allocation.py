"""Approaches 1, 2 and 3 to the best N and D for a budget, side by side; approach 3 is preferred.

Approach 3 uses all runs, includes the irreducible loss E, and is the only one without a bias from
the grid of sizes. The differences between the approaches are reported. Where approach 3 is refused,
no other approach replaces it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.compute_optimal.approach import (
    NAMES,
    RESAMPLES,
    Approach,
    NoEstimate,
    from_envelope,
    from_minima,
    from_surface,
)
from analysis.compute_optimal.cost import Cost, cost_of
from analysis.compute_optimal.frontier import (
    UNRECORDED,
    Frontier,
    frontier,
    run_ends,
)
from analysis.compute_optimal.isoflop import LOG_PARABOLA, IsoFlops, isoflops
from analysis.compute_optimal.surface import seed_clusters
from analysis.compute_optimal.surface_optimum import Allocation, AllocationError, optimal
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import SURFACE
from analysis.fitting.objectives import HUBER, Objective
from analysis.fitting.points import FitError
from analysis.uncertainty.bootstrap import bootstrap_of_surface
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

_COLUMNS = (
    "approach", "by", "a", "a_low", "a_high", "b", "b_low", "b_high", "k_N", "k_D", "N", "D",
    "refused", "interval",
)  # fmt: skip

__all__ = ["Allocation", "Approach", "Approaches", "approaches", "optimal"]


@dataclass(frozen=True)
class Approaches:
    """The estimate of each approach, or the reason for its absence, and their differences."""

    cost: str
    budget: float  # FLOPs at which the estimates are compared
    estimates: tuple[Approach, ...]
    refused: dict[int, str]  # number of the approach: the reason
    frontier: Frontier
    isoflops: IsoFlops
    fit: Fit | None  # of the surface (approach 3)

    @property
    def preferred(self) -> Approach | None:
        """Approach 3; None where it was refused, because no other approach replaces it."""
        return next((each for each in self.estimates if each.number == 3), None)

    @property
    def disagreement(self) -> tuple[str, ...]:
        """For each pair, in words: both exponents, and both best sizes at `budget`."""
        lines = []
        for first, second in combinations(self.estimates, 2):
            agreement = ""
            if first.a_interval is not None and second.a_interval is not None:
                overlap = _agreement(first.a_interval, second.a_interval)
                agreement = f", intervals {overlap}"
            N, other_N = first.N(self.budget), second.N(self.budget)
            lines.append(
                f"{first.number} and {second.number}: a {first.a:.3g} and {second.a:.3g}"
                f"{agreement}; N* at {self.budget:.3g} FLOPs {N:.4g} and {other_N:.4g}, ratio "
                f"{N / other_N:.4g}"
            )
        return tuple(lines)

    def table(self) -> pd.DataFrame:
        """One row per approach: its numbers, or the reason why it was refused."""
        rows = [
            {
                "approach": each.number, "by": each.name, "a": each.a,
                **_ends("a", each.a_interval), "b": each.b, **_ends("b", each.b_interval),
                "k_N": each.k_N, "k_D": each.k_D, "N": each.N(self.budget),
                "D": each.D(self.budget), "refused": "", "interval": each.interval_method,
            }
            for each in self.estimates
        ]  # fmt: skip
        rows += [
            {"approach": number, "by": NAMES[number], "refused": reason}
            for number, reason in self.refused.items()
        ]
        return pd.DataFrame(rows, columns=list(_COLUMNS)).sort_values("approach", ignore_index=True)


def approaches(
    rows: pd.DataFrame,
    metric: str,
    *,
    params: str = "params_blocks",
    cost: Cost | None = None,
    schedule: str | None = None,
    within_runs: bool | None = None,
    budgets: Sequence[float] | None = None,
    budget: float | None = None,
    objective: str | Objective = HUBER,
    floor: float | None = None,
    weights: str | None = None,
    curve: str = LOG_PARABOLA,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Approaches:
    """All three approaches on a table of evaluations; an approach that fails is in `refused`.

    Raises FrontierError where no frontier can be formed: it selects the runs of all approaches.
    `cost` is by default the table's own C(N, D); raises CostError where the table has none.
    Approach 1 uses the frontier under `schedule` and `within_runs`. Approaches 2 and 3 use the ends
    of the runs of that schedule; approach 2 groups them by `budgets` and takes the minimum of each
    group from `curve` (analysis.compute_optimal.isoflop.CURVES). The estimates are compared at
    `budget`, by default the largest training FLOPs of a run. `objective`, `floor` (a fixed E) and
    `weights` (a column) are those of the surface of approach 3; the lines and parabolas of the
    other approaches are least squares.
    """
    cost = cost_of(rows, params) if cost is None else cost
    # First the frontier: it selects the schedule, and the other approaches use the same runs.
    points = frontier(rows, metric, params=params, schedule=schedule, within_runs=within_runs)
    ends = run_ends(_of_schedule(rows, points.schedule), metric, params)
    # One row per finished run: approaches 2 and 3 compare whole runs.
    N, C, L = (ends[name].to_numpy(dtype=float) for name in (params, "train_flops", metric))
    groups = isoflops(N, C, L, budgets=budgets, cost=cost, curve=curve)
    estimates: list[Approach] = []
    refused: dict[int, str] = {}
    fit: Fit | None = None
    # Each approach may be refused on its own; the others are still computed.
    try:
        estimates.append(from_envelope(points, cost))
    except NoEstimate as error:
        refused[1] = str(error)
    try:
        estimates.append(from_minima(groups, resamples, seed))
    except NoEstimate as error:
        refused[2] = str(error)
    try:
        D = _tokens(ends, cost.tokens(N, C))
        w = None if weights is None else ends[weights].to_numpy(dtype=float)
        fit = fit_law(SURFACE, (N, D), L, objective, floor=floor, weights=w)
        draws = bootstrap_of_surface(fit, resamples, seed, seed_clusters(ends))
        estimates.append(from_surface(fit, cost, (float(C.min()), float(C.max())), draws))
    except (FitError, AllocationError) as error:
        refused[3] = str(error)
    compared_at = float(C.max()) if budget is None else budget
    return Approaches(cost.name, compared_at, tuple(estimates), refused, points, groups, fit)


def _of_schedule(rows: pd.DataFrame, schedule: str) -> pd.DataFrame:
    """The rows of this schedule; all where the table has no schedules."""
    if "schedule" not in rows:
        return rows
    names = rows.schedule.astype(object).where(rows.schedule.notna(), UNRECORDED).astype(str)
    return rows[names == schedule]


def _tokens(ends: pd.DataFrame, paid: Array) -> Array:
    """tokens_seen; where it is unknown, `paid`: the tokens that the run's FLOPs pay for."""
    if "tokens_seen" not in ends:
        return paid
    known = pd.to_numeric(ends.tokens_seen, errors="coerce").to_numpy(dtype=float)
    return np.where(np.isfinite(known), known, paid)


def _ends(name: str, span: Interval | None) -> dict[str, float | None]:
    """The columns of an interval's ends."""
    low, high = (None, None) if span is None else (span.low, span.high)
    return {f"{name}_low": low, f"{name}_high": high}


def _agreement(first: Interval, second: Interval) -> str:
    """Whether two intervals overlap, in words. One without an end agrees with nothing."""
    if not np.isfinite([first.low, first.high, second.low, second.high]).all():
        return "cannot be compared, because one has no end"
    overlap = first.low <= second.high and second.low <= first.high
    return "overlap" if overlap else "do not overlap"
