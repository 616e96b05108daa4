"""Pretrained networks for evaluation only: weights are read strictly and then frozen.

Shapes: B images, C channels, H side.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.weights import State, read_tensors, refuse_mismatch

_BOOKKEEPING = ".num_batches_tracked"  # a counter of training; no output depends on it


class FrozenNorm(nn.Module):
    """Batch normalisation with fixed running statistics (arXiv 1502.03167).

    Values and names are those of `nn.BatchNorm2d` in evaluation mode, without
    `num_batches_tracked`: the published files have it or not, depending on the version of torch
    that wrote them.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        # Only for type checkers: register_buffer sets these attributes below.
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.eps = eps
        # Buffers, not parameters: no gradient is ever needed.
        for name, start in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(start)))

    def forward(self, x_BCHH: Tensor) -> Tensor:
        return F.batch_norm(
            x_BCHH, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def read_frozen(path: Path) -> State:
    """The tensors in `path` that evaluation uses. Raises WeightsError if it cannot be read."""
    return {k: v for k, v in read_tensors(path).items() if not k.endswith(_BOOKKEEPING)}


def load_frozen(path: Path, state: State, model: nn.Module) -> None:
    """Load `state`, read from `path`, into `model` and freeze it.

    Raises WeightsError with all names that are missing, unknown or of another shape.
    """
    # Before load_state_dict, which would accept another dtype and values that are not finite.
    refuse_mismatch(str(path), state, model)
    model.load_state_dict(state, strict=True)
    model.eval().requires_grad_(False)


def refuse_images(images: Tensor, smallest_side: int) -> None:
    """Raise ValueError unless `images` are uint8 (B, H, H, 3), H at least `smallest_side`."""
    shape, dtype = tuple(images.shape), images.dtype
    if dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"images {dtype} {shape}: expected torch.uint8 (images, side, side, 3)")
    if shape[1] != shape[2]:
        raise ValueError(
            f"images of {shape[1]} × {shape[2]} pixels: resizing would distort them; crop them to "
            "squares first"
        )
    if shape[1] < smallest_side:
        raise ValueError(f"images of side {shape[1]}: expected at least {smallest_side}")
