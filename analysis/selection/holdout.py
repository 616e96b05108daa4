"""How well a law foretells: fit below a cut, predict above it, and roll the cut upwards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import Law
from analysis.fitting.objectives import HUBER, Objective
from analysis.fitting.points import FitError
from analysis.uncertainty.intervals import Interval, prediction_interval

Array = NDArray[np.float64]
Variables = ArrayLike | Sequence[ArrayLike]

MOST_CUTS = 24


@dataclass(frozen=True)
class HeldOut:
    """A run above a cut, predicted by the law of the runs below it.

    `x` is its size, in the variable that the cut is of; `cut` the largest size that was fitted,
    `sizes` and `runs` how many were. `points`: which of the points given it is; several runs of
    one size only in `leave_largest_out`, which compares their means.
    """

    x: float
    measured: float
    predicted: float
    cut: float
    sizes: int
    runs: int
    points: tuple[int, ...]
    interval: Interval | None = None  # of a new run at x, 95 %
    no_interval: str | None = None  # why there is none, where one was asked for

    @property
    def relative_error(self) -> float:
        """Signed: above zero, the law expected a larger loss than was measured."""
        return self.predicted / self.measured - 1

    @property
    def covered(self) -> bool | None:
        """Whether the interval held the run. None without an interval."""
        if self.interval is None:
            return None
        return self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True)
class CutRefused:
    """A cut below which the runs cannot carry the law, and the reason."""

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
    order: ArrayLike | None = None,
) -> HeldOut | None:
    """The largest size predicted from all smaller ones; its runs count as their mean.

    `x`, `y`, `floor` as `fit_law` takes them. `order`, (n,): what sizes are ordered by where the
    law has several variables (N, or C); the first variable otherwise. None where the smaller sizes
    alone cannot carry the law. Raises FitError for points that are no sizes and losses.
    """
    columns, losses, rank = _checked(law, x, y, order)
    above = rank == rank.max()
    if above.all():
        return None
    try:
        fit = _fit_of(law, columns, losses, ~above, objective, floor)
    except FitError:
        return None
    return HeldOut(
        x=float(rank.max()),
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
    order: ArrayLike | None = None,
    intervals: bool = True,
    most_cuts: int = MOST_CUTS,
) -> tuple[HeldOut | CutRefused, ...]:
    """Every run above every cut, predicted from the runs below; cuts that fail, with the reason.

    The first cut leaves as many sizes as the law has parameters and one run more than that, the
    last all sizes but the largest. Of more than `most_cuts` sizes, cuts lie evenly among them.
    `intervals`: a 95 % prediction interval for each; it takes most of the time. The rest is as in
    `leave_largest_out`.
    """
    columns, losses, rank = _checked(law, x, y, order)
    free = len(law.names) - (floor is not None)
    found: list[HeldOut | CutRefused] = []
    for cut, sizes in _cuts(rank, free, most_cuts):
        below = rank <= cut
        runs = int(below.sum())
        try:
            fit = _fit_of(law, columns, losses, below, objective, floor)
        except FitError as error:
            found.append(CutRefused(cut, sizes, runs, str(error)))
            continue
        above = np.flatnonzero(~below)
        for point in above[np.argsort(rank[above], kind="stable")]:
            one = _at(columns, point)
            interval, reason = _interval(fit, one) if intervals else (None, None)
            place, measured, predicted = rank[point], losses[point], float(fit.predict(one))
            held = HeldOut(
                float(place), float(measured), predicted, cut, sizes, runs, (int(point),)
            )
            found.append(replace(held, interval=interval, no_interval=reason))
    return tuple(found)


def _checked(
    law: Law, x: Variables, y: ArrayLike, order: ArrayLike | None
) -> tuple[list[Array], Array, Array]:
    """The variables, the losses, and what the cuts are of, each (n,). Raises FitError."""
    arrays = [np.atleast_1d(each) for each in law.arrays(x)]
    losses = np.atleast_1d(np.asarray(y, dtype=float))
    rank = arrays[0] if order is None else np.atleast_1d(np.asarray(order, dtype=float))
    for each in (*arrays, rank, losses):
        if each.shape != losses.shape or each.ndim != 1 or not len(each):
            raise FitError(
                "x, y and `order` must be flat, equally long and not empty: shapes are "
                f"{[a.shape for a in arrays]}, {losses.shape} and {rank.shape}"
            )
        if not np.isfinite(each).all() or (each <= 0).any():
            wrong = np.flatnonzero(~(np.isfinite(each) & (each > 0)))
            raise FitError(f"point {wrong[0]} holds {each[wrong[0]]:g}: all must be above zero")
    return arrays, losses, rank


def _cuts(rank: Array, free: int, most: int) -> list[tuple[float, int]]:
    """(largest size below, number of sizes below) of each cut, rising."""
    sizes = np.unique(rank)
    able = [
        (float(sizes[count - 1]), count)
        for count in range(free, len(sizes))
        if (rank <= sizes[count - 1]).sum() > free
    ]
    if len(able) <= most:
        return able
    chosen = np.unique(np.linspace(0, len(able) - 1, most).round().astype(int))
    return [able[place] for place in chosen]


def _at(columns: list[Array], chosen: NDArray[np.generic] | np.intp) -> Array | tuple[Array, ...]:
    """The chosen points as the law takes them."""
    picked = tuple(np.asarray(column[chosen]) for column in columns)
    return picked if len(picked) > 1 else picked[0]


def _fit_of(
    law: Law, columns: list[Array], losses: Array, chosen: NDArray[np.bool_],
    objective: str | Objective, floor: float | None,
) -> Fit:  # fmt: skip
    return fit_law(law, _at(columns, chosen), losses[chosen], objective, floor=floor)


def _interval(fit: Fit, x: Array | tuple[Array, ...]) -> tuple[Interval | None, str | None]:
    try:
        return prediction_interval(fit, x), None
    except FitError as error:
        return None, str(error)
