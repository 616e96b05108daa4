"""Fit laws to an external table: a file or an MLflow experiment."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.report.fit_options import NO_OPTIONS, FitOptions
from pipelines.report.paper import PaperOptions, write_paper
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home
from var_scaling.disk import write_json

_FILES = (".csv", ".tsv", ".parquet", ".csv.gz")
_MLFLOW = "mlflow:"


def is_table(name: str) -> bool:
    return name.startswith(_MLFLOW) or name.endswith(_FILES)


def fit_table(
    name: str,
    home: Home,
    objective: str,
    columns: Sequence[str],
    completed: str | None,
    out: Path | None,
    progress: Callable[[str, int, int], None],
    formats: Sequence[str] = (),
    options: FitOptions = NO_OPTIONS,
    paper: PaperOptions | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Fit every law that the table has data for, and write plots, laws.json and the report.

    The figures are PNGs, and in `formats`. Returns the report's path and the content of laws.json.
    Raises TableError.
    """
    from analysis.export import laws_of_all
    from analysis.parallel import idle_cores
    from analysis.report.html import Facts
    from analysis.report.pages import write_pages
    from analysis.study import studies
    from analysis.table.table import complete, load_table, select

    chosen = options.parsed()
    renamed = dict(_parse_column(option) for option in columns)
    if name.startswith(_MLFLOW):
        table, title = _from_mlflow(name.removeprefix(_MLFLOW), home, renamed), name
    else:
        table, title = load_table(Path(name), renamed), Path(name).name
    if completed is not None:
        table = complete(table, completed)
    if options.where is not None:
        table = select(table, options.where)
    processes = idle_cores()
    fitted = studies(table, objective, progress=progress, processes=processes, options=chosen)
    base = Path(f"{Path(title.replace(':', '-')).stem}-laws")
    folder = out or (base if name.startswith(_MLFLOW) else Path(name).parent / base)
    facts = Facts(
        title=title, question=f"The laws of {name}", settings=options.settings, provenance={}
    )
    write_paper(paper, fitted, folder, processes)
    page = write_pages(folder, fitted, facts, formats, processes=processes)
    laws = {**laws_of_all(fitted), "options": options.recorded, "sweep": title}
    write_json(folder / "laws.json", laws)
    return page, laws


def _parse_column(option: str) -> tuple[str, str]:
    theirs, equals, ours = option.rpartition("=")
    if not equals or not theirs or not ours:
        raise ValueError(f"--column {option!r}: write THEIRS=OURS, as in 'Model Size=params_total'")
    return theirs, ours


def _from_mlflow(experiment: str, home: Home, renamed: dict[str, str]) -> Any:
    from analysis.table.mlflow import from_mlflow
    from pipelines.tracking.mlflow import client

    return from_mlflow(client(home, load_settings().mlflow.uri), experiment, renamed)
