"""Networks that other people trained, read strictly and then left as they are: they only judge.

Shapes: B images, C channels, H side.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.weights import State, read_tensors, refuse_mismatch

_BOOKKEEPING = ".num_batches_tracked"  # how long the training was; no output depends on it


class FrozenNorm(nn.Module):
    """Batch normalisation by the statistics of a training that is over (arXiv 1502.03167).

    Values and names are those of `nn.BatchNorm2d` in evaluation, less `num_batches_tracked`, which
    the released files have or have not by the version of torch that wrote them.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.eps = eps
        for name, start in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(name, torch.full((channels,), float(start)))

    def forward(self, x_BCHH: Tensor) -> Tensor:
        return F.batch_norm(
            x_BCHH, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def read_frozen(path: Path) -> State:
    """The tensors in `path` that play a part in evaluation. Raises WeightsError."""
    return {k: v for k, v in read_tensors(path).items() if not k.endswith(_BOOKKEEPING)}


def load_frozen(path: Path, state: State, model: nn.Module) -> None:
    """Put `state`, read from `path`, into `model`, every name and shape as it must be, and freeze.

    Raises WeightsError with all that is missing, not known or of another shape.
    """
    refuse_mismatch(str(path), state, model)
    model.load_state_dict(state, strict=True)
    model.eval().requires_grad_(False)


def refuse_images(images: Tensor, smallest_side: int) -> None:
    """Raise ValueError unless `images` are uint8 (B, H, H, 3), H at least `smallest_side`."""
    shape, dtype = tuple(images.shape), images.dtype
    if dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"images {dtype} {shape}: wanted torch.uint8 (images, side, side, 3)")
    if shape[1] != shape[2]:
        raise ValueError(
            f"images of {shape[1]} × {shape[2]} pixels: resizing them would squash them; crop "
            "them to squares first"
        )
    if shape[1] < smallest_side:
        raise ValueError(f"images of side {shape[1]}: wanted at least {smallest_side}")
