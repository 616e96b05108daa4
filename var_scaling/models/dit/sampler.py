"""DiT's sampler: the guided network as a denoiser, and the steps from noise to a grid.

Shapes: B images, Z channels and H side of the grid.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from var_scaling.models.base import Frame, SampleDraws
from var_scaling.models.dit.config import DitModel, DitSampling, sampling_times
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
from var_scaling.models.logits import apply_guidance, raise_if_not_finite


@torch.no_grad()
def denoise(
    network: DiT,
    labels_B: Tensor,
    shape: tuple[int, int, int],
    sampling: DitSampling,
    draws: SampleDraws,
) -> Iterator[Frame]:
    """From noise to a grid. Each frame is the estimate of the grid after one of `frame_steps`.

    Raises ValueError, before the last frame, if guidance leads to numbers that are not finite. Only
    this check waits for the device.
    """
    frame_steps = sampling.frame_steps()
    finite: dict[str, Tensor] = {}  # for each frame, a flag on the device
    estimates = clean_estimates(
        network.config,
        guided_prediction(network, labels_B, sampling),
        draws.normal("noise", 0, shape),
        sampling,
        lambda step: draws.normal("step noise", step, shape),
    )
    for step, clean_BZHH in enumerate(estimates, 1):
        if step not in frame_steps:
            continue
        finite[f"the sample after step {step} is"] = clean_BZHH.isfinite().all()
        if step == sampling.steps:
            raise_if_not_finite(finite, "guidance")
        yield Frame(network.denormalized(clean_BZHH), None)


def guided_prediction(network: DiT, labels_B: Tensor, sampling: DitSampling) -> Velocity:
    """A function of (x, t): the network's guided output. A learned variance is not guided."""
    null_B = torch.full_like(labels_B, network.classes)
    # Conditional rows first; with guidance both predictions are one batch.
    labels_R = torch.cat([labels_B, null_B])
    images = len(labels_B)

    def predict(x_BZHH: Tensor, t: float) -> Tensor:
        if not sampling.guided_at(t):
            # Outside the interval the unconditional half is not computed.
            return network(x_BZHH, x_BZHH.new_full((images,), t), labels_B).float()
        x_RZHH = torch.cat([x_BZHH, x_BZHH])
        out = network(x_RZHH, x_BZHH.new_full((2 * images,), t), labels_R).float()
        conditional, unconditional = out[:images], out[images:]
        channels = x_BZHH.shape[1]
        # Channels after the first Z are the learned variance.
        cond_BZHH, uncond_BZHH = conditional[:, :channels], unconditional[:, :channels]
        with full_precision(labels_B.device):
            guided_BZHH = apply_guidance(cond_BZHH, uncond_BZHH, sampling.guidance)
            return torch.cat([guided_BZHH, conditional[:, channels:]], dim=1)

    return predict


def clean_estimates(
    model: DitModel, predict: Velocity, x: Tensor, sampling: DitSampling, normal: Normal
) -> Iterator[Tensor]:
    """The estimate of x_0 after each step of the sampler that fits the model's prediction."""
    times = sampling_times(model, sampling.steps)
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
def run_network(
    network: DiT, labels_B: Tensor, shape: tuple[int, int, int], sampling: DitSampling
) -> None:
    """The network's part of a sample, for timing: the input values do not affect the time."""
    predict = guided_prediction(network, labels_B, sampling)
    x_BZHH = torch.zeros(len(labels_B), *shape, device=labels_B.device)
    for time in sampling_times(network.config, sampling.steps):
        predict(x_BZHH, time)
