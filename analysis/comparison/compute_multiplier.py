"""How much compute one family saves against another: m = C_b(L) / C_a(L), with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.comparison.joint_fit import best_shift, profile_of_shift, resampled_shifts, union_of
from analysis.comparison.separate import AtLoss, ShapeTest, at_losses, shape_test
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import FLOOR, Law
from analysis.fitting.objectives import SQUARES, Objective, objective_of
from analysis.fitting.points import FitError
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

RESAMPLES = 500
_OF_IMAGES = ("fid", "kid", "inception_score", "fd_")  # compare images, whatever the tokens


@dataclass(frozen=True)
class Family:
    """The points of one family or recipe: x its compute or parameters, y its losses, each (n,)."""

    name: str
    x: ArrayLike
    y: ArrayLike


@dataclass(frozen=True)
class Multiplier:
    """a needs 1 / value of b's compute for the same loss; above one, a is the better."""

    a: str
    b: str
    value: float
    interval: Interval
    joint: Fit  # one law for a's points and b's at x / value
    shape: ShapeTest | None
    separate: tuple[Fit, Fit] | None  # of a and of b
    at: tuple[AtLoss, ...]  # where shape is not admissible, these are the answer
    refused: tuple[str, ...]  # what could not be had, and why

    @property
    def words(self) -> str:
        span = self.interval
        said = (
            f"{self.a} needs 1/{self.value:.3g} of {self.b}'s compute for the same loss "
            f"({span.level:.0%}: 1/{span.low:.3g} to 1/{span.high:.3g}; {span.method})"
        )
        if self.shape is None:
            return f"{said}; whether both have one shape cannot be tested"
        test = f"F = {self.shape.F:.2f}, p = {self.shape.p:.2g}"
        if self.shape.admissible:
            return f"{said}; one shape for both is admissible ({test})"
        return f"{said}; but one shape for both is rejected ({test}): m changes with the loss"


def multiplier(
    a: Family,
    b: Family,
    law: Law = FLOOR,
    objective: str | Objective = SQUARES,
    *,
    losses: Sequence[float] | None = None,
    extrapolate: bool = False,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Multiplier:
    """Fit both families with one exponent and floor, b's compute being worth C / m of a's.

    m is constant then: the minimum over m of one law's fit to a's points and to b's at x / m. Its
    interval is the F profile for least squares (equal scatter in both), else percentiles of a
    bootstrap over the runs of each. Beside it m(L) of the separate laws, at `losses` or five within
    the range that both families measured, with bootstrap intervals. x and y in any units, the same
    for both. Raises FitError where they share no loss, or `losses` lie outside what both reached,
    unless `extrapolate`: a law beyond its points is a forecast.
    """
    objective = objective_of(objective)
    pairs = _arrays(a), _arrays(b)
    union = union_of(law, *pairs, objective)
    low, high = _common(a, b, pairs, losses, extrapolate)
    tries = _by_eye(pairs, low, high)
    best = best_shift(union, tries)
    squares = union_of(law, *pairs, SQUARES)
    least = best if math.isinf(objective.delta) else best_shift(squares, tries)
    ends = profile_of_shift(squares, least, level)
    method = f"profile, F(1, {union.spare})"
    if least is not best:
        half = (ends[1] - ends[0]) / 2
        width = min(max(2 * half, 1e-4), 2.0)
        drawn = resampled_shifts(union, best, width, resamples, seed)
        ends = tuple(np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]).tolist())
        method = f"percentiles of {resamples} bootstraps over the runs of each family"
    m = math.exp(best.shift)
    divided = np.concatenate([pairs[0][0], pairs[1][0] / m])
    joint = fit_law(law, divided, np.concatenate([pairs[0][1], pairs[1][1]]), objective)
    separate, refused = _separately(law, (a, b), pairs, objective)
    own = separate if least is best else _separately(law, (a, b), pairs, SQUARES)[0]
    chosen = np.geomspace(low, high, 5) if losses is None else np.asarray(losses, dtype=float)
    at: tuple[AtLoss, ...] = ()
    if separate is not None:
        try:
            at, unreached = at_losses(separate, chosen, level, resamples, seed)
            refused += unreached
        except FitError as error:
            refused += (f"m(L): {error}",)
    return Multiplier(
        a=a.name,
        b=b.name,
        value=m,
        interval=Interval(math.exp(ends[0]), math.exp(ends[1]), level, method, _basis(pairs)),
        joint=joint,
        shape=shape_test(least.objective, own) if own else None,
        separate=separate,
        at=at,
        refused=refused,
    )


def multiplier_of_tables(
    rows_a: pd.DataFrame,
    rows_b: pd.DataFrame,
    metric: str,
    variable: str = "train_flops",
    law: Law = FLOOR,
    objective: str | Objective = SQUARES,
    *,
    names: tuple[str, str] | None = None,
    losses: Sequence[float] | None = None,
    extrapolate: bool = False,
) -> Multiplier:
    """`multiplier` of two run tables, columns as in var_scaling.results.Row, a row a run.

    Raises FitError where the two saw other data, or other tokens and `metric` is a loss or error of
    tokens: such losses cannot be compared. What is measured on images (FID and related scores) can.
    """
    together = pd.concat([rows_a, rows_b])
    for column in ("data", "tokenizer"):
        if column == "tokenizer" and metric.lower().startswith(_OF_IMAGES):
            continue
        kinds = sorted(map(str, together[column].dropna().unique())) if column in together else []
        if len(kinds) > 1:
            raise FitError(
                f"{metric} under different {column} ({', '.join(kinds)}) is not comparable: "
                "its units are not the same, so no factor of compute can be read from it"
            )
    called = names or _names(rows_a, rows_b)
    a, b = (
        _family(rows, name, metric, variable)
        for rows, name in zip((rows_a, rows_b), called, strict=True)
    )
    return multiplier(a, b, law, objective, losses=losses, extrapolate=extrapolate)


def _names(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> tuple[str, str]:
    """What the tables call their families; a and b where they do not say, or say the same."""
    said = [
        " + ".join(sorted(map(str, rows["family"].unique()))) if "family" in rows else ""
        for rows in (rows_a, rows_b)
    ]
    return (said[0], said[1]) if all(said) and said[0] != said[1] else ("a", "b")


def _family(rows: pd.DataFrame, name: str, metric: str, variable: str) -> Family:
    missing = [column for column in (metric, variable) if column not in rows.columns]
    if missing:
        raise FitError(f"the table of {name} lacks {', '.join(missing)}")
    return Family(name, rows[variable].to_numpy(float), rows[metric].to_numpy(float))


def _arrays(family: Family) -> tuple[Array, Array]:
    x, y = np.asarray(family.x, dtype=float), np.asarray(family.y, dtype=float)
    for each in (x, y):
        if each.ndim != 1 or len(each) != len(y):
            raise FitError(f"{family.name}: x and y must be flat and equally long")
        if not np.isfinite(each).all() or (each <= 0).any():
            raise FitError(f"{family.name}: x and y must be finite and above zero")
    if len(np.unique(x)) < 2:
        raise FitError(f"{family.name} has {len(np.unique(x))} sizes; a multiplier needs two")
    return x, y


def _common(
    a: Family, b: Family, pairs: tuple[tuple[Array, Array], ...],
    losses: Sequence[float] | None, extrapolate: bool,
) -> tuple[float, float]:  # fmt: skip
    """Lowest and highest loss that both measured. Raises FitError unless extrapolation is asked."""
    low = max(float(y.min()) for _, y in pairs)
    high = min(float(y.max()) for _, y in pairs)
    if low >= high and not extrapolate:
        spans = [
            f"{family.name} {y.min():.4g} to {y.max():.4g}"
            for family, (_, y) in zip((a, b), pairs, strict=True)
        ]
        raise FitError(
            f"no loss was reached by both ({'; '.join(spans)}): a multiplier would rest on "
            "extrapolation; ask for it with extrapolate=True"
        )
    outside = [loss for loss in losses or () if not low <= loss <= high]
    if outside and not extrapolate:
        raise FitError(
            f"loss {outside[0]:.4g} is outside what both {a.name} and {b.name} reached, "
            f"{low:.4g} to {high:.4g}; ask for it with extrapolate=True"
        )
    return min(low, high), max(low, high)


def _by_eye(pairs: tuple[tuple[Array, Array], ...], low: float, high: float) -> Array:
    """(5,) log of the ratio of x at losses from `low` to `high`, by straight lines: to start from.

    Each family's points ordered by loss, log x between them; its ends where a loss is outside.
    """
    losses = np.linspace(math.log(low), math.log(high), 5)
    at = []
    for x, y in pairs:
        order = np.argsort(y)
        at.append(np.interp(losses, np.log(y[order]), np.log(x[order])))
    return np.asarray(at[1] - at[0])


def _separately(
    law: Law, families: tuple[Family, Family], pairs: tuple[tuple[Array, Array], ...],
    objective: Objective,
) -> tuple[tuple[Fit, Fit] | None, tuple[str, ...]]:  # fmt: skip
    """Each family's own law, or None and whose points cannot carry one."""
    fits, refused = [], []
    for family, (x, y) in zip(families, pairs, strict=True):
        try:
            fits.append(fit_law(law, x, y, objective))
        except FitError as error:
            refused.append(f"{family.name} alone: {error}")
    return ((fits[0], fits[1]) if len(fits) == 2 else None), tuple(refused)


def _basis(pairs: tuple[tuple[Array, Array], ...]) -> str:
    points = " and ".join(f"{len(x)} points of {len(np.unique(x))} sizes" for x, _ in pairs)
    return f"{points}, a and b"
