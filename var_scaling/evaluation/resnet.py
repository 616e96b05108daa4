"""ResNet classifiers (arXiv 1512.03385) for rejection sampling: "-re" in VAR's tables.

Module names, and the stride in the 3 × 3 convolution of a bottleneck, are torchvision's, so that
its published files can be loaded. The names in a file determine which network it holds.

Shapes: B images, C channels, H side, K classes.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.disk import file_sha256
from var_scaling.evaluation.frozen import FrozenNorm, load_frozen, read_frozen, refuse_images
from var_scaling.training.optim import precision_context
from var_scaling.weights import State, WeightsError

# (blocks of each stage, whether they are bottlenecks: 1 × 1, 3 × 3, 1 × 1).
_ARCHITECTURES = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
_STAGES = ("layer1", "layer2", "layer3", "layer4")
_RESIZED, _SIDE = 256, 224  # pixels
# Of ImageNet's training images in [0, 1], by channel, as for the training of torchvision's weights.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """A frozen ResNet: its `name`, the `sha256` of its file, and its number of `classes`."""

    def __init__(self, name: str, sha256: str, classes: int, net: "ResNet") -> None:
        super().__init__()
        self.name, self.sha256, self.classes = name, sha256, classes
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def probabilities(self, images_BHH3: Tensor) -> Tensor:
        """(B, K) float32, of uint8 images (B, H, H, 3) on the classifier's device.

        Preprocessing is torchvision's for its first ImageNet weights: resize to 256 pixels
        (bilinear, antialiased, rounded to integers), crop the central 224, subtract ImageNet's mean
        and divide by its standard deviation. All in float32. Raises ValueError for other images.
        """
        refuse_images(images_BHH3, smallest_side=1)
        with precision_context("fp32", images_BHH3.device):
            return self.net(preprocess(images_BHH3)).softmax(1)


def preprocess(images_BHH3: Tensor) -> Tensor:
    """Float32 (B, 3, 224, 224), resized, cropped and normalised as in the network's training."""
    x = images_BHH3.movedim(3, 1).float()
    # Rounded, because Pillow resizes integers. Images are square here, so the side of torchvision's
    # rule (resize the shorter one) is both.
    if x.shape[2] != _RESIZED:
        x = F.interpolate(x, (_RESIZED, _RESIZED), mode="bilinear", antialias=True).round()
    margin = (_RESIZED - _SIDE) // 2
    x = x[:, :, margin : margin + _SIDE, margin : margin + _SIDE] / 255
    mean, deviation = (torch.tensor(v, device=x.device)[:, None, None] for v in (_MEAN, _DEVIATION))
    return (x - mean) / deviation


def load_classifier(path: Path) -> Classifier:
    """The classifier with the weights in `path`. Raises WeightsError for other networks."""
    state = read_frozen(path)
    name = _architecture(path, state)
    classes = state["fc.weight"].shape[0]
    net = ResNet(name, classes)
    load_frozen(path, state, net)
    return Classifier(name, file_sha256(path), classes, net)


def _architecture(path: Path, state: State) -> str:
    # Names are STAGE.BLOCK.LAYER: count the different blocks of each stage.
    blocks = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"{stage}.")})
        for stage in _STAGES
    )
    architecture = blocks, "layer1.0.conv3.weight" in state  # only bottlenecks have a third one
    if "fc.weight" not in state or not any(blocks):
        examples = ", ".join(sorted(state)[:4])
        raise WeightsError(
            f"{path}: not a ResNet with torchvision's names: it has {examples} …, but not "
            "layer1.0.conv1.weight … or fc.weight"
        )
    name = next((name for name, a in _ARCHITECTURES.items() if a == architecture), None)
    if name is None:
        raise WeightsError(
            f"{path}: a ResNet with {blocks} {'bottlenecks' if architecture[1] else 'blocks'} per "
            f"stage; supported are {', '.join(_ARCHITECTURES)}"
        )
    return name


class ResNet(nn.Module):
    """`name` as in torchvision: preprocessed images (B, 3, 224, 224) to logits (B, classes)."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        blocks, bottleneck = _ARCHITECTURES[name]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = _norm(64)
        width = 64
        for k, (stage, count) in enumerate(zip(_STAGES, blocks, strict=True)):
            layers = []
            for number in range(count):
                # The first block of a stage halves the side, except in layer1, after a pooling.
                layers.append(_Block(width, 64 * 2**k, 2 if k and not number else 1, bottleneck))
                width = layers[-1].width
            self.add_module(stage, nn.Sequential(*layers))
        self.fc = nn.Linear(width, classes)

    def forward(self, images_B3HH: Tensor) -> Tensor:
        x_BCHH = F.relu(self.bn1(self.conv1(images_B3HH)))
        x_BCHH = F.max_pool2d(x_BCHH, 3, stride=2, padding=1)
        for stage in _STAGES:
            x_BCHH = self.get_submodule(stage)(x_BCHH)
        return self.fc(x_BCHH.mean((2, 3)))


class _Block(nn.Module):
    """x + convolutions of x: two of 3 × 3, or 1 × 1 (narrows), 3 × 3, 1 × 1 (widens)."""

    def __init__(self, width: int, channels: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.width = channels * 4 if bottleneck else channels
        # (channels, kernel, stride) of each convolution.
        layers = [(channels, 3, stride), (channels, 3, 1)]
        if bottleneck:
            layers = [(channels, 1, 1), (channels, 3, stride), (self.width, 1, 1)]
        before = width
        for k, (after, kernel, step) in enumerate(layers, start=1):
            conv = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{k}", conv)
            self.add_module(f"bn{k}", _norm(after))
            before = after
        self.layers = len(layers)
        self.downsample = nn.Sequential()  # the identity, if the shape stays the same
        if stride > 1 or width != self.width:
            shortcut = nn.Conv2d(width, self.width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, _norm(self.width))

    def forward(self, x_BCHH: Tensor) -> Tensor:
        h_BCHH = x_BCHH
        for k in range(1, self.layers + 1):
            h_BCHH = self.get_submodule(f"bn{k}")(self.get_submodule(f"conv{k}")(h_BCHH))
            # The last ReLU comes after the shortcut is added (arXiv 1512.03385, figure 2).
            if k < self.layers:
                h_BCHH = F.relu(h_BCHH)
        return F.relu(h_BCHH + self.downsample(x_BCHH))


def _norm(channels: int) -> FrozenNorm:
    return FrozenNorm(channels, eps=1e-5)
