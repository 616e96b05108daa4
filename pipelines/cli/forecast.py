"""The commands for predictions: forecast a run, score the forecast, plan the next runs."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.fit import resolve_sweep
from pipelines.cli.options import (
    RUNS,
    AsJson,
    Columns,
    Complete,
    Fixed,
    HomeFolder,
    ObjectiveName,
    OnlyLaws,
    OutFolder,
    SweepOrTable,
    Where,
)
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.console import console
from pipelines.cli.terminal.forecasts import (
    forecast_table,
    frozen_as_json,
    outcome_table,
    plan_table,
    ranking_table,
)
from pipelines.execution.speeds.throughput import cluster_throughput
from pipelines.planning.cost import price_on
from pipelines.planning.external_table import TableSource, is_table, refuse_table_options
from pipelines.report.fit_options import fixed_E
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home

app = typer.Typer()

Variable = Annotated[
    Literal["params_blocks", "params_total", "train_flops"] | None,
    typer.Option(
        help="variable of the law of a sweep: parameters without or with embeddings, or training "
        "FLOPs. Default: params_blocks",
        show_default=False,
    ),
]
_AT_HELP = "TRIAL or OTHER_SWEEP/TRIAL, such as d16; of a table N, N and D, or C of a run that it "
RunWeights = Annotated[
    str | None,
    typer.Option("--weights", help="column with the weight of each run in the laws"),
]
_METRICS = Literal["val_loss", "val_loss_last", "val_error", "val_error_last"]


@app.command()
def forecast(
    name: SweepOrTable,
    at: Annotated[
        list[str],
        typer.Option(
            help="run to predict: "
            + _AT_HELP
            + "does not have yet, such as N=1e10,D=2e11; may be repeated"
        ),
    ],
    variable: Variable = None,
    home: HomeFolder = RUNS,
    objective: ObjectiveName = "squares",
    laws: OnlyLaws = None,
    fixed: Fixed = None,
    weights: RunWeights = None,
    columns: Columns = None,
    complete: Complete = None,
    where: Where = None,
    out: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Predict the loss of future runs before they are run.

    Law and interval are written to a file, with which `score` compares the measured loss.
    """
    from analysis.forecasting.prediction import LawMethod
    from pipelines.planning import forecasts, table_forecasts

    source = _source(name, columns, complete, where, out)
    E = fixed_E(fixed or (), laws or ())
    method = LawMethod(tuple(laws or ()), objective, E, weights)
    if source is None:
        results = forecasts.make_forecasts(
            Home(home), resolve_sweep(name, Home(home)), at, variable or "params_blocks",
            method=method,
        )  # fmt: skip
    else:
        _refuse_sweep_options({"--variable": variable})
        results = table_forecasts.make_table_forecasts(source, Home(home), at, method)
    if as_json:
        print(json.dumps([frozen_as_json(frozen) for frozen in results]))
        return
    for frozen in results:
        console.print(forecast_table(frozen))
        for caveat in frozen.forecast.caveats:
            screen.warn(f"caveat: {caveat}")
        action = "written to" if frozen.new else "unchanged: the same forecast is already in"
        screen.print_line(f"{action} {frozen.path}\nSHA-256 {frozen.sha256}")


@app.command()
def score(
    name: SweepOrTable,
    home: HomeFolder = RUNS,
    columns: Columns = None,
    complete: Complete = None,
    where: Where = None,
    out: OutFolder = None,
    as_json: AsJson = False,
) -> None:
    """Compare forecasts with the losses measured later.

    A forecast of a run that has not ended is listed as waiting. The table is read with the options
    of its forecasts, unless others are given.
    """
    from pipelines.planning import forecasts, table_forecasts

    source = _source(name, columns, complete, where, out)
    if source is None:
        outcomes = forecasts.score_all(Home(home), resolve_sweep(name, Home(home)))
    else:
        outcomes = table_forecasts.score_table(source, Home(home))
    if as_json:
        print(json.dumps(forecasts.outcomes_as_json(outcomes)))
    else:
        console.print(outcome_table(name, outcomes))
    invalid = [outcome for outcome in outcomes if outcome.state in ("tampered", "missing")]
    for outcome in invalid:
        screen.print_error(f"{outcome.file} is {outcome.state}: {outcome.reason}")
    if invalid:
        raise typer.Exit(1)


Lengths = Annotated[
    str,
    typer.Option(
        help="training lengths to choose from, relative to the sweep's trials or to D of the "
        "table's runs, such as 0.5,1,2"
    ),
]
MostSeeds = Annotated[
    int,
    typer.Option(min=1, help="maximum number of runs of one size with different seeds, such as 5"),
]


FormOfLaw = Annotated[
    str | None,
    typer.Option(
        help="form of the law: pure, floor (with irreducible loss E) or surface. "
        "Default: selected by the data"
    ),
]
Depths = Annotated[
    str | None,
    typer.Option(help="depths to choose from, such as 1-8,10. Default: those of the sweep"),
]
Candidates = Annotated[
    list[str] | None,
    typer.Option(
        "--candidate",
        help="point of a table to choose from, such as N=3e9,D=6e10; may be repeated. Default: "
        "points of its runs",
    ),
]
PricedOn = Annotated[
    str | None,
    typer.Option("--on", help="cluster of var-scaling.toml, such as h100, for GPU-hours and price"),
]


@app.command(name="next")
def next_runs(
    name: SweepOrTable,
    at: Annotated[
        str,
        typer.Option(help="run whose loss is predicted: " + _AT_HELP + "may lack, such as N=1e10"),
    ],
    budget: Annotated[float, typer.Option(min=1, help="total FLOPs of the new runs, such as 1e18")],
    metric: Annotated[_METRICS, typer.Option(help="quantity to predict")] = "val_loss",
    variable: Variable = None,
    law: FormOfLaw = None,
    depths: Depths = None,
    candidates: Candidates = None,
    lengths: Lengths = "1",
    seeds: MostSeeds = 3,
    on: PricedOn = None,
    home: HomeFolder = RUNS,
    columns: Columns = None,
    complete: Complete = None,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Plan the runs that narrow the interval at a target most."""
    from pipelines.planning import next_runs as planning
    from pipelines.planning.table_next import TablePlanOptions, next_runs_of_table

    workspace, price = Home(home), None
    factors = planning.parse_numbers(lengths)
    source = _source(name, columns, complete, where, None)
    if source is not None:
        _refuse_sweep_options({"--variable": variable, "--depths": depths, "--on": on})
        of_table = TablePlanOptions(
            at, budget, metric, law, tuple(candidates or ()), factors, seeds
        )  # fmt: skip
        advice = next_runs_of_table(source, workspace, of_table)
    else:
        refuse_table_options(name, {"--candidate": candidates})
        plan_options = planning.PlanOptions(
            at=at, budget=budget, metric=metric, variable=variable or "params_blocks", law=law,
            depths=planning.parse_integers(depths) if depths else None,
            lengths=factors, seeds=seeds,
        )  # fmt: skip
        if on:
            cluster = load_settings().cluster(on)
            price = price_on(cluster, cluster_throughput(workspace, on, cluster))
        advice = planning.plan_next_runs(
            workspace, resolve_sweep(name, workspace), plan_options, price
        )
    if as_json:
        print(json.dumps(planning.as_json(advice)))
        return
    console.print(ranking_table(advice, at, metric, price))
    console.print(plan_table(advice, budget, price))
    for note in advice.notes:
        screen.warn(f"note: {note}")


def _source(
    name: str, columns: list[str] | None, complete: str | None, where: str | None, out: Path | None
) -> TableSource | None:
    """The table `name` with its options; None for a sweep, which has none of them."""
    if is_table(name):
        return TableSource(name, tuple(columns or ()), complete, where, out)
    given = {"--column": columns, "--complete": complete, "--where": where, "--out": out}
    refuse_table_options(name, given)
    return None


def _refuse_sweep_options(options: dict[str, str | None]) -> None:
    """Raise ValueError if one of these options, by name, is given for a table."""
    if given := [option for option, value in options.items() if value is not None]:
        raise ValueError(
            f"{', '.join(given)}: only for a sweep; --at names the variables of a table, and "
            "--candidate its points"
        )
