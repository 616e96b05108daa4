"""The rule for a lack of fit (analysis.uncertainty.profile) in the intervals after a plan.

With several runs of equal x, an interval has the degrees of freedom of the runs, or, where the law
misses the means of equal x by more than their scatter explains, those of the different x. Which of
the two it will be depends on data that do not exist yet:

- Where the present data show a lack of fit, it is taken to be real. Its variance τ² among different
  x and the variance σ² among runs of equal x are estimated from their mean squares, and the lack of
  fit after the plan has its expected mean square.
- Otherwise τ² = 0, and the half-width is the mean over the two outcomes of the test. The share of
  the present sum of squares that is lack of fit is known; new runs add chi-squared parts to it.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from analysis.uncertainty import profile
from analysis.uncertainty.profile import LackOfFit

Array = NDArray[np.float64]
Counts = NDArray[np.intp]

_QUANTILES = (np.arange(64) + 0.5) / 64  # at which a mean over a distribution is computed


@dataclass(frozen=True)
class FutureLack:
    """The finished runs and the kinds of candidate runs by their x: g different ones in all."""

    present: LackOfFit
    parameters: int  # p, fitted
    level: float
    gradients: Array  # (g, p) of log L
    runs: Counts  # (g,) finished
    weights: Array  # (g,) their sum of weights
    place: Counts  # (G,) the x of each kind, as an index of g
    _chances: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)

    def factors(self, counts: Counts, information: Array) -> Array:
        """(B,) expected half-widths with the rule / those without it.

        After `counts` (B, G) more runs of each kind, where M is `information` (B, p, p). Without
        the rule, the half-width has the degrees of freedom of all runs and the present s.
        """
        added = counts @ np.eye(len(self.runs), dtype=np.intp)[self.place]
        sizes = (self.runs + added > 0).sum(1)
        freedom, within = sizes - self.parameters, added.sum(1) + self.runs.sum() - sizes
        if self.present.counts:
            return self._of_real_lack(added, information, freedom, within)
        pairs = zip(freedom.tolist(), within.tolist(), strict=True)
        return np.array([self._by_chance(*pair) for pair in pairs])

    def _of_real_lack(
        self, added: Counts, information: Array, freedom: Counts, within: Counts
    ) -> Array:
        """(B,) factors where the law misses the mean at each x by an error of variance τ²."""
        lack = self.present
        # In units of the present s².
        total = lack.freedom + lack.within
        scatter = (1 - lack.share) * total / lack.within
        mean_square = lack.share * total / lack.freedom
        present = np.einsum("g,gp,gq->pq", self.weights, self.gradients, self.gradients)
        runs = self._runs_of_an_error(self.weights[None], present[None], lack.freedom)
        tau = (mean_square - scatter) / runs[0]
        after = self._runs_of_an_error(self.weights + added, information, freedom)
        t = self._t(freedom) / self._t(freedom + within)
        return np.asarray(t * np.sqrt(scatter + tau * after))

    def _runs_of_an_error(self, weights: Array, information: Array, freedom: Counts | int) -> Array:
        """(B,) the factor of τ² in the expected mean square of the lack of fit.

        `weights` (B, g). The lack of fit is εᵀ (P - H) ε, with the projections P on the means of
        equal x and H on the law; the expectation of the errors shared at each x is τ² times
        Σ w - Σ w² aᵀ M⁻¹ a, over the different x with weights w and gradients a.
        """
        solved = np.linalg.solve(information, np.broadcast_to(
            self.gradients.T, (len(information), *self.gradients.T.shape)
        ))  # fmt: skip
        leverage = np.einsum("gp,bpg->bg", self.gradients, solved)
        return np.asarray((weights.sum(1) - (weights**2 * leverage).sum(1)) / freedom)

    def _by_chance(self, freedom: int, within: int) -> float:
        """The factor where the law holds: the mean over the outcomes of the test."""
        if freedom < 1 or within < 1:
            return 1.0
        key = (freedom, within)
        if key not in self._chances:
            self._chances[key] = self._mean_factor(freedom, within)
        return self._chances[key]

    def _mean_factor(self, freedom: int, within: int) -> float:
        """The lack of fit is the share (1 - V) (1 - (1 - B) W) of S: B is the present share.

        V ~ Beta(new within / 2, (n - p + new freedom) / 2) is the share of the new scatter. Of the
        rest, W ~ Beta((n - p) / 2, new freedom / 2) is the share of the present S.
        """
        total = self.present.freedom + self.present.within
        new_freedom, new_within = freedom - self.present.freedom, within - self.present.within
        W = special.betaincinv(total / 2, new_freedom / 2, _QUANTILES) if new_freedom else 1.0
        old = np.atleast_1d(1 - (1 - self.present.share) * W)  # share of the lack of fit if V = 0
        critical = float(stats.f.isf(profile.DOUBT, freedom, within))
        critical = critical * freedom / (critical * freedom + within)  # of the share
        with np.errstate(divide="ignore"):
            highest = np.clip(1 - critical / old, 0, 1)  # V below it: the lack of fit counts
        if new_within:
            v, rest = new_within / 2, (total + new_freedom) / 2
            chance = special.betainc(v, rest, highest)
            # E[sqrt(1 - V); V < highest]
            ratio = np.exp(special.betaln(v, rest + 0.5) - special.betaln(v, rest))
            root = ratio * special.betainc(v, rest + 0.5, highest)
        else:
            chance = root = np.asarray(highest > 0, dtype=float)
        t = self._t(freedom) / self._t(freedom + within)
        wider = t * np.sqrt(old * (freedom + within) / freedom) * root
        return float(np.mean(1 - chance + wider))

    def _t(self, freedom: Counts | int) -> Array:
        return np.asarray(stats.t.ppf((1 + self.level) / 2, freedom))
