"""DiT's sampler: the network as a denoiser, guided, and the steps that follow it.

Shapes: B images, Z channels and H side of the grid.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from var_scaling.models.base import Frame, SampleDraws
from var_scaling.models.dit.config import DitModel, DitSampling, times_of
from var_scaling.models.dit.diffusion import (
    NoisePrediction,
    Normal,
    Schedule,
    Velocity,
    ddim,
    ddpm,
    euler,
    euler_maruyama,
)
from var_scaling.models.dit.model import DiT
from var_scaling.models.layers import full_precision
from var_scaling.models.logits import guided


@torch.no_grad()
def denoise(
    network: DiT,
    labels_B: Tensor,
    shape: tuple[int, int, int],
    sampling: DitSampling,
    draws: SampleDraws,
) -> Iterator[Frame]:
    """From noise to a grid; each frame is the estimate of the grid after one of `frame_steps`.

    Raises ValueError where guidance leads to numbers that are not finite.
    """
    shown = sampling.frame_steps()
    clean = estimates(
        network.config,
        predictions(network, labels_B, sampling),
        draws.normal("noise", 0, shape),
        sampling,
        lambda step: draws.normal("step noise", step, shape),
    )
    for step, clean_BZHH in enumerate(clean, 1):
        if step not in shown:
            continue
        if not clean_BZHH.isfinite().all():
            raise ValueError(
                f"the sample is not finite after step {step}: guidance {sampling.guidance:g} is "
                "too strong, or the precision too coarse"
            )
        yield Frame(network.denormalized(clean_BZHH), None)


def predictions(network: DiT, labels_B: Tensor, sampling: DitSampling) -> Velocity:
    """The network's guided output for a batch at a time. A learned variance is not guided."""
    null_B = torch.full_like(labels_B, network.classes)
    both_R = torch.cat([labels_B, null_B])
    images = len(labels_B)

    def predict(x_BZHH: Tensor, t: float) -> Tensor:
        if not sampling.guided_at(t):
            return network(x_BZHH, x_BZHH.new_full((images,), t), labels_B).float()
        x_RZHH = torch.cat([x_BZHH, x_BZHH])
        out = network(x_RZHH, x_BZHH.new_full((2 * images,), t), both_R).float()
        conditional, unconditional = out[:images], out[images:]
        channels = x_BZHH.shape[1]
        told, untold = conditional[:, :channels], unconditional[:, :channels]
        with full_precision(labels_B.device):
            return torch.cat(
                [guided(told, untold, sampling.guidance), conditional[:, channels:]], dim=1
            )

    return predict


def estimates(
    model: DitModel, predict: Velocity, x: Tensor, sampling: DitSampling, normal: Normal
) -> Iterator[Tensor]:
    """The estimates of x_0, step by step, by the sampler that fits the model's prediction."""
    times = times_of(model, sampling.steps)
    stochastic = sampling.sampler == "sde"
    if model.prediction == "velocity":
        return euler_maruyama(predict, x, times, normal) if stochastic else euler(predict, x, times)

    def epsilon(x: Tensor, t: float) -> NoisePrediction:
        out = predict(x, t)
        return (
            NoisePrediction(*out.chunk(2, dim=1))
            if model.learned_variance
            else NoisePrediction(out)
        )

    schedule = Schedule(model.schedule_steps)
    if stochastic:
        return ddpm(epsilon, x, times, schedule, normal)
    return ddim(epsilon, x, times, schedule)


@torch.no_grad()
def passes_alone(
    network: DiT, labels_B: Tensor, shape: tuple[int, int, int], sampling: DitSampling
) -> None:
    """The network's part of a sample, for timing: what it denoises does not matter."""
    predict = predictions(network, labels_B, sampling)
    x_BZHH = torch.zeros(len(labels_B), *shape, device=labels_B.device)
    for time in times_of(network.config, sampling.steps):
        predict(x_BZHH, time)
