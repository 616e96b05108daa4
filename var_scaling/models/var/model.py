"""The VAR transformer (arXiv 2404.02905), with the released parameter names.

Shapes: B images, L tokens of all scales, S of the first scale, C width, Z code channels,
V codes, D depth.
"""

import torch
from torch import Tensor, nn

from var_scaling.config import Tokenizer
from var_scaling.linear import Linear
from var_scaling.models.attention import AttentionMask
from var_scaling.models.cross_entropy import mean_cross_entropy
from var_scaling.models.layers import (
    Block,
    ModulatedNorm,
    Modulation,
    autocast_dtype,
    branch_factors,
    full_precision,
    init_adaln_transformer,
)
from var_scaling.models.var.config import VarModel
from var_scaling.randomness import seed_for


class VAR(nn.Module):
    """Logits of every token given the class and all coarser scales.

    Index `classes` is the null class. The network drops no labels; the trainer does.
    """

    compiled_methods = ("run_block", "head_loss")

    def __init__(self, model: VarModel, tokenizer: Tokenizer, classes: int, seed: int):
        super().__init__()
        self.config = model
        self.classes = classes
        self.levels_L: Tensor
        # The initial weights depend on the seed alone, and the caller's generator is not advanced.
        # Weights are made on the CPU, so no GPU generator has to be saved.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "model init"))
            self._build(model, tokenizer, classes)
            init_adaln_transformer(
                self, model.width, model.gamma_init, model.adaln_init, model.head_init
            )

    def _build(self, model: VarModel, tokenizer: Tokenizer, classes: int) -> None:
        pyramid, width = tokenizer.pyramid, model.width
        # The first scale gets both position embeddings, as released.
        self.pos_start = nn.Parameter(torch.empty(1, pyramid.lengths[0], width))
        self.pos_1LC = nn.Parameter(torch.empty(1, pyramid.length, width))
        self.lvl_embed = nn.Embedding(pyramid.scales, width)
        self.class_emb = nn.Embedding(classes + 1, width)
        self.word_embed = Linear(tokenizer.code_channels, width)
        if model.shared_adaln:
            self.shared_ada_lin = Modulation(width, 6)
        self.blocks = nn.ModuleList(
            Block(
                width, model.heads, model.mlp_ratio, model.shared_adaln, model.normalised_attention
            )
            for _ in range(model.depth)
        )
        self.head_nm = ModulatedNorm(width)
        self.head = Linear(width, tokenizer.codebook_size)
        # Both follow from the pyramid: not persistent, so weight files do not have them.
        self.register_buffer("levels_L", torch.tensor(pyramid.levels), persistent=False)
        # Within a scale attention has no order: its tokens are predicted in parallel.
        self.mask = AttentionMask(pyramid.lengths)

    def forward(
        self,
        labels_B: Tensor,
        input_BLZ: Tensor,
        keep_D2B: Tensor | None = None,
        ids_BL: Tensor | None = None,
    ) -> Tensor:
        """Teacher-forced logits (B, L, V), or their mean cross entropy if `ids` is given.

        `input` is the quantizer's teacher input (B, L - S, Z). `keep` holds the factors of the
        residual branches from `drop_path_factors`.
        """
        with full_precision(labels_B.device):  # the released code embeds in float32
            cond_BC = self.class_emb(labels_B)
            first = cond_BC[:, None] + self.pos_start
            x_BLC = torch.cat([first, self.word_embed(input_BLZ)], dim=1)
            x_BLC = x_BLC + (self.lvl_embed(self.levels_L) + self.pos_1LC)
        cond = self.shared_ada_lin(cond_BC) if self.config.shared_adaln else cond_BC
        # As released, the blocks and the residual stream run in the autocast dtype.
        dtype = autocast_dtype(labels_B.device)
        x_BLC, cond = x_BLC.to(dtype), cond.to(dtype)
        for block, keep_2B11 in zip(
            self.blocks, branch_factors(keep_D2B, self.config.depth, dtype), strict=True
        ):
            assert isinstance(block, Block)
            x_BLC = self.run_block(block, x_BLC, cond, keep_2B11)
        if ids_BL is None:
            return self.head_logits(x_BLC, cond_BC)
        return self.head_loss(x_BLC, cond_BC, ids_BL)

    def run_block(
        self, block: Block, x_BLC: Tensor, cond: Tensor, keep_2B11: Tensor | None
    ) -> Tensor:
        return block(x_BLC, block.adaln_params(cond), self.mask, keep_2B11)

    def head_logits(self, x_BLC: Tensor, cond_BC: Tensor) -> Tensor:
        # The last norm gets the residual stream in float32, as released.
        return self.head(self.head_nm(x_BLC.float(), cond_BC))

    def head_loss(self, x_BLC: Tensor, cond_BC: Tensor, ids_BL: Tensor) -> Tensor:
        return mean_cross_entropy(self.head_logits(x_BLC, cond_BC), ids_BL)
