"""The patch discriminator, and how strongly the tokenizer listens to it (arXiv 2012.09841, eq. 7).

Shapes: B images, H side.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.accounting.tokenizer import critic_starts
from var_scaling.randomness import seed_for
from var_scaling.recipe import Critic


class PatchCritic(nn.Module):
    """Images (B, 3, H, H) to verdicts (B, 1, h, h), one a patch: above 0 real, below made.

    Group norm instead of the usual batch norm: a verdict must not depend on the other images of a
    batch, nor on how many processes share it.
    """

    def __init__(self, config: Critic, seed: int):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for k in range(config.halvings + 1):
            stage_width = config.channels * min(2**k, 8)
            stride = 2 if k < config.halvings else 1
            layers.append(nn.Conv2d(width, stage_width, 4, stride, padding=1, bias=k == 0))
            if k > 0:
                layers.append(nn.GroupNorm(math.gcd(32, stage_width), stage_width))
            layers.append(nn.LeakyReLU(0.2))
            width = stage_width
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        generator = torch.Generator().manual_seed(seed_for(seed, "critic init"))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, images_B3HH: Tensor) -> Tensor:
        return self.layers(images_B3HH)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """The critic's own loss: real above 1, made below -1 cost nothing."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def say_at(config: Critic, step: int, steps: int) -> float:
    """Share of the adversarial weight that counts at `step`: 0, rising over the warm-up, 1."""
    passed = step - critic_starts(config, steps)
    if passed < 0:
        return 0.0
    return min(1.0, (passed + 1) / max(1.0, config.warm_up * steps))


def balanced(
    config: Critic,
    rebuilt: Tensor,
    reconstruction: Tensor,
    verdict: Tensor,
    last_layer: Tensor,
    mean: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both losses by the rebuilt images, and the factor that makes them equally loud.

    factor = |∂ reconstruction / ∂ last layer| / |∂ verdict / ∂ last layer|, clamped. Each judge is
    walked back once: to the images, and from there to the layer. `mean` is over all processes.
    """
    (by_truth,) = torch.autograd.grad(reconstruction, rebuilt)
    (by_critic,) = torch.autograd.grad(verdict, rebuilt)
    at_last = [
        mean(torch.autograd.grad(rebuilt, last_layer, gradient, retain_graph=True)[0]).norm()
        for gradient in (by_truth, by_critic)
    ]
    factor = (at_last[0] / at_last[1].clamp_min(1e-12)).clamp(
        config.least_factor, config.largest_factor
    )
    return by_truth, by_critic, factor
