"""Planning of the next runs: those that narrow the interval at a target most for their FLOPs.

Assumptions: the law holds, new runs scatter as the finished ones (s), and the gradients are those
of the present fit. E is a parameter as E, not as log E, so it stays uncertain even if its fitted
value is 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.fitting.fit import Fit
from analysis.fitting.points import FitError
from analysis.fitting.terms import jacobian
from analysis.forecasting.design import Design, narrowest_within

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """One possible run. Runs with equal `x` and `flops` differ only in their seed."""

    name: str
    x: tuple[float, ...]  # the law's variables: (N,) or (N, D)
    flops: float
    seed: int | None = None
    hours: float | None = None  # of one GPU
    price: float | None = None


@dataclass(frozen=True)
class Step:
    """A run, and the interval at the target after it (in a plan: after all steps up to it)."""

    candidate: Candidate
    low: float
    high: float
    half_width: float  # of log L
    narrowing: float  # decrease of the half-width by this run / present half-width
    affordable: bool = True

    @property
    def narrowing_per_flop(self) -> float:
        return self.narrowing / self.candidate.flops


@dataclass(frozen=True)
class Plan:
    """The possible next runs: a ranking of single runs, and the plan for the whole budget."""

    predicted: float  # L at the target by the present fit
    low: float
    high: float
    half_width: float  # of log L, at present
    level: float
    ranking: tuple[Step, ...]  # each kind of run alone, by narrowing per FLOP, best first
    runs: tuple[Step, ...]  # the plan, in greedy order of narrowing per FLOP
    flops: float  # of the plan
    method: str

    @property
    def planned(self) -> float:
        """Half-width of log L after the whole plan."""
        return self.runs[-1].half_width if self.runs else self.half_width


def plan(
    fit: Fit,
    target: Sequence[float],
    candidates: Sequence[Candidate],
    budget: float,
    level: float = 0.95,
    new_run: bool = True,
) -> Plan:
    """The runs within `budget` FLOPs after which the interval at `target` is narrowest.

    `target`: the law's variables, (N,) or (N, D). `new_run`: the interval of a new run's
    measurement at the target, else of the law itself. Raises FitError for a fit without residual
    variance or that did not converge, ValueError if no candidate is within the budget.
    """
    _refuse(fit, target, candidates, budget)
    design, groups = _design(fit, target, candidates, level, new_run)
    predicted = float(fit.predict(_arguments(fit, [target]))[0])

    def step(kind: int, half: float, before: float) -> Step:
        candidate = groups[kind][0]
        return Step(
            candidate, predicted * math.exp(-half), predicted * math.exp(half), half,
            (before - half) / now, candidate.flops <= budget,
        )  # fmt: skip

    now = float(design.half_widths(np.zeros((1, len(groups)), dtype=np.intp))[0])
    # Row k of the identity matrix is the plan of one run of kind k.
    half_widths = design.half_widths(np.eye(len(groups), dtype=np.intp))
    ranking = [step(kind, float(half), now) for kind, half in enumerate(half_widths)]
    counts, method = narrowest_within(design, budget)
    runs, before, taken = [], now, [0] * len(groups)
    for kind, half in design.ordered_runs(counts):
        # The next unused seed of this kind.
        candidate = groups[kind][taken[kind]]
        runs.append(replace(step(kind, half, before), candidate=candidate))
        before, taken[kind] = half, taken[kind] + 1
    return Plan(
        predicted=predicted, low=predicted * math.exp(-now), high=predicted * math.exp(now),
        half_width=now, level=level,
        ranking=tuple(sorted(ranking, key=lambda each: -each.narrowing_per_flop)),
        runs=tuple(runs), flops=float(counts @ design.flops), method=method,
    )  # fmt: skip


def _refuse(
    fit: Fit, target: Sequence[float], candidates: Sequence[Candidate], budget: float
) -> None:
    if not fit.certificate.converged:
        raise FitError("the fit did not converge: no plan can be made from it")
    if fit.points - fit.free < 1:
        raise FitError(
            f"{fit.points} points and {fit.free} parameters leave no degree of freedom: a plan "
            "needs at least one"
        )
    # s would be 0, and with it every half-width.
    if float(np.abs(fit.residuals).max()) < 1e-12:
        raise FitError("the residuals of the fit are zero: there is no interval to narrow")
    if not candidates:
        raise ValueError("there is no candidate run")
    variable_count = len(fit.law.variables)
    for name, x in [("the target", target), *((each.name, each.x) for each in candidates)]:
        if len(x) != variable_count or not all(math.isfinite(each) and each > 0 for each in x):
            raise ValueError(
                f"{name}: ({', '.join(fit.law.variables)}) = {tuple(x)} must be {variable_count} "
                "positive numbers"
            )
    costless = [each.name for each in candidates if not each.flops > 0]
    if costless:
        raise ValueError(f"{costless[0]}: its FLOPs must be positive")
    cheapest = min(candidates, key=lambda each: each.flops)
    if not cheapest.flops <= budget:
        raise ValueError(
            f"a budget (--budget) of {budget:.3g} FLOPs is below the cheapest run, "
            f"{cheapest.name} at {cheapest.flops:.3g}"
        )


def _design(
    fit: Fit, target: Sequence[float], candidates: Sequence[Candidate], level: float, new_run: bool
) -> tuple[Design, list[list[Candidate]]]:
    kinds: dict[tuple[tuple[float, ...], float], list[Candidate]] = {}
    for candidate in candidates:
        # Runs of equal x and FLOPs have equal gradients, so the search counts kinds instead of
        # runs.
        kinds.setdefault((candidate.x, candidate.flops), []).append(candidate)
    groups = list(kinds.values())
    degrees_of_freedom = fit.points - fit.free
    weights = fit.data.weights
    measured = _gradients(fit, fit.data.x if isinstance(fit.data.x, tuple) else (fit.data.x,))
    # The target is the last row, so that one call serves candidates and target.
    proposed = _gradients(fit, tuple(np.array([*(g[0].x for g in groups), target]).T))
    design = Design(
        information=(measured * weights[:, None]).T @ measured,
        gradients=proposed[:-1],
        target=proposed[-1],
        flops=np.array([group[0].flops for group in groups]),
        copies=np.array([len(group) for group in groups]),
        spread=float(np.sqrt((weights * fit.residuals**2).sum() / degrees_of_freedom)),
        # One quantile for each possible number of new runs, 0 to all candidates.
        t_quantiles=stats.t.ppf(
            (1 + level) / 2, degrees_of_freedom + np.arange(len(candidates) + 1)
        ),
        new_run=new_run,
    )
    return design, groups


def _arguments(fit: Fit, points: Sequence[Sequence[float]]) -> Array | tuple[Array, ...]:
    columns = tuple(np.array(points, dtype=float).T)
    return columns if len(fit.law.variables) > 1 else columns[0]


def _gradients(fit: Fit, x: tuple[Array, ...]) -> Array:
    """(n, p) derivatives of log L with respect to the fitted parameters; `x`: an array of (n,) for
    each variable.
    """
    given = fit.data.points
    points = replace(
        given,
        # The gradients at new x need the centres of the fit, which θ refers to.
        logs=tuple(np.log(each) - centre for each, centre in zip(x, given.centres, strict=False)),
        z=np.zeros(len(x[0])),
        repeats=(np.log(x[1]), np.log(x[2])) if given.repeats is not None else None,
    )
    gradients = jacobian(points, fit.theta[None])[0].T.copy()
    if not fit.law.floor:
        return gradients
    index_of_E = 2 * given.powers
    # A fixed E is no parameter and adds no uncertainty.
    if fit.floor is not None:
        return np.delete(gradients, index_of_E, axis=1)
    # The fit's parameter is log E. Use E in units of exp(height): its derivative is finite at 0.
    gradients[:, index_of_E] = math.exp(given.height) / fit.predict(x if len(x) > 1 else x[0])
    return gradients
