"""Simulated coverage: how often a 95 % interval contains the true value."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.initialization import starting_points
from analysis.fitting.laws import FLOOR, PURE, Law
from analysis.fitting.objectives import SQUARES, Objective, objective_of
from analysis.fitting.points import FitError
from analysis.fitting.search import solve
from analysis.uncertainty.bootstrap import Bootstrap, bootstrap
from analysis.uncertainty.intervals import (
    PIN_WEIGHT,
    covers,
    covers_at,
    profile_problem,
    with_point,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """How often the intervals of one quantity contained its true value."""

    quantity: str
    method: str
    points: int
    simulations: int
    failed: int  # simulations with a FitError: they count as not covering
    covered: float  # share of all simulations

    @property
    def standard_error(self) -> float:
        return float(np.sqrt(self.covered * (1 - self.covered) / self.simulations))


def coverage(
    law: Law,
    values: Mapping[str, float],
    x: ArrayLike | Sequence[ArrayLike],
    noise: float | Callable[[np.random.Generator], Array],
    target: ArrayLike | Sequence[ArrayLike],
    objective: str | Objective = "squares",
    method: str = "profile",
    simulations: int = 500,
    seed: int = 0,
    clusters: ArrayLike | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Coverage, ...]:
    """Coverage of the 95 % intervals of each parameter, of the law and of a new run at `target`.

    Each simulation draws log residuals at `x`, fits the law, and tests whether each interval
    contains the true value. `noise`: the standard deviation of Gaussian log residuals, or a
    function from a generator to (n + 1,) log residuals, that of the new run last. `method`: profile
    (intervals.py) or bootstrap (percentiles, over `clusters` if given; it has no interval of a new
    run). `progress` receives the number of simulations done.
    """
    if method not in ("profile", "bootstrap"):
        raise ValueError(f"method {method!r}: it must be profile or bootstrap")
    truth = law.predict(x, values)
    at_target = float(law.predict(target, values))
    generator = np.random.default_rng(seed)
    draw = noise if callable(noise) else lambda g: g.normal(0, noise, truth.size + 1)
    # Drawn before any fit, so that all methods and objectives are tried on the same data sets.
    drawn = np.stack([draw(generator) for _ in range(simulations)])  # (S, n + 1): the new run last
    # Only least squares has a critical rise that is the same for all data sets (an F quantile), so
    # all of them can be solved in one batch.
    if method == "profile" and objective_of(objective) == SQUARES:
        inside = _batched(law, values, x, truth, target, at_target, drawn)
        progress(simulations)
        return tuple(
            Coverage(name, method, truth.size, simulations, 0, float(covered.mean()))
            for name, covered in inside
        )
    hits: dict[str, int] = {}
    failed = 0
    for done, residual in enumerate(drawn):
        try:
            fit = fit_law(law, x, truth * np.exp(residual[:-1]), objective)
            covered = list(
                _by_profile(fit, values, target, at_target, at_target * np.exp(residual[-1]))
                if method == "profile"
                else _by_bootstrap(bootstrap(fit, 1000, done, clusters), values, target, at_target)
            )
            for quantity, is_covered in covered:
                hits[quantity] = hits.get(quantity, 0) + is_covered
        except FitError:
            failed += 1
        progress(done + 1)
    return tuple(
        Coverage(quantity, method, truth.size, simulations, failed, count / simulations)
        for quantity, count in hits.items()
    )


def _batched(
    law: Law, values: Mapping[str, float], x: ArrayLike | Sequence[ArrayLike], truth: Array,
    target: ArrayLike | Sequence[ArrayLike], at_target: float, drawn: Array,
) -> Iterator[tuple[str, NDArray[np.bool_]]]:  # fmt: skip
    """(name, (S,) covered): `_by_profile` for all simulations at once, for least squares only."""
    # The simulations differ in z only: sizes, weights and starts are those of the noise-free fit.
    exact = fit_law(law, x, truth, SQUARES)
    points, degrees_of_freedom = exact.data.points, exact.points - exact.free
    z = points.z + drawn[:, :-1]
    weights = np.ones((1, exact.points))
    starts = np.stack([exact.theta, *starting_points(points, weights[0], None)[:4]])
    best = solve(replace(points, z=z), weights, starts[:, None], SQUARES).objective
    # F = (S_fixed - S) / (S / (n - p)), solved for the largest S_fixed that is not rejected.
    allowed = best * (1 + stats.f.ppf(0.95, 1, degrees_of_freedom) / degrees_of_freedom)
    for name in law.names:
        problem, column, to_theta = profile_problem(exact, name)
        # The column is held at the true value; the interval contains it if S rises by no more than
        # that.
        start = problem.theta.copy()
        log = name in law.positive
        start[column] = to_theta(np.log([values[name]]) if log else np.array([values[name]]))[0]
        constrained = solve(
            replace(problem.points, z=z), weights, start[None, None], SQUARES, fixed=(column,)
        )
        yield name, constrained.objective <= allowed
    log_target = np.log(at_target) - points.height
    # The added point holds the law at its true value, or is a new run with noise of its own.
    for name, new, weight in (
        ("L(target)", 0 * drawn[:, -1:], PIN_WEIGHT),
        ("new run", drawn[:, -1:], 1),
    ):
        extended = replace(with_point(exact, target), z=np.column_stack([z, log_target + new]))
        all_weights = np.append(weights[0], weight)[None]
        constrained = solve(extended, all_weights, exact.theta[None, None], SQUARES)
        yield name, constrained.objective <= allowed


def coverage_of_depths(
    count: int, alpha: float, floor: float, noise: float, objective: str = "squares",
    method: str = "profile", simulations: int = 500,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Coverage, ...]:  # fmt: skip
    """Coverage for the sizes N = 1152 d³ of a ladder of depths d = 1 ... `count`, with β = 2e-4.

    `floor`: the true irreducible loss E; at 0 the law is a pure power law. The target is 8 times
    the largest size.
    """
    # 18 d w² weights in the blocks of depth d, at width w = 8 d of the tiny ladder.
    sizes = 1152.0 * np.arange(1, count + 1) ** 3
    law, values = (FLOOR, {"E": floor}) if floor > 0 else (PURE, {})
    values |= {"A": 2e-4**-alpha, "alpha": alpha}
    return coverage(
        law, values, sizes, noise, 8 * sizes[-1], objective, method, simulations,
        progress=progress,
    )  # fmt: skip


def _by_profile(
    fit: Fit, values: Mapping[str, float], target: ArrayLike | Sequence[ArrayLike],
    law_at_target: float, run_at_target: float,
) -> Iterator[tuple[str, bool]]:  # fmt: skip
    """(quantity, whether its profile interval contains the true value)."""
    for name in fit.law.names:
        yield name, covers(fit, name, values[name])
    yield "L(target)", covers_at(fit, target, law_at_target, new_run=False)
    yield "new run", covers_at(fit, target, run_at_target)


def _by_bootstrap(
    drawn: Bootstrap, values: Mapping[str, float], target: ArrayLike | Sequence[ArrayLike],
    law_at_target: float,
) -> Iterator[tuple[str, bool]]:  # fmt: skip
    """(quantity, whether its percentile interval contains the true value)."""
    for name in drawn.fit.law.names:
        span = drawn.interval(name)
        yield name, span.low <= values[name] <= span.high
    span = drawn.interval_of(drawn.predict(target))
    yield "L(target)", span.low <= law_at_target <= span.high
