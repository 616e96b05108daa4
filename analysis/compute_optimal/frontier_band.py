"""The law along the frontier, and its band: resampled by run, never by checkpoint.

Points of one run share its seed, its data order and its luck; drawn one by one they would count as
independent, and the band would be too narrow.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.compute_optimal.frontier import Frontier, FrontierError, leading
from analysis.fitting.fit import Fit, fit_law, solve
from analysis.fitting.laws import PURE, Law
from analysis.fitting.points import FitError, Given, check_points
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RESAMPLES = 1000
_CELLS = 4_000_000  # (resample, point) pairs at a time


@dataclass(frozen=True)
class Band:
    """The law of a frontier at `flops` (m,), and what refits to resampled runs say of it."""

    fit: Fit
    flops: Array
    law: Array
    low: Array
    high: Array
    level: float
    method: str
    resamples: int
    rejected: int  # with too few points to carry the law
    lift: float  # median over refits and `flops` of log(refit / law); taken out of the band
    values: dict[str, Array] = field(repr=False)  # the law's parameters, one value a resample

    def interval(self, name: str) -> Interval:
        """Percentiles of a parameter, moved so that their median is the fit's own value."""
        if name in {coefficient for coefficient, _ in self.fit.law.powers}:
            ends = centred(np.log(self.values[name]), float(np.log(self.fit[name])), self.level)
            low, high = float(np.exp(ends[0])), float(np.exp(ends[1]))
        else:
            low, high = centred(self.values[name], self.fit[name], self.level)
        low = max(low, 0.0) if name == "E" else low
        points = self.fit.points
        basis = f"{points} frontier points, {self.fit.decades:.1f} decades of C"
        return Interval(low, high, self.level, self.method, basis)


def band(
    found: Frontier,
    law: Law = PURE,
    objective: str = "squares",
    *,
    at: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Band:
    """Fit `law` to the frontier's points, and again to the frontiers of resampled runs.

    A resample holds some 63 % of the runs, so its least losses are a little higher: the refits are
    moved by their median (`lift`), and the band is how they scatter about it. `at`: FLOPs, by
    default 50 over the frontier. Raises FitError where the points cannot carry the law, and
    FrontierError where there are under three runs or nearly all resamples are rejected.
    """
    fit = fit_law(law, found.flops, found.loss, objective)
    flops = np.geomspace(found.flops[0], found.flops[-1], 50) if at is None else np.asarray(at)
    kept = resampled(found, resamples, seed)
    used = kept.any(axis=0)
    candidates = found.candidates
    given = check_points(law, candidates.flops[used], candidates.loss[used])
    enough = kept.sum(1) > fit.free
    if enough.sum() < 20:
        raise FrontierError(f"of {resamples} resamples of the runs {enough.sum()} carry the law")
    weights = kept[enough][:, used].astype(float)
    solved = solve(given.points, weights, _start(fit, given), fit.objective, tolerance=1e-8)
    values = given.columns(solved.theta)
    columns: dict[str, Any] = {name: each[:, None] for name, each in values.items()}
    curves = np.log(law.predict(flops, columns))
    line = np.log(fit.predict(flops))
    middle = np.median(curves, axis=0)
    low, high = np.quantile(curves - middle, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Band(
        fit, flops, np.exp(line), np.exp(line + low), np.exp(line + high), level,
        f"bootstrap over {len(candidates.runs)} runs, median-centred", int(enough.sum()),
        int((~enough).sum()), float(np.median(middle - line)), values,
    )  # fmt: skip


def resampled(found: Frontier, resamples: int = RESAMPLES, seed: int = 0) -> Mask:
    """(B, n): which candidates are on the frontier of each resample of the runs."""
    candidates, runs = found.candidates, len(found.candidates.runs)
    if runs < 3:
        raise FrontierError(f"{runs} runs: resampling them says nothing")
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(runs, np.full(runs, 1 / runs), size=resamples) > 0
    parts = []
    for part in np.array_split(drawn, max(1, drawn.shape[0] * len(candidates.flops) // _CELLS)):
        losses = np.where(part[:, candidates.run], candidates.loss, np.inf)
        parts.append(leading(losses))
    return np.concatenate(parts)


def centred(values: Array, estimate: float, level: float) -> tuple[float, float]:
    """Percentiles of `values` about their median, put about `estimate`; NaN does not count."""
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    low, high = np.nanquantile(values, tails) - np.nanmedian(values) + estimate
    return float(low), float(high)


def _start(fit: Fit, given: Given) -> Array:
    """(1, 1, p): the fit's own optimum in the centres of other points."""
    points, law = given.points, fit.law
    start: list[float] = []
    for (coefficient, exponent), centre in zip(law.powers, points.centres, strict=True):
        log_A = float(np.log(fit[coefficient]))
        start += [log_A - points.height - fit[exponent] * centre, fit[exponent]]
    if law.floor:
        floor = max(fit.E, 0.5 * float(given.y.min()) * 1e-2)
        start.append(float(np.log(floor)) - points.height)
    if law.repeats:
        raise FitError(f"{law.name} is no law of the compute alone")
    return np.array(start)[None, None]
