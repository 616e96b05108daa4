"""The commands for predictions: forecast a run, score the forecast, plan the next runs."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from pipelines.cli.fit import resolve_sweep
from pipelines.cli.options import RUNS, AsJson, HomeFolder, SweepName
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.console import console, format_number, new_table
from pipelines.cli.terminal.laws import number
from pipelines.execution.speeds.throughput import cluster_throughput
from pipelines.planning.cost import Price, price_on
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home

if TYPE_CHECKING:
    from analysis.forecasting.forecast import Outcome
    from analysis.forecasting.planner import Candidate
    from pipelines.planning.forecasts import FrozenForecast
    from pipelines.planning.next_runs import NextRuns

app = typer.Typer()

# Whether the interval contains the measured value; None where it has no end.
_INSIDE = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("–")}

Variable = Annotated[
    Literal["params_blocks", "params_total", "train_flops"],
    typer.Option(
        help="variable of the law: parameters without or with embeddings, or training FLOPs"
    ),
]
_METRICS = Literal["val_loss", "val_loss_last", "val_error", "val_error_last"]


@app.command()
def forecast(
    name: SweepName,
    at: Annotated[
        list[str],
        typer.Option(
            help="trial to predict: TRIAL or OTHER_SWEEP/TRIAL, such as d16; may be repeated"
        ),
    ],
    variable: Variable = "params_blocks",
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Predict the loss of future runs before they are run.

    Law and interval are written to a file, with which `score` compares the measured loss.
    """
    from pipelines.planning import forecasts

    results = forecasts.make_forecasts(Home(home), resolve_sweep(name, Home(home)), at, variable)
    if as_json:
        print(json.dumps([_frozen_as_json(frozen) for frozen in results]))
        return
    for frozen in results:
        console.print(_forecast_table(frozen))
        for caveat in frozen.forecast.caveats:
            screen.warn(f"caveat: {caveat}")
        action = "written to" if frozen.new else "unchanged: the same forecast is already in"
        screen.print_line(f"{action} {frozen.path}\nSHA-256 {frozen.sha256}")


@app.command()
def score(name: SweepName, home: HomeFolder = RUNS, as_json: AsJson = False) -> None:
    """Compare the forecasts of a sweep with the measured losses.

    A forecast of a run that has not ended is listed as waiting.
    """
    from pipelines.planning import forecasts

    outcomes = forecasts.score_all(Home(home), resolve_sweep(name, Home(home)))
    if as_json:
        print(json.dumps(forecasts.outcomes_as_json(outcomes)))
    else:
        console.print(_outcome_table(name, outcomes))
    invalid = [outcome for outcome in outcomes if outcome.state in ("tampered", "missing")]
    for outcome in invalid:
        screen.print_error(f"{outcome.file} is {outcome.state}: {outcome.reason}")
    if invalid:
        raise typer.Exit(1)


Lengths = Annotated[
    str,
    typer.Option(
        help="training lengths to choose from, relative to the sweep's trials, such as 0.5,1,2"
    ),
]
MostSeeds = Annotated[
    int,
    typer.Option(min=1, help="maximum number of runs of one size with different seeds, such as 5"),
]


@app.command(name="next")
def next_runs(
    name: SweepName,
    at: Annotated[
        str,
        typer.Option(help="trial whose loss is predicted: TRIAL or OTHER_SWEEP/TRIAL, such as d30"),
    ],
    budget: Annotated[float, typer.Option(min=1, help="total FLOPs of the new runs, such as 1e18")],
    metric: Annotated[_METRICS, typer.Option(help="quantity to predict")] = "val_loss",
    variable: Variable = "params_blocks",
    law: Annotated[
        str | None,
        typer.Option(
            help="form of the law: pure, floor (with irreducible loss E) or surface. "
            "Default: selected by the data"
        ),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(help="depths to choose from, such as 1-8,10. Default: those of the sweep"),
    ] = None,
    lengths: Lengths = "1",
    seeds: MostSeeds = 3,
    on: Annotated[
        str | None,
        typer.Option(
            "--on", help="cluster of var-scaling.toml, such as h100, for GPU-hours and price"
        ),
    ] = None,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Plan the runs that narrow the interval at a target most."""
    from pipelines.planning import next_runs as planning

    plan_options = planning.PlanOptions(
        at=at, budget=budget, metric=metric, variable=variable, law=law,
        depths=planning.parse_integers(depths) if depths else None,
        lengths=planning.parse_numbers(lengths), seeds=seeds,
    )  # fmt: skip
    workspace, price = Home(home), None
    if on:
        cluster = load_settings().cluster(on)
        price = price_on(cluster, cluster_throughput(workspace, on, cluster))
    advice = planning.plan_next_runs(workspace, resolve_sweep(name, workspace), plan_options, price)
    if as_json:
        print(json.dumps(planning.as_json(advice)))
        return
    console.print(_ranking_table(advice, at, metric, price))
    console.print(_plan_table(advice, budget, price))
    for note in advice.notes:
        screen.warn(f"note: {note}")


def _frozen_as_json(frozen: "FrozenForecast") -> dict[str, Any]:
    return {
        "path": str(frozen.path),
        "sha256": frozen.sha256,
        "new": frozen.new,
        **asdict(frozen.forecast),
    }  # fmt: skip


def _forecast_table(frozen: "FrozenForecast") -> Table:
    forecast = frozen.forecast
    target = forecast.target
    table = new_table(
        "metric", "law", "predicted", "95 %", "", "based on",
        title=f"{target.sweep}/{target.trial}, {forecast.variable} "
        f"{format_number(target.sizes[forecast.variable])}: {forecast.extrapolation:.3g} times "
        "the largest used",
        caption="* is the prediction to quote: of the law that the data prefer or, if they prefer "
        "none, of the law with E",
    )  # fmt: skip
    for predicted in forecast.metrics:
        for law in predicted.predictions:
            table.add_row(
                predicted.metric, law.formula, number(law.predicted, ".4f"),
                _interval(law.low, law.high),
                "*" if law.law == predicted.headline else "", law.basis,
            )  # fmt: skip
    return table


def _outcome_table(name: str, outcomes: "list[Outcome]") -> Table:
    table = new_table(
        "target", "frozen", "metric", "law", "predicted [95 %]", "measured", "error", "inside", "z",
        title=f"{name}: {len(outcomes)} forecasts",
        caption="the law marked * of each metric; the other law is in outcomes.json. error: "
        "predicted / measured - 1; z: ±1.96 at the ends of the interval",
    )  # fmt: skip
    for outcome in outcomes:
        forecast = outcome.forecast
        if forecast is None:
            table.add_row(outcome.file, "", outcome.state)
            continue
        target = f"{forecast.target.sweep}/{forecast.target.trial}"
        if outcome.state != "graded":
            table.add_row(target, forecast.time, outcome.state, outcome.reason)
        for grade in outcome.grades:
            if grade.headline:
                table.add_row(
                    target, forecast.time, grade.metric, grade.law,
                    f"{number(grade.predicted, '.4f')} {_interval(grade.low, grade.high)}",
                    number(grade.measured, ".4f"), number(grade.error, "+.2%"),
                    _INSIDE[grade.covered],
                    "" if grade.z is None else f"{grade.z:+.1f}",
                )  # fmt: skip
    return table


def _ranking_table(advice: "NextRuns", at: str, metric: str, price: Price | None) -> Table:
    plan = advice.plan
    table = new_table(
        "run", "FLOPs", *_cost_columns(price), f"{metric} at {at} after it", "narrower",
        "a FLOP",
        title=f"{metric} at {at}: {number(plan.predicted, '.4f')} "
        f"{_interval(plan.low, plan.high)} now, "
        f"{advice.fit.law.formula} on {advice.fit.points} runs",
        caption="each run alone. narrower: decrease of the interval's width, relative to now; a "
        "FLOP: this decrease per FLOP, relative to the best run; in parentheses: above the "
        "budget.\nThis assumes that the law holds at the size of the run: a stronger assumption, "
        "the farther the run is from the target",
    )  # fmt: skip
    best = plan.ranking[0].narrowing_per_flop
    for step in plan.ranking:
        run = step.candidate
        table.add_row(
            run.name if step.affordable else f"({run.name})", format_number(run.flops),
            *_cost([run], price), _interval(step.low, step.high),
            f"{step.narrowing:.1%}", f"{step.narrowing_per_flop / best:.2g}",
        )  # fmt: skip
    return table


def _plan_table(advice: "NextRuns", budget: float, price: Price | None) -> Table:
    plan = advice.plan
    table = new_table(
        "run", "FLOPs", *_cost_columns(price), "interval after it", "narrower",
        title=f"for {format_number(budget)}FLOPs: {len(plan.runs)} runs", caption=plan.method,
    )  # fmt: skip
    for step in plan.runs:
        run = step.candidate
        table.add_row(
            run.name, format_number(run.flops), *_cost([run], price),
            _interval(step.low, step.high),
            f"{step.narrowing:.1%}",
        )  # fmt: skip
    table.add_section()
    last = plan.runs[-1]
    table.add_row(
        "all", format_number(plan.flops), *_cost([step.candidate for step in plan.runs], price),
        _interval(last.low, last.high),
        f"{1 - plan.planned / plan.half_width:.1%}",
    )  # fmt: skip
    return table


def _cost_columns(price: Price | None) -> list[str]:
    if price is None:
        return []
    return ["GPU-hours", *(["price"] if price.per_gpu_hour is not None else [])]


def _cost(runs: "list[Candidate]", price: Price | None) -> list[str]:
    """GPU-hours and price of `runs` together, as cells of a table."""
    if price is None:
        return []
    hours = sum(run.hours or 0.0 for run in runs)
    money = price.money(hours)
    return [f"{hours:.3g}", *([] if money is None else [f"{money:.3g}"])]


def _interval(low: float | None, high: float | None) -> str:
    """The interval as text; – for an end that does not exist."""
    return f"[{number(low, '.4f')}, {number(high, '.4f')}]"
