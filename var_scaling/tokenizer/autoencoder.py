"""Encoder and decoder of the VQVAE (arXiv 2404.02905), with the released parameter names.

Shapes: B images, W width, H side. Level 0 is the finest.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var_scaling.config import Tokenizer


def norm(width: int, groups: int) -> nn.GroupNorm:
    """Group norm with gcd(groups, width) groups, so that the groups always divide the width."""
    return nn.GroupNorm(math.gcd(groups, width), width, eps=1e-6)


class DropoutGenerators:
    """One random generator per image, shared by all dropout layers of a model."""

    def __init__(self) -> None:
        self.generators: list[torch.Generator] = []

    def seed(self, seeds: list[int], device: torch.device) -> None:
        """Call it before each forward, one seed per image: masks never depend on the batch."""
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]


class Dropout(nn.Module):
    """Dropout of the share `share`, each image's mask drawn from the generator of that image."""

    def __init__(self, share: float, draws: DropoutGenerators):
        super().__init__()
        self.share, self.draws = share, draws

    def forward(self, x_BWHH: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x_BWHH
        # One call per image, not one for the batch: otherwise a mask would depend on the size of
        # the batch, and so on the number of processes.
        drawn = [
            torch.rand(x.shape, generator=generator, device=x.device)
            for x, generator in zip(x_BWHH, self.draws.generators, strict=True)
        ]
        return x_BWHH * (torch.stack(drawn) >= self.share) / (1 - self.share)


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
