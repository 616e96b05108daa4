"""The AR transformer: logits of each token given the class and all tokens before it.

Shapes: B images, T tokens of an image in raster order, I input tokens (T - 1 in training), C
width, N heads, Z code channels, V codes, D depth.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var_scaling.config import Tokenizer
from var_scaling.linear import Linear
from var_scaling.models.ar.accounting import has_level_embedding
from var_scaling.models.ar.config import ArModel
from var_scaling.models.attention import (
    AttentionMask,
    KVCache,
    Rotary,
    attend_rotated,
    split_heads,
)
from var_scaling.models.cross_entropy import mean_cross_entropy
from var_scaling.models.layers import (
    Block,
    ModulatedNorm,
    autocast_dtype,
    branch_factors,
    full_precision,
    init_adaln_transformer,
)
from var_scaling.randomness import seed_for
from var_scaling.tokenizer.quantizer import Quantizer

_LLAMA_STD = 0.02  # LlamaGen's initial standard deviation; its head starts at 0


class AR(nn.Module):
    """A causal transformer over an image's tokens. Index `classes` is the null class.

    The network drops no labels; the trainer does. With AdaLN and learned positions the parameters
    have VAR's names: for a single token both are the same network.
    """

    compiled_methods = ("run_block", "head_loss")

    def __init__(self, model: ArModel, tokenizer: Tokenizer, classes: int, seed: int):
        super().__init__()
        self.config = model
        self.classes = classes
        self.tokens = tokenizer.pyramid.length
        self.levels = tokenizer.pyramid.scales
        self.angles_TP: Tensor | None
        # The initial weights depend on the seed alone, and the caller's generator is not advanced.
        # Weights are made on the CPU, so no GPU generator has to be saved.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "model init"))
            self._build(model, tokenizer, classes)
            if model.block == "adaln":
                init_adaln_transformer(
                    self, model.width, model.gamma_init, model.adaln_init, model.head_init
                )
            else:
                self._init_llama()

    def _build(self, model: ArModel, tokenizer: Tokenizer, classes: int) -> None:
        width, adaln = model.width, model.block == "adaln"
        if adaln:
            self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        if model.positions == "learned":
            self.pos_1LC = nn.Parameter(torch.empty(1, self.tokens, width))
        if has_level_embedding(model, tokenizer):
            self.lvl_embed = nn.Embedding(self.levels, width)
        self.class_emb = nn.Embedding(classes + 1, width)
        self.word_embed: nn.Module
        if model.embedding == "codes":
            self.word_embed = Linear(tokenizer.code_channels, width)
        else:
            self.word_embed = nn.Embedding(tokenizer.codebook_size, width)
        self.blocks = nn.ModuleList(
            Block(width, model.heads, model.mlp_ratio, False, model.normalised_attention)
            if adaln
            else LlamaBlock(width, model.heads, model.hidden)
            for _ in range(model.depth)
        )
        self.head_nm = ModulatedNorm(width) if adaln else nn.RMSNorm(width, eps=1e-5)
        self.head = Linear(width, tokenizer.codebook_size, bias=adaln)
        # Mask and angles follow from the config: not persistent, so weight files do not have them.
        self.mask = AttentionMask([1] * self.tokens)
        angles = None
        if model.positions == "rotary":
            angles = rotary_angles(tokenizer.pyramid.side, self.levels, width // model.heads)
        self.register_buffer("angles_TP", angles, persistent=False)

    def forward(
        self,
        labels_B: Tensor,
        previous: Tensor,
        keep_D2B: Tensor | None = None,
        ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Teacher-forced logits (B, T, V), or their mean cross entropy if `ids` is given.

        Tokens are in raster order. `previous` is `token_inputs` of the first T - 1 tokens. `keep`
        holds the factors of the residual branches from `drop_path_factors`.
        """
        # As in VAR: embeddings are summed in float32, the blocks run in the autocast dtype.
        with full_precision(labels_B.device):
            cond_BC = self.class_emb(labels_B)
            x_BTC = torch.cat([self.start_embedding(cond_BC), self.word_embed(previous)], dim=1)
            x_BTC = self.add_positions(x_BTC, slice(0, self.tokens))
        dtype = autocast_dtype(labels_B.device)
        x_BTC, cond = x_BTC.to(dtype), cond_BC.to(dtype)
        rotary = self.rotation(slice(0, self.tokens))
        factors = branch_factors(keep_D2B, self.config.depth, dtype)
        for block, keep_2B11 in zip(self.blocks, factors, strict=True):
            assert isinstance(block, Block | LlamaBlock)
            x_BTC = self.run_block(block, x_BTC, cond, keep_2B11, rotary)
        if ids_BT is None:
            return self.head_logits(x_BTC, cond_BC)
        return self.head_loss(x_BTC, cond_BC, ids_BT)

    def run_block(
        self,
        block: "Block | LlamaBlock",
        x_BTC: Tensor,
        cond_BC: Tensor,
        keep_2B11: Tensor | None,
        rotary: Rotary | None,
    ) -> Tensor:
        return block(x_BTC, block.adaln_params(cond_BC), self.mask, keep_2B11, None, rotary)

    def start_embedding(self, cond_BC: Tensor) -> Tensor:
        """The input that predicts the first token: the class, (B, 1, C)."""
        return (
            cond_BC[:, None] + self.pos_start if self.config.block == "adaln" else cond_BC[:, None]
        )

    def add_positions(self, x_BtC: Tensor, positions: slice | Tensor) -> Tensor:
        """`x` plus the learned embeddings of `positions` and of their residual levels."""
        embeddings = []
        if hasattr(self, "lvl_embed"):
            # In raster order the levels of a position follow each other: 0, ..., K - 1, 0, ...
            levels_T = torch.arange(self.tokens, device=x_BtC.device) % self.levels
            embeddings.append(self.lvl_embed(levels_T[positions]))
        if hasattr(self, "pos_1LC"):
            embeddings.append(self.pos_1LC[:, positions])
        # Their sum is smaller than x: it is added once.
        return x_BtC + sum(embeddings) if embeddings else x_BtC

    def rotation(self, positions: slice | Tensor) -> Rotary | None:
        """Cosines and sines for `positions`; None if the model has no rotary embedding."""
        if self.angles_TP is None:
            return None
        angles_TP = self.angles_TP[positions]
        return angles_TP.cos(), angles_TP.sin()  # once for all blocks

    def head_logits(self, x_BTC: Tensor, cond_BC: Tensor) -> Tensor:
        if self.config.block == "adaln":
            # The last norm gets the residual stream in float32, as in the released VAR.
            return self.head(self.head_nm(x_BTC.float(), cond_BC))
        return self.head(self.head_nm(x_BTC.float()))

    def head_loss(self, x_BTC: Tensor, cond_BC: Tensor, ids_BT: Tensor) -> Tensor:
        return mean_cross_entropy(self.head_logits(x_BTC, cond_BC), ids_BT)

    def _init_llama(self) -> None:
        for parameter in self.parameters():
            if parameter.ndim > 1:  # the norms' weights stay 1
                nn.init.normal_(parameter, std=_LLAMA_STD)
        nn.init.zeros_(self.head.weight)


class LlamaBlock(nn.Module):
    """LlamaGen's block: RMSNorm before attention and SwiGLU, no biases, no class condition."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        # Names and epsilon as in LlamaGen: w1 is the gate of SwiGLU, w3 its value, w2 the output.
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.wqkv = Linear(width, 3 * width, bias=False)
        self.wo = Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-5)
        self.w1 = Linear(width, hidden, bias=False)
        self.w3 = Linear(width, hidden, bias=False)
        self.w2 = Linear(hidden, width, bias=False)

    def adaln_params(self, cond_BC: Tensor) -> Tensor:
        """Empty: the condition does not change this block. `forward` ignores it."""
        # Of B rows, so that callers can treat all blocks alike.
        return cond_BC[:, :0]

    def forward(
        self,
        x_BTC: Tensor,
        adaln: Tensor,
        mask: AttentionMask | None,
        keep_2B11: Tensor | None = None,
        kv_cache: KVCache | None = None,
        rotary: Rotary | None = None,
    ) -> Tensor:
        qk, v = split_heads(self.wqkv(self.attention_norm(x_BTC)), self.heads)
        h = attend_rotated(qk, v, v.shape[-1] ** -0.5, mask, kv_cache, rotary)
        h = self.wo(rearrange(h, "b n t c -> b t (n c)"))
        x_BTC = x_BTC + (h if keep_2B11 is None else keep_2B11[0] * h)
        h = self.ffn_norm(x_BTC)
        h = self.w2(F.silu(self.w1(h)) * self.w3(h))
        return x_BTC + (h if keep_2B11 is None else keep_2B11[1] * h)


def token_inputs(model: ArModel, quantizer: Quantizer, ids_BI: Tensor) -> Tensor:
    """The network's input for the tokens (B, I): the ids, or their code vectors (B, I, Z)."""
    return quantizer.embedding(ids_BI) if model.embedding == "codes" else ids_BI


def to_raster(ids_BL: Tensor, levels: int) -> Tensor:
    """Tokens in the model's order: position by position, all levels of a position together."""
    return rearrange(ids_BL, "b (k p) -> b (p k)", k=levels)


def from_raster(values_BT: Tensor, levels: int) -> Tensor:
    """Values in the tokenizer's order: level by level. The inverse of `to_raster`."""
    return rearrange(values_BT, "b (p k) -> b (k p)", k=levels)


def rotary_angles(side: int, levels: int, head_width: int) -> Tensor:
    """Angles (T, P) of P channel pairs: a two-dimensional rotary embedding (arXiv 2104.09864).

    Half of the pairs depend on the row, half on the column of the input token. The first input is
    the class; its angles are 0.
    """
    # A head has head_width / 2 pairs of channels: one half for rows, the other for columns.
    pairs = head_width // 4
    frequencies_P = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    # Input i + 1 is token i. All residual levels of a position have the same angles; the level
    # embedding distinguishes them.
    position_I = torch.arange(side * side * levels - 1) // levels  # of each input token in the grid
    rows, columns = position_I // side, position_I % side
    angles = torch.cat([rows[:, None] * frequencies_P, columns[:, None] * frequencies_P], dim=1)
    return torch.cat([angles.new_zeros(1, 2 * pairs), angles]).float()
