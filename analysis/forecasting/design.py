"""Optimal experimental design: the runs that narrow the interval at a target most for a budget.

c-optimality (Pukelsheim 1993, Optimal Design of Experiments, ch. 2). The half-width of the interval
of log L at the target is t_{n-p} s sqrt(1 + gᵀ M⁻¹ g): g is the gradient of log L at the target, M
the sum of a aᵀ over the runs, a the gradient at a run. A new run adds its a aᵀ to M and one degree
of freedom to n - p. With few runs, the degree of freedom narrows the interval most. Runs of equal x
bring the rule for a lack of fit into it (analysis.forecasting.future_lack).
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.forecasting.future_lack import FutureLack

Array = NDArray[np.float64]
Counts = NDArray[np.intp]

EXHAUSTIVE = 20_000  # up to this number of plans, all of them are evaluated


@dataclass(frozen=True)
class Design:
    """The linearised problem: p parameters, G kinds of candidate runs. Runs of one kind differ in
    their seed only.
    """

    information: Array  # (p, p), M of the finished runs
    gradients: Array  # (G, p), a of each kind
    target: Array  # (p,), g
    flops: Array  # (G,), of one run of each kind
    copies: Counts  # (G,), the number of candidates of each kind
    spread: float  # s, residual standard deviation of log L
    t_quantiles: Array  # entry k: the t quantile after k more runs
    new_run: bool  # interval of a new run at the target, else of the law itself
    lack: FutureLack | None = None  # None: the interval has no rule for a lack of fit

    def half_widths(self, counts: Counts) -> Array:
        """(B,) half-widths of log L at the target with `counts` (B, G) more runs of each kind."""
        gradients = self.gradients
        # (B, p, p): M gains a aᵀ for every new run.
        added = np.einsum(
            "bg,gp,gq->bpq", counts.astype(float), gradients, gradients, optimize=True
        )
        information = self.information + added
        right = np.broadcast_to(self.target[:, None], (len(counts), len(self.target), 1))
        solved = np.linalg.solve(information, right)[..., 0]
        variance = solved @ self.target
        half = self.t_quantiles[counts.sum(1)] * self.spread * np.sqrt(self.new_run + variance)
        if self.lack is not None:
            half = half * self.lack.factors(counts, information)
        return np.asarray(half)

    def ordered_runs(self, counts: Counts) -> list[tuple[int, float]]:
        """The runs of `counts` as (kind, half-width after this run), in greedy order: each run is
        the one that narrows the interval most per FLOP.
        """
        return self._greedy(np.zeros_like(counts), counts, math.inf, per_flop=True)

    def greedy_plan(self, start: Counts, budget: float, per_flop: bool) -> Counts:
        """`start` (G,) extended run by run within `budget`: each time by the run that narrows the
        interval most (per FLOP, if `per_flop`).
        """
        counts = start.copy()
        for kind, _ in self._greedy(start, self.copies, budget, per_flop):
            counts[kind] += 1
        return counts

    def _greedy(
        self, start: Counts, copies: Counts, budget: float, per_flop: bool
    ) -> list[tuple[int, float]]:
        counts, flops_left = start.copy(), budget - float(start @ self.flops)
        one_more = np.eye(len(counts), dtype=np.intp)
        half, steps = float(self.half_widths(counts[None])[0]), []
        while (allowed := (counts < copies) & (self.flops <= flops_left)).any():
            kinds = np.flatnonzero(allowed)
            after = self.half_widths(counts + one_more[kinds])
            gain = half - after
            best = int((gain / self.flops[kinds] if per_flop else gain).argmax())
            kind, half = int(kinds[best]), float(after[best])
            counts[kind] += 1
            flops_left -= float(self.flops[kind])
            steps.append((kind, half))
        return steps


def narrowest_within(design: Design, budget: float) -> tuple[Counts, str]:
    """The counts (G,) with the narrowest interval within `budget`, and the search method."""
    budget *= 1 + 1e-12  # a budget that equals a sum of costs must not be missed by rounding
    max_counts = np.minimum(design.copies, np.floor(budget / design.flops)).astype(int)
    plan_count = math.prod(int(count) + 1 for count in max_counts)
    if plan_count <= EXHAUSTIVE:
        all_plans = np.array(list(itertools.product(*(range(count + 1) for count in max_counts))))
        affordable = all_plans[all_plans @ design.flops <= budget]
        return _narrowest(design, affordable), f"the best of all {len(affordable):,} plans"
    # Greedy by width per FLOP can fill the budget with cheap runs, greedy by width alone can spend
    # it on one run. Both are tried, from nothing and from each single run.
    kinds = np.flatnonzero(max_counts)
    starts = [np.zeros_like(max_counts), *np.eye(len(max_counts), dtype=np.intp)[kinds]]
    greedy = [
        design.greedy_plan(start, budget, ratio) for start in starts for ratio in (True, False)
    ]
    counts = _narrowest(design, np.unique(np.array(greedy), axis=0))
    return _exchanged(design, counts, budget), "greedy from each run, then exchanges of pairs"


def _narrowest(design: Design, plans: Counts) -> Counts:
    """The plan (G,) of `plans` (B, G) with the narrowest interval; among equals the cheapest."""
    half_widths = design.half_widths(plans)
    equal = half_widths <= half_widths.min() * (1 + 1e-12)
    best: Counts = plans[equal][(plans[equal] @ design.flops).argmin()]
    return best


def _exchanged(design: Design, counts: Counts, budget: float) -> Counts:
    """Local search from `counts` (G,): adds a run or replaces one kind by another, then refills the
    budget, until no change narrows the interval.
    """
    unit = np.eye(len(counts), dtype=np.intp)
    # (changes, G): one more run of a kind, or one more of a kind and one fewer of another.
    changes = np.unique(np.concatenate([unit, *(unit - row for row in unit)]), axis=0)
    while True:
        neighbours = counts + changes
        allowed = ((neighbours >= 0) & (neighbours <= design.copies)).all(1) & (
            neighbours @ design.flops <= budget
        )
        if not allowed.any():
            return counts
        candidates = _refilled(design, neighbours[allowed], budget)
        best = _narrowest(design, candidates)
        # The margin keeps rounding from continuing the search among equal plans.
        if design.half_widths(best[None])[0] >= design.half_widths(counts[None])[0] * (1 - 1e-12):
            return counts
        counts = best


def _refilled(design: Design, plans: Counts, budget: float) -> Counts:
    """`plans`, and the ten narrowest of them extended greedily to the budget."""
    # Only ten, because each greedy extension is a loop over single runs.
    narrowest = plans[design.half_widths(plans).argsort()[:10]]
    extended = [design.greedy_plan(start, budget, per_flop=True) for start in narrowest]
    return np.concatenate([plans, np.array(extended)])
