"""Fit a law by least squares of log residuals, and say how the fit came about.

Every solve is a batch: row b of `weights` (B, n) says how often each of the n points counts, so one
call fits the data (a row of ones) or all resamples of a bootstrap. Seeds come from variable
projection: for a given E the rest is a straight line.
"""

import math
from dataclasses import dataclass

import numpy as np

from analysis.laws import Law

_SEED_FLOORS = np.array([0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.96, 0.985, 0.995])  # of min(y)
_ROUNDS = 300
_STARTS_OF_A_RESAMPLE = 2  # the most promising seeds; the data itself gets them all
_TOLERANCE = 1e-10  # the longest step of an optimum, in a, α and log E
_MOST_FLOOR = 1 - 1e-4  # of min(y): what is left must have a logarithm
_LEAST_FLOOR = 1e-3  # of min(y): below this, E is zero for all that data can tell


class FitError(ValueError):
    """No law can be fitted to these points; the message says why."""


@dataclass(frozen=True)
class Certificate:
    """How the optimum was found."""

    starts: int
    agreed: float  # share of starts that ended at the best objective, within 1e-6 relative
    gradient: float  # norm at the end, relative to the objective's scale
    converged: bool
    at_bound: bool  # E ran to zero (the data wants no floor) or to the least loss (no law)
    objective: float  # sum of squared log residuals


@dataclass(frozen=True)
class Fit:
    """L = E + A x^-α, fitted. r and r2 are of log(L - E) against log x."""

    law: Law
    A: float
    alpha: float
    E: float
    r: float
    r2: float
    rms_relative_error: float
    points: int
    sizes: int
    decades: float
    certificate: Certificate

    @property
    def beta(self) -> float | None:
        """The paper's coefficient: L - E = (β x)^-α, in 1 / units of x.

        None where α is so near zero that β is beyond what a float holds.
        """
        if self.alpha == 0 or abs(math.log(self.A) / self.alpha) > 700:
            return None
        return math.exp(-math.log(self.A) / self.alpha)

    def predict(self, x: np.ndarray | float) -> np.ndarray:
        return self.law.predict(np.asarray(x, dtype=float), self.A, self.alpha, self.E)


def fit_law(law: Law, x: np.ndarray, y: np.ndarray) -> Fit:
    """Fit `law` to points (x, y). Raises FitError if they cannot carry it."""
    x, y = check_points(law, x, y)
    solved = solve(law, x, y, np.ones((1, len(x))))
    a, alpha, floor = solved.a[0], solved.alpha[0], solved.floor[0]
    scale = float(np.exp(a + alpha * np.log(x).mean()))
    certificate = Certificate(
        starts=solved.starts,
        agreed=float(solved.agreed[0]),
        gradient=float(solved.gradient[0]),
        converged=bool(solved.gradient[0] < 1e-6),
        at_bound=bool(law.floor and (floor == 0 or floor >= _MOST_FLOOR * y.min())),
        objective=float(solved.objective[0]),
    )
    reducible = np.log(y - floor)
    line = np.log(scale) - alpha * np.log(x)
    spread = float(np.sum((reducible - reducible.mean()) ** 2))
    flat = spread < 1e-20  # all losses equal: nothing to correlate
    residual = np.log(law.predict(x, scale, alpha, floor) / y)
    return Fit(
        law=law,
        A=scale,
        alpha=float(alpha),
        E=float(floor),
        r=math.nan if flat else float(np.corrcoef(np.log(x), reducible)[0, 1]),
        r2=math.nan if flat else 1 - float(np.sum((line - reducible) ** 2)) / spread,
        rms_relative_error=float(np.sqrt(np.mean(np.expm1(residual) ** 2))),
        points=len(x),
        sizes=len(np.unique(x)),
        decades=float(np.log10(x.max() / x.min())),
        certificate=certificate,
    )


def check_points(law: Law, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points as float arrays, sorted by x. Raises FitError where no fit is possible."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise FitError("points hold NaN or infinity")
    if (x <= 0).any() or (y <= 0).any():
        raise FitError("a power law needs positive sizes and positive losses")
    sizes = len(np.unique(x))
    if sizes < law.parameters:
        raise FitError(
            f"{law.formula} has {law.parameters} parameters; there are {sizes} different sizes"
        )
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


@dataclass(frozen=True)
class Solved:
    """Arrays over the batch; L = floor + exp(a - α (log x - mean log x))."""

    a: np.ndarray
    alpha: np.ndarray
    floor: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray
    agreed: np.ndarray
    starts: int


def solve(law: Law, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Solved:
    """The weighted optimum for every row of `weights` (B, n)."""
    u, log_y = np.log(x) - np.log(x).mean(), np.log(y)
    a, alpha = _line(u, log_y, weights)
    straight = np.sum(weights * (a[:, None] - alpha[:, None] * u - log_y) ** 2, axis=1)
    zeros, ones = np.zeros_like(a), np.ones_like(a)
    if not law.floor:
        return Solved(a, alpha, zeros, straight, zeros, ones, starts=1)
    seeds = np.stack([_seed(u, y, weights, share) for share in _SEED_FLOORS])  # (starts, B, 3)
    if len(weights) > 1:
        seeds = _most_promising(seeds, u, log_y, weights)
    starts, rows = len(seeds), len(weights)
    ends = _polish(u, log_y, np.tile(weights, (starts, 1)), seeds.reshape(-1, 3), y.min())
    thetas, objectives, gradients = (end.reshape(starts, rows, *end.shape[1:]) for end in ends)
    best, row = objectives.argmin(0), np.arange(rows)
    theta, least, gradient = thetas[best, row], objectives[best, row], gradients[best, row]
    agreed = (objectives <= least * (1 + 1e-6) + 1e-12).mean(0)
    no_floor = straight <= least * (1 + 1e-9)  # E ran to zero: then the law is the straight line
    return Solved(
        np.where(no_floor, a, theta[:, 0]),
        np.where(no_floor, alpha, theta[:, 1]),
        np.where(no_floor, 0.0, np.exp(theta[:, 2])),
        np.where(no_floor, straight, least),
        np.where(no_floor, 0.0, gradient),
        agreed,
        starts,
    )


def _most_promising(
    seeds: np.ndarray, u: np.ndarray, log_y: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The few seeds of each row with the least objective, (few, B, 3)."""
    objectives = np.stack([(weights * _residual(u, log_y, s)[0] ** 2).sum(1) for s in seeds])
    few = objectives.argsort(0)[:_STARTS_OF_A_RESAMPLE]
    return np.take_along_axis(seeds, few[..., None], axis=0)


def _line(u: np.ndarray, v: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of v = a - α u; one a and one α for each row of `weights`."""
    total = weights.sum(1, keepdims=True)
    mean_u = (weights * u).sum(1, keepdims=True) / total
    mean_v = (weights * v).sum(1, keepdims=True) / total
    du = u - mean_u
    spread = np.maximum((weights * du**2).sum(1), 1e-300)
    slope = (weights * du * (v - mean_v)).sum(1) / spread
    return (mean_v[:, 0] - slope * mean_u[:, 0]), -slope


def _seed(u: np.ndarray, y: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """(B, 3) start a, α, log E with E = share × min(y); the line is weighted as log y feels it."""
    floor = max(share, 1e-3) * y.min()
    reducible = y - floor
    a, alpha = _line(u, np.log(reducible), weights * (reducible / y) ** 2)
    return np.stack([a, alpha, np.full_like(a, np.log(floor))], axis=1)


def _polish(
    u: np.ndarray, log_y: np.ndarray, weights: np.ndarray, theta: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levenberg-Marquardt, exact Jacobian, whole batch. Returns θ, objective, gradient."""
    theta, damping = theta.copy(), np.full(len(theta), 1e-3)
    lowest, highest = np.log(_LEAST_FLOOR * least), np.log(_MOST_FLOOR * least)
    theta[:, 2] = theta[:, 2].clip(lowest, highest)
    objective = (weights * _residual(u, log_y, theta)[0] ** 2).sum(1)
    moving = np.arange(len(theta))
    for _ in range(_ROUNDS):
        w, start = weights[moving], theta[moving]
        residual, jacobian = _residual(u, log_y, start)
        gradient = np.einsum("bn,bn,bnp->bp", w, residual, jacobian)
        normal = np.einsum("bn,bnp,bnq->bpq", w, jacobian, jacobian)
        diagonal = np.einsum("bpp->bp", normal) + 1e-12
        damped = normal + np.einsum("b,bp,pq->bpq", damping[moving], diagonal, np.eye(3))
        step = np.linalg.solve(damped, gradient[..., None])[..., 0]
        tried = start - np.clip(step, -2, 2)
        tried[:, 2] = tried[:, 2].clip(lowest, highest)
        reached = (w * _residual(u, log_y, tried)[0] ** 2).sum(1)
        better = reached <= objective[moving]
        theta[moving[better]] = tried[better]
        objective[moving[better]] = reached[better]
        damping[moving] = np.clip(damping[moving] * np.where(better, 0.2, 4.0), 1e-14, 1e8)
        moving = moving[np.abs(tried - start).max(1) > _TOLERANCE]
        if not len(moving):
            break
    residual, jacobian = _residual(u, log_y, theta)
    gradient = np.einsum("bn,bn,bnp->bp", weights, residual, jacobian)
    gradient[:, 2] = np.where(theta[:, 2] <= lowest, np.minimum(gradient[:, 2], 0), gradient[:, 2])
    gradient[:, 2] = np.where(theta[:, 2] >= highest, np.maximum(gradient[:, 2], 0), gradient[:, 2])
    count = weights.sum(1)
    return (
        theta,
        objective,
        np.linalg.norm(gradient, axis=1) / (np.sqrt(objective * count) + 1e-8 * count),
    )


def _residual(u: np.ndarray, log_y: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, n) log residuals and (B, n, 3) their derivatives by a, α and log E."""
    power = theta[:, :1] - theta[:, 1:2] * u
    floor = np.broadcast_to(theta[:, 2:], power.shape)
    predicted = np.logaddexp(power, floor)
    share = np.exp(power - predicted)  # of the reducible part in the prediction
    jacobian = np.stack([share, -u * share, np.exp(floor - predicted)], axis=-1)
    return predicted - log_y, jacobian
