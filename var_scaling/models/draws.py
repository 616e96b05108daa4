"""Random numbers of training and validation, drawn on the CPU, so that every device gets the same.

Shapes: B images of this process.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from var_scaling.models.base import StepDraws
from var_scaling.randomness import seed_for


def uniform_of(draws: StepDraws, purpose: str) -> Tensor:
    """Uniform numbers in [0, 1), (B,): one for each image of this process."""
    # One number for each image of the global batch is cheap: draw all, then take this process's.
    generator = torch.Generator().manual_seed(draws.seed_of(purpose))
    return torch.rand(draws.images, generator=generator)[draws.local_slice]


def normal_of(draws: StepDraws, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) normal numbers. Each image has its own seed, so only this process's are drawn."""
    indices = range(draws.images)[draws.local_slice]
    return normals(draws.seed, purpose, draws.step, indices, shape)


def normals(
    seed: int, purpose: str, step: int, indices: Sequence[int], shape: tuple[int, ...]
) -> Tensor:
    """(B, *shape) normal float32 numbers; each image index of `indices` has its own seed."""
    return _draw(torch.randn, seed, purpose, step, indices, shape)


def uniforms(
    seed: int, purpose: str, step: int, indices: Sequence[int], shape: tuple[int, ...]
) -> Tensor:
    """The same with uniform numbers in [0, 1)."""
    return _draw(torch.rand, seed, purpose, step, indices, shape)


def _draw(
    torch_draw: Callable[..., Tensor],
    seed: int,
    purpose: str,
    step: int,
    indices: Sequence[int],
    shape: tuple[int, ...],
) -> Tensor:
    # X stands for `shape`. Each row is filled in place: `numbers_X` is a view of `numbers_BX`.
    generator, numbers_BX = torch.Generator(), torch.empty(len(indices), *shape)
    for numbers_X, index in zip(numbers_BX, indices, strict=True):
        generator.manual_seed(seed_for(seed, purpose, step, index))
        torch_draw(shape, generator=generator, out=numbers_X)
    return numbers_BX
