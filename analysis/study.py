"""Every law of a run table, with all that speaks for and against it: what a report is made from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.compute_optimal.allocation import Approaches, approaches
from analysis.compute_optimal.frontier import Frontier, frontier
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import PURE
from analysis.fitting.objectives import OBJECTIVES
from analysis.fitting.points import FitError
from analysis.selection.counting import Convention, by_convention
from analysis.selection.holdout import HeldOut
from analysis.selection.select import Candidate, Choice, choose
from analysis.table.table import Table
from analysis.uncertainty.bootstrap import SeedNoise, bootstrap, scheme_for, seed_noise
from analysis.uncertainty.intervals import Interval, interval

# Column: (symbol, what, unit). The paper's four (VAR, Eq. 3-4 and Fig. 5-6).
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


@dataclass(frozen=True)
class LawResult:
    """One law of one metric in one variable."""

    metric: str
    variable: str
    fit: Fit
    intervals: dict[str, Interval]  # 95 %, by parameter: α, and E where it was fitted
    resampled: dict[str, Any]  # method, resamples, rejected, interval and standard error of α
    held_out: HeldOut | None  # the largest size, from the smaller ones
    trials: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{METRICS[self.metric][0]}({VARIABLES[self.variable][0]})"

    @property
    def x(self) -> tuple[float, ...]:
        return tuple(np.asarray(self.fit.given.x, dtype=float).tolist())

    @property
    def y(self) -> tuple[float, ...]:
        return tuple(self.fit.given.y.tolist())


@dataclass(frozen=True)
class Study:
    """All findings on one table. What could not be found is in `refused`, in words."""

    table: Table
    objective: str
    findings: tuple[LawResult, ...]
    choices: dict[tuple[str, str], Choice]  # by metric and variable
    conventions: dict[str, tuple[Convention, ...]]  # by metric
    size: str  # the column of N that the rest is in: weights of the blocks where they are known
    objectives: dict[str, dict[str, Fit]]  # metric, then objective: the pure law in N
    scales: dict[int, Fit]  # the pure law of each scale's loss in N, coarse (1) to fine
    noise: dict[str, SeedNoise]  # by metric, where sizes were run with several seeds
    frontiers: dict[str, Frontier]  # by metric
    rolled: dict[str, tuple[HeldOut, ...]]  # by law, of L_mean in N
    allocation: Approaches | None  # approaches 1, 2 and 3 of L_mean
    refused: tuple[str, ...]
    forecasts: tuple[Any, ...] = field(
        default=()
    )  # analysis.forecasting.forecast: frozen, and scored if it is

    def unit(self, metric: str) -> str:
        """Of the metric, as the table has it."""
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
) -> dict[str, Study]:
    """A study of each of the table's groups: laws are of one family, never of several pooled.

    A forecast belongs to the group that has its runs.
    """
    found = {}
    for label, part in table.groups.items():
        trials = set(part.rows.trial)
        own = tuple(one for one in forecasts if trials & _runs_behind(one))
        found[label] = study(part, objective, own if label else forecasts, progress)
    return found


def _runs_behind(outcome: Any) -> set[str]:
    forecast = outcome.forecast
    return {run.trial for run in forecast.runs} if forecast else set()


def study(
    table: Table,
    objective: str = "squares",
    forecasts: tuple[Any, ...] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Study:
    """Fit each metric against N and along the compute frontier, and ask everything of each law.

    Least squares unless told otherwise: sweeps have few sizes and no outliers, and there it is 10
    to 17 % sharper than a Huber loss (docs/laws.md); `objectives` of the result shows all three.
    Raises ValueError for a table of several groups: `studies` fits each.
    """
    if len(table.groups) > 1:
        raise ValueError(
            f"{table.source}: {len(table.groups)} groups whose losses are no points of one law: "
            f"{'; '.join(table.groups)}. Fit each of table.groups, or use studies(table)"
        )
    said: list[str] = []
    finals = table.finals
    size = "params_total" if finals.params_blocks.isna().all() else "params_blocks"
    frontiers = _frontiers(table, size, said)
    findings = []
    pairs = [(metric, variable) for variable in VARIABLES for metric in METRICS]
    choices: dict[tuple[str, str], Choice] = {}
    for done, (metric, variable) in enumerate(pairs):
        progress("laws", done, len(pairs))
        points = _points(finals, frontiers, metric, variable)
        if points is None:
            continue
        x, y, trials, seeds = points
        named = f"{METRICS[metric][0]}({VARIABLES[variable][0]})"
        with _noting(said, f"{named}, pure"):
            chosen = choose(x, y, objective, error_rate=metric in ERRORS)
            choices[metric, variable] = chosen
            said += [f"{named}, {refusal}" for refusal in chosen.refused]
            findings += [
                _finding(metric, variable, each, trials, seeds) for each in chosen.candidates
            ]
    progress("laws", len(pairs), len(pairs))
    of_loss = choices.get(("val_loss", size))
    return Study(
        table=table,
        objective=objective,
        findings=tuple(findings),
        choices=choices,
        conventions=_conventions(finals, objective, said),
        size=size,
        objectives={metric: _by_objective(finals, metric, size) for metric in METRICS},
        scales=_scales(finals, size, objective, said),
        noise=_noise(finals, size, findings),
        frontiers=frontiers,
        rolled={each.name: each.rolled for each in of_loss.candidates} if of_loss else {},
        allocation=_allocation(table, size, said),
        refused=tuple(dict.fromkeys(said)),
        forecasts=forecasts,
    )


@contextmanager
def _noting(said: list[str], named: str) -> Iterator[None]:
    """A block whose refusal (a ValueError of ours) is a line of the report, not the end of it."""
    try:
        yield
    except ValueError as error:
        said.append(f"{named}: {error}")


def _points(
    finals: pd.DataFrame, frontiers: dict[str, Frontier], metric: str, variable: str
) -> tuple[Any, Any, tuple[str, ...], Any] | None:
    """x, y, trials and seeds of the points of one law; None where the table has none."""
    if variable == "train_flops":
        found = frontiers.get(metric)
        if found is None:
            return None
        return found.flops, found.loss, found.trial, np.zeros(len(found.trial))
    known = finals.dropna(subset=[variable, metric])
    if known.empty:
        return None
    seeds = known.seed.astype(object).where(known.seed.notna(), 0)
    x, y = known[variable].to_numpy(float), known[metric].to_numpy(float)
    return x, y, tuple(known.trial.astype(str)), seeds.to_numpy()


def _finding(
    metric: str, variable: str, candidate: Candidate, trials: tuple[str, ...], seeds: ArrayLike
) -> LawResult:
    fit = candidate.fit
    intervals = {"alpha": interval(fit, "alpha")}
    if candidate.E_interval is not None:
        intervals["E"] = candidate.E_interval
    resampled: dict[str, Any] = {}
    try:
        drawn = bootstrap(fit, **scheme_for(fit.given.x, seeds))
        resampled = {
            "method": drawn.method, "resamples": drawn.resamples, "rejected": drawn.rejected,
            "unconverged": drawn.unconverged,
            "alpha": drawn.interval("alpha"), "alpha_se": drawn.standard_error("alpha"),
        }  # fmt: skip
    except FitError as error:
        resampled = {"method": f"none: {error}", "resamples": 0, "rejected": 0}
    return LawResult(metric, variable, fit, intervals, resampled, candidate.held_out, trials)


def _frontiers(table: Table, size: str, said: list[str]) -> dict[str, Frontier]:
    found = {}
    done = table.rows[table.rows.status.isin(["done", "imported"])]
    for metric in METRICS:
        if metric not in done or done[metric].isna().all() or done.train_flops.isna().all():
            continue
        with _noting(said, f"frontier of {METRICS[metric][0]}"):
            found[metric] = frontier(done, metric, params=size)
    return found


def _conventions(
    finals: pd.DataFrame, objective: str, said: list[str]
) -> dict[str, tuple[Convention, ...]]:
    found = {}
    for metric in ("val_loss", "val_loss_last"):
        with _noting(said, f"conventions of {METRICS[metric][0]}"):
            found[metric] = by_convention(finals, metric, PURE, objective)
    return found


def _by_objective(finals: pd.DataFrame, metric: str, size: str) -> dict[str, Fit]:
    known = finals.dropna(subset=[size, metric])
    found = {}
    for name in OBJECTIVES:
        with _noting([], ""):  # the laws themselves say why
            found[name] = fit_law(PURE, known[size], known[metric], name)
    return found


def _scales(finals: pd.DataFrame, size: str, objective: str, said: list[str]) -> dict[int, Fit]:
    known = finals.dropna(subset=[size, "val_loss_parts"])
    if known.empty:
        return {}
    losses = np.stack([np.asarray(row, dtype=float) for row in known.val_loss_parts])
    if losses.shape[1] == 1:  # the whole
        return {}
    found = {}
    for k in range(losses.shape[1]):
        with _noting(said, f"loss of scale {k + 1}"):
            found[k + 1] = fit_law(PURE, known[size], losses[:, k], objective)
    return found


def _noise(finals: pd.DataFrame, size: str, findings: list[LawResult]) -> dict[str, SeedNoise]:
    found = {}
    for metric in METRICS:
        known = finals.dropna(subset=[size, metric, "seed"])
        fit = next(
            (f.fit for f in findings if (f.metric, f.variable) == (metric, size)
             and f.fit.law.name == "floor" and f.fit.points == len(known)), None,
        )  # fmt: skip
        if len(known):
            noise = seed_noise(known[size], known[metric], known.seed, fit)
            if noise is not None:
                found[metric] = noise
    return found


def _allocation(table: Table, size: str, said: list[str]) -> Approaches | None:
    with _noting(said, "optimal allocation of compute"):
        return approaches(table.rows[table.rows.status == "done"], "val_loss", params=size)
    return None
