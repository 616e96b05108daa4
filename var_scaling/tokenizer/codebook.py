"""Codebook learning that keeps every code in use: moving averages, k-means, restarts.

Gradient descent from a uniform initialization leaves four of five codes unused at small scale
(measured: 19 % of 1,024 used, against 100 %). Shapes: N vectors, C code channels, V codes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from var_scaling.data.loader import pinned
from var_scaling.randomness import seed_for
from var_scaling.recipe import Codebook
from var_scaling.tokenizer.quantizer import Quantized, Quantizer

_K_MEANS_ROUNDS = 10


class CodebookUpdater:
    """Moving averages of each code's use, from which codes are restarted and, with
    `config.learns == "averages"`, computed.

    With several processes, `rank` is the number of this one of `world_size`, and `total` sums a
    tensor over all.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        config: Codebook,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        total: Callable[[Tensor], Tensor] = lambda value: value,
    ):
        self.quantizer, self.config, self.seed = quantizer, config, seed
        self.rank, self.world_size, self.total = rank, world_size, total
        self.averaged = config.learns == "averages"
        # `.data` shares its memory with the parameter: in-place updates below change the codebook.
        # Codes that are averages must not get gradient steps as well.
        self.codes_VC = quantizer.embedding.weight.requires_grad_(not self.averaged).data
        self.uses_V = torch.zeros_like(self.codes_VC[:, 0])
        self.sums_VC = torch.zeros_like(self.codes_VC)

    @torch.no_grad()
    def initialize(self, f_BCHH: Tensor | None) -> None:
        """Codes by k-means of `f` resized to each scale, then twice of the scales' residuals.

        Without `f` they are uniform in ± C^-0.5 / 36 (arXiv 2404.02905).
        """
        if f_BCHH is None:
            bound = self.codes_VC.shape[1] ** -0.5 / 36
            # Drawn on the CPU, so that every device starts from the same codes.
            generator = torch.Generator().manual_seed(seed_for(self.seed, "codes"))
            drawn = torch.rand(self.codes_VC.shape, generator=generator)
            self.codes_VC.copy_((2 * drawn - 1) * bound)
            return
        scales = range(self.quantizer.pyramid.scales)
        # Residuals depend on the codes, which do not exist yet: first k-means of the features
        # themselves, then of the residuals under the codes found so far.
        resized = [self.quantizer.resize_to_scale(f_BCHH, k) for k in scales]
        # (B, C, S, S) of each scale to (B * S * S, C), joined over the scales.
        self._k_means(torch.cat([part.movedim(1, -1).flatten(0, 2) for part in resized]), 0)
        for attempt in (1, 2):
            self._k_means(torch.cat(self.quantizer(f_BCHH, 0.0).vectors), attempt)

    @torch.no_grad()
    def update(self, quantized: Quantized, step: int) -> Tensor | None:
        """Move each code towards the mean of the vectors assigned to it; restart unused codes.

        Returns which codes were restarted, bool (V,), so that a weight average can copy them; None
        in steps that restart no codes. Nothing here waits for a GPU: no indices of codes.
        """
        restarted_V: Tensor | None = None
        ids_N = torch.cat([ids.flatten() for ids in quantized.ids])
        uses_V, sums_VC = self._uses_and_sums(torch.cat(quantized.vectors), ids_N)
        # average = decay * average + (1 - decay) * new (VQ-VAE, arXiv 1711.00937, appendix A).
        self.uses_V.lerp_(self.total(uses_V), 1 - self.config.decay)
        if self.averaged:
            self.sums_VC.lerp_(self.total(sums_VC), 1 - self.config.decay)
        # Before the division below: a restart sets uses and sums so that it gives the new code.
        if self.config.restart_below > 0 and (step + 1) % self.config.restart_every == 0:
            restarted_V = self._restart(quantized.vectors, step)
        if self.averaged:
            # Unused codes keep their value until a restart.
            used_V1, means_VC = self.uses_V[:, None] > 1e-3, self.sums_VC / self.uses_V[:, None]
            self.codes_VC.copy_(torch.where(used_V1, means_VC, self.codes_VC))
        return restarted_V

    def state(self) -> dict[str, Tensor]:
        return {"uses": self.uses_V, "sums": self.sums_VC}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.uses_V.copy_(state["uses"])
        self.sums_VC.copy_(state["sums"])

    def _restart(self, vectors: list[Tensor], step: int) -> Tensor:
        """Set each rarely used code to a vector drawn from the global batch; returns which."""
        mean_use = self.uses_V.sum() / len(self.uses_V)
        dead_V = self.uses_V < self.config.restart_below * mean_use
        dead_V1 = dead_V[:, None]
        count = sum(len(part_NC) for part_NC in vectors) * self.world_size
        # Each process draws the same numbers, as rows of the global batch; it has only its own
        # rows. So the number of processes does not change the codes. The first number is for the
        # first dead code: as many as there are codes are drawn, because only the device knows how
        # many are dead.
        drawn_V = self._draw(count, len(dead_V), "restart", step)
        drawn_V = drawn_V[(dead_V.cumsum(0) - 1).clamp_min(0)]
        replacements_VC = torch.zeros_like(self.codes_VC)
        start = 0
        for part_NC in vectors:  # global order: scale after scale, in each the ranks' shares
            local_V = drawn_V - start - self.rank * len(part_NC)
            is_local_V = dead_V & (local_V >= 0) & (local_V < len(part_NC))
            chosen_VC = part_NC[local_V.clamp(0, len(part_NC) - 1)]
            replacements_VC = torch.where(is_local_V[:, None], chosen_VC, replacements_VC)
            start += self.world_size * len(part_NC)
        replacements_VC = self.total(replacements_VC)  # each is zero on all ranks but one
        # As if the code had mean use: otherwise the next check would restart it again before its
        # own use is in the average.
        self.uses_V.copy_(torch.where(dead_V, mean_use, self.uses_V))
        self.sums_VC.copy_(torch.where(dead_V1, replacements_VC * mean_use, self.sums_VC))
        self.codes_VC.copy_(torch.where(dead_V1, replacements_VC, self.codes_VC))
        return dead_V

    def _k_means(self, vectors_NC: Tensor, attempt: int) -> None:
        first = self._draw(len(vectors_NC), len(self.codes_VC), "k-means", attempt)
        self.codes_VC.copy_(vectors_NC[first])
        # Lloyd's algorithm. An empty cluster keeps its code.
        for _ in range(_K_MEANS_ROUNDS):
            uses_V, sums_VC = self._uses_and_sums(vectors_NC, self.quantizer.nearest(vectors_NC))
            used_V1, means_VC = uses_V[:, None] > 0, sums_VC / uses_V[:, None]
            self.codes_VC.copy_(torch.where(used_V1, means_VC, self.codes_VC))
        # The moving averages start here. These counts are of the k-means images, not of a batch:
        # with many images an unused code is found only after they have decayed (LOG.md).
        self.uses_V.copy_(uses_V)
        self.sums_VC.copy_(self.codes_VC * uses_V[:, None])

    def _uses_and_sums(self, vectors_NC: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        # Counts (V,) and sums (V, C) of the vectors assigned to each code.
        # Not bincount, which waits for the largest id.
        uses_V = torch.zeros_like(self.uses_V).index_add_(
            0, ids_N, torch.ones_like(vectors_NC[:, 0])
        )
        return uses_V, torch.zeros_like(self.codes_VC).index_add_(0, ids_N, vectors_NC)

    def _draw(self, high: int, count: int, purpose: str, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self.seed, purpose, index))
        drawn = torch.randint(high, (count,), generator=generator)
        device = self.codes_VC.device
        return pinned(drawn, device).to(device, non_blocking=True)
