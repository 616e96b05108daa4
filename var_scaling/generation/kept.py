"""The tokens of a picture that an edit keeps: those of cells outside the hole, or coarse scales.

Shapes: S side of the model's window onto the picture in pixels, R side of the finest map, L tokens
of all scales.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from var_scaling.generation.masks import EditError
from var_scaling.pyramid import Pyramid

# A scale with at most 3 tokens is kept entirely, as in the released demo_zero_shot_edit.ipynb.
_ALWAYS_KEPT = 3


def kept_cells(hole_SS: np.ndarray, side: int) -> Tensor:
    """bool (R, R), R = `side`: True for cells of the finest map without a pixel of the hole.

    `hole_SS` is the hole within the window. A pixel on the border of two cells belongs to both.
    Raises EditError if no cell is kept.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(hole_SS, dtype=np.float32))
    # Cell i of adaptive pooling covers floor(i S / R) to ceil((i + 1) S / R): all its pixels.
    kept_RR = F.adaptive_max_pool2d(pixels[None, None], side)[0, 0] == 0
    if not kept_RR.any():
        raise EditError(
            f"the hole reaches into each of the {side} × {side} cells of the model's finest map, "
            "so nothing of the picture would be kept: keep a larger connected area"
        )
    return kept_RR


def kept_positions(keep_RR: Tensor, pyramid: Pyramid) -> Tensor:
    """bool (L,), on the CPU: True for the positions whose tokens are kept.

    As in the released editing demo: at each scale the map of kept cells is resized bilinearly, and
    a position is kept if its value exceeds 0.5. A scale of at most 3 tokens is kept entirely.
    Raises EditError if nothing is left to generate at the finest scale.
    """
    if tuple(keep_RR.shape) != (pyramid.side, pyramid.side):
        shape = " × ".join(map(str, keep_RR.shape))
        raise EditError(
            f"kept cells have shape {shape}, but the finest map has side {pyramid.side}"
        )
    # (1, 1, R, R), as F.interpolate needs it.
    keep = keep_RR.detach().cpu().bool().float()[None, None]
    scales = []
    for side in pyramid.patch_nums:
        if side * side <= _ALWAYS_KEPT:
            scales.append(torch.ones(side * side, dtype=torch.bool))
        else:
            resized = F.interpolate(keep, size=(side, side), mode="bilinear", align_corners=False)
            scales.append((resized > 0.5).flatten())
    if scales[-1].all():
        raise EditError("every cell of the finest map is kept: nothing is left to generate")
    return torch.cat(scales)


def coarse_positions(pyramid: Pyramid, scales: int) -> Tensor:
    """bool (L,): True for the tokens of the first `scales` scales. Raises EditError."""
    if not 1 <= scales < pyramid.scales:
        raise EditError(
            f"cannot keep {scales} scales: of the model's {pyramid.scales} scales, "
            + (f"1 to {pyramid.scales - 1}" if pyramid.scales > 1 else "none")
            + " can be kept"
        )
    # `levels` has the scale index of each of the L positions.
    return torch.tensor(pyramid.levels) < scales


def scales_covered_by(pixels: int, pyramid: Pyramid, downsampling: int) -> int:
    """The number of coarse scales that an image of side `pixels` determines, for super-resolution.

    A scale counts if its side × `downsampling` is at most `pixels`; the first always counts. Raises
    EditError if the image is not smaller than the model's images.
    """
    model_side = pyramid.side * downsampling
    if pixels >= model_side:
        raise EditError(
            f"the image has {pixels} px on its shorter side, the model's images {model_side}: "
            "super-resolution needs a smaller image"
        )
    if pyramid.scales == 1:
        raise EditError("the model has a single scale, so there is no coarse scale to keep")
    # A token covers `downsampling` pixels: a finer map needs detail that the picture does not have.
    return max(1, sum(side * downsampling <= pixels for side in pyramid.patch_nums))
