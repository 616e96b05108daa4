"""How well a law foretells: fit below the largest size, predict the largest."""

from dataclasses import dataclass

import numpy as np

from analysis.fit import FitError, fit_law
from analysis.laws import Law


@dataclass(frozen=True)
class HeldOut:
    """The largest size, predicted from the smaller ones."""

    x: float
    measured: float
    predicted: float

    @property
    def relative_error(self) -> float:
        """Signed: above zero, the law expected a larger loss than was measured."""
        return self.predicted / self.measured - 1


def leave_largest_out(law: Law, x: np.ndarray, y: np.ndarray) -> HeldOut | None:
    """None where the smaller sizes alone cannot carry the law."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    largest = x == x.max()
    try:
        fit = fit_law(law, x[~largest], y[~largest])
    except FitError:
        return None
    predicted = float(fit.predict(x.max()))
    return HeldOut(float(x.max()), float(y[largest].mean()), predicted)
