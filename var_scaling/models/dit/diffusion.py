"""Paths between data and noise, and the samplers that follow them back. They know no network.

Two paths. Straight (flow matching, arXiv 2401.08740): x_t = (1 - t) x_0 + t ε, predicted is the
velocity v = ε - x_0. Discrete (DDPM, arXiv 2006.11239): x_n = √ᾱ_n x_0 + √(1 - ᾱ_n) ε for N steps
of linear β, predicted is ε. Times are in (0, 1], 1 is noise; step n of N is the time n / N.

Each sampler yields its estimate of x_0 after each step; the last is the sample.

Shapes: x (B, …) any; t (B,) or a number.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]  # of x and t
Normal = Callable[[int], Tensor]  # fresh normal numbers of x's shape, for a step

_BETAS = (1e-4, 0.02)  # of a schedule of 1,000 steps; others are scaled


class NoisePrediction(NamedTuple):
    """What an ε model gives: the noise and, where it learned it, the variance of the step as
    numbers that run from -1 (the least possible) to 1 (the largest).
    """

    epsilon: Tensor
    variance: Tensor | None = None


Epsilon = Callable[[Tensor, float], NoisePrediction]


# The straight path --------------------------------------------------------------------------------


def on_path(clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
    """x_t of the straight path."""
    t = _beside(t_B, clean)
    return (1 - t) * clean + t * noise


def clean_of_velocity(velocity: Tensor, x: Tensor, t: float) -> Tensor:
    return x - t * velocity


def epsilon_of_velocity(velocity: Tensor, x: Tensor, t: float) -> Tensor:
    return x + (1 - t) * velocity


def velocity_of_epsilon(epsilon: Tensor, x: Tensor, t: float) -> Tensor:
    """Defined for t < 1: at pure noise ε tells nothing of the image."""
    return (epsilon - x) / (1 - t)


def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Euler steps of dx / dt = v through `times`, from noise x to 0."""
    for t, after in zip(times, [*times[1:], 0.0], strict=True):
        v = velocity(x, t)
        yield clean_of_velocity(v, x, t)
        x = x + (after - t) * v


def euler_maruyama(
    velocity: Velocity, x: Tensor, times: Sequence[float], normal: Normal
) -> Iterator[Tensor]:
    """The reverse SDE dx = (v - w s / 2) dt + √w dW with score s = -ε / t and w = t.

    The last step is taken without noise.
    """
    for step, (t, after) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        v = velocity(x, t)
        yield clean_of_velocity(v, x, t)
        if after > 0:
            width = t - after
            drift = v + epsilon_of_velocity(v, x, t) / 2  # w s = -ε
            x = x - width * drift + math.sqrt(t * width) * normal(step)


# The discrete schedule ----------------------------------------------------------------------------


class Schedule:
    """ᾱ of each of N steps with linear β, in float64."""

    def __init__(self, steps: int):
        scale = 1000 / steps
        betas = torch.linspace(_BETAS[0] * scale, _BETAS[1] * scale, steps, dtype=torch.float64)
        self.steps = steps
        self.betas_N = betas.clamp_max(0.999)
        self.alpha_bars_N = (1 - self.betas_N).cumprod(0)

    def number(self, time: float) -> int:
        """Which step a time is, from 0."""
        return round(time * self.steps) - 1

    def alpha_bar(self, time: float) -> float:
        """ᾱ at a time of the schedule; 1 at the image itself."""
        return float(self.alpha_bars_N[self.number(time)]) if time > 0 else 1.0

    def noised(self, clean: Tensor, noise: Tensor, numbers_B: Tensor) -> Tensor:
        """x_n of each image at its step, `numbers` from 0."""
        alpha_bar = _beside(self.alpha_bars_N.to(numbers_B.device)[numbers_B], clean).float()
        return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise


def ddim(
    epsilon: Epsilon, x: Tensor, times: Sequence[float], schedule: Schedule
) -> Iterator[Tensor]:
    """Denoising diffusion implicit models (arXiv 2010.02502) without noise."""
    for t, after in zip(times, [*times[1:], 0.0], strict=True):
        here, there = schedule.alpha_bar(t), schedule.alpha_bar(after)
        eps = epsilon(x, t).epsilon
        clean = (x - math.sqrt(1 - here) * eps) / math.sqrt(here)
        yield clean
        x = math.sqrt(there) * clean + math.sqrt(1 - there) * eps


def ddpm(
    epsilon: Epsilon, x: Tensor, times: Sequence[float], schedule: Schedule, normal: Normal
) -> Iterator[Tensor]:
    """Ancestral sampling of the schedule that `times` leave of the whole one (arXiv 2102.09672).

    Without a learned variance a step has that of the posterior.
    """
    for step, (t, after) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        here, there = schedule.alpha_bar(t), schedule.alpha_bar(after)
        predicted = epsilon(x, t)
        clean = (x - math.sqrt(1 - here) * predicted.epsilon) / math.sqrt(here)
        yield clean
        if after == 0:
            return
        mean, least, most = posterior(clean, x, here, there)
        deviation: Tensor | float = math.sqrt(least)
        if predicted.variance is not None:
            share = (predicted.variance + 1) / 2
            deviation = (share * math.log(most) + (1 - share) * math.log(least)).mul(0.5).exp()
        x = mean + deviation * normal(step)


def posterior(clean: Tensor, x: Tensor, here: float, there: float) -> tuple[Tensor, float, float]:
    """Mean of x one step nearer to the image, its variance β̃, and the step's β, where ᾱ goes from
    `here` to `there`.
    """
    beta = 1 - here / there
    mean = math.sqrt(there) * beta / (1 - here) * clean
    mean = mean + math.sqrt(here / there) * (1 - there) / (1 - here) * x
    return mean, beta * (1 - there) / (1 - here), beta


def _beside(values_B: Tensor, x: Tensor) -> Tensor:
    return values_B.view(-1, *[1] * (x.ndim - 1))
