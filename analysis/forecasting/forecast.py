"""A law frozen before the run that it foretells, and the grade it gets afterwards. No disk."""

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
from analysis.selection.select import Candidate, Choice, choose
from analysis.uncertainty.intervals import prediction_interval

FORMAT = 1
OBJECTIVE = "squares"  # a sweep has few sizes, where the sum of squares has the narrower intervals
RULE = "quoted is the law that the data prefer or, where they cannot tell, the floor, if it fits"

Array = NDArray[np.float64]


class ForecastError(ValueError):
    """There is no such forecast to be made or read; the message says why."""


@dataclass(frozen=True)
class Target:
    """The run that is predicted: its address, its sizes before it is trained, its whole record."""

    sweep: str
    trial: str
    sizes: dict[str, float]  # params_blocks, params_total, train_flops, tokens_seen
    record: dict[str, Any]
    begun_at: int | None = None  # the step that it had reached when this was frozen


@dataclass(frozen=True)
class Run:
    """A finished run that the law rests on: its sizes and what was measured, by column."""

    trial: str
    sizes: dict[str, float]
    measured: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """What one law says of one metric, in the metric's units. A bound of None: there is none."""

    law: str
    formula: str
    values: dict[str, float]
    predicted: float
    low: float | None
    high: float | None
    level: float
    method: str
    basis: str
    spare: int  # points less parameters
    held_out: float | None  # relative error at the largest size used, of a fit without it
    aicc: float | None  # only its difference between laws means something
    certificate: dict[str, Any]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class MetricPrediction:
    """One metric: what each law says, and which of them is quoted, by a rule stated before."""

    metric: str
    headline: str
    why: str
    predictions: tuple[Prediction, ...]
    refused: tuple[str, ...]  # laws that these runs do not carry, and why

    @property
    def quoted(self) -> Prediction:
        return next(one for one in self.predictions if one.law == self.headline)


@dataclass(frozen=True)
class Forecast:
    """All that was known, and all that was said, before the run existed."""

    format: int
    sweep: str  # of the runs that the law rests on
    target: Target
    time: str  # UTC, ISO 8601
    commit: str | None
    data: str  # fingerprint of the table that the runs were read from
    variable: str
    objective: str
    extrapolation: float  # the target's variable over the largest used
    runs: tuple[Run, ...]
    metrics: tuple[MetricPrediction, ...]
    caveats: tuple[str, ...]

    def says_what(self, other: "Forecast") -> bool:
        """Whether both say the same of the same run from the same runs, whenever that was."""
        return self._said() == other._said()

    def _said(self) -> str:
        said = asdict(self)
        for when in ("time", "commit", "data", "caveats"):
            del said[when]
        del said["target"]["begun_at"]
        return json.dumps(said, sort_keys=True)


def freeze(
    target: Target, runs: Sequence[Run], variable: str, *, sweep: str, time: str,
    commit: str | None, data: str, caveats: Sequence[str] = (), level: float = 0.95,
) -> Forecast:  # fmt: skip
    """Predict every metric of `runs` at `target`, with `level` intervals of a new run.

    `variable` names the size that the laws are in. Runs whose size is not known are left out, and
    that is a caveat; so is a metric that what is left cannot carry. Raises ForecastError where no
    metric is left.
    """
    known = [run for run in runs if np.isfinite(run.sizes.get(variable, math.nan))]
    said = list(caveats)
    if len(known) < len(runs):
        without = ", ".join(run.trial for run in runs if run not in known)
        said.append(f"{variable} is not known of {without}: not used")
    if not known:
        raise ForecastError(f"{variable} is known of no finished run: nothing to rest a law on")
    if target.trial in {run.trial for run in known} and target.sweep == sweep:
        raise ForecastError(f"{target.trial} is among the runs: what is known is not predicted")
    largest, at = max(run.sizes[variable] for run in known), target.sizes[variable]
    metrics, refused = [], []
    for metric in dict.fromkeys(metric for run in known for metric in run.measured):
        some = [run for run in known if metric in run.measured]
        try:
            metrics.append(_predicted_metric(metric, some, variable, at, level))
        except FitError as error:
            refused.append(f"{metric} is not predicted from {len(some)} finished runs: {error}")
    if not metrics:
        raise ForecastError(refused[0] if refused else "no finished run has a score")
    return Forecast(
        format=FORMAT, sweep=sweep, target=target, time=time, commit=commit, data=data,
        variable=variable, objective=OBJECTIVE, extrapolation=at / largest,
        runs=tuple(known), metrics=tuple(metrics), caveats=(*said, *refused),
    )  # fmt: skip


def quoted_law(choice: Choice) -> str:
    """Pure or floor: what the data prefer; where they cannot tell, the one that holds the other."""
    if choice.preferred is not None:
        return choice.preferred
    return PURE.name if choice.get(FLOOR.name) is None else FLOOR.name


def _predicted_metric(
    metric: str, runs: Sequence[Run], variable: str, at: float, level: float
) -> MetricPrediction:
    """Raises FitError where the runs do not even carry the pure law."""
    x = np.array([run.sizes[variable] for run in runs])
    y = np.array([run.measured[metric] for run in runs])
    choice = choose(x, y, OBJECTIVE)
    predictions = tuple(_prediction(candidate, at, level) for candidate in choice.candidates)
    why = f"{RULE}: {choice.verdict}"
    return MetricPrediction(metric, quoted_law(choice), why, predictions, choice.refused)


def _prediction(candidate: Candidate, at: float, level: float) -> Prediction:
    fit, held_out = candidate.fit, candidate.held_out
    interval = prediction_interval(fit, at, level)
    return Prediction(
        law=candidate.name, formula=fit.law.formula, values=fit.values,
        predicted=float(fit.predict(at)),
        low=interval.low if interval.low > 0 else None,
        high=interval.high if math.isfinite(interval.high) else None,
        level=level, method=interval.method, basis=interval.basis, spare=fit.points - fit.free,
        held_out=None if held_out is None else held_out.relative_error, aicc=candidate.aicc,
        certificate=_plain(fit), flags=fit.flags,
    )  # fmt: skip


def _plain(fit: Fit) -> dict[str, Any]:
    """The certificate as JSON, which knows no infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in json.loads(json.dumps(fit.certificate.as_dict())).items()
    }


# Grades ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graded:
    """One prediction beside what was measured."""

    metric: str
    law: str
    headline: bool
    predicted: float
    low: float | None
    high: float | None
    measured: float
    error: float  # predicted / measured - 1
    covered: bool
    half_widths: float | None  # log(measured / predicted) in lengths of that side of the interval
    z: float | None  # the same as a normal deviate: ±1.96 at the ends of a 95 % interval


@dataclass(frozen=True)
class Outcome:
    """What has come of one frozen forecast."""

    file: str
    state: Literal["graded", "waiting", "diverged", "void", "tampered", "missing"]
    said: str  # why, where it is not graded; void: it was no forecast of this run
    forecast: Forecast | None  # None where the file is not what was frozen
    grades: tuple[Graded, ...] = ()


def score(forecast: Forecast, measured: Mapping[str, float]) -> tuple[Graded, ...]:
    """Grade each law of each metric. Raises ForecastError where a metric was not measured."""
    missing = [one.metric for one in forecast.metrics if one.metric not in measured]
    if missing:
        raise ForecastError(f"{forecast.target.trial} has no {', '.join(missing)}")
    return tuple(
        _grade(predicted, one, measured[predicted.metric])
        for predicted in forecast.metrics
        for one in predicted.predictions
    )


def _grade(predicted: MetricPrediction, one: Prediction, measured: float) -> Graded:
    away = math.log(measured / one.predicted)
    end = one.high if away > 0 else one.low
    half_widths = z = None
    if end is not None and end != one.predicted:
        half_widths = away / abs(math.log(end / one.predicted))
        student = abs(half_widths) * stats.t.ppf((1 + one.level) / 2, one.spare)
        deviate = float(stats.norm.isf(stats.t.sf(student, one.spare)))
        z = math.copysign(deviate, away) if math.isfinite(deviate) else None
    inside = (one.low is None or one.low <= measured) and (one.high is None or measured <= one.high)
    return Graded(
        metric=predicted.metric, law=one.law, headline=one.law == predicted.headline,
        predicted=one.predicted, low=one.low, high=one.high, measured=measured,
        error=one.predicted / measured - 1, covered=inside, half_widths=half_widths, z=z,
    )  # fmt: skip
