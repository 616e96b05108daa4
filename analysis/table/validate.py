"""A frame from anywhere to checked rows: types, signs, duplicates, and a reason for what goes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.table.schema import (
    BY_NAME,
    OURS,
    SCHEMA,
    SCORES,
    STATUSES,
    UNKNOWN_ELSEWHERE,
    VARIABLES,
    absent,
    breaks,
    lists,
    numbers,
    texts,
    tight,
)  # fmt: skip
from var_scaling.results import Column

_ENDS = {"finished": "done", "completed": "done", "killed": "running", "scheduled": "waiting"}
# What tells one run from another: some people give one name to all seeds of a model.
_RUN = ["sweep", "trial", "seed", *(n for n in VARIABLES if n.startswith("params")),
        "learning_rate"]  # fmt: skip


class TableError(ValueError):
    """The table cannot be used; the message says which column or row, and why."""


@dataclass(frozen=True)
class Checked:
    """What `checked` found; the fields are those of `analysis.table.table.Table`."""

    rows: pd.DataFrame
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    assumed: tuple[str, ...]


def checked(frame: pd.DataFrame, where: str) -> Checked:
    """The usable rows of `frame` in the schema's types. Raises TableError."""
    frame = frame.rename(columns=str).reset_index(drop=True)
    _refuse_columns(frame, where)
    given = [column for column in SCHEMA if column.name in frame.columns]
    reasons = _bad_numbers(frame)
    rows, notes = _typed(frame, given)
    _refuse_other_units(rows, where)
    assumed = _assume(rows, frame, notes)
    _drop(reasons, ~rows.status.isin(STATUSES), "status is none of " + ", ".join(STATUSES))
    reasons[rows.status == "diverged"] = "diverged"
    damaged = rows.status == "damaged"
    reasons[damaged] = rows.damage[damaged].fillna("damaged")
    stepped = rows.step.notna() | (rows.status == "imported")
    twice = rows.duplicated([*_RUN, "step"], keep="last") & stepped
    _drop(reasons, twice, "the same trial and step stands again below")
    content = [column.name for column in given if column.kind != "list"]
    _drop(reasons, rows.duplicated(content, keep="last"), "the same row stands again below")
    named = zip(_labels(rows, frame), reasons, strict=True)
    dropped = tuple(f"{label}: {reason}" for label, reason in named if reason)
    kept = rows[reasons == ""].reset_index(drop=True)
    if kept.empty:
        raise TableError(f"{where}: no usable row: " + "; ".join(dropped[:5]))
    whole = {c.name: tight(kept[c.name]) for c in SCHEMA if c.kind == "whole"}
    kept = kept.assign(**whole)
    notes += [*_gaps(kept, frame), *_shared_names(kept), *_damaged(kept)]
    return Checked(kept, dropped, tuple(notes), assumed)


def _refuse_columns(frame: pd.DataFrame, where: str) -> None:
    """Raise TableError if nothing can be fitted to what the columns are."""
    names = list(frame.columns)
    for what, needed in (("score", SCORES), ("variable", VARIABLES)):
        if not set(needed) & set(names):
            raise TableError(
                f"{where}: columns missing: a {what}, which is one of {', '.join(needed)}; there "
                f"are: {', '.join(names) or 'none'}. Say which is which: "
                f"load_table(path, columns={{'yours': '{needed[0]}'}})"
            )
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise TableError(f"{where}: two columns are named {twice}")
    if frame.empty:
        raise TableError(f"{where}: the table is empty")


def _bad_numbers(frame: pd.DataFrame) -> pd.Series:
    """For each row why it cannot be used, or "": a score, variable or step that is no number > 0.

    What is absent is bad in a table of ours, of a model trained here, but for a score that no row
    of its family has; in any other the row stays for what it does have, if that is a score and a
    variable.
    """
    reasons = pd.Series("", index=frame.index)
    ours = _is_ours(frame)
    for name in (n for n in ("step", "steps", *VARIABLES, *SCORES) if n in frame.columns):
        gone, values = absent(frame[name]), numbers(frame[name])
        forgiven = gone
        if ours:
            forgiven = gone & (frame.status == "imported") & (name in UNKNOWN_ELSEWHERE)
            if name in SCORES[1:]:  # of some families no row has it; a loss is of all
                forgiven |= gone & ~(~gone).groupby(frame.family).transform("any")
        bad = (~np.isfinite(values) | (values <= 0)) & ~forgiven
        for i in frame.index[bad & (reasons == "")]:
            reasons[i] = f"{name} is not a positive number: {_shown(frame[name][i], gone[i])}"
    for what, needed in (("score", SCORES), ("variable", VARIABLES)):
        there = [~absent(frame[name]) for name in needed if name in frame.columns]
        _drop(reasons, ~np.logical_or.reduce(there), f"no {what} is given")
    return reasons


def _is_ours(frame: pd.DataFrame) -> bool:
    """Whether every row is of a trial of some sweep of ours, with all columns that ours have."""
    if not set(OURS) <= set(frame.columns):
        return False
    return not any(absent(frame[name]).any() for name in ("sweep", "trial", "status"))


def _shown(value: Any, gone: bool) -> str:
    return "absent" if gone else repr(value) if isinstance(value, str) else str(value)


def _drop(reasons: pd.Series, bad: Any, why: str) -> None:
    """Note `why` for rows that have no reason yet."""
    reasons[bad & (reasons == "")] = why


def _labels(rows: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """Each row by its trial and, where one is given, its step."""
    if "step" not in frame.columns:
        return rows.trial.tolist()
    given, steps, gone = frame["step"], numbers(frame["step"]), absent(frame["step"])
    shown = (int(n) if n % 1 == 0 else one for n, one in zip(steps, given, strict=True))
    labels = zip(rows.trial, shown, gone, strict=True)
    return [trial if unknown else f"{trial} at step {step}" for trial, step, unknown in labels]


def _typed(frame: pd.DataFrame, given: list[Column]) -> tuple[pd.DataFrame, list[str]]:
    """All columns of the schema, unknown where not given, after them those of `frame` alone."""
    columns: dict[str, Any] = {}
    notes: list[str] = []
    for column in SCHEMA:
        if column not in given:
            number = column.kind in ("whole", "number")
            columns[column.name] = np.full(len(frame), np.nan if number else None)
            continue
        values = frame[column.name]
        columns[column.name], odd = _column(values, column)
        if odd.any() and not column.need and column.name not in ("step", "steps"):
            first = _shown(values[odd].iloc[0], gone=False)
            notes.append(f"{column.name} of {odd.sum()} rows is taken for unknown: {first}")
    extra = {name: frame[name] for name in frame.columns if name not in BY_NAME}
    order = [*(name for name in frame.columns if name in BY_NAME), *columns, *extra]
    columns |= extra
    return pd.DataFrame({name: columns[name] for name in dict.fromkeys(order)}), notes


def _column(values: pd.Series, column: Column) -> tuple[pd.Series, pd.Series]:
    """`values` in their column's type, and where they were something else."""
    if column.kind == "text":
        return texts(values), pd.Series(False, index=values.index)
    gone = absent(values)
    if column.kind == "list":
        found = lists(values)
        return found, found.isna() & ~gone
    found = numbers(values)
    odd = (found.isna() & ~gone) | breaks(found, column.sign)
    return found.mask(odd), odd


def _refuse_other_units(rows: pd.DataFrame, where: str) -> None:
    """Raise TableError where an error is no share: 45 is 45 per cent, and so is all the column."""
    for name in (c.name for c in SCHEMA if c.sign == "share" and c.kind == "number"):
        if (largest := rows[name].max()) > 1:
            raise TableError(
                f"{where}: {name} is {largest:g} in places: it is a share between 0 and 1; in "
                "per cent? Divide the column by 100"
            )


def _assume(rows: pd.DataFrame, frame: pd.DataFrame, notes: list[str]) -> tuple[str, ...]:
    """Fill in what a third-party table need not say; the names of the columns filled whole."""
    unnamed = rows.trial.isna()
    if unnamed.any():
        rows["trial"] = [
            name if name is not None else f"row-{i}" for i, name in enumerate(rows.trial, 1)
        ]
        notes.append(f"trial of {unnamed.sum()} rows is not given: each is a run, named row-1, ...")
    if "status" not in frame.columns:
        rows["status"] = "done"
        notes.append("status is not given: every run counts as done")
    rows["status"] = [_status(value) for value in rows.status]
    ends = rows.groupby(_RUN, dropna=False).step.transform("max")
    endless = rows.steps.isna() & rows.step.notna() & (rows.status != "imported")
    if endless.any():
        rows["steps"] = rows.steps.where(~endless, ends)
        notes.append(f"steps of {endless.sum()} rows is not given: each run ends at its last step")
    rows["step"] = rows.step.where(rows.step.notna(), rows.steps)
    if not {"step", "steps"} & set(frame.columns):
        notes.append("step is not given: each row is the end of its run")
    given = {"trial": ~unnamed.all(), "status": "status" in frame.columns}
    given |= {name: name in frame.columns for name in ("step", "steps")}
    return tuple(name for name, known in given.items() if not known)


def _status(value: str | None) -> str | None:
    known = value.strip().lower() if value is not None else None
    return _ENDS.get(known, known) if known is not None else None


def _gaps(kept: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    """Scores and variables that some rows lack: those rows are points of the other laws."""
    given = (name for name in (*SCORES, *VARIABLES) if name in frame.columns)
    return [
        f"{name} is unknown in {lack} of {len(kept)} rows, which are no points of its laws"
        for name in given
        if (lack := int(kept[name].isna().sum()))
    ]


def _damaged(kept: pd.DataFrame) -> list[str]:
    """Runs whose scores can be read while another of their files is damaged: they stay."""
    known = kept[kept.damage.notna()].drop_duplicates("trial")
    return [f"{trial}: {what}" for trial, what in zip(known.trial, known.damage, strict=True)]


def _shared_names(kept: pd.DataFrame) -> list[str]:
    """A note where one name stands for several runs."""
    runs = kept[_RUN].drop_duplicates()
    shared = int(runs.duplicated(["sweep", "trial"]).sum())
    return (
        [f"{shared} runs have the name of another: told apart by seed and size"] if shared else []
    )
