"""VAR's sampler: scale by scale, with a preallocated KV cache.

Shapes: B images, R rows of the blocks' batch, S tokens of a scale, L of all scales, C width,
Z code channels, H side of the grid, V codes.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from var_scaling.accounting import FEWEST_ROWS
from var_scaling.models.attention import KVCache
from var_scaling.models.base import KeptTokens, SampleDraws
from var_scaling.models.layers import Block, autocast_dtype, full_precision, modulate
from var_scaling.models.logits import (
    apply_guidance,
    filter_logits,
    mix_codes,
    raise_if_not_finite,
    sample_ids,
)
from var_scaling.models.static_calls import StaticCalls
from var_scaling.models.var.config import ScaleSettings, VarSampling
from var_scaling.models.var.model import VAR
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.groups import in_groups
from var_scaling.tokenizer.quantizer import Quantizer


class ScaleResult(NamedTuple):
    """The sampled tokens of one scale, and the grid up to it."""

    k: int
    logits_BSV: Tensor  # guided, before temperature and filters; valid until the next batch
    sampled_BS: Tensor  # the sampled ids at every position
    ids_BS: Tensor  # the same with the kept tokens in their positions
    f_BZHH: Tensor  # the grid after this scale


@torch.no_grad()
def sample_tokens(
    model: VAR,
    quantizer: Quantizer,
    labels_B: Tensor,
    sampling: VarSampling,
    draws: SampleDraws,
    kept: KeptTokens | None = None,
    calls: StaticCalls | None = None,
) -> Iterator[ScaleResult]:
    """Sample one scale after another, in the caller's precision.

    Tokens of `kept` replace the sampled ones at every scale. Raises ValueError if guidance or
    temperature lead to logits that are not finite, before the result of the last scale is returned:
    this check is the only operation that waits for the device.
    """
    pyramid, device = quantizer.pyramid, labels_B.device
    steps, calls = sampling.steps(pyramid.scales), calls or StaticCalls()
    sampler = _sampler(model, pyramid, labels_B, sampling, calls)
    f_BZHH = quantizer.empty_grid(len(labels_B))
    uniform_of_scales = draws.uniforms("token", [(tokens,) for tokens in pyramid.lengths])
    finite: dict[str, Tensor] = {}  # for each scale, a flag on the device
    # (ids, mask), each as a list with one (B, S) tensor for each scale.
    kept_scales = None if kept is None else [part.split(pyramid.lengths, dim=1) for part in kept]
    for k, settings in enumerate(steps):
        input_BSZ = None
        if k:
            input_BZhh = quantizer.resize_to_scale(f_BZHH, k)
            # Contiguous: a view is multiplied in another way in a batch of one, which rounds
            # differently (LOG.md).
            input_BSZ = rearrange(input_BZhh, "b z y x -> b (y x) z").contiguous()
        logits_BSV = _logits(sampler, k, input_BSZ, calls)
        # Probabilities and the grid are float32, whatever the precision of the network.
        with full_precision(device):
            scaled_BSV = logits_BSV / settings.temperature
            finite[f"the logits of scale {k + 1} are"] = scaled_BSV.isfinite().all()
            sampled_BS, vectors_BSZ = _sample_codes(
                quantizer, scaled_BSV, settings, k, uniform_of_scales[k], draws
            )
            ids_BS = sampled_BS
            if kept_scales is not None:
                # Kept tokens enter the grid at every scale: finer scales are sampled around them.
                kept_BS, mask_BS = kept_scales[0][k], kept_scales[1][k]
                ids_BS = kept_BS.where(mask_BS, sampled_BS)
                kept_BSZ = quantizer.embedding(kept_BS)
                vectors_BSZ = kept_BSZ.where(mask_BS[..., None], vectors_BSZ)
            f_BZHH = _add_scale(quantizer, f_BZHH, vectors_BSZ, k)
        if k == pyramid.scales - 1:
            raise_if_not_finite(finite, "guidance or temperature")
        yield ScaleResult(k, logits_BSV, sampled_BS, ids_BS, f_BZHH)


@torch.no_grad()
def run_network(
    model: VAR,
    quantizer: Quantizer,
    labels_B: Tensor,
    sampling: VarSampling,
    calls: StaticCalls | None = None,
) -> None:
    """The transformer's part of a sample, for timing: the input values do not affect the time."""
    pyramid, calls = quantizer.pyramid, calls or StaticCalls()
    blank_BZHH = quantizer.empty_grid(len(labels_B))
    channels = blank_BZHH.shape[1]
    inputs = [blank_BZHH.new_zeros(len(labels_B), S, channels) for S in pyramid.lengths]
    sampler = _sampler(model, pyramid, labels_B, sampling, calls)
    for k, input_BSZ in enumerate(inputs):
        _logits(sampler, k, input_BSZ if k else None, calls)


def _sampler(
    model: VAR, pyramid: Pyramid, labels_B: Tensor, sampling: VarSampling, calls: StaticCalls
) -> "VARSampler":
    weights = sampling.weights(pyramid.scales)
    key = (model, sampling, len(labels_B))
    return calls.sampler(key, lambda: VARSampler(model, pyramid, labels_B, weights), labels_B)


def _logits(sampler: "VARSampler", k: int, input_BSZ: Tensor | None, calls: StaticCalls) -> Tensor:
    if input_BSZ is None:
        return calls(k, partial(sampler.logits, k, None))
    return calls(k, partial(sampler.logits, k), input_BSZ)


def _add_scale(quantizer: Quantizer, f_BZHH: Tensor, vectors_BSZ: Tensor, k: int) -> Tensor:
    """The grid after scale `k`."""
    return in_groups(partial(quantizer.add_vectors, k=k), quantizer.group_size, f_BZHH, vectors_BSZ)


def _sample_codes(
    quantizer: Quantizer,
    scaled_BSV: Tensor,
    settings: ScaleSettings,
    k: int,
    uniform_BS: Tensor,
    draws: SampleDraws,
) -> tuple[Tensor, Tensor]:
    """Sampled ids (B, S), and the code vectors (B, S, Z) that are added to the grid.

    `scaled` are the logits divided by the temperature.
    """
    allowed_BSV = filter_logits(scaled_BSV, settings.top_k, settings.top_p)
    _, tokens, codes = scaled_BSV.shape
    # Sampled also with `smooth`: the ids are the result, the mixture only enters the grid.
    ids_BS = sample_ids(allowed_BSV, uniform_BS)
    if settings.tau is None:
        return ids_BS, quantizer.embedding(ids_BS)
    uniform_BSV = draws.uniform("mixture", k, (tokens, codes))
    codes_VZ = quantizer.embedding.weight
    vectors_BSZ = mix_codes(allowed_BSV, uniform_BSV, settings.sharpening, settings.tau, codes_VZ)
    return ids_BS, vectors_BSZ


class VARSampler:
    """Samples one batch: computes AdaLN once per image and writes the KV cache in place.

    Rows are the conditional images, followed by unconditional copies up to the last scale with
    guidance. At the first scale all images share one unconditional row. It is repeated FEWEST_ROWS
    - 1 times, also without guidance: then even a single image's first token is computed in
    FEWEST_ROWS rows, and the rounding does not depend on the batch size.
    """

    def __init__(self, model: VAR, pyramid: Pyramid, labels_B: Tensor, guidance: list[float]):
        self.model, self.pyramid, self.guidance = model, pyramid, guidance
        self.images = len(labels_B)
        self.last_guided = max((k for k, weight in enumerate(guidance) if weight), default=-1)
        rows = 2 * self.images if self.last_guided > 0 else self.images
        # Row i of the finer scales corresponds to row row_R[i] of the first scale.
        self.row_R = torch.arange(rows, device=labels_B.device).clamp_max(self.images)
        self.blocks = [block for block in model.blocks if isinstance(block, Block)]
        self.cond_RC, self.first_adaln, self.finer_adaln = self._conditions(labels_B)
        dtype = autocast_dtype(labels_B.device)
        heads = model.config.heads
        size = (len(self.blocks), 2, rows, heads, pyramid.length, model.config.width // heads)
        # (D, keys and values, R, N, L, C / N), not initialised: each entry is written before it is
        # read.
        self.cache = torch.empty(size, dtype=dtype, device=labels_B.device)

    def restart(self, labels_B: Tensor) -> Tensor:
        """Begin another batch of the same size. The conditions (R, C) are overwritten."""
        cond_RC, first, finer = self._conditions(labels_B)
        old = [self.cond_RC, *self.first_adaln, *self.finer_adaln]
        for tensor, new in zip(old, [cond_RC, *first, *finer], strict=True):
            tensor.copy_(new)
        return self.cond_RC

    def _conditions(self, labels_B: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The condition (R, C) of the first scale, and the AdaLN parameters, (R, 6, 1, C) for each
        block and (R, 2, 1, C) for the head: those of the first scale, and of the finer scales.
        """
        model = self.model
        # The rows of the first scale: B conditional ones, then FEWEST_ROWS - 1 with the null class.
        null_labels = labels_B.new_full((FEWEST_ROWS - 1,), model.classes)
        with full_precision(labels_B.device):
            cond_RC = model.class_emb(torch.cat([labels_B, null_labels]))
        dtype = autocast_dtype(labels_B.device)
        shared = model.shared_ada_lin(cond_RC) if model.config.shared_adaln else cond_RC
        adaln = [block.adaln_params(shared.to(dtype)) for block in self.blocks]
        adaln.append(model.head_nm.ada_lin(cond_RC))
        return cond_RC, adaln, [params[self.row_R] for params in adaln]

    def logits(self, k: int, input_BSZ: Tensor | None) -> Tensor:
        """Guided logits (B, S, V) of scale `k`. Call scale by scale, the first without input."""
        weight = self.guidance[k]
        x_RSC = self._embed(k, input_BSZ)
        # After the last scale with guidance only the conditional rows are left.
        adaln = [params[: len(x_RSC)] for params in (self.finer_adaln if k else self.first_adaln)]
        # No mask: the cache ends with the current scale, and a scale sees all of itself.
        for number, (block, params) in enumerate(zip(self.blocks, adaln[:-1], strict=True)):
            x_RSC = block(x_RSC, params, None, None, self._kv_cache(number, k))
        # Without guidance at this scale the head, a large product, skips the unconditional rows.
        # The first scale keeps all rows, so that the product has at least FEWEST_ROWS.
        rows = len(x_RSC) if weight or k == 0 else self.images
        logits_RSV = self._head_logits(x_RSC[:rows], adaln[-1][:rows])
        cond_BSV = logits_RSV[: self.images]
        if not weight:
            return cond_BSV
        # At the first scale one unconditional row is broadcast over the images.
        uncond = slice(self.images, self.images + 1) if k == 0 else slice(self.images, None)
        return apply_guidance(cond_BSV, logits_RSV[uncond], weight)

    def _embed(self, k: int, input_BSZ: Tensor | None) -> Tensor:
        """The blocks' input (R, S, C)."""
        model, start = self.model, self.pyramid.starts[k]
        positions = slice(start, start + self.pyramid.lengths[k])
        with full_precision(self.cond_RC.device):
            if input_BSZ is None:
                # The input is the class alone, so the null rows are the same for all images.
                x_RSC = self.cond_RC[:, None] + model.pos_start
            else:
                x_BSC = model.word_embed(input_BSZ)
                # One or two copies: unconditional rows have the tokens of the conditional ones.
                x_RSC = x_BSC.repeat(2 if k <= self.last_guided else 1, 1, 1)
            x_RSC = x_RSC + (model.lvl_embed.weight[k] + model.pos_1LC[:, positions])
        return x_RSC.to(autocast_dtype(x_RSC.device))

    def _kv_cache(self, block: int, k: int) -> KVCache:
        """A function that stores the keys and values of scale `k` and returns all up to it."""
        start = self.pyramid.starts[k]
        end = start + self.pyramid.lengths[k]
        cache = self.cache[block]

        def update_kv_cache(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, None]:
            if k == 0:  # the first scale has one row for all unconditional images
                cache[0, :, :, :end] = key[self.row_R]
                cache[1, :, :, :end] = value[self.row_R]
                return key, value, None
            # After the last scale with guidance only the conditional rows of the cache are used.
            rows = len(key)
            cache[0, :rows, :, start:end] = key
            cache[1, :rows, :, start:end] = value
            return cache[0, :rows, :, :end], cache[1, :rows, :, :end], None

        return update_kv_cache

    def _head_logits(self, x_RSC: Tensor, head_adaln: Tensor) -> Tensor:
        scale_R1C, shift_R1C = head_adaln.unbind(1)
        return self.model.head(modulate(x_RSC.float(), scale_R1C, shift_R1C)).float()
