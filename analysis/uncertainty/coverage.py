"""Does a 95 % interval hold the truth 95 times in a hundred? Simulated, not believed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.initialization import seeds as starting_points
from analysis.fitting.laws import FLOOR, PURE, Law
from analysis.fitting.objectives import SQUARES, Objective, objective_of
from analysis.fitting.points import FitError
from analysis.fitting.search import solve
from analysis.uncertainty.bootstrap import Bootstrap, bootstrap
from analysis.uncertainty.intervals import PINNED, covers, covers_at, held_problem, with_point

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """How often the intervals of one quantity held its true value."""

    quantity: str
    method: str
    points: int
    simulations: int
    failed: int  # fits or resamplings refused: they count as not covering
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
    """Coverage of the 95 % intervals of each parameter, of the law at `target`, of a new run there.

    Each simulation draws log residuals at `x` (Gaussian of standard deviation `noise`, or what
    `noise` makes of a generator: (n + 1,), that of the new run last), fits, and asks whether the
    interval holds what is true.
    `method`: profile (intervals.py) or bootstrap (percentiles; over `clusters` if given).
    """
    if method not in ("profile", "bootstrap"):
        raise ValueError(f"method {method!r}: profile or bootstrap")
    truth = law.predict(x, values)
    at_target = float(law.predict(target, values))
    generator = np.random.default_rng(seed)
    draw = noise if callable(noise) else lambda g: g.normal(0, noise, truth.size + 1)
    drawn = np.stack([draw(generator) for _ in range(simulations)])  # (S, n + 1): the new run last
    if method == "profile" and objective_of(objective) == SQUARES:
        inside = _batched(law, values, x, truth, target, at_target, drawn)
        progress(simulations)
        return tuple(
            Coverage(name, method, truth.size, simulations, 0, float(held.mean()))
            for name, held in inside
        )
    hits: dict[str, int] = {}
    failed = 0
    for done, residual in enumerate(drawn):
        try:
            fit = fit_law(law, x, truth * np.exp(residual[:-1]), objective)
            held = (
                _by_profile(fit, values, target, at_target, at_target * np.exp(residual[-1]))
                if method == "profile"
                else _by_bootstrap(bootstrap(fit, 1000, done, clusters), values, target, at_target)
            )
            for quantity, it_does in held:
                hits[quantity] = hits.get(quantity, 0) + it_does
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
    """What `_by_profile` says of every simulation at once, for least squares."""
    exact = fit_law(law, x, truth, SQUARES)
    points, spare = exact.given.points, exact.points - exact.free
    z = points.z + drawn[:, :-1]
    weights = np.ones((1, exact.points))
    starts = np.stack([exact.theta, *starting_points(points, weights[0], None)[:4]])
    best = solve(replace(points, z=z), weights, starts[:, None], SQUARES).objective
    allowed = best * (1 + stats.f.ppf(0.95, 1, spare) / spare)
    for name in law.names:
        problem, column, to_theta = held_problem(exact, name)
        start = problem.theta.copy()
        log = name in {coefficient for coefficient, _ in law.powers} | {"R_star"}
        start[column] = to_theta(np.log([values[name]]) if log else np.array([values[name]]))[0]
        held = solve(
            replace(problem.points, z=z), weights, start[None, None], SQUARES, held=(column,)
        )
        yield name, held.objective <= allowed
    there = np.log(at_target) - points.height
    for name, new, weight in (
        ("L(target)", 0 * drawn[:, -1:], PINNED),
        ("new run", drawn[:, -1:], 1),
    ):
        more = replace(with_point(exact, target), z=np.column_stack([z, there + new]))
        all_weights = np.append(weights[0], weight)[None]
        held = solve(more, all_weights, exact.theta[None, None], SQUARES)
        yield name, held.objective <= allowed


def coverage_of_depths(
    count: int, alpha: float, floor: float, noise: float, objective: str = "squares",
    method: str = "profile", simulations: int = 500,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Coverage, ...]:  # fmt: skip
    """Coverage for the sizes of a tiny ladder, N = 1152 d³ at d = 1 ... `count`, β = 2e-4.

    The target is 8 times the largest size.
    """
    sizes = 1152.0 * np.arange(1, count + 1) ** 3
    law, values = (FLOOR, {"E": floor}) if floor > 0 else (PURE, {})
    values |= {"A": 2e-4**-alpha, "alpha": alpha}
    return coverage(
        law, values, sizes, noise, 8 * sizes[-1], objective, method, simulations,
        progress=progress,
    )  # fmt: skip


def _by_profile(
    fit: Fit, values: Mapping[str, float], target: ArrayLike | Sequence[ArrayLike],
    law_there: float, run_there: float,
) -> Iterator[tuple[str, bool]]:  # fmt: skip
    for name in fit.law.names:
        yield name, covers(fit, name, values[name])
    yield "L(target)", covers_at(fit, target, law_there, new_run=False)
    yield "new run", covers_at(fit, target, run_there)


def _by_bootstrap(
    drawn: Bootstrap, values: Mapping[str, float], target: ArrayLike | Sequence[ArrayLike],
    law_there: float,
) -> Iterator[tuple[str, bool]]:  # fmt: skip
    for name in drawn.fit.law.names:
        found = drawn.interval(name)
        yield name, found.low <= values[name] <= found.high
    found = drawn.interval_of(drawn.predict(target))
    yield "L(target)", found.low <= law_there <= found.high
