"""The exact optimum of a least-absolute fit: a corner, which Newton's method only approximates.

Sequential linear programming: with linearised residuals, minimising the sum of |residual| is a
linear program, whose solution is a vertex. Near the optimum a few such steps reach rounding error.
(Osborne and Watson 1971, "On an algorithm for discrete nonlinear L1 approximation".)
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, lsq_linear

from analysis.fitting.objectives import Objective
from analysis.fitting.solver import pushed_outward
from analysis.fitting.terms import Points, jacobian, residuals

Array = NDArray[np.float64]

_MAX_ITERATIONS = 60
_ZERO = 1e-7  # of the mean |residual|: a smaller residual counts as zero


def to_vertex(
    points: Points, weights: Array, theta: Array, floor_fixed: bool, loss: Objective
) -> tuple[Array, float]:
    """θ (p,) at the corner near `theta`, and its relative gradient, which is 0 at an optimum.

    The gradient is the smallest subgradient: the points with zero residual enter with multipliers
    in [-1, 1] that balance the other points as far as possible. `floor_fixed`: E is fixed. `loss`:
    with its factor for runs above the law, -1 is minus that factor everywhere.
    """
    free = np.ones(len(theta), dtype=bool)
    at = 2 * points.powers
    # Where E is 0, log E = -inf cannot move.
    if points.law.floor and (floor_fixed or not np.isfinite(theta[at])):
        free[at] = False
    free[points.idle] = False
    lowest, highest = points.bounds
    residual = residuals(points, theta[None], loss)[0]
    # The trust region bounds each component of a step: far away the linearisation is wrong.
    objective, trust_radius = float(weights @ loss.value(residual)), 0.1
    for _ in range(_MAX_ITERATIONS):
        slope = jacobian(points, theta[None], loss)[0][free].T  # (n, p)
        room = (
            np.maximum(lowest - theta, -trust_radius)[free],
            np.minimum(highest - theta, trust_radius)[free],
        )
        step = np.zeros(len(theta))
        step[free] = _linearised_step(weights, residual, slope, room, loss)
        step[points.idle] = step[1]
        new_theta = theta + step
        new_residual = residuals(points, new_theta[None], loss)[0]
        new_objective = float(weights @ loss.value(new_residual))
        # A step that does not lower the objective is dropped; the next is at most a quarter of it.
        if new_objective < objective:
            theta, residual, objective = new_theta, new_residual, new_objective
            trust_radius *= 2
        else:
            trust_radius = float(np.abs(step).max()) / 4
        if trust_radius < 1e-13 or np.abs(step).max() < 1e-13:
            break
    # The linear programs end within their tolerance; this step reaches rounding error.
    theta, residual = _interpolated(points, weights, theta, free, loss)
    slope = jacobian(points, theta[None], loss)[0]
    # At a corner |r| has no derivative at the points with r = 0. Their signs may be any number in
    # [-1, 1], and the point is an optimum if some choice makes the gradient 0.
    zero = np.abs(residual) <= np.maximum(_ZERO * np.abs(residual).mean(), 1e-13)
    signs = np.sign(residual) * loss.factor(residual)
    gradient = slope @ (weights * signs)
    free &= ~pushed_outward(theta, gradient, *points.bounds)
    slope = slope[free]
    subgradient = slope[:, ~zero] @ (weights * signs)[~zero]
    zero_slope = slope[:, zero] * weights[zero]
    if zero_slope.shape[1]:
        # Each row in units of its summands, as the relative gradient is measured.
        scale = (np.abs(slope) @ weights)[:, None]
        multipliers = lsq_linear(
            zero_slope / scale, -subgradient / scale[:, 0], (-loss.above, 1), method="bvls"
        ).x
        subgradient = subgradient + zero_slope @ multipliers
    return theta, float((np.abs(subgradient) / (np.abs(slope) @ weights)).max())


def _interpolated(
    points: Points, weights: Array, theta: Array, free: NDArray[np.bool_], loss: Objective
) -> tuple[Array, Array]:
    """θ moved so that the p smallest residuals are zero to rounding, unless that is worse."""
    residual = residuals(points, theta[None], loss)[0]
    # A vertex of a linear program with p unknowns has p residuals of zero.
    nearest = np.argsort(np.abs(residual))[: free.sum()]
    new_theta, new_residual = theta.copy(), residual
    # Newton's method on these p equations converges quadratically: four steps are enough.
    for _ in range(4):
        slope = jacobian(points, new_theta[None], loss)[0][free][:, nearest].T
        new_theta[free] -= np.linalg.lstsq(slope, new_residual[nearest], rcond=None)[0]
        new_theta[points.idle] = new_theta[1]
        new_residual = residuals(points, new_theta[None], loss)[0]
    lowest, highest = points.bounds
    inside = ((new_theta >= lowest) & (new_theta <= highest))[free].all()
    before, after = (float(weights @ loss.value(each)) for each in (residual, new_residual))
    no_worse = after <= before * (1 + 1e-12)
    return (new_theta, new_residual) if inside and no_worse else (theta, residual)


def _linearised_step(
    weights: Array, residual: Array, slope: Array, room: tuple[Array, Array], loss: Objective
) -> Array:
    """The step d (p,) that minimises Σ w |r + slope d| within `room`, (lowest, highest) d.

    It solves the dual, max r·u with |u| ≤ w (p equations, n bounded unknowns), whose multipliers
    are d. Zero where the linear program has no solution. Where runs above the law count with a
    factor, u ≥ -w times that factor.
    """
    count, parameters = slope.shape
    unit = max(float(np.abs(residual).mean()), 1e-9)  # the solver's tolerance is 1e-7, absolute
    # Each column of the unknowns too is brought to order one.
    size = np.abs(slope).max(0) + 1e-300
    low, high = (bound * size / unit for bound in room)
    # The dual as a minimisation: the unknowns are u / w (n) and the multipliers of the lower and
    # upper limits of d (p each).
    cost = np.concatenate([-residual / unit * weights, -low, high])
    equal = np.hstack(
        [(slope / size * weights[:, None]).T, -np.eye(parameters), np.eye(parameters)]
    )
    bounds = [*[(-loss.above, 1.0)] * count, *[(0.0, None)] * (2 * parameters)]
    solution = linprog(cost, A_eq=equal, b_eq=np.zeros(parameters), bounds=bounds, method="highs")
    if solution.status:
        return np.zeros(parameters)
    # The multipliers of the p equations are d in scaled units.
    return np.asarray(solution.eqlin.marginals) * unit / size
