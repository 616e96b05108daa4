"""The laws as data: formula, variables, parameters with units. Every one is a log-sum-exp.

log L = s · log Σ_k exp(t_k), each t_k linear in its parameters (c - α log x) or a constant (log E);
s is 1, or -1 where the law is one of odds. So positive parameters stay positive, and gradient and
curvature are exact and the same few lines for all laws (analysis.fitting.solver).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Parameter:
    """One number of a law, as the law prints it."""

    name: str
    meaning: str
    unit: str


@dataclass(frozen=True)
class Law:
    """A formula for a loss or an error L in one or more variables.

    `powers` names (coefficient, exponent) of each power of a variable, in the order of `variables`.
    `floor`: L has a constant E besides; it is free unless the fit is told otherwise.
    `odds`: the law holds for L / (1 - L), so L is a share and its accuracy saturates.
    `repeats`: the last variable U is the unique data; D counts as D' (Muennighoff et al. 2023,
    arXiv 2305.16264, Eq. 5, their N' left out).
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    powers: tuple[tuple[str, str], ...]
    floor: bool = False
    odds: bool = False
    repeats: bool = False

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """In the order of the formula; `len` of it is the number of degrees of freedom."""
        found = []
        for (coefficient, exponent), variable in zip(self.powers, self.variables, strict=False):
            unit = f"[L] [{variable}]^{exponent}" if not self.odds else f"[{variable}]^{exponent}"
            found.append(Parameter(coefficient, f"L at {variable} = 1, above the rest", unit))
            found.append(Parameter(exponent, f"exponent of {variable}", "1"))
        if self.floor:
            found.append(Parameter("E", "floor: what no size removes", "[L]"))
        if self.repeats:
            found.append(Parameter("R_star", "passes after which repeating adds little", "passes"))
        return tuple(found)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    def predict(self, x: ArrayLike | Sequence[ArrayLike], values: Mapping[str, float]) -> Array:
        """L at `x`, in the units of L: an array, or a tuple of arrays, one for each variable."""
        arrays = self.arrays(x)
        if self.repeats:
            arrays = [arrays[0], effective_data(arrays[1], arrays[2], values["R_star"])]
        above = sum(
            values[coefficient] * each ** -values[exponent]
            for (coefficient, exponent), each in zip(self.powers, arrays, strict=False)
        )
        if self.odds:
            return np.asarray(above / (1 + above))
        return np.asarray(values.get("E", 0.0) + above)

    def arrays(self, x: ArrayLike | Sequence[ArrayLike]) -> list[Array]:
        """`x` as one float array for each variable. Raises ValueError for another number of them.

        A law of one variable takes the array itself; the others a tuple, as in `(N, D)`.
        """
        if len(self.variables) == 1:
            return [np.asanyarray(x, dtype=float)]
        given = [np.asanyarray(each, dtype=float) for each in x]  # type: ignore[union-attr]
        if len(given) != len(self.variables):
            raise ValueError(
                f"{self.name} takes ({', '.join(self.variables)}), a tuple of "
                f"{len(self.variables)} arrays; given were {len(given)}"
            )
        return given


def effective_data(D: Array, U: Array, R_star: float | Array) -> Array:
    """What D tokens of which U are unique are worth: U + U R* (1 - exp(-R/R*)), R = D/U - 1.

    Where D is below U nothing is repeated, and D counts whole.
    """
    repeats = np.maximum(D / U - 1, 0)
    return np.minimum(D, U) - U * R_star * np.expm1(-repeats / R_star)


PURE = Law("pure", "L = A x^-α = (β x)^-α", ("x",), (("A", "alpha"),))
FLOOR = Law("floor", "L = E + A x^-α = E + (β x)^-α", ("x",), (("A", "alpha"),), floor=True)
LOGIT = Law("logit", "L / (1 - L) = A x^-α = (β x)^-α", ("x",), (("A", "alpha"),), odds=True)
SURFACE = Law(
    "surface", "L = E + A N^-α + B D^-β", ("N", "D"), (("A", "alpha"), ("B", "beta")), floor=True
)
REPEATED = Law(
    "repeated", "L = E + A N^-α + B D'^-β, D' = U + U R* (1 - exp(-(D/U - 1)/R*))",
    ("N", "D", "U"), (("A", "alpha"), ("B", "beta")), floor=True, repeats=True,
)  # fmt: skip
LAWS = {law.name: law for law in (PURE, FLOOR, LOGIT, SURFACE, REPEATED)}
