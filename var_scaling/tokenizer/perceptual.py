"""LPIPS (arXiv 1801.03924): how far apart two images look to VGG-16. Weights are the user's own.

Shapes: B images, H side, C channels of a stage.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.accounting.tokenizer import VGG_STAGES
from var_scaling.weights import (
    State,
    WeightsError,
    read_tensors,
    refuse_mismatch,
    tensors_sha256,
)

# Of the images VGG was trained on, in units of [-1, 1]: LPIPS, eq. 1 and its released code.
_MEAN = (-0.030, -0.088, -0.188)
_DEVIATION = (0.458, 0.448, 0.450)
_SIDELINE = ("classifier.",)  # in torchvision's file, of no use here


class Perceptual(nn.Module):
    """Distances (B,) between images (B, 3, H, H) in [-1, 1], H at least 16.

    Names are those of torchvision's `vgg16` (`features.N`) and of LPIPS (`linK.model.1`), so that
    both released files, or one with both, can be read.
    """

    sha256 = ""  # of its weights, once they are loaded

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        layers: list[nn.Module] = []
        width = 3
        self.looks: list[int] = []  # layers whose outputs are compared
        for k, widths in enumerate(VGG_STAGES):
            if k:
                layers.append(nn.MaxPool2d(2))
            for stage_width in widths:
                layers += [nn.Conv2d(width, stage_width, 3, padding=1), nn.ReLU()]
                width = stage_width
            self.looks.append(len(layers) - 1)
            weigh = nn.Conv2d(stage_width, 1, 1, bias=False)
            nn.init.constant_(weigh.weight, 1 / stage_width)  # never negative: a distance
            calibration = nn.Module()
            calibration.model = nn.Sequential(nn.Identity(), weigh)
            setattr(self, f"lin{k}", calibration)
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)

    def forward(self, images_B3HH: Tensor, truth_B3HH: Tensor) -> Tensor:
        """Gradients go to `images` alone: the truth is walked without, for a third of the price."""
        with torch.no_grad():
            wanted = self._looks(truth_B3HH)
        distance_B = images_B3HH.new_zeros(len(images_B3HH))
        for k, (found_BCHH, wanted_BCHH) in enumerate(
            zip(self._looks(images_B3HH), wanted, strict=True)
        ):
            weigh = getattr(self, f"lin{k}").model[1]
            distance_B = distance_B + weigh((found_BCHH - wanted_BCHH).square()).mean((1, 2, 3))
        return distance_B

    def _looks(self, images_B3HH: Tensor) -> list[Tensor]:
        """The activations that are compared, each position's channels of length 1."""
        h, looks = (images_B3HH - self.mean) / self.deviation, []
        for number, layer in enumerate(self.features):
            h = layer(h)
            if number in self.looks:
                looks.append(F.normalize(h, dim=1, eps=1e-10))
        return looks


def load_perceptual(paths: tuple[Path, ...], sha256: str | None) -> Perceptual:
    """The distance with the weights that lie in `paths` together, frozen.

    Raises WeightsError if one is missing or wrong, or if the whole is not what `sha256` says.
    """
    if not paths:
        raise WeightsError(
            "losses.perceptual has a weight, but no weights are named. Put into var-scaling.toml:\n"
            '  [weights]\n  lpips = ["vgg16-397923af.pth", "vgg.pth"]\n'
            "the first as torchvision gives it (features.0.weight …), the second as LPIPS does "
            "(lin0.model.1.weight …); one .pth or .safetensors file with both will do"
        )
    state: State = {}
    for path in paths:
        state.update(
            (name, value)
            for name, value in read_tensors(path).items()
            if not name.startswith(_SIDELINE)
        )
    model = Perceptual()
    where = ", ".join(map(str, paths))
    refuse_mismatch(where, state, model)
    found = tensors_sha256(state)
    if sha256 not in (None, found):
        raise WeightsError(f"{where}: weights {found}, but losses.perceptual_sha256 = {sha256}")
    model.load_state_dict(state, strict=True)
    model.sha256 = found
    return model.eval().requires_grad_(False)
