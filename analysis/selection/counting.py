"""How an exponent depends on the way of counting: one law under every count of N and of C."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import Law
from analysis.fitting.objectives import SQUARES, Objective
from analysis.fitting.points import FitError
from analysis.format import percent
from analysis.uncertainty.intervals import Interval, interval
from var_scaling.text import counted

Array = NDArray[np.float64]
Select = Callable[[pd.DataFrame, str], pd.DataFrame]  # (rows, column) -> the rows to fit


@dataclass(frozen=True)
class Counting:
    """A way to count parameters or FLOPs, as a sum of columns of the results table."""

    name: str
    variable: str  # "N" or "C"
    what: str  # a description for the report
    add: tuple[str, ...]
    less: tuple[str, ...] = ()  # columns that are subtracted


# At width 8 embeddings and head hold more weights than the block does, so the way of counting bends
# the curve and moves its exponent (LOG.md).
COUNTINGS = (
    Counting("blocks", "N", "weights of the block matrices, with AdaLN (the paper's formula)",
             ("params_blocks",)),
    Counting("total", "N", "all parameters (the paper's 18.5M … 2.0B)", ("params_total",)),
    Counting("without embeddings and head", "N", "all but embeddings and head", ("params_total",),
             ("params_embedding", "params_head")),
    Counting("attention and MLP", "N", "weights that act on every token: blocks without AdaLN",
             ("params_attention", "params_mlp")),
    Counting("without AdaLN", "N", "all but AdaLN, which acts once per image", ("params_total",),
             ("params_adaln",)),
    Counting("model FLOPs", "C", "attention only for pairs inside the block-causal mask",
             ("train_flops",)),
    Counting("dense mask", "C", "attention for all pairs, as a dense product computes it",
             ("train_flops_dense_mask",)),
    Counting("6 N D, N total", "C", "6 × all parameters × tokens", ("train_flops_6n_total",)),
    Counting("6 N D, N blocks", "C", "6 × block weights × tokens", ("train_flops_6n_blocks",)),
    Counting("without embeddings and head", "C", "blocks alone", ("train_flops",),
             ("train_flops_embedding", "train_flops_head")),
)  # fmt: skip
REFERENCE = {"N": "blocks", "C": "model FLOPs"}


@dataclass(frozen=True)
class Convention:
    """The law under one counting. `fit` is None where it could not be fitted; `refused` is why."""

    counting: Counting
    fit: Fit | None
    interval: Interval | None  # of the exponent, 95 %
    ratio: float | None  # exponent / exponent of the reference counting
    rows_left_out: int  # whose metric or reference count is unknown
    refused: str | None = None

    @property
    def name(self) -> str:
        return self.counting.name

    @property
    def variable(self) -> str:
        return self.counting.variable

    @property
    def what(self) -> str:
        return self.counting.what

    @property
    def alpha(self) -> float | None:
        return self.fit.alpha if self.fit else None


def by_convention(
    rows: pd.DataFrame,
    metric: str,
    law: Law,
    objective: str | Objective = SQUARES,
    *,
    floor: float | None = None,
    weights: str | None = None,
    select: Select | None = None,
) -> tuple[Convention, ...]:
    """Fit `metric` against N and against C under every counting that `rows` has columns for.

    `rows`: one per run, with the columns of var_scaling.results.Row. A law in (N, D) is fitted only
    under the countings of N, with D = tokens_seen; a law in (N, D, U) has U = tokens_seen / epochs.
    `select(rows, column)` returns the points to fit, for example a frontier; `column` contains the
    count. `weights` is the column of the runs' weights. Rows whose metric or reference count is
    unknown are left out of all countings of that variable, so that all countings use the same runs;
    a counting with a further unknown value is refused. Raises ValueError where `metric` is not a
    column.
    """
    if metric not in rows.columns:
        raise ValueError(
            f"there is no column {metric!r}; the columns are {', '.join(map(str, rows.columns))}"
        )
    variables = ("N", "C") if len(law.variables) == 1 else ("N",)
    conventions: list[Convention] = []
    for variable in variables:
        countings = [each for each in COUNTINGS if each.variable == variable]
        usable, left_out = _known_rows(rows, metric, _reference(countings))
        fitted = [
            _fit_counting(
                counting, usable, left_out, metric, law, objective, floor, weights, select
            )
            for counting in countings
        ]
        conventions += _with_ratios(fitted, REFERENCE[variable])
    return tuple(conventions)


def exponent_spread(conventions: Sequence[Convention], variable: str) -> str:
    """The range of the exponents under the countings of `variable`, in words."""
    fitted = [each for each in conventions if each.variable == variable and each.fit]
    if len(fitted) < 2:
        return f"{variable}: fewer than two countings could be fitted"
    # `fitted` has only laws with a fit; the infinities and assertions are for the type checker.
    low = min(fitted, key=lambda each: each.fit.alpha if each.fit else np.inf)
    high = max(fitted, key=lambda each: each.fit.alpha if each.fit else -np.inf)
    assert low.fit is not None
    assert high.fit is not None
    difference = high.fit.alpha - low.fit.alpha
    text = (
        f"{variable}: the exponent ranges from {low.fit.alpha:.4g} ({low.name}) to "
        f"{high.fit.alpha:.4g} ({high.name})"
    )
    reference = next((each for each in fitted if each.ratio == 1.0), None)
    if reference is None or reference.fit is None:
        return text
    text += f", a difference of {percent(difference / abs(reference.fit.alpha), 1)} of the "
    text += f"{reference.fit.alpha:.4g} of {reference.name}"
    span = reference.interval
    if span is None or not np.isfinite(span.high - span.low):
        return text
    comparison = "more" if difference > span.high - span.low else "less"
    return f"{text}; {comparison} than the width of its interval, {span.high - span.low:.2g}"


def count(rows: pd.DataFrame, counting: Counting) -> Array:
    """(n,) counts; NaN where a part is unknown. Raises FitError where a column is missing."""
    missing = [name for name in (*counting.add, *counting.less) if name not in rows.columns]
    if missing:
        raise FitError(f"column{'s' if len(missing) > 1 else ''} missing: {', '.join(missing)}")
    total = np.zeros(len(rows))
    for names, sign in ((counting.add, 1), (counting.less, -1)):
        for name in names:
            total += sign * pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=float)
    return total


def _reference(countings: list[Counting]) -> Counting:
    return next(each for each in countings if each.name == REFERENCE[each.variable])


def _known_rows(rows: pd.DataFrame, metric: str, reference: Counting) -> tuple[pd.DataFrame, int]:
    """The rows whose metric and reference count are known, and the number of the other rows.

    Where no row has the reference count, only the metric must be known.
    """
    known = pd.to_numeric(rows[metric], errors="coerce").notna().to_numpy()
    try:
        counted = np.isfinite(count(rows, reference))
    except FitError:
        counted = np.zeros(len(rows), dtype=bool)
    if counted.any():
        known = known & counted
    return rows[known], int((~known).sum())


def _fit_counting(
    counting: Counting, rows: pd.DataFrame, left_out: int, metric: str, law: Law,
    objective: str | Objective, floor: float | None, weights: str | None,
    select: Select | None,
) -> Convention:  # fmt: skip
    """The law under one counting; `refused` has the reason where it has no fit or no interval."""
    try:
        sizes = count(rows, counting)
        unknown = int((~np.isfinite(sizes)).sum())
        if unknown:
            raise FitError(f"unknown (NaN) in {unknown} of {counted(len(rows), 'row')}")
        # The count is a column, because `select` works on a table.
        points = rows.assign(**{_COLUMN: sizes})
        if select is not None:
            points = select(points, _COLUMN)
        y = pd.to_numeric(points[metric], errors="coerce").to_numpy(dtype=float)
        w = None if weights is None else points[weights].to_numpy(dtype=float)
        fit = fit_law(law, _variables(points, law), y, objective, floor=floor, weights=w)
    except FitError as error:
        return Convention(counting, None, None, None, left_out, str(error))
    try:
        return Convention(counting, fit, interval(fit, law.powers[0][1]), None, left_out)
    except FitError as error:
        return Convention(counting, fit, None, None, left_out, f"no interval: {error}")


_COLUMN = "counted"  # the column that contains the count


def _variables(points: pd.DataFrame, law: Law) -> Array | tuple[Array, ...]:
    """x of the law: the count, then D and U. Raises FitError where their columns are missing."""
    sizes = points[_COLUMN].to_numpy(dtype=float)
    if len(law.variables) == 1:
        return sizes
    needed = ("tokens_seen", "epochs") if law.repeats else ("tokens_seen",)
    missing = [name for name in needed if name not in points.columns]
    if missing:
        raise FitError(
            f"a law in ({', '.join(law.variables)}) needs the columns {', '.join(missing)}"
        )
    data = pd.to_numeric(points.tokens_seen, errors="coerce").to_numpy(dtype=float)
    if not law.repeats:
        return sizes, data
    epochs = pd.to_numeric(points.epochs, errors="coerce").to_numpy(dtype=float)
    # U, the unique tokens: all tokens seen / passes over the data.
    return sizes, data, data / epochs


def _with_ratios(fitted: list[Convention], reference: str) -> list[Convention]:
    """The same conventions, each with the ratio of its exponent to that of the reference."""
    base = next(each.fit for each in fitted if each.name == reference)
    if base is None or base.alpha == 0:
        return fitted
    return [
        replace(each, ratio=each.fit.alpha / base.alpha) if each.fit else each for each in fitted
    ]
