"""Fit a law, and say how the fit came about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fitting.certificate import Certificate
from analysis.fitting.initialization import seeds
from analysis.fitting.laws import Law
from analysis.fitting.objectives import HUBER, Objective, objective_of
from analysis.fitting.points import FitError, Given, check_points
from analysis.fitting.search import solve
from analysis.fitting.terms import Points, information, residuals
from analysis.fitting.vertex import to_vertex

Array = NDArray[np.float64]

CONVERGED = 1e-6  # the relative gradient of an optimum


class NotConverged(FitError):
    """The best of all starts is no optimum; no number of it should be used."""


@dataclass(frozen=True)
class Fit:
    """A fitted law: its parameters by name, how well it describes the points, and how it was found.

    `r` and `r2` of a law in one variable are of log(L - E), or of the log odds, against log x;
    `r2` of the others is of log L. NaN where they mean nothing: all losses equal, or one below E.
    """

    law: Law
    objective: Objective
    values: dict[str, float]
    r: float
    r2: float
    rms_relative_error: float
    certificate: Certificate
    given: Given = field(repr=False)  # what was fitted
    theta: Array = field(repr=False, compare=False)  # in the solver's centred logs
    floor: float | None = None  # E, where it was fixed

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    @property
    def alpha(self) -> float:
        return self.values["alpha"]

    @property
    def A(self) -> float:
        return self.values["A"]

    @property
    def E(self) -> float:
        """The floor, fitted, fixed, or 0 where the law has none."""
        return self.values.get("E", 0.0)

    @property
    def paper_beta(self) -> float | None:
        """β of the paper's form, L - E = (β x)^-α (VAR, Eq. 3), in 1 / units of x.

        None for a law of several variables, and where α is so near zero that no float holds β.
        """
        if len(self.law.powers) > 1 or self.alpha == 0:
            return None
        log_beta = -math.log(self.A) / self.alpha if self.A > 0 else math.inf
        return math.exp(log_beta) if abs(log_beta) < 700 else None

    @property
    def points(self) -> int:
        return self.given.points.count

    @property
    def free(self) -> int:
        """How many parameters were fitted."""
        return len(self.law.names) - (self.floor is not None)

    @property
    def sizes(self) -> int:
        return self.given.sizes[0]

    @property
    def decades(self) -> float:
        return self.given.decades[0]

    @property
    def flags(self) -> tuple[str, ...]:
        """What a reader must know before using a number of this fit."""
        rising = [
            f"L rises with {variable}: {exponent} = {self.values[exponent]:.3g}"
            for (_, exponent), variable in zip(self.law.powers, self.law.variables, strict=False)
            if self.values[exponent] < 0
        ]
        return (*self.certificate.flags, *rising, *self.given.notes)

    @property
    def residuals(self) -> Array:
        """log(measured / predicted) of each point, in the order given."""
        return np.asarray(np.log(self.given.y) - np.log(self.predict(self.given.x)))

    def predict(self, x: ArrayLike | Sequence[ArrayLike]) -> Array:
        """L at `x`: an array, or a tuple of arrays for a law of several variables."""
        return self.law.predict(x, self.values)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, with the formula, units and flags spelled out."""
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "values": dict(self.values),
            "units": {p.name: p.unit for p in self.law.parameters},
            "paper_beta": self.paper_beta,
            "floor_fixed_at": self.floor,
            "objective": self.objective.name,
            "delta": self.objective.delta if math.isfinite(self.objective.delta) else None,
            "r": self.r,
            "r2": self.r2,
            "rms_relative_error": self.rms_relative_error,
            "points": self.points,
            "sizes": dict(zip(self.law.variables, self.given.sizes, strict=True)),
            "decades": dict(zip(self.law.variables, self.given.decades, strict=True)),
            "certificate": self.certificate.as_dict(),
            "flags": list(self.flags),
        }


def fit_law(
    law: Law,
    x: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike,
    objective: str | Objective = HUBER,
    *,
    floor: float | None = None,
    weights: ArrayLike | None = None,
    strict: bool = True,
) -> Fit:
    """Fit `law` to points: x as the law takes it, y the losses, in any units.

    `floor` fixes E (0: no floor). `weights` say how much each point counts; only their ratios
    matter. Raises FitError, in words that say what is wrong, where the points cannot carry the law,
    and NotConverged where no optimum was reached, unless `strict` is False: then it is a flag.
    """
    objective = objective_of(objective)
    given = check_points(law, x, y, floor=floor, weights=weights)
    points, w = given.points, given.weights[None]
    log_floor = given.log_floor(floor)
    starts = seeds(points, given.weights, log_floor)
    solved = solve(points, w, starts[:, None], objective, log_floor)
    theta, start, gradient = solved.theta[0], starts[solved.best[0]], float(solved.gradient[0])
    if objective.name == "absolute":
        theta, gradient = to_vertex(points, given.weights, theta, log_floor is not None)
    values = given.values(theta)
    beyond = [name for name, value in values.items() if not np.isfinite(value)]
    if beyond:
        raise FitError(
            f"{', '.join(beyond)} is beyond what a float holds (it is what the law says at x = 1, "
            "far from these points): give x in units nearer to them, or ask why it is so steep"
        )
    known = np.isfinite(theta)  # a floor of nothing has moved no finite way
    moved = np.abs(theta[known] - start[known])
    certificate = Certificate(
        starts=len(starts),
        agreed=float(solved.agreed[0]),
        objective=float((given.weights * objective.value(residuals(points, theta[None])[0])).sum()),
        gradient=gradient,
        converged=gradient < CONVERGED,
        bounds=_bounds_hit(points, theta, free_floor=floor is None),
        moved=float(np.max(moved, initial=0.0)),
        condition=_condition(points, w, theta, held=() if floor is None else (2 * points.powers,)),
    )
    if strict and not certificate.converged:
        raise NotConverged(
            f"{law.formula} did not converge: relative gradient {certificate.gradient:.0e} after "
            f"{len(starts)} starts, of which {certificate.agreed:.0%} agree; strict=False shows it"
        )
    r, r2 = _correlation(given, law, values)
    error = np.expm1(residuals(points, theta[None])[0])
    rms = float(np.sqrt(np.average(error**2, weights=given.weights)))
    return Fit(law, objective, values, r, r2, rms, certificate, given, theta, floor)


def _bounds_hit(points: Points, theta: Array, free_floor: bool) -> tuple[str, ...]:
    lowest, highest = points.bounds
    names = [name for pair in points.law.powers for name in pair]
    names += ["E"] * points.law.floor + ["R_star"] * points.law.repeats
    return tuple(
        f"{name} at its {'lower' if low else 'upper'} bound"
        for name, low, high in zip(names, theta <= lowest, theta >= highest, strict=True)
        if (low or high) and (name != "E" or free_floor)
    )


def _condition(points: Points, weights: Array, theta: Array, held: tuple[int, ...]) -> float:
    """Of the information matrix, brought to a unit diagonal: near 1 is well told apart."""
    known = information(points, weights, theta[None])[0]
    free = [j for j in range(len(known)) if j not in held and known[j, j] > 0]
    known = known[np.ix_(free, free)]
    scale = np.sqrt(np.diag(known))
    return float(np.linalg.cond(known / np.outer(scale, scale)))


def _correlation(given: Given, law: Law, values: dict[str, float]) -> tuple[float, float]:
    """r and R² of the straight line that the law is; R² of log L for a law of several variables."""
    y = given.y
    if len(law.powers) == 1:
        reducible = y / (1 - y) if law.odds else y - values.get("E", 0.0)
        if (reducible <= 0).any():
            return math.nan, math.nan
        shown = np.log(reducible)
        line = np.log(values["A"]) - values["alpha"] * np.log(given.x)
    else:
        shown, line = np.log(y), np.log(law.predict(given.x, values))
    spread = float(np.sum((shown - shown.mean()) ** 2))
    if spread < 1e-20:  # all losses equal: nothing to correlate
        return math.nan, math.nan
    r2 = 1 - float(np.sum((line - shown) ** 2)) / spread
    r = float(np.corrcoef(given.points.logs[0], shown)[0, 1]) if len(law.powers) == 1 else math.nan
    return r, r2
