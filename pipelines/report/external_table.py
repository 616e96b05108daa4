"""Fit laws to an external table: a file or an MLflow experiment."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.planning.external_table import TableSource
from pipelines.report.fit_options import NO_OPTIONS, FitOptions
from pipelines.report.paper import PaperOptions, refuse_unwritable, write_paper
from pipelines.workspace.store import Home
from var_scaling.disk import write_json


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

    The figures are PNGs, and in `formats`. The report shows the forecasts of the table. Returns the
    report's path and the content of laws.json. Raises TableError.
    """
    from analysis.export import laws_of_all
    from analysis.parallel import idle_cores
    from analysis.report.html import Facts
    from analysis.report.pages import write_pages
    from analysis.study import studies
    from pipelines.planning.table_forecasts import grade_table

    chosen = options.parsed()
    if out is not None:
        refuse_unwritable("--out", out)  # before the fits
    source = TableSource(name, tuple(columns), completed, options.where, out)
    table, processes = source.load(home), idle_cores()
    # The rows of this fit need not be those of the forecasts.
    forecasts = tuple(grade_table(replace(source, where=None), home))
    fitted = studies(table, objective, forecasts, progress, processes, chosen)
    facts = Facts(
        title=source.title, question=f"The laws of {name}", settings=options.settings, provenance={}
    )
    write_paper(paper, fitted, source.folder, processes)
    page = write_pages(source.folder, fitted, facts, formats, processes=processes)
    laws = {**laws_of_all(fitted), "options": options.recorded, "sweep": source.title}
    write_json(source.folder / "laws.json", laws)
    return page, laws
