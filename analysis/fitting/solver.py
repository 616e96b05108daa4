"""Newton's method on a batch: many weights, starts or data sets of one law at once.

Gradient and Hessian are exact, because a log-sum-exp has both in closed form. Where the Newton step
is no descent direction, the step of a majorising quadratic is used. In shapes, B is the number of
problems: a bootstrap, a profile or a set of starts is one call.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.objectives import Objective, scaled_derivatives, scaled_value
from analysis.fitting.terms import Points, Terms, cross_factors, slopes_of, terms_of

Array = NDArray[np.float64]

_ROUNDING = 1e-13  # of the objective: a step with a smaller linear decrease is the last
_MAX_ITERATIONS = 250
_LOOSE_TOLERANCE = 1e-4  # at the wider losses before the objective's own
_MAX_STEP = 2.0  # of each component of θ
_GOOD_GAIN = 0.35  # decrease / (-gradient · step); it is 1/2 where the quadratic model is exact
_CHUNK = 60_000  # (problem, point) pairs at a time, so that they stay in the processor's cache


@dataclass(frozen=True)
class Minima:
    """The local minimum of each problem of a batch."""

    theta: Array  # (B, p)
    objective: Array  # (B,), scaled: see objectives.scaled
    gradient: Array  # (B,), largest component, relative to the size of its summands


def minimise(
    points: Points,
    weights: Array,
    theta: Array,
    objective: Objective,
    fixed: tuple[int, ...] = (),
    tolerance: float = 1e-11,
    near_optimum: bool = False,
) -> Minima:
    """The optimum near each row of `theta` (B, p) under `weights` (B, n) or (1, n).

    `fixed`: the columns of θ that stay constant. `tolerance`: a problem has converged when no
    component of its step is longer. `near_optimum`: the starts are close to the optimum, so the
    wider losses are skipped.
    """
    # Chunks of the batch: each holds several (B, p, n) arrays.
    rows = max(1, _CHUNK // points.count)
    parts = []
    for first in range(0, len(theta), rows):
        part = slice(first, first + rows)
        z = points.z if points.z.ndim == 1 else points.z[part]
        part_weights = weights if len(weights) == 1 else weights[part]
        start = theta[part]
        # The optimum of each wider loss is the start for the next; it need not be exact.
        for width in objective.widths(near_optimum)[:-1]:
            wider = objective.at(width)
            start = _newton(points, z, part_weights, start, wider, fixed, _LOOSE_TOLERANCE)
        start = _newton(points, z, part_weights, start, objective, fixed, tolerance)
        parts.append((start, *evaluate(points, z, part_weights, start, objective, fixed)))
    return Minima(*(np.concatenate(piece) for piece in zip(*parts, strict=True)))


def _newton(
    points: Points, z: Array, weights: Array, theta: Array, loss: Objective,
    fixed: tuple[int, ...], tolerance: float,
) -> Array:  # fmt: skip
    """θ (B, p) after damped Newton steps (Levenberg-Marquardt) at one width of the loss."""
    # One long loop, because its parts share ten arrays, which lose the converged problems together.
    found, idle = theta.copy(), points.idle
    free = [j for j in range(points.parameters) if j not in fixed and j not in idle]
    lowest, highest = (bound[free] for bound in points.bounds)
    # Fixed columns are not clipped: log E = -inf (E = 0) is below its bound.
    found[:, free] = found[:, free].clip(lowest, highest)
    _copy_tied(found, idle)
    valley = points.law.floor and not points.law.sigmoid and 2 * points.powers in free
    # The state of the problems that have not converged; `active` are their rows.
    active, start = np.arange(len(found)), found.copy()
    damping = np.full(len(found), 1e-2)
    terms = terms_of(points, start, z)
    objective = _objective(terms, z, weights, loss)
    for _ in range(_MAX_ITERATIONS):
        gradient, hessian, majoriser = _derivatives(points, start, terms, z, weights, loss)
        if fixed or idle:
            gradient, hessian, majoriser = gradient[:, free], hessian[:, free], majoriser[:, free]
            hessian, majoriser = hessian[:, :, free], majoriser[:, :, free]
        # A component that rests on a bound is taken out of the step. Otherwise the step of the
        # others would assume that it moves too, and laws whose E goes to 0 would converge slowly.
        at_bound = pushed_outward(start[:, free], gradient, lowest, highest)
        _remove_components(at_bound, gradient, hessian, majoriser)
        step = _step(gradient, hessian, majoriser, damping).clip(-_MAX_STEP, _MAX_STEP)
        trial = start.copy()
        trial[:, free] = (start[:, free] + step).clip(lowest, highest)
        _copy_tied(trial, idle)
        trial_terms = terms_of(points, trial, z)
        trial_objective = _objective(trial_terms, z, weights, loss)
        linear_decrease = -(gradient * (trial[:, free] - start[:, free])).sum(1)
        # Written with ~ so that a NaN counts as a poor step.
        poor = np.flatnonzero(~(objective - trial_objective > _GOOD_GAIN * linear_decrease))
        if valley and len(poor):  # E may lie in a curved valley: try a step along it
            curved = _along_valley(points, start[poor], trial[poor] - start[poor])
            curved[:, free] = curved[:, free].clip(lowest, highest)
            poor_z = _rows(z, poor)
            curved_terms = terms_of(points, curved, poor_z)
            curved_objective = _objective(curved_terms, poor_z, _rows(weights, poor), loss)
            lower = curved_objective < trial_objective[poor]
            trial[poor[lower]] = curved[lower]
            trial_objective[poor[lower]] = curved_objective[lower]
            trial_terms.overwrite(poor[lower], curved_terms.rows(lower))
        # A strongly damped step is short at any gradient, so it does not count as the last.
        last = (np.abs(linear_decrease) <= _ROUNDING * objective) & (damping < 1e-2)
        # The last step is taken even if rounding raises the objective in its last digits.
        better = last | (trial_objective <= objective)
        damping = _next_damping(damping, objective - trial_objective, linear_decrease, better)
        far = np.abs(trial[:, free] - start[:, free]).max(1) > tolerance
        # A rejected step is undone. The terms of an accepted one serve the next derivatives.
        if not better.all():
            trial[~better], trial_objective[~better] = start[~better], objective[~better]
            trial_terms.overwrite(~better, terms.rows(~better))
        start, objective, terms = trial, trial_objective, trial_terms
        found[active] = start
        unfinished = far & ~last
        if not unfinished.any():
            break
        if not unfinished.all():
            active, start, objective = active[unfinished], start[unfinished], objective[unfinished]
            damping, terms = damping[unfinished], terms.rows(unfinished)
            z, weights = _rows(z, unfinished), _rows(weights, unfinished)
    return found


def _copy_tied(theta: Array, idle: list[int]) -> None:
    """Give tied exponents, the columns `idle`, the value of the first, in place."""
    if idle:  # indexing with an empty list takes time
        theta[:, idle] = theta[:, 1:2]


def _next_damping(
    damping: Array, decrease: Array, linear_decrease: Array, better: NDArray[np.bool_]
) -> Array:
    """Levenberg-Marquardt: less damping after a good step, more after a bad one. All are (B,)."""
    gain = decrease / (np.abs(linear_decrease) + 1e-300)
    factor = np.where(gain > _GOOD_GAIN, 0.1, np.where(gain > 0.1, 1.0, 4.0))
    factor[~better] = 8.0
    return np.clip(damping * factor, 1e-15, 1e10)


def _rows(shared: Array, chosen: NDArray[np.generic]) -> Array:
    """The rows of these problems; (n,) and (1, n) are shared by all problems."""
    return shared if shared.ndim == 1 or len(shared) == 1 else shared[chosen]


def pushed_outward(
    theta: Array, gradient: Array, lowest: Array, highest: Array
) -> NDArray[np.bool_]:
    """Which components are at a bound and would leave it by a descent step."""
    return ((theta <= lowest) & (gradient > 0)) | ((theta >= highest) & (gradient < 0))


def _remove_components(at_bound: NDArray[np.bool_], gradient: Array, *matrices: Array) -> None:
    """Change gradient and matrices in place so that the step of the components at a bound is 0."""
    row, column = np.nonzero(at_bound)
    gradient[row, column] = 0
    # A row and column of the identity, with gradient 0, give the component the step 0 and leave the
    # others as they would be without it.
    for matrix in matrices:
        matrix[row, column, :] = 0
        matrix[row, :, column] = 0
        matrix[row, column, column] = 1


def _along_valley(points: Points, theta: Array, step: Array) -> Array:
    """θ after `step`, taken in the coordinates level, slopes and exponents instead of in θ.

    At the centre of the points L = e^m; σ is the slope of a power there, so the power is a share
    σ / α of L, and E is the rest. Points with little curvature determine m and each σ but not α and
    E: the objective has a valley that is curved in θ and straight in these coordinates.
    """
    powers, at = points.powers, 2 * points.powers
    c, exponent = theta[:, : 2 * powers : 2], theta[:, 1 : 2 * powers : 2]
    # m, the log of the sum of all terms at the centre, where log x = 0 and t_k = c.
    level = np.logaddexp(theta[:, at], np.logaddexp.reduce(c, axis=1))[:, None]
    share, floor = np.exp(c - level), np.exp(theta[:, at : at + 1] - level)
    dc, new_exponent = step[:, : 2 * powers : 2], exponent + step[:, 1 : 2 * powers : 2]
    # First-order changes: dm = Σ share · d(log term), and σ = share · α changes by share · (dα + α
    # (dc - dm)).
    rise = (share * dc).sum(1, keepdims=True) + np.where(floor > 0, floor * step[:, at : at + 1], 0)
    slope = share * (new_exponent + exponent * (dc - rise))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.abs(slope / new_exponent)
    # A power that does not vary, or an overflow, leaves the step as it is.
    shares = np.where((shares > 0) & np.isfinite(shares), shares, share)
    # E is what remains of L, but at least a tenth of its present share, as its log is taken.
    floor_share = np.maximum(1 - shares.sum(1, keepdims=True), floor / 10)
    log_total = np.log(floor_share + shares.sum(1, keepdims=True))
    moved = theta + step
    with np.errstate(divide="ignore"):  # the log of a share that is rounded to 0
        moved[:, : 2 * powers : 2] = level + rise + np.log(shares) - log_total
        moved[:, at] = (level + rise + np.log(floor_share) - log_total)[:, 0]
    moved[:, 1 : 2 * powers : 2] = new_exponent
    return moved


def _step(gradient: Array, hessian: Array, majoriser: Array, damping: Array) -> Array:
    """The damped Newton step; where it is no descent direction, that of the majoriser."""
    diagonal = np.arange(gradient.shape[1])
    # Marquardt's scaling: damping is relative to the curvature of each parameter. That of the
    # majoriser is never negative, unlike that of the Hessian.
    scale = majoriser[:, diagonal, diagonal] + 1e-12
    damped = hessian.copy()
    damped[:, diagonal, diagonal] += damping[:, None] * scale
    step = -_solve_rows(damped, gradient)
    ascends = ~((step * gradient).sum(1) < 0)
    if ascends.any():
        safe = majoriser[ascends]
        safe[:, diagonal, diagonal] += (damping[ascends, None] + 1e-8) * scale[ascends]
        step[ascends] = -_solve_rows(safe, gradient[ascends])
    return step


def _solve_rows(matrix: Array, right: Array) -> Array:
    """(B, p) solutions of the linear systems of a batch."""
    try:
        return np.asarray(np.linalg.solve(matrix, right[..., None])[..., 0])
    except np.linalg.LinAlgError:  # one singular matrix makes the whole batch fail
        return np.asarray((np.linalg.pinv(matrix) @ right[..., None])[..., 0])


def evaluate(
    points: Points, z: Array, weights: Array, theta: Array, loss: Objective, fixed: tuple[int, ...]
) -> tuple[Array, Array]:
    """Objective (B,) and relative gradient (B,) at `theta` (B, p)."""
    terms, width = terms_of(points, theta, z), loss.delta
    slope = slopes_of(points, theta, terms)
    first = scaled_derivatives(loss.residual(terms.residual, z), loss)[0]
    if loss.of_loss:  # the derivative of L / G is L / G times that of log L
        slope *= np.exp(terms.residual + z)[:, None]
    gradient = np.matmul(slope, (weights * first)[..., None])[..., 0]
    # The size of the summands of each component. A residual of 1e-6 is added, because all residuals
    # can be zero.
    typical = np.abs(first) + (2e-6 if np.isinf(width) else min(1e-6 / width, 1.0))
    scale = np.matmul(np.abs(slope), (weights * typical)[..., None])[..., 0] + 1e-300
    # At a constrained optimum only the components that could still move must vanish.
    gradient[:, list(fixed)] = 0
    lowest, highest = points.bounds
    gradient[pushed_outward(theta, gradient, lowest, highest)] = 0
    return _objective(terms, z, weights, loss), (np.abs(gradient) / scale).max(1)


def _objective(terms: Terms, z: Array, weights: Array, loss: Objective) -> Array:
    return (weights * scaled_value(loss.residual(terms.residual, z), loss)).sum(1)


def _derivatives(
    points: Points, theta: Array, terms: Terms, z: Array, weights: Array, loss: Objective
) -> tuple[Array, Array, Array]:
    """Gradient (B, p), Hessian and majoriser (B, p, p) of the objective.

    For least squares the Hessian is that of Gauss and Newton, which is the majoriser: residuals are
    small, and its step always descends.
    """
    slope = slopes_of(points, theta, terms)
    transposed = slope.transpose(0, 2, 1)
    first, second, majorising = scaled_derivatives(loss.residual(terms.residual, z), loss)
    if loss.of_loss:  # ∂(L / G) = (L / G) ∂log L
        level = np.exp(terms.residual + z)
        first, second, majorising = level * first, level**2 * second, level**2 * majorising
    pull = weights * first
    gradient = np.matmul(slope, pull[..., None])[..., 0]
    # (B, p, n) times (B, n, p): the sum over points.
    majoriser = np.matmul(slope * (weights * majorising)[:, None], transposed)
    if np.isinf(loss.delta):
        return gradient, majoriser, majoriser
    hessian = _weighted_curvature(points, theta, terms, pull)
    # The rest of the Hessian, in g gᵀ. Of L / G the second derivative has one g gᵀ more.
    own = weights * second - (_sign(points) - loss.of_loss) * pull
    hessian += np.matmul(slope * own[:, None], transposed)
    return gradient, hessian, majoriser


def _sign(points: Points) -> float:
    """The sign of g gᵀ in -∂²log L; 0 for the sigmoid, whose curvature is computed as a whole."""
    return 0.0 if points.law.sigmoid else -1.0 if points.law.odds else 1.0


def _weighted_curvature(points: Points, theta: Array, terms: Terms, pull: Array) -> Array:
    """(B, p, p) Σ pull (∂²log L + `_sign` g gᵀ) over points, pull (B, n)."""
    if points.law.sigmoid:
        return _sigmoid_curvature(theta, terms, pull)
    # The objective is Σ w ρ(r), with gradient Σ w ρ' g and Hessian Σ w (ρ'' g gᵀ + ρ' ∂²log L), g =
    # ∂log L. For a log-sum-exp ∂²log L = Σ_k share_k (∂t_k ∂t_kᵀ + ∂²t_k) - g gᵀ; in the odds it is
    # the negative of that. The loops add the share_k terms, the matrix product below the rest.
    sign = _sign(points)
    _, shares, logs, slopes = terms
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
    if slopes is not None:  # log R* changes the last power through D'
        at, c, exponent = points.parameters - 1, 2 * points.powers - 2, 2 * points.powers - 1
        share, log, beta = shares[points.powers - 1], logs[-1], theta[:, exponent, None]
        d_exponent = -beta * slopes[0]  # derivative of the power's exponent t_k by log R*
        force = pull * share
        # ∂t ∂tᵀ + ∂²t of the last power, in the row of log R*: with log A, with β, with itself.
        for j, summand in (
            (c, d_exponent), (exponent, -log * d_exponent - slopes[0]),
            (at, d_exponent**2 - beta * slopes[1]),
        ):  # fmt: skip
            hessian[:, at, j] += (force * summand).sum(1)
            hessian[:, j, at] = hessian[:, at, j]
    factors, c = cross_factors(points.law, logs), 2 * points.powers - 2
    columns = [c, c + 1, *range(points.crossed, points.parameters)]
    for at, factor in enumerate(factors, points.crossed):  # in t of the last power
        force = pull * shares[points.powers - 1] * factor
        slopes_of_t = [np.ones_like(factor), -logs[-1], *factors]
        for j, slope_of_t in zip(columns, slopes_of_t, strict=True):
            hessian[:, at, j] = hessian[:, j, at] = (force * slope_of_t).sum(1)
    for idle in points.idle:
        hessian[:, 1] += hessian[:, idle]
        hessian[:, :, 1] += hessian[:, :, idle]
        hessian[:, idle] = hessian[:, :, idle] = 0
    return hessian


def _sigmoid_curvature(theta: Array, terms: Terms, pull: Array) -> Array:
    """(B, 4, 4) Σ pull ∂²log score over points.

    log score = log(E + S e^s) - log(1 + e^s), s = k (L0 - L): a difference of two log-sum-exps. The
    second derivative of each is the variance of ∂t over its two terms, plus its share of ∂²s.
    """
    by_s, share_of_E, share_of_S, sigmoid = terms.shares
    s_slope = np.zeros((len(theta), 4, len(terms.logs[0])))
    s_slope[:, 0], s_slope[:, 1] = theta[:, 1, None], theta[:, 0, None] - terms.logs[0]
    upper = s_slope.copy()  # t of S e^s minus t of E
    upper[:, 2], upper[:, 3] = -1, 1
    curvature = np.matmul(
        upper * (pull * share_of_E * share_of_S)[:, None], upper.transpose(0, 2, 1)
    )
    curvature -= np.matmul(
        s_slope * (pull * sigmoid * (1 - sigmoid))[:, None], s_slope.transpose(0, 2, 1)
    )
    crossed = (pull * by_s).sum(1)  # ∂²s by L0 and k is 1
    curvature[:, 0, 1] += crossed
    curvature[:, 1, 0] += crossed
    return np.asarray(curvature)
