"""All laws of a run table with the evidence for and against them: the content of a report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.compute_optimal.allocation import Approaches, approaches
from analysis.compute_optimal.frontier import Frontier, frontier
from analysis.compute_optimal.frontier_band import band, frontier_interval, surface_path
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import PURE
from analysis.fitting.objectives import OBJECTIVES
from analysis.parallel import in_processes
from analysis.selection.counting import Convention, by_convention
from analysis.selection.holdout import HeldOut
from analysis.selection.select import Candidate, Choice, choose, not_a_law
from analysis.table.plausible import Caveat, implausible
from analysis.table.runs import run_names
from analysis.table.table import Table
from analysis.uncertainty.bootstrap import SeedNoise, bootstrap, scheme_for, seed_noise
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
IntervalOf = Callable[[Fit, str], Interval]  # the interval of a parameter of a fit


@dataclass(frozen=True)
class LawResult:
    """One law of one metric in one variable."""

    metric: str
    variable: str
    fit: Fit
    intervals: dict[str, Interval]  # 95 %, by parameter: α, and E if it was fitted
    resampled: dict[str, Any]  # bootstrap: method, resamples, rejected, interval and s.e. of α
    held_out: HeldOut | None  # the largest size, predicted from the smaller ones
    trials: tuple[str, ...]
    contradictions: tuple[str, ...] = ()  # of the table: why no law of this metric is announced

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


@dataclass(frozen=True)
class Study:
    """All results on one table. `refused` has the reasons for those that could not be computed."""

    table: Table
    objective: str
    findings: tuple[LawResult, ...]
    choices: dict[tuple[str, str], Choice]  # by metric and variable
    conventions: dict[str, tuple[Convention, ...]]  # by metric
    size: str  # the column of N: weights of the blocks if known, else all parameters
    objectives: dict[str, dict[str, Fit]]  # metric, then objective: the pure law in N
    scales: dict[int, Fit]  # the pure law of each scale's loss in N, coarse (1) to fine
    noise: dict[str, SeedNoise]  # by metric, if sizes were run with several seeds
    frontiers: dict[str, Frontier]  # by metric
    rolled: dict[str, tuple[HeldOut, ...]]  # rolling hold-out by law, for L_mean in N
    allocation: Approaches | None  # approaches 1, 2 and 3 for L_mean
    refused: tuple[str, ...]
    # The 95 % interval of α of each fit of `objectives`; a fit without one is absent.
    objective_intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)
    forecasts: tuple[Any, ...] = field(default=())  # of analysis.forecasting.forecast.Outcome

    @cached_property
    def implausible(self) -> tuple[Caveat, ...]:
        """What the checks of analysis.table.plausible found in the table."""
        return implausible(self.table)

    def contradictions(self, metric: str) -> tuple[str, ...]:
        """What in the table contradicts every law of `metric`; empty if nothing does."""
        return _contradictions(self.implausible, metric)

    def unit(self, metric: str) -> str:
        """The unit of `metric`: the table's loss unit if it has one, else the default."""
        units = self.table.rows.loss_unit.dropna().unique()
        known = metric.startswith("val_loss") and len(units) == 1
        return str(units[0]) if known else METRICS[metric][2]

    def get(self, metric: str, variable: str, law: str) -> LawResult | None:
        for finding in self.findings:
            if (finding.metric, finding.variable, finding.fit.law.name) == (metric, variable, law):
                return finding
        return None


def studies(
    table: Table,
    objective: str = "squares",
    forecasts: tuple[Any, ...] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    processes: int = 1,
) -> dict[str, Study]:
    """One study for each group of the table: a law is fitted to one family, never to several.

    A forecast belongs to the group that has its fitted runs. `processes`: see analysis.parallel.
    """
    by_group = {}
    for label, part in table.groups.items():
        trials = set(part.rows.trial)
        of_group = tuple(outcome for outcome in forecasts if trials & _fitted_runs(outcome))
        of_group = of_group if label else forecasts
        by_group[label] = study(part, objective, of_group, progress, processes)
    return by_group


def _fitted_runs(outcome: Any) -> set[str]:
    forecast = outcome.forecast
    return {run.trial for run in forecast.runs} if forecast else set()


def study(
    table: Table,
    objective: str = "squares",
    forecasts: tuple[Any, ...] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    processes: int = 1,
) -> Study:
    """Fit each metric in N and along the compute frontier, with every diagnostic of each law.

    The default objective is least squares: sweeps have few sizes and no outliers, and then its
    exponents scatter 9 to 14 % less than those of a Huber loss (docs/laws.md); `objectives` of the
    result has all three. `processes`: see analysis.parallel; it does not change any number. Raises
    ValueError for a table of several groups: use `studies`.
    """
    if len(table.groups) > 1:
        raise ValueError(
            f"{table.source}: {len(table.groups)} groups whose losses do not follow one law: "
            f"{'; '.join(table.groups)}. Fit each of table.groups, or use studies(table)"
        )
    refusals: list[str] = []
    finals, caveats = table.finals, implausible(table)
    size = "params_total" if finals.params_blocks.isna().all() else "params_blocks"
    frontiers = _frontiers(table, size, refusals)
    pairs = [(metric, variable) for variable in VARIABLES for metric in METRICS]
    jobs: list[Callable[[], Any]] = [
        partial(_allocation, table, size),
        *(partial(_by_objective, finals, metric, size) for metric in METRICS),
        *(partial(_laws_of_pair, finals, frontiers, *pair, objective, caveats) for pair in pairs),
    ]
    allocated, *results = in_processes(jobs, processes, partial(progress, "laws"))
    progress("laws", 1, 1)
    by_objective = dict(zip(METRICS, results, strict=False))
    laws = dict(zip(pairs, results[len(METRICS) :], strict=True))
    choices = {pair: choice for pair, (choice, _, _) in laws.items() if choice is not None}
    findings = [finding for _, found, _ in laws.values() for finding in found]
    refusals += [refusal for _, _, refused in laws.values() for refusal in refused]
    conventions = _conventions(finals, objective, refusals)
    scales = _scales(finals, size, objective, refusals)
    allocation, refused = allocated
    refusals += refused
    loss_choice = choices.get(("val_loss", size))
    return Study(
        table=table,
        objective=objective,
        findings=tuple(findings),
        choices=choices,
        conventions=conventions,
        size=size,
        objectives={metric: fits for metric, (fits, _) in by_objective.items()},
        objective_intervals={metric: spans for metric, (_, spans) in by_objective.items()},
        scales=scales,
        noise=_noise(finals, size, findings),
        frontiers=frontiers,
        rolled={candidate.name: candidate.rolled for candidate in loss_choice.candidates}
        if loss_choice
        else {},
        allocation=allocation,
        refused=tuple(dict.fromkeys(refusals)),
        forecasts=forecasts,
    )


@contextmanager
def _record_refusal(refusals: list[str], label: str) -> Iterator[None]:
    """Append a ValueError of the block to `refusals` instead of raising it: one result that cannot
    be computed must not prevent the others.
    """
    try:
        yield
    except ValueError as error:
        refusals.append(f"{label}: {error}")


def _contradictions(caveats: tuple[Caveat, ...], metric: str) -> tuple[str, ...]:
    return tuple(each.reason for each in caveats if metric in each.metrics)


def _laws_of_pair(
    finals: pd.DataFrame,
    frontiers: dict[str, Frontier],
    metric: str,
    variable: str,
    objective: str,
    caveats: tuple[Caveat, ...],
) -> tuple[Choice | None, list[LawResult], list[str]]:
    """The choice of law for one metric in one variable, its laws, and the refused results."""
    points, refusals = _points(finals, frontiers, metric, variable), list[str]()
    if points is None:
        return None, [], refusals
    x, y, trials, seeds = points
    label = f"{METRICS[metric][0]}({VARIABLES[variable][0]})"
    choice, findings = None, list[LawResult]()
    interval_of: IntervalOf = interval
    if variable == "train_flops":
        path = surface_path(finals, frontiers[metric], objective)
        interval_of = partial(frontier_interval, frontier=frontiers[metric], path=path)
    with _record_refusal(refusals, f"{label}, pure"):
        choice = choose(x, y, objective, error_rate=metric in ERRORS, interval_of=interval_of)
        refusals += [f"{label}, {refusal}" for refusal in choice.refused]
        findings = [
            replace(
                _finding(metric, variable, candidate, trials, seeds, interval_of, frontiers),
                contradictions=_contradictions(caveats, metric),
            )
            for candidate in choice.candidates
        ]
        choice = _without_contradicted(choice, findings)
    return choice, findings, refusals


def _without_contradicted(choice: Choice, findings: list[LawResult]) -> Choice:
    """The choice without a preferred law where the points contradict it."""
    by_name = {finding.fit.law.name: finding for finding in findings}
    judgement = choice.judgement
    if (pure := by_name.get("pure")) and (why := pure.no_law):
        return replace(choice, judgement=replace(judgement, preferred=None, contradictions=(why,)))
    selected = by_name.get(choice.preferred or "")
    if selected is None or not selected.no_law:
        return choice
    doubts = (*judgement.doubts, f"{choice.preferred}: {selected.no_law}")
    return replace(choice, judgement=replace(judgement, preferred=None, doubts=doubts))


def _points(
    finals: pd.DataFrame, frontiers: dict[str, Frontier], metric: str, variable: str
) -> tuple[Any, Any, tuple[str, ...], Any] | None:
    """x, y, trials and seeds of the points of one law; None if the table has none."""
    if variable == "train_flops":
        points = frontiers.get(metric)
        if points is None:
            return None
        of_law = points.of_law
        trials = tuple(np.array(points.trial)[of_law].tolist())
        return points.flops[of_law], points.loss[of_law], trials, np.zeros(len(trials))
    known = finals.dropna(subset=[variable, metric])
    if known.empty:
        return None
    seeds = known.seed.astype(object).where(known.seed.notna(), 0)
    x, y = known[variable].to_numpy(float), known[metric].to_numpy(float)
    return x, y, tuple(run_names(known)), seeds.to_numpy()


def _finding(
    metric: str, variable: str, candidate: Candidate, trials: tuple[str, ...], seeds: ArrayLike,
    interval_of: IntervalOf, frontiers: dict[str, Frontier],
) -> LawResult:  # fmt: skip
    fit = candidate.fit
    intervals = {"alpha": interval_of(fit, "alpha")}
    if candidate.E_interval is not None:
        intervals["E"] = candidate.E_interval
    resampled: dict[str, Any] = {}
    try:
        if variable == "train_flops":
            # Its points are not runs: a resampled run takes all its points with it.
            of_runs = band(frontiers[metric], fit.law, fit.objective.name)
            alpha = of_runs.values["alpha"]
            resampled = {
                "method": of_runs.method, "resamples": of_runs.resamples,
                "rejected": of_runs.rejected, "unconverged": 0,
                "alpha": of_runs.interval("alpha"), "alpha_se": float(np.std(alpha, ddof=1)),
            }  # fmt: skip
        else:
            drawn = bootstrap(fit, **scheme_for(fit.data.x, seeds))
            resampled = {
                "method": drawn.method, "resamples": drawn.resamples, "rejected": drawn.rejected,
                "unconverged": drawn.unconverged,
                "alpha": drawn.interval("alpha"), "alpha_se": drawn.standard_error("alpha"),
            }  # fmt: skip
    except ValueError as error:  # FitError, FrontierError
        resampled = {"method": f"none: {error}", "resamples": 0, "rejected": 0}
    return LawResult(metric, variable, fit, intervals, resampled, candidate.held_out, trials)


def _frontiers(table: Table, size: str, refusals: list[str]) -> dict[str, Frontier]:
    by_metric = {}
    done = table.rows[table.rows.status.isin(["done", "imported"])]
    for metric in METRICS:
        if metric not in done or done[metric].isna().all() or done.train_flops.isna().all():
            continue
        with _record_refusal(refusals, f"frontier of {METRICS[metric][0]}"):
            by_metric[metric] = frontier(done, metric, params=size)
    return by_metric


def _conventions(
    finals: pd.DataFrame, objective: str, refusals: list[str]
) -> dict[str, tuple[Convention, ...]]:
    by_metric = {}
    for metric in ("val_loss", "val_loss_last"):
        with _record_refusal(refusals, f"conventions of {METRICS[metric][0]}"):
            by_metric[metric] = by_convention(finals, metric, PURE, objective)
    return by_metric


def _by_objective(
    finals: pd.DataFrame, metric: str, size: str
) -> tuple[dict[str, Fit], dict[str, Interval]]:
    """The pure law in N under each objective, and the interval of its α."""
    known = finals.dropna(subset=[size, metric])
    by_objective, intervals = {}, {}
    for name in OBJECTIVES:
        with _record_refusal([], ""):  # the laws of the study record the reason
            by_objective[name] = fit_law(PURE, known[size], known[metric], name)
            intervals[name] = interval(by_objective[name], "alpha")
    return by_objective, intervals


def _scales(finals: pd.DataFrame, size: str, objective: str, refusals: list[str]) -> dict[int, Fit]:
    known = finals.dropna(subset=[size, "val_loss_parts"])
    if known.empty:
        return {}
    losses = np.stack([np.asarray(row, dtype=float) for row in known.val_loss_parts])
    if losses.shape[1] == 1:  # a single scale: its loss is the whole loss
        return {}
    by_scale = {}
    for k in range(losses.shape[1]):
        with _record_refusal(refusals, f"loss of scale {k + 1}"):
            by_scale[k + 1] = fit_law(PURE, known[size], losses[:, k], objective)
    return by_scale


def _noise(finals: pd.DataFrame, size: str, findings: list[LawResult]) -> dict[str, SeedNoise]:
    by_metric = {}
    for metric in METRICS:
        known = finals.dropna(subset=[size, metric, "seed"])
        fit = next(
            (f.fit for f in findings if (f.metric, f.variable) == (metric, size)
             and f.fit.law.name == "floor" and f.fit.points == len(known)), None,
        )  # fmt: skip
        if len(known):
            noise = seed_noise(known[size], known[metric], known.seed, fit)
            if noise is not None:
                by_metric[metric] = noise
    return by_metric


def _allocation(table: Table, size: str) -> tuple[Approaches | None, list[str]]:
    """The three approaches, or None, and why there are none."""
    refusals: list[str] = []
    with _record_refusal(refusals, "optimal allocation of compute"):
        return approaches(table.rows[table.rows.status == "done"], "val_loss", params=size), []
    return None, refusals
