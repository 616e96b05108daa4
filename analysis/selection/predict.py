"""The loss that a fitted law predicts at given N, D or C, with the interval of a new run there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from analysis.fitting.fit import Fit
from analysis.fitting.points import FitError
from analysis.uncertainty.intervals import Interval, prediction_interval


@dataclass(frozen=True)
class Prediction:
    """L by one law at one point."""

    label: str  # of the law, such as L_mean(N, D)
    law: str  # name of its form, such as floor
    at: dict[str, float]  # by variable of the label
    loss: float
    interval: Interval | None  # 95 %, of a new run that scatters like the fitted runs
    notes: tuple[str, ...]  # how far the point is from the runs, or why there is no interval


def predict(
    fit: Fit, label: str, variables: tuple[str, ...], at: Mapping[str, float],
    interval_at: Callable[[Fit, Any], Interval] = prediction_interval,
) -> Prediction:  # fmt: skip
    """The prediction of `fit` at the values `at` of its `variables`, named as in the label.

    `interval_at` gives the interval of a new run there. Raises FitError where a variable has no
    value.
    """
    missing = [name for name in variables if name not in at]
    if missing:
        raise FitError(f"--predict has no value of {' and '.join(missing)}")
    point = tuple(at[name] for name in variables)
    x = point if len(point) > 1 else point[0]
    span, notes = None, []
    try:
        span = interval_at(fit, x)
    except FitError as error:
        notes.append(f"no interval: {error}")
    for name, value, fitted in zip(variables, point, fit.law.arrays(fit.data.x), strict=True):
        if value > fitted.max() * 1.001:
            notes.append(f"{name} is {value / fitted.max():.3g} times the largest fitted")
        elif value < fitted.min() / 1.001:
            notes.append(f"{name} is {fitted.min() / value:.3g} times below the smallest fitted")
    return Prediction(
        label, fit.law.name, dict(zip(variables, point, strict=True)), float(fit.predict(x)),
        span, tuple(notes),
    )  # fmt: skip
