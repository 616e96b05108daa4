"""The columns of a run table (from var_scaling.results), and conversions to their types."""

from typing import Any

import numpy as np
import pandas as pd

from var_scaling.results import COLUMNS, Sign

SCHEMA = COLUMNS
BY_NAME = {column.name: column for column in SCHEMA}
SCORES = tuple(column.name for column in SCHEMA if column.need == "score")
VARIABLES = tuple(column.name for column in SCHEMA if column.need == "variable")
STATUSES = ("done", "running", "diverged", "failed", "waiting", "imported", "damaged")
# A table with all of these columns was written by this project; it is checked more strictly:
# a row that lacks a required number is dropped.
NATIVE_COLUMNS = (
    "sweep", "trial", "family", "depth", "width", "seed", "step", "steps", "learning_rate",
    "tokens_seen", "params_total", "params_blocks", "train_flops", "val_loss", "status",
)  # fmt: skip
# May be absent for models with status "imported", whose training is unknown.
OPTIONAL_IF_IMPORTED = ("step", "steps", "tokens_seen", "train_flops")


def is_absent(values: pd.Series) -> pd.Series:
    """(n,) bool: where there is no value, or a blank text."""
    blank = [isinstance(value, str) and not value.strip() for value in values]
    return values.isna() | pd.Series(blank, index=values.index, dtype=bool)


def as_numbers(values: pd.Series) -> pd.Series:
    """`values` as float64; NaN where a value is absent or not a number."""
    if pd.api.types.is_any_real_numeric_dtype(values.dtype):
        # na_value: nullable columns have pd.NA, which float64 cannot hold.
        return pd.Series(values.to_numpy(dtype=float, na_value=np.nan), index=values.index)
    return pd.Series([_number(value) for value in values], index=values.index, dtype=float)


def _number(value: Any) -> float:
    """`value` as float; NaN where it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):  # the last: an integer too large for float64
        return float("nan")


def as_texts(values: pd.Series) -> pd.Series:
    """`values` as text; None where a value is absent."""
    converted = [
        None if missing else str(value)
        for value, missing in zip(values, is_absent(values), strict=True)
    ]
    return pd.Series(converted, index=values.index, dtype=object)


def as_lists(values: pd.Series) -> pd.Series:
    """`values` as lists of float, also from text such as "[1.5, 2]"; None for anything else."""
    return pd.Series([_list(value) for value in values], index=values.index, dtype=object)


def _list(value: Any) -> list[float] | None:
    """`value` as a list of float; None where it is empty or not a list of numbers."""
    # A CSV file has lists as text.
    if isinstance(value, str):
        value = value.strip().strip("[]()").replace(",", " ").split()
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    items = [_number(item) for item in value]
    return items if items and not np.isnan(items).any() else None


def as_integers(values: pd.Series) -> pd.Series:
    """`values` as int64 if all are integers that float64 holds exactly; otherwise unchanged."""
    floats = values.to_numpy(dtype=float)
    whole = np.isfinite(floats) & (np.abs(floats) < 2**53) & (floats == np.round(floats))
    return values.astype("int64") if len(values) and whole.all() else values


def violates_sign(values: pd.Series, sign: Sign) -> pd.Series:
    """(n,) bool: where a number is infinite or below what its column's sign allows; False for NaN.

    A share above 1 is not reported here, because then the whole column is in another unit, such as
    per cent (validate._refuse_other_units).
    """
    infinite = values.abs() == np.inf
    # nextafter: the smallest positive number, so that 0 itself violates "positive".
    minimum = {"any": -np.inf, "positive": np.nextafter(0, 1)}.get(sign, 0.0)
    return infinite | (values < minimum)
