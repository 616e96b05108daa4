"""Predictions of a run by a law, made before the run ends, and their scores afterwards. No I/O."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from analysis.fitting.laws import LAWS
from analysis.fitting.points import FitError
from analysis.forecasting.prediction import (
    DEFAULT_METHOD,
    LawMethod,
    MetricPrediction,
    Points,
    Prediction,
    predict_metric,
)
from var_scaling.text import counted

FORMAT = 1


class ForecastError(ValueError):
    """A forecast cannot be made or read; the message says why."""


@dataclass(frozen=True)
class Target:
    """The run that is predicted: its address, its sizes (known before training), its record."""

    sweep: str
    trial: str
    sizes: dict[str, float]  # params_blocks, params_total, train_flops, tokens_seen
    record: dict[str, Any]
    begun_at: int | None = None  # the step that the run had reached when the forecast was made


@dataclass(frozen=True)
class Run:
    """A finished run that the law is fitted to: its sizes and its measured metrics, by column."""

    trial: str
    sizes: dict[str, float]
    measured: dict[str, float]
    weight: float = 1.0  # in the fits


@dataclass(frozen=True)
class Forecast:
    """The predictions for one run, with the data and settings that they were made from."""

    format: int
    sweep: str  # of the runs that the law is fitted to
    target: Target
    time: str  # UTC, ISO 8601
    commit: str | None
    data: str  # fingerprint of the table of the fitted runs
    variable: str  # column of the laws' x; two, joined by a comma, for a law in N and D
    objective: str
    extrapolation: float  # the target's size over the largest fitted size; the larger of two
    runs: tuple[Run, ...]
    metrics: tuple[MetricPrediction, ...]
    caveats: tuple[str, ...]
    E: float | None = None  # the fixed irreducible loss; None: fitted
    weights: str | None = None  # column of the weights of the runs; None: all are equal

    def same_prediction(self, other: "Forecast") -> bool:
        """Whether both predict the same for the same run from the same runs, made at any time."""
        return self._comparable() == other._comparable()

    def _comparable(self) -> str:
        """JSON of the fields that do not depend on when the forecast was made."""
        fields = asdict(self)
        for name in ("time", "commit", "data", "caveats"):
            del fields[name]
        del fields["target"]["begun_at"]
        return json.dumps(fields, sort_keys=True)


def freeze(
    target: Target, runs: Sequence[Run], variable: str, *, sweep: str, time: str,
    commit: str | None, data: str, caveats: Sequence[str] = (), level: float = 0.95,
    method: LawMethod = DEFAULT_METHOD,
) -> Forecast:  # fmt: skip
    """Predict every metric of `runs` at `target`, with `level` prediction intervals of a new run.

    `variable` names the size that is the laws' x, or sizes N and D, joined by a comma. Runs without
    it are left out, and a metric to which no law can be fitted is left out; a caveat reports both.
    `method.laws`: the names of those that predict, by default pure and floor, or surface. Raises
    ForecastError if no metric is left, or if the fixed E suits none of them.
    """
    variables = variable.split(",")
    sized = [run for run in runs if all(np.isfinite(run.sizes.get(v, math.nan)) for v in variables)]
    all_caveats = list(caveats)
    if len(sized) < len(runs):
        without = ", ".join(run.trial for run in runs if run not in sized)
        all_caveats.append(f"{variable} of {without} is not known: not used")
    if not sized:
        raise ForecastError(f"{variable} is known for no finished run: no law can be fitted")
    # A forecast of a run whose loss is already in the fit would be no forecast.
    if target.trial in {run.trial for run in sized} and target.sweep == sweep:
        raise ForecastError(
            f"{target.trial} is one of the fitted runs: choose a target that has not finished"
        )
    at = tuple(target.sizes[v] for v in variables)
    extrapolation = max(
        value / max(run.sizes[v] for run in sized) for v, value in zip(variables, at, strict=True)
    )
    metrics, refused = [], []
    # dict.fromkeys: each metric once, in a fixed order, so that equal input gives equal files.
    for metric in dict.fromkeys(metric for run in sized for metric in run.measured):
        measured = [run for run in sized if metric in run.measured]
        try:
            points = _points(measured, variables, metric, method.weights is not None)
            prediction, its_caveats = predict_metric(metric, points, at, method, level)
            metrics.append(prediction)
            all_caveats += [f"{metric} {caveat}" for caveat in its_caveats]
        except FitError as error:
            used = counted(len(measured), "finished run")
            refused.append(f"{metric} is not predicted from {used}: {error}")
    if not metrics:
        reason = refused[0] if refused else "no finished run has a score"
        if method.E is not None and "fixed E" in reason:
            reason = f"--fixed E={method.E:g}: {reason}"
        raise ForecastError(reason)
    if method.E is not None and not any(_has_E(each) for each in metrics):
        why = "; ".join(reason for each in metrics for reason in each.refused)
        raise ForecastError(f"--fixed E={method.E:g}: no law with it can be fitted: {why}")
    return Forecast(
        format=FORMAT, sweep=sweep, target=target, time=time, commit=commit, data=data,
        variable=variable, objective=method.objective, extrapolation=extrapolation,
        runs=tuple(sized), metrics=tuple(metrics), caveats=(*all_caveats, *refused),
        E=method.E, weights=method.weights,
    )  # fmt: skip


def _points(runs: Sequence[Run], variables: Sequence[str], metric: str, weighted: bool) -> Points:
    x = tuple(np.array([run.sizes[variable] for run in runs]) for variable in variables)
    y = np.array([run.measured[metric] for run in runs])
    return Points(x, y, np.array([run.weight for run in runs]) if weighted else None)


def _has_E(metric: MetricPrediction) -> bool:
    """Whether a law with an irreducible loss E predicts this metric."""
    return any(LAWS[each.law].floor for each in metric.predictions)


# Scores ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graded:
    """One prediction compared with the measured value."""

    metric: str
    law: str
    headline: bool
    predicted: float
    low: float | None
    high: float | None
    measured: float
    error: float  # predicted / measured - 1
    covered: bool | None  # the interval contains the measured value; None if it has no end
    half_widths: float | None  # log(measured / predicted) over the log half-width on that side
    z: float | None  # the same as a normal deviate: ±1.96 at the ends of a 95 % interval


@dataclass(frozen=True)
class Outcome:
    """The state of one saved forecast, with its scores once the run has ended."""

    file: str
    state: Literal["graded", "waiting", "diverged", "void", "tampered", "missing"]
    reason: str  # why it is not graded; void: it is not a forecast of this run
    forecast: Forecast | None  # None if the file was changed or is missing
    grades: tuple[Graded, ...] = ()


def score(forecast: Forecast, measured: Mapping[str, float]) -> tuple[Graded, ...]:
    """Grade each law of each metric. Raises ForecastError if a metric was not measured."""
    missing = [each.metric for each in forecast.metrics if each.metric not in measured]
    if missing:
        raise ForecastError(f"{forecast.target.trial} has no measured {', '.join(missing)}")
    return tuple(
        _grade(metric, prediction, measured[metric.metric])
        for metric in forecast.metrics
        for prediction in metric.predictions
    )


def _grade(metric: MetricPrediction, prediction: Prediction, measured: float) -> Graded:
    log_ratio = math.log(measured / prediction.predicted)
    # Profile intervals are asymmetric: the error is compared with the half-width on its own side.
    end = prediction.high if log_ratio > 0 else prediction.low
    half_widths = z = None
    if end is not None and end != prediction.predicted:
        half_widths = log_ratio / abs(math.log(end / prediction.predicted))
        # One half-width is one t quantile. The tail probability of that t value is mapped to a
        # normal deviate, by sf and isf, because 1 - cdf has no digits left in far tails.
        t_value = abs(half_widths) * stats.t.ppf((1 + prediction.level) / 2, prediction.spare)
        deviate = float(stats.norm.isf(stats.t.sf(t_value, prediction.spare)))
        z = math.copysign(deviate, log_ratio) if math.isfinite(deviate) else None
    inside = None
    if prediction.low is not None and prediction.high is not None:
        inside = prediction.low <= measured <= prediction.high
    return Graded(
        metric=metric.metric, law=prediction.law, headline=prediction.law == metric.headline,
        predicted=prediction.predicted, low=prediction.low, high=prediction.high, measured=measured,
        error=prediction.predicted / measured - 1, covered=inside, half_widths=half_widths, z=z,
    )  # fmt: skip
