"""Profile intervals: the values of a quantity that a test on the data does not reject.

For least squares the test is the F test of the profile: the parameter is fixed at a value, the
others are fitted again, and the value is accepted while the sum of squares rises by no more than
the F quantile allows. A prediction is fixed by an added point: with a very large weight for the law
itself, with weight 1 for a new run. For a straight line this is exactly the textbook's prediction
interval. Where several runs of a size show that the law misses the means of the sizes, these are
the observations of the test (`freedom_of`). For the other objectives the critical rise comes from
simulations of the fit (smoothed residuals, fixed random seed). Measured coverage: docs/laws.md and
docs/coverage.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fitting.fit import Fit
from analysis.fitting.points import FitError
from analysis.fitting.search import solve
from analysis.fitting.terms import Points
from analysis.uncertainty.profile import (
    SIMULATIONS,
    Problem,
    Rise,
    critical_rise,
    crossings,
    freedom_of,
    standard_error,
)

Array = NDArray[np.float64]

_MIN_E_STEP = 0.02  # of the least loss: lowest initial step of the search for the ends of E
PIN_WEIGHT = 1e6  # weight of an added point, so large that the law goes through it


@dataclass(frozen=True)
class Interval:
    """A range, its nominal level, its method, and the data that it is based on."""

    low: float
    high: float
    level: float
    method: str
    basis: str


def interval(fit: Fit, name: str, level: float = 0.95) -> Interval:
    """The profile interval of a parameter, in its own units.

    An end is infinite where no value on its side is rejected; the low end of E is 0 where E = 0 is
    not rejected. Raises FitError where the fit has no degree of freedom or did not converge, or
    where the parameter was not fitted.
    """
    rise, allowed, error = _test_of(fit, name, level)
    # Coefficients are searched in logs, where they stay positive. E is searched in its own units,
    # because E = 0 must be within reach.
    logarithmic = name in fit.law.positive
    best = np.log(fit[name]) if logarithmic else fit[name]
    low, high = crossings(rise, best, error, allowed, 0.0 if name == "E" else -np.inf)
    if logarithmic:
        low, high = np.exp(low), np.exp(high)
    return Interval(float(low), float(high), level, _method(fit), basis(fit))


def _test_of(fit: Fit, name: str, level: float) -> tuple[Rise, float, float]:
    """The rise of the objective at values of `name`, the allowed rise, and a standard error."""
    _refuse_unconverged(fit)
    if name not in fit.values or (name == "E" and fit.floor is not None):
        raise FitError(f"{name} is not a fitted parameter of {fit.law.formula}")
    problem, column, to_theta = profile_problem(fit, name)
    critical = critical_rise(fit, problem, column, level)

    # One batch for all tried values: each is a problem whose `column` is held at the value.
    def rise(values: Array) -> Array:
        start = np.repeat(problem.theta[None], len(values), 0)
        start[:, column] = to_theta(values)
        constrained = solve(
            problem.points,
            problem.weights,
            start[None],
            fit.objective,
            problem.log_floor,
            (column,),
        )
        return constrained.objective - problem.objective

    error = standard_error(fit, problem, column)
    if name == "E":  # `error` is of log E; it is meaningless where E is 0, hence the minimum
        error = max(error * fit.E, _MIN_E_STEP * float(fit.data.y.min()))
    return rise, critical * problem.objective, error


def prediction_interval(
    fit: Fit, x: ArrayLike | Sequence[ArrayLike], level: float = 0.95, new_run: bool = True
) -> Interval:
    """The interval of L at one `x`: of a new run there, or (`new_run` False) of the law itself.

    A new run is assumed to scatter like the fitted runs. Raises FitError as `interval` does.
    """
    rise, allowed, best = _test_at(fit, x, level, new_run)
    # Only the unit of the search; for points exactly on the law it must not be 0.
    error = max(float(np.sqrt(np.mean(fit.residuals**2))), 1e-9)
    low, high = crossings(rise, best, error, allowed, -np.inf)
    height = fit.data.points.height
    kind = "of a new run" if new_run else "of the law"
    return Interval(
        float(np.exp(low + height)), float(np.exp(high + height)), level,
        f"{_method(fit)}, {kind}", basis(fit),
    )  # fmt: skip


def _test_at(
    fit: Fit, x: ArrayLike | Sequence[ArrayLike], level: float, new_run: bool
) -> tuple[Rise, float, float]:
    """The rise of the objective at values of centred log L at `x`, the allowed rise, and log L̂."""
    _refuse_unconverged(fit)
    predicted = np.atleast_1d(fit.predict(x))
    if predicted.shape != (1,):
        raise FitError(f"x must be one point; the predictions have shape {predicted.shape}")
    problem = Problem.of(fit)
    weight = 1.0 if new_run else PIN_WEIGHT
    # With the added point at the predicted L its residual is 0: the optimum, and so the objective
    # that the rise is measured from, are those of the fit without it.
    points = with_point(fit, x)
    weights = np.append(problem.weights[0], weight)[None]

    def rise(values: Array) -> Array:
        z = np.column_stack([np.repeat(problem.points.z[None], len(values), 0), values])
        start = np.repeat(problem.theta[None], len(values), 0)
        constrained = solve(
            replace(points, z=z), weights, start[None], fit.objective, problem.log_floor
        )
        return constrained.objective - problem.objective

    best = float(np.log(predicted[0]) - problem.points.height)
    critical = critical_rise(fit, problem, None, level, points, weight, best)
    return rise, critical * problem.objective, best


def covers(fit: Fit, name: str, value: float, level: float = 0.95) -> bool:
    """Whether `interval(fit, name, level)` contains `value`; it does not compute the ends."""
    rise, allowed, _ = _test_of(fit, name, level)
    logarithmic = name in fit.law.positive
    return bool(rise(np.log([value]) if logarithmic else np.array([value]))[0] <= allowed)


def covers_at(
    fit: Fit, x: ArrayLike | Sequence[ArrayLike], value: float, level: float = 0.95,
    new_run: bool = True,
) -> bool:  # fmt: skip
    """Whether `prediction_interval(fit, x, level, new_run)` contains `value`."""
    rise, allowed, _ = _test_at(fit, x, level, new_run)
    return bool(rise(np.array([np.log(value) - fit.data.points.height]))[0] <= allowed)


def basis(fit: Fit) -> str:
    """The data that an interval is based on, in words, to be printed next to it."""
    sizes = ", ".join(
        f"{count} {variable if variable != 'x' else 'sizes'}"
        for variable, count in zip(fit.law.variables, fit.data.sizes, strict=True)
    )
    decades = ", ".join(f"{each:.1f}" for each in fit.data.decades)
    return f"{fit.points} points, {sizes}, {decades} decades"


def profile_problem(fit: Fit, name: str) -> tuple[Problem, int, Callable[[Array], Array]]:
    """The problem in which `name` is a column of θ, the column, and the map from a value to θ."""
    height, sign = fit.data.points.height, fit.law.sign
    last, bend = len(fit.theta) - 1, fit.law.bend
    if name in ("R_star", bend) or (name == fit.law.cross and not bend):
        return Problem.of(fit), last, lambda values: values
    # With δ, β is a column of θ only where log N is not centred, and γ where log D is not.
    if bend and name == fit.law.powers[-1][1]:
        return _uncentred(fit, [0]), 2 * len(fit.law.powers) - 1, lambda values: values
    if bend and name == fit.law.cross:
        return _uncentred(fit, [1]), fit.data.points.crossed, lambda values: values
    if fit.law.sigmoid and name == "S":
        return Problem.of(fit), len(fit.theta) - 1, lambda values: values - height
    if fit.law.sigmoid and name == fit.law.powers[0][0]:
        centre = fit.data.points.centres[0]
        return Problem.of(fit), 0, lambda values: values - centre
    for k, (coefficient, exponent) in enumerate(fit.law.powers):
        if name == exponent:
            return Problem.of(fit), 2 * k + 1, lambda values: sign * values
        if name == coefficient:  # log A is a column of θ only where log x is not centred
            everything = range(len(fit.law.powers))
            return _uncentred(fit, everything), 2 * k, lambda values: values - height

    # Of E: its column of θ is log E - height, and E = 0 is -inf.
    def log_floor(values: Array) -> Array:
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.maximum(values, 0)) - height)

    return Problem.of(fit), 2 * len(fit.law.powers), log_floor


def _uncentred(fit: Fit, variables: Sequence[int]) -> Problem:
    """The same fit with uncentred logs of these variables; of all, c becomes log A - height."""
    points, law, theta = fit.data.points, fit.law, fit.theta.copy()
    shifts = [c if k in variables else 0.0 for k, c in enumerate(points.centres)]
    for k, shift in enumerate(shifts):
        theta[2 * k] += theta[2 * k + 1] * shift
    if law.cross:
        delta, at = theta[-1] if law.bend else 0.0, 2 * len(shifts) - 2
        theta[points.crossed] += delta * shifts[-1]
        theta[at] -= theta[points.crossed] * shifts[0]
        theta[at + 1] -= delta * shifts[0]
    raw = replace(
        points,
        logs=tuple(log + shift for log, shift in zip(points.logs, shifts, strict=True)),
        centres=tuple(c - shift for c, shift in zip(points.centres, shifts, strict=True)),
    )
    return Problem.of(fit, raw, theta)


def with_point(fit: Fit, x: ArrayLike | Sequence[ArrayLike]) -> Points:
    """The fit's points and one more at `x`; the caller sets `z`, (n + 1,)."""
    points = fit.data.points
    added = [np.atleast_1d(each) for each in fit.law.arrays(x)]
    logs = tuple(
        np.append(log, value - centre)
        for log, value, centre in zip(
            points.logs, fit.law.coordinates(added), points.centres, strict=True
        )
    )
    # The solver computes log D' from log D and log U, so these need the added point too.
    repeats = points.repeats
    if repeats is not None:
        repeats = (np.append(repeats[0], np.log(added[1])), np.append(repeats[1], np.log(added[2])))
    return replace(points, logs=logs, repeats=repeats)


def _method(fit: Fit) -> str:
    """How the critical rise was found, in words."""
    if fit.objective.is_gaussian:
        freedom = freedom_of(fit)[0]
        lack = "" if freedom == fit.points - fit.free else " of the lack of fit"
        return f"profile, F(1, {freedom}){lack}"
    return f"profile, critical value of {SIMULATIONS} simulations"


def _refuse_unconverged(fit: Fit) -> None:
    """Raises FitError where the fit is no optimum."""
    if not fit.certificate.converged:
        raise FitError("the fit did not converge, so it has no interval")
