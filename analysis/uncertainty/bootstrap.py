"""The bootstrap of a fit over runs, and the noise between runs that differ only in the seed.

Runs are resampled, never checkpoints of a run, because checkpoints of a run are dependent. With few
runs the coverage of the bootstrap differs from its nominal level (measured in docs/laws.md), so
reported intervals come from intervals.py. The bootstrap serves what needs draws: optima,
frontiers, ratios of laws. Of few runs with curves each is left out once instead (`jackknife`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.fitting.fit import CONVERGED, Fit
from analysis.fitting.initialization import starting_points
from analysis.fitting.points import FitError
from analysis.fitting.search import solve
from analysis.fitting.terms import MANY, Points, means_of_equal_x
from analysis.uncertainty.intervals import Interval, basis
from analysis.uncertainty.profile import groups_of_equal_x, lack_of_fit

Array = NDArray[np.float64]

# On Chinchilla's table, standard errors from 4,000 resamples of three seeds differ by 2 to 8 %
# (LOG.md).
RESAMPLES = 4000
_CELLS = 2_000_000  # (resample, point) pairs at a time, to limit memory
_FEW = 40  # points; up to this number every resample has more starts than the fit's own optimum
_MIN_CLUSTERS = 5


@dataclass(frozen=True)
class Bootstrap:
    """Refits to resampled runs: the law's parameters, one value per resample."""

    fit: Fit
    method: str
    resamples: int
    rejected: int  # replaced by new draws, because they had too few different sizes to fit the law
    unconverged: int  # resamples whose refit did not converge; `values` contains them
    values: dict[str, Array]  # (B,) each

    def standard_error(self, name: str) -> float:
        return float(np.std(self.values[name], ddof=1))

    def interval(self, name: str, level: float = 0.95) -> Interval:
        """The percentile interval of a parameter."""
        return self.interval_of(self.values[name], level)

    def interval_of(self, values: Array, level: float = 0.95) -> Interval:
        """The percentile interval of any quantity (B,) computed from `values`."""
        tail = 50 * (1 - level)
        low, high = np.percentile(values, [tail, 100 - tail])
        return Interval(
            float(low), float(high), level, f"percentile {self.method}", basis(self.fit)
        )

    def widened(self, freedom: int, factor: float = 1.0) -> "Bootstrap":
        """The resamples spread around the fit by `factor` and by Student's t with `freedom`.

        For few clusters, whose percentile intervals are too narrow. Coefficients are spread in
        logs; E is at least 0.
        """
        factor *= stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975)
        fit, values = self.fit, {}
        for name, each in self.values.items():
            if name in fit.law.positive:
                values[name] = fit[name] * (each / fit[name]) ** factor
            else:
                values[name] = fit[name] + factor * (each - fit[name])
        if "E" in values:
            values["E"] = np.maximum(values["E"], 0)
        return replace(self, method=f"{self.method}, widened by t({freedom})", values=values)

    def predict(self, x: ArrayLike | Sequence[ArrayLike]) -> Array:
        """(B,) or (B, m) predictions of each resample's law at `x`, one point or m points."""
        inputs = self.fit.law.arrays(x)
        # Parameters (B, 1) and points (1, m) broadcast to (B, m).
        columns = {name: value[:, None] for name, value in self.values.items()}
        arrays = [np.atleast_1d(each)[None] for each in inputs]
        grid = arrays if len(self.fit.law.variables) > 1 else arrays[0]
        predicted = self.fit.law.predict(grid, columns)  # type: ignore[arg-type]
        return predicted[:, 0] if np.ndim(inputs[0]) == 0 else predicted


def bootstrap(
    fit: Fit,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: ArrayLike | None = None,
    strata: ArrayLike | None = None,
    of_clusters: str = "seeds",
) -> Bootstrap:
    """Refit `resamples` times with runs drawn with replacement.

    `clusters`: one label per point; points with the same label are drawn together, because all runs
    of a seed share images, tokenizer and noise; `of_clusters` names them. `strata`: one label per
    point; within a stratum of m points, m - 1 draws have weight m / (m - 1) each (Rao and Wu 1988),
    so each stratum keeps its weight and every size stays represented. Raises FitError where no
    resample differs from the data, or nearly all resamples have too few different sizes.
    """
    if clusters is not None and strata is not None:
        raise FitError("give clusters or strata, not both")
    fit.refuse_other_origin()
    generator = np.random.default_rng(seed)
    scheme = _scheme(fit.points, clusters, strata, of_clusters)
    units = fit.points if scheme.labels is None else int(scheme.labels.max()) + 1
    # A small data set has few different resamples; each is solved only once. Of a large one, some
    # are drawn and solved at a time, to limit memory.
    few = units <= MANY
    at_a_time = resamples if few else max(1, _CELLS // units)
    kept: list[Array] = []
    solved: list[tuple[Array, Array]] = []
    usable_count = drawn = 0
    # Resamples with too few sizes are drawn again; how many were drawn is reported.
    while usable_count < resamples:
        counts = scheme.draw(generator, at_a_time)
        sufficient = _sufficient(fit, scheme, counts)
        usable = np.flatnonzero(sufficient)[: resamples - usable_count]
        if len(usable):
            drawn += int(usable[-1]) + 1
            usable_count += len(usable)
            if few:
                kept.append(counts[usable])
            else:
                solved.append(_refits(fit, scheme, counts[usable]))
        elif drawn > 50 * resamples:
            raise FitError(
                f"resampling {fit.points} points leaves too few different sizes for {fit.law.name}"
            )
        else:
            drawn += at_a_time
    index = np.arange(resamples)
    if few:
        unique, index = np.unique(np.concatenate(kept), axis=0, return_inverse=True)
        solved = [_refits(fit, scheme, unique)]
    theta, gradient = (np.concatenate(part) for part in zip(*solved, strict=True))
    columns = fit.data.columns(theta[index.ravel()])
    unconverged = int((gradient > CONVERGED)[index.ravel()].sum())
    return Bootstrap(fit, scheme.name, usable_count, drawn - usable_count, unconverged, columns)


def bootstrap_of_surface(
    fit: Fit, resamples: int, seed: int = 0, clusters: ArrayLike | None = None
) -> Bootstrap:
    """`bootstrap`, but over cells (the runs of equal N and D) where the law misses their means.

    The rule is that of profile intervals (profile.LackOfFit): runs of a cell repeat its error. The
    resamples are spread around the fit by the factor of Student's t, and of g cells and p
    parameters by sqrt(g / (g - p)). Measured coverage: LOG.md and docs/coverage.md.
    """
    lack = lack_of_fit(fit)
    if not (fit.objective.is_gaussian and lack.counts):
        return bootstrap(fit, resamples, seed, clusters)
    drawn = bootstrap(fit, resamples, seed, groups_of_equal_x(fit), of_clusters="cells")
    widened = drawn.widened(lack.freedom, float(np.sqrt((lack.freedom + fit.free) / lack.freedom)))
    return replace(widened, method=f"{widened.method}, because of the lack of fit")


def jackknife(
    fit: Fit, clusters: ArrayLike, draws: int, of_clusters: str, seed: int = 0
) -> Bootstrap:
    """Parameters drawn around the fit, from refits that each leave out one cluster.

    For few clusters: a resample of them lacks too many sizes. The draws have Student's t
    distribution with g - 1 degrees of freedom for g clusters, in logs where a parameter is
    positive, and the covariance of the jackknife (Efron and Stein 1981; for clusters see
    MacKinnon, Nielsen and Webb 2023, Journal of Econometrics 232). Raises FitError where a refit
    has too few different sizes or does not converge.
    """
    scheme = _scheme(fit.points, clusters, None, of_clusters)
    assert scheme.labels is not None
    count = int(scheme.labels.max()) + 1
    counts = 1 - np.eye(count)
    refusal = FitError(f"without one of the {count} {of_clusters} the law cannot be fitted")
    # A refit to too few sizes passes through all of them: it shows no scatter.
    if not _sufficient(fit, scheme, counts).all():
        raise refusal
    theta, gradient = _refits(fit, scheme, counts)
    if (gradient > CONVERGED).any():
        raise refusal
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((draws, count))
    t = normal * np.sqrt((count - 1) / generator.chisquare(count - 1, (draws, 1)))
    values = {}
    for name, each in fit.data.columns(theta).items():
        positive = name in fit.law.positive
        scale = np.log(each) if positive else each
        moved = t @ (scale - scale.mean()) * np.sqrt((count - 1) / count)
        values[name] = fit[name] * np.exp(moved) if positive else fit[name] + moved
    if "E" in values:
        values["E"] = np.maximum(values["E"], 0)
    method = f"t({count - 1}) from refits without one of {count} {of_clusters}"
    return Bootstrap(fit, method, draws, 0, 0, values)


def _refits(fit: Fit, scheme: "_Scheme", counts: Array) -> tuple[Array, Array]:
    """θ (U, p) and the relative gradient (U,) of the refits to resamples with `counts` (U, m)."""
    data = fit.data
    log_floor = data.log_floor(fit.floor)
    # Resampling few points can move the optimum far. On 240 rows eight starts give the same
    # standard errors as one (LOG.md).
    starts = fit.theta[None]
    if fit.points <= _FEW:
        extra = starting_points(data.points, data.weights, log_floor)[:2]
        starts = np.concatenate([starts, extra])
    # In parts, to limit memory. Counts are weights of the points, so all refits of a part are one
    # batch, (b, n).
    least_squares = fit.objective.is_gaussian and not fit.objective.of_loss
    sums = _sums_of_clusters(fit, scheme) if least_squares else None
    rows = max(1, _CELLS // (fit.points if sums is None else sums[0].logs[0].size))
    parts = []
    for first in range(0, len(counts), rows):
        part = counts[first : first + rows]
        if sums is not None:
            weights = part @ sums[1]
            z = part @ sums[2] / np.where(weights > 0, weights, 1)
            points = replace(sums[0], z=z)
        else:
            points, weights = data.points, scheme.weights_of(part)
            weights *= data.weights  # in place: the array can be large
            if least_squares:
                points, weights = means_of_equal_x(points, weights) or (points, weights)
        solved = solve(
            points, weights, starts[:, None], fit.objective, log_floor,
            tolerance=1e-8, near_optimum=fit.points > _FEW,
        )  # fmt: skip
        parts.append((solved.theta, solved.gradient))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _sums_of_clusters(fit: Fit, scheme: "_Scheme") -> tuple[Points, Array, Array] | None:
    """The distinct x as points, and for each cluster and x the sums of weights and of weighted z,
    (clusters, u) each. None without clusters, or for few points of equal x.
    """
    data, labels = fit.data, scheme.labels
    if labels is None or data.points.distinct is None or data.points.count <= MANY:
        return None
    logs, index = data.points.distinct
    weights, total = np.zeros((2, labels.max() + 1, len(logs[0])))
    np.add.at(weights, (labels, index), data.weights)
    np.add.at(total, (labels, index), data.weights * data.points.z)
    return replace(data.points, logs=logs), weights, total


def scheme_for(sizes: ArrayLike, seeds: ArrayLike) -> dict[str, Any]:
    """The resampling scheme for runs of these sizes and seeds, as arguments of `bootstrap`.

    Clusters by seed where there are at least five seeds; strata by size where every size has at
    least two runs; otherwise single runs.
    """
    labels, groups = np.asarray(seeds), np.asarray(sizes)
    if len(np.unique(labels)) >= _MIN_CLUSTERS:
        return {"clusters": labels}
    if np.unique(groups, return_counts=True)[1].min() >= 2:
        return {"strata": groups}
    return {}


Draw = Callable[[np.random.Generator, int], Any]  # (generator, B) -> (B, m) counts
Weights = Callable[[Any], Any]  # (B, m) counts -> (B, n) weights of the points


@dataclass(frozen=True)
class _Scheme:
    """How runs are drawn, how counts become weights of the points, and a description."""

    draw: Draw
    weights_of: Weights
    name: str
    labels: NDArray[np.intp] | None = None  # (n,) the cluster of each point


def _scheme(
    count: int, clusters: ArrayLike | None, strata: ArrayLike | None, of_clusters: str
) -> _Scheme:
    """The scheme for `count` points. Raises FitError where every resample equals the data."""
    if clusters is not None:
        labels = _labels(clusters, count)
        groups = labels.max() + 1
        if groups < 2:
            raise FitError(
                "there is one cluster: every resample equals the data; at least two are needed"
            )
        few = "" if groups >= _MIN_CLUSTERS else ", too few for reliable intervals"
        chances = np.full(groups, 1 / groups)
        return _Scheme(
            lambda generator, rows: generator.multinomial(groups, chances, rows) * 1.0,
            lambda counts: counts.take(labels, 1),  # a point has the count of its cluster
            f"bootstrap over {groups} {of_clusters}{few}",
            labels,
        )
    if strata is not None:
        labels = _labels(strata, count)
        members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
        if max(map(len, members)) < 2:
            raise FitError("no stratum has two runs: every resample equals the data")

        def within(generator: np.random.Generator, rows: int) -> Array:
            weights = np.ones((rows, count))
            for group in members:
                m = len(group)
                if m > 1:
                    drawn = generator.multinomial(m - 1, np.full(m, 1 / m), rows)
                    weights[:, group] = drawn * m / (m - 1)
            return weights

        method = f"bootstrap over {count} runs within {len(members)} sizes"
        return _Scheme(within, lambda counts: counts.copy(), method)
    chances = np.full(count, 1 / count)
    return _Scheme(
        lambda generator, rows: generator.multinomial(count, chances, rows) * 1.0,
        lambda counts: counts.copy(),
        f"bootstrap over {count} runs",
    )


def _labels(raw_labels: ArrayLike, count: int) -> NDArray[np.intp]:
    """(n,) labels as integers from 0. Raises FitError where there is not one per point."""
    labels = np.unique(np.asarray(raw_labels), return_inverse=True)[1].ravel()
    if len(labels) != count:
        raise FitError(f"{len(labels)} labels for {count} points")
    return labels


def _sufficient(fit: Fit, scheme: _Scheme, counts: Array) -> NDArray[np.bool_]:
    """(B,) whether each resample has enough different sizes, of each variable, to fit the law.

    `counts`: (B, m), of m runs or clusters.
    """
    # With only as many sizes as parameters the refit would pass through the means of the sizes.
    min_sizes = fit.free + 1 if len(fit.law.powers) == 1 else 3
    unit = np.arange(fit.points) if scheme.labels is None else scheme.labels
    points_of = np.bincount(unit).astype(np.float32)
    variables = fit.law.arrays(fit.data.x)[: len(fit.law.powers)]
    counters = [_counter_of_sizes(each, unit, len(points_of)) for each in variables]
    rows = max(1, _CELLS // len(points_of))  # at a time, to limit memory
    parts = []
    for first in range(0, len(counts), rows):
        drawn = (counts[first : first + rows] > 0).astype(np.float32)
        enough = drawn @ points_of > fit.free
        for sizes_drawn in counters:
            enough &= sizes_drawn(drawn) >= min_sizes
        parts.append(enough)
    return np.concatenate(parts)


def _counter_of_sizes(
    values: Array, unit: NDArray[np.intp], units: int
) -> Callable[[NDArray[np.float32]], NDArray[np.intp]]:
    """A function from drawn runs or clusters (B, m) to the number of different sizes (B,) in them.

    `values`: (n,) a variable of the points; `unit`: (n,) the run or cluster of each point.
    """
    sizes = np.unique(values, return_inverse=True)[1].ravel()
    if units * (sizes.max() + 1) <= _CELLS:
        # (B, m) drawn times (m, sizes) membership: how often each size was drawn.
        belongs = np.zeros((units, sizes.max() + 1), np.float32)
        belongs[unit, sizes] = 1
        return lambda drawn: (drawn @ belongs > 0).sum(1)
    # The table of memberships would be too large: the points of each size side by side instead.
    order = np.argsort(sizes, kind="stable")
    starts = np.flatnonzero(np.diff(sizes[order], prepend=-1))
    in_order = unit[order]
    return lambda drawn: np.logical_or.reduceat(drawn[:, in_order] > 0, starts, axis=1).sum(1)


@dataclass(frozen=True)
class SeedNoise:
    """The scatter of log L among runs of one size that differ only in the seed."""

    sd: float  # of log L, so relative
    low: float  # of the 95 % interval of `sd`, by chi squared
    high: float
    degrees_of_freedom: int  # runs minus sizes
    sizes: int  # with more than one seed
    shared: (
        float | None
    )  # sd of the part common to all sizes of a seed; None unless every size has every seed
    misfit_p: float | None = (
        None  # p value of the lack-of-fit test: small if the law's residuals exceed this noise
    )


def seed_noise(
    x: ArrayLike, y: ArrayLike, seed: ArrayLike, fit: Fit | None = None
) -> SeedNoise | None:
    """The noise between seeds; None where no size was run with two seeds. Equal `x` is one size.

    With `fit`, a law fitted to the same points, also the F test of lack of fit: whether the
    residuals of the law are larger than the noise between seeds.
    """
    log_y = np.log(np.asarray(y, dtype=float))
    groups = np.unique(np.asarray(x), return_inverse=True)[1].ravel()
    counts = np.bincount(groups)
    degrees_of_freedom = int((counts - 1).sum())
    if degrees_of_freedom < 1:
        return None
    means = np.bincount(groups, log_y) / counts
    within = log_y - means[groups]
    total = float(within @ within)
    # total / σ² has a χ² distribution; the higher quantile gives the lower end.
    low, high = np.sqrt(total / stats.chi2.ppf([0.975, 0.025], degrees_of_freedom))
    # Lack of fit: residuals of the law are the scatter within sizes plus the distance of the law
    # from the means of the sizes. F compares the second with the first.
    p = None
    if fit is not None:
        lack_of_fit_freedom = fit.points - fit.free - degrees_of_freedom
        lack_of_fit = float(fit.residuals @ fit.residuals) - total
        if lack_of_fit_freedom > 0 and total > 0:
            p = float(
                stats.f.sf(
                    max(lack_of_fit, 0.0) / lack_of_fit_freedom / (total / degrees_of_freedom),
                    lack_of_fit_freedom,
                    degrees_of_freedom,
                )
            )
    return SeedNoise(
        float(np.sqrt(total / degrees_of_freedom)), float(low), float(high), degrees_of_freedom,
        int((counts > 1).sum()), _shared(within, groups, np.asarray(seed)), p,
    )  # fmt: skip


def _shared(within: Array, groups: NDArray[np.intp], seed: NDArray[np.generic]) -> float | None:
    """The standard deviation of the effect that a seed has on all sizes, by two-way ANOVA.

    None unless every size was run once with every seed.
    """
    labels = np.unique(seed, return_inverse=True)[1].ravel()
    sizes, seeds = groups.max() + 1, labels.max() + 1
    cells = np.unique(groups * seeds + labels).size  # pairs of a size and a seed that were run
    if not cells == len(within) == sizes * seeds or sizes < 2 or seeds < 2:
        return None
    # The means of the sizes are already subtracted, so this is the effect of each seed.
    effects = np.bincount(labels, within) / sizes
    remainder = within - effects[labels]
    noise = float(remainder @ remainder) / ((sizes - 1) * (seeds - 1))
    # Expected mean squares: σ² of the remainder, and σ² + sizes · σ_seed² between seeds.
    between = sizes * float(effects @ effects) / (seeds - 1)
    return float(np.sqrt(max(between - noise, 0.0) / sizes))
