"""Approaches 1, 2 and 3 to the best N and D for a budget, side by side; the third decides.

3 uses all runs, knows of the floor, and is the only one that a grid of sizes neither rounds nor
bends. Where the others disagree, it is said by how much; where 3 is refused, nothing is decided.
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
    NoAnswer,
    from_envelope,
    from_parabolas,
    from_surface,
)
from analysis.compute_optimal.cost import Cost, cost_of
from analysis.compute_optimal.frontier import (
    UNRECORDED,
    Frontier,
    FrontierError,
    frontier,
    run_ends,
)
from analysis.compute_optimal.isoflop import IsoFlops, isoflops
from analysis.compute_optimal.surface_optimum import Allocation, AllocationError, optimal
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import SURFACE
from analysis.fitting.points import FitError
from analysis.uncertainty.bootstrap import bootstrap
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

_ENOUGH_SEEDS = 5

__all__ = ["Allocation", "Approach", "Approaches", "approaches", "optimal"]


@dataclass(frozen=True)
class Approaches:
    """What each approach says, or why it says nothing, and how far they are apart at `budget`."""

    cost: str
    budget: float
    answers: tuple[Approach, ...]
    refused: dict[int, str]  # number of an approach: the reason
    frontier: Frontier | None
    isoflops: IsoFlops
    fit: Fit | None  # the surface

    @property
    def decided(self) -> Approach | None:
        """Approach 3, or None: no other is taken in its place."""
        return next((each for each in self.answers if each.number == 3), None)

    @property
    def disagreement(self) -> tuple[str, ...]:
        """Of each pair, in words: exponents, and the size that is best at `budget`."""
        return tuple(
            f"{one.number} and {other.number}: a {one.a:.3f} and {other.a:.3f}, intervals "
            f"{'overlap' if _overlap(one.a_interval, other.a_interval) else 'apart'}; "
            f"N* at {self.budget:.3g} FLOPs {one.N(self.budget):.4g} and "
            f"{other.N(self.budget):.4g}, ratio {one.N(self.budget) / other.N(self.budget):.3f}"
            for one, other in combinations(self.answers, 2)
        )

    def table(self) -> pd.DataFrame:
        """One row an approach: its numbers, or its refusal."""
        rows = [
            {
                "approach": each.number, "by": each.name, "a": each.a,
                "a_low": each.a_interval.low, "a_high": each.a_interval.high, "b": each.b,
                "b_low": each.b_interval.low, "b_high": each.b_interval.high,
                "k_N": each.k_N, "k_D": each.k_D, "N": each.N(self.budget),
                "D": each.D(self.budget), "refused": "", "interval": each.a_interval.method,
            }
            for each in self.answers
        ]  # fmt: skip
        rows += [
            {"approach": number, "by": NAMES[number], "refused": why}
            for number, why in self.refused.items()
        ]
        return pd.DataFrame(rows).sort_values("approach", ignore_index=True)


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
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Approaches:
    """All three approaches on a table of evaluations; what cannot be is refused in words.

    `cost` is by default the table's own C(N, D) (raises CostError where it has none). 1 takes the
    frontier under `schedule` and `within_runs`; 2 and 3 the ends of runs of that schedule, grouped
    by `budgets`. They are compared at `budget`, by default the most that a run has spent.
    """
    cost = cost_of(rows, params) if cost is None else cost
    found = frontier(rows, metric, params=params, schedule=schedule, within_runs=within_runs)
    if "schedule" in rows:
        named = rows.schedule.astype(object).where(rows.schedule.notna(), UNRECORDED).astype(str)
        rows = rows[named == found.schedule]
    ends = run_ends(rows, metric, params)
    N, C, L = (ends[name].to_numpy(dtype=float) for name in (params, "train_flops", metric))
    parabolas = isoflops(N, C, L, budgets=budgets, cost=cost)
    answers: list[Approach] = []
    refused: dict[int, str] = {}
    fit: Fit | None = None
    try:
        answers.append(from_envelope(found, cost, resamples, seed))
    except (NoAnswer, FrontierError) as error:
        refused[1] = str(error)
    try:
        answers.append(from_parabolas(parabolas, resamples, seed))
    except NoAnswer as error:
        refused[2] = str(error)
    try:
        fit = fit_law(SURFACE, (N, _tokens(ends, cost.tokens(N, C))), L)
        draws = bootstrap(fit, resamples, seed, clusters=_seeds(ends))
        answers.append(from_surface(fit, cost, (float(C.min()), float(C.max())), draws))
    except (FitError, AllocationError) as error:
        refused[3] = str(error)
    at = float(C.max()) if budget is None else budget
    return Approaches(cost.name, at, tuple(answers), refused, found, parabolas, fit)


def _tokens(ends: pd.DataFrame, paid: Array) -> Array:
    """tokens_seen; where it is missing, the tokens that the run's FLOPs correspond to."""
    if "tokens_seen" not in ends:
        return paid
    known = pd.to_numeric(ends.tokens_seen, errors="coerce").to_numpy(dtype=float)
    return np.where(np.isfinite(known), known, paid)


def _seeds(ends: pd.DataFrame) -> Array | None:
    """Labels to resample by, where runs have seeds enough; else each run is drawn by itself."""
    if "seed" not in ends or ends.seed.isna().any() or ends.seed.nunique() < _ENOUGH_SEEDS:
        return None
    return ends.seed.to_numpy(dtype=float)


def _overlap(one: Interval, other: Interval) -> bool:
    return one.low <= other.high and other.low <= one.high
