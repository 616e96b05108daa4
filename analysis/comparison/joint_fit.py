"""One law for two families, the second's x divided by a factor: its profile and its resamples."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from analysis.fitting.initialization import seeds
from analysis.fitting.laws import Law
from analysis.fitting.objectives import Objective
from analysis.fitting.points import FitError, Given, check_points
from analysis.fitting.search import Solved, solve
from analysis.fitting.terms import Points

Array = NDArray[np.float64]

_FARTHEST = 30.0  # log of a factor beyond which an interval is called endless
_EXACT = 1e-24  # squared log residual, below which nothing scatters
_ROUNDED = 1e-9  # of the logarithm of the factor
_NEAR = 0.01  # a first step from the best shift
_GRID = np.linspace(-1, 1, 21)


@dataclass(frozen=True)
class Union:
    """The points of both families. A shift s reads the second's x as x / exp(s)."""

    given: Given
    second: NDArray[np.bool_]  # (n,)
    objective: Objective

    @property
    def law(self) -> Law:
        return self.given.law

    @property
    def spare(self) -> int:
        """Points less parameters, the shift being one."""
        return len(self.second) - len(self.law.names) - 1

    def shifted(self, shift: float) -> Points:
        points = self.given.points
        return replace(points, logs=(points.logs[0] - shift * self.second,))

    def at(self, shift: float, near: Array | None = None, weights: Array | None = None) -> Solved:
        """The law's best fit at this shift: from `near` (p,), or from the seeds where it is None.

        `weights` (B, n): of B resamples.
        """
        points, own = self.shifted(shift), self.given.weights
        if near is not None and np.isfinite(near).all():
            starts = near[None]
        else:  # also after a floor that ran to nothing, which no step leaves
            starts, near = seeds(points, own, None)[:3], None
        many = own[None] if weights is None else weights
        tolerance = 1e-11 if weights is None else 1e-8
        return solve(
            points, many, starts[:, None], self.objective, tolerance=tolerance,
            near=near is not None,
        )  # fmt: skip


@dataclass(frozen=True)
class Best:
    """The optimum over shift and law together; the objective is scaled as the solver's."""

    shift: float
    objective: float
    theta: Array


def union_of(
    law: Law, first: tuple[Array, Array], second: tuple[Array, Array], objective: Objective
) -> Union:
    """Both families' (x, y). Raises FitError where their points cannot carry law and shift."""
    x, y = (np.concatenate([one, two]) for one, two in zip(first, second, strict=True))
    if len(law.variables) > 1:
        raise FitError(f"a multiplier is of one variable; {law.formula} has {len(law.variables)}")
    union = Union(check_points(law, x, y), np.arange(len(x)) >= len(first[0]), objective)
    if union.spare < 1:
        raise FitError(
            f"{len(x)} points of both families; {law.formula} and a factor take "
            f"{len(law.names) + 1} parameters and one point more"
        )
    return union


def best_shift(union: Union, tries: ArrayLike) -> Best:
    """The shift of the least objective: a grid around `tries`, then a search between its points.

    The grid grows where its edge is best. Raises FitError where the objective falls without end.
    """
    grid = np.unique(np.asarray(tries, dtype=float))
    middle = float(grid.mean())
    grid = np.concatenate([[grid[0] - 1], grid, [grid[-1] + 1]])
    solved = [union.at(shift) for shift in grid]
    while True:
        place = int(np.argmin([float(one.objective[0]) for one in solved]))
        if 0 < place < len(grid) - 1:
            break
        side = -1 if place == 0 else 1
        further = grid[place] + side * 2 * (grid[-1] - grid[0])
        if abs(further - middle) > 10 * _FARTHEST:
            raise FitError("no factor between the families fits best: their laws hardly fall")
        put = 0 if side < 0 else len(grid)
        grid = np.insert(grid, put, further)
        solved.insert(put, union.at(further))
    near = solved[place].theta[0]
    low, high = grid[place - 1], grid[place + 1]
    found = optimize.minimize_scalar(
        lambda shift: float(union.at(shift, near).objective[0]),
        bounds=(low, high), method="bounded", options={"xatol": _ROUNDED},
    )  # fmt: skip
    end = union.at(float(found.x), near)
    return Best(float(found.x), float(end.objective[0]), end.theta[0])


def profile_of_shift(union: Union, best: Best, level: float) -> tuple[float, float]:
    """Shifts that an F test does not reject: the sum of squares rises by F(1, n - p) / (n - p).

    For least squares, and families of equal scatter. Infinite on a side where none is rejected.
    """
    if best.objective <= _EXACT * len(union.second):
        return best.shift, best.shift
    allowed = best.objective * stats.f.ppf(level, 1, union.spare) / union.spare

    def over(move: float) -> float:  # nearly a straight line
        risen = float(union.at(best.shift + move, best.theta).objective[0]) - best.objective
        return float(np.sqrt(max(risen, 0.0)) - np.sqrt(allowed))

    ends = []
    for side in (-1, 1):
        inside, rise = 0.0, over(side * _NEAR) + np.sqrt(allowed)
        step = min(1.1 * _NEAR * np.sqrt(allowed) / rise, 1.0) if rise > 0 else 1.0
        while step < _FARTHEST and over(side * step) <= 0:
            inside, step = step, 2 * step
        if step >= _FARTHEST:
            ends.append(side * np.inf)
        else:
            ends.append(optimize.brentq(over, side * inside, side * step, xtol=1e-4 * step))
    return best.shift + ends[0], best.shift + ends[1]


def resampled_shifts(union: Union, best: Best, width: float, resamples: int, seed: int) -> Array:
    """(B,) best shifts of runs drawn with replacement within each family.

    The objective of all resamples on a common grid around the best shift, then the vertex of each
    one's parabola. The grid grows from `width` to either side until fewer than 1 % end at its
    edge; those that still do count as the edge.
    """
    generator = np.random.default_rng(seed)
    weights = np.array([_drawn(union, generator) for _ in range(resamples)])
    for _ in range(5):
        shifts = best.shift + width * _GRID
        objective = np.stack(
            [union.at(shift, best.theta, weights).objective for shift in shifts]
        )  # (grid, B)
        place = objective.argmin(0)
        edge = (place == 0) | (place == len(shifts) - 1)
        if edge.mean() < 0.01:
            break
        width *= 2
    middle = np.clip(place, 1, len(shifts) - 2)
    before, at, after = (objective[middle + k, np.arange(resamples)] for k in (-1, 0, 1))
    bend = before - 2 * at + after
    move = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend > 0)
    step = shifts[1] - shifts[0]
    return np.asarray(np.where(edge, shifts[place], shifts[middle] + step * np.clip(move, -1, 1)))


def _drawn(union: Union, generator: np.random.Generator) -> Array:
    """(n,) weights: each family's runs with replacement, until they can carry law and shift."""
    x = union.given.points.logs[0]
    for _ in range(1000):
        weights = np.zeros(len(x))
        for family in (~union.second, union.second):
            count = int(family.sum())
            weights[family] = generator.multinomial(count, np.full(count, 1 / count))
        different = {(float(x[i]), bool(union.second[i])) for i in np.flatnonzero(weights)}
        if len(different) > len(union.law.names) + 1:
            return weights
    raise FitError("resampling these points leaves too few different sizes for law and factor")
