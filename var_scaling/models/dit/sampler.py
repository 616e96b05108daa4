"""DiT's sampler: the guided network as a denoiser, and the steps from noise to a grid.

Shapes: B images, R rows with guidance, Z channels and H side of the grid.
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
from var_scaling.models.static_calls import StaticCalls


@torch.no_grad()
def denoise(
    network: DiT,
    labels_B: Tensor,
    shape: tuple[int, int, int],
    sampling: DitSampling,
    draws: SampleDraws,
    calls: StaticCalls | None = None,
) -> Iterator[Frame]:
    """From noise to a grid. Each frame is the estimate of the grid after one of `frame_steps`.

    Raises ValueError, before the last frame, if guidance leads to numbers that are not finite. Only
    this check waits for the device.
    """
    frame_steps = sampling.frame_steps()
    finite: dict[str, Tensor] = {}  # for each frame, a flag on the device
    estimates = clean_estimates(
        network.config,
        guided_prediction(network, labels_B, sampling, calls or StaticCalls()),
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


def guided_prediction(
    network: DiT, labels_B: Tensor, sampling: DitSampling, calls: StaticCalls
) -> Velocity:
    """A function of (x, t): the network's guided output. A learned variance is not guided.

    The next call may overwrite the result.
    """
    key = (network, sampling, len(labels_B))
    guided = calls.sampler(
        key, lambda: GuidedNetwork(network, labels_B, sampling.guidance), labels_B
    )

    def predict(x_BZHH: Tensor, t: float) -> Tensor:
        t_B = x_BZHH.new_full((len(x_BZHH),), t)
        # Outside the interval the unconditional half is not computed.
        if sampling.guided_at(t):
            return calls("guided", guided.guided, x_BZHH, t_B)
        return calls("conditional", guided.conditional, x_BZHH, t_B)

    return predict


class GuidedNetwork:
    """The network's output for the labels of a batch, with and without guidance."""

    def __init__(self, network: DiT, labels_B: Tensor, guidance: float):
        self.network, self.guidance, self.images = network, guidance, len(labels_B)
        self.blocks = list(network.blocks)
        # Conditional rows first; with guidance both predictions are one batch.
        self.labels_R = torch.cat([labels_B, torch.full_like(labels_B, network.classes)])

    def restart(self, labels_B: Tensor) -> Tensor:
        """Begin another batch of the same size. The labels (R,) are overwritten."""
        self.labels_R[: self.images] = labels_B
        return self.labels_R

    def conditional(self, x_BZHH: Tensor, t_B: Tensor) -> Tensor:
        return self.network(x_BZHH, t_B, self.labels_R[: self.images]).float()

    def guided(self, x_BZHH: Tensor, t_B: Tensor) -> Tensor:
        x_RZHH, t_R = torch.cat([x_BZHH, x_BZHH]), torch.cat([t_B, t_B])
        out = self.network(x_RZHH, t_R, self.labels_R).float()
        conditional, unconditional = out[: self.images], out[self.images :]
        channels = x_BZHH.shape[1]
        # Channels after the first Z are the learned variance.
        cond_BZHH, uncond_BZHH = conditional[:, :channels], unconditional[:, :channels]
        with full_precision(x_BZHH.device):
            guided_BZHH = apply_guidance(cond_BZHH, uncond_BZHH, self.guidance)
            return torch.cat([guided_BZHH, conditional[:, channels:]], dim=1)


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
    network: DiT,
    labels_B: Tensor,
    shape: tuple[int, int, int],
    sampling: DitSampling,
    calls: StaticCalls | None = None,
) -> None:
    """The network's part of a sample, for timing: the input values do not affect the time."""
    predict = guided_prediction(network, labels_B, sampling, calls or StaticCalls())
    x_BZHH = torch.zeros(len(labels_B), *shape, device=labels_B.device)
    for time in sampling_times(network.config, sampling.steps):
        predict(x_BZHH, time)
