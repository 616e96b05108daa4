"""The best size at each budget from an Akima spline through its runs, instead of a parabola.

The spline (Akima 1970, J. ACM 17(4), 589-602) interpolates log L over log N. It assumes no shape,
but it follows the noise of single runs: its minimum scatters more than the vertex of a parabola.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.interpolate import Akima1DInterpolator

from analysis.compute_optimal.cost import Cost, count_sizes, size_groups
from analysis.compute_optimal.parabola import NoInteriorMinimum
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

_DRAWS = 2000  # perturbed curves of an interval
_STENCIL = 5  # neighbouring sizes of which a combination does not depend on a cubic
_LEAST_NOISE = 1e-9  # of log L, so that curves of exact losses have weights, too


@dataclass(frozen=True)
class Noise:
    """The standard deviation of log L of a run about a smooth curve, and how well it is known."""

    deviation: float
    degrees_of_freedom: float  # may be no integer

    @property
    def t(self) -> float:
        """The 97.5 % quantile of Student's t."""
        return float(stats.t.ppf(0.975, self.degrees_of_freedom))


@dataclass(frozen=True)
class Knots:
    """The runs of one budget: mean log L at each of k different sizes."""

    budget: float  # FLOPs
    sizes: Array = field(repr=False)  # (n,), of the runs, increasing
    losses: Array = field(repr=False)
    u: Array = field(repr=False)  # (k,) log N
    values: Array = field(repr=False)  # (k,) mean log L
    counts: Array = field(repr=False)  # (k,) runs of this size


@dataclass(frozen=True)
class Spline:
    """The best size at one budget; its intervals are those of curves with redrawn noise."""

    knots: Knots = field(repr=False)
    noise: Noise  # of all budgets together
    N: float
    D: float  # tokens that the budget pays for at N
    L: float
    N_interval: Interval  # without an end where more than 2.5 % of the minima are at this edge
    L_interval: Interval
    uncertainty: float  # variance of log N* for noise of variance 1
    left_out: int = 0  # no run is too far away: the curve is local

    @property
    def budget(self) -> float:
        return self.knots.budget

    @property
    def sizes(self) -> Array:
        """(n,) sizes of the runs."""
        return self.knots.sizes

    @property
    def losses(self) -> Array:
        """(n,) losses of the runs."""
        return self.knots.losses

    def predict(self, N: ArrayLike) -> Array:
        """L at sizes N."""
        curve = _curve(self.knots.u, self.knots.values)
        return np.asarray(np.exp(curve(np.log(np.asarray(N, dtype=float)))))


def splines(groups: Sequence[Knots], cost: Cost) -> tuple[list[Spline], list[NoInteriorMinimum]]:
    """A spline for each budget, with the noise of all budgets, and the budgets without a minimum
    inside their sizes. Each needs at least five sizes.
    """
    found, refused = [], []
    noise = noise_of(groups)
    for knots in groups:
        try:
            found.append(_spline(knots, noise, cost))
        except NoInteriorMinimum as error:
            refused.append(error)
    return found, refused


def knots_of(budget: float, sizes: Array, losses: Array) -> Knots:
    """The runs of one budget, by size; runs of one size are averaged, because a curve has one value
    at each size.
    """
    order = np.lexsort((losses, sizes))
    sizes, losses = sizes[order], losses[order]
    group = size_groups(sizes)
    counts = np.bincount(group).astype(float)
    u, values = (
        np.bincount(group, weights=np.log(each)) / counts for each in (sizes, losses)
    )  # fmt: skip
    return Knots(budget, sizes, losses, u, values, counts)


def noise_of(groups: Sequence[Knots]) -> Noise:
    """The noise of a run, from runs of one size and from neighbouring sizes.

    Of each five neighbouring sizes the combination that vanishes for every cubic is used, so the
    noise is not that of a poor curve (Gasser, Sroka and Jennen-Steinmetz 1986 use three sizes and
    straight lines). They overlap: the degrees of freedom are Satterthwaite's.
    """
    squares = trace = trace_of_square = 0.0
    for knots in groups:
        within = np.log(knots.losses) - np.repeat(knots.values, knots.counts.astype(int))
        free = len(knots.losses) - len(knots.u)
        contrasts = np.zeros((max(len(knots.u) - _STENCIL + 1, 0), len(knots.u)))
        for first, row in enumerate(contrasts):
            chosen = slice(first, first + _STENCIL)
            powers = np.vander(knots.u[chosen] - knots.u[chosen].mean(), _STENCIL - 1)
            # The last left singular vector is orthogonal to all cubics at these sizes.
            row[chosen] = np.linalg.svd(powers)[0][:, -1]
            row /= np.sqrt((row**2 / knots.counts).sum())  # variance that of one run
        overlap = (contrasts / knots.counts) @ contrasts.T
        squares += float(within @ within) + float(np.square(contrasts @ knots.values).sum())
        trace += free + float(np.trace(overlap))
        trace_of_square += free + float(np.square(overlap).sum())
    return Noise(
        float(np.sqrt(squares / max(trace, 1.0))), max(trace**2 / max(trace_of_square, 1.0), 1.0)
    )


def drawn_minima(found: Sequence[Spline], draws: int, seed: int = 0) -> tuple[Array, Array]:
    """(B, budgets) log N* and log L* of curves with normal noise added to each size."""
    generator = np.random.default_rng(seed)
    pairs = [_drawn(each.knots, each.noise.deviation, draws, generator)[:2] for each in found]
    return np.stack([u for u, _ in pairs], axis=1), np.stack([value for _, value in pairs], axis=1)


def _spline(knots: Knots, noise: Noise, cost: Cost) -> Spline:
    """Raises NoInteriorMinimum where the curve is lowest at an edge."""
    u, value = (float(each[0]) for each in _minima(knots.u, knots.values[:, None]))
    ends = knots.u[[0, -1]]
    if not ends[0] < u < ends[1]:
        end = "smallest" if u == ends[0] else "largest"
        raise NoInteriorMinimum(
            knots.budget,
            f"the spline is lowest at an edge of the sizes tried, {np.exp(ends[0]):.3g} to "
            f"{np.exp(ends[1]):.3g}: add sizes beyond the {end}",
        )
    deviation = max(noise.deviation, _LEAST_NOISE)
    drawn, _, curves = _drawn(knots, deviation, _DRAWS, np.random.default_rng(0))
    widening = noise.t / stats.norm.ppf(0.975)
    low, high = np.percentile(drawn, [2.5, 97.5])
    low = -np.inf if low <= ends[0] else u + widening * min(low - u, 0.0)
    high = np.inf if high >= ends[1] else u + widening * max(high - u, 0.0)
    # The minimum of a noisy curve is below that of the curve, so the error of L is that of the
    # curve at N*.
    error = noise.t * float(_curve(knots.u, curves)(u).std())
    size = float(np.exp(u))
    basis = f"{len(knots.sizes)} points, {count_sizes(knots.sizes)} N, at {knots.budget:.3g} FLOPs"
    method = f"redrawn noise, t({noise.degrees_of_freedom:.3g})"
    return Spline(
        knots, noise, size, float(cost.tokens(size, knots.budget)), float(np.exp(value)),
        Interval(float(np.exp(low)), float(np.exp(high)), 0.95, method, basis),
        Interval(float(np.exp(value - error)), float(np.exp(value + error)), 0.95, method, basis),
        float(drawn.var() / deviation**2),
    )  # fmt: skip


def _drawn(
    knots: Knots, deviation: float, draws: int, generator: np.random.Generator
) -> tuple[Array, Array, Array]:
    """log N* and log L* (B,) of curves with redrawn noise, and their values (k, B) at the sizes."""
    scale = deviation / np.sqrt(knots.counts)
    noise = generator.normal(size=(draws, len(knots.u))) * scale
    curves = (knots.values + noise).T
    return *_minima(knots.u, curves), curves


def _curve(u: Array, values: Array) -> Akima1DInterpolator:
    return Akima1DInterpolator(u, values, axis=0, method="akima")


def _minima(u: Array, values: Array) -> tuple[Array, Array]:
    """(B,) log N and log L at the lowest point of each curve through `values` (k, B)."""
    c3, c2, c1, c0 = _curve(u, values).c  # (k - 1, B) each, of powers of the distance t
    step = np.diff(u)[:, None]
    # Candidates: every knot, and the two roots of the derivative in each piece.
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(c2**2 - 3 * c3 * c1)
        # Stable where c3 is nearly 0: the product of the roots is c1 / (3 c3).
        q = -(c2 + np.where(c2 < 0, -1.0, 1.0) * root)
        candidates = [q / (3 * c3), c1 / q]
    places = [u[:, None] + np.zeros_like(values)]
    heights = [values]
    for t in candidates:
        inside = (t > 0) & (t < step)
        t = np.where(inside, t, 0.0)
        places.append(u[:-1, None] + t)
        heights.append(((c3 * t + c2) * t + c1) * t + c0)
    place, height = np.concatenate(places), np.concatenate(heights)
    lowest = height.argmin(axis=0)
    columns = np.arange(values.shape[1])
    return place[lowest, columns], height[lowest, columns]
