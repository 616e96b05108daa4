"""The commands that analyse finished runs: fit, report, coverage."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.cli.options import (
    RUNS,
    AsJson,
    BudgetColumn,
    Columns,
    Complete,
    Fixed,
    HomeFolder,
    ObjectiveName,
    ObjectiveOfReport,
    OnlyLaws,
    OutFolder,
    ParabolaIn,
    Predict,
    Spline,
    SweepOrTable,
    UniqueColumn,
    Weights,
    Where,
)
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.console import console
from pipelines.cli.terminal.laws import difference_table
from pipelines.cli.terminal.paper import PaperColumns, PaperFolder, PaperRows, print_paper
from pipelines.cli.terminal.publish import publish_and_show, show
from pipelines.report.fit_options import FitOptions
from pipelines.report.paper import paper_options
from pipelines.workspace.address import imported_sweep
from pipelines.workspace.store import IMPORTED, Home
from pipelines.workspace.sweeps import find_sweep
from var_scaling.experiment import Sweep

if TYPE_CHECKING:
    from analysis.report.compare import Difference

app = typer.Typer()

FigureFormats = Annotated[
    str | None,
    typer.Option(
        "--formats",
        help="formats of the figures besides PNG, such as pdf,svg. Default: PNG, and those that "
        "the report's folder already has",
        show_default=False,
    ),
]


@app.command()
def fit(
    name: SweepOrTable,
    home: HomeFolder = RUNS,
    objective: ObjectiveName = "squares",
    columns: Columns = None,
    complete: Complete = None,
    out: OutFolder = None,
    formats: FigureFormats = None,
    where: Where = None,
    laws: OnlyLaws = None,
    fixed: Fixed = None,
    weights: Weights = None,
    predict: Predict = None,
    budgets: BudgetColumn = None,
    parabola_in: ParabolaIn = None,
    spline: Spline = False,
    unique: UniqueColumn = None,
    paper: PaperFolder = None,
    rows: PaperRows = None,
    paper_columns: PaperColumns = None,
    as_json: AsJson = False,
) -> None:
    """Fit the laws to a sweep or to a table of runs.

    Writes figures and a report. Of a sweep, the finished trials are used.
    """
    from pipelines.planning.external_table import is_table, refuse_table_options
    from pipelines.report.external_table import fit_table

    figure_formats = parse_formats(formats)
    options = FitOptions(
        where, tuple(laws or ()), tuple(fixed or ()), weights, predict, budgets, parabola_in,
        spline, unique,
    )  # fmt: skip
    options.parsed()  # errors before anything is read
    for_paper = paper_options(paper, rows, paper_columns)
    if not is_table(name):
        table_options = {"--column": columns, "--complete": complete, "--out": out}
        refuse_table_options(name, table_options)
        workspace = Home(home)
        sweep = resolve_sweep(name, workspace)
        publish_and_show(
            workspace, sweep, name, True, as_json, objective, figure_formats, options, for_paper
        )
        return
    with screen.progress_bar("laws") as progress:
        folder, content = fit_table(
            name, Home(home), objective, columns or [], complete, out, progress, figure_formats,
            options, for_paper,
        )  # fmt: skip
    if as_json:
        print(json.dumps(content))
        return
    show(content)
    print_paper(for_paper)
    console.print(f"report   {folder}", soft_wrap=True, highlight=False)


@app.command()
def report(
    name: Annotated[
        str | None,
        typer.Argument(
            help="name of a sweep, or path of a Python file with a variable `sweep`, such "
            "as ./mine.py",
            show_default=False,
        ),
    ] = None,
    home: HomeFolder = RUNS,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="compare with another sweep, or with a laws.json file. Default: no comparison",
        ),
    ] = None,
    site: Annotated[
        bool,
        typer.Option("--site", help="write one page over all sweeps of the home, with no NAME"),
    ] = False,
    objective: ObjectiveOfReport = None,
    formats: FigureFormats = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a sweep, or compare two sweeps.

    The laws are fitted with the options of the latest `fit` of the sweep. Prints the path of the
    report; with --against, the laws of both sweeps side by side.
    """
    from pipelines.report import compare as comparison
    from pipelines.report.fit_options import latest_fit
    from pipelines.report.publish import publish, report_path
    from pipelines.report.site import write_home_page
    from pipelines.results.table import collect_results

    workspace = Home(home)
    if site != (name is None) or (site and against is not None):
        raise ValueError("give the NAME of a sweep, or --site for all sweeps, without --against")
    if name is None:
        path = write_home_page(workspace)
        print(json.dumps({"site": str(path)}) if as_json else path)
        return
    sweep = resolve_sweep(name, workspace)
    if against is not None:
        comparison.refuse_unfinished(workspace, sweep)
    latest_objective, options = latest_fit(workspace.sweep(sweep.name))
    publish(
        workspace, sweep, collect_results(workspace, sweep), again=against is None,
        objective=objective or latest_objective, formats=parse_formats(formats), options=options,
    )  # fmt: skip
    if against is None:
        path = report_path(workspace, sweep)
        print(json.dumps({"report": str(path)}) if as_json else path)
        return
    path, difference = comparison.compare(workspace, sweep, comparison.laws_at(workspace, against))
    if as_json:
        print(json.dumps(difference.as_dict()))
    else:
        _show_difference(path, difference)


def _show_difference(path: Path, difference: "Difference") -> None:
    for line in difference.trial_settings:
        console.print(f"the trials differ in {line}", soft_wrap=True, highlight=False)
    console.print(difference_table(difference))
    console.print(f"report   {path}", soft_wrap=True, highlight=False)


@app.command()
def coverage(
    points: Annotated[
        list[int] | None,
        typer.Option(
            "--points",
            min=4,
            help="number of sizes; may be repeated. Default: 8, 12 and 20",
            show_default=False,
        ),
    ] = None,
    noise: Annotated[
        float, typer.Option(min=1e-6, help="standard deviation of log L between runs, such as 0.01")
    ] = 0.004,
    alpha: Annotated[
        float, typer.Option(min=1e-3, help="exponent α of the simulated law, such as 0.3")
    ] = 0.2,
    floor: Annotated[
        float, typer.Option(min=0, help="irreducible loss E of the simulated law, such as 1.5")
    ] = 1.5,
    objective: ObjectiveName = "squares",
    method: Annotated[
        Literal["profile", "bootstrap"], typer.Option(help="interval method")
    ] = "profile",
    simulations: Annotated[
        int, typer.Option(min=10, help="number of simulated sweeps for each row, such as 500")
    ] = 500,
    as_json: AsJson = False,
) -> None:
    """Simulate how often a 95 % interval contains the true value.

    The law is L = E + (β x)^-α. The sizes are those of models of depth 1, 2, ...; β is 2e-4;
    predictions are at 8 times the largest size.
    """
    from dataclasses import asdict

    from analysis.uncertainty.coverage import Coverage, coverage_of_depths

    rows: list[Coverage] = []
    with screen.progress_bar("simulations") as progress:
        for count in points or [8, 12, 20]:
            report_progress = partial(_report, progress, f"n = {count}", simulations)
            rows += coverage_of_depths(
                count, alpha, floor, noise, objective, method, simulations, report_progress
            )
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    table = screen.new_table(
        "n", "interval of", "covers", "± s.e.", "of", title=f"{objective}, {method}"
    )
    for row in rows:
        table.add_row(
            str(row.points), row.quantity, f"{row.covered:.1%}", f"{row.standard_error:.1%}",
            str(row.simulations),
        )  # fmt: skip
    console.print(table)


def parse_formats(text: str | None) -> tuple[str, ...]:
    """The formats in a list such as "pdf,svg". Raises ValueError for an unknown one."""
    formats = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    if unknown := [name for name in formats if name not in ("png", "pdf", "svg")]:
        raise ValueError(f"--formats {unknown[0]}: each format is one of png, pdf, svg")
    return formats


def _report(progress: Callable[[str, int, int], None], title: str, total: int, done: int) -> None:
    progress(title, done, total)


def resolve_sweep(name: str, workspace: Home) -> Sweep:
    """The sweep of this name or path. `imported`: all models imported into `workspace`."""
    return imported_sweep(workspace) if name == IMPORTED else find_sweep(name)
