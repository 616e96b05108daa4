"""The three approaches to the best N and D for a budget (Hoffmann et al. 2022, §3).

Approach 1 uses the sizes on the envelope of training curves, approach 2 the minima of isoFLOP
curves, approach 3 the optima of a fitted surface. Each gives log N* and log D* as straight lines
in log C.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.compute_optimal.cost import Cost, count_sizes
from analysis.compute_optimal.frontier import Frontier, FrontierError
from analysis.compute_optimal.isoflop import LOG_PARABOLA, SPLINE, IsoFlops, minima_of_resamples
from analysis.compute_optimal.surface_optimum import optimal, optimum
from analysis.fitting.fit import Fit
from analysis.uncertainty.bootstrap import Bootstrap
from analysis.uncertainty.intervals import Interval
from analysis.uncertainty.profile import DOUBT
from var_scaling.text import counted

Array = NDArray[np.float64]

NAMES = {
    1: "envelope of training curves",
    2: "isoFLOP parabolas",
    3: "optimum of the surface",
}
RESAMPLES = 1000
_BUDGETS = 9  # over the range of the data, at which approach 3 is approximated by a line
_MIN_SIZES = 3
_NO_INTERVAL = "none: those of resampled runs were not calibrated in simulations"  # LOG.md


class NoEstimate(FrontierError):
    """An approach has no estimate from these runs; the message says why."""


@dataclass(frozen=True)
class Approach:
    """N* = k_N C^a and D* = k_D C^b by one approach, estimated over `budgets` (FLOPs)."""

    number: int
    name: str
    a: float
    b: float
    k_N: float
    k_D: float  # tokens
    a_interval: Interval | None
    b_interval: Interval | None
    budgets: tuple[float, float]  # lowest, highest
    interval_method: str  # of both intervals, or why there are none
    notes: tuple[str, ...] = ()

    def N(self, C: float) -> float:
        """The best size for C FLOPs."""
        return float(self.k_N * C**self.a)

    def D(self, C: float) -> float:
        """The best number of tokens for C FLOPs."""
        return float(self.k_D * C**self.b)


def from_envelope(frontier: Frontier, cost: Cost) -> Approach:
    """Approach 1: lines through the sizes and tokens of the uncensored frontier points.

    It has no interval: the points are few of many runs, and a resample lacks whole sizes. Raises
    NoEstimate where the points have fewer than three different sizes.
    """
    uncensored = ~frontier.censored
    sizes = count_sizes(frontier.size[uncensored])
    if sizes < _MIN_SIZES:
        reasons = Counter(reason for reason in frontier.why if reason).most_common(1)
        commonest = f" (the reason of most points: {reasons[0][0]})" if reasons else ""
        raise NoEstimate(
            f"uncensored frontier points of {counted(sizes, 'size')}; {_MIN_SIZES} are the least: "
            "record each run from before it is the best until a larger size is better, and "
            f"add sizes at both ends{commonest}"
        )
    C, N, D = (each[uncensored] for each in (frontier.flops, frontier.size, frontier.tokens))
    D = np.where(np.isfinite(D), D, cost.tokens(N, C))
    left_out = int(frontier.censored.sum())
    notes = (f"{counted(left_out, 'censored point')} left out",) if left_out else ()
    return _approach(1, np.log(C), (np.log(N), np.log(D)), None, _NO_INTERVAL, "", notes)


def from_minima(isoflops: IsoFlops, resamples: int = RESAMPLES, seed: int = 0) -> Approach:
    """Approach 2: lines through the minima of the isoFLOPs, weighted by their precision.

    Raises NoEstimate where there are fewer than two minima.
    """
    minima = isoflops.minima
    if len(minima) < 2:
        reasons = "; ".join(map(str, isoflops.refused[:5])) or "no two runs have the same budget"
        more = f"; and {len(isoflops.refused) - 5} more" if len(isoflops.refused) > 5 else ""
        raise NoEstimate(
            f"an optimum at {counted(len(minima), 'budget')}; at least two are needed. "
            f"{reasons}{more}"
        )
    budgets = np.array([each.budget for each in minima])
    log_N = np.log([each.N for each in minima])
    drawn_N = minima_of_resamples(isoflops, resamples, seed)[0]
    # A refit with hardly any curvature has no minimum at a finite size; its line is left out.
    with np.errstate(over="ignore", divide="ignore"):
        pairs = [
            (sizes, np.log(isoflops.cost.tokens(np.exp(sizes), budgets)))
            for sizes in (log_N, drawn_N)
        ]
    # Weights are inverse variances of log N*: a flat curve hardly places its minimum.
    precision = 1 / np.array([[each.uncertainty for each in minima]])
    drawn = [fit_lines(np.log(budgets), each, precision)[0] for each in pairs[1]]
    points = sum(len(each.sizes) for each in minima)
    notes = tuple(str(error) for error in isoflops.refused)
    left_out = sum(each.left_out for each in minima)
    notes += (f"{counted(left_out, 'point')} left out, far from the minimum",) if left_out else ()
    widening, method = _widening(isoflops, np.log(budgets), log_N, precision)
    return _approach(
        2, np.log(budgets), pairs[0], drawn, method,
        f"{len(minima)} budgets, {points} points", notes, precision, widening,
        None if isoflops.curve == LOG_PARABOLA else f"isoFLOPs, {isoflops.curve}",
    )  # fmt: skip


def _widening(
    isoflops: IsoFlops, log_C: Array, log_N: Array, precision: Array
) -> tuple[float, str]:
    """The factor by which the percentiles of resampled runs are widened, and the method.

    It is Student's t by the normal quantile. Where the minima scatter around their line by more
    than the noise of the runs explains (extra-sum-of-squares F test), this scatter takes the place
    of the noise, with the degrees of freedom of the line.
    """
    slope, offset = fit_lines(log_C, log_N, precision)
    lack = float((precision[0] * (log_N - offset[0] - slope[0] * log_C) ** 2).sum())
    (noise, freedom), of_line = isoflops.noise, len(log_C) - 2
    normal = stats.norm.ppf(0.975)
    if of_line > 0 and noise > 0 and stats.f.sf(lack / of_line / noise, of_line, freedom) < DOUBT:
        factor = np.sqrt(lack / of_line / noise) * stats.t.ppf(0.975, of_line) / normal
        return float(factor), f"scatter of the budgets around the line, t({of_line})"
    drawn = "redrawn noise" if isoflops.curve == SPLINE else "bootstrap of pooled residuals"
    return float(stats.t.ppf(0.975, freedom) / normal), (
        f"{drawn}, t({freedom:.3g})" + ("" if of_line > 0 else "; two budgets show no lack of fit")
    )


def from_surface(fit: Fit, cost: Cost, budgets: tuple[float, float], draws: Bootstrap) -> Approach:
    """Approach 3: lines through the surface's optima over `budgets` (lowest, highest).

    The lines are exact where C = k N^q D.
    """
    # Under a counted cost log N* is only nearly linear in log C: a least-squares line.
    grid = np.geomspace(*budgets, _BUDGETS)
    best = optimal(fit, cost, budgets[1], draws)
    N, D, _ = optimum(fit.values, cost, grid)
    # (B, 1) parameters against (9,) budgets: optima (B, 9).
    columns = {name: values[:, None] for name, values in draws.values.items()}
    drawn = [fit_lines(np.log(grid), np.log(each))[0] for each in optimum(columns, cost, grid)[:2]]
    basis = best.N_interval.basis
    return _approach(
        3, np.log(grid), (np.log(N), np.log(D)), drawn, best.N_interval.method, basis,
        best.flags,
    )  # fmt: skip


def fit_lines(log_C: Array, values: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Slope and value at log C = 0, (B,) each, of least-squares lines through (n,) or (B, n)."""
    # Closed form for one line per resample; log C is centred at the weighted mean.
    w = np.ones((1, len(log_C))) if weights is None else weights
    total = w.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without points gives NaN
        middle, height = (w @ log_C) / total, (w * values).sum(1) / total
        weighted = w * (log_C - middle[:, None])
        slope = (weighted * values).sum(1) / (weighted * (log_C - middle[:, None])).sum(1)
        return slope, height - slope * middle


def _approach(
    number: int, log_C: Array, pair: tuple[Array, Array], drawn: Sequence[Array] | None,
    method: str, basis: str, notes: tuple[str, ...], weights: Array | None = None,
    widening: float = 1.0, name: str | None = None,
) -> Approach:  # fmt: skip
    """The estimate from log N* and log D* (`pair`), with percentile intervals of `drawn` slopes,
    their distance from the median multiplied by `widening`; None: no intervals.
    """
    (a, k_N), (b, k_D) = (
        (float(slope[0]), float(np.exp(offset[0])))
        for slope, offset in (fit_lines(log_C, values, weights) for values in pair)
    )
    a_interval, b_interval = (
        (None, None) if drawn is None
        else (_percentiles(slopes, method, basis, widening) for slopes in drawn)
    )  # fmt: skip
    budgets = (float(np.exp(log_C.min())), float(np.exp(log_C.max())))
    return Approach(
        number, name or NAMES[number], a, b, k_N, k_D, a_interval, b_interval, budgets, method,
        notes,
    )  # fmt: skip


def _percentiles(slopes: Array, method: str, basis: str, widening: float) -> Interval:
    usable = slopes[np.isfinite(slopes)]
    # 2.5 % tails of fewer values would be extremes, not percentiles.
    if len(usable) < 20:
        raise NoEstimate(f"{len(usable)} of {len(slopes)} resamples have an optimum")
    low, middle, high = np.percentile(usable, [2.5, 50, 97.5])
    low, high = (middle + widening * (end - middle) for end in (low, high))
    return Interval(float(low), float(high), 0.95, method, basis)
