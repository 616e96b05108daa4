"""Inception-v3 as FID and IS define it: TensorFlow's network of December 2015.

It differs from torchvision's: average pools exclude the padding, the last block has a maximum pool,
images are resized as in TensorFlow 1, and there are 1,008 outputs. The TensorFlow graph of FID
(arXiv 1706.08500) and its ports, pytorch-fid and torch-fidelity, have these properties too. Module
names are those of the ports' published weights.

Shapes: B images, C channels, H side, D features (2,048), K outputs (1,008).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.evaluation.frozen import FrozenNorm

WIDTH, OUTPUTS = 2048, 1008
_SIDE = 299  # pixels


class Conv(NamedTuple):
    """A convolution, followed by batch normalisation and ReLU."""

    name: str
    channels: int
    kernel: tuple[int, int]  # height, width
    stride: int = 1
    padded: bool = True  # "same" padding: with stride 1 the side stays equal


class Fork(NamedTuple):
    """Two convolutions of the same input; their channels are concatenated."""

    first: Conv
    second: Conv


Pool = Callable[[Tensor], Tensor]
Path = list[Conv | Fork | Pool]

_ONE, _THREE, _FIVE = (1, 1), (3, 3), (5, 5)
_FLAT, _TALL = (1, 7), (7, 1)
_halve = partial(F.max_pool2d, kernel_size=3, stride=2)
_maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)

# Side of the maps: 149 and 147 after two convolutions, 73 after pooling, 71, and 35 at the end.
_STEM: Path = [
    Conv("Conv2d_1a_3x3", 32, _THREE, stride=2, padded=False),
    Conv("Conv2d_2a_3x3", 32, _THREE, padded=False),
    Conv("Conv2d_2b_3x3", 64, _THREE),
    _halve,
    Conv("Conv2d_3b_1x1", 80, _ONE),
    Conv("Conv2d_4a_3x3", 192, _THREE, padded=False),
    _halve,
]


def _chain(name: str, *layers: tuple[int, tuple[int, int]], halves: bool = False) -> Path:
    """Convolutions `name`_1, `name`_2, …, each (channels, kernel); the last may halve the side."""
    convs = [Conv(f"{name}_{k}", *layer) for k, layer in enumerate(layers, start=1)]
    return [*convs[:-1], convs[-1]._replace(stride=2, padded=False) if halves else convs[-1]]


def _fine(pooled: int) -> list[Path]:
    """A block at 35 × 35."""
    return [
        [Conv("branch1x1", 64, _ONE)],
        _chain("branch5x5", (48, _ONE), (64, _FIVE)),
        _chain("branch3x3dbl", (64, _ONE), (96, _THREE), (96, _THREE)),
        [_average, Conv("branch_pool", pooled, _ONE)],
    ]


def _middle(c: int) -> list[Path]:
    """A block at 17 × 17: kernels of 7 × 7 are factorised into 1 × 7 and 7 × 1."""
    return [
        [Conv("branch1x1", 192, _ONE)],
        _chain("branch7x7", (c, _ONE), (c, _FLAT), (192, _TALL)),
        _chain("branch7x7dbl", (c, _ONE), (c, _TALL), (c, _FLAT), (c, _TALL), (192, _FLAT)),
        [_average, Conv("branch_pool", 192, _ONE)],
    ]


def _coarse(pool: Pool) -> list[Path]:
    """A block at 8 × 8."""

    # A kernel of 3 × 3, factorised into 1 × 3 and 3 × 1 side by side.
    def fork(name: str) -> Fork:
        return Fork(Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1)))

    return [
        [Conv("branch1x1", 320, _ONE)],
        [*_chain("branch3x3", (384, _ONE)), fork("branch3x3_2")],
        [*_chain("branch3x3dbl", (448, _ONE), (384, _THREE)), fork("branch3x3dbl_3")],
        [pool, Conv("branch_pool", 192, _ONE)],
    ]


# The blocks that halve the side, from 35 to 17 and from 17 to 8: strided convolutions and
# pooling in parallel (arXiv 1512.00567, section 5).
_TO_MIDDLE: list[Path] = [
    [Conv("branch3x3", 384, _THREE, stride=2, padded=False)],
    _chain("branch3x3dbl", (64, _ONE), (96, _THREE), (96, _THREE), halves=True),
    [_halve],
]
_TO_COARSE: list[Path] = [
    _chain("branch3x3", (192, _ONE), (320, _THREE), halves=True),
    _chain("branch7x7x3", (192, _ONE), (192, _FLAT), (192, _TALL), (192, _THREE), halves=True),
    [_halve],
]
# The input channels are the sum over the paths of the block before.
# (name, input channels, paths).
_BLOCKS: tuple[tuple[str, int, list[Path]], ...] = (
    ("Mixed_5b", 192, _fine(32)),
    ("Mixed_5c", 256, _fine(64)),
    ("Mixed_5d", 288, _fine(64)),
    ("Mixed_6a", 288, _TO_MIDDLE),
    ("Mixed_6b", 768, _middle(128)),
    ("Mixed_6c", 768, _middle(160)),
    ("Mixed_6d", 768, _middle(160)),
    ("Mixed_6e", 768, _middle(192)),
    ("Mixed_7a", 768, _TO_COARSE),
    ("Mixed_7b", 1280, _coarse(_average)),
    ("Mixed_7c", 2048, _coarse(_maximum)),
)


class Inception(nn.Module):
    """Images (B, 3, H, H), float32 in 0 … 255, to features (B, 2048) and logits (B, 1008).

    The features are the spatial averages of the last activations. The logits are without the bias
    of the last layer, as in the code of the Inception Score (arXiv 1606.03498).
    """

    def __init__(self) -> None:
        super().__init__()
        _add(self, 3, _STEM)
        for name, width, paths in _BLOCKS:
            self.add_module(name, _Block(width, paths))
        self.fc = nn.Linear(WIDTH, OUTPUTS)

    def forward(self, images_B3HH: Tensor) -> tuple[Tensor, Tensor]:
        # 128, not 127.5: the scaling of pixels in TensorFlow's graph.
        unit_B3HH = (resize_as_tensorflow_1(images_B3HH, _SIDE) - 128) / 128
        x_BCHH = _run_path(self, _STEM, unit_B3HH)
        for name, _, _ in _BLOCKS:
            x_BCHH = self.get_submodule(name)(x_BCHH)
        features_BD = x_BCHH.mean((2, 3))
        return features_BD, F.linear(features_BD, self.fc.weight)


class _Block(nn.Module):
    """Parallel paths from the same input; their channels are concatenated."""

    def __init__(self, width: int, paths: list[Path]) -> None:
        super().__init__()
        self.paths = paths
        # Directly in the block, without a container for each path: the published names have none.
        for path in paths:
            _add(self, width, path)

    def forward(self, x_BCHH: Tensor) -> Tensor:
        return torch.cat([_run_path(self, path, x_BCHH) for path in self.paths], dim=1)


class _ConvNormReLU(nn.Module):
    def __init__(self, width: int, conv: Conv) -> None:
        super().__init__()
        height, across = conv.kernel
        padding = (height // 2, across // 2) if conv.padded else (0, 0)
        self.conv = nn.Conv2d(width, conv.channels, conv.kernel, conv.stride, padding, bias=False)
        self.bn = FrozenNorm(conv.channels, eps=1e-3)  # TensorFlow's; torch's default is 1e-5

    def forward(self, x_BCHH: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BCHH)), inplace=True)


def _add(module: nn.Module, width: int, path: Path) -> None:
    """Add the layers of `path` to `module`; the input has `width` channels."""
    for step in path:
        if isinstance(step, Conv):
            module.add_module(step.name, _ConvNormReLU(width, step))
            width = step.channels
        elif isinstance(step, Fork):
            # A fork is the last step of its path, so `width` is not needed again.
            for conv in step:
                module.add_module(conv.name, _ConvNormReLU(width, conv))


def _run_path(module: nn.Module, path: Path, x_BCHH: Tensor) -> Tensor:
    for step in path:
        if isinstance(step, Conv):
            x_BCHH = module.get_submodule(step.name)(x_BCHH)
        elif isinstance(step, Fork):
            x_BCHH = torch.cat([module.get_submodule(conv.name)(x_BCHH) for conv in step], dim=1)
        else:
            x_BCHH = step(x_BCHH)
    return x_BCHH


def resize_as_tensorflow_1(images_BCHH: Tensor, side: int) -> Tensor:
    """Bilinear resizing as TensorFlow 1 did by default: corners not aligned, no antialiasing.

    Pixel i of the result is interpolated at position i × H / side, without a shift by half a
    pixel. Beyond the last pixel its value is repeated.
    """
    return _resize_axis(_resize_axis(images_BCHH, 3, side), 2, side)


def _resize_axis(x_BCHH: Tensor, dim: int, side: int) -> Tensor:
    length = x_BCHH.shape[dim]
    position = torch.arange(side, device=x_BCHH.device, dtype=x_BCHH.dtype) * (length / side)
    below = position.long()
    # (side, 1) for rows, (side,) for columns: broadcast over the other axes of (B, C, H, W).
    weight = (position - below).view(side, *[1] * (3 - dim))
    low = x_BCHH.index_select(dim, below)
    high = x_BCHH.index_select(dim, (below + 1).clamp(max=length - 1))
    return low + (high - low) * weight
