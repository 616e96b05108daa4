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
_FIXED = "floor fixed"  # the law with a fixed E in a choice
LAWS_IN_TWO = (SURFACE.name, TIED.name, INTERACTION.name, VARYING.name)

Array = NDArray[np.float64]
Point = tuple[float, ...]  # a value of each variable of a law


@dataclass(frozen=True)
class LawMethod:
    """Which laws predict, and how they are fitted; the defaults are those of a sweep."""

    laws: tuple[str, ...] = ()  # --law; empty: the default laws
    objective: str = OBJECTIVE  # --objective
    E: float | None = None  # --fixed: the irreducible loss of every law that has one
    weights: str | None = None  # --weights: column with the weight of each run

    def refuse_others(self, allowed: Sequence[str], of: str) -> None:
        """Raise ValueError for a law that is not `allowed` for `of`, which is in words."""
        for name in self.laws:
            if name not in allowed:
                raise ValueError(f"--law {name}: {of} is one of {', '.join(allowed)}")


DEFAULT_METHOD = LawMethod()


@dataclass(frozen=True)
class Points:
    """The runs that have one metric."""

    x: tuple[Array, ...]  # (n,) for each variable
    y: Array  # (n,)
    weights: Array | None = None  # (n,); None: all equal


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
    metric: str, points: Points, at: Point, method: LawMethod, level: float
) -> tuple[MetricPrediction, tuple[str, ...]]:
    """The predictions of `metric` at `at`, and caveats: that the runs follow no law, or reject the
    fixed E. Raises FitError if there is no prediction.
    """
    if len(points.x) > 1:
        return _in_two(metric, points, at, method, level), ()
    choice = choose(
        points.x[0], points.y, method.objective, method.E, weights=points.weights
    )  # fmt: skip
    # A law with the fixed E replaces the law with a fitted one.
    fits = {each.name: each for each in choice.candidates}
    if method.E is not None:
        fits.pop(FLOOR.name, None)
        if fixed := fits.pop(_FIXED, None):
            fits[FLOOR.name] = fixed
    chosen = {name: fits[name] for name in fits if name in (method.laws or LAWS_IN_ONE)}
    if not chosen:
        raise FitError("; ".join(choice.refused))
    predictions = tuple(
        _prediction(
            name, each.fit, at, level, each.aicc,
            None if each.held_out is None else each.held_out.relative_error,
        )
        for name, each in chosen.items()
    )  # fmt: skip
    quoted = FLOOR.name if method.E is not None else quoted_law(choice)
    headline = quoted if quoted in chosen else next(iter(chosen))
    pure = choice.candidates[0].fit
    no_law = not_a_law(pure, interval(pure, "alpha", level))
    caveats = (
        *(f"follows no law: {reason}" for reason in no_law), *_rejected(choice, method.E),
    )  # fmt: skip
    why = f"{RULE}: {choice.verdict}" if not method.laws else f"chosen by name; {choice.verdict}"
    if method.E is not None and headline == FLOOR.name:
        why = f"the law with the fixed E = {method.E:g}"
    return MetricPrediction(metric, headline, why, predictions, choice.refused), caveats


def _rejected(choice: Choice, E: float | None) -> list[str]:
    """The caveat that the points reject the fixed E; none where they do not."""
    free = choice.get(FLOOR.name)
    span = None if E is None or free is None else free.E_interval
    if E is None or span is None or span.low <= E <= span.high:
        return []
    return [
        f"rejects the fixed E = {E:.4g}: the 95 % interval of a fitted E is {span.low:.4g} to "
        f"{span.high:.4g}"
    ]


def quoted_law(choice: Choice) -> str:
    """The name of the preferred law. If the data cannot decide, the law with E where it can be
    fitted: the pure law is its special case E = 0.
    """
    if choice.preferred is not None:
        return choice.preferred
    return PURE.name if choice.get(FLOOR.name) is None else FLOOR.name


def _in_two(
    metric: str, points: Points, at: Point, method: LawMethod, level: float
) -> MetricPrediction:
    """The predictions by laws in N and D; the first that can be fitted is quoted."""
    predictions, refused = list[Prediction](), list[str]()
    x, y = points.x, points.y
    for name in method.laws or LAWS_IN_TWO[:1]:
        try:
            fit = fit_law(
                LAWS[name], x, y, method.objective, floor=method.E, weights=points.weights
            )
            held_out = leave_largest_out(
                fit.law, x, y, method.objective, floor=method.E, weights=points.weights
            )
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
