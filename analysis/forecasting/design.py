"""The narrowest interval at one point for a budget: an optimal design, all plans or greedy.

c-optimality (Pukelsheim 1993, Optimal Design of Experiments, ch. 2). Of log L at the target the
half-width is t_{n-p} s sqrt(1 + gᵀ M⁻¹ g), g the gradient there, M the sum of a aᵀ over runs. A new
run adds its own a aᵀ and, through n, a degree of freedom: from few runs that is most of its worth.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.intp]

EXHAUSTIVE = 20_000  # plans up to which all are tried


@dataclass(frozen=True)
class Design:
    """The linear problem: what the runs so far know, and what one of each kind would add."""

    known: Array  # (p, p), M
    rows: Array  # (G, p), a of each kind
    target: Array  # (p,), g
    flops: Array  # (G,)
    copies: Counts  # (G,)
    spread: float  # s, of log L
    student: Array  # t quantiles with no, one, two, ... runs more
    new_run: bool

    def half_widths(self, counts: Counts) -> Array:
        """(B,) half-widths of log L at the target with `counts` (B, G) of each kind besides."""
        more = np.einsum("bg,gp,gq->bpq", counts.astype(float), self.rows, self.rows, optimize=True)
        right = np.broadcast_to(self.target[:, None], (len(counts), len(self.target), 1))
        solved = np.linalg.solve(self.known + more, right)[..., 0]
        return self._half(solved @ self.target, counts.sum(1))

    def in_order(self, counts: Counts) -> list[tuple[int, float]]:
        """The runs of `counts`, most narrowing a FLOP first, with the half-width after each."""
        return self._greedy(np.zeros_like(counts), counts, math.inf, per_flop=True)

    def greedily(self, start: Counts, budget: float, per_flop: bool) -> Counts:
        """`start` (G,) and what, one after the other, narrows most (a FLOP) within the budget."""
        found = start.copy()
        for kind, _ in self._greedy(start, self.copies, budget, per_flop):
            found[kind] += 1
        return found

    def _greedy(
        self, start: Counts, copies: Counts, budget: float, per_flop: bool
    ) -> list[tuple[int, float]]:
        inverse = np.linalg.inv(self.known + (self.rows.T * start) @ self.rows)
        counts, left = start.copy(), budget - float(start @ self.flops)
        found = []
        while (open_ := (counts < copies) & (self.flops <= left)).any():
            # Sherman and Morrison: one more a aᵀ takes (gᵀ M⁻¹ a)² / (1 + aᵀ M⁻¹ a) off gᵀ M⁻¹ g.
            towards = self.rows @ inverse
            own = 1 + np.einsum("gp,gp->g", towards, self.rows)
            variance = float(self.target @ inverse @ self.target)
            more = int(counts.sum())
            after = self._half(variance - (towards @ self.target) ** 2 / own, more + 1)
            gain = self._half(np.array([variance]), more) - after
            worth = np.where(open_, gain / self.flops if per_flop else gain, -np.inf)
            kind = int(worth.argmax())
            inverse -= np.outer(towards[kind], towards[kind]) / own[kind]
            counts[kind] += 1
            left -= float(self.flops[kind])
            found.append((kind, float(after[kind])))
        return found

    def _half(self, variance: Array, more: Counts | int) -> Array:
        return np.asarray(self.student[more] * self.spread * np.sqrt(self.new_run + variance))


def narrowest_within(design: Design, budget: float) -> tuple[Counts, str]:
    """The counts (G,) of the narrowest interval within `budget`, and how they were found."""
    most = np.minimum(design.copies, np.floor(budget / design.flops * (1 + 1e-12))).astype(int)
    plans = math.prod(int(each) + 1 for each in most)
    if plans <= EXHAUSTIVE:
        every = np.array(list(itertools.product(*(range(each + 1) for each in most))))
        within = every[every @ design.flops <= budget * (1 + 1e-12)]
        return _narrowest(design, within), f"the best of all {len(within):,} plans"
    kinds = np.flatnonzero(most)
    starts = [np.zeros_like(most), *np.eye(len(most), dtype=np.intp)[kinds]]
    greedy = [design.greedily(start, budget, ratio) for start in starts for ratio in (True, False)]
    counts = _narrowest(design, np.unique(np.array(greedy), axis=0))
    return _exchanged(design, counts, budget), "greedy from each run, then exchanges of pairs"


def _narrowest(design: Design, plans: Counts) -> Counts:
    """The narrowest; of equals the cheapest."""
    half = design.half_widths(plans)
    equal = half <= half.min() * (1 + 1e-12)
    best: Counts = plans[equal][(plans[equal] @ design.flops).argmin()]
    return best


def _exchanged(design: Design, counts: Counts, budget: float) -> Counts:
    """Until no run added, nor one (or two) put in another's place, narrows the interval."""
    one = np.eye(len(counts), dtype=np.intp)
    changes = np.unique(np.concatenate([one, *(one - each for each in one)]), axis=0)
    while True:
        near = counts + changes
        allowed = ((near >= 0) & (near <= design.copies)).all(1) & (near @ design.flops <= budget)
        if not allowed.any():
            return counts
        filled = _refilled(design, near[allowed], budget)
        best = _narrowest(design, filled)
        if design.half_widths(best[None])[0] >= design.half_widths(counts[None])[0] * (1 - 1e-12):
            return counts
        counts = best


def _refilled(design: Design, plans: Counts, budget: float) -> Counts:
    """`plans`, and the ten narrowest of them with what the budget still allows."""
    ten = plans[design.half_widths(plans).argsort()[:10]]
    more = [design.greedily(one, budget, per_flop=True) for one in ten]
    return np.concatenate([plans, np.array(more)])
