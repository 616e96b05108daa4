"""Held-out error of a law: fit below a cut, predict above it, for a series of rising cuts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import Law
from analysis.fitting.objectives import HUBER, Objective
from analysis.fitting.points import FitError
from analysis.fitting.terms import MANY
from analysis.uncertainty.intervals import Interval, prediction_interval

Array = NDArray[np.float64]
Variables = ArrayLike | Sequence[ArrayLike]

MAX_CUTS = 24
_RUNS_PER_X = 4  # mean number of runs of equal x from which their means are predicted


@dataclass(frozen=True)
class HeldOut:
    """A run above a cut, predicted by the law that was fitted to the runs below it.

    `x` is its size in the variable of the cut, `cut` the largest fitted size, `sizes` and `runs`
    the numbers of fitted sizes and runs. `points` are the indices of the predicted points: one, or
    all runs of a size, whose means are compared, in `leave_largest_out` and for many runs.
    """

    x: float
    measured: float
    predicted: float
    cut: float
    sizes: int
    runs: int
    points: tuple[int, ...]
    interval: Interval | None = None  # of a new run at x, 95 %
    no_interval: str | None = None  # why there is none, where one was requested

    @property
    def relative_error(self) -> float:
        """Signed: positive where the predicted loss is above the measured one."""
        return self.predicted / self.measured - 1

    @property
    def covered(self) -> bool | None:
        """Whether the interval contains the measured value. None without a bounded interval."""
        if self.interval is None or not np.isfinite([self.interval.low, self.interval.high]).all():
            return None
        return self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True)
class CutRefused:
    """A cut below which the law cannot be fitted, and the reason."""

    cut: float
    sizes: int
    runs: int
    reason: str


def leave_largest_out(
    law: Law,
    x: Variables,
    y: ArrayLike,
    objective: str | Objective = HUBER,
    *,
    floor: float | None = None,
    weights: ArrayLike | None = None,
    order: ArrayLike | None = None,
) -> HeldOut | None:
    """The mean loss of the largest size, predicted from all smaller sizes.

    `x`, `y`, `floor`, `weights`: as for `fit_law`. `order`, (n,): the variable that sizes are
    ordered by, such as N or C; by default the first variable. None where the law cannot be fitted
    to the smaller sizes. Raises FitError where a value is not positive or the shapes differ.
    """
    columns, losses, rank = _checked(law, x, y, order)
    above = rank == rank.max()
    if above.all():
        return None
    try:
        fit = _fit_of(law, columns, losses, ~above, objective, floor, weights)
    except FitError:
        return None
    return HeldOut(
        x=float(rank.max()),
        # Several runs of the largest size: the mean over seeds has less noise than one of them.
        measured=float(losses[above].mean()),
        predicted=float(fit.predict(_at(columns, above)).mean()),
        cut=float(rank[~above].max()),
        sizes=len(np.unique(rank[~above])),
        runs=int((~above).sum()),
        points=tuple(np.flatnonzero(above).tolist()),
    )


def rolling(
    law: Law,
    x: Variables,
    y: ArrayLike,
    objective: str | Objective = HUBER,
    *,
    floor: float | None = None,
    weights: ArrayLike | None = None,
    order: ArrayLike | None = None,
    intervals: bool = True,
    max_cuts: int = MAX_CUTS,
) -> tuple[HeldOut | CutRefused, ...]:
    """Every run above every cut, predicted from the runs below; a failed cut gives a CutRefused.

    Of more than 400 runs with equal x, the means are predicted instead of each run.

    Below the first cut there are as many sizes as the law has parameters, and at least one run
    more; below the last cut are all sizes but the largest. If there are more than `max_cuts`
    possible cuts, `max_cuts` evenly spaced ones are used. `intervals`: a 95 % prediction interval
    for each run, which takes most of the time. The other arguments are as in `leave_largest_out`.
    """
    columns, losses, rank = _checked(law, x, y, order)
    free = len(law.names) - (floor is not None)
    results: list[HeldOut | CutRefused] = []
    groups = _predicted_together(columns, rank)
    for cut, sizes in _cuts(rank, free, max_cuts):
        below = rank <= cut
        runs = int(below.sum())
        try:
            fit = _fit_of(law, columns, losses, below, objective, floor, weights)
        except FitError as error:
            results.append(CutRefused(cut, sizes, runs, str(error)))
            continue
        # Every run above the cut, not only the next size: extrapolations of several ranges.
        above = [group for group in groups if not below[group[0]]]
        predicted = fit.predict(_at(columns, np.array([group[0] for group in above])))
        for group, prediction in zip(above, predicted.tolist(), strict=True):
            span, reason = _interval(fit, _at(columns, group[0])) if intervals else (None, None)
            measured = float(losses[list(group)].mean())
            results.append(
                HeldOut(
                    float(rank[group[0]]), measured, prediction, cut, sizes, runs, group, span,
                    reason,
                )
            )  # fmt: skip
    return tuple(results)


def _predicted_together(columns: list[Array], rank: Array) -> list[tuple[int, ...]]:
    """The points that one prediction is compared with, in order of `rank`: each alone, or, of many
    runs, those of equal x.
    """
    order = np.argsort(rank, kind="stable").tolist()
    if len(rank) > MANY:
        by_x: dict[tuple[float, ...], list[int]] = {}
        for point, x in zip(order, np.stack(columns).T[order].tolist(), strict=True):
            by_x.setdefault(tuple(x), []).append(point)
        # Runs of equal x can differ in rank, as where it counts FLOPs: then each counts alone.
        alike = all(rank[points[0]] == rank[points].max() for points in by_x.values())
        if alike and _RUNS_PER_X * len(by_x) <= len(rank):
            return [tuple(points) for points in by_x.values()]
    return [(point,) for point in order]


def _checked(
    law: Law, x: Variables, y: ArrayLike, order: ArrayLike | None
) -> tuple[list[Array], Array, Array]:
    """The variables, the losses, and the variable of the cuts, (n,) each. Raises FitError."""
    arrays = [np.atleast_1d(each) for each in law.arrays(x)]
    losses = np.atleast_1d(np.asarray(y, dtype=float))
    rank = arrays[0] if order is None else np.atleast_1d(np.asarray(order, dtype=float))
    for each in (*arrays, rank, losses):
        if each.shape != losses.shape or each.ndim != 1 or not len(each):
            raise FitError(
                "x, y and `order` must be one-dimensional, of equal length and not empty: shapes "
                f"are {[a.shape for a in arrays]}, {losses.shape} and {rank.shape}"
            )
        if not np.isfinite(each).all() or (each <= 0).any():
            wrong = np.flatnonzero(~(np.isfinite(each) & (each > 0)))
            raise FitError(f"point {wrong[0]} is {each[wrong[0]]:g}: all values must be positive")
    return arrays, losses, rank


def _cuts(rank: Array, free: int, max_cuts: int) -> list[tuple[float, int]]:
    """(largest size below, number of sizes below) of each cut, in increasing order."""
    sizes = np.unique(rank)
    cuts = [
        (float(sizes[count - 1]), count)
        # At least one size must remain above the cut.
        for count in range(free, len(sizes))
        if (rank <= sizes[count - 1]).sum() > free
    ]
    if len(cuts) <= max_cuts:
        return cuts
    chosen = np.unique(np.linspace(0, len(cuts) - 1, max_cuts).round().astype(int))
    return [cuts[index] for index in chosen]


def _at(columns: list[Array], chosen: NDArray[np.generic] | int) -> Array | tuple[Array, ...]:
    """x of the chosen points, in the form that the law takes."""
    picked = tuple(np.asarray(column[chosen]) for column in columns)
    return picked if len(picked) > 1 else picked[0]


def _fit_of(
    law: Law, columns: list[Array], losses: Array, chosen: NDArray[np.bool_],
    objective: str | Objective, floor: float | None, weights: ArrayLike | None,
) -> Fit:  # fmt: skip
    """The law fitted to the chosen points."""
    w = None if weights is None else np.asarray(weights, dtype=float)[chosen]
    return fit_law(law, _at(columns, chosen), losses[chosen], objective, floor=floor, weights=w)


def _interval(fit: Fit, x: Array | tuple[Array, ...]) -> tuple[Interval | None, str | None]:
    """The 95 % prediction interval at `x`, or None and the reason."""
    try:
        return prediction_interval(fit, x), None
    except FitError as error:
        return None, str(error)
