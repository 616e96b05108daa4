"""Editing a picture with a model: keep some of its tokens and sample the others.

In-painting, out-painting and class-conditional editing keep the tokens outside a hole;
super-resolution keeps all tokens of the coarse scales (arXiv 2404.02905, section 5.3).

The encoder reads the whole window, as in the released demo. Because of its receptive field and its
norms, a kept token also contains information about the original content of the hole: on CIFAR-10,
60 to 75 % of the finest kept tokens change with the content of a hole of 8 or 16 of 32 pixels.
`blank` fills the hole with the mean colour before encoding. This removes the information, but
encodes a flat patch that is unlike any training image.

Shapes: h, w the picture, H side of the model's images, L tokens of all scales.
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
    scales_covered_by,
)
from var_scaling.generation.sample import SampleBatch, sample
from var_scaling.models.base import KeptTokens, ModelSpec, SamplingRecord
from var_scaling.models.static_calls import StaticCalls
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import precision_context


class Scene(NamedTuple):
    """The part of a picture that is the model's input, and the tokens of it that are kept."""

    window: Window
    square_HH3: np.ndarray  # uint8: the window, resized to the model's image size
    keep_L: Tensor  # bool: True where the picture's token is kept


def scene_to_paint(
    picture_hw3: np.ndarray,
    hole_hw: np.ndarray,
    t: Tokenizer,
    outpaint: bool = False,
    window: Window | None = None,
    blank: bool = False,
) -> Scene:
    """The window and the kept tokens for filling a hole in a picture.

    With `blank` the hole is filled with the mean colour of the rest before encoding. Raises
    EditError if window and hole do not fit, or if nothing would be kept or sampled.
    """
    window = window_for(hole_hw, outpaint, window)
    keep_RR = kept_cells(window.crop(hole_hw), t.pyramid.side)
    input_hw3 = _fill_with_mean(picture_hw3, hole_hw, window) if blank else picture_hw3
    square_HH3 = to_square(input_hw3, window, t.side)
    return Scene(window, square_HH3, kept_positions(keep_RR, t.pyramid))


def scene_to_enlarge(
    picture_hw3: np.ndarray, t: Tokenizer, window: Window | None = None, scales: int | None = None
) -> Scene:
    """The kept tokens for super-resolution: the coarse scales of a small picture or its `window`.

    `scales` of them are kept; by default those of `scales_covered_by`. Raises EditError if the
    window is not smaller than the model's images, or if `scales` is out of range.
    """
    height, width = picture_hw3.shape[:2]
    window = window or centred_window(width, height)
    covered = scales_covered_by(window.size, t.pyramid, t.downsampling)
    keep_L = coarse_positions(t.pyramid, covered if scales is None else scales)
    return Scene(window, to_square(picture_hw3, window, t.side), keep_L)


@torch.no_grad()
def encode_square(tokenizer: MultiScaleVQVAE, square_HH3: np.ndarray) -> Tensor:
    """Ids (1, L) of a uint8 image, on the tokenizer's device."""
    device = tokenizer.quantize.embedding.weight.device
    # As when the token cache was written: another precision can give other ids.
    with precision_context(tokenizer.encode_precision, device):
        return tokenizer.encode(to_unit(torch.from_numpy(square_HH3)[None].to(device)))


def generate_edits(
    spec: ModelSpec,
    model: nn.Module,
    tokenizer: MultiScaleVQVAE,
    scene: Scene,
    requests: Sequence[Request],
    sampling: SamplingRecord,
    seed: int,
    batch: int,
    calls: StaticCalls | None = None,
) -> Iterator[SampleBatch]:
    """Sample `requests`; all of them keep the same tokens of the scene.

    Everything else is as in `sample`: an image does not depend on its batch.
    """
    ids_1L = encode_square(tokenizer, scene.square_HH3)
    # One row of ids and one of the mask, (1, L); `sample` expands both to its batches.
    kept = KeptTokens(ids_1L, scene.keep_L.to(ids_1L.device)[None])
    return sample(spec, model, tokenizer, requests, sampling, seed, batch, kept, calls=calls)


def _fill_with_mean(picture_hw3: np.ndarray, hole_hw: np.ndarray, window: Window) -> np.ndarray:
    """The picture with its hole in the mean colour of the rest of the window."""
    hole_SS = window.crop(hole_hw)
    filled_hw3 = picture_hw3.copy()
    window_SS3 = window.crop(filled_hw3)  # a view: the assignment changes filled_hw3
    window_SS3[hole_SS] = np.rint(window_SS3[~hole_SS].mean(0))
    return filled_hw3
