"""The check of a table from any source: types, signs, duplicates, reasons for dropped rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.table.runs import RUN_COLUMNS
from analysis.table.schema import (
    BY_NAME,
    NATIVE_COLUMNS,
    OPTIONAL_IF_IMPORTED,
    SCHEMA,
    SCORES,
    STATUSES,
    VARIABLES,
    as_integers,
    as_lists,
    as_numbers,
    as_texts,
    is_absent,
    violates_sign,
)  # fmt: skip
from var_scaling.results import Column
from var_scaling.text import counted

# Statuses of other tools. Any other word is not guessed: its row is dropped.
_STATUS_NAMES = {
    "finished": "done",
    "completed": "done",
    "killed": "running",
    "scheduled": "waiting",
}


class TableError(ValueError):
    """The table cannot be used; the message names the column or row and the reason."""


@dataclass(frozen=True)
class CheckedRows:
    """The result of `check_frame`; the fields are those of `analysis.table.table.Table`."""

    rows: pd.DataFrame
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    assumed: tuple[str, ...]


def check_frame(frame: pd.DataFrame, where: str) -> CheckedRows:
    """The usable rows of `frame` in the schema's types. Raises TableError if there is none."""
    # A new index: a concatenated table repeats index values, and `reasons` is assigned by index.
    frame = frame.rename(columns=str).reset_index(drop=True)
    _refuse_columns(frame, where)
    given = [column for column in SCHEMA if column.name in frame.columns]
    # From the unconverted values, so that a message shows what the source has.
    reasons = _bad_numbers(frame)
    rows, notes = _typed(frame, given)
    _refuse_other_units(rows, where)
    assumed = _assume(rows, frame, notes)
    _drop(reasons, ~rows.status.isin(STATUSES), "status is none of " + ", ".join(STATUSES))
    # These override earlier reasons, which can be consequences: a diverged run has no valid loss.
    reasons[rows.status == "diverged"] = "diverged"
    damaged = rows.status == "damaged"
    reasons[damaged] = rows.damage[damaged].fillna("damaged")
    # The last of several rows of one step counts. Rows without a step cannot be compared by step,
    # but an imported model has only one row.
    stepped = rows.step.notna() | (rows.status == "imported")
    repeated = rows.duplicated([*RUN_COLUMNS, "step"], keep="last") & stepped
    _drop(reasons, repeated, "a row below has the same trial and step")
    # Where steps are unknown, only a complete copy of a row is a duplicate. Lists cannot be hashed.
    content = [column.name for column in given if column.kind != "list"]
    _drop(reasons, rows.duplicated(content, keep="last"), "an identical row is below")
    named = zip(_labels(rows, frame), reasons, strict=True)
    dropped = tuple(f"{label}: {reason}" for label, reason in named if reason)
    kept = rows[reasons == ""].reset_index(drop=True)
    if kept.empty:
        raise TableError(f"{where}: no usable row: " + "; ".join(dropped[:5]))
    # Only now: a dropped row can have a value that is no integer.
    integers = {c.name: as_integers(kept[c.name]) for c in SCHEMA if c.kind == "whole"}
    kept = kept.assign(**integers)
    notes += [*_gaps(kept, frame), *_shared_names(kept), *_damaged(kept)]
    return CheckedRows(kept, dropped, tuple(notes), assumed)


def _refuse_columns(frame: pd.DataFrame, where: str) -> None:
    """Raise TableError if there is no row, score or variable, or if a column name is repeated."""
    names = list(frame.columns)
    for kind, needed in (("score", SCORES), ("variable", VARIABLES)):
        if not set(needed) & set(names):
            raise TableError(
                f"{where}: columns missing: a {kind}, which is one of {', '.join(needed)}; there "
                f"are: {', '.join(names) or 'none'}. Rename yours with "
                f"--column 'YOURS={needed[0]}' (in Python: {{'YOURS': '{needed[0]}'}})"
            )
    if not frame.columns.is_unique:
        repeated = frame.columns[frame.columns.duplicated()][0]
        raise TableError(f"{where}: two columns are named {repeated}")
    if frame.empty:
        raise TableError(f"{where}: the table is empty")


def _bad_numbers(frame: pd.DataFrame) -> pd.Series:
    """(n,) the reason why each row cannot be used, or "".

    A row cannot be used if a score, variable or step is not a positive number. In a table that this
    project wrote, an absent number is also a reason, except for imported models and for scores that
    no row of the family has. In any other table, a row needs only one score and one variable.
    """
    reasons = pd.Series("", index=frame.index)
    native = _is_native(frame)
    for name in (n for n in ("step", "steps", *VARIABLES, *SCORES) if n in frame.columns):
        missing, values = is_absent(frame[name]), as_numbers(frame[name])
        allowed = missing
        if native:
            allowed = missing & (frame.status == "imported") & (name in OPTIONAL_IF_IMPORTED)
            if name in SCORES[1:]:  # some families do not have this score; every family has a loss
                allowed |= missing & ~(~missing).groupby(frame.family, dropna=False).transform(
                    "any"
                )
        bad = (~np.isfinite(values) | (values <= 0)) & ~allowed
        for i in frame.index[bad & (reasons == "")]:
            reasons[i] = f"{name} is not a positive number: {_display(frame[name][i], missing[i])}"
    for kind, needed in (("score", SCORES), ("variable", VARIABLES)):
        present = [~is_absent(frame[name]) for name in needed if name in frame.columns]
        _drop(reasons, ~np.logical_or.reduce(present), f"no {kind} is given")
    return reasons


def _is_native(frame: pd.DataFrame) -> bool:
    """Whether this project wrote the table: it has all of our columns, and each row has a trial."""
    if not set(NATIVE_COLUMNS) <= set(frame.columns):
        return False
    return not any(is_absent(frame[name]).any() for name in ("sweep", "trial", "status"))


def _display(value: Any, missing: bool) -> str:
    """A value for a message."""
    return "absent" if missing else repr(value) if isinstance(value, str) else str(value)


def _drop(reasons: pd.Series, bad: Any, reason: str) -> None:
    """Set `reason` for the bad rows that have no reason yet, in place."""
    reasons[bad & (reasons == "")] = reason


def _labels(rows: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """A name for each row: its trial and, where known, its step."""
    if "step" not in frame.columns:
        return rows.trial.tolist()
    values, steps, missing = frame["step"], as_numbers(frame["step"]), is_absent(frame["step"])
    # 100 rather than 100.0; a step that is no integer as the source has it.
    shown = (int(n) if n % 1 == 0 else raw for n, raw in zip(steps, values, strict=True))
    labels = zip(rows.trial, shown, missing, strict=True)
    return [trial if unknown else f"{trial} at step {step}" for trial, step, unknown in labels]


def _typed(frame: pd.DataFrame, given: list[Column]) -> tuple[pd.DataFrame, list[str]]:
    """All columns of the schema in their types, unknown where not given, then the other columns.

    Also notes about values that were replaced by unknown.
    """
    columns: dict[str, Any] = {}
    notes: list[str] = []
    for column in SCHEMA:
        if column not in given:
            number = column.kind in ("whole", "number")
            columns[column.name] = np.full(len(frame), np.nan if number else None)
            continue
        values = frame[column.name]
        columns[column.name], invalid = _column(values, column)
        # Invalid scores, variables and steps are reasons to drop the row (_bad_numbers).
        if invalid.any() and not column.need and column.name not in ("step", "steps"):
            first = _display(values[invalid].iloc[0], missing=False)
            notes.append(
                f"{column.name} of {counted(int(invalid.sum()), 'row')} is not valid and counts as "
                f"unknown: {first}"
            )
    extra = {name: frame[name] for name in frame.columns if name not in BY_NAME}
    order = [*(name for name in frame.columns if name in BY_NAME), *columns, *extra]
    columns |= extra
    return pd.DataFrame({name: columns[name] for name in dict.fromkeys(order)}), notes


def _column(values: pd.Series, column: Column) -> tuple[pd.Series, pd.Series]:
    """`values` in their column's type, and (n,) bool where they were invalid and became unknown."""
    if column.kind == "text":
        return as_texts(values), pd.Series(False, index=values.index)
    missing = is_absent(values)
    if column.kind == "list":
        converted = as_lists(values)
        return converted, converted.isna() & ~missing
    converted = as_numbers(values)
    invalid = (converted.isna() & ~missing) | violates_sign(converted, column.sign)
    return converted.mask(invalid), invalid


def _refuse_other_units(rows: pd.DataFrame, where: str) -> None:
    """Raise TableError where an error rate is above 1: then the column is probably in per cent."""
    for name in (c.name for c in SCHEMA if c.sign == "share" and c.kind == "number"):
        if (largest := rows[name].max()) > 1:
            raise TableError(
                f"{where}: {name} is up to {largest:g}, but it must be between 0 and 1; if it is "
                "in per cent, divide the column by 100"
            )


def _assume(rows: pd.DataFrame, frame: pd.DataFrame, notes: list[str]) -> tuple[str, ...]:
    """Fill in, in place, what a third-party table may omit; returns the columns filled completely.

    Adds to `notes` what was assumed.
    """
    unnamed = rows.trial.isna()
    if unnamed.any():
        rows["trial"] = [
            name if name is not None else f"row-{i}" for i, name in enumerate(rows.trial, 1)
        ]
        notes.append(
            f"trial of {counted(unnamed.sum(), 'row')} is not given: each row is a run, named "
            "row-1, ..."
        )
    if "status" not in frame.columns:
        rows["status"] = "done"
        notes.append("status is not given: every run counts as done")
    rows["status"] = [_status(value) for value in rows.status]
    # dropna=False: runs without a seed or a learning rate are groups too.
    last_steps = rows.groupby(RUN_COLUMNS, dropna=False).step.transform("max")
    unknown_steps = rows.steps.isna() & rows.step.notna() & (rows.status != "imported")
    if unknown_steps.any():
        rows["steps"] = rows.steps.where(~unknown_steps, last_steps)
        notes.append(
            f"steps of {counted(unknown_steps.sum(), 'row')} is not given: each run ends at its "
            "last step"
        )
    rows["step"] = rows.step.where(rows.step.notna(), rows.steps)
    if not {"step", "steps"} & set(frame.columns):
        notes.append("step is not given: each row is the end of its run")
    given = {"trial": ~unnamed.all(), "status": "status" in frame.columns}
    given |= {name: name in frame.columns for name in ("step", "steps")}
    return tuple(name for name, known in given.items() if not known)


def _status(value: str | None) -> str | None:
    """The schema's status for a status of the source, such as "finished"."""
    if value is None:
        return None
    status = value.strip().lower()
    return _STATUS_NAMES.get(status, status)


def _gaps(kept: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """Notes on scores and variables that some rows lack."""
    given = (name for name in (*SCORES, *VARIABLES) if name in frame.columns)
    return [
        f"{name} is unknown in {missing} of {counted(len(kept), 'row')}; laws that need it leave "
        f"{'it' if missing == 1 else 'them'} out"
        for name in given
        if (missing := int(kept[name].isna().sum()))
    ]


def _damaged(kept: pd.DataFrame) -> list[str]:
    """Notes on runs that are kept although a file other than that of their scores is damaged."""
    damaged = kept[kept.damage.notna()].drop_duplicates("trial")
    return [
        f"{trial}: {damage}" for trial, damage in zip(damaged.trial, damaged.damage, strict=True)
    ]


def _shared_names(kept: pd.DataFrame) -> list[str]:
    """A note where one name stands for several runs."""
    runs = kept[RUN_COLUMNS].drop_duplicates()
    shared = int(runs.duplicated(["sweep", "trial"]).sum())
    note = f"{shared} runs have the name of another run; columns such as seed tell them apart"
    return [note] if shared else []
