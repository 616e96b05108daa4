"""Encoder and decoder of the VQVAE (arXiv 2404.02905), with the released parameter names.

Shapes: B images, W width, H side. Level 0 is the finest.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var_scaling.config import Tokenizer

Module = TypeVar("Module", bound=nn.Module)
_DROPOUT_GROUP = {"cpu": 1, "cuda": 8}  # images whose masks one generator draws


class _ChannelsLastNorm(torch.autograd.Function):
    """Group norm of channels-last maps, computed in float32; map and gradient keep the format.

    torch's kernels for CUDA read and write contiguous maps only (2.13, native/group_norm.cpp), and
    autocast wants them in float32. Left to torch, the maps of a convolution and of a norm have two
    formats, and additions of both are slow. Here each conversion does both in one copy.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BWHH: Tensor, weight_W: Tensor, bias_W: Tensor, groups: int, epsilon: float
    ) -> Tensor:
        batch, width, *sides = x_BWHH.shape
        ctx.sizes = batch, width, math.prod(sides), groups
        y, mean_BG, rstd_BG = torch.ops.aten.native_group_norm(
            _contiguous_float(x_BWHH), weight_W, bias_W, *ctx.sizes, epsilon
        )
        ctx.save_for_backward(x_BWHH, mean_BG, rstd_BG, weight_W)
        return y.to(x_BWHH.dtype, memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BWHH, mean_BG, rstd_BG, weight_W = ctx.saved_tensors
        grad, x = _contiguous_float(grads[0]), _contiguous_float(x_BWHH)
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_group_norm_backward(
            grad, x, mean_BG, rstd_BG, weight_W, *ctx.sizes, [True, True, True]
        )
        grad_x = grad_x.to(x_BWHH.dtype, memory_format=torch.channels_last)
        return grad_x, grad_weight, grad_bias, None, None


def _contiguous_float(x_BWHH: Tensor) -> Tensor:
    return x_BWHH.to(torch.float32, memory_format=torch.contiguous_format)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, on a GPU by `_ChannelsLastNorm`."""

    def forward(self, x_BWHH: Tensor) -> Tensor:
        # torch's norm for a CPU has a channels-last kernel.
        if x_BWHH.device.type == "cpu":
            return super().forward(x_BWHH)
        return _ChannelsLastNorm.apply(x_BWHH, self.weight, self.bias, self.num_groups, self.eps)


def norm(width: int, groups: int, epsilon: float = 1e-6) -> GroupNorm:
    """Group norm with gcd(groups, width) groups, so that the groups always divide the width."""
    return GroupNorm(math.gcd(groups, width), width, eps=epsilon)


def channels_last_on_gpu(module: Module) -> Module:
    """`module`, on a GPU with channels-last convolutions, the format of its tensor cores.

    cudnn.benchmark stays off: it times algorithms and takes the fastest, which may be another one
    after a resume, with other rounding.
    """
    # Not on a CPU, where training would round differently than before; `freeze` does it there.
    if next(module.parameters()).device.type == "cpu":
        return module
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class DropoutDraws:
    """The random numbers of all dropout layers of a model.

    A generator draws for a group of consecutive images of the global batch, so that masks depend
    neither on the number of processes nor on the steps before. On a CPU a group is one image. A GPU
    needs fewer and larger draws: a process draws each group that has one of its images.
    """

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []
        self.skipped = 0  # images of the first group before the first image of this process

    def seed(self, seed_of: Callable[[int], int], rows: range, device: torch.device) -> None:
        """Call it before each forward pass of the images `rows` of the global batch.

        `seed_of` gives the seed of each group by its number.
        """
        size = _DROPOUT_GROUP[device.type]
        self.skipped = rows.start % size
        groups = range(rows.start // size, -(-rows.stop // size))
        self.generators = [torch.Generator(device).manual_seed(seed_of(k)) for k in groups]

    def kept(self, x_BWHH: Tensor, share: float) -> Tensor:
        """Mask of `x`, bool (B, W, H, H): False for about the share `share` of the numbers."""
        shape = (_DROPOUT_GROUP[x_BWHH.device.type], *x_BWHH.shape[1:])
        on_cpu = x_BWHH.device.type == "cpu"
        empty = partial(
            torch.empty,
            shape,
            device=x_BWHH.device,
            memory_format=torch.contiguous_format if on_cpu else torch.channels_last,
        )
        drawn = [empty().uniform_(generator=one) >= share for one in self.generators]
        return torch.cat(drawn)[self.skipped : self.skipped + len(x_BWHH)]


class Dropout(nn.Module):
    """Dropout of the share `share`, with masks from `draws`."""

    def __init__(self, share: float, draws: DropoutDraws):
        super().__init__()
        self.share, self.draws = share, draws

    def forward(self, x_BWHH: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x_BWHH
        return x_BWHH * self.draws.kept(x_BWHH, self.share) / (1 - self.share)


class ResidualBlock(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int, dropout: Dropout):
        super().__init__()
        self.norm1 = norm(cin, groups)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = norm(cout, groups)
        self.dropout = dropout
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x_BWHH: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BWHH)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x_BWHH) + h


class AttentionBlock(nn.Module):
    """Single-head attention over all positions of the map."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = norm(width, groups)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x_BWHH: Tensor) -> Tensor:
        # (B, 3 W, H, H) to three of (B, 1 head, H * H, W).
        q, k, v = rearrange(
            self.qkv(self.norm(x_BWHH)), "b (three w) y x -> three b 1 (y x) w", three=3
        )
        h = F.scaled_dot_product_attention(q, k, v)
        side = x_BWHH.shape[-1]
        return x_BWHH + self.proj_out(rearrange(h, "b 1 (y x) w -> b w y x", x=side))


class Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BWHH: Tensor) -> Tensor:
        # Padding at the right and at the bottom only, as in the released encoder. Conv2d's own
        # padding is symmetric: the released weights would get a grid shifted by a pixel.
        return self.conv(F.pad(x_BWHH, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BWHH: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BWHH, scale_factor=2, mode="nearest"))


class Middle(nn.Module):
    def __init__(self, width: int, groups: int, dropout: Dropout):
        super().__init__()
        self.block_1 = ResidualBlock(width, width, groups, dropout)
        self.attn_1 = AttentionBlock(width, groups)
        self.block_2 = ResidualBlock(width, width, groups, dropout)

    def forward(self, x_BWHH: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BWHH)))


class Level(nn.Module):
    """Residual blocks at one resolution, with attention on the coarsest, then a resize."""

    def __init__(
        self, cin: int, cout: int, blocks: int, groups: int, dropout: Dropout, attention: bool
    ):
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(cin if j == 0 else cout, cout, groups, dropout) for j in range(blocks)
        )
        self.attn = nn.ModuleList(AttentionBlock(cout, groups) for _ in range(blocks) if attention)
        # Set by Encoder or Decoder, where a resize follows.
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x_BWHH: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            x_BWHH = block(x_BWHH)
            if self.attn:
                x_BWHH = self.attn[j](x_BWHH)
        resize = self.downsample or self.upsample
        return resize(x_BWHH) if resize else x_BWHH


class Encoder(nn.Module):
    """(B, 3, side, side) to (B, code_channels, grid, grid)."""

    def __init__(self, t: Tokenizer, dropout: Dropout):
        super().__init__()
        widths = [t.channels * multiplier for multiplier in t.multipliers]
        self.conv_in = nn.Conv2d(3, t.channels, 3, padding=1)
        levels: list[Level] = []
        width = t.channels
        for level, level_width in enumerate(widths):
            deepest = level == len(widths) - 1
            levels.append(
                Level(width, level_width, t.residual_blocks, t.norm_groups, dropout, deepest)
            )
            # The coarsest level keeps its side: n levels halve the image n - 1 times.
            if not deepest:
                levels[-1].downsample = Downsample(level_width)
            width = level_width
        self.down = nn.ModuleList(levels)
        self.mid = Middle(width, t.norm_groups, dropout)
        self.norm_out = norm(width, t.norm_groups)
        self.conv_out = nn.Conv2d(width, t.code_channels, 3, padding=1)

    def forward(self, images_B3HH: Tensor) -> Tensor:
        h = self.conv_in(images_B3HH)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """(B, code_channels, grid, grid) to (B, 3, side, side), not clamped to [-1, 1]."""

    def __init__(self, t: Tokenizer, dropout: Dropout):
        super().__init__()
        widths = [t.channels * multiplier for multiplier in t.multipliers]
        self.conv_in = nn.Conv2d(t.code_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], t.norm_groups, dropout)
        levels: list[Level] = []
        for level, level_width in enumerate(widths):
            deepest = level == len(widths) - 1
            # The input comes from the next coarser level; that of the coarsest comes from `mid`.
            coarser = widths[-1] if deepest else widths[level + 1]
            levels.append(
                # One residual block more than in the encoder, as in the released code.
                Level(coarser, level_width, t.residual_blocks + 1, t.norm_groups, dropout, deepest)
            )
            if level > 0:
                levels[-1].upsample = Upsample(level_width)
        self.up = nn.ModuleList(levels)  # index 0 is the finest level; run in reverse order
        self.norm_out = norm(widths[0], t.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, f_BCHH: Tensor) -> Tensor:
        h = self.mid(self.conv_in(f_BCHH))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def initialize(module: nn.Module) -> None:
    """Convolutions that keep the variance of their input, without biases; residual branches are 0.

    torch's default shrinks the variance to a third in each layer and adds random biases: the
    features of all images are nearly equal at first, and training takes twice the steps (LOG.md).
    Branches that start at 0: arXiv 1706.02677, section 5.1.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            assert part.bias is not None
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5)
            nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, ResidualBlock):
            nn.init.zeros_(part.conv2.weight)
        elif isinstance(part, AttentionBlock):
            nn.init.zeros_(part.proj_out.weight)


def to_unit(pixels_BHH3: Tensor) -> Tensor:
    """uint8 (B, H, H, 3) to float (B, 3, H, H) in [-1, 1]."""
    return rearrange(pixels_BHH3, "b y x c -> b c y x").to(torch.float32) / 127.5 - 1


def to_pixels(images_B3HH: Tensor) -> Tensor:
    """float (B, 3, H, H) in [-1, 1], clamped, to uint8 (B, H, H, 3)."""
    # Clamp before the conversion: values outside of 0 to 255 have no defined uint8.
    pixels = (images_B3HH.clamp(-1, 1) + 1) * 127.5
    return rearrange(pixels.round().to(torch.uint8), "b c y x -> b y x c")
