"""Sample images. Each depends only on the model, settings, seed, class and index.

Shapes: B images, L tokens, K frames, Z code channels, H side of the grid, W side of the images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from var_scaling.experiment.sample_set import Request
from var_scaling.models.base import Kept, ModelSpec, SamplingRecord
from var_scaling.models.registry import family_of
from var_scaling.randomness import seed_for
from var_scaling.tokenizer.autoencoder import to_pixels
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import precision_context


class Sampled(NamedTuple):
    """A batch of what was asked for; on the processor."""

    requests: tuple[Request, ...]
    ids_BL: Tensor | None  # None where the family draws no tokens
    images_BWW3: Tensor  # uint8
    strips_BKWW3: Tensor | None  # uint8: what each frame decodes to


@torch.no_grad()
def sample(
    spec: ModelSpec,
    model: nn.Module,
    tokenizer: MultiScaleVQVAE,
    requests: Sequence[Request],
    sampling: SamplingRecord,
    seed: int,
    batch: int,
    kept: Kept | None = None,
    strips: bool = False,
) -> Iterator[Sampled]:
    """Draw `requests`, `batch` at a time, on the device of the weights.

    A sample is a function of seed, class, index and settings. On one thread of a processor that
    holds bit for bit, whatever the batch and the order (measured, LOG.md); on several, and on a
    GPU, matrix products of another batch may round otherwise. `kept` (one row) is kept of every
    image. Raises ValueError for a class that the model does not know, or settings that do not fit
    it.
    """
    family, quantizer = family_of(spec.config), tokenizer.quantize
    device = quantizer.embedding.weight.device
    family.frames(spec, sampling)
    _refuse_unknown(requests, spec.classes)
    for start in range(0, len(requests), batch):
        part = tuple(requests[start : start + batch])
        labels_B = torch.tensor([request.label for request in part], device=device)
        draws = RequestDraws(seed, part, device)
        given = None if kept is None else Kept(*(_repeated(each, len(part)) for each in kept))
        ids, grids = [], []
        with precision_context(sampling.precision, device):
            for frame in family.sample(spec, model, quantizer, labels_B, sampling, draws, given):
                if frame.ids_BN is not None:
                    ids.append(frame.ids_BN.cpu())
                grids.append(frame.grid_BZHH)
        images = rendered(tokenizer, grids[-1])
        shown = [rendered(tokenizer, grid) for grid in grids] if strips else None
        yield Sampled(
            part,
            torch.cat(ids, dim=1) if ids else None,
            images,
            torch.stack(shown, dim=1) if shown is not None else None,
        )


@dataclass(frozen=True)
class RequestDraws:
    """The random numbers of each request, drawn on the CPU: the same on every device."""

    seed: int
    requests: Sequence[Request]
    device: torch.device

    def uniform(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        return self._drawn(torch.rand, purpose, step, shape)

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        return self._drawn(torch.randn, purpose, step, shape)

    def _drawn(
        self, draw: Callable[..., Tensor], purpose: str, step: int, shape: tuple[int, ...]
    ) -> Tensor:
        rows = []
        for request in self.requests:
            place = seed_for(self.seed, f"sample {purpose}", request.label, request.index, step)
            rows.append(draw(shape, generator=torch.Generator().manual_seed(place)))
        return torch.stack(rows).to(self.device)


@torch.no_grad()
def rendered(tokenizer: MultiScaleVQVAE, f_BZHH: Tensor) -> Tensor:
    """uint8 (B, W, W, 3) on the processor; one by one, as convolutions round by the batch too."""
    with precision_context("fp32", f_BZHH.device):
        images = [to_pixels(tokenizer.render(grid_1ZHH)) for grid_1ZHH in f_BZHH.split(1)]
    return torch.cat(images).cpu()


def _repeated(row_1L: Tensor, images: int) -> Tensor:
    return row_1L.expand(images, -1)


def _refuse_unknown(requests: Sequence[Request], classes: int) -> None:
    wrong = sorted({request.label for request in requests if not 0 <= request.label <= classes})
    if wrong:
        raise ValueError(
            f"classes {', '.join(map(str, wrong))}: the model knows 0 to {classes - 1}, and "
            f"{classes} for none"
        )
