"""The patch discriminator and the weight of its loss (VQGAN, arXiv 2012.09841, eq. 7).

Shapes: B images, H side.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.accounting.tokenizer import critic_starts
from var_scaling.randomness import seed_for
from var_scaling.recipe import Critic
from var_scaling.tokenizer.autoencoder import norm


class PatchCritic(nn.Module):
    """Images (B, 3, H, H) to logits (B, 1, h, h), one per patch: above 0 real, below 0 generated.

    Group norm replaces the usual batch norm: the logits of an image must not depend on the other
    images of the batch, nor on the number of processes.
    """

    def __init__(self, config: Critic, seed: int):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for k in range(config.halvings + 1):
            # Widths double up to 8 x, as in PatchGAN (arXiv 1611.07004), with 4 x 4 convolutions.
            stage_width = config.channels * min(2**k, 8)
            # No bias before a norm: the norm has its own.
            stride = 2 if k < config.halvings else 1
            layers.append(nn.Conv2d(width, stage_width, 4, stride, padding=1, bias=k == 0))
            if k > 0:
                layers.append(norm(stage_width, groups=32, epsilon=1e-5))
            layers.append(nn.LeakyReLU(0.2))
            width = stage_width
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        # Every value from its own generator, biases included: values from torch's global generator
        # would depend on what was drawn before, and a resume would not be bitwise (LOG.md).
        generator = torch.Generator().manual_seed(seed_for(seed, "critic init"))
        for parameter in self.parameters():
            # Kernels only. The scales of the norms stay 1, their shifts 0.
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, images_B3HH: Tensor) -> Tensor:
        return self.layers(images_B3HH)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss: 0 where the logits are above 1 for real and below -1 for fake images."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adversarial_warm_up(config: Critic, step: int, steps: int) -> float:
    """Factor of the adversarial weight at `step`: 0, a linear rise over the warm-up, then 1."""
    passed = step - critic_starts(config, steps)
    if passed < 0:
        return 0.0
    # + 1: the first step with the critic has a weight above 0; the trainer uses the critic only
    # then. max: a warm-up of less than a step is one step.
    return min(1.0, (passed + 1) / max(1.0, config.warm_up * steps))


def balanced_gradients(
    config: Critic,
    rebuilt: Tensor,
    reconstruction_loss: Tensor,
    generator_loss: Tensor,
    last_layer: Tensor,
    mean: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both losses by the rebuilt images, and the adaptive weight of the second.

    weight = |∂ reconstruction / ∂ last layer| / |∂ generator loss / ∂ last layer|, clamped. Each
    loss is back-propagated once, to the images, and from there to the layer. `mean` is the mean
    over all processes.
    """
    # Both losses stop at the images, so VGG and the critic are passed backward once. From there the
    # weight costs one convolution for each loss, and the same gradients serve the update (LOG.md).
    (grad_reconstruction,) = torch.autograd.grad(reconstruction_loss, rebuilt)
    (grad_generator,) = torch.autograd.grad(generator_loss, rebuilt)
    norms = [
        # The mean over processes before the norm: the norm of the global gradient, as with one
        # process. The graph is retained for the update of the tokenizer.
        mean(torch.autograd.grad(rebuilt, last_layer, gradient, retain_graph=True)[0]).norm()
        for gradient in (grad_reconstruction, grad_generator)
    ]
    # clamp_min: no division by 0 where the critic's gradient vanishes.
    factor = (norms[0] / norms[1].clamp_min(1e-12)).clamp(
        config.least_factor, config.largest_factor
    )
    return grad_reconstruction, grad_generator, factor
