"""The run table that laws are fitted to: read from a file, checked, dropped rows with reasons."""

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
from analysis.table.validate import CheckedRows, TableError, check_frame
from var_scaling.text import counted

_SIZES = ("params_total", "params_blocks")
_GROUP_COLUMNS = ("family", "loss_unit", "tokenizer", "data")
# `Table.finals` is sorted by the first of these columns that is known.
_SIZE_ORDER = ("params_blocks", "params_total", "tokens_seen", "train_flops")


@dataclass(frozen=True)
class Table:
    """One row for each evaluation of each run, with the dropped rows and the notes of the check.

    `rows` has every column of `analysis.table.schema.SCHEMA`, with NaN (None for text and lists)
    for unknown values; other columns of the source are kept unchanged. `assumed`: columns that the
    source lacks and that were filled in; `notes` say how.
    """

    rows: pd.DataFrame
    dropped: tuple[str, ...]
    source: str = ""
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def finals(self) -> pd.DataFrame:
        """The last evaluation of each finished trial, smallest first: the points of the laws.

        Imported models and rows without a step are also points.
        """
        rows = self.rows
        finished = (rows.status == "done") & ((rows.step == rows.steps) | rows.step.isna())
        ended = rows[finished | (rows.status == "imported")]
        known = [name for name in _SIZE_ORDER if ended[name].notna().any()]
        order = [*known[:1], "seed"]
        return ended.sort_values(order, kind="stable").reset_index(drop=True)

    @property
    def groups(self) -> dict[str, "Table"]:
        """The table split into groups that can share a law: one family, loss unit, tokenizer and
        data set each. The keys are family names, plus the values that distinguish its groups.

        One table with the key "" if there is only one group or these columns are unknown.
        """
        known = [name for name in _GROUP_COLUMNS if self.rows[name].notna().any()]
        if not known:
            return {"": self}
        # A missing value would belong to no group: groupby drops it.
        keys = self.rows[known].fillna("unknown").astype(str)
        if len(keys.drop_duplicates()) == 1:
            return {"": self}
        # Only where a family has several groups are their distinguishing values added to its name.
        first = keys[known[0]]
        labels = first.copy()
        for name in known[1:]:
            differs = keys.groupby(first)[name].transform("nunique") > 1
            labels = labels.where(~differs, labels + ", " + keys[name])
        return {
            label: replace(
                self,
                rows=self.rows[labels == label].reset_index(drop=True),
                # A dropped row may lack the columns that tell its group.
                dropped=tuple(f"of all groups: {row}" for row in self.dropped),
                notes=tuple(f"of all groups: {note}" for note in self.notes),
            )
            for label in dict.fromkeys(labels)
        }

    @cached_property
    def fingerprint(self) -> str:
        """The first 12 hex digits of a SHA-256 of the known values in the columns of the schema.

        It does not depend on the order of rows and columns, on the numbers' types, on other columns
        or on assumed columns.
        """
        names = sorted(c.name for c in SCHEMA if c.name not in self.assumed)
        known = [[_canonical(value) for value in self.rows[name]] for name in names]
        lines = sorted(
            json.dumps({n: v for n, v in zip(names, row, strict=True) if v is not None})
            for row in zip(*known, strict=True)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _canonical(value: Any) -> str | list[str] | None:
    """A value independent of its type, for the fingerprint; None where it is absent."""
    if isinstance(value, list):
        return [repr(float(item)) for item in value]
    if isinstance(value, str) or value is None:
        return value
    # NaN is the only value that differs from itself. repr determines a float exactly.
    return None if value != value else repr(float(value))


def load_table(path: Path | str, columns: Mapping[str, str] | None = None) -> Table:
    """Read and check a run table from any source: Parquet, CSV or TSV (CSV and TSV also gzipped).

    `columns` maps the file's names to those of the schema: {"Model Size": "params_total"}. At least
    one score (`SCORES`) and one variable of a law (`VARIABLES`) are required. Raises TableError.
    """
    path = Path(path)
    if not path.exists():
        raise TableError(f"{path}: no such file")
    return check(rename_columns(_read(path), columns or {}, str(path)), str(path))


def load_results(path: Path | str) -> Table:
    """Read a results table that this project wrote. Raises TableError where it does not exist."""
    if not Path(path).exists():
        raise TableError(f"{path}: no results yet; `var-scaling run` writes them")
    return load_table(path)


def _read(path: Path) -> pd.DataFrame:
    """The unchecked file. Raises TableError with the reason where it cannot be read."""
    # A compressed file has two suffixes: .csv.gz.
    kind = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()
    if kind not in (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq"):
        raise TableError(
            f"{path}: the file type must be one of .csv, .tsv, .csv.gz, .tsv.gz, .parquet"
        )
    try:
        if kind in (".parquet", ".pq"):
            return pd.read_parquet(path)
        # The header line as one value: the most frequent candidate in it is the separator.
        head = pd.read_csv(path, header=None, nrows=1, sep="\0", engine="c", encoding="utf-8-sig")
        separator = "\t" if kind.startswith(".tsv") else max(",;\t", key=str(head.iat[0, 0]).count)
        rules: dict[str, Any] = {
            "sep": separator,
            "encoding": "utf-8-sig",
            "skipinitialspace": True,
        }
        frame = pd.read_csv(path, **rules)
        names = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **rules)
        # pandas renames the second of two equal columns to NAME.1; the checks refuse NAME twice.
        if names.shape[1] == frame.shape[1]:
            frame.columns = [
                name or old for name, old in zip(names.iloc[0], frame.columns, strict=True)
            ]
    except pd.errors.EmptyDataError:
        raise TableError(f"{path}: the file is empty") from None
    except (ValueError, OSError, EOFError, NotImplementedError, zlib.error) as error:
        # The first line only: messages of pandas can have several.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TableError(f"{path}: cannot be read: {reason}") from error
    return frame.rename(columns=lambda name: str(name).strip())


def rename_columns(frame: pd.DataFrame, columns: Mapping[str, str], where: str) -> pd.DataFrame:
    """`frame` with the schema's names. Raises TableError for a missing, unknown or taken name."""
    check_column_mapping(columns, map(str, frame.columns), where)
    taken = [ours for theirs, ours in columns.items() if ours in frame.columns and ours != theirs]
    # A name that is itself renamed is free, so two columns can swap their names.
    taken = [name for name in taken if name not in columns]
    if taken:
        raise TableError(f"{where}: there is already a column {taken[0]}; rename or drop it")
    return frame.rename(columns=dict(columns))


def check_column_mapping(columns: Mapping[str, str], names: Any, where: str) -> None:
    """Raise TableError if `columns` maps a name that is not in `names`, maps to a name outside the
    schema, or maps two names to one column.
    """
    names = sorted(set(names))
    for theirs, ours in columns.items():
        if theirs not in names:
            raise TableError(
                f"{where}: --column: there is no {theirs!r}; there are: {', '.join(names)}"
            )
        if ours not in BY_NAME:
            near = get_close_matches(ours, BY_NAME, 3) or (*SCORES, *VARIABLES)
            raise TableError(f"{where}: {ours!r} is no column of the schema; did you mean one of "
                             f"{', '.join(near)}?")  # fmt: skip
    for ours in columns.values():
        if (same := [theirs for theirs in columns if columns[theirs] == ours])[1:]:
            raise TableError(f"{where}: {' and '.join(map(repr, same))} are both mapped to {ours}")


def check(frame: pd.DataFrame, where: str = "table") -> Table:
    """The usable rows of `frame`, whose columns have the schema's names, as a Table.

    Raises TableError if there is no score or no variable among the columns, if an error rate is
    above 1, or if no row is usable.
    """
    result: CheckedRows = check_frame(frame, where)
    return Table(result.rows, result.dropped, where, result.notes, result.assumed)


def select(table: Table, condition: str) -> Table:
    """The rows for which `condition`, an expression of pandas such as "depth > 4", is true.

    A note says how many. Raises TableError for an unknown column, for an expression that is not a
    condition, and where no row is left.
    """
    where = f"--where {condition!r}"
    try:
        # Empty dictionaries: names are columns, never variables of this program.
        found = table.rows.eval(condition, engine="python", local_dict={}, global_dict={})
    except NameError as error:
        name = str(error).split("'")[1].removeprefix("BACKTICK_QUOTED_STRING_")
        known = [str(each) for each in table.rows if table.rows[each].notna().any()]
        near = get_close_matches(name, known, 3) or known
        raise TableError(
            f"{where}: there is no column {name}; did you mean one of {', '.join(near)}? Texts "
            "need quotation marks"
        ) from None
    except SyntaxError:
        raise TableError(
            f"{where}: is no expression; write a condition such as \"family == 'var'\" or "
            '"depth > 4 and seed == 0"'
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise TableError(f"{where}: {(str(error).splitlines() or ['?'])[0]}") from None
    if not isinstance(found, pd.Series) or not found.dropna().map(pd.api.types.is_bool).all():
        raise TableError(f"{where}: is not true or false for each row; compare with ==, < or >")
    chosen = found.fillna(False).astype(bool)
    if not chosen.any():
        raise TableError(f"{where}: true for none of {counted(len(chosen), 'row')}")
    note = f"{where}: {int(chosen.sum())} of {counted(len(chosen), 'row')}"
    rows = table.rows[chosen].reset_index(drop=True)
    return replace(table, rows=rows, notes=(*table.notes, note))


def complete(table: Table, column: str, parameters: str = "params_total") -> Table:
    """Fill the unknown values of `column` by C = 6 N D from the other two; `notes` say so.

    `column` is train_flops (C, FLOPs), tokens_seen (D), params_total or params_blocks (N).
    `parameters` is the column of N where `column` is C or D. C = 6 N D is a convention with an
    error of 10 to 30 % for our models, so it is applied only on request. Raises TableError where
    nothing is unknown or no row has both other values.
    """
    parameters = column if column in _SIZES else parameters
    if column not in (triple := ("train_flops", parameters, "tokens_seen")):
        raise TableError(f"--complete {column!r}: C = 6 N D gives one of {', '.join(triple)}")
    # As float64: FLOPs of large models exceed int64.
    compute, size, tokens = (table.rows[name].astype(float) for name in triple)
    computed = {
        "train_flops": 6 * size * tokens,
        "tokens_seen": compute / (6 * size),
        parameters: compute / (6 * tokens),
    }[column]
    unknown = table.rows[column].isna()
    others = [name for name in triple if name != column]
    if not unknown.any():
        raise TableError(
            f"{table.source}: {column} is known in every row; there is nothing to fill"
        )
    filled = unknown & computed.notna()
    if not filled.any():
        raise TableError(f"{table.source}: no row without {column} has both {' and '.join(others)}")
    rows = table.rows.assign(**{column: table.rows[column].astype(float).where(~filled, computed)})
    of_rows = f"{column} of {counted(filled.sum(), 'row')}"
    note = f"{of_rows} was computed by C = 6 N D from {' and '.join(others)}"
    return replace(table, rows=rows, notes=(*table.notes, note))
