"""The objective of a fit: a sum over points of a loss of the residuals, scaled to order one.

Residuals are predicted minus measured log L, or L, as a share of the geometric mean of the losses.
"""

from dataclasses import dataclass, replace

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

    `of_loss`: the residuals are of L / G, G the geometric mean of the losses, so that neither the
    fit nor δ depends on the unit of L; log L else. G is 1 for the law in the odds. `above` is the
    factor, at most 1, of the loss of a run above the law: runs that are not tuned to their best lie
    above it. With "absolute" this is the quantile above / (1 + above) of the runs (Koenker and
    Bassett 1978).
    """

    kind: str  # "huber", "squares" or "absolute"
    delta: float
    of_loss: bool = False
    above: float = 1.0

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta = {self.delta}: the width of a loss must be positive")
        if not 0 < self.above <= 1:
            raise ValueError(
                f"above = {self.above}: the factor of runs above the law must be in (0, 1]"
            )

    @property
    def name(self) -> str:
        """As `objective_of` reads it, such as huber, huber:L or squares:above=0.2."""
        factor = f":above={self.above:g}" if self.above != 1 else ""
        return f"{self.kind}{':L' if self.of_loss else ''}{factor}"

    @property
    def is_gaussian(self) -> bool:
        """Plain least squares, to which the F test of an interval applies."""
        return bool(np.isinf(self.delta)) and self.above == 1

    def residual(self, log_residual: Array, z: Array) -> Array:
        """The residuals that the loss is taken of; `z`: measured log(L / G)."""
        if not self.of_loss:
            return log_residual
        # At most e^300, whose square is no overflow: such a step is refused anyway.
        return np.asarray(np.exp(z) * np.expm1(np.minimum(log_residual, 300.0)))

    def factor(self, residual: Array) -> Array:
        """The factor of each point's loss: `above` where the run is above the law."""
        return np.where(residual < 0, self.above, 1.0)

    def widths(self, near_optimum: bool) -> tuple[float, ...]:
        """The widths to minimise at, one after the other; the last is the objective's own.

        A narrow loss has kinks near its optimum, where Newton's method converges only from a close
        start. `near_optimum`: the start is close, so wide losses are skipped.
        """
        narrower = (width for width in _WIDTHS if width > self.delta)
        return (*(width for width in narrower if not near_optimum or width < 1e-3), self.delta)

    def value(self, residual: Array) -> Array:
        """The unscaled loss of each residual, predicted minus measured: r², Huber's r²/2 or
        δ(|r| - δ/2), or |r|; times `above` where r < 0.
        """
        size, factor = np.abs(residual), self.factor(residual)
        if np.isinf(self.delta):
            # Without the 1/2 of Huber's loss, so that the objective of a fit is its sum of squares.
            return factor * residual**2
        if self.kind == "absolute":
            return factor * size
        huber = np.where(size <= self.delta, residual**2 / 2, self.delta * (size - self.delta / 2))
        return factor * huber

    def at(self, width: float) -> "Objective":
        """The objective with losses of this width."""
        return self if width == self.delta else replace(self, delta=width)


# δ of Hoffmann et al. 2022, §3.3.
HUBER = Objective("huber", 1e-3)
SQUARES = Objective("squares", np.inf)
ABSOLUTE = Objective("absolute", 1e-6)
OBJECTIVES = {objective.name: objective for objective in (HUBER, SQUARES, ABSOLUTE)}


def objective_of(objective: str | Objective) -> Objective:
    """The objective of this name: NAME, NAME:L for residuals of L, NAME:above=FACTOR, or
    NAME:L:above=FACTOR. Raises ValueError for another one.
    """
    if isinstance(objective, Objective):
        return objective
    kind, *options = objective.split(":")
    if kind not in OBJECTIVES:
        raise ValueError(f"objective {objective!r}: one of {', '.join(OBJECTIVES)}")
    found = OBJECTIVES[kind]
    for option in options:
        key, _, number = option.partition("=")
        try:
            if option != "L" and key != "above":
                raise ValueError("unknown option")
            found = replace(found, **({"of_loss": True} if key == "L" else {key: float(number)}))
        except ValueError as error:
            raise ValueError(
                f"objective {objective!r}: {error}; after {kind} may follow :L (residuals of L) "
                "and :above=FACTOR (runs above the law count FACTOR times, at most 1)"
            ) from error
    return found


def scaled_value(residual: Array, loss: Objective) -> Array:
    """The scaled loss: divided by a finite width, so that its slope is at most one."""
    width = loss.delta
    if np.isinf(width):
        value = np.asarray(residual**2)
    else:
        size = np.abs(residual)
        value = np.where(size <= width, residual**2 / (2 * width), size - width / 2)
    return value if loss.above == 1 else value * loss.factor(residual)


def scaled_derivatives(residual: Array, loss: Objective) -> tuple[Array, Array, Array]:
    """First and second derivative of the scaled loss, and the curvature of the majorising
    quadratic, which is never below the loss; a constant one may have the shape (1, 1).
    """
    first, second, majorising = _symmetric_derivatives(residual, loss.delta)
    if loss.above == 1:
        return first, second, majorising
    # The slope at 0 is 0 from both sides, so the factor leaves it continuous.
    factor = loss.factor(residual)
    return factor * first, factor * second, factor * majorising


def _symmetric_derivatives(residual: Array, width: float) -> tuple[Array, Array, Array]:
    """`scaled_derivatives` where runs above and below the law count equally."""
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
