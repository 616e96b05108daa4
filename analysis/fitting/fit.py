"""Fit a law to points, with diagnostics of the fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.fitting.certificate import Certificate
from analysis.fitting.initialization import starting_points
from analysis.fitting.laws import Law
from analysis.fitting.objectives import HUBER, Objective, objective_of
from analysis.fitting.points import FitData, FitError, check_points
from analysis.fitting.search import solve
from analysis.fitting.terms import Points, information, residuals
from analysis.fitting.vertex import to_vertex

Array = NDArray[np.float64]

CONVERGED = 1e-6  # largest relative gradient that counts as an optimum


class NotConverged(FitError):
    """No start reached an optimum, so the parameters must not be used."""


@dataclass(frozen=True)
class Fit:
    """A fitted law: its parameters by name, its goodness of fit, and the solver's diagnostics.

    For a law in one variable, `r` and `r2` are of log(L - E), or of the log odds, against log x.
    For a law in several variables and the sigmoid, `r2` is of log L and `r` is NaN. Both are NaN
    where they are undefined: all losses equal, or a loss below E.
    """

    law: Law
    objective: Objective
    values: dict[str, float]
    r: float
    r2: float
    rms_relative_error: float
    certificate: Certificate
    data: FitData = field(repr=False)  # the points and weights
    theta: Array = field(repr=False, compare=False)  # (p,), in the solver's centred logs
    floor: float | None = None  # the fixed value of E; None where E is free or absent
    # Why the parameters are no optimum of these points, in words; "" where they are one.
    origin: str = ""

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
        """The irreducible loss, fitted or fixed; 0 where the law has none."""
        return self.values.get("E", 0.0)

    @property
    def paper_beta(self) -> float | None:
        """β of the paper's form, L - E = (β x)^-α (VAR, Eq. 3), in 1 / units of x.

        None for a law of several variables, a rising law and the sigmoid, and where α is so close
        to 0 that β overflows a float.
        """
        if len(self.law.powers) > 1 or "alpha" not in self.values or self.alpha == 0:
            return None
        # A x^-α = (β x)^-α gives β = A^(-1/α).
        log_beta = -math.log(self.A) / self.alpha if self.A > 0 else math.inf
        # exp overflows a float above 709.
        return math.exp(log_beta) if abs(log_beta) < 700 else None

    @property
    def points(self) -> int:
        """The number of points."""
        return self.data.points.count

    @property
    def free(self) -> int:
        """The number of fitted parameters; a fixed E is not one."""
        return len(self.law.names) - (self.floor is not None)

    @property
    def sizes(self) -> int:
        """The number of different values of the first variable."""
        return self.data.sizes[0]

    @property
    def decades(self) -> float:
        """The range of the first variable, in decades."""
        return self.data.decades[0]

    @property
    def flags(self) -> tuple[str, ...]:
        """Warnings that a reader must know before using the numbers of this fit."""
        quantity = self.law.formula.split()[0]
        against = [
            f"{quantity} {'falls' if self.law.rising else 'rises'} with {variable}: "
            f"{exponent} = {self.values[exponent]:.3g}"
            # Not strict: U, the last variable of `REPEATED`, has no power of its own.
            for (_, exponent), variable in zip(self.law.powers, self.law.variables, strict=False)
            if self.values[exponent] < 0
        ]
        if self.law.sigmoid and self["S"] < self.E:
            against.append(f"the score rises with the loss: E = {self.E:.3g}, S = {self['S']:.3g}")
        origin = (self.origin,) if self.origin else ()
        return (*origin, *self.certificate.flags, *against, *self.data.notes)

    @property
    def residuals(self) -> Array:
        """log(measured / predicted) of each point, in the order given."""
        return np.asarray(np.log(self.data.y) - np.log(self.predict(self.data.x)))

    @property
    def misfits(self) -> Array:
        """The residuals that the objective is a sum over: predicted minus measured, in log L or in
        L as a share of the geometric mean.
        """
        return residuals(self.data.points, self.theta[None], self.objective)[0]

    def predict(self, x: ArrayLike | Sequence[ArrayLike]) -> Array:
        """L at `x`: an array, or a tuple of arrays for a law of several variables."""
        return self.law.predict(x, self.values)

    def refuse_other_origin(self) -> None:
        """Raises FitError where the parameters are no optimum of the points: what is computed from
        the rise of the objective above its optimum, or from refits, has no meaning there.
        """
        if self.origin:
            raise FitError(f"{self.law.formula}: {self.origin}")

    def as_dict(self) -> dict[str, Any]:
        """The fit as plain numbers and strings, with formula, units and flags."""
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "values": dict(self.values),
            "units": {p.name: p.unit for p in self.law.parameters},
            "paper_beta": self.paper_beta,
            "floor_fixed_at": self.floor,
            "objective": self.objective.name,
            "delta": self.objective.delta if math.isfinite(self.objective.delta) else None,
            "residuals_of": "L" if self.objective.of_loss else "log L",
            "factor_above": self.objective.above,
            "r": self.r,
            "r2": self.r2,
            "rms_relative_error": self.rms_relative_error,
            "points": self.points,
            "sizes": dict(zip(self.law.variables, self.data.sizes, strict=True)),
            "decades": dict(zip(self.law.variables, self.data.decades, strict=True)),
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
    """Fit `law` to points: x as `law.predict` takes it, y the losses, in any units.

    `floor` fixes the irreducible loss E (0: none). `weights` (n,): only their ratios matter. Raises
    FitError where the points cannot determine the parameters, and NotConverged where no optimum was
    reached; with `strict` False a fit that did not converge is returned with a flag.
    """
    objective = objective_of(objective)
    data = check_points(law, x, y, floor=floor, weights=weights)
    # The solver works on batches. This is a batch of one problem: weights (1, n), starts (S, 1, p).
    points, w = data.points, data.weights[None]
    log_floor = data.log_floor(floor)
    starts = starting_points(points, data.weights, log_floor)
    solved = solve(points, w, starts[:, None], objective, log_floor)
    theta, start, gradient = solved.theta[0], starts[solved.best[0]], float(solved.gradient[0])
    # Least absolute deviations have their optimum at a corner, where the Huber losses of decreasing
    # width stop short of it. Linear programs reach it exactly.
    if objective.kind == "absolute":
        theta, gradient = to_vertex(points, data.weights, theta, log_floor is not None, objective)
    values = data.values(theta)
    _refuse_overflow(values)
    misfits = residuals(points, theta[None], objective)[0]
    finite = np.isfinite(theta)  # log E is -inf where E is 0
    moved = np.abs(theta[finite] - start[finite])
    certificate = Certificate(
        starts=len(starts),
        agreed=float(solved.agreed[0]),
        objective=float((data.weights * objective.value(misfits)).sum()),
        gradient=gradient,
        converged=gradient < CONVERGED,
        bounds=_bounds_hit(points, theta, free_floor=floor is None),
        moved=float(np.max(moved, initial=0.0)),
        condition=_condition_number(
            points, w, theta, fixed=() if floor is None else (2 * points.powers,)
        ),
    )
    if strict and not certificate.converged:
        raise NotConverged(
            f"{law.formula} did not converge: relative gradient {certificate.gradient:.0e} after "
            f"{len(starts)} starts, of which {certificate.agreed:.0%} agree; strict=False "
            "returns the fit with a flag instead"
        )
    r, r2 = _correlation(data, law, values)
    rms = _rms_relative_error(data, theta)
    return Fit(law, objective, values, r, r2, rms, certificate, data, theta, floor)


def with_parameters(
    fit: Fit, values: Mapping[str, float], origin: str, certificate: Certificate
) -> Fit:
    """The same points with other parameters of the law, found elsewhere.

    r, R² and the error are those of the points against the new line. `origin` says where the
    `values` come from, and `certificate` belongs to that fit. Whatever needs an optimum of the
    points refuses the result.
    """
    values = {name: float(values[name]) for name in fit.values}
    _refuse_overflow(values)
    theta = fit.data.theta(values)
    r, r2 = _correlation(fit.data, fit.law, values)
    return replace(
        fit, values=values, r=r, r2=r2, rms_relative_error=_rms_relative_error(fit.data, theta),
        certificate=certificate, theta=theta, origin=origin,
    )  # fmt: skip


def _rms_relative_error(data: FitData, theta: Array) -> float:
    # expm1 of a log residual is predicted / measured - 1.
    error = np.expm1(residuals(data.points, theta[None])[0])
    return float(np.sqrt(np.average(error**2, weights=data.weights)))


def _refuse_overflow(values: dict[str, float]) -> None:
    # The solver's θ refers to the centre of the points. A coefficient is its term's value at x = 1,
    # often many decades away, and can overflow although the fit is good.
    overflowed = [name for name, value in values.items() if not np.isfinite(value)]
    if overflowed:
        raise FitError(
            f"{', '.join(overflowed)} overflows a float: a coefficient is its term's value at x = "
            "1, far from these points. Give x in larger units, or check why the fitted exponent is "
            "so steep"
        )


def _bounds_hit(points: Points, theta: Array, free_floor: bool) -> tuple[str, ...]:
    """The parameters at a bound, in words; a fixed E is not one."""
    lowest, highest = points.bounds
    # The names in the order of θ, see Points.parameters.
    law = points.law
    names = [name for pair in law.powers for name in pair]
    names += ["E"] * law.floor + ["R_star"] * law.repeats + ["S"] * law.sigmoid
    names += [name for name in (law.cross, law.bend) if name]
    low, high = theta <= lowest, theta >= highest
    if law.rising:  # the exponents of the solver are the negatives
        exponents = slice(1, 2 * points.powers, 2)
        low[exponents], high[exponents] = high[exponents].copy(), low[exponents].copy()
    return tuple(
        dict.fromkeys(  # tied exponents have one name and several columns
            f"{name} at its {'lower' if at_low else 'upper'} bound"
            + (", no score at infinite loss" if law.sigmoid and name == "E" and at_low else "")
            for name, at_low, at_high in zip(names, low, high, strict=True)
            if (at_low or at_high) and (name != "E" or free_floor)
        )
    )


def _condition_number(
    points: Points, weights: Array, theta: Array, fixed: tuple[int, ...]
) -> float:
    """The condition number of the information matrix, scaled to a unit diagonal.

    Near 1 the points determine each parameter separately. `fixed`: columns of θ that were not
    fitted.
    """
    matrix = information(points, weights, theta[None])[0]
    # Where E is exactly 0, log E = -inf has no effect on L: its row and column are 0.
    free = [j for j in range(len(matrix)) if j not in fixed and matrix[j, j] > 0]
    matrix = matrix[np.ix_(free, free)]
    # Without the scaling the number would depend on the units of the parameters.
    scale = np.sqrt(np.diag(matrix))
    return float(np.linalg.cond(matrix / np.outer(scale, scale)))


def _correlation(data: FitData, law: Law, values: dict[str, float]) -> tuple[float, float]:
    """r and R² in the logs in which the law is a straight line, and NaN, R² of log L for several
    variables.
    """
    y = data.y
    straight = len(law.powers) == 1 and not law.sigmoid
    if straight:
        reducible = y / (1 - y) if law.odds else y - values.get("E", 0.0)
        # E is above a loss, which residuals of log L allow: log(L - E) does not exist there.
        if (reducible <= 0).any():
            return math.nan, math.nan
        measured = np.log(reducible)
        coefficient, exponent = law.powers[0]
        slope = -law.sign * values[exponent]
        line = np.log(values[coefficient]) + slope * np.log(data.x)
    else:
        measured, line = np.log(y), np.log(law.predict(data.x, values))
    spread = float(np.sum((measured - measured.mean()) ** 2))
    if spread < 1e-20:  # all losses equal: r and R² are undefined
        return math.nan, math.nan
    r2 = 1 - float(np.sum((line - measured) ** 2)) / spread
    r = float(np.corrcoef(data.points.logs[0], measured)[0, 1]) if straight else math.nan
    return r, r2
