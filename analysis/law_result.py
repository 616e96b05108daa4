"""The laws of one metric in one variable, each with the evidence for and against it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.compute_optimal.frontier import Frontier
from analysis.compute_optimal.frontier_law import SurfacePath, frontier_interval, surface_path
from analysis.fitting.fit import Fit
from analysis.fitting.points import FitError
from analysis.selection.holdout import HeldOut
from analysis.selection.options import Options
from analysis.selection.select import Candidate, Choice, choose, not_a_law
from analysis.table.plausible import Caveat
from analysis.table.runs import run_names
from analysis.uncertainty.bootstrap import bootstrap, scheme_for
from analysis.uncertainty.intervals import Interval, interval

# Column: (symbol, description, unit). The four metrics of the VAR paper (Eq. 3-4 and Fig. 5-6).
METRICS = {
    "val_loss": ("L_mean", "loss, all scales", "nats/token"),
    "val_loss_last": ("L_last", "loss, last scale", "nats/token"),
    "val_error": ("Err_mean", "token error, all scales", "share"),
    "val_error_last": ("Err_last", "token error, last scale", "share"),
}
VARIABLES = {
    "params_blocks": ("N", "weights of the blocks"),
    "params_total": ("N_total", "all parameters"),
    "train_flops": ("C", "training FLOPs, along the frontier"),
}
ERRORS = ("val_error", "val_error_last")
IntervalOf = Callable[[Fit, str], Interval | None]  # of a parameter of a fit; None: has none
Paths = dict[float | None, SurfacePath | None]  # by the fixed E of the surface, None: fitted


@dataclass(frozen=True)
class LawResult:
    """One law of one metric in one variable."""

    metric: str
    variable: str
    fit: Fit
    intervals: dict[str, Interval]  # 95 %, by parameter: α, and E if it was fitted
    # Refits to resampled runs, or without one: method, resamples, rejected, interval, s.e. of α.
    resampled: dict[str, Any]
    held_out: HeldOut | None  # the largest size, predicted from the smaller ones
    trials: tuple[str, ...]
    contradictions: tuple[str, ...] = ()  # of the table: why no law of this metric is announced
    # Of L(C): the surface that the parameters of `fit` follow from; None: they are a fit to x, y.
    path: SurfacePath | None = field(default=None, repr=False)

    @property
    def own_contradictions(self) -> tuple[str, ...]:
        """Why this fit is no law: its loss does not fall, or its exponent is at a bound."""
        return not_a_law(self.fit, self.intervals.get("alpha"))

    @property
    def no_law(self) -> str:
        """Why this law must not be announced, in words; "" if it may be."""
        return "; ".join((*self.contradictions, *self.own_contradictions))

    @property
    def label(self) -> str:
        return f"{METRICS[self.metric][0]}({VARIABLES[self.variable][0]})"

    @property
    def x(self) -> tuple[float, ...]:
        return tuple(np.asarray(self.fit.data.x, dtype=float).tolist())

    @property
    def y(self) -> tuple[float, ...]:
        return tuple(self.fit.data.y.tolist())


def laws_of_pair(
    finals: pd.DataFrame,
    frontiers: dict[str, Frontier],
    objective: str,
    options: Options,
    caveats: tuple[Caveat, ...],
    metric: str,
    variable: str,
) -> tuple[Choice | None, list[LawResult], list[str]]:
    """The choice of law for one metric in one variable, its laws, and the refused results."""
    points, refusals = _points(finals, frontiers, metric, variable, options), list[str]()
    if points is None:
        return None, [], refusals
    x, y, trials, seeds, weights = points
    label = f"{METRICS[metric][0]}({VARIABLES[variable][0]})"
    choice, findings = None, list[LawResult]()
    interval_of: IntervalOf = interval
    paths: Paths = {}
    if variable == "train_flops":
        of_metric = frontiers[metric]
        paths = {
            floor: surface_path(finals, of_metric, objective, floor=floor, weights=options.weights)
            for floor in {None, options.E}
        }

        def interval_of(fit: Fit, name: str) -> Interval | None:
            return frontier_interval(fit, name, of_metric, paths[fit.floor])

    with record_refusal(refusals, f"{label}, pure"):
        choice = choose(
            x, y, objective, options.E, error_rate=metric in ERRORS, weights=weights,
            interval_of=interval_of,
        )  # fmt: skip
        choice = _of_surface(choice, paths)
        refusals += [
            f"{label}, {refusal}" for refusal in choice.refused
            if refusal.partition(":")[0].split()[0] in options.laws
        ]  # fmt: skip
        findings = [
            replace(
                _finding(metric, variable, candidate, trials, seeds, interval_of, paths),
                contradictions=contradictions_of(caveats, metric),
            )
            for candidate in choice.candidates
            if candidate.fit.law.name in options.laws
            # A fixed E replaces the free one; the choice shows both.
            and (candidate.name != "floor" or options.E is None)
        ]
        choice = _without_contradicted(choice, findings)
        if variable == "train_flops" and findings and not findings[0].intervals:
            refusals.append(
                f"{label}: no interval, because the points inside runs share the errors of their "
                "runs, and there is no surface of them"
            )
    compared = {"pure", "floor"} <= set(options.laws)
    return choice if compared else None, findings, refusals


def _of_surface(choice: Choice, paths: Paths) -> Choice:
    """The choice with the laws of the surface where there is one.

    Their parameters are printed. Where the interval of the surface's E excludes 0, the law with E
    is preferred: the criteria on the points, which are upper bounds, do not count then.
    """
    candidates = [
        each if (path := paths.get(each.fit.floor)) is None
        else replace(each, fit=path.law_of(each.fit))
        for each in choice.candidates
    ]  # fmt: skip
    choice = replace(choice, candidates=tuple(candidates))
    with_E, judgement = choice.get("floor"), choice.judgement
    span = None if with_E is None or paths.get(None) is None else with_E.E_interval
    if span is None or span.low <= 0 or judgement.contradictions:
        return choice
    reason = f"the E of the surface is between {span.low:.4g} and {span.high:.4g} (95 %)"
    return replace(
        choice, judgement=replace(judgement, preferred="floor", reasons=(reason,), doubts=())
    )


def _without_contradicted(choice: Choice, findings: list[LawResult]) -> Choice:
    """The choice without a preferred law where the points contradict it."""
    by_name = {finding.fit.law.name: finding for finding in findings}
    judgement = choice.judgement
    pure = by_name.get("pure")
    if pure is not None and (why := pure.no_law):
        return replace(choice, judgement=replace(judgement, preferred=None, contradictions=(why,)))
    selected = by_name.get(choice.preferred or "")
    if selected is None or not selected.no_law:
        return choice
    doubts = (*judgement.doubts, f"{choice.preferred}: {selected.no_law}")
    return replace(choice, judgement=replace(judgement, preferred=None, doubts=doubts))


def _points(
    finals: pd.DataFrame, frontiers: dict[str, Frontier], metric: str, variable: str,
    options: Options,
) -> tuple[Any, Any, tuple[str, ...], Any, Any] | None:  # fmt: skip
    """x, y, trials, seeds and weights of the points of one law; None if the table has none.

    Points of a frontier have no weights: they are selected, and often lie inside runs.
    """
    if variable == "train_flops":
        points = frontiers.get(metric)
        if points is None:
            return None
        of_law = points.of_law
        trials = tuple(np.array(points.trial)[of_law].tolist())
        return points.flops[of_law], points.loss[of_law], trials, np.zeros(len(trials)), None
    known = finals.dropna(subset=[variable, metric])
    if known.empty:
        return None
    seeds = known.seed.astype(object).where(known.seed.notna(), 0)
    x, y = known[variable].to_numpy(float), known[metric].to_numpy(float)
    return x, y, tuple(run_names(known)), seeds.to_numpy(), options.weights_of(known)


def _finding(
    metric: str, variable: str, candidate: Candidate, trials: tuple[str, ...], seeds: ArrayLike,
    interval_of: IntervalOf, paths: Paths,
) -> LawResult:  # fmt: skip
    fit = candidate.fit
    path = paths.get(fit.floor)
    alpha_and_E = {"alpha": interval_of(fit, "alpha"), "E": candidate.E_interval}
    intervals = {name: each for name, each in alpha_and_E.items() if each is not None}
    resampled: dict[str, Any] = {}
    try:
        if path is not None:
            alpha = path.values(fit.law)["alpha"]
            resampled = {
                "method": path.method, "resamples": path.resamples, "rejected": path.rejected,
                "unconverged": 0, "alpha": intervals["alpha"],
                "alpha_se": float(np.nanstd(alpha, ddof=1)),
            }  # fmt: skip
        elif variable == "train_flops":
            raise FitError("the points of a frontier are selected, and no runs of their own")
        else:
            drawn = bootstrap(fit, **scheme_for(fit.data.x, seeds))
            resampled = {
                "method": drawn.method, "resamples": drawn.resamples, "rejected": drawn.rejected,
                "unconverged": drawn.unconverged,
                "alpha": drawn.interval("alpha"), "alpha_se": drawn.standard_error("alpha"),
            }  # fmt: skip
    except FitError as error:
        resampled = {"method": f"none: {error}", "resamples": 0, "rejected": 0}
    return LawResult(
        metric, variable, fit, intervals, resampled, candidate.held_out, trials, path=path
    )


def contradictions_of(caveats: tuple[Caveat, ...], metric: str) -> tuple[str, ...]:
    return tuple(each.reason for each in caveats if metric in each.metrics)


@contextmanager
def record_refusal(refusals: list[str], label: str) -> Iterator[None]:
    """Append a ValueError of the block to `refusals` instead of raising it: one result that cannot
    be computed must not prevent the others.
    """
    try:
        yield
    except ValueError as error:
        refusals.append(f"{label}: {error}")
