"""The points of a fit, checked; points that cannot determine the law raise FitError."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fitting.laws import Law
from analysis.fitting.terms import Points
from var_scaling.text import counted

Array = NDArray[np.float64]


class FitError(ValueError):
    """No law can be fitted to these points; the message says why."""


@dataclass(frozen=True)
class FitData:
    """The points and weights that a law is fitted to, in the order of the input."""

    law: Law
    x: tuple[Array, ...] | Array  # as `Law.predict` takes it
    y: Array
    weights: Array  # mean 1
    points: Points
    sizes: tuple[int, ...]  # number of different values of each variable
    decades: tuple[float, ...]  # range of each variable
    notes: tuple[str, ...]  # warnings

    def log_floor(self, floor: float | None) -> float | None:
        """A fixed E in the solver's centred logs: -inf for E = 0, None where E is free."""
        if floor is None or not self.law.floor:
            return None
        return math.log(floor) - self.points.height if floor > 0 else -math.inf

    def values(self, theta: Array) -> dict[str, float]:
        """The law's parameters at θ (p,), by name."""
        return {name: float(value[0]) for name, value in self.columns(theta[None]).items()}

    def columns(self, theta: Array) -> dict[str, Array]:
        """The law's parameters, (B,) each, at θ (B, p)."""
        law, points, parameters = self.law, self.points, {}
        for k, (coefficient, exponent) in enumerate(law.powers):
            c, power = theta[:, 2 * k], theta[:, 2 * k + 1]
            if law.sigmoid:
                parameters[coefficient], parameters[exponent] = c + points.centres[0], power
                continue
            # Undoes the centring: c - α (log x - centre) + height is log A - α log x.
            log_coefficient = c + points.height + power * points.centres[k]
            if law.cross and k == points.powers - 1:
                gamma, delta = theta[:, points.crossed], _delta(points, theta)
                log_coefficient = log_coefficient - gamma * points.centres[0]
                log_coefficient = log_coefficient - delta * points.centres[0] * points.centres[k]
                # δ log N log D = δ (n + centre of N) (d + centre of D).
                power = power - delta * points.centres[0]
            with np.errstate(over="ignore"):  # `fit_law` refuses infinite values
                parameters[coefficient] = np.exp(log_coefficient)
            parameters[exponent] = law.sign * power
        if law.floor:
            parameters["E"] = np.exp(theta[:, 2 * points.powers] + points.height)
        if law.repeats:
            parameters["R_star"] = np.exp(theta[:, -1])
        if law.cross:
            delta = _delta(points, theta)
            parameters[law.cross] = theta[:, points.crossed] + delta * points.centres[-1]
        if law.bend:
            parameters[law.bend] = theta[:, -1]
        if law.sigmoid:
            parameters["S"] = np.exp(theta[:, -1] + points.height)
        return parameters

    def theta(self, values: Mapping[str, float]) -> Array:
        """θ (p,) of these parameters: the inverse of `values`. A coefficient must be positive."""
        law, points = self.law, self.points
        theta = np.empty(points.parameters)
        for k, (coefficient, exponent) in enumerate(law.powers):
            power = law.sign * values[exponent]
            if law.sigmoid:
                theta[:2] = values[coefficient] - points.centres[0], power
                continue
            last, delta = k == points.powers - 1, values[law.bend] if law.bend else 0.0
            if last:
                power = power + delta * points.centres[0]
            shift = points.height + power * points.centres[k]
            if law.cross and last:
                shift -= values[law.cross] * points.centres[0]
            theta[2 * k : 2 * k + 2] = np.log(values[coefficient]) - shift, power
        if law.floor:
            E = values["E"]
            theta[2 * points.powers] = np.log(E) - points.height if E > 0 else -np.inf
        if law.repeats:
            theta[-1] = np.log(values["R_star"])
        if law.cross:
            delta = values[law.bend] if law.bend else 0.0
            theta[points.crossed] = values[law.cross] - delta * points.centres[-1]
        if law.bend:
            theta[-1] = values[law.bend]
        if law.sigmoid:
            theta[-1] = np.log(values["S"]) - points.height
        return theta


def _delta(points: Points, theta: Array) -> Array:
    """The change of the last exponent with log N, (B,); 0 for a law without it."""
    return theta[:, -1] if points.law.bend else np.zeros(len(theta))


def check_points(
    law: Law,
    x: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike,
    floor: float | None = None,
    weights: ArrayLike | None = None,
) -> FitData:
    """The points in the form that the solver needs. Raises FitError where no fit is possible."""
    try:
        arrays = [np.atleast_1d(_unmasked(each)) for each in law.arrays(x)]
        losses = np.atleast_1d(_unmasked(y))
        raw_weights = np.ones_like(losses) if weights is None else np.asarray(weights, dtype=float)
        floor = None if floor is None else float(floor)
    except (TypeError, ValueError) as error:
        raise FitError(f"{law.name}: points must be numbers: {error}") from error
    _refuse_shapes(law, arrays, losses)
    _refuse_values(law, arrays, losses, floor)
    positive = np.isfinite(raw_weights).all() and (raw_weights > 0).all()
    if raw_weights.shape != losses.shape or not positive:
        raise FitError("weights must be positive numbers, one for each point")
    scaled_weights = raw_weights / raw_weights.max()  # so that their mean cannot overflow
    notes = _refuse_designs(law, arrays, losses, floor is None)
    # U of `REPEATED` has no power. The second log, of D, is replaced by log D' in the solver.
    logs = law.coordinates(arrays)
    z = np.log(losses)
    # log L is not centred for the law in the odds: odds are not invariant to the scale of L.
    height = 0.0 if law.odds else float(z.mean())
    # Centred logs separate level from slope, and the units of x and L drop out of the fit.
    points = Points(
        law=law,
        logs=tuple(log - log.mean() for log in logs),
        centres=tuple(float(log.mean()) for log in logs),
        z=z - height,
        height=height,
        repeats=(np.log(arrays[1]), np.log(arrays[2])) if law.repeats else None,
    )
    return FitData(
        law=law,
        x=tuple(arrays) if len(law.variables) > 1 else arrays[0],
        y=losses,
        # Mean 1, so that a common factor of the weights changes neither objective nor intervals.
        weights=scaled_weights / scaled_weights.mean(),
        points=points,
        sizes=tuple(len(np.unique(each)) for each in arrays),
        decades=tuple(float(np.log10(each.max() / each.min())) for each in arrays),
        notes=notes,
    )


def _unmasked(values: ArrayLike) -> Array:
    """As floats. The masked values of a masked array become NaN, which is refused later."""
    return np.asarray(np.ma.filled(np.ma.asarray(values, dtype=float), np.nan))


def _refuse_shapes(law: Law, arrays: list[Array], y: Array) -> None:
    """Raises FitError where there is no point or x and y are not flat and of equal length."""
    if not len(y):
        raise FitError(f"{law.name}: there are no points")
    for variable, each in zip(law.variables, arrays, strict=True):
        if each.shape != y.shape or each.ndim != 1:
            raise FitError(
                f"{law.name}: {variable} has shape {each.shape} and the losses {y.shape}; "
                "both must be one-dimensional and of equal length"
            )


def _refuse_values(law: Law, arrays: list[Array], y: Array, floor: float | None) -> None:
    """Raises FitError for a value or a fixed E that the law does not allow."""
    for name, each in (*zip(law.variables, arrays, strict=True), ("L", y)):
        wrong = np.flatnonzero(~np.isfinite(each))
        if len(wrong):
            raise FitError(f"{name} is NaN or infinite at {_point_list(wrong)}")
        wrong = np.flatnonzero(each <= 0)
        if len(wrong):
            kind = "a loss or error" if name == "L" else "a size"
            raise FitError(
                f"{name} is {each[wrong[0]]:g} at {_point_list(wrong)}: a power law needs {kind} "
                "to be positive"
            )
    if law.odds and (y >= 1).any():
        raise FitError(f"L is {y.max():g}: odds need an error rate below 1 (is it in per cent?)")
    if floor is None:
        return
    if not law.floor:
        raise FitError(f"{law.formula} has no irreducible loss E to fix")
    if not np.isfinite(floor) or floor < 0:
        raise FitError(f"floor = {floor:g}: a fixed E must be finite and at least 0")
    if floor >= y.min():
        raise FitError(
            f"the fixed E = {floor:g} must be below all losses; the least loss is {y.min():g}"
        )


def _refuse_designs(law: Law, arrays: list[Array], y: Array, free_floor: bool) -> tuple[str, ...]:
    """Raises FitError where the points cannot determine the parameters; returns warnings."""
    free = len(law.names) - (law.floor and not free_floor)
    for variable, each in zip(law.variables, arrays, strict=True):
        if len(np.unique(each)) == 1 and variable != "U":  # U may be constant: D varies
            raise FitError(
                f"{counted(len(y), 'point')} at one {variable} = {each[0]:g}: a law needs several"
            )
    if len(y) <= free:
        raise FitError(
            f"{law.formula} has {free} parameters and only {counted(len(y), 'point')}: it would "
            f"fit any losses exactly; at least {free + 1} points are needed"
        )
    # Several runs of one size (seeds) add points but no information about the shape.
    if len(law.powers) == 1 and len(np.unique(arrays[0])) < free:
        raise FitError(
            f"{law.formula} has {free} parameters and needs as many different sizes, not "
            f"{len(np.unique(arrays[0]))}"
        )
    if len(law.powers) == 2:
        correlation = np.corrcoef(np.log(arrays[0]), np.log(arrays[1]))[0, 1]
        if abs(correlation) > 0.9999:
            raise FitError(
                f"log N and log D are collinear (r = {correlation:.5f}): their effects cannot be "
                "separated; vary N at fixed D or D at fixed N, or fit a law in N or in C alone"
            )
        few = [v for v, each in zip("ND", arrays, strict=False) if len(np.unique(each)) < 3]
        if few and free_floor and law.floor:
            raise FitError(
                f"only two different values of {' and of '.join(few)}: its power law cannot be "
                "separated from E; use at least three values, or fix E"
            )
    if law.repeats and (arrays[1] <= arrays[2]).all():
        raise FitError(
            "no run repeats its data (D > U nowhere): R* is not determined; fit `surface`"
        )
    rows = np.column_stack([*arrays, y])
    duplicates = len(rows) - len(np.unique(rows, axis=0))
    if duplicates:
        return (f"{duplicates} points are exact duplicates of others; each counts as a run",)
    return ()


def _point_list(wrong: NDArray[np.intp]) -> str:
    indices = ", ".join(str(index) for index in wrong[:5])
    return f"point{'s' if len(wrong) > 1 else ''} {indices}{', …' if len(wrong) > 5 else ''}"
