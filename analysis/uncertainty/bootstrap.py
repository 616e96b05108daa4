"""What resampled runs say of a fit, and what runs that differ in seed alone say of noise.

The bootstrap is over runs, never over checkpoints of a run. With few runs its coverage is uneven
(measured in docs/laws.md), so what is printed first is from intervals.py; the bootstrap carries
what needs draws: optima, frontiers, ratios of laws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.fitting.fit import CONVERGED, Fit
from analysis.fitting.initialization import seeds as starting_points
from analysis.fitting.points import FitError
from analysis.fitting.search import solve
from analysis.uncertainty.intervals import Interval, basis

Array = NDArray[np.float64]

RESAMPLES = 4000
_FEW = 40  # points, up to which every resample gets starts besides the data's own optimum
_ENOUGH_CLUSTERS = 5


@dataclass(frozen=True)
class Bootstrap:
    """Refits of resampled runs: the law's parameters, one value a resample."""

    fit: Fit
    method: str
    resamples: int
    rejected: int  # drawn again, for they had too few different sizes to carry the law
    unconverged: int  # resamples whose refit is no optimum; they are in `values` all the same
    values: dict[str, Array]

    def standard_error(self, name: str) -> float:
        return float(np.std(self.values[name], ddof=1))

    def interval(self, name: str, level: float = 0.95) -> Interval:
        """Percentiles of the resampled values."""
        return self.interval_of(self.values[name], level)

    def interval_of(self, values: Array, level: float = 0.95) -> Interval:
        """Percentiles of anything computed from `values`, (B,)."""
        tail = 50 * (1 - level)
        low, high = np.percentile(values, [tail, 100 - tail])
        return Interval(
            float(low), float(high), level, f"percentile {self.method}", basis(self.fit)
        )

    def predict(self, x: ArrayLike | Sequence[ArrayLike]) -> Array:
        """(B,) or (B, m): what each resample's law says at `x`, one point or m of them."""
        given = self.fit.law.arrays(x)
        columns = {name: value[:, None] for name, value in self.values.items()}
        arrays = [np.atleast_1d(each)[None] for each in given]
        one = arrays if len(self.fit.law.variables) > 1 else arrays[0]
        found = self.fit.law.predict(one, columns)  # type: ignore[arg-type]
        return found[:, 0] if np.ndim(given[0]) == 0 else found


def bootstrap(
    fit: Fit,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
) -> Bootstrap:
    """Refit `resamples` times with runs drawn with replacement.

    `clusters`: a label a point; points of one label are drawn together (all runs of a seed share
    images, tokenizer and noise). `strata`: a label a point; each stratum of m keeps its share, by
    m - 1 draws of weight m / (m - 1) (Rao and Wu 1988), so few sizes all stay represented. Raises
    FitError where resampling cannot vary anything.
    """
    given = fit.given
    if clusters is not None and strata is not None:
        raise FitError("either clusters or strata: together they are not supported")
    generator = np.random.default_rng(seed)
    draw, method = _scheme(fit.points, clusters, strata)
    kept = np.empty((0, fit.points))
    drawn = 0
    while len(kept) < resamples:
        counts = draw(generator, resamples)
        carried = _carries(fit, counts > 0)
        wanted = np.flatnonzero(carried)[: resamples - len(kept)]
        if len(wanted):
            drawn += int(wanted[-1]) + 1
            kept = np.concatenate([kept, counts[wanted]])
        elif drawn > 50 * resamples:
            raise FitError(
                f"resampling {fit.points} points leaves too few different sizes for {fit.law.name}"
            )
        else:
            drawn += resamples
    # Few points have few different resamples: each is solved once.
    different, which = np.unique(kept, axis=0, return_inverse=True)
    log_floor = given.log_floor(fit.floor)
    starts = fit.theta[None]
    if fit.points <= _FEW:
        more = starting_points(given.points, given.weights, log_floor)[:2]
        starts = np.concatenate([starts, more])
    solved = solve(
        given.points, different * given.weights, starts[:, None], fit.objective, log_floor,
        tolerance=1e-8, near=fit.points > _FEW,
    )  # fmt: skip
    columns = given.columns(solved.theta[which.ravel()])
    unconverged = int((solved.gradient > CONVERGED)[which.ravel()].sum())
    return Bootstrap(fit, method, len(kept), drawn - len(kept), unconverged, columns)


def scheme_for(sizes: ArrayLike, seeds: ArrayLike) -> dict[str, Any]:
    """How runs of these sizes and seeds are best resampled, as arguments of `bootstrap`.

    By seed where there are at least five; within each size where every size was run twice or more;
    else by run.
    """
    labels, groups = np.asarray(seeds), np.asarray(sizes)
    if len(np.unique(labels)) >= _ENOUGH_CLUSTERS:
        return {"clusters": labels}
    if np.unique(groups, return_counts=True)[1].min() >= 2:
        return {"strata": groups}
    return {}


Draw = Callable[[np.random.Generator, int], Array]  # (B, n) weights


def _scheme(count: int, clusters: ArrayLike | None, strata: ArrayLike | None) -> tuple[Draw, str]:
    """A function that draws weights, and the method in words."""
    if clusters is not None:
        labels = _labels(clusters, count)
        groups = labels.max() + 1
        if groups < 2:
            raise FitError("one cluster: resampling it varies nothing")
        few = "" if groups >= _ENOUGH_CLUSTERS else ", too few to trust"
        chances = np.full(groups, 1 / groups)
        return (
            lambda generator, rows: generator.multinomial(groups, chances, rows)[:, labels] * 1.0,
            f"bootstrap over {groups} seeds{few}",
        )
    if strata is not None:
        labels = _labels(strata, count)
        members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
        if max(map(len, members)) < 2:
            raise FitError("no stratum holds two runs: resampling within it varies nothing")

        def within(generator: np.random.Generator, rows: int) -> Array:
            weights = np.ones((rows, count))
            for group in members:
                m = len(group)
                if m > 1:
                    drawn = generator.multinomial(m - 1, np.full(m, 1 / m), rows)
                    weights[:, group] = drawn * m / (m - 1)
            return weights

        return within, f"bootstrap over {count} runs within {len(members)} sizes"
    chances = np.full(count, 1 / count)
    return (
        lambda generator, rows: generator.multinomial(count, chances, rows) * 1.0,
        f"bootstrap over {count} runs",
    )


def _labels(given: ArrayLike, count: int) -> NDArray[np.intp]:
    labels = np.unique(np.asarray(given), return_inverse=True)[1].ravel()
    if len(labels) != count:
        raise FitError(f"{len(labels)} labels for {count} points")
    return labels


def _carries(fit: Fit, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(B,) whether a resample has one size more than the law needs, of each variable."""
    least = fit.free + 1 if len(fit.law.powers) == 1 else 3
    enough = drawn.sum(1) > fit.free
    for each in fit.law.arrays(fit.given.x)[: len(fit.law.powers)]:
        sizes = np.unique(each, return_inverse=True)[1].ravel()
        belongs = np.zeros((len(sizes), sizes.max() + 1))
        belongs[np.arange(len(sizes)), sizes] = 1
        enough &= (drawn @ belongs > 0).sum(1) >= least
    return np.asarray(enough)


@dataclass(frozen=True)
class SeedNoise:
    """The scatter of log L among runs of one size that differ in seed alone."""

    sd: float  # of log L: relative
    low: float  # 95 %, by chi squared
    high: float
    freedom: int  # runs less sizes
    sizes: int  # with more than one seed
    shared: float | None  # sd of what all sizes of a seed have in common; None if not crossed
    misfit_p: float | None = None  # of the law's residuals being no more than this noise


def seed_noise(
    x: ArrayLike, y: ArrayLike, seed: ArrayLike, fit: Fit | None = None
) -> SeedNoise | None:
    """None where no size was run with two seeds. `x` tells the sizes apart.

    With `fit`, a law of these very points, also the F test of lack of fit: is what the law leaves
    more than the noise between seeds?
    """
    log_y = np.log(np.asarray(y, dtype=float))
    groups = np.unique(np.asarray(x), return_inverse=True)[1].ravel()
    counts = np.bincount(groups)
    freedom = int((counts - 1).sum())
    if freedom < 1:
        return None
    means = np.bincount(groups, log_y) / counts
    within = log_y - means[groups]
    total = float(within @ within)
    low, high = np.sqrt(total / stats.chi2.ppf([0.975, 0.025], freedom))
    p = None
    if fit is not None:
        spare = fit.points - fit.free - freedom
        left = float(fit.residuals @ fit.residuals) - total
        if spare > 0 and total > 0:
            p = float(stats.f.sf(max(left, 0.0) / spare / (total / freedom), spare, freedom))
    return SeedNoise(
        float(np.sqrt(total / freedom)), float(low), float(high), freedom,
        int((counts > 1).sum()), _shared(within, groups, np.asarray(seed)), p,
    )  # fmt: skip


def _shared(within: Array, groups: NDArray[np.intp], seed: NDArray[np.generic]) -> float | None:
    """The part of the scatter that a seed brings to all of its sizes, by two-way analysis."""
    labels = np.unique(seed, return_inverse=True)[1].ravel()
    sizes, seeds = groups.max() + 1, labels.max() + 1
    if len(within) != sizes * seeds or sizes < 2 or seeds < 2:
        return None
    effects = np.bincount(labels, within) / sizes
    left = within - effects[labels]
    noise = float(left @ left) / ((sizes - 1) * (seeds - 1))
    between = sizes * float(effects @ effects) / (seeds - 1)
    return float(np.sqrt(max(between - noise, 0.0) / sizes))
