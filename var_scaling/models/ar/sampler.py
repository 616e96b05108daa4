"""AR's sampler: token by token, with a preallocated KV cache.

Shapes: B images, R rows of the blocks' batch, T tokens in raster order, N heads, V codes,
Z code channels, H side of the grid.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from var_scaling.accounting import FEWEST_ROWS
from var_scaling.models.ar.config import ArSampling, frame_rows
from var_scaling.models.ar.model import AR, LlamaBlock, from_raster, token_inputs
from var_scaling.models.attention import KVCache
from var_scaling.models.base import Frame, SampleDraws
from var_scaling.models.layers import Block, autocast_dtype, full_precision
from var_scaling.models.logits import (
    apply_guidance,
    filter_logits,
    raise_if_not_finite,
    sample_ids,
)
from var_scaling.tokenizer.groups import in_groups
from var_scaling.tokenizer.quantizer import Quantizer


@torch.no_grad()
def sample_tokens(
    network: AR, quantizer: Quantizer, labels_B: Tensor, sampling: ArSampling, draws: SampleDraws
) -> Iterator[Frame]:
    """Sample the tokens of a batch. Yields a frame for each of `frame_rows`; the last has the ids.

    Raises ValueError, before the last frame, if guidance or temperature lead to logits that are not
    finite. Only this check waits for the device.
    """
    sampler = ARSampler(network, labels_B, sampling.guidance)
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
        logits_BV = sampler.logits(position, previous)
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
def run_network(network: AR, quantizer: Quantizer, labels_B: Tensor, sampling: ArSampling) -> None:
    """The transformer's part of a sample, for timing: the tokens do not affect the time."""
    sampler = ARSampler(network, labels_B, sampling.guidance)
    previous = token_inputs(network.config, quantizer, torch.zeros_like(labels_B)[:, None])
    for position in range(network.tokens):
        sampler.logits(position, previous if position else None)


class ARSampler:
    """Samples one batch: computes AdaLN once per image and writes the KV cache in place.

    With guidance, rows with the null class follow the conditional rows. Padding rows make at least
    FEWEST_ROWS rows: a smaller matrix product rounds differently on a CPU, so an image would depend
    on the batch size.
    """

    def __init__(self, network: AR, labels_B: Tensor, guidance: float):
        self.network, self.guidance, self.images = network, guidance, len(labels_B)
        null_B = labels_B.new_full((len(labels_B),), network.classes)
        labels_R = torch.cat([labels_B, null_B]) if guidance else labels_B
        padding = labels_B.new_full((max(0, FEWEST_ROWS - len(labels_R)),), network.classes)
        labels_R = torch.cat([labels_R, padding])
        # A conditional row and its unconditional row have the same token. Padding rows repeat
        # tokens of the batch; their logits are never read.
        self.image_R = torch.arange(len(labels_R), device=labels_B.device) % self.images
        with full_precision(labels_B.device):
            self.cond_RC = network.class_emb(labels_R)
        dtype = autocast_dtype(labels_B.device)
        self.blocks = [block for block in network.blocks if isinstance(block, Block | LlamaBlock)]
        # The condition is the same at all positions, so AdaLN is computed once and not per token.
        self.adaln_params = [block.adaln_params(self.cond_RC.to(dtype)) for block in self.blocks]
        heads = network.config.heads
        size = (len(self.blocks), 2, len(labels_R), heads, network.tokens)
        # (D, keys and values, R, N, T, C / N), not initialised: each entry is written before it is
        # read.
        self.cache = torch.empty(
            *size, network.config.width // heads, dtype=dtype, device=labels_B.device
        )

    def logits(self, position: int, previous: Tensor | None) -> Tensor:
        """Guided logits (B, V) at `position`, given the previous token's input. Call in order."""
        network, positions = self.network, slice(position, position + 1)
        with full_precision(self.cond_RC.device):
            if previous is None:
                x_R1C = network.start_embedding(self.cond_RC)
            else:
                x_R1C = network.word_embed(previous[self.image_R])
            x_R1C = network.add_positions(x_R1C, positions)
        x_R1C = x_R1C.to(self.cache.dtype)
        rotary = network.rotation(positions)
        # No mask: the only query may see all cached positions. No drop path in sampling.
        for number, (block, adaln) in enumerate(zip(self.blocks, self.adaln_params, strict=True)):
            x_R1C = block(x_R1C, adaln, None, None, self._kv_cache(number, position), rotary)
        logits_RV = network.head_logits(x_R1C, self.cond_RC)[:, 0].float()
        conditional_BV = logits_RV[: self.images]
        if not self.guidance:
            return conditional_BV
        unconditional_BV = logits_RV[self.images : 2 * self.images]
        return apply_guidance(conditional_BV, unconditional_BV, self.guidance)

    def _kv_cache(self, block: int, position: int) -> KVCache:
        """A function that stores the keys and values of `position` and returns all up to it."""
        cache = self.cache[block]

        def update(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            cache[0, :, :, position : position + 1] = key
            cache[1, :, :, position : position + 1] = value
            return cache[0, :, :, : position + 1], cache[1, :, :, : position + 1]

        return update
