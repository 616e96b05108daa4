"""A run table that is not ours: a file or an MLflow experiment, and the options that read it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home

if TYPE_CHECKING:
    from analysis.table.table import Table

_FILES = (".csv", ".tsv", ".parquet", ".csv.gz")
_MLFLOW = "mlflow:"


def is_table(name: str) -> bool:
    """Whether `name` is a table and no sweep."""
    return name.startswith(_MLFLOW) or name.endswith(_FILES)


@dataclass(frozen=True)
class TableSource:
    """A table as the command line names it."""

    name: str  # path, or mlflow:EXPERIMENT
    columns: tuple[str, ...] = ()  # --column
    completed: str | None = None  # --complete
    where: str | None = None  # --where
    out: Path | None = None  # --out

    @property
    def title(self) -> str:
        return self.name if self.name.startswith(_MLFLOW) else Path(self.name).name

    @property
    def folder(self) -> Path:
        """The folder of the report and of the forecasts: by default TABLE-laws beside the file."""
        if self.out is not None:
            return self.out
        base = Path(f"{Path(self.title.replace(':', '-')).stem}-laws")
        return base if self.name.startswith(_MLFLOW) else Path(self.name).parent / base

    @property
    def record(self) -> dict[str, Any]:
        """The options that select and change rows, as JSON values."""
        return {
            "table": self.title, "--column": list(self.columns), "--complete": self.completed,
            "--where": self.where,
        }  # fmt: skip

    def load(self, home: Home) -> "Table":
        """The table, renamed and completed, with the rows of `where`. Raises TableError."""
        return self.chosen(self.load_all(home))

    def load_all(self, home: Home) -> "Table":
        """The same with all rows."""
        from analysis.table.table import complete, load_table

        renamed = dict(_parse_column(option) for option in self.columns)
        if self.name.startswith(_MLFLOW):
            table = _from_mlflow(self.name.removeprefix(_MLFLOW), home, renamed)
        else:
            table = load_table(Path(self.name), renamed)
        return table if self.completed is None else complete(table, self.completed)

    def chosen(self, table: "Table") -> "Table":
        """The rows of `table` with the condition `where`."""
        from analysis.table.table import select

        return table if self.where is None else select(table, self.where)


def refuse_table_options(name: str, options: dict[str, Any]) -> None:
    """Raise ValueError if one of these options, by name, is given for `name`, a sweep."""
    if given := [option for option, value in options.items() if value]:
        raise ValueError(
            f"{', '.join(given)}: only for a table; {name} is not a .csv, .tsv or .parquet file"
        )


def size_column(table: "Table") -> str:
    """The column of N: weights of the blocks if they are known, else all parameters."""
    return "params_total" if table.finals.params_blocks.isna().all() else "params_blocks"


def one_group(table: "Table") -> "Table":
    """`table`. Raises ValueError if its runs cannot share one law."""
    if len(table.groups) > 1:
        raise ValueError(
            f"{table.source}: {len(table.groups)} groups of runs whose losses do not follow one "
            f"law: {'; '.join(table.groups)}. Choose one by --where, such as "
            "--where \"family == 'var'\""
        )
    return table


def _parse_column(option: str) -> tuple[str, str]:
    theirs, equals, ours = option.rpartition("=")
    if not equals or not theirs or not ours:
        raise ValueError(f"--column {option!r}: write THEIRS=OURS, as in 'Model Size=params_total'")
    return theirs, ours


def _from_mlflow(experiment: str, home: Home, renamed: dict[str, str]) -> "Table":
    from analysis.table.mlflow import from_mlflow
    from pipelines.tracking.mlflow import client

    return from_mlflow(client(home, load_settings().mlflow.uri), experiment, renamed)
