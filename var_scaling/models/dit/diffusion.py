"""Paths between data and noise, and the samplers that reverse them, independent of the network.

Straight path (flow matching, arXiv 2401.08740): x_t = (1 - t) x_0 + t ε; the model predicts the
velocity v = ε - x_0. Discrete path (DDPM, arXiv 2006.11239): x_n = √ᾱ_n x_0 + √(1 - ᾱ_n) ε for N
steps of linear β; the model predicts ε. Times are in (0, 1], 1 is noise; step n of N is time n / N.

Each sampler yields its estimate of x_0 after each step; the last is the sample.

Shapes: x (B, …) any; t (B,) or a number.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]  # (x, t) -> v
Normal = Callable[[int], Tensor]  # step -> new normal numbers of x's shape

_BETAS = (1e-4, 0.02)  # first and last of 1,000 steps; scaled for another number of steps


class NoisePrediction(NamedTuple):
    """The output of an ε model: the noise and, if learned, the variance of the step as a number
    from -1 (the lower bound β̃) to 1 (the upper bound β).
    """

    epsilon: Tensor
    variance: Tensor | None = None


Epsilon = Callable[[Tensor, float], NoisePrediction]


# The straight path --------------------------------------------------------------------------------


def on_path(clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
    """x_t of the straight path."""
    t = _broadcast(t_B, clean)
    return (1 - t) * clean + t * noise


def clean_of_velocity(velocity: Tensor, x: Tensor, t: float) -> Tensor:
    return x - t * velocity


def epsilon_of_velocity(velocity: Tensor, x: Tensor, t: float) -> Tensor:
    return x + (1 - t) * velocity


def velocity_of_epsilon(epsilon: Tensor, x: Tensor, t: float) -> Tensor:
    """The velocity from ε at x_t. Defined for t < 1: at pure noise ε does not determine x_0."""
    return (epsilon - x) / (1 - t)


def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Euler steps of dx / dt = v through `times`, from noise x to time 0."""
    for t, t_next in zip(times, [*times[1:], 0.0], strict=True):
        v = velocity(x, t)
        yield clean_of_velocity(v, x, t)
        # t_next < t: the step goes from noise towards the image.
        x = x + (t_next - t) * v


def euler_maruyama(
    velocity: Velocity, x: Tensor, times: Sequence[float], normal: Normal
) -> Iterator[Tensor]:
    """The reverse SDE dx = (v - w s / 2) dt + √w dW with score s = -ε / t and w = t.

    The last step adds no noise.
    """
    for step, (t, t_next) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        v = velocity(x, t)
        yield clean_of_velocity(v, x, t)
        if t_next > 0:
            dt = t - t_next
            # With w = t the score's factor 1 / t cancels, so the drift stays finite near the image.
            drift = v + epsilon_of_velocity(v, x, t) / 2  # w s = -ε
            x = x - dt * drift + math.sqrt(t * dt) * normal(step)


# The discrete schedule ----------------------------------------------------------------------------


class Schedule:
    """ᾱ of each of N steps with linear β, in float64."""

    def __init__(self, steps: int):
        # β is inverse to the number of steps, so that ᾱ at pure noise hardly depends on it.
        scale = 1000 / steps
        betas = torch.linspace(_BETAS[0] * scale, _BETAS[1] * scale, steps, dtype=torch.float64)
        self.steps = steps
        # With 20 steps or fewer a scaled β reaches 1, and ᾱ = 0 has no inverse.
        self.betas_N = betas.clamp_max(0.999)
        self.alpha_bars_N = (1 - self.betas_N).cumprod(0)

    def number(self, time: float) -> int:
        """The index of the step at `time`, from 0."""
        # Rounded: n / N times N is not always exactly n.
        return round(time * self.steps) - 1

    def alpha_bar(self, time: float) -> float:
        """ᾱ at a time of the schedule; 1 at time 0, the image."""
        return float(self.alpha_bars_N[self.number(time)]) if time > 0 else 1.0

    def noised(self, clean: Tensor, noise: Tensor, numbers_B: Tensor) -> Tensor:
        """x_n of each image at its own step; `numbers` are step indices from 0."""
        alpha_bar = _broadcast(self.alpha_bars_N.to(numbers_B.device)[numbers_B], clean).float()
        return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise


def ddim(
    epsilon: Epsilon, x: Tensor, times: Sequence[float], schedule: Schedule
) -> Iterator[Tensor]:
    """Denoising diffusion implicit models (arXiv 2010.02502), deterministic (η = 0)."""
    for t, t_next in zip(times, [*times[1:], 0.0], strict=True):
        bar, bar_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
        eps = epsilon(x, t).epsilon
        clean = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
        yield clean
        # Eq. 12 with σ = 0: the same noise at the next level.
        x = math.sqrt(bar_next) * clean + math.sqrt(1 - bar_next) * eps


def ddpm(
    epsilon: Epsilon, x: Tensor, times: Sequence[float], schedule: Schedule, normal: Normal
) -> Iterator[Tensor]:
    """Ancestral sampling on the subset `times` of the schedule (arXiv 2102.09672).

    Without a learned variance a step uses the variance β̃ of the posterior.
    """
    for step, (t, t_next) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        # Steps of the subset may be far apart: β of such a step follows from the ratio of its ᾱ.
        bar, bar_next = schedule.alpha_bar(t), schedule.alpha_bar(t_next)
        predicted = epsilon(x, t)
        clean = (x - math.sqrt(1 - bar) * predicted.epsilon) / math.sqrt(bar)
        yield clean
        # At the image β̃ is 0 and has no logarithm; the sample is the estimate itself.
        if t_next == 0:
            return
        mean, beta_tilde, beta = posterior(clean, x, bar, bar_next)
        deviation: Tensor | float = math.sqrt(beta_tilde)
        if predicted.variance is not None:
            share = (predicted.variance + 1) / 2  # interpolates the log variance, eq. 15
            log_variance = share * math.log(beta) + (1 - share) * math.log(beta_tilde)
            deviation = log_variance.mul(0.5).exp()
        x = mean + deviation * normal(step)


def posterior(clean: Tensor, x: Tensor, bar: float, bar_next: float) -> tuple[Tensor, float, float]:
    """Mean and variance β̃ of q(x_next | x, x_0), and the step's β (arXiv 2006.11239, eq. 7).

    The step goes from x, where ᾱ is `bar`, one step towards the image, where ᾱ is `bar_next`.
    """
    beta = 1 - bar / bar_next
    mean = math.sqrt(bar_next) * beta / (1 - bar) * clean
    mean = mean + math.sqrt(bar / bar_next) * (1 - bar_next) / (1 - bar) * x
    return mean, beta * (1 - bar_next) / (1 - bar), beta


def _broadcast(values_B: Tensor, x: Tensor) -> Tensor:
    """`values` (B,) as (B, 1, …), to broadcast against `x`."""
    return values_B.view(-1, *[1] * (x.ndim - 1))
