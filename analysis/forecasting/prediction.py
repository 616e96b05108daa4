"""The predictions of one metric by each law, at a size beyond the runs. No I/O."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import FLOOR, INTERACTION, LAWS, PURE, SURFACE, TIED, VARYING
from analysis.fitting.points import FitError
from analysis.selection.holdout import leave_largest_out
from analysis.selection.select import Choice, aicc, choose, not_a_law
from analysis.uncertainty.intervals import interval, prediction_interval

OBJECTIVE = "squares"  # with few sizes, as in a sweep, least squares has the narrowest intervals
RULE = (
    "the quoted law is the one that the data prefer or, where the data cannot decide, the law with "
    "an irreducible loss E, if it can be fitted"
)
# The laws of a forecast by the number of their variables; the first ones are the default.
LAWS_IN_ONE = (PURE.name, FLOOR.name)
LAWS_IN_TWO = (SURFACE.name, TIED.name, INTERACTION.name, VARYING.name)

Array = NDArray[np.float64]
Point = tuple[float, ...]  # a value of each variable of a law


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


def predict_metric(
    metric: str, x: Sequence[Array], y: Array, at: Point, objective: str, laws: Sequence[str],
    level: float,
) -> tuple[MetricPrediction, tuple[str, ...]]:  # fmt: skip
    """The predictions of `metric`, y (n,) at `x`, an array for each variable, and why the runs
    follow no law. `laws`: those that predict; empty for the default. Raises FitError if there is
    no prediction.
    """
    if len(x) > 1:
        return _in_two(metric, x, y, at, objective, laws or LAWS_IN_TWO[:1], level), ()
    choice = choose(x[0], y, objective)
    chosen = [each for each in choice.candidates if each.name in (laws or LAWS_IN_ONE)]
    if not chosen:
        raise FitError("; ".join(choice.refused))
    predictions = tuple(
        _prediction(
            each.name, each.fit, at, level, each.aicc,
            None if each.held_out is None else each.held_out.relative_error,
        )
        for each in chosen
    )  # fmt: skip
    quoted = quoted_law(choice)
    headline = quoted if quoted in {each.name for each in chosen} else chosen[0].name
    pure = choice.candidates[0].fit
    no_law = not_a_law(pure, interval(pure, "alpha", level))
    why = f"{RULE}: {choice.verdict}" if not laws else f"chosen by name; {choice.verdict}"
    return MetricPrediction(metric, headline, why, predictions, choice.refused), no_law


def quoted_law(choice: Choice) -> str:
    """The name of the preferred law. If the data cannot decide, the law with E where it can be
    fitted: the pure law is its special case E = 0.
    """
    if choice.preferred is not None:
        return choice.preferred
    return PURE.name if choice.get(FLOOR.name) is None else FLOOR.name


def _in_two(
    metric: str, x: Sequence[Array], y: Array, at: Point, objective: str, laws: Sequence[str],
    level: float,
) -> MetricPrediction:  # fmt: skip
    """The predictions by laws in N and D; the first that can be fitted is quoted."""
    predictions, refused = list[Prediction](), list[str]()
    for name in laws:
        try:
            fit = fit_law(LAWS[name], tuple(x), y, objective)
            held_out = leave_largest_out(fit.law, tuple(x), y, objective)
            error = None if held_out is None else held_out.relative_error
            predictions.append(_prediction(name, fit, at, level, aicc(fit), error))
        except FitError as error_of_fit:
            refused.append(f"{name}: {error_of_fit}")
    if not predictions:
        raise FitError("; ".join(refused))
    why = "the first of the laws in N and D that can be fitted"
    return MetricPrediction(metric, predictions[0].law, why, tuple(predictions), tuple(refused))


def _prediction(
    name: str, fit: Fit, at: Point, level: float, aicc_of_fit: float | None, held_out: float | None
) -> Prediction:
    x = at if len(at) > 1 else at[0]
    span = prediction_interval(fit, x, level)
    return Prediction(
        law=name, formula=fit.law.formula, values=fit.values, predicted=float(fit.predict(x)),
        # An end that no value reaches is 0 or infinite. JSON has no infinity, so an open end is
        # None.
        low=span.low if span.low > 0 else None,
        high=span.high if math.isfinite(span.high) else None,
        level=level, method=span.method, basis=span.basis, spare=fit.points - fit.free,
        held_out=held_out, aicc=aicc_of_fit, certificate=_plain(fit), flags=fit.flags,
    )  # fmt: skip


def _plain(fit: Fit) -> dict[str, Any]:
    """The certificate as JSON values: JSON has no infinity and no NaN, so these become None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in json.loads(json.dumps(fit.certificate.as_dict())).items()
    }
