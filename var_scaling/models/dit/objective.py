"""DiT's objectives: squared error of the predicted velocity or noise at random times.

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

_SEED = 0  # of validation, fixed: all models get the same noise


def training_loss(
    spec: ModelSpec[DitModel],
    network: nn.Module,
    quantizer: Quantizer,
    batch: Batch,
) -> Tensor:
    """Mean squared error over images and numbers, plus the variance's bound if it is learned.

    `batch.numbers` are those of `noise_and_times`.
    """
    model = spec.config
    clean_BZHH = normalized_latents(network, quantizer, batch)
    noise_BZHH, t_B = batch.numbers
    if model.prediction == "velocity":
        x_BZHH = on_path(clean_BZHH, noise_BZHH, t_B)
        predicted_BZHH = network(x_BZHH, t_B, batch.labels_B)
        return (predicted_BZHH.float() - (noise_BZHH - clean_BZHH)).square().mean()
    schedule = Schedule(model.schedule_steps)
    # Step indices from 0; the network gets the time of the step, (n + 1) / N, as in sampling.
    numbers_B = (t_B * model.schedule_steps).long()
    x_BZHH = schedule.noised(clean_BZHH, noise_BZHH, numbers_B)
    out = network(x_BZHH, (numbers_B + 1) / model.schedule_steps, batch.labels_B).float()
    if not model.learned_variance:
        return (out - noise_BZHH).square().mean()
    # L_simple + λ L_vlb (arXiv 2102.09672, eq. 16, λ = 0.001). L_vlb sums the terms of all steps
    # and one of them is drawn: at N = 1,000 steps the term's weight is 1.
    epsilon_BZHH, variance_BZHH = out.chunk(2, dim=1)
    error = (epsilon_BZHH - noise_BZHH).square().mean()
    bound_B = variance_bound(
        clean_BZHH, x_BZHH, epsilon_BZHH.detach(), variance_BZHH, numbers_B, schedule
    )
    return error + bound_B.mean()


def noise_and_times(draws: StepDraws, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Normal numbers (B, Z, H, H), where `shape` is (Z, H, H), and one time for each image,
    uniform in [0, 1), (B,).
    """
    return normal_of(draws, "noise", shape), uniform_of(draws, "time")


def variance_bound(
    clean: Tensor,
    x: Tensor,
    epsilon: Tensor,
    variance: Tensor,
    numbers_B: Tensor,
    schedule: Schedule,
) -> Tensor:
    """The term of the variational bound of each image at its step, in bits per number (arXiv
    2102.09672, section 3.1). Pass `epsilon` detached: the term trains only the variance.

    At the last step it is the negative log density of the image. The published code uses the
    probability of 256 discrete grey levels there, which a grid of latents does not have.
    """
    shape = (-1, *[1] * (clean.ndim - 1))
    # In float64: near the image 1 - ᾱ is small.
    bars = schedule.alpha_bars_N.to(clean.device)
    bars_next = torch.cat([bars.new_ones(1), bars[:-1]])  # one step nearer to the image
    bar, bar_next = bars[numbers_B].view(shape), bars_next[numbers_B].view(shape)
    beta = 1 - bar / bar_next
    beta_tilde_N = (1 - bars / bars_next) * (1 - bars_next) / (1 - bars)
    # β̃ of the last step is 0 and has no logarithm: use that of the step before.
    beta_tilde_N[0] = beta_tilde_N[min(1, len(beta_tilde_N) - 1)]
    log_beta_tilde = beta_tilde_N[numbers_B].view(shape).log().float()
    # The learned variance interpolates between log β̃ and log β (eq. 15).
    share = (variance + 1) / 2
    log_var = share * beta.log().float() + (1 - share) * log_beta_tilde
    # Mean of q(x_next | x, x_0), arXiv 2006.11239, eq. 7. True and predicted mean differ only in
    # x_0, so the term in x cancels in their difference.
    clean_factor = (bar_next.sqrt() * beta / (1 - bar)).float()
    x_factor = ((bar / bar_next).sqrt() * (1 - bar_next) / (1 - bar)).float()
    clean_estimate = (x - (1 - bar).sqrt().float() * epsilon) / bar.sqrt().float()
    mean_difference = clean_factor * (clean - clean_estimate)  # true mean - the model's mean
    # KL divergence of two normal distributions, per number: true variance β̃, learned exp(log_var).
    kl = 0.5 * (log_var - log_beta_tilde + (log_beta_tilde - log_var).exp() - 1)
    kl = kl + 0.5 * mean_difference.square() * (-log_var).exp()
    mean = clean_factor * clean_estimate + x_factor * x
    density = 0.5 * ((clean - mean).square() * (-log_var).exp() + log_var + math.log(math.tau))
    # Step index 0 leads to the image itself: a density in place of the divergence.
    nats = torch.where((numbers_B == 0).view(shape), density, kl)
    return nats.flatten(1).mean(1) / math.log(2)


def bin_sums(
    spec: ModelSpec[DitModel],
    network: nn.Module,
    quantizer: Quantizer,
    batch: Batch,
    rows: Sequence[int],
) -> list[Tensor]:
    """Each image's squared errors, summed in each of BINS bins of time: one (B, P) float64 tensor.

    An image has one time and one noise in each bin. Both depend only on its index in the split.
    """
    model = spec.config
    clean_BZHH = normalized_latents(network, quantizer, batch)
    device, shape = clean_BZHH.device, tuple(clean_BZHH.shape[1:])
    # One time in each bin (stratified): less noise than P independent times, and each bin has as
    # many terms.
    within_BP = uniforms(_SEED, "validation time", 0, rows, (BINS,)).to(device)
    schedule = Schedule(model.schedule_steps)
    sums = []
    for number in range(BINS):
        noise_BZHH = normals(_SEED, "validation noise", number, rows, shape).to(device)
        t_B = (number + within_BP[:, number]) / BINS
        if model.prediction == "velocity":
            x_BZHH, target = on_path(clean_BZHH, noise_BZHH, t_B), noise_BZHH - clean_BZHH
        else:
            numbers_B = (t_B * model.schedule_steps).long()
            x_BZHH, target = schedule.noised(clean_BZHH, noise_BZHH, numbers_B), noise_BZHH
            # The network gets the time of the discrete step, as in training.
            t_B = (numbers_B + 1) / model.schedule_steps
        # A learned variance is not scored: only the first Z channels.
        predicted = network(x_BZHH, t_B, batch.labels_B)[:, : shape[0]]
        sums.append((predicted.double() - target.double()).square().flatten(1).sum(1))
    return [torch.stack(sums, dim=1)]


@torch.no_grad()
def normalized_latents(network: nn.Module, quantizer: Quantizer, batch: Batch) -> Tensor:
    """The grid decoded from the tokens, or the features, normalised per channel, (B, Z, H, H)."""
    # DistributedDataParallel wraps the network.
    inner = network.module if hasattr(network, "module") else network
    assert isinstance(inner, DiT)
    with torch.autocast(batch.ids_BL.device.type, enabled=False):
        # The cache holds tokens (int64) or the features before quantisation (float32 grids).
        features = batch.ids_BL.is_floating_point()
        return inner.normalized(batch.ids_BL if features else quantizer.decode(batch.ids_BL))
