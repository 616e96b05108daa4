"""The law of the frontier: its confidence band from a bootstrap over runs, and its intervals.

The points of one run are dependent, because they share its seed and its data order. Resampling
single checkpoints would treat them as independent and make the band too narrow. Where the runs have
a surface L(N, D), the law and its intervals come from the optima of the surface: it uses all runs,
and the points of a frontier are upper bounds (docs/coverage.md).
"""

from bisect import bisect_right, insort
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis import format as formats
from analysis.compute_optimal.cost import cost_of
from analysis.compute_optimal.frontier import (
    Candidates,
    Frontier,
    FrontierError,
    non_dominated_mask,
    run_ends,
)
from analysis.compute_optimal.surface_optimum import optimum
from analysis.fitting.fit import Fit, fit_law, solve, with_parameters
from analysis.fitting.laws import PURE, SURFACE, Law
from analysis.fitting.points import FitData, FitError, check_points
from analysis.fitting.terms import MANY
from analysis.uncertainty.bootstrap import Bootstrap, bootstrap, bootstrap_of_surface
from analysis.uncertainty.intervals import Interval, basis, interval

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RESAMPLES = 1000
_BUDGETS = 9  # at which the optima of a surface are computed
# Resampled surfaces of more than MANY runs are fewer, for speed.
_RESAMPLES_OF_MANY = 400
_CURVES = 12  # the least number of runs whose curves are resampled for a surface
_USABLE = 0.9  # share of the resampled surfaces that must have an optimum
OF_SURFACE = "the parameters follow from the surface of all runs, not from these points"
_QUANTILES = 1000  # of the residuals of a surface of more runs
RESAMPLED = "not calibrated: 87 to 100 % in simulations"  # LOG.md, 8 and 24 runs of one length
# The points of such a law are upper bounds, and the profile takes them for independent runs.
NOT_CALIBRATED = "not calibrated: the points are upper bounds"
_BEATEN = 64  # runs; a resample lacks all of them with the probability 1e-28
_CELLS = 4_000_000  # (resample, point) pairs at a time, to limit memory


@dataclass(frozen=True)
class Band:
    """The law of a frontier at `flops` (m,), with a band from refits to resampled runs."""

    fit: Fit
    flops: Array
    law: Array  # the fitted loss, (m,)
    low: Array
    high: Array
    level: float
    method: str
    resamples: int
    rejected: int  # resamples with too few points to fit the law
    lift: float  # median over refits and `flops` of log(refit / law); the band is corrected for it
    values: dict[str, Array] = field(repr=False)  # the law's parameters, one value per resample

    def interval(self, name: str) -> Interval:
        """The percentile interval of a parameter, shifted so that the median is the fit's value."""
        if name in {coefficient for coefficient, _ in self.fit.law.powers}:
            ends = centred_percentiles(
                np.log(self.values[name]), float(np.log(self.fit[name])), self.level
            )
            low, high = float(np.exp(ends[0])), float(np.exp(ends[1]))
        else:
            low, high = centred_percentiles(self.values[name], self.fit[name], self.level)
        low = max(low, 0.0) if name == "E" else low
        of = f"{self.fit.points} frontier points, {self.fit.decades:.1f} decades of C"
        return Interval(low, high, self.level, self.method, of)


def band(
    frontier: Frontier,
    law: Law = PURE,
    objective: str = "squares",
    *,
    at: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Fit `law` to the frontier's points `of_law`, and again to the frontiers of resampled runs.

    A resample contains about 63 % of the runs, so its frontier is slightly higher. The band is
    therefore the scatter of the refits around their median, placed around the fit (`lift` is the
    difference). `at`: FLOPs, by default 50 values over the frontier. Raises FitError where the law
    cannot be fitted, and FrontierError where there are fewer than three runs or fewer than 20
    usable resamples.
    """
    fitted = frontier.of_law
    fit = fit_law(law, frontier.flops[fitted], frontier.loss[fitted], objective)
    flops = (
        np.geomspace(frontier.flops[0], frontier.flops[-1], 50) if at is None else np.asarray(at)
    )
    # Every resample is a row of 0/1 weights over the same candidate points, so all refits are one
    # batch. Points that are on no resample's frontier are left out.
    kept = resampled_frontiers(frontier, resamples, seed)
    if not fitted.all():
        kept &= uncensored_candidates(frontier)
    used = kept.any(axis=0)
    candidates = frontier.candidates
    data = check_points(law, candidates.flops[used], candidates.loss[used])
    enough = kept.sum(1) > fit.free
    if enough.sum() < 20:
        raise FrontierError(
            f"only {enough.sum()} of {resamples} resamples have enough points for the law"
        )
    weights = kept[enough][:, used].astype(float)
    solved = solve(data.points, weights, _start(fit, data), fit.objective, tolerance=1e-8)
    values = data.columns(solved.theta)
    columns: dict[str, Any] = {name: each[:, None] for name, each in values.items()}
    curves = np.log(law.predict(flops, columns))
    line = np.log(fit.predict(flops))
    # The missing runs lift the whole band, so only the scatter around the median is used.
    middle = np.median(curves, axis=0)
    low, high = np.quantile(curves - middle, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(
        fit, flops, np.exp(line), np.exp(line + low), np.exp(line + high), level,
        f"bootstrap over {len(candidates.runs)} runs, median-centred", int(enough.sum()),
        int((~enough).sum()), float(np.median(middle - line)), values,
    )  # fmt: skip


@dataclass(frozen=True)
class SurfacePath:
    """The least loss at each budget by a fitted surface, and by resampled ones: the frontier that
    they imply, and the laws of this frontier.
    """

    flops: Array  # (m,)
    surface: Fit
    best: Array = field(repr=False)  # (m,) by the surface
    loss: Array = field(repr=False)  # (B, m) by the resampled surfaces
    E: Array = field(repr=False)  # (B,)
    method: str
    resamples: int
    rejected: int  # resamples without an optimum at each budget

    def values(self, law: Law) -> dict[str, Array]:
        """The parameters of `law` closest to each resampled frontier, by name, (B,) each.

        A line is fitted by least squares in the logs in which the law is one; E is that of the
        surface. Where C = k N^q D the law with E is exact, with the exponent αβ / (qα + β).
        """
        return self._lines(law, self.loss, self.E)

    def law_of(self, fit: Fit) -> Fit:
        """The law of the frontier with the parameters of the surface, for the points of `fit`.

        `fit`: a law fitted to the points of a frontier. They are upper bounds, so their own law is
        biased.
        """
        lines = self._lines(fit.law, self.best[None], np.array([self.surface.E]))
        values = {name: float(each[0]) for name, each in lines.items()}
        span, origin = self.interval(fit, "alpha"), OF_SURFACE
        if not span.low <= fit.alpha <= span.high:
            origin += (
                f"; the points alone give α = {formats.exponent(fit.alpha)}, outside the interval: "
                "they are upper bounds"
            )
        certificate = self.surface.certificate
        of_law = tuple(each for each in certificate.bounds if fit.law.floor and each[:2] == "E ")
        return with_parameters(fit, values, origin, replace(certificate, bounds=of_law))

    def interval(self, fit: Fit, name: str, level: float = 0.95) -> Interval:
        """The percentile interval of α or E of the law of `fit`."""
        values = self.values(fit.law)[name]
        return self._interval(values[np.isfinite(values)], level, self.method)

    def band(self, law: Law, flops: Array, level: float = 0.95) -> tuple[Array, Array]:
        """Low and high end of the pointwise band of the law at `flops` (m,), by percentiles."""
        columns: Any = {name: each[:, None] for name, each in self.values(law).items()}
        low, high = np.nanquantile(law.predict(flops, columns), _tails(level), axis=0)
        return low, high

    def prediction_interval(self, fit: Fit, flops: float, level: float = 0.95) -> Interval:
        """The interval of L of a new run at the optimum of `flops`, by the law of `fit`.

        The resampled laws there, each with the residuals of the surface, which are scaled by
        sqrt(n / (n - p)).
        """
        columns: Any = self.values(fit.law)
        drawn, surface = np.log(fit.law.predict(flops, columns)), self.surface
        scatter = surface.residuals * np.sqrt(surface.points / (surface.points - surface.free))
        if len(scatter) > _QUANTILES:
            scatter = np.quantile(scatter, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
        losses = np.exp(drawn[np.isfinite(drawn), None] + scatter)
        return self._interval(losses, level, f"{self.method}, of a new run")

    def _interval(self, values: Array, level: float, method: str) -> Interval:
        low, high = np.quantile(values, _tails(level))
        return Interval(float(low), float(high), level, method, basis(self.surface))

    def _lines(self, law: Law, loss: Array, E: Array) -> dict[str, Array]:
        """The parameters of the lines closest to `loss` (B, m), with the irreducible losses E."""
        below = E[:, None] if law.floor else 0.0
        above = 1 - loss if law.odds else 1.0
        with np.errstate(invalid="ignore", divide="ignore"):
            height = np.log((loss - below) / above)
        log_C = np.log(self.flops)
        u = log_C - log_C.mean()
        alpha = -(height @ u) / (u @ u)
        lines = {"A": np.exp(height.mean(axis=1) + alpha * log_C.mean()), "alpha": alpha}
        return lines | ({"E": E} if law.floor else {})


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def surface_path(
    runs: pd.DataFrame,
    frontier: Frontier,
    objective: str = "squares",
    resamples: int = RESAMPLES,
    floor: float | None = None,
    weights: str | None = None,
) -> SurfacePath | None:
    """The frontier of the surface of all finished runs, and those of resampled ones; None if there
    is no surface.

    `runs` has the frontier's columns. Where finished runs have no surface, as with one length, the
    points inside runs have one, if they count. `floor` fixes E; `weights` is the column of the
    weights of runs. The surface is refused where N and D do not vary, where the FLOPs are no
    function of N and D, where it is no law (an exponent at its bound, or whose interval contains
    0), or where a tenth of the resamples have no optimum.
    """
    ends = run_ends(runs, frontier.metric, frontier.params)
    try:
        cost = cost_of(ends, frontier.params)
    except FitError:
        return None
    known = ends.dropna(subset=["tokens_seen"])
    inputs = known[frontier.params].to_numpy(float), known.tokens_seen.to_numpy(float)
    draws = None
    with suppress(FitError):
        w = None if weights is None else known[weights].to_numpy(float)
        fit = fit_law(SURFACE, inputs, known[frontier.metric], objective, floor=floor, weights=w)
        draws = bootstrap_of_surface(fit, resamples if fit.points <= MANY else _RESAMPLES_OF_MANY)
    if draws is None:
        with suppress(FitError):
            draws = _surfaces_inside_runs(frontier, objective, resamples, floor)
    if draws is None or not _is_law(draws):
        return None
    fit = draws.fit
    fitted = frontier.flops[frontier.of_law]
    flops = np.geomspace(fitted[0], fitted[-1], _BUDGETS)
    columns = {name: values[:, None] for name, values in draws.values.items()}
    best, loss = optimum(fit.values, cost, flops)[2], optimum(columns, cost, flops)[2]
    usable = np.isfinite(loss).all(axis=1)
    if usable.mean() < _USABLE or not np.isfinite(best).all():
        return None
    method = f"optima of the surface, percentile {draws.method}"
    return SurfacePath(
        flops, fit, best, loss[usable], draws.values["E"][usable], method, int(usable.sum()),
        int((~usable).sum()),
    )  # fmt: skip


def _is_law(draws: Bootstrap) -> bool:
    """Whether the loss falls in both N and D, beyond doubt."""
    bounds = {bound.split()[0] for bound in draws.fit.certificate.bounds}
    exponents = [name for _, name in draws.fit.law.powers]
    return not bounds & {*exponents} and all(draws.interval(each).low > 0 for each in exponents)


def _surfaces_inside_runs(
    frontier: Frontier, objective: str, resamples: int, floor: float | None
) -> Bootstrap | None:
    """The surfaces of the points inside resampled runs; None where these are no data of a surface.

    The points of a run share its error, so whole runs are drawn. Coverage: docs/coverage.md.
    """
    points = frontier.candidates
    if not frontier.within_runs or len(points.runs) < _CURVES or np.isnan(points.tokens).any():
        return None
    inputs = (points.size, points.tokens)
    fit = fit_law(SURFACE, inputs, points.loss, objective, floor=floor)
    count = resamples if fit.points <= MANY else _RESAMPLES_OF_MANY
    drawn = bootstrap(fit, count, clusters=points.run, of_clusters="runs with their curves")
    return drawn.widened(len(points.runs) - fit.free)


def frontier_interval(
    fit: Fit, name: str, frontier: Frontier, path: SurfacePath | None, level: float = 0.95
) -> Interval:
    """The interval of α or E of a law of a frontier.

    From the surface where there is one, as its parameters are (`SurfacePath.law_of`); else from
    resampled runs, where the points of the law are uncensored; else by profile. Only the first
    reaches its level in simulations, so the others are marked.
    """
    if path is not None:
        return path.interval(fit, name, level)
    if not frontier.censored[frontier.of_law].any():
        with suppress(FitError, FrontierError):  # too few runs to resample
            drawn = band(frontier, fit.law, fit.objective.name, level=level).interval(name)
            return replace(drawn, method=f"{drawn.method}, {RESAMPLED}")
    profile = interval(fit, name, level)
    return replace(profile, method=f"{profile.method}, {NOT_CALIBRATED}")


def resampled_frontiers(frontier: Frontier, resamples: int = RESAMPLES, seed: int = 0) -> Mask:
    """(B, n) whether each candidate is on the frontier of each resample of the runs."""
    return _resampled(frontier.candidates, resamples, seed).copy()


@lru_cache(maxsize=1)  # the laws of one frontier follow each other
def _resampled(candidates: Candidates, resamples: int, seed: int) -> Mask:
    runs = len(candidates.runs)
    if runs < 3:
        raise FrontierError(f"{runs} runs: resampling needs at least 3")
    used = np.flatnonzero(_may_be_lowest(candidates))
    drawn, place = _drawn_runs(candidates, used, resamples, seed)
    kept = np.zeros((resamples, len(candidates.flops)), dtype=bool)
    first = 0
    for rows in _rows_at_a_time(resamples, len(used)):
        part = slice(first, first + rows)
        # A run that was not drawn has an infinite loss and is never on the frontier. (b, used).
        losses = np.where(drawn[part][:, place], candidates.loss[used], np.inf)
        kept[part, used] = non_dominated_mask(losses)
        first += rows
    return kept


def _drawn_runs(
    candidates: Candidates, used: NDArray[np.intp], resamples: int, seed: int
) -> tuple[Mask, NDArray[np.intp]]:
    """(B, m) whether each of m runs is in a resample, and the column of each `used` candidate.

    Of many runs only those of `used` candidates are drawn, the others together.
    """
    runs = len(candidates.runs)
    generator = np.random.default_rng(seed)
    columns, place = np.unique(candidates.run[used], return_inverse=True)
    if runs <= MANY:
        columns, place = np.arange(runs), candidates.run[used]
    chances = np.full(len(columns), 1 / runs)
    rest = runs - len(columns)
    chances = np.append(chances, rest / runs) if rest else chances
    # > 0: the frontier is a minimum, so it does not matter how often a run was drawn.
    parts = [
        generator.multinomial(runs, chances, size=rows)[:, : len(columns)] > 0
        for rows in _rows_at_a_time(resamples, len(chances))
    ]
    return np.concatenate(parts), place


def _rows_at_a_time(rows: int, columns: int) -> list[int]:
    """Numbers of rows whose sum is `rows`, so that a part has at most _CELLS cells."""
    size = max(1, _CELLS // columns)
    return [min(size, rows - first) for first in range(0, rows, size)]


def _may_be_lowest(candidates: Candidates) -> Mask:
    """(n,) false for a candidate that so many runs beat that no resample lacks all of them.

    A resample lacks one of n runs with the probability (1 - 1/n)^n, about 1/e, and k of them with
    e^-k.
    """
    most = int(np.bincount(candidates.run).max())  # points of one run
    lower: list[float] = []  # the losses so far, in order
    beaten = np.zeros(len(candidates.loss), dtype=np.intp)
    for index, loss in enumerate(candidates.loss.tolist()):
        beaten[index] = bisect_right(lower, loss)
        insort(lower, loss)
    return np.asarray(beaten < _BEATEN * most)


def uncensored_candidates(frontier: Frontier) -> Mask:
    """(n,) whether each candidate is at a compute where the frontier point is uncensored.

    It is the same in every resample.
    """
    uncensored = np.array([not reason for reason in frontier.candidates.why])
    best = frontier.candidates.best
    # Index of the last frontier point at or before each candidate.
    return np.asarray(uncensored[np.maximum.accumulate(np.where(best, np.arange(len(best)), 0))])


def centred_percentiles(values: Array, estimate: float, level: float) -> tuple[float, float]:
    """Percentiles of `values`, shifted so that their median is `estimate`; NaN is ignored."""
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    low, high = np.nanquantile(values, tails) - np.nanmedian(values) + estimate
    return float(low), float(high)


def _start(fit: Fit, data: FitData) -> Array:
    """(1, 1, p) the fit's optimum as θ for the centres of `data`."""
    points, law = data.points, fit.law
    start: list[float] = []
    for (coefficient, exponent), centre in zip(law.powers, points.centres, strict=True):
        # The centres of `data` differ from the fit's, because it has other points.
        log_A = float(np.log(fit[coefficient]))
        start += [log_A - points.height - fit[exponent] * centre, fit[exponent]]
    if law.floor:
        E = max(fit.E, 0.5 * float(data.y.min()) * 1e-2)  # no step leaves E = 0
        start.append(float(np.log(E)) - points.height)
    if law.repeats:
        raise FitError(f"{law.name} has other variables than the compute")
    return np.array(start)[None, None]
