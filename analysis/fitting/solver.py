"""Newton's method on a batch: many weightings, starts or data sets of one law at once.

Gradient and Hessian are exact (a log-sum-exp has both in closed form); where the Hessian does not
descend, the majorising quadratic of the objective does. Row b of every array with a B is one
problem, so a bootstrap, a profile and a set of starts are each one call.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.objectives import Objective, scaled
from analysis.fitting.terms import Points, slopes_of, terms_of

Array = NDArray[np.float64]

_ROUNDING = 1e-13  # of the objective: a Newton step that is to gain less is the last
_ROUNDS = 250
_LOOSE = 1e-4  # tolerance on the way
_LONGEST_STEP = 2.0
_POOR = 0.35  # of the fall that the slope promises (a half where the quadratic is true)
_CHUNK = 60_000  # (row, point) pairs at a time: they stay in the processor's cache


@dataclass(frozen=True)
class Ends:
    """Where each problem of a batch came to rest."""

    theta: Array  # (B, p)
    objective: Array  # (B,), scaled: see objectives.scaled
    gradient: Array  # (B,), largest component relative to what it is a sum of
    hessian: Array  # (B, p, p)


def minimise(
    points: Points,
    weights: Array,
    theta: Array,
    objective: Objective,
    held: tuple[int, ...] = (),
    tolerance: float = 1e-11,
    near: bool = False,
) -> Ends:
    """The optimum near each row of `theta` (B, p) under `weights` (B, n) or (1, n).

    `held`: the columns of θ that stay as they are given. `tolerance`: longest step of an optimum.
    `near`: the starts are close to it, so no detour through wider losses is needed.
    """
    rows = max(1, _CHUNK // points.count)
    parts = []
    for first in range(0, len(theta), rows):
        part = slice(first, first + rows)
        z = points.z if points.z.ndim == 1 else points.z[part]
        some = weights if len(weights) == 1 else weights[part]
        start = theta[part]
        some = np.broadcast_to(some, (len(start), points.count))
        z = np.broadcast_to(z, some.shape)
        for width in objective.widths(near)[:-1]:
            start = _newton(points, z, some, start, width, held, _LOOSE)
        start = _newton(points, z, some, start, objective.delta, held, tolerance)
        parts.append((start, *state(points, z, some, start, objective.delta, held)))
    return Ends(*(np.concatenate(piece) for piece in zip(*parts, strict=True)))


def _newton(
    points: Points, z: Array, weights: Array, theta: Array, width: float,
    held: tuple[int, ...], tolerance: float,
) -> Array:  # fmt: skip
    theta = theta.copy()
    free = [j for j in range(points.parameters) if j not in held]
    lowest, highest = (bound[free] for bound in points.bounds)
    theta[:, free] = theta[:, free].clip(lowest, highest)
    floor_free = points.law.floor and 2 * points.powers in free
    damping = np.full(len(theta), 1e-2)
    objective = _objective(points, theta, z, weights, width)
    moving = np.arange(len(theta))
    for _ in range(_ROUNDS):
        start, w, z_moving = theta[moving], weights[moving], z[moving]
        gradient, hessian, majoriser = _derivatives(points, start, z_moving, w, width)[:3]
        if np.isinf(width):
            hessian = majoriser  # Gauss-Newton: residuals are small, and it never climbs
        if held:
            gradient, hessian, majoriser = gradient[:, free], hessian[:, free], majoriser[:, free]
            hessian, majoriser = hessian[:, :, free], majoriser[:, :, free]
        rests = pushed_outward(start[:, free], gradient, lowest, highest)
        _set_aside(rests, gradient, hessian, majoriser)
        step = _step(gradient, hessian, majoriser, damping[moving])
        step = step.clip(-_LONGEST_STEP, _LONGEST_STEP)
        tried = start.copy()
        tried[:, free] = (start[:, free] + step).clip(lowest, highest)
        reached = _objective(points, tried, z_moving, w, width)
        fall = -(gradient * (tried[:, free] - start[:, free])).sum(1)
        poor = np.flatnonzero(~(objective[moving] - reached > _POOR * fall))
        if floor_free and len(poor):
            bent = _along_valley(points, start[poor], tried[poor] - start[poor])
            bent[:, free] = bent[:, free].clip(lowest, highest)
            found = _objective(points, bent, z_moving[poor], w[poor], width)
            lower = found < reached[poor]
            tried[poor[lower]], reached[poor[lower]] = bent[lower], found[lower]
        last = (np.abs(fall) <= _ROUNDING * objective[moving]) & (damping[moving] < 1e-2)
        before = objective[moving]
        better = last | (reached <= before)
        theta[moving[better]] = tried[better]
        objective[moving[better]] = reached[better]
        gain = (before - reached) / (np.abs(fall) + 1e-300)
        change = np.where(gain > _POOR, 0.1, np.where(gain > 0.1, 1.0, 4.0))
        change[~better] = 8.0
        damping[moving] = np.clip(damping[moving] * change, 1e-15, 1e10)
        far = np.abs(tried[:, free] - start[:, free]).max(1) > tolerance
        moving = moving[far & ~last]
        if not len(moving):
            break
    return theta


def pushed_outward(
    theta: Array, gradient: Array, lowest: Array, highest: Array
) -> NDArray[np.bool_]:
    """Which components rest against a bound and would go beyond it."""
    return ((theta <= lowest) & (gradient > 0)) | ((theta >= highest) & (gradient < 0))


def _set_aside(rests: NDArray[np.bool_], gradient: Array, *matrices: Array) -> None:
    """Take the components that `rests` names out of the step, in place."""
    row, column = np.nonzero(rests)
    gradient[row, column] = 0
    for matrix in matrices:
        matrix[row, column, :] = 0
        matrix[row, :, column] = 0
        matrix[row, column, column] = 1


def _along_valley(points: Points, theta: Array, step: Array) -> Array:
    """The step taken straight in level, slopes and exponents: there a valley of E is straight.

    At the centre L = e^m, of which a share σ / α is a power; E is what is left. Data of little
    curvature fix m and each σ, and leave α and E to trade along a curve in θ.
    """
    powers, at = points.powers, 2 * points.powers
    c, exponent = theta[:, : 2 * powers : 2], theta[:, 1 : 2 * powers : 2]
    level = np.logaddexp(theta[:, at], np.logaddexp.reduce(c, axis=1))[:, None]
    share, floor = np.exp(c - level), np.exp(theta[:, at : at + 1] - level)
    dc, turned = step[:, : 2 * powers : 2], exponent + step[:, 1 : 2 * powers : 2]
    rise = (share * dc).sum(1, keepdims=True) + np.where(floor > 0, floor * step[:, at : at + 1], 0)
    slope = share * (turned + exponent * (dc - rise))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.abs(slope / turned)
    shares = np.where(shares > 0, shares, share)
    left = np.maximum(1 - shares.sum(1, keepdims=True), floor / 10)
    whole = np.log(left + shares.sum(1, keepdims=True))
    found = theta + step
    found[:, : 2 * powers : 2] = level + rise + np.log(shares) - whole
    found[:, 1 : 2 * powers : 2] = turned
    found[:, at] = (level + rise + np.log(left) - whole)[:, 0]
    return found


def _step(gradient: Array, hessian: Array, majoriser: Array, damping: Array) -> Array:
    """The damped Newton step; where that would climb, the damped step of the majoriser."""
    along = np.arange(gradient.shape[1])
    scale = majoriser[:, along, along] + 1e-12
    damped = hessian.copy()
    damped[:, along, along] += damping[:, None] * scale
    step = -_solved(damped, gradient)
    climbs = ~((step * gradient).sum(1) < 0)
    if climbs.any():
        safe = majoriser[climbs]
        safe[:, along, along] += (damping[climbs, None] + 1e-8) * scale[climbs]
        step[climbs] = -_solved(safe, gradient[climbs])
    return step


def _solved(matrix: Array, right: Array) -> Array:
    try:
        return np.asarray(np.linalg.solve(matrix, right[..., None])[..., 0])
    except np.linalg.LinAlgError:  # one exactly singular row spoils the batch
        return np.asarray((np.linalg.pinv(matrix) @ right[..., None])[..., 0])


def state(
    points: Points, z: Array, weights: Array, theta: Array, width: float, held: tuple[int, ...]
) -> tuple[Array, Array, Array]:
    """Objective, relative gradient and Hessian at `theta`."""
    gradient, hessian, _, reach = _derivatives(points, theta, z, weights, width)
    gradient[:, list(held)] = 0
    lowest, highest = points.bounds
    gradient[pushed_outward(theta, gradient, lowest, highest)] = 0
    return (
        _objective(points, theta, z, weights, width),
        (np.abs(gradient) / reach).max(1),
        hessian,
    )


def _objective(points: Points, theta: Array, z: Array, weights: Array, width: float) -> Array:
    return (weights * scaled(terms_of(points, theta, z)[0], width)[0]).sum(1)


def _derivatives(
    points: Points, theta: Array, z: Array, weights: Array, width: float
) -> tuple[Array, Array, Array, Array]:
    """Gradient (B, p), Hessian and majoriser (B, p, p), and the size of a gradient's summands."""
    terms = terms_of(points, theta, z)
    residual, shares, logs, slopes = terms
    slope = slopes_of(points, theta, terms)
    _, first, second, majorising = scaled(residual, width)
    sign = -1.0 if points.law.odds else 1.0
    pull = weights * first
    hessian = np.zeros((len(theta), points.parameters, points.parameters))
    for k, log in enumerate(logs):
        c, exponent = 2 * k, 2 * k + 1
        force = sign * pull * shares[k]
        hessian[:, c, c] += force.sum(1)
        hessian[:, c, exponent] -= (force * log).sum(1)
        hessian[:, exponent, c] = hessian[:, c, exponent]
        hessian[:, exponent, exponent] += (force * log**2).sum(1)
    if points.law.floor:
        at = 2 * points.powers
        hessian[:, at, at] += (sign * pull * shares[points.powers]).sum(1)
    if slopes is not None:  # log R* moves the last power through D'
        at, c, exponent = points.parameters - 1, 2 * points.powers - 2, 2 * points.powers - 1
        share, log, beta = shares[points.powers - 1], logs[-1], theta[:, exponent, None]
        turn = -beta * slopes[0]
        force = pull * share
        for j, summand in (
            (c, turn), (exponent, -log * turn - slopes[0]), (at, turn**2 - beta * slopes[1]),
        ):  # fmt: skip
            hessian[:, at, j] += (force * summand).sum(1)
            hessian[:, j, at] = hessian[:, at, j]
    transposed = slope.transpose(0, 2, 1)
    hessian += np.matmul(slope * (weights * second - sign * pull)[:, None], transposed)
    majoriser = np.matmul(slope * (weights * majorising)[:, None], transposed)
    gradient = np.matmul(slope, pull[..., None])[..., 0]
    # What the components are sums of; residuals can all be nothing, so 1e-6 of a residual besides.
    typical = np.abs(first) + (2e-6 if np.isinf(width) else min(1e-6 / width, 1.0))
    reach = np.matmul(np.abs(slope), (weights * typical)[..., None])[..., 0] + 1e-300
    return gradient, hessian, majoriser, reach
