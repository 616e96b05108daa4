"""The verbs that learn from finished runs: fit, report, coverage."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import RUNS, AsJson, HomeFolder
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.console import console
from pipelines.cli.terminal.laws import difference_table
from pipelines.cli.terminal.publish import publish_and_show, show
from pipelines.workspace.address import imported_sweep
from pipelines.workspace.store import IMPORTED, Home
from pipelines.workspace.sweeps import find_sweep
from var_scaling.experiment import Sweep

app = typer.Typer()

Something = Annotated[
    str,
    typer.Argument(help="a sweep, or a table of runs: .csv, .tsv, .parquet, mlflow:EXPERIMENT"),
]
TheObjective = Annotated[
    str, typer.Option("--objective", help="loss of the log residuals: squares, huber or absolute")
]


@app.command()
def fit(
    name: Something,
    home: HomeFolder = RUNS,
    objective: TheObjective = "squares",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            help="rename a column of the table, such as 'Model Size=params_total'; may be repeated",
        ),
    ] = None,
    complete: Annotated[
        str | None,
        typer.Option("--complete", help="column to compute by C = 6 N D, such as train_flops"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for the report of a table")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the laws again to whatever has finished, draw and report them; or fit anyone's table."""
    from pipelines.report import external_table as tables

    if not tables.is_table(name):
        theirs = {"--column": columns, "--complete": complete, "--out": out}
        if said := [option for option, value in theirs.items() if value]:
            raise ValueError(f"{', '.join(said)}: of a table; {name} is no .csv, .tsv or .parquet")
        at = Home(home)
        publish_and_show(at, sweep_of(name, at), name, True, as_json, objective)
        return
    with screen.steps("laws") as progress:
        where, laws = tables.fit_table(
            name, Home(home), objective, columns or [], complete, out, progress
        )
    if as_json:
        print(json.dumps(laws))
        return
    show(laws)
    console.print(f"report   {where}", soft_wrap=True, highlight=False)


@app.command()
def report(
    name: Annotated[
        str,
        typer.Argument(
            help="name of a sweep, or path of a Python file with a variable `sweep`, such "
            "as ./mine.py"
        ),
    ],
    home: HomeFolder = RUNS,
    against: Annotated[
        str | None, typer.Option("--against", help="compare with another sweep or a laws.json")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report and say where it is; or what differs between this one and another."""
    from pipelines.report import compare as comparison
    from pipelines.report.publish import publish, report_path
    from pipelines.results.table import collect_results

    at = Home(home)
    sweep = sweep_of(name, at)
    publish(at, sweep, collect_results(at, sweep), again=against is None)
    if against is None:
        path = report_path(at, sweep)
        print(json.dumps({"report": str(path)}) if as_json else path)
        return
    path, found = comparison.compare(at, sweep, comparison.laws_at(at, against))
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        console.print(difference_table(found))
        console.print(f"report   {path}", soft_wrap=True, highlight=False)


@app.command()
def coverage(
    points: Annotated[list[int] | None, typer.Option("--points", min=4)] = None,
    noise: Annotated[
        float, typer.Option(min=1e-6, help="standard deviation of log L between runs")
    ] = 0.004,
    alpha: Annotated[float, typer.Option(min=1e-3)] = 0.2,
    floor: Annotated[
        float, typer.Option(min=0, help="irreducible loss E of the simulated law")
    ] = 1.5,
    objective: TheObjective = "squares",
    method: Annotated[str, typer.Option(help="interval method: profile or bootstrap")] = "profile",
    simulations: Annotated[int, typer.Option(min=10)] = 500,
    as_json: AsJson = False,
) -> None:
    """Simulate how often a 95 % interval holds the truth, for L = E + (β x)^-α at this many sizes.

    Sizes are those of depths 1, 2, ...; β is 2e-4; predictions are at 8 times the largest.
    """
    from dataclasses import asdict

    from analysis.uncertainty.coverage import Coverage, coverage_of_depths

    rows: list[Coverage] = []
    with screen.steps("simulations") as progress:
        for count in points or [8, 12, 20]:
            said = partial(_say, progress, f"n = {count}", simulations)
            rows += coverage_of_depths(
                count, alpha, floor, noise, objective, method, simulations, said
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


def _say(progress: Callable[[str, int, int], None], what: str, total: int, done: int) -> None:
    progress(what, done, total)


def sweep_of(name: str, at: Home) -> Sweep:
    """The sweep of that name or path; `imported` is made of what was imported into the home."""
    return imported_sweep(at) if name == IMPORTED else find_sweep(name)
