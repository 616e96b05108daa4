"""A picture edited by a model: some of its tokens kept, the others drawn anew around them.

In-painting, out-painting and class-conditional editing keep the tokens outside a hole; super-
resolution keeps the coarse scales whole (arXiv 2404.02905, section 5.3).

The encoder sees the whole window, so a kept token also tells of what was in the hole, as in the
released demo: it looks around itself, and its norms look everywhere. Measured on CIFAR-10, 60 to
75 % of the finest kept tokens change with what is in a hole of 8 or 16 of 32 pixels. `blank` takes
that out before the encoder looks, at the price of a flat patch that it knows from no photograph.

Shapes: h, w the picture, H side of the model's images, L tokens of the whole pyramid.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from var_scaling.config import Tokenizer
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.blend import Window, centred_window, to_square, window_for
from var_scaling.generation.kept import (
    coarse_positions,
    kept_cells,
    kept_positions,
    scales_shown_by,
)
from var_scaling.generation.sample import Sampled, sample
from var_scaling.models.base import Kept, ModelSpec, SamplingRecord
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import precision_context


class Scene(NamedTuple):
    """What of a picture the model is shown, and what of that it keeps."""

    window: Window
    square_HH3: np.ndarray  # uint8: the window as large as the model takes it
    keep_L: Tensor  # bool: the positions whose tokens are the picture's own


def scene_to_paint(
    picture_hw3: np.ndarray,
    hole_hw: np.ndarray,
    t: Tokenizer,
    outpaint: bool = False,
    window: Window | None = None,
    blank: bool = False,
) -> Scene:
    """The hole is to be filled: what of the picture the model sees, and which tokens are kept.

    With `blank` the encoder is shown the mean colour of the rest in the hole's place. Raises
    EditError where window and hole do not fit, or nothing would be kept or drawn.
    """
    window = window_for(hole_hw, outpaint, window)
    keep_RR = kept_cells(window.of(hole_hw), t.pyramid.side)
    shown_hw3 = _without(picture_hw3, hole_hw, window) if blank else picture_hw3
    square_HH3 = to_square(shown_hw3, window, t.side)
    return Scene(window, square_HH3, kept_positions(keep_RR, t.pyramid))


def scene_to_enlarge(
    picture_hw3: np.ndarray, t: Tokenizer, window: Window | None = None, scales: int | None = None
) -> Scene:
    """A small picture (or its `window`) is to get detail: its coarse scales are kept.

    How many is `scales`, or as many as it speaks for itself. Raises EditError if it is not smaller
    than the model's images, or so many cannot be kept.
    """
    height, width = picture_hw3.shape[:2]
    window = window or centred_window(width, height)
    shown = scales_shown_by(window.size, t.pyramid, t.downsampling)
    keep_L = coarse_positions(t.pyramid, shown if scales is None else scales)
    return Scene(window, to_square(picture_hw3, window, t.side), keep_L)


@torch.no_grad()
def encoded(tokenizer: MultiScaleVQVAE, square_HH3: np.ndarray) -> Tensor:
    """Ids (1, L) of a uint8 image, on the tokenizer's device, in full float32."""
    device = tokenizer.quantize.embedding.weight.device
    with precision_context("fp32", device):
        return tokenizer.encode(to_unit(torch.from_numpy(square_HH3)[None].to(device)))


def edited(
    spec: ModelSpec,
    model: nn.Module,
    tokenizer: MultiScaleVQVAE,
    scene: Scene,
    requests: Sequence[Request],
    sampling: SamplingRecord,
    seed: int,
    batch: int,
) -> Iterator[Sampled]:
    """Draw `requests` around what the scene keeps: in all of them the same tokens at every scale.

    As `sample` otherwise: the same request gives the same image, whatever the batch.
    """
    ids_1L = encoded(tokenizer, scene.square_HH3)
    kept = Kept(ids_1L, scene.keep_L.to(ids_1L.device)[None])
    return sample(spec, model, tokenizer, requests, sampling, seed, batch, kept)


def _without(picture_hw3: np.ndarray, hole_hw: np.ndarray, window: Window) -> np.ndarray:
    """The picture, the mean colour of what the window keeps in place of the hole."""
    hole_SS = window.of(hole_hw)
    filled_hw3 = picture_hw3.copy()
    seen_SS3 = window.of(filled_hw3)
    seen_SS3[hole_SS] = np.rint(seen_SS3[~hole_SS].mean(0))
    return filled_hw3
