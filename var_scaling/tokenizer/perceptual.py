"""LPIPS (arXiv 1801.03924): perceptual distance by VGG-16. The user provides the weights.

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

# ImageNet mean and deviation for images in [-1, 1], as in the released LPIPS code.
_MEAN = (-0.030, -0.088, -0.188)
_DEVIATION = (0.458, 0.448, 0.450)
_IGNORED = ("classifier.",)  # in torchvision's file, not part of LPIPS


class Perceptual(nn.Module):
    """Distances (B,) between images (B, 3, H, H) in [-1, 1], H at least 16.

    Parameters have the names of torchvision's `vgg16` (`features.N`) and of LPIPS
    (`linK.model.1`), so that both released files, or one file with both, load unchanged.
    """

    sha256 = ""  # of the loaded weights

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.deviation: Tensor
        layers: list[nn.Module] = []
        width = 3
        self.compared_layers: list[int] = []  # indices in `features`
        for k, widths in enumerate(VGG_STAGES):
            if k:
                layers.append(nn.MaxPool2d(2))
            for stage_width in widths:
                layers += [nn.Conv2d(width, stage_width, 3, padding=1), nn.ReLU()]
                width = stage_width
            # The last ReLU of the stage: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3, as in LPIPS.
            self.compared_layers.append(len(layers) - 1)
            linear = nn.Conv2d(stage_width, 1, 1, bias=False)
            nn.init.constant_(linear.weight, 1 / stage_width)  # weights of a distance must be >= 0
            calibration = nn.Module()
            calibration.model = nn.Sequential(nn.Identity(), linear)  # index 1, as in LPIPS
            setattr(self, f"lin{k}", calibration)
        self.features = nn.Sequential(*layers)
        # Not persistent: the released files do not contain them, and loading is strict.
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION)[:, None, None], persistent=False)

    def forward(self, images_B3HH: Tensor, truth_B3HH: Tensor) -> Tensor:
        """Distances (B,). `truth` gets no gradient, which saves its backward pass."""
        with torch.no_grad():
            truth_features = self._features(truth_B3HH)
        distance_B = images_B3HH.new_zeros(len(images_B3HH))
        for k, (image_BCHH, truth_BCHH) in enumerate(
            zip(self._features(images_B3HH), truth_features, strict=True)
        ):
            linear = getattr(self, f"lin{k}").model[1]
            # The channels are weighted to (B, 1, h, w); then the mean over positions.
            distance_B = distance_B + linear((image_BCHH - truth_BCHH).square()).mean((1, 2, 3))
        return distance_B

    def _features(self, images_B3HH: Tensor) -> list[Tensor]:
        """The compared activations; the channel vector of each position has length 1."""
        h, activations = (images_B3HH - self.mean) / self.deviation, []
        for number, layer in enumerate(self.features):
            h = layer(h)
            if number in self.compared_layers:
                activations.append(F.normalize(h, dim=1, eps=1e-10))
        return activations


def load_perceptual(paths: tuple[Path, ...], sha256: str | None) -> Perceptual:
    """The distance with the weights of all `paths`, frozen.

    Raises WeightsError if a tensor is missing or wrong, or if their hash is not `sha256`.
    """
    if not paths:
        raise WeightsError(
            "losses.perceptual > 0 needs LPIPS weights. Name the files in var-scaling.toml:\n"
            '  [weights]\n  lpips = ["vgg16-397923af.pth", "vgg.pth"]\n'
            "the first from torchvision (features.0.weight …), the second from LPIPS "
            "(lin0.model.1.weight …); one .pth or .safetensors file with both is also accepted"
        )
    state: State = {}
    for path in paths:
        # Two files make one state: the network of torchvision, the channel weights of LPIPS.
        state.update(
            (name, value)
            for name, value in read_tensors(path).items()
            if not name.startswith(_IGNORED)
        )
    model = Perceptual()
    files = ", ".join(map(str, paths))
    refuse_mismatch(files, state, model)
    actual = tensors_sha256(state)
    if sha256 not in (None, actual):
        raise WeightsError(f"{files}: SHA-256 {actual}, but losses.perceptual_sha256 = {sha256}")
    model.load_state_dict(state, strict=True)
    model.sha256 = actual
    return model.eval().requires_grad_(False)
