"""The objective of a fit: a sum over points of a loss of log residuals, scaled to order one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


# Huber losses of decreasing width, least squares first. Started at the narrow width, most of a
# handful of points lie outside it, where the Hessian has no curvature, and Newton's steps jump from
# kink to kink.
_WIDTHS = (
    np.inf, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7, 3e-8,
)  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """A sum of Huber losses of width `delta`; least squares and least absolute are its limits.

    The solver divides by a finite `delta`, so that a large residual has slope one at any width.
    Least absolute deviations are approached by Huber losses of decreasing width, down to `delta`;
    `fit_law` then continues to the exact optimum (analysis.fitting.vertex).
    """

    name: str
    delta: float

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta = {self.delta}: the width of a loss must be positive")

    def widths(self, near_optimum: bool) -> tuple[float, ...]:
        """The widths to minimise at, one after the other; the last is the objective's own.

        A narrow loss has kinks near its optimum, where Newton's method converges only from a close
        start. `near_optimum`: the start is close, so wide losses are skipped.
        """
        narrower = (width for width in _WIDTHS if width > self.delta)
        return (*(width for width in narrower if not near_optimum or width < 1e-3), self.delta)

    def value(self, residual: Array) -> Array:
        """The unscaled loss of each residual: r², Huber's r²/2 or δ(|r| - δ/2), or |r|."""
        size = np.abs(residual)
        if np.isinf(self.delta):
            # Without the 1/2 of Huber's loss, so that the objective of a fit is its sum of squares.
            return residual**2
        if self.name == "absolute":
            return size
        return np.where(size <= self.delta, residual**2 / 2, self.delta * (size - self.delta / 2))


# δ of Hoffmann et al. 2022, §3.3.
HUBER = Objective("huber", 1e-3)
SQUARES = Objective("squares", np.inf)
ABSOLUTE = Objective("absolute", 1e-6)
OBJECTIVES = {objective.name: objective for objective in (HUBER, SQUARES, ABSOLUTE)}


def objective_of(objective: str | Objective) -> Objective:
    """The objective of this name. Raises ValueError for an unknown name."""
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r}: one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[objective]


def scaled_value(residual: Array, width: float) -> Array:
    """The scaled loss: divided by a finite width, so that its slope is at most one."""
    if np.isinf(width):
        return np.asarray(residual**2)
    size = np.abs(residual)
    return np.where(size <= width, residual**2 / (2 * width), size - width / 2)


def scaled_derivatives(residual: Array, width: float) -> tuple[Array, Array, Array]:
    """First and second derivative of the scaled loss, and the curvature of the majorising
    quadratic, which is never below the loss; a constant one has the shape (1, 1).
    """
    if np.isinf(width):
        return 2 * residual, np.full((1, 1), 2.0), np.full((1, 1), 2.0)
    size = np.abs(residual)
    # The majoriser of the linear part touches the loss at the residual and has the curvature 1 /
    # |r|, as in iteratively reweighted least squares; the second derivative there is 0.
    inside = size <= width
    return (
        np.where(inside, residual / width, np.sign(residual)),
        np.where(inside, 1 / width, 0.0),
        1 / np.maximum(size, width),
    )
