"""Which tokens of a picture an edit keeps: those of cells without a hole, or the coarse scales.

Shapes: S side of the model's window onto the picture in pixels, R side of the finest map, L tokens
of the whole pyramid.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from var_scaling.generation.masks import EditError
from var_scaling.pyramid import Pyramid

# A scale of no more tokens is kept whole: the released demo_zero_shot_edit.ipynb.
_KEPT_WHOLE = 3


def kept_cells(hole_SS: np.ndarray, side: int) -> Tensor:
    """bool (R, R), R = `side`: cells of the finest map of which no pixel lies in the hole.

    `hole_SS` is the hole as the window shows it. A pixel on the border of two cells is in both.
    Raises EditError if no cell is kept.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(hole_SS, dtype=np.float32))
    # Adaptive pooling looks at floor(i S / R) to ceil((i + 1) S / R): all that touches a cell.
    kept_RR = F.adaptive_max_pool2d(pixels[None, None], side)[0, 0] == 0
    if not kept_RR.any():
        raise EditError(
            f"the hole reaches into each of the {side} × {side} cells that the model sees, so "
            "nothing of the picture would be kept: keep a larger piece of it in one place"
        )
    return kept_RR


def kept_positions(keep_RR: Tensor, pyramid: Pyramid) -> Tensor:
    """bool (L,), on the CPU: the positions whose tokens are the picture's own.

    As in the released editing demo: at each scale the map of kept cells (true or 1), resized
    bilinearly to that scale's side, is more than a half; a scale of at most 3 tokens is kept whole.
    Raises EditError if the finest scale has nothing to generate.
    """
    if tuple(keep_RR.shape) != (pyramid.side, pyramid.side):
        shape = " × ".join(map(str, keep_RR.shape))
        raise EditError(f"kept cells: {shape}, but the finest map has side {pyramid.side}")
    keep = keep_RR.detach().cpu().bool().float()[None, None]
    scales = []
    for side in pyramid.patch_nums:
        if side * side <= _KEPT_WHOLE:
            scales.append(torch.ones(side * side, dtype=torch.bool))
        else:
            resized = F.interpolate(keep, size=(side, side), mode="bilinear", align_corners=False)
            scales.append((resized > 0.5).flatten())
    if scales[-1].all():
        raise EditError("every cell of the finest map is kept: nothing is left to generate")
    return torch.cat(scales)


def coarse_positions(pyramid: Pyramid, scales: int) -> Tensor:
    """bool (L,): the first `scales` scales are kept whole, the finer ones generated."""
    if not 1 <= scales < pyramid.scales:
        raise EditError(
            f"{scales} scales to keep: of a pyramid of {pyramid.scales}, "
            + (f"1 to {pyramid.scales - 1} can be" if pyramid.scales > 1 else "none can be")
        )
    return torch.tensor(pyramid.levels) < scales


def scales_shown_by(pixels: int, pyramid: Pyramid, downsampling: int) -> int:
    """How many coarse scales a small image of side `pixels` speaks for, for super-resolution.

    Those whose maps it could have filled itself: side × `downsampling` within its own; at least
    one. Raises EditError if the image is not smaller than what the model makes.
    """
    whole = pyramid.side * downsampling
    if pixels >= whole:
        raise EditError(
            f"the image has {pixels} px on its shorter side and the model makes {whole}: there is "
            "nothing to add. Super-resolution starts from a smaller image"
        )
    if pyramid.scales == 1:
        raise EditError("a pyramid of one scale has no coarse map that could be kept")
    return max(1, sum(side * downsampling <= pixels for side in pyramid.patch_nums))
