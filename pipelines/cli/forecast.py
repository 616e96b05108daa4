"""The verbs that look ahead: predict a run, grade the prediction, plan the next runs."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from pipelines.cli.fit import sweep_of
from pipelines.cli.options import RUNS, AsJson, HomeFolder, SweepName
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.console import console, new_table, short
from pipelines.planning.cost import Price, price_on
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home

if TYPE_CHECKING:
    from analysis.forecasting.forecast import Outcome
    from pipelines.planning.forecasts import Frozen
    from pipelines.planning.next_runs import Advice

app = typer.Typer()

Variable = Annotated[
    Literal["params_blocks", "params_total", "train_flops"],
    typer.Option(help="variable of the law"),
]
_METRICS = Literal["val_loss", "val_loss_last", "val_error", "val_error_last"]


@app.command()
def forecast(
    name: SweepName,
    at: Annotated[
        list[str],
        typer.Option(help="trial to predict: TRIAL or OTHER_SWEEP/TRIAL; may be repeated"),
    ],
    variable: Variable = "params_blocks",
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Predict runs that are still to come: freeze law and interval in a file, for `score`."""
    from pipelines.planning import forecasts

    found = forecasts.make_forecasts(Home(home), sweep_of(name, Home(home)), at, variable)
    if as_json:
        print(json.dumps([_frozen_as_json(one) for one in found]))
        return
    for one in found:
        console.print(_forecast_table(one))
        for caveat in one.forecast.caveats:
            screen.warn(f"caveat: {caveat}")
        said = "frozen in" if one.new else "nothing new: the same was frozen before, in"
        screen.say(f"{said} {one.path}\nSHA-256 {one.sha256}")


@app.command()
def score(name: SweepName, home: HomeFolder = RUNS, as_json: AsJson = False) -> None:
    """Grade every forecast of a sweep whose run has ended."""
    from pipelines.planning import forecasts

    outcomes = forecasts.score_all(Home(home), sweep_of(name, Home(home)))
    if as_json:
        print(json.dumps(forecasts.outcomes_as_json(outcomes)))
    else:
        console.print(_outcome_table(name, outcomes))
    broken = [one for one in outcomes if one.state in ("tampered", "missing")]
    for one in broken:
        screen.say_error(f"{one.file} is {one.state}: {one.said}")
    if broken:
        raise typer.Exit(1)


@app.command(name="next")
def next_runs(
    name: SweepName,
    at: Annotated[
        str, typer.Option(help="trial whose loss is to be predicted: TRIAL or OTHER_SWEEP/TRIAL")
    ],
    budget: Annotated[float, typer.Option(min=1, help="total FLOPs of the new runs, such as 1e18")],
    metric: Annotated[_METRICS, typer.Option(help="quantity to predict")] = "val_loss",
    variable: Variable = "params_blocks",
    law: Annotated[
        str | None,
        typer.Option(
            help="form of the law: pure, floor (with irreducible loss E) or surface. "
            "Default: chosen by the data"
        ),
    ] = None,
    depths: Annotated[
        str | None,
        typer.Option(help="depths to choose from, such as 1-8,10. Default: those of the sweep"),
    ] = None,
    lengths: Annotated[
        str,
        typer.Option(
            help="training lengths to choose from, relative to the sweep's trials, such as 0.5,1,2"
        ),
    ] = "1",
    seeds: Annotated[int, typer.Option(min=1, help="maximum number of seeds of one size")] = 3,
    on: Annotated[
        str | None,
        typer.Option("--on", help="cluster of var-scaling.toml, for GPU-hours and price"),
    ] = None,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Which runs next: those that narrow the interval at a target most for their FLOPs."""
    from pipelines.planning import next_runs as planning

    wishes = planning.PlanOptions(
        at=at, budget=budget, metric=metric, variable=variable, law=law,
        depths=planning.whole_numbers(depths) if depths else None,
        lengths=planning.numbers(lengths), seeds=seeds,
    )  # fmt: skip
    price = price_on(load_settings().cluster(on)) if on else None
    advice = planning.advise(Home(home), sweep_of(name, Home(home)), wishes, price)
    if as_json:
        print(json.dumps(planning.as_json(advice)))
        return
    console.print(_ranking_table(advice, at, metric, price))
    console.print(_plan_table(advice, budget, price))
    for note in advice.notes:
        screen.warn(f"note: {note}")


def _frozen_as_json(one: "Frozen") -> dict[str, Any]:
    return {
        "path": str(one.path), "sha256": one.sha256, "new": one.new, **asdict(one.forecast)
    }  # fmt: skip


def _forecast_table(one: "Frozen") -> Table:
    forecast = one.forecast
    target = forecast.target
    table = new_table(
        "metric", "law", "predicted", "95 %", "", "rests on",
        title=f"{target.sweep}/{target.trial}, {forecast.variable} "
        f"{short(target.sizes[forecast.variable])}: {forecast.extrapolation:.3g} times the largest "
        "used",
        caption="* is quoted: the law that the data prefer or, where they cannot tell, the floor",
    )  # fmt: skip
    for predicted in forecast.metrics:
        for law in predicted.predictions:
            table.add_row(
                predicted.metric, law.formula, f"{law.predicted:.4f}", _span(law.low, law.high),
                "*" if law.law == predicted.headline else "", law.basis,
            )  # fmt: skip
    return table


def _outcome_table(name: str, outcomes: "list[Outcome]") -> Table:
    table = new_table(
        "target", "frozen", "metric", "law", "predicted [95 %]", "measured", "error", "inside", "z",
        title=f"{name}: {len(outcomes)} forecasts",
        caption="the quoted law of each metric; the other is in outcomes.json. error: predicted "
        "over measured, less 1; z: ±1.96 at the ends of the interval",
    )  # fmt: skip
    for one in outcomes:
        if one.forecast is None:
            table.add_row(one.file, "", one.state)
            continue
        target = f"{one.forecast.target.sweep}/{one.forecast.target.trial}"
        if one.state != "graded":
            table.add_row(target, one.forecast.time, one.state, one.said)
        for grade in one.grades:
            if grade.headline:
                table.add_row(
                    target, one.forecast.time, grade.metric, grade.law,
                    f"{grade.predicted:.4f} {_span(grade.low, grade.high)}",
                    f"{grade.measured:.4f}", f"{grade.error:+.2%}",
                    Text("yes", "green") if grade.covered else Text("no", "red"),
                    "" if grade.z is None else f"{grade.z:+.1f}",
                )  # fmt: skip
    return table


def _ranking_table(advice: "Advice", at: str, metric: str, price: Price | None) -> Table:
    plan = advice.plan
    table = new_table(
        "run", "FLOPs", *_cost_columns(price), f"{metric} at {at} after it", "narrower",
        "a FLOP",
        title=f"{metric} at {at}: {plan.predicted:.4f} {_span(plan.low, plan.high)} now, "
        f"{advice.fit.law.formula} on {advice.fit.points} runs",
        caption="each alone; narrower: of the width now; a FLOP: the same for its price, the best "
        "being 1; (above the budget).\nAll this if the law holds where the run is: the farther "
        "from the target, the more is assumed",
    )  # fmt: skip
    best = plan.ranking[0].narrowing_per_flop
    for one in plan.ranking:
        run = one.candidate
        table.add_row(
            run.name if one.affordable else f"({run.name})", short(run.flops),
            *_cost(run.flops, price), _span(one.low, one.high), f"{one.narrowing:.1%}",
            f"{one.narrowing_per_flop / best:.2g}",
        )  # fmt: skip
    return table


def _plan_table(advice: "Advice", budget: float, price: Price | None) -> Table:
    plan = advice.plan
    table = new_table(
        "run", "FLOPs", *_cost_columns(price), "interval after it", "narrower",
        title=f"for {short(budget)}FLOPs: {len(plan.runs)} runs", caption=plan.method,
    )  # fmt: skip
    for one in plan.runs:
        run = one.candidate
        table.add_row(
            run.name, short(run.flops), *_cost(run.flops, price), _span(one.low, one.high),
            f"{one.narrowing:.1%}",
        )  # fmt: skip
    table.add_section()
    last = plan.runs[-1]
    table.add_row(
        "all", short(plan.flops), *_cost(plan.flops, price), _span(last.low, last.high),
        f"{1 - plan.planned / plan.half_width:.1%}",
    )  # fmt: skip
    return table


def _cost_columns(price: Price | None) -> list[str]:
    if price is None:
        return []
    return ["GPU-hours", *(["price"] if price.per_gpu_hour is not None else [])]


def _cost(flops: float, price: Price | None) -> list[str]:
    if price is None:
        return []
    money = price.money(flops)
    return [f"{price.hours(flops):.3g}", *([] if money is None else [f"{money:.3g}"])]


def _span(low: float | None, high: float | None) -> str:
    """An interval as people write it."""
    ends = ["–" if end is None else f"{end:.4f}" for end in (low, high)]
    return f"[{ends[0]}, {ends[1]}]"
