"""Is a claimed set of parameters an optimum of its law on these points? Ask before citing it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import Law
from analysis.fitting.objectives import HUBER, Objective
from analysis.fitting.points import FitError
from analysis.fitting.solver import state

_EXCESS = 1e-3  # of the objective: what printing parameters to four digits may cost


@dataclass(frozen=True)
class Claim:
    """What was claimed beside the best optimum known."""

    values: dict[str, float]
    objective: float
    excess: float  # objective over the best one, less one
    gradient: float  # relative, at the claim
    best: Fit

    @property
    def is_optimum(self) -> bool:
        return self.excess <= _EXCESS

    @property
    def words(self) -> str:
        """The verdict in a sentence."""
        if self.is_optimum:
            return f"an optimum, within {max(self.excess, 0):.1e} of the best objective known"
        furthest = max(self.values, key=lambda name: abs(np.log(self._ratio(name))))
        return (
            f"NOT an optimum: {self.excess:.1%} above the best of {self.best.certificate.starts} "
            f"starts, relative gradient {self.gradient:.0e}; {furthest} is "
            f"{self.values[furthest]:.4g} where the optimum has {self.best[furthest]:.4g}"
        )

    def _ratio(self, name: str) -> float:
        best = self.best[name]
        return abs(self.values[name] / best) if best and self.values[name] else 1.0


def certify(
    law: Law,
    x: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike,
    values: Mapping[str, float],
    objective: str | Objective = HUBER,
) -> Claim:
    """Hold `values`, the law's parameters by name, against our own fit of the same points.

    Raises FitError where a parameter is missing or the points cannot carry the law.
    """
    missing = [name for name in law.names if name not in values]
    strange = [name for name in values if name not in law.names]
    if missing or strange:
        raise FitError(
            f"{law.formula} has {', '.join(law.names)}; "
            + "; ".join(filter(None, (
                f"no value for {', '.join(missing)}" if missing else "",
                f"unknown: {', '.join(strange)}" if strange else "",
            )))
        )  # fmt: skip
    try:
        values = {name: float(value) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        raise FitError(f"a claim must be numbers: {error}") from error
    if not all(np.isfinite(value) for value in values.values()):
        raise FitError("a claim must be finite numbers")
    if any(values[name] <= 0 for name in law.names if name in ("A", "B", "R_star")):
        raise FitError("coefficients and R* must be positive")
    if values.get("E", 0.0) < 0:
        raise FitError(f"E = {values['E']:g}: a floor cannot be negative")
    best = fit_law(law, x, y, objective)
    given, points = best.given, best.given.points
    theta = np.empty_like(best.theta)
    for k, (coefficient, exponent) in enumerate(law.powers):
        shift = points.height + values[exponent] * points.centres[k]
        theta[2 * k : 2 * k + 2] = np.log(values[coefficient]) - shift, values[exponent]
    if law.floor:
        floor = values["E"]
        theta[2 * points.powers] = np.log(floor) - points.height if floor > 0 else -np.inf
    if law.repeats:
        theta[-1] = np.log(values["R_star"])
    residual = np.log(given.y) - np.log(law.predict(given.x, values))
    reached = float((given.weights * best.objective.value(residual)).sum())
    least = best.certificate.objective
    gradient = state(points, points.z[None], given.weights[None], theta[None],
                     best.objective.delta, ())[1]  # fmt: skip
    exact = float(best.objective.value(np.full(best.points, 1e-6)).sum())  # points without noise
    excess = (reached + exact) / (least + exact) - 1
    return Claim(dict(values), reached, excess, float(gradient[0]), best)
