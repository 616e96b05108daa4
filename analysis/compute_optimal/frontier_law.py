"""The law of the frontier, L(C), and its intervals, from the surface of all runs.

The points of a frontier are upper bounds, because only some sizes were run, and the points of one
run share its error. Where the runs have a surface L(N, D), the law and its intervals therefore come
from the optima of the surface, which uses all runs (docs/coverage.md).
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import format as formats
from analysis.compute_optimal.cost import cost_of
from analysis.compute_optimal.frontier import Frontier, run_ends
from analysis.compute_optimal.surface_optimum import optimum
from analysis.fitting.fit import Fit, fit_law, with_parameters
from analysis.fitting.laws import SURFACE, Law
from analysis.fitting.points import FitError
from analysis.fitting.terms import MANY
from analysis.uncertainty.bootstrap import Bootstrap, bootstrap, bootstrap_of_surface, jackknife
from analysis.uncertainty.intervals import Interval, basis, interval

Array = NDArray[np.float64]

RESAMPLES = 1000
_BUDGETS = 9  # at which the optima of a surface are computed
# Resampled surfaces of more than MANY runs are fewer, for speed.
_RESAMPLES_OF_MANY = 400
_CURVES = 12  # the least number of runs whose curves are resampled for a surface
_FEW_CURVES = 5  # the least number of runs that are left out in turn, where there are fewer
_USABLE = 0.9  # share of the resampled surfaces that must have an optimum
OF_SURFACE = "the parameters follow from the surface of all runs, not from these points"
_QUANTILES = 1000  # of the residuals of a surface of more runs
OF_POINTS = "of the law of these points, which are upper bounds of the frontier"


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
    0: the points inside these runs are then not tried), or where a tenth of the resamples have no
    optimum.
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

    The points of a run share its error, so whole runs are drawn, or left out. Coverage:
    docs/coverage.md.
    """
    points = frontier.candidates
    curves = len(points.runs) if frontier.within_runs else 0
    if curves < _FEW_CURVES or np.isnan(points.tokens).any():
        return None
    inputs = (points.size, points.tokens)
    fit = fit_law(SURFACE, inputs, points.loss, objective, floor=floor)
    count, name = resamples if fit.points <= MANY else _RESAMPLES_OF_MANY, "runs with their curves"
    if curves < _CURVES:
        return jackknife(fit, points.run, count, name)
    drawn = bootstrap(fit, count, clusters=points.run, of_clusters=name)
    return drawn.widened(curves - fit.free)


def frontier_interval(
    fit: Fit, name: str, frontier: Frontier, path: SurfacePath | None, level: float = 0.95
) -> Interval | None:
    """The interval of α or E of a law of a frontier; None if there is none that reaches its level.

    From the surface where there is one, as its parameters are (`SurfacePath.law_of`). Else by the
    profile of the points if these are ends of runs: it is an interval of the law of these points,
    which are upper bounds of the frontier. Points inside runs share the errors of their runs.
    """
    if path is not None:
        return path.interval(fit, name, level)
    if frontier.within_runs:
        return None
    profile = interval(fit, name, level)
    return replace(profile, method=f"{profile.method}, {OF_POINTS}")
