"""Predictions of a run by a law, made before the run ends, and their scores afterwards. No I/O."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.fitting.fit import Fit
from analysis.fitting.laws import FLOOR, PURE
from analysis.fitting.points import FitError
from analysis.selection.select import Candidate, Choice, choose, not_a_law
from analysis.uncertainty.intervals import interval, prediction_interval

FORMAT = 1
OBJECTIVE = "squares"  # with few sizes, as in a sweep, least squares has the narrowest intervals
RULE = (
    "the quoted law is the one that the data prefer or, where the data cannot decide, the law with "
    "an irreducible loss E, if it can be fitted"
)

Array = NDArray[np.float64]


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


@dataclass(frozen=True)
class Prediction:
    """The prediction of one law for one metric, in the metric's units. A bound of None is open."""

    law: str
    formula: str
    values: dict[str, float]
    predicted: float
    low: float | None
    high: float | None
    level: float
    method: str
    basis: str
    spare: int  # degrees of freedom: points minus parameters
    held_out: float | None  # relative error at the largest size, of a fit without that size
    aicc: float | None  # only differences between laws are meaningful
    certificate: dict[str, Any]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class MetricPrediction:
    """One metric: the prediction of each law, and the law that is quoted by a rule fixed before."""

    metric: str
    headline: str  # name of the quoted law
    why: str
    predictions: tuple[Prediction, ...]
    refused: tuple[str, ...]  # laws that cannot be fitted to these runs, and why

    @property
    def quoted(self) -> Prediction:
        return next(each for each in self.predictions if each.law == self.headline)


@dataclass(frozen=True)
class Forecast:
    """The predictions for one run, with the data and settings that they were made from."""

    format: int
    sweep: str  # of the runs that the law is fitted to
    target: Target
    time: str  # UTC, ISO 8601
    commit: str | None
    data: str  # fingerprint of the table of the fitted runs
    variable: str
    objective: str
    extrapolation: float  # the target's size over the largest fitted size
    runs: tuple[Run, ...]
    metrics: tuple[MetricPrediction, ...]
    caveats: tuple[str, ...]

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
) -> Forecast:  # fmt: skip
    """Predict every metric of `runs` at `target`, with `level` prediction intervals of a new run.

    `variable` names the size that is the laws' x. Runs without it are left out, and a metric to
    which no law can be fitted is left out; a caveat reports both. Raises ForecastError if no
    metric is left.
    """
    sized = [run for run in runs if np.isfinite(run.sizes.get(variable, math.nan))]
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
    largest, at = max(run.sizes[variable] for run in sized), target.sizes[variable]
    metrics, refused = [], []
    # dict.fromkeys: each metric once, in a fixed order, so that equal input gives equal files.
    for metric in dict.fromkeys(metric for run in sized for metric in run.measured):
        measured = [run for run in sized if metric in run.measured]
        try:
            prediction, no_law = _predicted_metric(metric, measured, variable, at, level)
            metrics.append(prediction)
            all_caveats += [f"{metric} follows no law: {reason}" for reason in no_law]
        except FitError as error:
            refused.append(f"{metric} is not predicted from {len(measured)} finished runs: {error}")
    if not metrics:
        raise ForecastError(refused[0] if refused else "no finished run has a score")
    return Forecast(
        format=FORMAT, sweep=sweep, target=target, time=time, commit=commit, data=data,
        variable=variable, objective=OBJECTIVE, extrapolation=at / largest,
        runs=tuple(sized), metrics=tuple(metrics), caveats=(*all_caveats, *refused),
    )  # fmt: skip


def quoted_law(choice: Choice) -> str:
    """The name of the preferred law. If the data cannot decide, the law with E where it can be
    fitted: the pure law is its special case E = 0.
    """
    if choice.preferred is not None:
        return choice.preferred
    return PURE.name if choice.get(FLOOR.name) is None else FLOOR.name


def _predicted_metric(
    metric: str, runs: Sequence[Run], variable: str, at: float, level: float
) -> tuple[MetricPrediction, tuple[str, ...]]:
    """The prediction, and why the runs follow no law. Raises FitError if not even the pure law can
    be fitted to them.
    """
    x = np.array([run.sizes[variable] for run in runs])
    y = np.array([run.measured[metric] for run in runs])
    choice = choose(x, y, OBJECTIVE)
    predictions = tuple(_prediction(candidate, at, level) for candidate in choice.candidates)
    why = f"{RULE}: {choice.verdict}"
    pure = choice.candidates[0].fit
    no_law = not_a_law(pure, interval(pure, "alpha", level))
    return MetricPrediction(metric, quoted_law(choice), why, predictions, choice.refused), no_law


def _prediction(candidate: Candidate, at: float, level: float) -> Prediction:
    fit, held_out = candidate.fit, candidate.held_out
    span = prediction_interval(fit, at, level)
    return Prediction(
        law=candidate.name, formula=fit.law.formula, values=fit.values,
        predicted=float(fit.predict(at)),
        # An end that no value reaches is 0 or infinite. JSON has no infinity, so an open end is
        # None.
        low=span.low if span.low > 0 else None,
        high=span.high if math.isfinite(span.high) else None,
        level=level, method=span.method, basis=span.basis, spare=fit.points - fit.free,
        held_out=None if held_out is None else held_out.relative_error, aicc=candidate.aicc,
        certificate=_plain(fit), flags=fit.flags,
    )  # fmt: skip


def _plain(fit: Fit) -> dict[str, Any]:
    """The certificate as JSON values: JSON has no infinity and no NaN, so these become None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in json.loads(json.dumps(fit.certificate.as_dict())).items()
    }


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
