"""Simulated coverage of every interval of a report: runs under a known surface, analysed whole.

analysis.uncertainty.coverage does this for one law in one variable; here a table of runs goes
through the frontier, the surface and the three approaches. `make coverage` writes the result to
docs/coverage.md.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.compute_optimal.approach import (
    Approach,
    NoEstimate,
    from_minima,
    from_surface,
)
from analysis.compute_optimal.cost import Cost, six_nd
from analysis.compute_optimal.frontier import Frontier, frontier, run_ends
from analysis.compute_optimal.frontier_law import frontier_interval, surface_path
from analysis.compute_optimal.isoflop import IsoFlops, isoflops
from analysis.compute_optimal.surface_optimum import AllocationError, optimal
from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR, LAWS, PURE, SURFACE
from analysis.fitting.points import FitError
from analysis.format import SYMBOLS
from analysis.uncertainty.bootstrap import bootstrap_of_surface
from analysis.uncertainty.coverage import Coverage, coverage
from analysis.uncertainty.intervals import Interval, covers, covers_at

Array = NDArray[np.float64]

METRIC = "val_loss"
SIZE = "params_blocks"
# Chinchilla's surface (Hoffmann et al. 2022, Eq. 10): N in weights, D in tokens, L in nats.
SURFACE_VALUES = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
_TARGET = 10.0  # predictions are at this multiple of the largest budget or size
# The parameters of other laws in N and D that differ from the surface's; None: absent.
FORMS: dict[str, dict[str, float | None]] = {
    "tied": {"alpha": 0.31, "B": 800.0, "beta": None},
    "interaction": {"gamma": 0.05},
    "varying": {"gamma": 0.05, "delta": 0.005},
    "repeated": {"R_star": 15.4},
}
_UNIQUE = 3e9  # different tokens of the runs of `repeated`, which have more
_EVALUATIONS = 30  # points of a curve
_CURVE_NOISE = 0.2  # sd of one evaluation, in sd of a run


@dataclass(frozen=True)
class World:
    """A true law and its noise: L = E + A N^-α + B D^-β + K N^(-α/2) D^(-β/2)."""

    name: str
    K: float = 0.0
    noise: float = 0.005  # sd of log L between runs
    shared: float = 0.0  # sd of an error common to the runs of a budget (a tilt in N) or of a size

    def loss(self, N: Array, D: Array) -> Array:
        """The true loss at sizes N and tokens D; arrays broadcast."""
        E, A, alpha, B, beta = SURFACE_VALUES.values()
        mixed = self.K * N ** (-alpha / 2) * D ** (-beta / 2)
        return np.asarray(E + A * N**-alpha + B * D**-beta + mixed)

    @cached_property
    def path(self) -> tuple[Array, Array, Array]:
        """(log C, log N*, log L*), the exact frontier under C = 6 N D for C of 1e14 to 1e26."""
        log_C, log_N = np.linspace(np.log(1e14), np.log(1e26), 241), np.linspace(5, 35, 15_001)
        sizes, losses = [], []
        for each in log_C:
            loss = self.loss(np.exp(log_N), np.exp(each - log_N) / 6)
            best = int(loss.argmin())
            sizes.append(log_N[best])
            losses.append(np.log(loss[best]))
        return log_C, np.array(sizes), np.array(losses)


TRUE = World("true law")
RICHER = World("richer law", K=100.0)
COMMON = World("common error", shared=0.005)
WORLDS = (TRUE, RICHER, COMMON)


@dataclass(frozen=True)
class Design:
    """Which runs there are: sizes N and tokens D, (n,) each, seeds, and whether curves exist."""

    name: str
    N: Array
    D: Array
    seed: Array
    curves: bool = False
    one_length: bool = False  # all runs have the same D: L(N) is a law, and there is no surface

    def rows(self, world: World, generator: np.random.Generator) -> pd.DataFrame:
        """A simulated run table; with curves one row per evaluation, else one per run."""
        offset = generator.normal(0, world.noise, len(self.N)) + self._shared(world, generator)
        progress = np.geomspace(0.02, 1, _EVALUATIONS) if self.curves else np.ones(1)
        run = np.repeat(np.arange(len(self.N)), len(progress))
        share = np.tile(progress, len(self.N))
        N, D = self.N[run], self.D[run] * share
        single = generator.normal(0, _CURVE_NOISE * world.noise * self.curves, len(run))
        return pd.DataFrame(
            {
                "trial": [f"r{each}" for each in run], SIZE: N, "tokens_seen": D,
                "train_flops": 6 * N * D, METRIC: world.loss(N, D) * np.exp(offset[run] + single),
                "schedule": "constant" if self.curves else "cosine", "step": 1000 * share,
                "steps": 1000, "seed": self.seed[run],
            }
        )  # fmt: skip

    def _shared(self, world: World, generator: np.random.Generator) -> Array:
        """(n,) the error of log L that runs of one budget, or else of one size, have in common."""
        budget = self.name == ISOFLOP
        group = np.unique(
            np.log(self.N * self.D if budget else self.N).round(6), return_inverse=True
        )[1]
        drawn = generator.normal(0, world.shared, group.max() + 1)[group]
        if not budget:
            return drawn
        log_N = np.log(self.N)
        middle = np.bincount(group, log_N) / np.bincount(group)
        return np.asarray(drawn * (log_N - middle[group]) / np.log(4))


ISOFLOP = "isoFLOP: 6 budgets × 7 sizes"
MANY_RUNS = "grid: 6 sizes × 5 lengths × 4 seeds"


def designs() -> tuple[Design, ...]:
    """The designs of the table."""
    budgets = np.repeat(np.geomspace(1e18, 1e21, 6), 7)
    # 20 tokens a weight: not centred on the optimum of the surface, as in practice.
    N = np.sqrt(budgets / 120) * np.tile(np.geomspace(1 / 4, 4, 7), 6)
    iso = Design(ISOFLOP, N, budgets / (6 * N), np.zeros(42))
    sizes = np.repeat(np.geomspace(3e7, 3e9, 8), 3)
    lengths = sizes * np.tile([10.0, 40.0, 160.0], 8)
    curves = Design("curves: 8 sizes × 3 lengths", sizes, lengths, np.zeros(24), True)
    N, D, seed = np.meshgrid(np.geomspace(3e7, 3e9, 6), np.geomspace(1e9, 1e11, 5), np.arange(3.0))
    grid = Design("grid: 6 sizes × 5 lengths × 3 seeds", N.ravel(), D.ravel(), seed.ravel())
    one = Design(
        "curves: 8 sizes, one length, 3 seeds", sizes, np.full(24, 3e10),
        np.tile(np.arange(3.0), 8), True, True,
    )  # fmt: skip
    few = Design(
        "curves: 6 sizes, one length", np.geomspace(3e7, 3e9, 6), np.full(6, 3e10), np.zeros(6),
        True, True,
    )  # fmt: skip
    return iso, curves, grid, one, few


@dataclass(frozen=True)
class Result:
    """One interval of one simulated table."""

    quantity: str
    method: str
    inside: bool | None  # whether it contains the truth; None where there is no interval


def simulated_coverage(
    design: Design, world: World, simulations: int, seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Coverage, ...]:  # fmt: skip
    """Coverage of every interval that the report has for tables of this design.

    `simulations` of a result counts the tables that had the interval, `failed` the others: an
    approach that is refused states nothing.
    """
    results: dict[str, list[Result]] = {}
    for done in range(simulations):
        rows = design.rows(world, np.random.default_rng((seed, done)))
        for result in results_of(rows, design, world):
            results.setdefault(result.quantity, []).append(result)
        progress(done + 1)
    return tuple(_coverage(quantity, found, len(design.N)) for quantity, found in results.items())


def _coverage(quantity: str, results: list[Result], points: int) -> Coverage:
    stated = [each.inside for each in results if each.inside is not None]
    share = float(np.mean(stated)) if stated else float("nan")
    # "; ..." and degrees of freedom differ between tables: the commonest method stands for all.
    method = Counter(each.method for each in results).most_common(1)[0][0]
    return Coverage(quantity, method, points, len(stated), len(results) - len(stated), share)


def coverage_of_forms(
    simulations: int, of_huber: int
) -> dict[str, dict[str, tuple[Coverage, ...]]]:
    """Coverage of each law in N and D under itself, by design and law: its parameters, the law and
    a new run at the largest N and D. Also of the surface by a Huber loss, in `of_huber` tables, for
    a design of 120 runs too, whose intervals are percentiles of the bootstrap.
    """
    iso, _, grid, *_ = designs()
    N, D = (np.append(each, each[::3]) for each in (grid.N, grid.D))  # a fourth seed
    many = Design(MANY_RUNS, N, D, np.zeros(len(N)))
    found = {
        design.name: {
            law: _coverage_of_form(law, design, "squares", "profile", simulations) for law in FORMS
        }
        for design in (iso, grid)
    }
    for design, method in ((iso, "profile"), (many, "bootstrap")):
        by_huber = _coverage_of_form("surface", design, "huber", method, of_huber)
        found.setdefault(design.name, {})["surface, Huber"] = by_huber
    return found


def _coverage_of_form(
    name: str, design: Design, objective: str, method: str, simulations: int
) -> tuple[Coverage, ...]:
    law = LAWS[name]
    changed = {**SURFACE_VALUES, **FORMS.get(name, {})}
    values = {each: value for each, value in changed.items() if value is not None}
    x = [design.N, design.D]
    if law.repeats:
        x.append(np.minimum(design.D, _UNIQUE))
    target = [each.max() for each in x]
    return coverage(
        law, values, x, TRUE.noise, target, objective, method=method, simulations=simulations
    )


def results_of(rows: pd.DataFrame, design: Design, world: World) -> Iterator[Result]:
    """Each interval of the analysis of one table, compared with the true value of its quantity."""
    points = frontier(rows, METRIC, params=SIZE)
    ends = run_ends(rows, METRIC, SIZE)
    if design.one_length:
        yield from _size_laws(ends, world)
    yield from _compute_laws(ends, points, world)
    budgets = float(ends.train_flops.min()), float(ends.train_flops.max())
    a = _slope(np.geomspace(*budgets, 9), world, 1)
    cost = six_nd()
    if design.name == ISOFLOP:
        parabolas = isoflops(ends[SIZE], ends.train_flops, ends[METRIC], cost=cost)
        yield from _minimum(parabolas, float(np.geomspace(*budgets, 6)[2]), world)
        yield from _exponents(2, lambda: from_minima(parabolas), a)
    if not design.one_length:
        yield from _surface(ends, world, cost, budgets, a)


def _result(quantity: str, span: Interval | None, truth: float) -> Result:
    if span is None:
        return Result(quantity, "refused", None)
    return Result(quantity, span.method, bool(span.low <= truth <= span.high))


def _slope(flops: Array, world: World, column: int, floor: float = 0.0) -> float:
    """The slope of log N* (column 1) or of log(L* - floor) (column 2) in log C at `flops`."""
    log_C = np.log(flops)
    values = np.interp(log_C, world.path[0], world.path[column])
    values = np.log(np.exp(values) - floor) if column == 2 else values
    return float(np.polyfit(log_C, values, 1)[0])


def _compute_laws(ends: pd.DataFrame, points: Frontier, world: World) -> Iterator[Result]:
    """The laws L(C), of the surface. α without E: the line closest to the true frontier."""
    fitted = points.of_law
    flops = np.geomspace(points.flops[fitted][0], points.flops[fitted][-1], 9)
    path = surface_path(ends, points)
    for law, name, label, truth in (
        (PURE, "alpha", "L(C) without E: α", -_slope(flops, world, 2)),
        (FLOOR, "alpha", "L(C): α", -_slope(flops, world, 2, SURFACE_VALUES["E"])),
        (FLOOR, "E", "L(C): E", SURFACE_VALUES["E"]),
    ):
        try:
            fit = fit_law(law, points.flops[fitted], points.loss[fitted], "squares")
            yield _result(label, frontier_interval(fit, name, points, path), truth)
        except FitError:
            yield _result(label, None, truth)


def _size_laws(ends: pd.DataFrame, world: World) -> Iterator[Result]:
    """The laws L(N) of runs of one length. α without E is that of the closest line."""
    N, D, L = (ends[name].to_numpy(dtype=float) for name in (SIZE, "tokens_seen", METRIC))
    true = world.loss(N, D)
    pure, fit = (fit_law(law, N, L, "squares") for law in (PURE, FLOOR))
    line = fit_law(PURE, N, true, "squares").alpha
    yield Result("L(N) without E: α", "profile", covers(pure, "alpha", line))
    # With the mixed term L(N) has no single exponent: the one of the closest law with E.
    alpha = SURFACE_VALUES["alpha"] if world.K == 0 else fit_law(FLOOR, N, true, "squares").alpha
    yield Result("L(N): α", "profile", covers(fit, "alpha", alpha))
    floor = float(world.loss(np.array(np.inf), D[0]))
    yield Result("L(N): E", "profile", covers(fit, "E", floor))
    target = float(N.max() * _TARGET)
    at_target = float(world.loss(np.array(target), D[0]))
    inside = covers_at(fit, target, at_target, new_run=False)
    yield Result("L(N) at 10 N", "profile", inside)


def _minimum(parabolas: IsoFlops, budget: float, world: World) -> Iterator[Result]:
    """The minimum of the isoFLOP at `budget`, which may be refused."""
    found = [each for each in parabolas.minima if abs(np.log(each.budget / budget)) < 0.01]
    for name, column in (("N", 1), ("L", 2)):
        span: Interval | None = getattr(found[0], f"{name}_interval") if found else None
        truth = np.exp(np.interp(np.log(budget), world.path[0], world.path[column]))
        yield _result(f"{name}* of the third budget", span, float(truth))


def _exponents(number: int, estimate: Callable[[], Approach], a: float) -> Iterator[Result]:
    """The exponents of N* and D*, which sum to 1 under C = 6 N D."""
    try:
        found: Approach | None = estimate()
    except (NoEstimate, AllocationError):
        found = None
    yield _result(f"approach {number}: a", found.a_interval if found else None, a)
    yield _result(f"approach {number}: b", found.b_interval if found else None, 1 - a)


def _surface(
    ends: pd.DataFrame, world: World, cost: Cost, budgets: tuple[float, float], a: float
) -> Iterator[Result]:
    """The surface and its optima."""
    inputs = tuple(ends[name].to_numpy(dtype=float) for name in (SIZE, "tokens_seen"))
    fit = fit_law(SURFACE, inputs, ends[METRIC], "squares")
    draws = bootstrap_of_surface(fit, 1000)
    yield from _exponents(3, lambda: from_surface(fit, cost, budgets, draws), a)
    for name, truth in SURFACE_VALUES.items():
        symbol = SYMBOLS.get(name, name)
        yield Result(f"surface: {symbol}", "profile", covers(fit, name, truth))
    for label, budget in (("C", budgets[1]), ("10 C", _TARGET * budgets[1])):
        log_C = np.log(budget)
        log_N, log_L = (np.interp(log_C, world.path[0], each) for each in world.path[1:])
        try:
            best = optimal(fit, cost, budget, draws)
        except AllocationError:
            best = None
        for name, truth in (
            ("N", np.exp(log_N)), ("D", np.exp(log_C - log_N) / 6), ("L", np.exp(log_L))
        ):  # fmt: skip
            span = getattr(best, f"{name}_interval") if best else None
            yield _result(f"{name}* at {label}", span, float(truth))
