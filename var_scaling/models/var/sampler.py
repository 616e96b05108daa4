"""VAR's sampler: from scale to scale with a static cache of keys and values.

Shapes: B images, R rows that go through the blocks, S tokens of a scale, L of the pyramid, C width,
Z code channels, H side of the grid, V codes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from var_scaling.accounting import FEWEST_ROWS
from var_scaling.models.base import Kept, SampleDraws
from var_scaling.models.layers import Block, autocast_dtype, full_precision, modulate
from var_scaling.models.logits import chosen, filtered, guided, mixed
from var_scaling.models.var.config import AtScale, VarSampling
from var_scaling.models.var.model import VAR
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.quantizer import Quantizer


class Drawn(NamedTuple):
    """What one scale came to."""

    k: int
    logits_BSV: Tensor  # guided, before temperature and filters
    chosen_BS: Tensor  # what was drawn at every position
    ids_BS: Tensor  # the same, kept tokens in their places
    f_BZHH: Tensor  # the grid after this scale


@torch.no_grad()
def sample_tokens(
    model: VAR,
    quantizer: Quantizer,
    labels_B: Tensor,
    sampling: VarSampling,
    draws: SampleDraws,
    kept: Kept | None = None,
) -> Iterator[Drawn]:
    """Draw one scale after another. Runs in the precision of the caller.

    Where `kept` has tokens, their codes are put in place of those drawn, at every scale. Raises
    ValueError where guidance or temperature leave no finite logits.
    """
    pyramid, device = quantizer.pyramid, labels_B.device
    steps = sampling.steps(pyramid.scales)
    cached = VARSampler(model, pyramid, labels_B, [at.guidance for at in steps])
    f_BZHH = quantizer.blank(len(labels_B))
    givens = None if kept is None else [part.split(pyramid.lengths, dim=1) for part in kept]
    for k, at in enumerate(steps):
        shown = None
        if k:
            shown = rearrange(quantizer.view(f_BZHH, k), "b z y x -> b (y x) z").contiguous()
        logits_BSV = cached.logits(k, shown)
        with full_precision(device):
            chosen_BS, vectors_BSZ = _codes(quantizer, logits_BSV, at, k, draws)
            ids_BS = chosen_BS
            if givens is not None:
                given_BS, mask_BS = givens[0][k], givens[1][k]
                ids_BS = given_BS.where(mask_BS, chosen_BS)
                given_BSZ = quantizer.embedding(given_BS)
                vectors_BSZ = given_BSZ.where(mask_BS[..., None], vectors_BSZ)
            f_BZHH = _grown(quantizer, f_BZHH, vectors_BSZ, k)
        yield Drawn(k, logits_BSV, chosen_BS, ids_BS, f_BZHH)


@torch.no_grad()
def passes_alone(model: VAR, quantizer: Quantizer, labels_B: Tensor, sampling: VarSampling) -> None:
    """The transformer's part of a sample: what it is shown changes no second of it."""
    pyramid = quantizer.pyramid
    blank_BZHH = quantizer.blank(len(labels_B))
    channels = blank_BZHH.shape[1]
    inputs = [blank_BZHH.new_zeros(len(labels_B), S, channels) for S in pyramid.lengths]
    cached = VARSampler(model, pyramid, labels_B, sampling.weights(pyramid.scales))
    for k, shown_BSZ in enumerate(inputs):
        cached.logits(k, shown_BSZ if k else None)


def _grown(quantizer: Quantizer, f_BZHH: Tensor, vectors_BSZ: Tensor, k: int) -> Tensor:
    """The grid after scale `k`; on a processor one by one, for convolutions round by the batch."""
    if f_BZHH.device.type != "cpu":
        return quantizer.add(f_BZHH, vectors_BSZ, k)
    pairs = zip(f_BZHH.split(1), vectors_BSZ.split(1), strict=True)
    return torch.cat([quantizer.add(f_1ZHH, vectors_1SZ, k) for f_1ZHH, vectors_1SZ in pairs])


def _codes(
    quantizer: Quantizer, logits_BSV: Tensor, at: AtScale, k: int, draws: SampleDraws
) -> tuple[Tensor, Tensor]:
    """Ids (B, S), and the code vectors (B, S, Z) that the finer scales are shown."""
    warmed_BSV = logits_BSV / at.temperature
    if not warmed_BSV.isfinite().all():
        raise ValueError(
            f"the logits of scale {k + 1} are not finite: guidance {at.guidance:g} or temperature "
            f"{at.temperature:g} is beyond what numbers can say, or the precision is too coarse"
        )
    allowed_BSV = filtered(warmed_BSV, at.top_k, at.top_p)
    _, tokens, codes = logits_BSV.shape
    ids_BS = chosen(allowed_BSV, draws.uniform("token", k, (tokens,)))
    if at.tau is None:
        return ids_BS, quantizer.embedding(ids_BS)
    uniform_BSV = draws.uniform("mixture", k, (tokens, codes))
    codes_VZ = quantizer.embedding.weight
    return ids_BS, mixed(allowed_BSV, uniform_BSV, at.sharpening, at.tau, codes_VZ)


class VARSampler:
    """One batch on its way through the scales: AdaLN once an image, keys and values kept in place.

    Rows are the images, told their class, and behind them the same told none, for as long as
    guidance still has weight. What those told none see at the first scale is the same for all, so
    there it is one row. It stands there a few times, and without guidance too, so that even one
    image's first token goes through in `FEWEST_ROWS`: then no batch rounds it otherwise.
    """

    def __init__(self, model: VAR, pyramid: Pyramid, labels_B: Tensor, guidance: list[float]):
        self.model, self.pyramid, self.guidance = model, pyramid, guidance
        self.images = len(labels_B)
        self.guided_until = max((k for k, weight in enumerate(guidance) if weight), default=-1)
        rows = 2 * self.images if self.guided_until > 0 else self.images
        # Row i of the finer scales is this row of the first.
        self.row_R = torch.arange(rows, device=labels_B.device).clamp_max(self.images)
        null_class = labels_B.new_full((FEWEST_ROWS - 1,), model.classes)
        with full_precision(labels_B.device):
            self.cond_RC = model.class_emb(torch.cat([labels_B, null_class]))
        kind = autocast_dtype(labels_B.device)
        shared = model.shared_ada_lin(self.cond_RC) if model.config.shared_adaln else self.cond_RC
        self.blocks = [block for block in model.blocks if isinstance(block, Block)]
        self.parts = [block.parts(shared.to(kind)) for block in self.blocks]
        self.head = model.head_nm.ada_lin(self.cond_RC)
        heads = model.config.heads
        size = (len(self.blocks), 2, rows, heads, pyramid.length, model.config.width // heads)
        self.cache = torch.empty(size, dtype=kind, device=labels_B.device)

    def logits(self, k: int, shown_BSZ: Tensor | None) -> Tensor:
        """Guided logits (B, S, V) of scale `k`; they come in order, the first is shown nothing."""
        weight = self.guidance[k]
        x_RSC = self._embedded(k, shown_BSZ)
        for number, (block, parts) in enumerate(zip(self.blocks, self.parts, strict=True)):
            x_RSC = block(x_RSC, parts, None, (1, 1), self._kv_cache(number, k))
        rows = len(x_RSC) if weight or k == 0 else self.images
        logits_RSV = self._read(x_RSC[:rows], self.head[:rows])
        cond_BSV = logits_RSV[: self.images]
        if not weight:
            return cond_BSV
        untold = slice(self.images, self.images + 1) if k == 0 else slice(self.images, None)
        return guided(cond_BSV, logits_RSV[untold], weight)

    def _embedded(self, k: int, shown_BSZ: Tensor | None) -> Tensor:
        """What enters the blocks, and the rows that AdaLN is for."""
        model, start = self.model, self.pyramid.starts[k]
        here = slice(start, start + self.pyramid.lengths[k])
        with full_precision(self.cond_RC.device):
            if shown_BSZ is None:
                x_RSC = self.cond_RC[:, None] + model.pos_start
            else:
                if k == 1:
                    self._take(self.row_R)
                if k == self.guided_until + 1:
                    self._take(self.row_R[: self.images])
                x_BSC = model.word_embed(shown_BSZ)
                x_RSC = x_BSC.repeat(len(self.head) // self.images, 1, 1)
            x_RSC = x_RSC + model.lvl_embed.weight[k] + model.pos_1LC[:, here]
        return x_RSC.to(autocast_dtype(x_RSC.device))

    def _take(self, rows_R: Tensor) -> None:
        """Go on with these rows of what AdaLN computed."""
        self.parts = [parts[rows_R] for parts in self.parts]
        self.head = self.head[rows_R]

    def _kv_cache(self, block: int, k: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Puts the keys and values of scale `k` in their place, and gives all up to them."""
        start = self.pyramid.starts[k]
        end = start + self.pyramid.lengths[k]
        held = self.cache[block]

        def update_kv_cache(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            if k == 0:
                held[0, :, :, :end] = key[self.row_R]
                held[1, :, :, :end] = value[self.row_R]
                return key, value
            rows = len(key)
            held[0, :rows, :, start:end] = key
            held[1, :rows, :, start:end] = value
            return held[0, :rows, :, :end], held[1, :rows, :, :end]

        return update_kv_cache

    def _read(self, x_RSC: Tensor, parts: Tensor) -> Tensor:
        scale_R1C, shift_R1C = parts.unbind(1)
        return self.model.head(modulate(x_RSC.float(), scale_R1C, shift_R1C)).float()
