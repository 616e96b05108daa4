"""AR's sampler: token by token with a static cache of keys and values.

Shapes: B images, R rows that go through the blocks, T tokens in raster order, N heads, V codes,
Z code channels, H side of the grid.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from var_scaling.accounting import FEWEST_ROWS
from var_scaling.models.ar.config import ArSampling, frame_rows
from var_scaling.models.ar.model import AR, LlamaBlock, from_raster, inputs_of
from var_scaling.models.base import Frame, SampleDraws
from var_scaling.models.layers import Block, KVCache, autocast_dtype, full_precision
from var_scaling.models.logits import chosen, filtered, guided
from var_scaling.tokenizer.quantizer import Quantizer


@torch.no_grad()
def sample_tokens(
    network: AR, quantizer: Quantizer, labels_B: Tensor, sampling: ArSampling, draws: SampleDraws
) -> Iterator[Frame]:
    """Draw the tokens of a batch; a frame for each of `frame_rows`, the tokens with the last.

    Raises ValueError where guidance or temperature leave no finite logits.
    """
    cached = ARSampler(network, labels_B, sampling.guidance)
    uniform_BT = draws.uniform("token", 0, (network.tokens,))
    ids_BT = labels_B.new_zeros(len(labels_B), network.tokens)
    side = quantizer.pyramid.side
    ends = {rows * side * network.levels: rows for rows in frame_rows(side)}
    finite = torch.ones((), dtype=torch.bool, device=labels_B.device)
    for place in range(network.tokens):
        previous = None
        if place:
            previous = inputs_of(network.config, quantizer, ids_BT[:, place - 1 : place])
        logits_BV = cached.logits(place, previous)
        with full_precision(labels_B.device):
            warmed_B1V = (logits_BV / sampling.temperature)[:, None]
            finite &= warmed_B1V.isfinite().all()
            allowed_B1V = filtered(warmed_B1V, sampling.top_k, sampling.top_p)
            ids_BT[:, place : place + 1] = chosen(allowed_B1V, uniform_BT[:, place : place + 1])
            if place + 1 not in ends:
                continue
            if not finite:
                raise ValueError(
                    f"the logits are not finite: guidance {sampling.guidance:g} or temperature "
                    f"{sampling.temperature:g} is too extreme, or the precision too coarse"
                )
            ids_BL = from_raster(ids_BT, network.levels)
            grid_BZHH = torch.cat([quantizer.decode(ids_1L) for ids_1L in ids_BL.split(1)])
            grid_BZHH[:, :, ends[place + 1] :] = 0  # rows without tokens yet
            yield Frame(grid_BZHH, ids_BL if place + 1 == network.tokens else None)


@torch.no_grad()
def passes_alone(network: AR, quantizer: Quantizer, labels_B: Tensor, sampling: ArSampling) -> None:
    """The transformer's part of a sample, for timing: the tokens do not matter."""
    cached = ARSampler(network, labels_B, sampling.guidance)
    previous = inputs_of(network.config, quantizer, torch.zeros_like(labels_B)[:, None])
    for place in range(network.tokens):
        cached.logits(place, previous if place else None)


class ARSampler:
    """One batch on its way through the tokens: AdaLN once an image, keys and values kept in place.

    With guidance, rows with the null class follow the conditional ones. There are at least
    FEWEST_ROWS rows: a smaller matrix product rounds differently on a CPU, and an image would
    depend on its batch.
    """

    def __init__(self, network: AR, labels_B: Tensor, guidance: float):
        self.network, self.guidance, self.images = network, guidance, len(labels_B)
        null_B = labels_B.new_full((len(labels_B),), network.classes)
        labels_R = torch.cat([labels_B, null_B]) if guidance else labels_B
        spare = labels_B.new_full((max(0, FEWEST_ROWS - len(labels_R)),), network.classes)
        labels_R = torch.cat([labels_R, spare])
        with full_precision(labels_B.device):
            self.cond_RC = network.class_emb(labels_R)
        kind = autocast_dtype(labels_B.device)
        self.blocks = [block for block in network.blocks if isinstance(block, Block | LlamaBlock)]
        self.parts = [block.parts(self.cond_RC.to(kind)) for block in self.blocks]
        heads = network.config.heads
        size = (len(self.blocks), 2, len(labels_R), heads, network.tokens)
        self.cache = torch.empty(
            *size, network.config.width // heads, dtype=kind, device=labels_B.device
        )

    def logits(self, place: int, previous: Tensor | None) -> Tensor:
        """Guided logits (B, V) of the token at `place`, given the one before it of each image."""
        network, here = self.network, slice(place, place + 1)
        rows = len(self.cond_RC)
        with full_precision(self.cond_RC.device):
            if previous is None:
                x_R1C = network.first(self.cond_RC)
            else:
                x_R1C = network.word_embed(previous[torch.arange(rows) % self.images])
            x_R1C = network.placed(x_R1C, here)
        x_R1C = x_R1C.to(self.cache.dtype)
        rotate = network.rotation(here)
        for number, (block, parts) in enumerate(zip(self.blocks, self.parts, strict=True)):
            x_R1C = block(x_R1C, parts, None, (1.0, 1.0), self._kv_cache(number, place), rotate)
        logits_RV = network.read(x_R1C, self.cond_RC)[:, 0].float()
        conditional_BV = logits_RV[: self.images]
        if not self.guidance:
            return conditional_BV
        return guided(conditional_BV, logits_RV[self.images : 2 * self.images], self.guidance)

    def _kv_cache(self, block: int, place: int) -> KVCache:
        """Puts the keys and values of `place` into the cache, and returns all up to them."""
        cache = self.cache[block]

        def update(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            cache[0, :, :, place : place + 1] = key
            cache[1, :, :, place : place + 1] = value
            return cache[0, :, :, : place + 1], cache[1, :, :, : place + 1]

        return update
