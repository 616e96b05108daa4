"""The laws as data: formula, variables, parameters with units. Every law is a log-sum-exp.

log L = s · log Σ_k exp(t_k), each t_k linear in its parameters (c - α log x) or a constant (log E);
s is 1, or -1 for the law in the odds. Positive parameters therefore stay positive, and one
implementation of the exact gradient and Hessian serves all laws (analysis.fitting.solver).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a law: its name in the formula, its meaning and its unit."""

    name: str
    meaning: str
    unit: str


@dataclass(frozen=True)
class Law:
    """A formula for a loss or an error L in one or more variables.

    `powers` names (coefficient, exponent) of each power of a variable, in the order of `variables`.
    `floor`: L has an additive constant, the irreducible loss E; it is fitted unless the fit fixes
    it. `odds`: the power law holds for L / (1 - L); L is an error rate between 0 and 1.
    `repeats`: the last variable U is the number of unique tokens, and D is replaced by the
    effective data D' (Muennighoff et al. 2023, arXiv 2305.16264, Eq. 5, without their N').
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    powers: tuple[tuple[str, str], ...]
    floor: bool = False
    odds: bool = False
    repeats: bool = False

    def __post_init__(self) -> None:
        repeated = sorted({name for name in self.names if self.names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"{self.name}: two parameters are named {', '.join(repeated)}; each parameter of a "
                "law needs a name of its own"
            )

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """In the order of the formula; their number is the number of free parameters."""
        parameters = []
        # Not strict: U of `REPEATED` is a variable without a power.
        for (coefficient, exponent), variable in zip(self.powers, self.variables, strict=False):
            unit = f"[L] [{variable}]^{exponent}" if not self.odds else f"[{variable}]^{exponent}"
            parameters.append(
                Parameter(coefficient, f"the term of {variable} at {variable} = 1", unit)
            )
            parameters.append(Parameter(exponent, f"exponent of {variable}", "1"))
        if self.floor:
            parameters.append(Parameter("E", "irreducible loss: the limit at infinite size", "[L]"))
        if self.repeats:
            parameters.append(
                Parameter("R_star", "repetitions after which repeating adds little", "passes")
            )
        return tuple(parameters)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    def predict(self, x: ArrayLike | Sequence[ArrayLike], values: Mapping[str, float]) -> Array:
        """L at `x`, in the units of L: an array, or a tuple of arrays, one for each variable."""
        arrays = self.arrays(x)
        if self.repeats:
            arrays = [arrays[0], effective_data(arrays[1], arrays[2], values["R_star"])]
        # The values may be columns (B, 1) of a bootstrap, which broadcast with x.
        reducible = sum(
            values[coefficient] * array ** -values[exponent]
            for (coefficient, exponent), array in zip(self.powers, arrays, strict=False)
        )
        if self.odds:
            return np.asarray(reducible / (1 + reducible))
        return np.asarray(values.get("E", 0.0) + reducible)

    def arrays(self, x: ArrayLike | Sequence[ArrayLike]) -> list[Array]:
        """`x` as one float array for each variable. Raises ValueError if their number is wrong.

        A law of one variable takes the array itself, the others a tuple such as `(N, D)`.
        """
        if len(self.variables) == 1:
            # asanyarray keeps masked arrays, so that check_points can refuse masked values.
            return [np.asanyarray(x, dtype=float)]
        arrays = [np.asanyarray(each, dtype=float) for each in x]  # type: ignore[union-attr]
        if len(arrays) != len(self.variables):
            raise ValueError(
                f"{self.name} takes ({', '.join(self.variables)}), a tuple of "
                f"{len(self.variables)} arrays; {len(arrays)} were given"
            )
        return arrays


def effective_data(D: Array, U: Array, R_star: float | Array) -> Array:
    """The unique tokens that equal D tokens of which U are unique: U + U R* (1 - exp(-R/R*)).

    R = D/U - 1 is the number of repetitions. Where D is below U, no token is repeated and D' = D.
    """
    repeats = np.maximum(D / U - 1, 0)
    # expm1, because with few repetitions 1 - exp loses digits.
    return np.minimum(D, U) - U * R_star * np.expm1(-repeats / R_star)


PURE = Law("pure", "L = A x^-α = (β x)^-α", ("x",), (("A", "alpha"),))
FLOOR = Law("floor", "L = E + A x^-α = E + (β x)^-α", ("x",), (("A", "alpha"),), floor=True)
# For error rates near 1: there a power law of the error has an exponent near .01, and the log odds
# are a straight line (docs/laws.md).
LOGIT = Law("logit", "L / (1 - L) = A x^-α = (β x)^-α", ("x",), (("A", "alpha"),), odds=True)
# Hoffmann et al. 2022 (arXiv 2203.15556), Eq. 2.
SURFACE = Law(
    "surface", "L = E + A N^-α + B D^-β", ("N", "D"), (("A", "alpha"), ("B", "beta")), floor=True
)
REPEATED = Law(
    "repeated", "L = E + A N^-α + B D'^-β, D' = U + U R* (1 - exp(-(D/U - 1)/R*))",
    ("N", "D", "U"), (("A", "alpha"), ("B", "beta")), floor=True, repeats=True,
)  # fmt: skip
LAWS = {law.name: law for law in (PURE, FLOOR, LOGIT, SURFACE, REPEATED)}
