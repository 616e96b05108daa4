"""The VAR transformer (arXiv 2404.02905), with the released parameter names.

Shapes: B images, L tokens of the whole pyramid, S of the first scale, C width, Z code channels,
V codes, D depth.
"""

import math

import torch
from torch import Tensor, nn

from var_scaling.config import Tokenizer
from var_scaling.models.layers import (
    Block,
    ModulatedNorm,
    Modulation,
    autocast_dtype,
    full_precision,
)
from var_scaling.models.var.config import VarModel
from var_scaling.pyramid import Pyramid
from var_scaling.randomness import seed_for


class VAR(nn.Module):
    """Logits for every token, given the class and, for each scale, what the coarser ones show.

    Labels are taken as given; index `classes` means none. Dropping labels is the trainer's act.
    """

    def __init__(self, model: VarModel, tokenizer: Tokenizer, classes: int, seed: int):
        super().__init__()
        self.config = model
        self.classes = classes
        self.levels_L: Tensor
        self.mask_LL: Tensor
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "model init"))
            self._build(model, tokenizer, classes)
            self._init_weights()

    def _build(self, model: VarModel, tokenizer: Tokenizer, classes: int) -> None:
        pyramid, width = tokenizer.pyramid, model.width
        self.pos_start = nn.Parameter(torch.empty(1, pyramid.lengths[0], width))
        self.pos_1LC = nn.Parameter(torch.empty(1, pyramid.length, width))
        self.lvl_embed = nn.Embedding(pyramid.scales, width)
        self.class_emb = nn.Embedding(classes + 1, width)
        self.word_embed = nn.Linear(tokenizer.code_channels, width)
        if model.shared_adaln:
            self.shared_ada_lin = Modulation(width, 6)
        self.blocks = nn.ModuleList(
            Block(
                width, model.heads, model.mlp_ratio, model.shared_adaln, model.normalised_attention
            )
            for _ in range(model.depth)
        )
        self.head_nm = ModulatedNorm(width)
        self.head = nn.Linear(width, tokenizer.codes)
        self.register_buffer("levels_L", torch.tensor(pyramid.levels), persistent=False)
        self.register_buffer("mask_LL", block_causal_mask(pyramid), persistent=False)

    def forward(
        self, labels_B: Tensor, shown_BLZ: Tensor, keep_D2B: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced logits (B, L, V).

        `shown` is the quantizer's teacher input (B, L - S, Z). `keep` holds the factor of each
        image's residual branches: 0 where drop path drops, else 1 / kept share.
        """
        with full_precision(labels_B.device):  # as released
            cond_BC = self.class_emb(labels_B)
            first = cond_BC[:, None] + self.pos_start
            x_BLC = torch.cat([first, self.word_embed(shown_BLZ)], dim=1)
            x_BLC = x_BLC + self.lvl_embed(self.levels_L) + self.pos_1LC
        if keep_D2B is None:
            keep_D2B = x_BLC.new_ones(self.config.depth, 2, len(labels_B))
        cond = self.shared_ada_lin(cond_BC) if self.config.shared_adaln else cond_BC
        kind = autocast_dtype(labels_B.device)  # the blocks run in it, their sums too, as released
        x_BLC, cond, keep_D2B = x_BLC.to(kind), cond.to(kind), keep_D2B.to(kind)
        for block, keep_2B in zip(self.blocks, keep_D2B, strict=True):
            assert isinstance(block, Block)
            x_BLC = block(x_BLC, block.parts(cond), self.mask_LL, keep_2B[:, :, None, None])
        return self.head(self.head_nm(x_BLC.float(), cond_BC))

    def _init_weights(self) -> None:
        """The released standard deviations, relative to sqrt(1 / 3C); every bias 0."""
        config, std = self.config, math.sqrt(1 / (3 * self.config.width))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif not name.endswith("scale_mul_1H11"):
                nn.init.normal_(parameter, std=std)
        nn.init.normal_(self.head.weight, std=std * config.head_init)
        self.head_nm.ada_lin.weight.data.mul_(config.adaln_init)
        gammas = 2 * config.width  # the first two of the six chunks
        for block in self.blocks:
            assert isinstance(block, Block)
            block.attn.proj.weight.data.div_(math.sqrt(2 * config.depth))
            block.ffn.fc2.weight.data.div_(math.sqrt(2 * config.depth))
            if config.shared_adaln:
                nn.init.normal_(block.ada_gss, std=config.width**-0.5)
                block.ada_gss.data[:, :, :2].mul_(config.gamma_init)
                block.ada_gss.data[:, :, 2:].mul_(config.adaln_init)
            else:
                block.ada_lin.weight.data[:gammas].mul_(config.gamma_init)
                block.ada_lin.weight.data[gammas:].mul_(config.adaln_init)


def block_causal_mask(pyramid: Pyramid) -> Tensor:
    """(L, L), True where the row's position may see the column's: its own scale and all coarser."""
    levels_L = torch.tensor(pyramid.levels)
    return levels_L[:, None] >= levels_L[None, :]


def drop_path_factors(model: VarModel, images: int, generator: torch.Generator) -> Tensor | None:
    """(D, 2, B) factors for `VAR.forward`; None where no block drops. Block 0 never drops."""
    if model.drop_path == 0:
        return None
    rates = torch.linspace(0, model.drop_path, model.depth)[:, None, None]
    kept = torch.rand(model.depth, 2, images, generator=generator) >= rates
    return kept / (1 - rates)
