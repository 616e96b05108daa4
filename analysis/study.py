"""All laws of a run table with the evidence for and against them: the content of a report."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.compute_optimal.allocation import Approaches, approaches
from analysis.compute_optimal.frontier import Frontier, frontier
from analysis.compute_optimal.surface import SurfaceLaw, fit_surface, mixed_data
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import PURE
from analysis.fitting.objectives import OBJECTIVES
from analysis.fitting.points import FitError
from analysis.law_result import (
    METRICS,
    VARIABLES,
    LawResult,
    contradictions_of,
    laws_of_pair,
    record_refusal,
)
from analysis.parallel import in_processes
from analysis.selection.counting import Convention, by_convention
from analysis.selection.holdout import HeldOut
from analysis.selection.options import DEFAULTS, FORM_NAMES, LAW_NAMES, Options
from analysis.selection.predict import Prediction, predict
from analysis.selection.select import Choice
from analysis.table.plausible import Caveat, implausible
from analysis.table.table import Table
from analysis.uncertainty.bootstrap import SeedNoise, seed_noise
from analysis.uncertainty.intervals import Interval, interval, prediction_interval


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
    surfaces: dict[str, SurfaceLaw] = field(default_factory=dict)  # L(N, D) by metric
    forms: tuple[SurfaceLaw, ...] = ()  # other laws in N and D, which options.laws names
    # By metric, where runs of one size have different D: which, in words. Then the law in N alone
    # does not describe the runs, and the surface is the main result.
    mixed_data: dict[str, str] = field(default_factory=dict)
    options: Options = DEFAULTS
    predictions: tuple[Prediction, ...] = ()  # at options.at
    unpredicted: tuple[str, ...] = ()  # laws without a prediction there, and the reasons

    @cached_property
    def implausible(self) -> tuple[Caveat, ...]:
        """What the checks of analysis.table.plausible found in the table."""
        return implausible(self.table)

    def contradictions(self, metric: str) -> tuple[str, ...]:
        """What in the table contradicts every law of `metric`; empty if nothing does."""
        return contradictions_of(self.implausible, metric)

    def unit(self, metric: str) -> str:
        """The unit of `metric`: the table's loss unit if it has one, else the default."""
        units = self.table.rows.loss_unit.dropna().unique()
        known = metric.startswith("val_loss") and len(units) == 1
        return str(units[0]) if known else METRICS[metric][2]

    def verdict(self, metric: str, variable: str) -> str:
        """Whether the data prefer a law with E, or why there is no law in this variable alone."""
        mixed = self.mixed_data.get(metric)
        if mixed is not None and variable != "train_flops":
            pure = self.get(metric, variable, "pure")
            alone = f"; a power law in it alone has r = {pure.fit.r:.2f}" if pure else ""
            return f"no law in {VARIABLES[variable][0]} alone: {mixed}{alone}"
        return self.choices[metric, variable].verdict

    def is_mixed(self, finding: LawResult) -> bool:
        """Whether the points of this law are runs of different D at one N."""
        return finding.variable != "train_flops" and finding.metric in self.mixed_data

    def surface_label(self, metric: str) -> str:
        return f"{METRICS[metric][0]}({VARIABLES[self.size][0]}, D)"

    @property
    def main(self) -> tuple[str, str] | None:
        """The metric and the variable of the main result: the first metric with a law in its size,
        else in compute. None if nothing could be fitted.
        """
        for metric in METRICS:
            laws = (v for v in VARIABLES if self.any_law(metric, v) is not None)
            if metric in self.surfaces and metric in self.mixed_data:
                return metric, self.size
            if (variable := next(laws, None)) is not None:
                return metric, variable
            if metric in self.surfaces:  # the only law that was requested
                return metric, self.size
        return None

    def any_law(self, metric: str, variable: str) -> LawResult | None:
        """The pure law, or else the first of the others."""
        laws = (self.get(metric, variable, name) for name in ("pure", "floor", "logit"))
        return next((law for law in laws if law is not None), None)

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
    options: Options = DEFAULTS,
) -> dict[str, Study]:
    """One study for each group of the table: a law is fitted to one family, never to several.

    A forecast belongs to the group that has its fitted runs. `processes`: see analysis.parallel.
    """
    by_group = {}
    for label, part in table.groups.items():
        trials = set(part.rows.trial)
        of_group = tuple(outcome for outcome in forecasts if trials & _fitted_runs(outcome))
        of_group = of_group if label else forecasts
        by_group[label] = study(part, objective, of_group, progress, processes, options)
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
    options: Options = DEFAULTS,
) -> Study:
    """Fit each metric in N and along the compute frontier, with every diagnostic of each law.

    The default objective is least squares: sweeps have few sizes and no outliers, and then its
    exponents scatter 9 to 14 % less than those of a Huber loss (docs/laws.md); `objectives` of the
    result has all three. `options`: which laws, and how else. `processes`: see analysis.parallel;
    it does not change any number. Raises ValueError for a table of several groups: use `studies`.
    """
    _refuse_groups(table)
    refusals, finals, caveats = list[str](), table.finals, implausible(table)
    size = "params_total" if finals.params_blocks.isna().all() else "params_blocks"
    options.refuse_wrong_columns(finals)  # before the first fit
    frontiers = _frontiers(table, size, refusals)
    pairs = [(metric, variable) for variable in VARIABLES for metric in METRICS]
    jobs: list[Callable[[], Any]] = [
        partial(_allocation, table, size, objective, options),
        partial(_laws_in_two, finals, size, objective, options, caveats),
        *(partial(_by_objective, finals, metric, size, options) for metric in METRICS),
    ]
    of_pair = partial(laws_of_pair, finals, frontiers, objective, options, caveats)
    jobs += [partial(of_pair, metric, variable) for metric, variable in pairs]
    allocated, in_two, *results = in_processes(jobs, processes, partial(progress, "laws"))
    (allocation, refused), (surfaces, forms, not_in_two) = allocated, in_two
    progress("laws", 1, 1)
    by_objective = dict(zip(METRICS, results, strict=False))
    laws = dict(zip(pairs, results[len(METRICS) :], strict=True))
    choices = {pair: choice for pair, (choice, _, _) in laws.items() if choice is not None}
    findings = [finding for _, found, _ in laws.values() for finding in found]
    refusals += [refusal for _, _, refused in laws.values() for refusal in refused]
    conventions = _conventions(finals, objective, options, refusals)
    scales = _scales(finals, size, objective, options, refusals)
    refusals += [*refused, *not_in_two, *_absent_laws(findings, surfaces, forms, options)]
    study = Study(
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
        rolled=_rolled(choices.get(("val_loss", size))),
        allocation=allocation,
        refused=tuple(dict.fromkeys(refusals)),
        forecasts=forecasts,
        surfaces=surfaces,
        forms=forms,
        mixed_data=_mixed_data(finals, size),
        options=options,
    )
    predictions, unpredicted = _predictions(study) if options.at else ((), ())
    return replace(study, predictions=predictions, unpredicted=unpredicted)


def _refuse_groups(table: Table) -> None:
    if len(table.groups) > 1:
        raise ValueError(
            f"{table.source}: {len(table.groups)} groups whose losses do not follow one law: "
            f"{'; '.join(table.groups)}. Fit each of table.groups, or use studies(table)"
        )


def _rolled(choice: Choice | None) -> dict[str, tuple[HeldOut, ...]]:
    """The rolling hold-out of the laws with a free E and without E."""
    candidates = choice.candidates if choice else ()
    return {each.name: each.rolled for each in candidates if each.fit.floor is None}


def _absent_laws(
    findings: list[LawResult], surfaces: dict[str, SurfaceLaw], forms: tuple[SurfaceLaw, ...],
    options: Options,
) -> list[str]:  # fmt: skip
    """A line for each law that was asked for and that no metric has."""
    in_one, in_two = [each.fit for each in findings], [*surfaces.values(), *forms]
    found = {fit.law.name for fit in (*in_one, *(each.fit for each in in_two))}
    asked = () if options.laws == LAW_NAMES else options.laws
    return [f"--law {name}: no metric of this table has it" for name in asked if name not in found]


def _predictions(study: Study) -> tuple[tuple[Prediction, ...], tuple[str, ...]]:
    """L at `options.at` by each law that has only these variables, and why the others have none.

    N is the study's own count of parameters. Raises ValueError where no law has a prediction.
    """
    given = study.options.at
    symbol = VARIABLES[study.size][0]
    at = {**given, symbol: given["N"]} if "N" in given else dict(given)
    predictions, refusals = list[Prediction](), list[str]()
    for surface in (*study.surfaces.values(), *study.forms):
        label = study.surface_label(surface.metric)
        with record_refusal(refusals, label):
            predictions.append(predict(surface.fit, label, (symbol, "D"), at))
    for finding in study.findings:
        with record_refusal(refusals, finding.label):
            if study.is_mixed(finding):
                raise FitError("its runs have different D")
            variables = (VARIABLES[finding.variable][0],)
            path = finding.path
            if finding.variable == "train_flops" and "alpha" not in finding.intervals:
                raise FitError("the points inside runs share errors, and there is no surface")
            interval_at = path.prediction_interval if path else prediction_interval
            predictions.append(predict(finding.fit, finding.label, variables, at, interval_at))
    refusals = list(dict.fromkeys(refusals))
    if not predictions:
        values = ",".join(f"{name}={value:g}" for name, value in given.items())
        raise ValueError(f"--predict {values}: no law predicts L there: {'; '.join(refusals)}")
    return tuple(predictions), tuple(refusals)


def _frontiers(table: Table, size: str, refusals: list[str]) -> dict[str, Frontier]:
    by_metric = {}
    done = table.rows[table.rows.status.isin(["done", "imported"])]
    for metric in METRICS:
        if metric not in done or done[metric].isna().all() or done.train_flops.isna().all():
            continue
        with record_refusal(refusals, f"frontier of {METRICS[metric][0]}"):
            by_metric[metric] = frontier(done, metric, params=size)
    return by_metric


def _conventions(
    finals: pd.DataFrame, objective: str, options: Options, refusals: list[str]
) -> dict[str, tuple[Convention, ...]]:
    by_metric = {}
    for metric in ("val_loss", "val_loss_last"):
        with record_refusal(refusals, f"conventions of {METRICS[metric][0]}"):
            by_metric[metric] = by_convention(
                finals, metric, PURE, objective, weights=options.weights
            )
    return by_metric


def _by_objective(
    finals: pd.DataFrame, metric: str, size: str, options: Options
) -> tuple[dict[str, Fit], dict[str, Interval]]:
    """The pure law in N under each objective, and the interval of its α."""
    known = finals.dropna(subset=[size, metric])
    w = options.weights_of(known)
    by_objective, intervals = {}, {}
    for name in OBJECTIVES:
        with record_refusal([], ""):  # the laws of the study record the reason
            by_objective[name] = fit_law(PURE, known[size], known[metric], name, weights=w)
            intervals[name] = interval(by_objective[name], "alpha")
    return by_objective, intervals


def _scales(
    finals: pd.DataFrame, size: str, objective: str, options: Options, refusals: list[str]
) -> dict[int, Fit]:
    known = finals.dropna(subset=[size, "val_loss_parts"])
    if known.empty:
        return {}
    losses = np.stack([np.asarray(row, dtype=float) for row in known.val_loss_parts])
    if losses.shape[1] == 1:  # a single scale: its loss is the whole loss
        return {}
    by_scale, w = {}, options.weights_of(known)
    for k in range(losses.shape[1]):
        with record_refusal(refusals, f"loss of scale {k + 1}"):
            by_scale[k + 1] = fit_law(PURE, known[size], losses[:, k], objective, weights=w)
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


def _laws_in_two(
    finals: pd.DataFrame,
    size: str,
    objective: str,
    options: Options,
    caveats: tuple[Caveat, ...],
) -> tuple[dict[str, SurfaceLaw], tuple[SurfaceLaw, ...], list[str]]:
    """The surface of each metric, the other laws in N and D, and why there are no others."""
    surfaces, without_surface = _surfaces(finals, size, objective, options)
    forms, without_form = _forms(finals, size, objective, options)

    def marked(law: SurfaceLaw) -> SurfaceLaw:
        return replace(law, contradictions=contradictions_of(caveats, law.metric))

    by_metric = {metric: marked(surface) for metric, surface in surfaces.items()}
    return by_metric, tuple(map(marked, forms)), [*without_surface, *without_form]


def _surfaces(
    finals: pd.DataFrame, size: str, objective: str, options: Options
) -> tuple[dict[str, SurfaceLaw], list[str]]:
    """The surface of each measured metric, and why the others have none."""
    by_metric, refusals = {}, list[str]()
    metrics = METRICS if "surface" in options.laws else {}
    for metric, (symbol, *_) in metrics.items():
        if finals[metric].notna().any() and finals[size].notna().any():
            with record_refusal(refusals, f"{symbol}({VARIABLES[size][0]}, D)"):
                by_metric[metric] = fit_surface(
                    finals, metric, size, objective, options.E, options.weights
                )
    return by_metric, refusals


def _forms(
    finals: pd.DataFrame, size: str, objective: str, options: Options
) -> tuple[tuple[SurfaceLaw, ...], list[str]]:
    """The other laws in N and D that `options` names, of each metric, and why there are none."""
    found, refusals = list[SurfaceLaw](), list[str]()
    for law in (name for name in options.laws if name in FORM_NAMES):
        for metric, (symbol, *_) in METRICS.items():
            if finals[metric].notna().any() and finals[size].notna().any():
                with record_refusal(refusals, f"{symbol}({VARIABLES[size][0]}, D), {law}"):
                    found.append(
                        fit_surface(
                            finals, metric, size, objective, options.E, options.weights, law,
                            options.unique,
                        )
                    )  # fmt: skip
    return tuple(found), refusals


def _mixed_data(finals: pd.DataFrame, size: str) -> dict[str, str]:
    """By metric, the sizes whose runs have different D, in words; absent where there are none."""
    by_metric = {}
    for metric in METRICS:
        words = mixed_data(finals.dropna(subset=[size, metric]), size)
        if words is not None:
            by_metric[metric] = words
    return by_metric


def _allocation(
    table: Table, size: str, objective: str, options: Options
) -> tuple[Approaches | None, list[str]]:
    """The three approaches, or None, and why there are none."""
    refusals: list[str] = []
    with record_refusal(refusals, "optimal allocation of compute"):
        done = table.rows[table.rows.status == "done"]
        budgets = options.budgets_of(table.finals)
        found = approaches(
            done, "val_loss", params=size, budgets=budgets, objective=objective,
            floor=options.E, weights=options.weights, curve=options.curve,
        )  # fmt: skip
        return found, []
    return None, refusals
