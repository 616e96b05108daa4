"""How much of an exponent is the counting: one law under every way to count parameters or FLOPs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import Law
from analysis.fitting.objectives import SQUARES, Objective
from analysis.fitting.points import FitError
from analysis.uncertainty.intervals import Interval, interval

Array = NDArray[np.float64]
Select = Callable[[pd.DataFrame, str], pd.DataFrame]


@dataclass(frozen=True)
class Counting:
    """A way to count: columns of the results row that are added, and those taken away."""

    name: str
    variable: str  # "N" or "C"
    what: str
    add: tuple[str, ...]
    less: tuple[str, ...] = ()


COUNTINGS = (
    Counting("blocks", "N", "weights of the block matrices, AdaLN among them (the paper's formula)",
             ("params_blocks",)),
    Counting("total", "N", "all parameters (the paper's 18.5M … 2.0B)", ("params_total",)),
    Counting("without embeddings and head", "N", "all but embeddings and head", ("params_total",),
             ("params_embedding", "params_head")),
    Counting("attention and MLP", "N", "what acts on every token: blocks without AdaLN",
             ("params_attention", "params_mlp")),
    Counting("without AdaLN", "N", "all but AdaLN, which acts once an image", ("params_total",),
             ("params_adaln",)),
    Counting("model FLOPs", "C", "the model's own, pairs under the block-causal mask",
             ("train_flops",)),
    Counting("dense mask", "C", "all pairs of tokens, as one masked product computes them",
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
    ratio: float | None  # of the exponent to that of the reference counting
    rows_left_out: int  # whose metric or count is unknown, such as an imported model's compute
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
    select: Select | None = None,
) -> tuple[Convention, ...]:
    """Fit `metric` against N and against C under every counting that `rows` has columns for.

    `rows`: one for each run, columns as in var_scaling.results.Row. A law in (N, D) is fitted
    under the countings of N, D being `tokens_seen`; one in (N, D, U) takes U = tokens_seen /
    epochs. `select(rows, column)` picks the points of a counting, as a frontier does; `column` then
    holds that count. Rows where the metric or the reference count is unknown are left out for all
    countings of that variable, so all stand on the same runs; a counting that then lacks a value is
    refused. Raises ValueError where `metric` is no column.
    """
    if metric not in rows.columns:
        raise ValueError(f"no column {metric!r}; there are {', '.join(map(str, rows.columns))}")
    variables = ("N", "C") if len(law.variables) == 1 else ("N",)
    found: list[Convention] = []
    for variable in variables:
        family = [each for each in COUNTINGS if each.variable == variable]
        known, left_out = _known(rows, metric, _reference(family))
        tried = [
            _counted(counting, known, left_out, metric, law, objective, floor, select)
            for counting in family
        ]
        found += _compared(tried, REFERENCE[variable])
    return tuple(found)


def spread(found: Sequence[Convention], variable: str) -> str:
    """How far the exponents under the countings of `variable` lie apart, in words."""
    fitted = [each for each in found if each.variable == variable and each.fit]
    if len(fitted) < 2:
        return f"{variable}: fewer than two countings could be fitted"
    low = min(fitted, key=lambda each: each.fit.alpha if each.fit else np.inf)
    high = max(fitted, key=lambda each: each.fit.alpha if each.fit else -np.inf)
    assert low.fit is not None
    assert high.fit is not None
    apart = high.fit.alpha - low.fit.alpha
    words = (
        f"{variable}: the exponent goes from {low.fit.alpha:.4g} ({low.name}) to "
        f"{high.fit.alpha:.4g} ({high.name})"
    )
    reference = next((each for each in fitted if each.ratio == 1.0), None)
    if reference is None or reference.fit is None:
        return words
    words += f", {apart / abs(reference.fit.alpha):.1%} of the {reference.fit.alpha:.4g} by "
    words += reference.name
    span = reference.interval
    if span is None:
        return words
    wider = "more" if apart > span.high - span.low else "less"
    return f"{words}; {wider} than the width of its interval, {span.high - span.low:.2g}"


def count(rows: pd.DataFrame, counting: Counting) -> Array:
    """(n,) of `counting`; NaN where a part of it is unknown. Raises FitError without a column."""
    missing = [name for name in (*counting.add, *counting.less) if name not in rows.columns]
    if missing:
        raise FitError(f"column{'s' if len(missing) > 1 else ''} missing: {', '.join(missing)}")
    total = np.zeros(len(rows))
    for names, sign in ((counting.add, 1), (counting.less, -1)):
        for name in names:
            total += sign * pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=float)
    return total


def _reference(family: list[Counting]) -> Counting:
    return next(each for each in family if each.name == REFERENCE[each.variable])


def _known(rows: pd.DataFrame, metric: str, reference: Counting) -> tuple[pd.DataFrame, int]:
    """Rows whose metric and reference count are known, and how many are not.

    Where the reference is no column, or known of no row, it leaves none out.
    """
    known = pd.to_numeric(rows[metric], errors="coerce").notna().to_numpy()
    try:
        counted = np.isfinite(count(rows, reference))
    except FitError:
        counted = np.zeros(len(rows), dtype=bool)
    if counted.any():
        known = known & counted
    return rows[known], int((~known).sum())


def _counted(
    counting: Counting, rows: pd.DataFrame, left_out: int, metric: str, law: Law,
    objective: str | Objective, floor: float | None, select: Select | None,
) -> Convention:  # fmt: skip
    try:
        sizes = count(rows, counting)
        unknown = int((~np.isfinite(sizes)).sum())
        if unknown:
            raise FitError(f"unknown (NaN) in {unknown} of {len(rows)} rows")
        points = rows.assign(**{_COLUMN: sizes})
        if select is not None:
            points = select(points, _COLUMN)
        y = pd.to_numeric(points[metric], errors="coerce").to_numpy(dtype=float)
        fit = fit_law(law, _variables(points, law), y, objective, floor=floor)
    except FitError as error:
        return Convention(counting, None, None, None, left_out, str(error))
    try:
        return Convention(counting, fit, interval(fit, law.powers[0][1]), None, left_out)
    except FitError as error:
        return Convention(counting, fit, None, None, left_out, f"no interval: {error}")


_COLUMN = "counted"


def _variables(points: pd.DataFrame, law: Law) -> Array | tuple[Array, ...]:
    """x of the law: the count, then D and U from the table. Raises FitError without them."""
    sizes = points[_COLUMN].to_numpy(dtype=float)
    if len(law.variables) == 1:
        return sizes
    needed = ("tokens_seen", "epochs") if law.repeats else ("tokens_seen",)
    missing = [name for name in needed if name not in points.columns]
    if missing:
        raise FitError(f"a law in ({', '.join(law.variables)}) needs {', '.join(missing)}")
    data = pd.to_numeric(points.tokens_seen, errors="coerce").to_numpy(dtype=float)
    if not law.repeats:
        return sizes, data
    epochs = pd.to_numeric(points.epochs, errors="coerce").to_numpy(dtype=float)
    return sizes, data, data / epochs


def _compared(tried: list[Convention], reference: str) -> list[Convention]:
    """The same, each with its ratio to the reference's exponent."""
    base = next(each.fit for each in tried if each.name == reference)
    if base is None or base.alpha == 0:
        return tried
    return [
        replace(each, ratio=each.fit.alpha / base.alpha) if each.fit else each for each in tried
    ]
