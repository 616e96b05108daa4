"""DiT's objectives: the squared error of the predicted velocity or noise, at random times.

Shapes: B images, Z channels and H side of the grid, P bins of time.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from var_scaling.models.base import Batch, ModelSpec, StepDraws
from var_scaling.models.dit.config import BINS, DitModel
from var_scaling.models.dit.diffusion import Schedule, on_path
from var_scaling.models.dit.model import DiT
from var_scaling.models.draws import normal_of, normals, uniform_of, uniforms
from var_scaling.tokenizer.quantizer import Quantizer

_SEED = 0  # of validation: the same noise for all models


def training_loss(
    spec: ModelSpec[DitModel],
    network: nn.Module,
    quantizer: Quantizer,
    batch: Batch,
    draws: StepDraws,
) -> Tensor:
    """Mean squared error over images and numbers; with a learned variance, its bound besides."""
    model = spec.config
    clean_BZHH = latents_of(network, quantizer, batch)
    device = clean_BZHH.device
    noise_BZHH = normal_of(draws, "noise", tuple(clean_BZHH.shape[1:])).to(device)
    t_B = uniform_of(draws, "time").to(device)
    if model.prediction == "velocity":
        x_BZHH = on_path(clean_BZHH, noise_BZHH, t_B)
        predicted_BZHH = network(x_BZHH, t_B, batch.labels_B)
        return (predicted_BZHH.float() - (noise_BZHH - clean_BZHH)).square().mean()
    schedule = Schedule(model.schedule_steps)
    numbers_B = (t_B * model.schedule_steps).long()
    x_BZHH = schedule.noised(clean_BZHH, noise_BZHH, numbers_B)
    out = network(x_BZHH, (numbers_B + 1) / model.schedule_steps, batch.labels_B).float()
    if not model.learned_variance:
        return (out - noise_BZHH).square().mean()
    epsilon_BZHH, variance_BZHH = out.chunk(2, dim=1)
    error = (epsilon_BZHH - noise_BZHH).square().mean()
    bound_B = variance_bound(
        clean_BZHH, x_BZHH, epsilon_BZHH.detach(), variance_BZHH, numbers_B, schedule
    )
    return error + bound_B.mean()


def variance_bound(
    clean: Tensor,
    x: Tensor,
    epsilon: Tensor,
    variance: Tensor,
    numbers_B: Tensor,
    schedule: Schedule,
) -> Tensor:
    """The variational bound's term of each image at its step, in bits a number (arXiv 2102.09672,
    section 3.1). `epsilon` gets no gradient from it: only the variance learns here.

    At the last step it is the negative log density of the image. The published code discretises
    that to 256 grey levels, which a grid of latents does not have.
    """
    shape = (-1, *[1] * (clean.ndim - 1))
    bars = schedule.alpha_bars_N.to(clean.device)
    before = torch.cat([bars.new_ones(1), bars[:-1]])
    here, there = bars[numbers_B].view(shape), before[numbers_B].view(shape)
    beta = 1 - here / there
    least_all = (1 - bars / before) * (1 - before) / (1 - bars)
    least_all[0] = least_all[min(1, len(least_all) - 1)]  # 0 at the last step: its neighbour's
    log_least = least_all[numbers_B].view(shape).log().float()
    share = (variance + 1) / 2
    log_var = share * beta.log().float() + (1 - share) * log_least
    to_clean = (there.sqrt() * beta / (1 - here)).float()
    to_x = ((here / there).sqrt() * (1 - there) / (1 - here)).float()
    guessed = (x - (1 - here).sqrt().float() * epsilon) / here.sqrt().float()
    gap = to_clean * (clean - guessed)  # between the true mean and the model's
    kl = 0.5 * (log_var - log_least + (log_least - log_var).exp() - 1)
    kl = kl + 0.5 * gap.square() * (-log_var).exp()
    own_mean = to_clean * guessed + to_x * x
    density = 0.5 * ((clean - own_mean).square() * (-log_var).exp() + log_var + math.log(math.tau))
    nats = torch.where((numbers_B == 0).view(shape), density, kl)
    return nats.flatten(1).mean(1) / math.log(2)


def bin_sums(
    spec: ModelSpec[DitModel],
    network: nn.Module,
    quantizer: Quantizer,
    batch: Batch,
    rows: Sequence[int],
) -> list[Tensor]:
    """Each image's squared errors, summed in each of BINS bins of time: one of (B, P) float64.

    An image has one time in each bin, and its own noise there: a function of its number alone.
    """
    model = spec.config
    clean_BZHH = latents_of(network, quantizer, batch)
    device, shape = clean_BZHH.device, tuple(clean_BZHH.shape[1:])
    within_BP = uniforms(_SEED, "validation time", 0, rows, (BINS,)).to(device)
    schedule = Schedule(model.schedule_steps)
    sums = []
    for number in range(BINS):
        noise_BZHH = normals(_SEED, "validation noise", number, rows, shape).to(device)
        t_B = (number + within_BP[:, number]) / BINS
        if model.prediction == "velocity":
            x_BZHH, wanted = on_path(clean_BZHH, noise_BZHH, t_B), noise_BZHH - clean_BZHH
        else:
            numbers_B = (t_B * model.schedule_steps).long()
            x_BZHH, wanted = schedule.noised(clean_BZHH, noise_BZHH, numbers_B), noise_BZHH
            t_B = (numbers_B + 1) / model.schedule_steps
        predicted = network(x_BZHH, t_B, batch.labels_B)[:, : shape[0]]
        sums.append((predicted.double() - wanted.double()).square().flatten(1).sum(1))
    return [torch.stack(sums, dim=1)]


@torch.no_grad()
def latents_of(network: nn.Module, quantizer: Quantizer, batch: Batch) -> Tensor:
    """What the tokens stand for, or the features, normalised per channel, (B, Z, H, H)."""
    inner = network.module if hasattr(network, "module") else network  # within several processes
    assert isinstance(inner, DiT)
    with torch.autocast(batch.ids_BL.device.type, enabled=False):
        features = batch.ids_BL.is_floating_point()
        return inner.normalized(batch.ids_BL if features else quantizer.decode(batch.ids_BL))
