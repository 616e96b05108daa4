"""Print forecasts, their outcomes, and plans of next runs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from pipelines.cli.terminal.console import format_number, new_table
from pipelines.cli.terminal.laws import number
from pipelines.planning.cost import Price
from var_scaling.text import counted

if TYPE_CHECKING:
    from analysis.forecasting.forecast import Outcome
    from analysis.forecasting.planner import Candidate, Step
    from pipelines.planning.forecasts import FrozenForecast
    from pipelines.planning.next_runs import NextRuns

# Whether the interval contains the measured value; None where it has no end.
_INSIDE = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("–")}

_NO_LAW = " follows no law: "  # in a caveat of a forecast, after the metric
_RANKED = 20  # runs of a ranking that the terminal shows


def frozen_as_json(frozen: "FrozenForecast") -> dict[str, Any]:
    return {
        "path": str(frozen.path),
        "sha256": frozen.sha256,
        "new": frozen.new,
        **asdict(frozen.forecast),
    }  # fmt: skip


def forecast_table(frozen: "FrozenForecast") -> Table:
    forecast = frozen.forecast
    target = forecast.target
    sizes = ", ".join(
        f"{name} {format_number(target.sizes[name])}" for name in forecast.variable.split(",")
    )
    rule = "the law that the data prefer or, if they prefer none, of the law with E"
    if "," in forecast.variable:
        rule = "the first of the laws"
    elif forecast.E is not None:
        rule = f"the law with E = {forecast.E:g}"
    table = new_table(
        "metric", "law", "predicted", "95 %", "", "based on",
        title=f"{target.sweep}/{target.trial}, {sizes}: {forecast.extrapolation:.3g} times the "
        "largest used",
        caption=f"* is the prediction to quote: of {rule}; none where the data contradict the law",
    )  # fmt: skip
    contradicted = {text.partition(_NO_LAW)[0] for text in forecast.caveats if _NO_LAW in text}
    for predicted in forecast.metrics:
        quoted = predicted.metric not in contradicted
        for law in predicted.predictions:
            table.add_row(
                predicted.metric, law.formula, number(law.predicted, ".4f"),
                _interval(law.low, law.high),
                "*" if quoted and law.law == predicted.headline else "", law.basis,
            )  # fmt: skip
    return table


def outcome_table(name: str, outcomes: "list[Outcome]") -> Table:
    table = new_table(
        "target", "frozen", "metric", "law", "predicted [95 %]", "measured", "error", "inside", "z",
        title=f"{name}: {counted(len(outcomes), 'forecast')}",
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


def ranking_table(advice: "NextRuns", at: str, metric: str, price: Price | None) -> Table:
    plan = advice.plan
    table = new_table(
        "run", "FLOPs", *_cost_columns(price), f"{metric} at {at} after it", "narrower",
        "a FLOP",
        title=f"{metric} at {at}: {number(plan.predicted, '.4f')} "
        f"{_interval(plan.low, plan.high)} now, "
        f"{advice.fit.law.formula} on {counted(advice.fit.points, 'run')}",
        caption="each run alone. narrower: decrease of the interval's width, relative to now; a "
        "FLOP: this decrease per FLOP, relative to the best run; in parentheses: above the "
        "budget.\nThis assumes that the law holds at the size of the run: a stronger assumption, "
        "the farther the run is from the target",
    )  # fmt: skip
    best = plan.ranking[0].narrowing_per_flop
    if len(plan.ranking) > _RANKED:
        table.title = f"{table.title}; the best {_RANKED} of {len(plan.ranking)} kinds of runs"
    for step in plan.ranking[:_RANKED]:
        run = step.candidate
        table.add_row(
            run.name if step.affordable else f"({run.name})", format_number(run.flops),
            *_cost([run], price), _interval(step.low, step.high),
            f"{step.narrowing:.1%}", f"{step.narrowing_per_flop / best:.2g}",
        )  # fmt: skip
    return table


def plan_table(advice: "NextRuns", budget: float, price: Price | None) -> Table:
    plan = advice.plan
    table = new_table(
        "run", "FLOPs", *_cost_columns(price), "interval after it", "narrower",
        title=f"for {format_number(budget)}FLOPs: {counted(len(plan.runs), 'run')}",
        caption=plan.method,
    )  # fmt: skip
    # Runs of a table that differ only in their seed have one name.
    of_name: dict[str, list[Step]] = {}
    for step in plan.runs:
        of_name.setdefault(step.candidate.name, []).append(step)
    for name, steps in of_name.items():
        runs = [step.candidate for step in steps]
        single = len(of_name) == len(plan.runs)
        table.add_row(
            name if len(runs) == 1 else f"{len(runs)} × {name}",
            format_number(sum(run.flops for run in runs)), *_cost(runs, price),
            _interval(steps[0].low, steps[0].high) if single else "",
            f"{sum(step.narrowing for step in steps):.1%}",
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
