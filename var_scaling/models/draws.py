"""Random numbers of training and validation, drawn on the CPU: the same on every device.

Shapes: B images of a share.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from var_scaling.models.base import StepDraws
from var_scaling.randomness import seed_for


def uniform_of(draws: StepDraws, purpose: str) -> Tensor:
    """A number in [0, 1) for each image of the share, (B,)."""
    generator = torch.Generator().manual_seed(draws.seed_of(purpose))
    return torch.rand(draws.images, generator=generator)[draws.share]


def normal_of(draws: StepDraws, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) normal numbers. Each image has its own seed, so none is drawn for others."""
    places = range(draws.images)[draws.share]
    return normals(draws.seed, purpose, draws.step, places, shape)


def normals(
    seed: int, purpose: str, step: int, places: Sequence[int], shape: tuple[int, ...]
) -> Tensor:
    """(B, *shape) normal float32 numbers, from one seed for each of `places`."""
    return _drawn(torch.randn, seed, purpose, step, places, shape)


def uniforms(
    seed: int, purpose: str, step: int, places: Sequence[int], shape: tuple[int, ...]
) -> Tensor:
    """The same in [0, 1)."""
    return _drawn(torch.rand, seed, purpose, step, places, shape)


def _drawn(
    draw: Callable[..., Tensor],
    seed: int,
    purpose: str,
    step: int,
    places: Sequence[int],
    shape: tuple[int, ...],
) -> Tensor:
    generator, numbers_BX = torch.Generator(), torch.empty(len(places), *shape)
    for numbers_X, place in zip(numbers_BX, places, strict=True):
        generator.manual_seed(seed_for(seed, purpose, step, place))
        draw(shape, generator=generator, out=numbers_X)
    return numbers_BX
