"""Which runs to make next: those that narrow the interval at a target most for their FLOPs.

Taken as they are: that the law holds, that runs scatter as they did (s), and the gradients of
today's fit. The floor counts in E itself, not in log E, so a floor that ran to zero is still an
unknown.
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
    """One run that could be made. Runs of equal `x` and `flops` differ in seed alone."""

    name: str
    x: tuple[float, ...]  # as the law takes it: (N,), (N, D)
    flops: float
    seed: int | None = None
    hours: float | None = None  # of one GPU
    price: float | None = None


@dataclass(frozen=True)
class Step:
    """A run, and the interval at the target after it (in a plan: after those before it too)."""

    candidate: Candidate
    low: float
    high: float
    half_width: float  # of log L
    narrowing: float  # by what share of the present half-width it is narrower than before the run
    affordable: bool = True

    @property
    def narrowing_per_flop(self) -> float:
        return self.narrowing / self.candidate.flops


@dataclass(frozen=True)
class Plan:
    """What the next runs could be, each alone and those of the whole budget together."""

    predicted: float  # L at the target by today's fit
    low: float
    high: float
    half_width: float  # of log L, today
    level: float
    ranking: tuple[Step, ...]  # each kind of run alone, the most narrowing a FLOP first
    runs: tuple[Step, ...]  # the plan, in the order in which each narrows most a FLOP
    flops: float
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

    `target` as the law takes it, (N,) or (N, D). `new_run`: of what a run there would measure, else
    of the law itself. Raises FitError for a fit that cannot be planned on, ValueError where no
    candidate is within the budget.
    """
    _refuse(fit, target, candidates, budget)
    design, groups = _design(fit, target, candidates, level, new_run)
    predicted = float(fit.predict(_arguments(fit, [target]))[0])

    def step(kind: int, half: float, before: float) -> Step:
        one = groups[kind][0]
        return Step(
            one, predicted * math.exp(-half), predicted * math.exp(half), half,
            (before - half) / now, one.flops <= budget,
        )  # fmt: skip

    now = float(design.half_widths(np.zeros((1, len(groups)), dtype=np.intp))[0])
    alone = design.half_widths(np.eye(len(groups), dtype=np.intp))
    ranking = [step(kind, float(half), now) for kind, half in enumerate(alone)]
    counts, method = narrowest_within(design, budget)
    runs, before, taken = [], now, [0] * len(groups)
    for kind, half in design.in_order(counts):
        named = groups[kind][taken[kind]]
        runs.append(replace(step(kind, half, before), candidate=named))
        before, taken[kind] = half, taken[kind] + 1
    return Plan(
        predicted=predicted, low=predicted * math.exp(-now), high=predicted * math.exp(now),
        half_width=now, level=level,
        ranking=tuple(sorted(ranking, key=lambda one: -one.narrowing_per_flop)),
        runs=tuple(runs), flops=float(counts @ design.flops), method=method,
    )  # fmt: skip


def _refuse(
    fit: Fit, target: Sequence[float], candidates: Sequence[Candidate], budget: float
) -> None:
    if not fit.certificate.converged:
        raise FitError("the fit did not converge: nothing can be planned on it")
    if fit.points - fit.free < 1:
        raise FitError(f"{fit.points} points and {fit.free} parameters leave nothing to judge by")
    if float(np.abs(fit.residuals).max()) < 1e-12:
        raise FitError("the runs lie on the law to the last digit: there is nothing to narrow")
    if not candidates:
        raise ValueError("there is no run to choose from")
    wanted = len(fit.law.variables)
    for name, x in [("the target", target), *((one.name, one.x) for one in candidates)]:
        if len(x) != wanted or not all(math.isfinite(each) and each > 0 for each in x):
            raise ValueError(
                f"{name}: ({', '.join(fit.law.variables)}) = {tuple(x)} must be {wanted} positive "
                "numbers"
            )
    free = [one.name for one in candidates if not one.flops > 0]
    if free:
        raise ValueError(f"{free[0]}: its FLOPs must be positive")
    cheapest = min(candidates, key=lambda one: one.flops)
    if not cheapest.flops <= budget:
        raise ValueError(
            f"a budget of {budget:.3g} FLOPs is below the cheapest run, {cheapest.name} at "
            f"{cheapest.flops:.3g}"
        )


def _design(
    fit: Fit, target: Sequence[float], candidates: Sequence[Candidate], level: float, new_run: bool
) -> tuple[Design, list[list[Candidate]]]:
    kinds: dict[tuple[tuple[float, ...], float], list[Candidate]] = {}
    for one in candidates:
        kinds.setdefault((one.x, one.flops), []).append(one)
    groups = list(kinds.values())
    spare = fit.points - fit.free
    weights = fit.given.weights
    done = _gradients(fit, fit.given.x if isinstance(fit.given.x, tuple) else (fit.given.x,))
    places = _gradients(fit, tuple(np.array([*(g[0].x for g in groups), target]).T))
    design = Design(
        known=(done * weights[:, None]).T @ done,
        rows=places[:-1],
        target=places[-1],
        flops=np.array([group[0].flops for group in groups]),
        copies=np.array([len(group) for group in groups]),
        spread=float(np.sqrt((weights * fit.residuals**2).sum() / spare)),
        student=stats.t.ppf((1 + level) / 2, spare + np.arange(len(candidates) + 1)),
        new_run=new_run,
    )
    return design, groups


def _arguments(fit: Fit, places: Sequence[Sequence[float]]) -> Array | tuple[Array, ...]:
    columns = tuple(np.array(places, dtype=float).T)
    return columns if len(fit.law.variables) > 1 else columns[0]


def _gradients(fit: Fit, x: tuple[Array, ...]) -> Array:
    """(n, p) derivatives of log L at `x`, an array a variable, by the parameters fitted."""
    given = fit.given.points
    points = replace(
        given,
        logs=tuple(np.log(each) - centre for each, centre in zip(x, given.centres, strict=False)),
        z=np.zeros(len(x[0])),
        repeats=(np.log(x[1]), np.log(x[2])) if given.repeats is not None else None,
    )
    found = jacobian(points, fit.theta[None])[0].T.copy()
    if not fit.law.floor:
        return found
    at = 2 * given.powers
    if fit.floor is not None:
        return np.delete(found, at, axis=1)
    found[:, at] = math.exp(given.height) / fit.predict(x if len(x) > 1 else x[0])
    return found
