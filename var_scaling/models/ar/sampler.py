"""AR's sampler: token by token, with a preallocated KV cache.

Shapes: B images, R rows of the blocks' batch, T tokens in raster order, N heads, V codes,
Z code channels, H side of the grid.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from var_scaling.accounting import FEWEST_ROWS
from var_scaling.models.ar.config import ArSampling, frame_rows
from var_scaling.models.ar.model import AR, LlamaBlock, from_raster, token_inputs
from var_scaling.models.base import Frame, SampleDraws
from var_scaling.models.layers import Block, autocast_dtype, full_precision
from var_scaling.models.logits import (
    apply_guidance,
    filter_logits,
    raise_if_not_finite,
    sample_ids,
)
from var_scaling.models.static_calls import StaticCalls
from var_scaling.tokenizer.groups import in_groups
from var_scaling.tokenizer.quantizer import Quantizer

# Stores keys and values in a block's cache (keys and values, R, N, T, C / N); else as KVCache.
CacheUpdate = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
# A recorded call reads a fixed number of keys: a multiple of this one.
_KEYS = 64


@torch.no_grad()
def sample_tokens(
    network: AR,
    quantizer: Quantizer,
    labels_B: Tensor,
    sampling: ArSampling,
    draws: SampleDraws,
    calls: StaticCalls | None = None,
) -> Iterator[Frame]:
    """Sample the tokens of a batch. Yields a frame for each of `frame_rows`; the last has the ids.

    Raises ValueError, before the last frame, if guidance or temperature lead to logits that are not
    finite. Only this check waits for the device.
    """
    calls = calls or StaticCalls()
    sampler = _sampler(network, labels_B, sampling, calls)
    uniform_BT = draws.uniform("token", 0, (network.tokens,))
    ids_BT = labels_B.new_zeros(len(labels_B), network.tokens)
    side = quantizer.pyramid.side
    # Number of tokens done: number of complete rows of the grid.
    rows_at_end = {rows * side * network.levels: rows for rows in frame_rows(side)}
    # A flag on the device: it collects the checks of all positions.
    finite = torch.ones((), dtype=torch.bool, device=labels_B.device)
    for position in range(network.tokens):
        previous = None
        if position:
            previous = token_inputs(network.config, quantizer, ids_BT[:, position - 1 : position])
        logits_BV = _logits(sampler, position, previous, calls)
        with full_precision(labels_B.device):
            scaled_B1V = (logits_BV / sampling.temperature)[:, None]
            finite &= scaled_B1V.isfinite().all()
            allowed_B1V = filter_logits(scaled_B1V, sampling.top_k, sampling.top_p)
            uniform_B1 = uniform_BT[:, position : position + 1]
            ids_BT[:, position : position + 1] = sample_ids(allowed_B1V, uniform_B1)
            if position + 1 not in rows_at_end:
                continue
            if position + 1 == network.tokens:
                raise_if_not_finite({"the logits are": finite}, "guidance or temperature")
            ids_BL = from_raster(ids_BT, network.levels)
            grid_BZHH = in_groups(quantizer.decode, quantizer.group_size, ids_BL)
            grid_BZHH[:, :, rows_at_end[position + 1] :] = 0  # rows without tokens yet
            yield Frame(grid_BZHH, ids_BL if position + 1 == network.tokens else None)


@torch.no_grad()
def run_network(
    network: AR,
    quantizer: Quantizer,
    labels_B: Tensor,
    sampling: ArSampling,
    calls: StaticCalls | None = None,
) -> None:
    """The transformer's part of a sample, for timing: the tokens do not affect the time."""
    calls = calls or StaticCalls()
    sampler = _sampler(network, labels_B, sampling, calls)
    previous = token_inputs(network.config, quantizer, torch.zeros_like(labels_B)[:, None])
    for position in range(network.tokens):
        _logits(sampler, position, previous if position else None, calls)


def _sampler(
    network: AR, labels_B: Tensor, sampling: ArSampling, calls: StaticCalls
) -> "ARSampler":
    key = (network, sampling, len(labels_B))
    return calls.sampler(key, lambda: ARSampler(network, labels_B, sampling.guidance), labels_B)


def _logits(
    sampler: "ARSampler", position: int, previous: Tensor | None, calls: StaticCalls
) -> Tensor:
    if not calls.active:
        return sampler.logits(position, previous)
    if previous is None:
        return calls("first", partial(sampler.logits, 0, None))
    # One recording for all positions that read the same number of keys.
    keys = min((position // _KEYS + 1) * _KEYS, sampler.network.tokens)
    position_1 = sampler.position_T[position : position + 1]
    return calls(keys, partial(sampler.static_logits, keys), position_1, previous)


class ARSampler:
    """Samples one batch: computes AdaLN once per image and writes the KV cache in place.

    With guidance, rows with the null class follow the conditional rows. Padding rows make at least
    FEWEST_ROWS rows: a smaller matrix product rounds differently on a CPU, so an image would depend
    on the batch size.
    """

    def __init__(self, network: AR, labels_B: Tensor, guidance: float):
        self.network, self.guidance, self.images = network, guidance, len(labels_B)
        self.blocks = [block for block in network.blocks if isinstance(block, Block | LlamaBlock)]
        self.cond_RC, self.adaln_params = self._conditions(labels_B)
        rows, device = len(self.cond_RC), labels_B.device
        # A conditional row and its unconditional row have the same token. Padding rows repeat
        # tokens of the batch; their logits are never read.
        self.image_R = torch.arange(rows, device=device) % self.images
        self.position_T = torch.arange(network.tokens, device=device)
        heads = network.config.heads
        size = (len(self.blocks), 2, rows, heads, network.tokens, network.config.width // heads)
        # (D, keys and values, R, N, T, C / N). Zeros: a recorded call also reads later positions,
        # with the weight 0, which times NaN would be NaN.
        self.cache = torch.zeros(size, dtype=autocast_dtype(device), device=device)

    def restart(self, labels_B: Tensor) -> Tensor:
        """Begin another batch of the same size. The conditions (R, C) are overwritten."""
        cond_RC, adaln_params = self._conditions(labels_B)
        old = [self.cond_RC, *self.adaln_params]
        for tensor, new in zip(old, [cond_RC, *adaln_params], strict=True):
            tensor.copy_(new)
        self.cache.zero_()
        return self.cond_RC

    def _conditions(self, labels_B: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The condition (R, C), and the AdaLN parameters of each block."""
        network = self.network
        null_B = labels_B.new_full((self.images,), network.classes)
        labels_R = torch.cat([labels_B, null_B]) if self.guidance else labels_B
        padding = labels_B.new_full((max(0, FEWEST_ROWS - len(labels_R)),), network.classes)
        labels_R = torch.cat([labels_R, padding])
        with full_precision(labels_B.device):
            cond_RC = network.class_emb(labels_R)
        dtype = autocast_dtype(labels_B.device)
        # The condition is the same at all positions, so AdaLN is computed once and not per token.
        return cond_RC, [block.adaln_params(cond_RC.to(dtype)) for block in self.blocks]

    def logits(self, position: int, previous: Tensor | None) -> Tensor:
        """Guided logits (B, V) at `position`, given the previous token's input. Call in order."""
        positions = slice(position, position + 1)

        def update(cache: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, None]:
            # The only query may see all cached positions.
            cache[0, :, :, positions] = key
            cache[1, :, :, positions] = value
            return cache[0, :, :, : position + 1], cache[1, :, :, : position + 1], None

        return self._logits(positions, previous, update)

    def static_logits(self, keys: int, position_1: Tensor, previous: Tensor) -> Tensor:
        """The same for any position below `keys`, which is a tensor here, by the same operations.

        Attention reads the first `keys` positions; the later ones have the weight 0.
        """
        later_K = self.position_T[:keys] > position_1
        bias_K = torch.zeros_like(later_K, dtype=self.cache.dtype).masked_fill(later_K, -torch.inf)
        bias_11QK = bias_K[None, None, None]  # Q: the only query

        def update(cache: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            cache[0].index_copy_(2, position_1, key)
            cache[1].index_copy_(2, position_1, value)
            return cache[0, :, :, :keys], cache[1, :, :, :keys], bias_11QK

        return self._logits(position_1, previous, update)

    def _logits(
        self, positions: slice | Tensor, previous: Tensor | None, update: CacheUpdate
    ) -> Tensor:
        network = self.network
        with full_precision(self.cond_RC.device):
            if previous is None:
                x_R1C = network.start_embedding(self.cond_RC)
            else:
                x_R1C = network.word_embed(previous[self.image_R])
            x_R1C = network.add_positions(x_R1C, positions)
        x_R1C = x_R1C.to(self.cache.dtype)
        rotary = network.rotation(positions)
        # No drop path in sampling.
        for block, adaln, cache in zip(self.blocks, self.adaln_params, self.cache, strict=True):
            x_R1C = block(x_R1C, adaln, None, None, partial(update, cache), rotary)
        logits_RV = network.head_logits(x_R1C, self.cond_RC)[:, 0].float()
        conditional_BV = logits_RV[: self.images]
        if not self.guidance:
            return conditional_BV
        unconditional_BV = logits_RV[self.images : 2 * self.images]
        return apply_guidance(conditional_BV, unconditional_BV, self.guidance)
