"""The columns of a run table (var_scaling.results), and values as the columns have them."""

from typing import Any

import numpy as np
import pandas as pd

from var_scaling.results import COLUMNS, Sign

SCHEMA = COLUMNS
BY_NAME = {column.name: column for column in SCHEMA}
SCORES = tuple(column.name for column in SCHEMA if column.need == "score")
VARIABLES = tuple(column.name for column in SCHEMA if column.need == "variable")
STATUSES = ("done", "running", "diverged", "failed", "waiting", "imported", "damaged")
# A table with all of these is one of ours: there, a row that lacks a number is no row.
OURS = (
    "sweep", "trial", "family", "depth", "width", "seed", "step", "steps", "learning_rate",
    "tokens_seen", "params_total", "params_blocks", "train_flops", "val_loss", "status",
)  # fmt: skip
UNKNOWN_ELSEWHERE = ("step", "steps", "tokens_seen", "train_flops")  # how it was trained


def absent(values: pd.Series) -> pd.Series:
    """Where nothing is given: no value, or a blank."""
    blank = [isinstance(value, str) and not value.strip() for value in values]
    return values.isna() | pd.Series(blank, index=values.index, dtype=bool)


def numbers(values: pd.Series) -> pd.Series:
    """`values` as float64; NaN for what is absent or no number."""
    if pd.api.types.is_any_real_numeric_dtype(values.dtype):
        return pd.Series(values.to_numpy(dtype=float, na_value=np.nan), index=values.index)
    return pd.Series([_number(value) for value in values], index=values.index, dtype=float)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def texts(values: pd.Series) -> pd.Series:
    """`values` as text; None for what is absent."""
    shown = [
        None if gone else str(value) for value, gone in zip(values, absent(values), strict=True)
    ]
    return pd.Series(shown, index=values.index, dtype=object)


def lists(values: pd.Series) -> pd.Series:
    """`values` as lists of float, also from "[1.5, 2]" or "[1.5 2]"; None for any other."""
    return pd.Series([_list(value) for value in values], index=values.index, dtype=object)


def _list(value: Any) -> list[float] | None:
    if isinstance(value, str):
        value = value.strip().strip("[]()").replace(",", " ").split()
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    found = [_number(one) for one in value]
    return found if found and not np.isnan(found).any() else None


def tight(values: pd.Series) -> pd.Series:
    """Integers where every value is known and whole; `values` otherwise."""
    found = values.to_numpy(dtype=float)
    whole = np.isfinite(found) & (np.abs(found) < 2**53) & (found == np.round(found))
    return values.astype("int64") if len(values) and whole.all() else values


def breaks(values: pd.Series, sign: Sign) -> pd.Series:
    """Where a number is not what its column's sign allows; never where it is NaN.

    A share above 1 is no matter of the row: its whole column is in another unit.
    """
    infinite = values.abs() == np.inf
    least = {"any": -np.inf, "positive": np.nextafter(0, 1)}.get(sign, 0.0)
    return infinite | (values < least)
