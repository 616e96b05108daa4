"""Forecasts of runs that a table does not have yet, graded when it has them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.forecasting.forecast import Forecast, ForecastError, Outcome, Target, freeze, score
from analysis.forecasting.prediction import LAWS_IN_ONE, LAWS_IN_TWO, LawMethod
from analysis.forecasting.seal import read_with_checksum
from pipelines.planning.external_table import TableSource, one_group, size_column
from pipelines.planning.forecasts import (
    METRICS,
    FrozenForecast,
    grade_folder,
    runs_of,
    save_outcomes,
    utc,
    write_forecasts,
)
from pipelines.planning.named_numbers import point_of_text
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import Home
from var_scaling.disk import read_json

if TYPE_CHECKING:
    from analysis.table.table import Table

_SAME = 0.01  # relative: sizes that differ by less count as equal
_SYMBOLS = {"params_blocks": "N", "params_total": "N", "tokens_seen": "D", "train_flops": "C"}
_NO_TIMES = "a table has no times: that the run did not exist yet is only known from the table"


def forecasts_of_table(source: TableSource) -> Path:
    return source.folder / "forecasts"


def make_table_forecasts(
    source: TableSource, home: Home, at: Sequence[str], method: LawMethod, now: float | None = None
) -> list[FrozenForecast]:
    """Predict a new run at each point in `at`, such as "N=1e10,D=2e11", and write the forecasts.

    Writes all of them or none. `now`: seconds since 1970. Raises ValueError for a point that is not
    beyond the runs, and where the law does not fit its variables.
    """
    now = time.time() if now is None else now
    every = source.load_all(home)
    table = one_group(source.chosen(every))
    forecasts = [_forecast(source, table, every, text, method, now) for text in dict.fromkeys(at)]
    return write_forecasts(forecasts_of_table(source), forecasts, now)


def point_columns(option: str, text: str, size: str) -> dict[str, float]:
    """The column and value of each variable in `text`: N alone, N and D, or C alone.

    `size` is the column of N. Raises ValueError, which names `option`.
    """
    names = {"N": size, "N_total": "params_total", "D": "tokens_seen", "C": "train_flops"}
    given = point_of_text(option, text)
    columns = {names[name]: value for name, value in given.items()}
    kind = {_SYMBOLS[column] for column in columns}
    if len(columns) != len(given) or len(columns) != len(kind) or kind not in (
        {"N"}, {"N", "D"}, {"C"}
    ):  # fmt: skip
        raise ValueError(f"{option} {text}: give N, or N and D, or C, such as N=1e10,D=2e11")
    # N before D, as in the laws.
    return dict(sorted(columns.items(), key=lambda item: _SYMBOLS[item[0]] == "D"))


def point_name(point: dict[str, float]) -> str:
    """The point as a name, such as N=1e10,D=2e11."""
    return ",".join(f"{_SYMBOLS[column]}={_short(value)}" for column, value in point.items())


def _short(value: float) -> str:
    """Five digits, such as 1e10."""
    mantissa, e, exponent = f"{value:.5g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def _forecast(
    source: TableSource, table: "Table", every: "Table", text: str, method: LawMethod, now: float
) -> Forecast:
    from analysis.table.runs import run_names

    point = point_columns("--at", text, size_column(table))
    _refuse_laws(text, point, method)
    _refuse_known(source, every, text, point)
    finals = table.finals
    refuse_mixed(finals, text, point)
    runs = runs_of(finals, list(run_names(finals)), method)
    record = {**source.record, "--law": list(method.laws)}
    made = freeze(
        Target(source.title, point_name(point), point, record), runs, ",".join(point),
        sweep=source.title, time=utc(now), commit=code_version(), data=table.fingerprint,
        caveats=(_NO_TIMES,), method=method,
    )  # fmt: skip
    # The range of the runs that are fitted, which `freeze` selects.
    _refuse_inside(made, text, point)
    return made


def _refuse_laws(text: str, point: dict[str, float], method: LawMethod) -> None:
    if len(point) > 1:
        method.refuse_others(LAWS_IN_TWO, f"with --at {text}, a law in N and D")
        return
    if others := [name for name in method.laws if name in LAWS_IN_TWO]:
        raise ValueError(
            f"--law {others[0]} with --at {text}: this law needs N and D, such as N=1e10,D=2e11"
        )
    method.refuse_others(LAWS_IN_ONE, f"with --at {text}, a law in one variable")


def _refuse_known(source: TableSource, every: "Table", text: str, point: dict[str, float]) -> None:
    """Raise ValueError if the table has the run, also in rows that --where leaves out."""
    there = _rows_at(every.finals, point)
    if len(there):
        raise ValueError(
            f"--at {text}: {source.title} has this run already, {there.trial.iloc[0]}: its loss is "
            "known, so there is nothing to predict"
        )


def refuse_mixed(finals: Any, text: str, point: dict[str, float]) -> None:
    """Raise ValueError if `point` is one of N alone and the runs differ in D."""
    from analysis.compute_optimal.surface import mixed_data

    (column, *others) = point
    if others or column == "train_flops":
        return
    mixed = mixed_data(finals.dropna(subset=[column]), column)
    if mixed is not None:
        raise ValueError(
            f"--at {text}: {mixed}, so no law in N alone describes them; give D, too, such as "
            f"{text},D=2e11"
        )


def _refuse_inside(made: Forecast, text: str, point: dict[str, float]) -> None:
    """Raise ValueError if every variable of `point` is within the range of the fitted runs."""
    ranges = []
    for column, value in point.items():
        sizes = [run.sizes[column] for run in made.runs]
        low, high = min(sizes), max(sizes)
        if not low / (1 + _SAME) <= value <= high * (1 + _SAME):
            return
        ranges.append(f"{_SYMBOLS[column]} from {low:.4g} to {high:.4g}")
    raise ValueError(
        f"--at {text}: inside the runs, which have {' and '.join(ranges)}; a forecast is of a run "
        "beyond them. `var-scaling fit --predict` gives the loss inside"
    )


def _rows_at(rows: Any, point: dict[str, float]) -> Any:
    """The rows whose sizes are those of `point`."""
    near = np.ones(len(rows), dtype=bool)
    for column, value in point.items():
        sizes = rows[column].to_numpy(dtype=float)
        near &= np.abs(sizes / value - 1) <= _SAME  # False for NaN
    return rows[near]


# Outcomes -----------------------------------------------------------------------------------------


def score_table(source: TableSource, home: Home) -> list[Outcome]:
    """The outcome of every forecast of the table, written to outcomes.json. Raises ValueError if
    there are no forecasts.
    """
    return save_outcomes(
        grade_table(source, home), forecasts_of_table(source), f"{source.title} in {source.folder}"
    )


def grade_table(source: TableSource, home: Home) -> list[Outcome]:
    """The same. Writes nothing. An option that `source` lacks is that of the forecast."""
    tables: dict[TableSource, Table] = {}
    return grade_folder(forecasts_of_table(source), partial(_outcome, source, home, tables))


def _outcome(
    source: TableSource, home: Home, tables: "dict[TableSource, Table]", path: Path
) -> Outcome:
    try:
        forecast = read_with_checksum(read_json(path))
    except ValueError as error:  # not JSON, changed, or of another version
        return Outcome(path.name, "tampered", str(error), None)
    point, recorded = forecast.target.sizes, forecast.target.record
    reading = TableSource(
        source.name, source.columns or tuple(recorded["--column"]),
        source.completed or recorded["--complete"], source.where or recorded["--where"], source.out,
    )  # fmt: skip
    if reading not in tables:
        tables[reading] = _completed_if_needed(reading, source, home)
    every = tables[reading]
    table = reading.chosen(every)
    there = _rows_at(table.finals, point)
    if there.empty:
        return Outcome(path.name, *_not_ended(reading, table, every, point), forecast)
    wanted = [each.metric for each in forecast.metrics]
    measured = there.dropna(subset=wanted)
    if measured.empty:
        reason = f"the run {there.trial.iloc[0]} has no {' or no '.join(wanted)} yet"
        return Outcome(path.name, "waiting", reason, forecast)
    # The first by size and seed: a choice that does not depend on the loss.
    row = measured.iloc[0]
    reason = f"run {row.trial}"
    if len(measured) > 1:
        reason += f", the first of {len(measured)} runs there"
    try:
        values = {name: float(row[name]) for name in METRICS if row[name] == row[name]}
        return Outcome(path.name, "graded", reason, forecast, score(forecast, values))
    except ForecastError as error:
        return Outcome(path.name, "void", str(error), forecast)


def _completed_if_needed(reading: TableSource, source: TableSource, home: Home) -> "Table":
    """The table; a column that the forecast completed may be known in every row by now."""
    from analysis.table.table import TableError

    try:
        return reading.load_all(home)
    except TableError:
        if reading.completed == source.completed:
            raise
        return replace(reading, completed=source.completed).load_all(home)


def _not_ended(
    source: TableSource, table: "Table", every: "Table", point: dict[str, float]
) -> tuple[Any, str]:
    """State and reason where no finished run is at `point`."""
    shown = f"{point_name(point)} (within {_SAME:.0%})"
    dropped = [line for line in every.dropped if "diverged" in line]
    begun = _rows_at(table.rows, point)
    if len(begun):
        return "waiting", f"the run {begun.trial.iloc[0]} at {shown} has not ended"
    outside = _rows_at(every.finals, point)
    if len(outside):
        return "waiting", (
            f"the run {outside.trial.iloc[0]} at {shown} does not fulfil --where "
            f"{source.where!r}; give score a --where that it fulfils"
        )
    diverged = f"; diverged runs of the table: {len(dropped)}" if dropped else ""
    return "waiting", f"no run of {source.title} is at {shown}{diverged}"
