"""The diffusion transformer (arXiv 2212.09748), with the released parameter names.

Shapes: B images, R rows of the condition, Z channels and H side of the grid, T positions, C width,
N heads, P numbers of a patch.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var_scaling.accounting import FEWEST_ROWS
from var_scaling.config import Tokenizer
from var_scaling.linear import Linear
from var_scaling.models.attention import attend_rotated, split_heads
from var_scaling.models.dit.accounting import patch_channels
from var_scaling.models.dit.config import DitModel
from var_scaling.models.layers import (
    FeedForward,
    Modulation,
    autocast_dtype,
    full_precision,
    modulate,
)
from var_scaling.randomness import seed_for

_STD = 0.02  # initial standard deviation of the class and time embeddings


class DiT(nn.Module):
    """A transformer with AdaLN-Zero. Input and output grids are normalised per channel.

    Buffers hold the mean and deviation of each channel. Index `classes` is the null class. The
    head starts at zero, so the initial output is exactly 0.
    """

    compiled_methods = ("run_block", "output")

    def __init__(self, model: DitModel, tokenizer: Tokenizer, classes: int, seed: int):
        super().__init__()
        self.config = model
        self.classes = classes
        self.side = tokenizer.pyramid.side // model.patch
        self.latent_mean_Z: Tensor
        self.latent_deviation_Z: Tensor
        self.pos_embed_TC: Tensor
        # The initial weights depend on the seed alone, and the caller's generator is not advanced.
        # Weights are made on the CPU, so no GPU generator has to be saved.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "model init"))
            self._build(model, tokenizer, classes)
            self._init_weights()

    def _build(self, model: DitModel, tokenizer: Tokenizer, classes: int) -> None:
        width = model.width
        channels_in, channels_out = patch_channels(model, tokenizer)
        self.x_embedder = Linear(channels_in, width)
        self.t_embedder = nn.Sequential(
            Linear(model.time_channels, width), nn.SiLU(), Linear(width, width)
        )
        self.y_embedder = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(
            DitBlock(width, model.heads, model.mlp_ratio) for _ in range(model.depth)
        )
        self.final_modulation = Modulation(width, 2)
        self.final_linear = Linear(width, channels_out)
        # The statistics come from the training data and are saved with the weights. The positions
        # follow from the config and are not.
        channels = tokenizer.code_channels
        self.register_buffer("latent_mean_Z", torch.zeros(channels))
        self.register_buffer("latent_deviation_Z", torch.ones(channels))
        self.register_buffer("pos_embed_TC", sincos_positions(width, self.side), persistent=False)

    def forward(self, x_BZHH: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        """The prediction (B, Z, H, H), or (B, 2 Z, H, H) with a learned variance. Times in (0, 1].

        Padding gives the condition at least FEWEST_ROWS rows: a smaller matrix product rounds
        differently on a CPU, so a sample would depend on the batch size.
        """
        images = len(x_BZHH)
        padding = max(0, FEWEST_ROWS - images)
        if padding and self.side**2 < FEWEST_ROWS:  # else the T positions make enough rows
            x_BZHH = torch.cat([x_BZHH, x_BZHH[:1].expand(padding, -1, -1, -1)])
        with full_precision(labels_B.device):
            # Padding rows have time 0 and class 0; their results are dropped.
            t_R, labels_R = F.pad(t_B, (0, padding)), F.pad(labels_B, (0, padding))
            embedding_RW = timestep_embedding(t_R, self.config.time_channels)
            cond_RC = self.t_embedder(embedding_RW) + self.y_embedder(labels_R)
            x_BTC = self.x_embedder(self.patches(x_BZHH)) + self.pos_embed_TC
        dtype = autocast_dtype(labels_B.device)
        x_BTC, cond = x_BTC.to(dtype), cond_RC.to(dtype)
        for block in self.blocks:
            assert isinstance(block, DitBlock)
            x_BTC = self.run_block(block, x_BTC, cond)
        return self.output(x_BTC, cond_RC)[:images]

    def run_block(self, block: "DitBlock", x_BTC: Tensor, cond_RC: Tensor) -> Tensor:
        # Where only the condition was padded, x has fewer rows.
        return block(x_BTC, block.adaLN_modulation(cond_RC)[: len(x_BTC)])

    def output(self, x_BTC: Tensor, cond_RC: Tensor) -> Tensor:
        """The grid (B, Z or 2 Z, H, H) of the last block's output."""
        shift, scale = self.final_modulation(cond_RC)[: len(x_BTC)].unbind(1)
        # float32 for the last norm, also under autocast.
        return self.grid(self.final_linear(modulate(x_BTC.float(), scale, shift)))

    def patches(self, x_BZHH: Tensor) -> Tensor:
        """(B, T, Z patch²): the grid's patches in raster order, channels first in each."""
        p = self.config.patch
        return rearrange(x_BZHH, "b z (y p) (x q) -> b (y x) (z p q)", p=p, q=p)

    def grid(self, values_BTP: Tensor) -> Tensor:
        """The grid of patches (B, T, patch² Z), channels last in each patch, as released."""
        p = self.config.patch
        return rearrange(
            values_BTP, "b (y x) (p q z) -> b z (y p) (x q)", y=self.side, p=p, q=p
        ).contiguous()

    def normalized(self, grid_BZHH: Tensor) -> Tensor:
        """The tokenizer's grid, scaled to mean 0 and deviation 1 in each channel."""
        # By channel: one factor for all, as in latent diffusion, leaves deviations that differ by a
        # factor of 2 to 3 (docs/families.md).
        mean, deviation = self.latent_mean_Z, self.latent_deviation_Z
        return (grid_BZHH - mean[:, None, None]) / deviation[:, None, None]

    def denormalized(self, x_BZHH: Tensor) -> Tensor:
        """The inverse of `normalized`, for the tokenizer's decoder."""
        mean, deviation = self.latent_mean_Z, self.latent_deviation_Z
        return x_BZHH * deviation[:, None, None] + mean[:, None, None]

    def _init_weights(self) -> None:
        """The published initial weights: Xavier for matrices, zero for AdaLN layers and head."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.y_embedder.weight, std=_STD)
        for layer in self.t_embedder:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=_STD)
        nn.init.zeros_(self.final_linear.weight)
        nn.init.zeros_(self.final_modulation.weight)
        for block in self.blocks:
            assert isinstance(block, DitBlock)
            # AdaLN-Zero: with gates of 0 each block is the identity at the start.
            nn.init.zeros_(block.adaLN_modulation.weight)


class DitBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; all gates start at 0."""

    def __init__(self, width: int, heads: int, ratio: int):
        super().__init__()
        self.attn = PlainAttention(width, heads)
        self.mlp = FeedForward(width, ratio)
        self.adaLN_modulation = Modulation(width, 6)

    def forward(self, x_BTC: Tensor, adaln_B61C: Tensor) -> Tensor:
        # DiT's published order; VAR's block has its gates first (models/layers.py).
        shift1, scale1, gate1, shift2, scale2, gate2 = adaln_B61C.unbind(1)
        x_BTC = torch.addcmul(x_BTC, gate1, self.attn(modulate(x_BTC, scale1, shift1)))
        return torch.addcmul(x_BTC, gate2, self.mlp(modulate(x_BTC, scale2, shift2)))


class PlainAttention(nn.Module):
    """Multi-head attention over all positions, with biases and without a mask."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        qk, v = split_heads(self.qkv(x_BTC), self.heads)
        h = attend_rotated(qk, v, v.shape[-1] ** -0.5, None)
        return self.proj(rearrange(h, "b n t c -> b t (n c)"))


def sincos_positions(width: int, side: int) -> Tensor:
    """(T, C) fixed sines and cosines: half of the channels for the column, half for the row."""
    # Channels: sines of the column, its cosines, sines of the row, its cosines.
    quarter = width // 4
    frequencies_Q = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [index.flatten()[:, None] * frequencies_Q for index in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1).float()


def timestep_embedding(t_B: Tensor, channels: int) -> Tensor:
    """(B, W) cosines and sines of 1,000 t, so that t in (0, 1] has the scale of 1,000 steps."""
    half = channels // 2
    index_H = torch.arange(half, dtype=torch.float32, device=t_B.device)
    frequencies_H = torch.exp(-math.log(10_000.0) * index_H / half)
    angles_BH = 1000 * t_B.float()[:, None] * frequencies_H
    return torch.cat([angles_BH.cos(), angles_BH.sin()], dim=1)
