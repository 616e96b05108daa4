"""The points of a fit, checked: what no law can be fitted to is refused in its own words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fitting.laws import Law
from analysis.fitting.terms import Points

Array = NDArray[np.float64]


class FitError(ValueError):
    """No law can be fitted to these points; the message says why."""


@dataclass(frozen=True)
class Given:
    """What a law is fitted to, in the order given."""

    law: Law
    x: tuple[Array, ...] | Array  # as the law takes it
    y: Array
    weights: Array  # mean 1
    points: Points
    sizes: tuple[int, ...]  # different values of each variable
    decades: tuple[float, ...]
    notes: tuple[str, ...]

    def log_floor(self, floor: float | None) -> float | None:
        """A fixed floor in the solver's centred logs; -inf for no floor."""
        if floor is None or not self.law.floor:
            return None
        return math.log(floor) - self.points.height if floor > 0 else -math.inf

    def values(self, theta: Array) -> dict[str, float]:
        """The law's own parameters of θ, by name."""
        return {name: float(value[0]) for name, value in self.columns(theta[None]).items()}

    def columns(self, theta: Array) -> dict[str, Array]:
        """The law's own parameters, each (B,), of θ (B, p)."""
        points, found = self.points, {}
        for k, (coefficient, exponent) in enumerate(self.law.powers):
            c, power = theta[:, 2 * k], theta[:, 2 * k + 1]
            with np.errstate(over="ignore"):
                found[coefficient] = np.exp(c + points.height + power * points.centres[k])
            found[exponent] = power
        if self.law.floor:
            found["E"] = np.exp(theta[:, 2 * points.powers] + points.height)
        if self.law.repeats:
            found["R_star"] = np.exp(theta[:, -1])
        return found


def check_points(
    law: Law,
    x: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike,
    floor: float | None = None,
    weights: ArrayLike | None = None,
) -> Given:
    """The points as a fit takes them. Raises FitError where no fit is possible."""
    try:
        arrays = [np.atleast_1d(_unmasked(each)) for each in law.arrays(x)]
        losses = np.atleast_1d(_unmasked(y))
        given = np.ones_like(losses) if weights is None else np.asarray(weights, dtype=float)
        floor = None if floor is None else float(floor)
    except (TypeError, ValueError) as error:
        raise FitError(f"{law.name}: points must be numbers: {error}") from error
    _refuse_shapes(law, arrays, losses)
    _refuse_values(law, arrays, losses, floor)
    if given.shape != losses.shape or not np.isfinite(given).all() or (given <= 0).any():
        raise FitError("weights must be positive numbers, one for each point")
    given = given / given.max()
    notes = _refuse_designs(law, arrays, losses, floor is None)
    logs = [np.log(each) for each in arrays[: len(law.powers)]]
    z = np.log(losses)
    height = 0.0 if law.odds else float(z.mean())
    points = Points(
        law=law,
        logs=tuple(log - log.mean() for log in logs),
        centres=tuple(float(log.mean()) for log in logs),
        z=z - height,
        height=height,
        repeats=(np.log(arrays[1]), np.log(arrays[2])) if law.repeats else None,
    )
    return Given(
        law=law,
        x=tuple(arrays) if len(law.variables) > 1 else arrays[0],
        y=losses,
        weights=given / given.mean(),
        points=points,
        sizes=tuple(len(np.unique(each)) for each in arrays),
        decades=tuple(float(np.log10(each.max() / each.min())) for each in arrays),
        notes=notes,
    )


def _unmasked(values: ArrayLike) -> Array:
    """As floats; what a masked array hides is NaN, and so is refused, not fitted."""
    return np.asarray(np.ma.filled(np.ma.asarray(values, dtype=float), np.nan))


def _refuse_shapes(law: Law, arrays: list[Array], y: Array) -> None:
    if not len(y):
        raise FitError(f"{law.name}: there are no points")
    for variable, each in zip(law.variables, arrays, strict=True):
        if each.shape != y.shape or each.ndim != 1:
            raise FitError(
                f"{law.name}: {variable} has shape {each.shape} and the losses {y.shape}; "
                "both must be flat and equally long"
            )


def _refuse_values(law: Law, arrays: list[Array], y: Array, floor: float | None) -> None:
    for name, each in (*zip(law.variables, arrays, strict=True), ("L", y)):
        wrong = np.flatnonzero(~np.isfinite(each))
        if len(wrong):
            raise FitError(f"{name} is NaN or infinite at {_places(wrong)}")
        wrong = np.flatnonzero(each <= 0)
        if len(wrong):
            what = "a loss or error" if name == "L" else "a size"
            raise FitError(
                f"{name} is {each[wrong[0]]:g} at {_places(wrong)}: a power law needs {what} "
                "to be positive"
            )
    if law.odds and (y >= 1).any():
        raise FitError(f"L is {y.max():g}: odds need shares below 1 (is it in per cent?)")
    if floor is None:
        return
    if not law.floor:
        raise FitError(f"{law.formula} has no floor to fix")
    if not np.isfinite(floor) or floor < 0:
        raise FitError(f"floor = {floor:g}: it must be zero or positive")
    if floor >= y.min():
        raise FitError(
            f"the floor {floor:g} is not below the data, whose least loss is {y.min():g}"
        )


def _refuse_designs(law: Law, arrays: list[Array], y: Array, free_floor: bool) -> tuple[str, ...]:
    """Raises FitError where the points cannot tell the parameters; returns what to be wary of."""
    wanted = len(law.names) - (law.floor and not free_floor)
    for variable, each in zip(law.variables, arrays, strict=True):
        if len(np.unique(each)) == 1 and not (variable == "U"):
            raise FitError(
                f"all {len(y)} points have the same {variable} = {each[0]:g}: one size shows no law"
            )
    if len(y) <= wanted:
        raise FitError(
            f"{law.formula} has {wanted} parameters and there are {len(y)} points: it would go "
            f"through them whatever they were; {wanted + 1} are the least"
        )
    if len(law.powers) == 1 and len(np.unique(arrays[0])) < wanted:
        raise FitError(
            f"{law.formula} has {wanted} parameters; there are {len(np.unique(arrays[0]))} "
            "different sizes"
        )
    if len(law.powers) == 2:
        together = np.corrcoef(np.log(arrays[0]), np.log(arrays[1]))[0, 1]
        if abs(together) > 0.9999:
            raise FitError(
                f"N and D rise together (r = {together:.5f}): no surface can tell their shares; "
                "vary one at the other's fixed value, or fit a law in N or in C alone"
            )
        few = [v for v, each in zip("ND", arrays, strict=False) if len(np.unique(each)) < 3]
        if few and free_floor and law.floor:
            raise FitError(
                f"only two different values of {' and of '.join(few)}: no surface can tell its "
                "power from E; three are the least, or fix E"
            )
    if law.repeats and (arrays[1] <= arrays[2]).all():
        raise FitError("no run repeats its data (D > U nowhere): R* cannot be told; fit `surface`")
    rows = np.column_stack([*arrays, y])
    twice = len(rows) - len(np.unique(rows, axis=0))
    if twice:
        return (f"{twice} points stand twice, equal to the last digit; each counts as a run",)
    return ()


def _places(wrong: NDArray[np.intp]) -> str:
    shown = ", ".join(str(place) for place in wrong[:5])
    return f"point{'s' if len(wrong) > 1 else ''} {shown}{', …' if len(wrong) > 5 else ''}"
