"""Check whether published parameters are an optimum of their law on the given points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import Law
from analysis.fitting.objectives import HUBER, Objective
from analysis.fitting.points import FitError
from analysis.fitting.solver import evaluate
from analysis.format import percent

_MAX_EXCESS = 1e-3  # of the objective; parameters printed to four digits can cost this much


@dataclass(frozen=True)
class Claim:
    """Claimed parameters, compared with the best optimum found by our own fit."""

    values: dict[str, float]
    objective: float
    excess: float  # objective divided by that of `best`, minus 1
    gradient: float  # relative gradient at the claimed values
    best: Fit

    @property
    def is_optimum(self) -> bool:
        return self.excess <= _MAX_EXCESS

    @property
    def summary(self) -> str:
        """The result in a sentence."""
        if self.is_optimum:
            return f"an optimum, within {max(self.excess, 0):.1e} of the best objective found"
        # The parameter with the largest ratio to the optimum, in either direction.
        furthest = max(self.values, key=lambda name: abs(np.log(self._ratio(name))))
        return (
            f"NOT an optimum: {percent(self.excess, 1)} above the best of "
            f"{self.best.certificate.starts} starts, relative gradient {self.gradient:.0e}; "
            f"{furthest} is {self.values[furthest]:.4g} where the optimum has "
            f"{self.best[furthest]:.4g}"
        )

    def _ratio(self, name: str) -> float:
        """Claimed value / optimum; 1 where either is zero and the ratio has no logarithm."""
        best = self.best[name]
        return abs(self.values[name] / best) if best and self.values[name] else 1.0


def certify(
    law: Law,
    x: ArrayLike | Sequence[ArrayLike],
    y: ArrayLike,
    values: Mapping[str, float],
    objective: str | Objective = HUBER,
) -> Claim:
    """Compare `values`, the law's parameters by name, with our own fit of the same points.

    Raises FitError where a parameter is missing, unknown or not allowed, or where the points cannot
    determine the law.
    """
    missing = [name for name in law.names if name not in values]
    unknown = [name for name in values if name not in law.names]
    if missing or unknown:
        raise FitError(
            f"{law.formula} has the parameters {', '.join(law.names)}; "
            + "; ".join(filter(None, (
                f"no value for {', '.join(missing)}" if missing else "",
                f"unknown: {', '.join(unknown)}" if unknown else "",
            )))
        )  # fmt: skip
    try:
        values = {name: float(value) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        raise FitError(f"claimed values must be numbers: {error}") from error
    if not all(np.isfinite(value) for value in values.values()):
        raise FitError("claimed values must be finite")
    if any(values[name] <= 0 for name in law.names if name in law.positive):
        names = ", ".join("R*" if name == "R_star" else name for name in sorted(law.positive))
        raise FitError(f"coefficients and R* must be positive, of {law.name}: {names}")
    if values.get("E", 0.0) < 0:
        raise FitError(f"E = {values['E']:g}: the irreducible loss E cannot be negative")
    best = fit_law(law, x, y, objective)
    data, points = best.data, best.data.points
    theta = data.theta(values)
    # From the claimed numbers themselves, so that θ adds no rounding error.
    residual = np.log(law.predict(data.x, values)) - np.log(data.y)
    residual = best.objective.residual(residual, points.z)
    claimed_objective = float((data.weights * best.objective.value(residual)).sum())
    best_objective = best.certificate.objective
    gradient = evaluate(points, points.z[None], data.weights[None], theta[None],
                     best.objective, ())[1]  # fmt: skip
    # The objective of residuals of 1e-6 is added, because it is 0 for points without noise.
    exact = float(best.objective.value(np.full(best.points, 1e-6)).sum())
    excess = (claimed_objective + exact) / (best_objective + exact) - 1
    return Claim(dict(values), claimed_objective, excess, float(gradient[0]), best)
