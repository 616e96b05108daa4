"""The run table that every law is fitted to: anyone's file, checked; rows dropped with a reason."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.table.schema import BY_NAME, SCHEMA, SCORES, VARIABLES
from analysis.table.validate import Checked, TableError, checked

_SIZES = ("params_total", "params_blocks")
_COMPARABLE = ("family", "loss_unit", "tokenizer", "data")
_BY_SIZE = ("params_blocks", "params_total", "tokens_seen", "train_flops")  # the first known


@dataclass(frozen=True)
class Table:
    """One row for each evaluation of each run, what was left out, and what was made of it.

    `rows` has every column of `analysis.table.schema.SCHEMA`: NaN (None for text and lists) where
    nothing is known; other columns of the source come along unread. `assumed` names columns that
    the source lacks and that were filled in, as `notes` says.
    """

    rows: pd.DataFrame
    dropped: tuple[str, ...]
    source: str = ""
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def finals(self) -> pd.DataFrame:
        """The end of each finished trial, smallest first: the points that a law is fitted to.

        A model from elsewhere is a point too, of the laws in what is known of it; so is a row of
        a table that knows of no steps.
        """
        rows = self.rows
        finished = (rows.status == "done") & ((rows.step == rows.steps) | rows.step.isna())
        ended = rows[finished | (rows.status == "imported")]
        known = [name for name in _BY_SIZE if ended[name].notna().any()]
        order = [*known[:1], "seed"]
        return ended.sort_values(order, kind="stable").reset_index(drop=True)

    @property
    def groups(self) -> dict[str, "Table"]:
        """The rows whose scores can be points of one law: of one family, one unit of the loss, one
        tokenizer and one set of images. By the family's name, and whatever else tells them apart.

        One table under the name "" where there is but one, or nothing is known of these.
        """
        known = [name for name in _COMPARABLE if self.rows[name].notna().any()]
        if not known:
            return {"": self}
        keys = self.rows[known].fillna("unknown").astype(str)
        if len(keys.drop_duplicates()) == 1:
            return {"": self}
        # Of a family with several groups, what tells them apart; of others the name is enough.
        first = keys[known[0]]
        labels = first.copy()
        for name in known[1:]:
            tells = keys.groupby(first)[name].transform("nunique") > 1
            labels = labels.where(~tells, labels + ", " + keys[name])
        return {
            label: replace(
                self, rows=self.rows[labels == label].reset_index(drop=True), dropped=(), notes=()
            )
            for label in dict.fromkeys(labels)
        }

    @cached_property
    def fingerprint(self) -> str:
        """First 12 hex of a SHA-256 over what is known in `rows`, under the names of the schema.

        The order of rows and columns, the width of a number's type and columns that nothing
        reads make no difference. What was assumed is no content.
        """
        names = sorted(c.name for c in SCHEMA if c.name not in self.assumed)
        known = [[_canonical(value) for value in self.rows[name]] for name in names]
        lines = sorted(
            json.dumps({n: v for n, v in zip(names, row, strict=True) if v is not None})
            for row in zip(*known, strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _canonical(value: Any) -> str | list[str] | None:
    """A number by its value whatever its type; None where there is none."""
    if isinstance(value, list):
        return [repr(float(one)) for one in value]
    if isinstance(value, str) or value is None:
        return value
    return None if value != value else repr(float(value))


def load_table(path: Path | str, columns: Mapping[str, str] | None = None) -> Table:
    """Read anyone's run table: Parquet, CSV or TSV, these also gzipped.

    `columns` maps the file's names to those of the schema: {"Model Size": "params_total"}.
    Needed is a score (`SCORES`) and a variable (`VARIABLES`) of a law; the rest may be unknown.
    Raises TableError.
    """
    path = Path(path)
    if not path.exists():
        raise TableError(f"{path}: there is no such file")
    return check(renamed(_read(path), columns or {}, str(path)), str(path))


def load_results(path: Path | str) -> Table:
    """Read a results table of ours, or one that looks like it. Raises TableError."""
    if not Path(path).exists():
        raise TableError(f"{path}: no results yet; `var-scaling run` writes them")
    return load_table(path)


def _read(path: Path) -> pd.DataFrame:
    """The file as it is. Raises TableError with the reader's reason where it cannot be read."""
    kind = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()
    if kind not in (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq"):
        raise TableError(f"{path}: is none of .csv, .tsv, .csv.gz, .tsv.gz, .parquet")
    try:
        if kind in (".parquet", ".pq"):
            return pd.read_parquet(path)
        head = pd.read_csv(path, header=None, nrows=1, sep="\0", engine="c", encoding="utf-8-sig")
        separator = "\t" if kind.startswith(".tsv") else max(",;\t", key=str(head.iat[0, 0]).count)
        frame = pd.read_csv(path, sep=separator, encoding="utf-8-sig", skipinitialspace=True)
    except pd.errors.EmptyDataError:
        raise TableError(f"{path}: the file is empty") from None
    except (ValueError, OSError, EOFError, NotImplementedError, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TableError(f"{path}: cannot be read: {reason}") from error
    return frame.rename(columns=lambda name: str(name).strip())


def renamed(frame: pd.DataFrame, columns: Mapping[str, str], where: str) -> pd.DataFrame:
    """`frame` under the schema's names. Raises TableError for a name that is not there."""
    refuse_names(columns, map(str, frame.columns), where)
    taken = [ours for theirs, ours in columns.items() if ours in frame.columns and ours != theirs]
    taken = [name for name in taken if name not in columns]
    if taken:
        raise TableError(f"{where}: there is a column {taken[0]} already: map it away or drop it")
    return frame.rename(columns=dict(columns))


def refuse_names(columns: Mapping[str, str], there: Any, where: str) -> None:
    """Raise TableError if `columns` names a missing column or maps to an unused one."""
    there = sorted(set(there))
    for theirs, ours in columns.items():
        if theirs not in there:
            raise TableError(f"{where}: there is no {theirs!r}; there are: {', '.join(there)}")
        if ours not in BY_NAME:
            near = get_close_matches(ours, BY_NAME, 3) or (*SCORES, *VARIABLES)
            raise TableError(f"{where}: {ours!r} is no column of the schema; did you mean one of "
                             f"{', '.join(near)}?")  # fmt: skip
    for ours in columns.values():
        if (twice := [t for t in columns if columns[t] == ours])[1:]:
            raise TableError(f"{where}: {' and '.join(map(repr, twice))} are both to be {ours}")


def check(frame: pd.DataFrame, where: str = "table") -> Table:
    """The usable rows of `frame`, named as in the schema.

    Raises TableError if no score or no variable is among the columns, if an error is no share, or
    if no row is left.
    """
    found: Checked = checked(frame, where)
    return Table(found.rows, found.dropped, where, found.notes, found.assumed)


def complete(table: Table, column: str, parameters: str = "params_total") -> Table:
    """Fill `column` where it is unknown, by C = 6 N D, from the two others; `notes` says so.

    `column` is train_flops (C, FLOP), tokens_seen (D) or one of params_total and params_blocks (N);
    `parameters` is the N that is meant where `column` is not itself one. It is a convention, off by
    some 10 to 30 % for our models (`analysis.compute`), so it never happens unasked. Raises
    TableError where there is nothing to fill, or nothing to fill it from.
    """
    parameters = column if column in _SIZES else parameters
    if column not in (triple := ("train_flops", parameters, "tokens_seen")):
        raise TableError(f"{column!r}: C = 6 N D gives one of {', '.join(triple)}")
    compute, size, tokens = (table.rows[name].astype(float) for name in triple)
    given = {
        "train_flops": 6 * size * tokens,
        "tokens_seen": compute / (6 * size),
        parameters: compute / (6 * tokens),
    }[column]
    unknown = table.rows[column].isna()
    others = [name for name in triple if name != column]
    if not unknown.any():
        raise TableError(f"{table.source}: every row knows its {column} already")
    filled = unknown & given.notna()
    if not filled.any():
        raise TableError(
            f"{table.source}: no row without {column} knows both {' and '.join(others)}"
        )
    rows = table.rows.assign(**{column: table.rows[column].astype(float).where(~filled, given)})
    note = f"{column} of {filled.sum()} rows by C = 6 N D from {' and '.join(others)}"
    return replace(table, rows=rows, notes=(*table.notes, note))
