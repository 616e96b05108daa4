"""What each of three approaches says of the best N and D for a budget.

1 reads sizes off the envelope of training curves, 2 the vertices of isoFLOP parabolas, 3 the optima
of a fitted surface (Hoffmann et al. 2022, §3). Each becomes a pair of lines in logs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.compute_optimal.cost import Cost, different
from analysis.compute_optimal.frontier import Frontier, FrontierError
from analysis.compute_optimal.frontier_band import resampled
from analysis.compute_optimal.isoflop import IsoFlops, vertices
from analysis.compute_optimal.surface_optimum import optimal, optimum
from analysis.fitting.fit import Fit
from analysis.uncertainty.bootstrap import Bootstrap
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

NAMES = {
    1: "envelope of training curves",
    2: "isoFLOP parabolas",
    3: "optimum of the surface",
}
RESAMPLES = 1000
_BUDGETS = 9  # over the range of the data, through which a line stands for an optimum's curve
_LEAST_SIZES = 3


class NoAnswer(FrontierError):
    """An approach cannot be taken with these runs; the message says why."""


@dataclass(frozen=True)
class Approach:
    """N* = k_N C^a and D* = k_D C^b, as one approach sees it over `budgets`, in FLOPs."""

    number: int
    name: str
    a: float
    b: float
    k_N: float
    k_D: float  # tokens
    a_interval: Interval
    b_interval: Interval
    budgets: tuple[float, float]  # from, to
    notes: tuple[str, ...] = ()

    def N(self, C: float) -> float:
        return float(self.k_N * C**self.a)

    def D(self, C: float) -> float:
        return float(self.k_D * C**self.b)


def from_envelope(
    found: Frontier, cost: Cost, resamples: int = RESAMPLES, seed: int = 0
) -> Approach:
    """Approach 1: the sizes on the frontier, where they are its own and no bound (not censored).

    Raises NoAnswer where fewer than three sizes are.
    """
    own, candidates = ~found.censored, found.candidates
    sizes = different(found.size[own])
    if sizes < _LEAST_SIZES:
        reasons = Counter(why for why in found.why if why).most_common(1)
        most = f" (of most points: {reasons[0][0]})" if reasons else ""
        raise NoAnswer(
            f"{sizes} sizes have a stretch of the frontier that is no bound; {_LEAST_SIZES} are "
            f"the least: record runs until a larger size beats them, from before they beat a "
            f"smaller one, and add sizes at both ends{most}"
        )
    kept = resampled(found, resamples, seed) & _unbounded(found)
    used = kept.any(axis=0)
    weights = kept[:, used].astype(float)
    few = weights.sum(1) < _LEAST_SIZES
    log_C = np.log(candidates.flops[used])
    pairs = []
    for each, flops, size, tokens in (
        (own, found.flops, found.size, found.tokens),
        (used, candidates.flops, candidates.size, candidates.tokens),
    ):
        D = np.where(np.isfinite(tokens), tokens, cost.tokens(size, flops))
        pairs.append((np.log(size[each]), np.log(D[each])))
    drawn = [lines(log_C, value, weights)[0] for value in pairs[1]]
    for slopes in drawn:
        slopes[few] = np.nan
    basis = f"{own.sum()} points of {sizes} sizes, {len(candidates.runs)} runs"
    method = f"percentile bootstrap over {len(candidates.runs)} runs"
    notes = (f"{found.censored.sum()} censored points left out",) if found.censored.any() else ()
    log_C = np.log(found.flops[own])
    return _approach(1, log_C, pairs[0], drawn, method, basis, notes)


def _unbounded(found: Frontier) -> NDArray[np.bool_]:
    """(n,) candidates at computes where the frontier is its own: the same in every resample."""
    own = np.array([not why for why in found.candidates.why])
    best = found.candidates.best
    return np.asarray(own[np.maximum.accumulate(np.where(best, np.arange(len(best)), 0))])


def from_parabolas(found: IsoFlops, resamples: int = RESAMPLES, seed: int = 0) -> Approach:
    """Approach 2: a line through log N* of the parabolas, each weighted by how sharp it is.

    Raises NoAnswer for under two of them.
    """
    parabolas = found.parabolas
    if len(parabolas) < 2:
        reasons = "; ".join(map(str, found.refused[:5])) or "no budget was shared by runs"
        more = f"; and {len(found.refused) - 5} more" if len(found.refused) > 5 else ""
        raise NoAnswer(
            f"{len(parabolas)} budgets show an optimum, two are the least. {reasons}{more}"
        )
    budgets = np.array([each.budget for each in parabolas])
    log_N = np.log([each.N for each in parabolas])
    drawn_N = vertices(parabolas, resamples, seed)[0]
    pairs = [
        (sizes, np.log(found.cost.tokens(np.exp(sizes), budgets))) for sizes in (log_N, drawn_N)
    ]
    sharp = 1 / np.array([[each.uncertainty for each in parabolas]])
    drawn = [lines(np.log(budgets), each, sharp)[0] for each in pairs[1]]
    points = sum(len(each.sizes) for each in parabolas)
    notes = tuple(str(error) for error in found.refused)
    narrowed = sum(each.left_out for each in parabolas)
    notes += (f"{narrowed} points far from their minimum left out",) if narrowed else ()
    return _approach(
        2, np.log(budgets), pairs[0], drawn, "bootstrap of pooled residuals",
        f"{len(parabolas)} budgets, {points} points", notes, sharp,
    )  # fmt: skip


def from_surface(fit: Fit, cost: Cost, budgets: tuple[float, float], draws: Bootstrap) -> Approach:
    """Approach 3: the surface's optima over `budgets` (from, to), exact where C = k N^q D."""
    at = np.geomspace(*budgets, _BUDGETS)
    best = optimal(fit, cost, budgets[1], draws)
    N, D, _ = optimum(fit.values, cost, at)
    columns = {name: values[:, None] for name, values in draws.values.items()}
    drawn = [lines(np.log(at), np.log(each))[0] for each in optimum(columns, cost, at)[:2]]
    basis = best.N_interval.basis
    return _approach(
        3, np.log(at), (np.log(N), np.log(D)), drawn, best.N_interval.method, basis,
        best.flags,
    )  # fmt: skip


def lines(log_C: Array, values: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Slope and value at log C = 0, (B,) each, of least squares lines through (n,) or (B, n)."""
    w = np.ones((1, len(log_C))) if weights is None else weights
    total = w.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle, height = (w @ log_C) / total, (w * values).sum(1) / total
        away = w * (log_C - middle[:, None])
        slope = (away * values).sum(1) / (away * (log_C - middle[:, None])).sum(1)
    return slope, height - slope * middle


def _approach(
    number: int, log_C: Array, pair: tuple[Array, Array], drawn: Sequence[Array],
    method: str, basis: str, notes: tuple[str, ...], weights: Array | None = None,
) -> Approach:  # fmt: skip
    (a, k_N), (b, k_D) = (
        (float(slope[0]), float(np.exp(offset[0])))
        for slope, offset in (lines(log_C, values, weights) for values in pair)
    )
    intervals = []
    for slopes in drawn:
        usable = slopes[np.isfinite(slopes)]
        if len(usable) < 20:
            raise NoAnswer(f"{len(usable)} of {len(slopes)} resamples have an optimum")
        low, high = np.percentile(usable, [2.5, 97.5])
        intervals.append(Interval(float(low), float(high), 0.95, method, basis))
    budgets = (float(np.exp(log_C.min())), float(np.exp(log_C.max())))
    return Approach(
        number, NAMES[number], a, b, k_N, k_D, intervals[0], intervals[1], budgets, notes
    )
