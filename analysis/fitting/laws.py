"""The laws as data: formula, variables, parameters with units. Every law is a log-sum-exp.

log L = s · log Σ_k exp(t_k), each t_k linear in its parameters (c - α log x) or a constant (log E);
s is 1, or -1 for the law in the odds. Positive parameters therefore stay positive, and one
implementation of the exact gradient and Hessian serves all laws (analysis.fitting.solver). The
sigmoid is the quotient of two such sums.
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
    `tied`: all powers have one exponent, which has one name. `cross` names the exponent of the
    first variable in the coefficient of the last power; `bend` names the change of the exponent of
    the last power with the log of the first variable. `rising`: exponents count as positive where
    the quantity rises; neither sign is forced. `sigmoid`: a bounded score in a loss that is not
    taken in logs; `powers` names (loss at the middle, slope). A repeated parameter name is refused
    with ValueError.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    powers: tuple[tuple[str, str], ...]
    floor: bool = False
    odds: bool = False
    repeats: bool = False
    tied: bool = False
    cross: str | None = None
    bend: str | None = None
    rising: bool = False
    sigmoid: bool = False

    def __post_init__(self) -> None:
        repeated = [name for name in dict.fromkeys(self.names) if self.names.count(name) > 1]
        if repeated:
            raise ValueError(
                f"law {self.name!r}: the parameter name {', '.join(repeated)} is repeated; each "
                "parameter needs its own name (tied=True makes all exponents one parameter)"
            )
        exponents = {exponent for _, exponent in self.powers}
        if self.tied and len(exponents) > 1:
            raise ValueError(
                f"law {self.name!r} is tied: its powers must have the same exponent, not "
                f"{', '.join(sorted(exponents))}"
            )
        if self.cross and (self.repeats or len(self.powers) < 2):
            raise ValueError(f"law {self.name!r}: an interaction needs two powers, without repeats")
        if self.bend and not self.cross:
            raise ValueError(f"law {self.name!r}: a bend needs cross, or units change the fit")
        other = self.odds or self.repeats or self.tied or self.cross or self.rising
        if self.sigmoid and (other or not self.floor or len(self.powers) != 1):
            raise ValueError(f"law {self.name!r}: a sigmoid has one power and floor=True, no more")

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """In the order of the formula; their number is the number of free parameters."""
        if self.sigmoid:
            (middle, slope), variable = self.powers[0], f"[{self.variables[0]}]"
            return (
                Parameter(middle, "loss at which the score is midway between E and S", variable),
                Parameter(slope, "slope: the score falls as the loss rises", f"1 / {variable}"),
                Parameter("E", "the score at infinite loss, such as chance level", "[score]"),
                Parameter("S", "ceiling: the score at a loss far below the middle", "[score]"),
            )
        parameters = []
        y, sign = self.formula.split()[0], "-" if self.rising else ""
        # Not strict: U of `REPEATED` is a variable without a power.
        for k, ((coefficient, exponent), variable) in enumerate(
            zip(self.powers, self.variables, strict=False)
        ):
            unit = "" if self.odds else f"[{y}] "
            unit += f"[{variable}]^{sign}{exponent}"
            if self.cross and k == len(self.powers) - 1:
                unit += f" [{self.variables[0]}]^-{self.cross}"
            meaning = f"the term of {variable} at {variable} = 1"
            parameters.append(Parameter(coefficient, meaning, unit))
            if not (self.tied and k):
                of = " and ".join(self.variables) if self.tied else variable
                parameters.append(Parameter(exponent, f"exponent of {of}", "1"))
        if self.floor:
            meaning = "irreducible loss: the limit at infinite size"
            parameters.append(Parameter("E", meaning, f"[{y}]"))
        if self.repeats:
            meaning = "repetitions after which repeating adds little"
            parameters.append(Parameter("R_star", meaning, "passes"))
        if self.cross:
            first, last = self.variables[0], self.variables[-1]
            meaning = f"exponent of {first} in the term of {last}"
            parameters.append(Parameter(self.cross, meaning, "1"))
            if self.bend:
                meaning = f"change of the exponent of {last} with log {first}"
                parameters.append(Parameter(self.bend, meaning, "1"))
        return tuple(parameters)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    @cached_property
    def positive(self) -> frozenset[str]:
        """The parameters that are positive and fitted by their logs; E, which may be 0, is not."""
        if self.sigmoid:
            return frozenset({"S"})
        return frozenset({*(coefficient for coefficient, _ in self.powers), "R_star"})

    @property
    def sign(self) -> float:
        """-1 where the exponents of the solver, which are those of a fall, are the negatives."""
        return -1.0 if self.rising else 1.0

    def predict(self, x: ArrayLike | Sequence[ArrayLike], values: Mapping[str, float]) -> Array:
        """L at `x`, in the units of L: an array, or a tuple of arrays, one for each variable."""
        arrays = self.arrays(x)
        if self.sigmoid:
            middle, slope = (values[name] for name in self.powers[0])
            share = np.exp(-np.logaddexp(0, slope * (arrays[0] - middle)))  # no overflow
            return np.asarray(values["E"] + (values["S"] - values["E"]) * share)
        if self.repeats:
            arrays = [arrays[0], effective_data(arrays[1], arrays[2], values["R_star"])]
        # The values may be columns (B, 1) of a bootstrap, which broadcast with x.
        terms = [
            values[coefficient] * array ** (-self.sign * values[exponent])
            for (coefficient, exponent), array in zip(self.powers, arrays, strict=False)
        ]
        if self.cross:
            terms[-1] = terms[-1] * arrays[0] ** values[self.cross]
        if self.bend:
            terms[-1] = terms[-1] * arrays[-1] ** (-values[self.bend] * np.log(arrays[0]))
        reducible = sum(terms)
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

    def coordinates(self, arrays: Sequence[Array]) -> list[Array]:
        """What each power is linear in: the log of its variable, or the loss of the sigmoid."""
        return [each if self.sigmoid else np.log(each) for each in arrays[: len(self.powers)]]


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
# The surface with α = β. Gadre et al. 2024 (arXiv 2403.08540) write it in compute and tokens per
# parameter, L = E + (a M^η + b M^-η) C^-η. With C = 6 N D and M = D / N it is this law: η = α / 2,
# a = 6^η A, b = 6^η B.
TIED = Law(
    "tied", "L = E + A N^-α + B D^-α", ("N", "D"), (("A", "alpha"), ("B", "alpha")),
    floor=True, tied=True,
)  # fmt: skip
# The gain from data depends on the size. This is NOT the law of Farseer (arXiv 2506.10972), in
# which the exponent and the coefficient of D are stretched exponentials of N (nine parameters); it
# is the simplest law with such an interaction, one power of N, and the surface at γ = 0. `VARYING`
# is nearer.
INTERACTION = Law(
    "interaction", "L = E + A N^-α + B N^γ D^-β", ("N", "D"), (("A", "alpha"), ("B", "beta")),
    floor=True, cross="gamma",
)  # fmt: skip
# B(N) D^-A(N) with A(N) = β + δ log N and B(N) = B N^γ: the first order in log N of the law of
# Farseer (arXiv 2506.10972), whose logs of A and B are powers of N plus constants. Unlike that law
# it keeps its form in other units of N and D.
VARYING = Law(
    "varying", "L = E + A N^-α + B N^γ D^-(β + δ log N)", ("N", "D"),
    (("A", "alpha"), ("B", "beta")), floor=True, cross="gamma", bend="delta",
)  # fmt: skip
# The best size for a budget (Hoffmann et al. 2022, arXiv 2203.15556, §3). The data decide the sign.
RISING = Law("rising", "N = k C^a", ("C",), (("k", "a"),), rising=True)
# A score of a task from a loss: the second step of Bhagia et al. 2024 (arXiv 2412.04403), there
# a / (1 + exp(-k (L - L0))) + b, with k < 0. Here b is E, a is S - E, and k > 0.
SIGMOID = Law(
    "sigmoid", "score = E + (S - E) / (1 + exp(-k (L0 - L)))", ("L",), (("L0", "k"),),
    floor=True, sigmoid=True,
)  # fmt: skip
LAWS = {
    law.name: law
    for law in (PURE, FLOOR, LOGIT, SURFACE, REPEATED, TIED, INTERACTION, VARYING, RISING, SIGMOID)
}
