"""The compute multiplier of two families, m = C_b(L) / C_a(L) at equal loss, with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.comparison.joint_fit import (
    JointOptimum,
    PooledPoints,
    best_shift,
    pool_points,
    profile_of_shift,
    resampled_shifts,
)
from analysis.comparison.separate import AtLoss, ShapeTest, at_losses, shape_test
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import FLOOR, Law
from analysis.fitting.objectives import SQUARES, Objective, objective_of
from analysis.fitting.points import FitError
from analysis.format import significant
from analysis.uncertainty.intervals import Interval

Array = NDArray[np.float64]

RESAMPLES = 500
# Metrics of images. They can be compared between models of different tokenizers.
_IMAGE_METRICS = ("fid", "kid", "inception_score", "fd_")


@dataclass(frozen=True)
class Family:
    """The points of one family or recipe: x is its compute or parameters, y its loss; each (n,)."""

    name: str
    x: ArrayLike
    y: ArrayLike


@dataclass(frozen=True)
class Multiplier:
    """a needs 1 / value of b's compute for the same loss; above 1, a is the more efficient."""

    a: str
    b: str
    value: float
    interval: Interval
    joint: Fit  # one law, fitted to a's points and to b's points at x / value
    shape: ShapeTest | None
    separate: tuple[Fit, Fit] | None  # one law of a, one of b
    at: tuple[AtLoss, ...]  # the result to use if `shape` rejects one shape for both
    refused: tuple[str, ...]  # results that could not be computed, and why

    @property
    def summary(self) -> str:
        span = self.interval
        result = (
            f"{self.a} needs 1/{self.value:.3g} of {self.b}'s compute for the same loss "
            f"({span.level:.0%}: 1/{span.low:.3g} to 1/{span.high:.3g}; {span.method})"
        )
        if self.shape is None:
            return f"{result}; whether both have one shape cannot be tested"
        test = f"F = {significant(self.shape.F, 3)}, p = {self.shape.p:.2g}"
        if self.shape.admissible:
            return f"{result}; one shape for both is not rejected ({test})"
        return f"{result}; but one shape for both is rejected ({test}): m changes with the loss"


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
    """Fit one law to both families, with b's compute divided by a constant factor m.

    m minimises the objective of one law (same α and E) fitted to a's points and to b's points at
    x / m. Its interval is the F profile for least squares (it assumes equal scatter in both
    families), else percentiles of a bootstrap over the runs of each family. The result also has
    m(L) of two separate laws with bootstrap intervals, at `losses` or at five losses in the range
    that both families measured. x and y may have any unit, the same for both families. Unless
    `extrapolate`, raises FitError if no loss was reached by both families, or if one of `losses`
    was not: there a law would be extrapolated.
    """
    objective = objective_of(objective)
    pairs = _arrays(a), _arrays(b)
    pooled = pool_points(law, *pairs, objective)
    # Only losses that both reached are compared, so that no law is extrapolated.
    low, high = _common(a, b, pairs, losses, extrapolate)
    initial_shifts = _interpolated_shifts(pairs, low, high)
    best = best_shift(pooled, initial_shifts)
    # The F profile and the F test of one shape need sums of squares, whatever the objective is.
    squares = pool_points(law, *pairs, SQUARES)
    least_squares = best if math.isinf(objective.delta) else best_shift(squares, initial_shifts)
    ends = profile_of_shift(squares, least_squares, level)
    method = f"profile, F(1, {pooled.degrees_of_freedom})"
    if least_squares is not best:
        ends = _percentiles(pooled, best, ends, level, resamples, seed)
        method = f"percentiles of {resamples} bootstraps over the runs of each family"
    m = math.exp(best.shift)
    divided = np.concatenate([pairs[0][0], pairs[1][0] / m])
    joint = fit_law(law, divided, np.concatenate([pairs[0][1], pairs[1][1]]), objective)
    separate, refused = _separate_fits(law, (a, b), pairs, objective)
    squares_fits = (
        separate if least_squares is best else _separate_fits(law, (a, b), pairs, SQUARES)[0]
    )
    at: tuple[AtLoss, ...] = ()
    if separate is not None:
        chosen = np.geomspace(low, high, 5) if losses is None else np.asarray(losses, dtype=float)
        at, unreached = _at_losses(separate, chosen, level, resamples, seed)
        refused += unreached
    return Multiplier(
        a=a.name,
        b=b.name,
        value=m,
        interval=Interval(math.exp(ends[0]), math.exp(ends[1]), level, method, _basis(pairs)),
        joint=joint,
        shape=shape_test(least_squares.objective, squares_fits) if squares_fits else None,
        separate=separate,
        at=at,
        refused=refused,
    )


def _percentiles(
    pooled: PooledPoints,
    best: JointOptimum,
    profile: tuple[float, float],
    level: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """The interval of the shift by bootstrap; `profile` is that of the least squares."""
    # It sets the width of the grid that the resamples are solved on.
    width = min(max(profile[1] - profile[0], 1e-4), 2.0)
    shifts = resampled_shifts(pooled, best, width, resamples, seed)
    low, high = np.quantile(shifts, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def _at_losses(
    separate: tuple[Fit, Fit], losses: Array, level: float, resamples: int, seed: int
) -> tuple[tuple[AtLoss, ...], tuple[str, ...]]:
    """As `at_losses`; an error is returned as the reason for having no result."""
    try:
        return at_losses(separate, losses, level, resamples, seed)
    except FitError as error:
        return (), (f"m(L): {error}",)


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
    """`multiplier` of two run tables: columns as in var_scaling.results.Row, one row for each run.

    Raises FitError if the runs used different data, or different tokenizers and `metric` is a loss
    or error of tokens: such losses cannot be compared. Metrics of images (FID and related scores)
    can be compared between tokenizers.
    """
    all_rows = pd.concat([rows_a, rows_b])
    for column in ("data", "tokenizer"):
        # A loss of tokens is in the unit of its tokenizer; a score of decoded images is not.
        if column == "tokenizer" and metric.lower().startswith(_IMAGE_METRICS):
            continue
        values = sorted(map(str, all_rows[column].dropna().unique())) if column in all_rows else []
        if len(values) > 1:
            raise FitError(
                f"{metric} cannot be compared between runs with different {column} "
                f"({', '.join(values)}): its unit is not the same"
            )
    family_names = names or _names(rows_a, rows_b)
    a, b = (
        _family(rows, name, metric, variable)
        for rows, name in zip((rows_a, rows_b), family_names, strict=True)
    )
    return multiplier(a, b, law, objective, losses=losses, extrapolate=extrapolate)


def _names(rows_a: pd.DataFrame, rows_b: pd.DataFrame) -> tuple[str, str]:
    """Names of the families from the tables; "a" and "b" if these are missing or equal."""
    names = [
        " + ".join(sorted(map(str, rows["family"].unique()))) if "family" in rows else ""
        for rows in (rows_a, rows_b)
    ]
    return (names[0], names[1]) if all(names) and names[0] != names[1] else ("a", "b")


def _family(rows: pd.DataFrame, name: str, metric: str, variable: str) -> Family:
    missing = [column for column in (metric, variable) if column not in rows.columns]
    if missing:
        raise FitError(f"the table of {name} lacks the columns {', '.join(missing)}")
    return Family(name, rows[variable].to_numpy(float), rows[metric].to_numpy(float))


def _arrays(family: Family) -> tuple[Array, Array]:
    x, y = np.asarray(family.x, dtype=float), np.asarray(family.y, dtype=float)
    for values in (x, y):
        if values.ndim != 1 or len(values) != len(y):
            raise FitError(f"{family.name}: x and y must be one-dimensional and of equal length")
        if not np.isfinite(values).all() or (values <= 0).any():
            raise FitError(f"{family.name}: x and y must be finite and above zero")
    if len(np.unique(x)) < 2:
        raise FitError(f"{family.name} has {len(np.unique(x))} sizes; a multiplier needs two")
    return x, y


def _common(
    a: Family, b: Family, pairs: tuple[tuple[Array, Array], ...],
    losses: Sequence[float] | None, extrapolate: bool,
) -> tuple[float, float]:  # fmt: skip
    """Lowest and highest loss that both families measured. Raises FitError unless `extrapolate` if
    there is none, or if one of `losses` is outside.
    """
    # The range that both families cover: from the higher minimum to the lower maximum.
    low = max(float(y.min()) for _, y in pairs)
    high = min(float(y.max()) for _, y in pairs)
    if low >= high and not extrapolate:
        spans = [
            f"{family.name} {y.min():.4g} to {y.max():.4g}"
            for family, (_, y) in zip((a, b), pairs, strict=True)
        ]
        raise FitError(
            f"no loss was reached by both families ({'; '.join(spans)}): a multiplier would need "
            "extrapolation; allow it with extrapolate=True"
        )
    outside = [loss for loss in losses or () if not low <= loss <= high]
    if outside and not extrapolate:
        raise FitError(
            f"loss {outside[0]:.4g} is outside the range that both {a.name} and {b.name} reached, "
            f"{low:.4g} to {high:.4g}; allow extrapolation with extrapolate=True"
        )
    return min(low, high), max(low, high)


def _interpolated_shifts(pairs: tuple[tuple[Array, Array], ...], low: float, high: float) -> Array:
    """(5,) log ratios of x at losses from `low` to `high`: starting points of the search for m.

    log x is interpolated linearly between each family's points in order of loss; a loss outside
    the family's range gets the x of its nearest end.
    """
    # At equal loss the horizontal distance of the two curves in log x is log m.
    losses = np.linspace(math.log(low), math.log(high), 5)
    log_x = []
    for x, y in pairs:
        # np.interp needs increasing losses; x falls with them.
        order = np.argsort(y)
        log_x.append(np.interp(losses, np.log(y[order]), np.log(x[order])))
    return np.asarray(log_x[1] - log_x[0])


def _separate_fits(
    law: Law, families: tuple[Family, Family], pairs: tuple[tuple[Array, Array], ...],
    objective: Objective,
) -> tuple[tuple[Fit, Fit] | None, tuple[str, ...]]:  # fmt: skip
    """One law for each family; None and the reasons if a law cannot be fitted to one of them."""
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
