"""The laws as data: formula, parameters and their units. x is N, C or D; L a loss or an error."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Law:
    """L(x) = E + A x^-α. With `floor` False, E = 0: a straight line in log-log.

    The paper writes the reducible part (β x)^-α, so A = β^-α.
    """

    name: str
    formula: str
    floor: bool

    @property
    def parameters(self) -> int:
        return 3 if self.floor else 2

    def predict(self, x: np.ndarray, A: float, alpha: float, E: float) -> np.ndarray:
        """L at `x`, in the units of L."""
        return E + A * np.asarray(x, dtype=float) ** -alpha


PURE = Law("pure", "L = (β x)^-α", floor=False)
FLOOR = Law("floor", "L = E + (β x)^-α", floor=True)
LAWS = {law.name: law for law in (PURE, FLOOR)}
