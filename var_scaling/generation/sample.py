"""Sample images. Each depends only on the model, settings, seed, class and index.

Shapes: B images, L tokens, K frames, Z code channels, H side of the grid, W side of the images.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from var_scaling.experiment.sample_set import Request
from var_scaling.models.base import KeptTokens, ModelSpec, SamplingRecord
from var_scaling.models.registry import family_of
from var_scaling.models.static_calls import StaticCalls, static_calls
from var_scaling.randomness import seed_for
from var_scaling.recipe import Precision
from var_scaling.tokenizer.autoencoder import to_pixels
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import precision_context


class SampleBatch(NamedTuple):
    """The samples of a batch of requests, on the CPU."""

    requests: tuple[Request, ...]
    ids_BL: Tensor | None  # None if the family samples no tokens
    images_BWW3: Tensor  # uint8
    strips_BKWW3: Tensor | None  # uint8: the decoded image of each frame


@torch.no_grad()
def sample(
    spec: ModelSpec,
    model: nn.Module,
    tokenizer: MultiScaleVQVAE,
    requests: Sequence[Request],
    sampling: SamplingRecord,
    seed: int,
    batch: int,
    kept: KeptTokens | None = None,
    strips: bool = False,
    calls: StaticCalls | None = None,
) -> Iterator[SampleBatch]:
    """Sample `requests` in batches of `batch`, on the device of the weights.

    A sample depends only on model, settings, seed, class and index. With one CPU thread this holds
    bit for bit for every batch size and order (measured, LOG.md). With several threads or on a GPU,
    the rounding of a product can depend on the batch size. All images keep the tokens of
    `kept` (one row). `strips` also decodes the intermediate frames. `calls` run the network:
    without them, on a GPU, as CUDA graphs from the second batch on. Raises ValueError for an
    unknown class, or for settings that do not fit the model.
    """
    family, quantizer = family_of(spec.config), tokenizer.quantize
    device = quantizer.embedding.weight.device
    family.frames(spec, sampling)  # raises if the settings do not fit the model
    _check_labels(requests, spec.classes)
    calls = static_calls(device) if calls is None else calls
    for start in range(0, len(requests), batch):
        batch_requests = tuple(requests[start : start + batch])
        labels_B = torch.tensor([request.label for request in batch_requests], device=device)
        draws = RequestDraws(seed, batch_requests, device)
        kept_batch = None
        if kept is not None:
            # Ids and mask, (1, L) each, to (B, L) without a copy.
            kept_batch = KeptTokens(*(row.expand(len(batch_requests), -1) for row in kept))
        ids: list[Tensor] = []
        grids: list[Tensor] = []
        with precision_context(sampling.precision, device), cast_once(model):
            for frame in family.sample(
                spec, model, quantizer, labels_B, sampling, draws, kept_batch, calls
            ):
                if frame.ids_BN is not None:
                    # Each frame has the ids that are new in it (for VAR those of one scale):
                    # joined, (B, L).
                    ids.append(frame.ids_BN)
                # The last frame is the sample; the others are needed for strips only.
                grids = [*grids, frame.grid_BZHH] if strips else [frame.grid_BZHH]
        frames = [decode_images(tokenizer, grid, sampling.precision) for grid in grids]
        yield SampleBatch(
            batch_requests,
            # Moved to the CPU only here: before the last frame a copy would stop the GPU.
            torch.cat(ids, dim=1).cpu() if ids else None,
            frames[-1],
            torch.stack(frames, dim=1) if strips else None,
        )


@dataclass(frozen=True)
class RequestDraws:
    """The random numbers of each request, drawn on the CPU, so that every device gets the same."""

    seed: int
    requests: Sequence[Request]
    device: torch.device

    def uniform(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        return self._draw(torch.rand, purpose, {step: shape})[0]

    def uniforms(self, purpose: str, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return self._draw(torch.rand, purpose, dict(enumerate(shapes)))

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        return self._draw(torch.randn, purpose, {step: shape})[0]

    def _draw(
        self, torch_draw: Callable[..., Tensor], purpose: str, shapes: dict[int, tuple[int, ...]]
    ) -> list[Tensor]:
        """The numbers (B, *shape) of each step of `shapes`."""
        # All steps in one block, N numbers: one copy to the device, from pinned memory, so that the
        # copy does not wait for the work that the GPU was given before.
        sizes, images = [math.prod(shape) for shape in shapes.values()], len(self.requests)
        numbers_N = torch.empty(images * sum(sizes), pin_memory=self.device.type == "cuda")
        generator = torch.Generator()
        blocks = numbers_N.split([images * size for size in sizes])
        for block, (step, shape) in zip(blocks, shapes.items(), strict=True):
            for row, request in zip(block.view(images, *shape), self.requests, strict=True):
                # A seed for each request and step: one for the batch would make the numbers of an
                # image depend on the images before it.
                label, index = request.label, request.index
                generator.manual_seed(seed_for(self.seed, f"sample {purpose}", label, index, step))
                torch_draw(shape, generator=generator, out=row)
        moved = numbers_N.to(self.device, non_blocking=True).split([len(one) for one in blocks])
        return [
            block.view(images, *shape) for block, shape in zip(moved, shapes.values(), strict=True)
        ]


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Within the block autocast casts each weight once, not in each step.

    It keeps only the casts of parameters that require a gradient. Nothing is recorded for one,
    because sampling runs without gradients.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@torch.no_grad()
def decode_images(
    tokenizer: MultiScaleVQVAE, f_BZHH: Tensor, precision: Precision = "fp32"
) -> Tensor:
    """The decoded images, uint8 (B, W, W, 3) on the CPU.

    In fp32 if `precision`, that of the sampling, is fp32, else in TF32: its rounding is below that
    of a pixel to a byte. So on a CPU, which has no TF32, always in fp32.
    """
    decoder_precision: Precision = "fp32" if precision == "fp32" else "tf32"
    with precision_context(decoder_precision, f_BZHH.device):
        return to_pixels(tokenizer.decode_grids(f_BZHH)).cpu()


def _check_labels(requests: Sequence[Request], classes: int) -> None:
    # Label `classes` is the null class of classifier-free guidance: an unconditional sample.
    unknown = sorted({request.label for request in requests if not 0 <= request.label <= classes})
    if unknown:
        raise ValueError(
            f"unknown classes {', '.join(map(str, unknown))}: the model has classes 0 to "
            f"{classes - 1}, and {classes} is the null class"
        )
