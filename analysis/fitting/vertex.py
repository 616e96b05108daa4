"""The end of a least-absolute fit: its optimum is a corner, which Newton's method only nears.

Sequential linear programming: the sum of |residual| with the residuals made linear is a linear
program, whose solution is the corner of the tangent planes; near the optimum a few of them end at
rounding. (Osborne and Watson 1971, "On an algorithm for discrete nonlinear L1 approximation".)
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, lsq_linear

from analysis.fitting.solver import pushed_outward
from analysis.fitting.terms import Points, jacobian, residuals

Array = NDArray[np.float64]

_ROUNDS = 60
_ZERO = 1e-7  # of the mean size: a residual that the optimum goes through


def to_vertex(
    points: Points, weights: Array, theta: Array, floor_held: bool
) -> tuple[Array, float]:
    """θ (p,) at the corner near `theta`, and its relative gradient: 0 at an optimum.

    The gradient is what no multipliers in [-1, 1] of the points gone through can balance.
    """
    free = np.ones(len(theta), dtype=bool)
    at = 2 * points.powers
    if points.law.floor and (floor_held or not np.isfinite(theta[at])):
        free[at] = False
    lowest, highest = points.bounds
    residual = residuals(points, theta[None])[0]
    reached, reach = float(weights @ np.abs(residual)), 0.1
    for _ in range(_ROUNDS):
        slope = jacobian(points, theta[None])[0][free].T  # (n, p)
        room = np.maximum(lowest - theta, -reach)[free], np.minimum(highest - theta, reach)[free]
        step = np.zeros(len(theta))
        step[free] = _tangent_corner(weights, residual, slope, room)
        tried = theta + step
        new = residuals(points, tried[None])[0]
        got = float(weights @ np.abs(new))
        if got < reached:
            theta, residual, reached = tried, new, got
            reach *= 2
        else:
            reach = float(np.abs(step).max()) / 4
        if reach < 1e-13 or np.abs(step).max() < 1e-13:
            break
    theta, residual = _through(points, weights, theta, free)
    slope = jacobian(points, theta[None])[0]
    zero = np.abs(residual) <= np.maximum(_ZERO * np.abs(residual).mean(), 1e-13)
    away = slope @ (weights * np.sign(residual))
    free &= ~pushed_outward(theta, away, *points.bounds)
    slope = slope[free]
    pull = slope[:, ~zero] @ (weights * np.sign(residual))[~zero]
    through = slope[:, zero] * weights[zero]
    if through.shape[1]:
        size = (np.abs(slope) @ weights)[:, None]
        balanced = lsq_linear(through / size, -pull / size[:, 0], (-1, 1), method="bvls").x
        pull = pull + through @ balanced
    return theta, float((np.abs(pull) / (np.abs(slope) @ weights)).max())


def _through(
    points: Points, weights: Array, theta: Array, free: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """θ moved so that it goes through its nearest points to rounding, if that is no worse."""
    residual = residuals(points, theta[None])[0]
    nearest = np.argsort(np.abs(residual))[: free.sum()]
    tried, new = theta.copy(), residual
    for _ in range(4):
        slope = jacobian(points, tried[None])[0][free][:, nearest].T
        tried[free] -= np.linalg.lstsq(slope, new[nearest], rcond=None)[0]
        new = residuals(points, tried[None])[0]
    lowest, highest = points.bounds
    inside = ((tried >= lowest) & (tried <= highest))[free].all()
    no_worse = weights @ np.abs(new) <= weights @ np.abs(residual) * (1 + 1e-12)
    return (tried, new) if inside and no_worse else (theta, residual)


def _tangent_corner(
    weights: Array, residual: Array, slope: Array, room: tuple[Array, Array]
) -> Array:
    """The step d that minimises Σ w |r + slope d| within `room`.

    By its dual (p equations, n bounded unknowns): max r·u, |u| ≤ w, whose multipliers are d.
    """
    count, parameters = slope.shape
    unit = max(float(np.abs(residual).mean()), 1e-9)  # linear programs are solved to 1e-7
    size = np.abs(slope).max(0) + 1e-300
    low, high = (each * size / unit for each in room)
    cost = np.concatenate([-residual / unit * weights, -low, high])
    equal = np.hstack(
        [(slope / size * weights[:, None]).T, -np.eye(parameters), np.eye(parameters)]
    )
    bounds = [*[(-1, 1)] * count, *[(0, None)] * (2 * parameters)]
    found = linprog(cost, A_eq=equal, b_eq=np.zeros(parameters), bounds=bounds, method="highs")
    if found.status:
        return np.zeros(parameters)
    return np.asarray(found.eqlin.marginals) * unit / size
