"""Keep every code in use: moving averages of what it is asked for, k-means, restarts.

Gradient descent from a uniform start leaves four codes in five unused at small scale (measured:
19 % of 1,024 used against 100 %). Shapes: N vectors, C code channels, V codes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from var_scaling.randomness import seed_for
from var_scaling.recipe import Codebook
from var_scaling.tokenizer.quantizer import Quantized, Quantizer

_K_MEANS_ROUNDS = 10


class CodebookUpkeep:
    """What the codes are asked for, over time; where they learn by averages, the codes themselves.

    With several processes each sees its share of the batch: `rank` says which, and `total` sums a
    tensor over all of them.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        config: Codebook,
        seed: int,
        rank: int = 0,
        total: Callable[[Tensor], Tensor] = lambda value: value,
    ):
        self.quantizer, self.config, self.seed = quantizer, config, seed
        self.rank, self.total = rank, total
        self.averaged = config.learns == "averages"
        self.codes_VC = quantizer.embedding.weight.requires_grad_(not self.averaged).data
        self.uses_V = torch.zeros_like(self.codes_VC[:, 0])
        self.sums_VC = torch.zeros_like(self.codes_VC)

    @torch.no_grad()
    def start(self, f_BCHH: Tensor | None) -> None:
        """Codes by k-means of what the scales see of `f`, then of the residuals they leave.

        Without `f` they are drawn uniformly from ± C^-0.5 / 36 (arXiv 2404.02905).
        """
        if f_BCHH is None:
            bound = self.codes_VC.shape[1] ** -0.5 / 36
            generator = torch.Generator().manual_seed(seed_for(self.seed, "codes"))
            drawn = torch.rand(self.codes_VC.shape, generator=generator)
            self.codes_VC.copy_((2 * drawn - 1) * bound)
            return
        scales = range(self.quantizer.pyramid.scales)
        views = [self.quantizer.view(f_BCHH, k).movedim(1, -1).flatten(0, 2) for k in scales]
        self._k_means(torch.cat(views), 0)
        for attempt in (1, 2):
            self._k_means(torch.cat(self.quantizer(f_BCHH, 0.0).vectors), attempt)

    @torch.no_grad()
    def update(self, quantized: Quantized, step: int) -> Tensor:
        """Move each code towards the vectors that chose it; restart unused codes.

        Returns the restarted codes' numbers: what they stood for before is over.
        """
        restarted = torch.zeros(0, dtype=torch.int64, device=self.codes_VC.device)
        ids_N = torch.cat([ids.flatten() for ids in quantized.ids])
        uses_V, sums_VC = self._counted(torch.cat(quantized.vectors), ids_N)
        self.uses_V.lerp_(self.total(uses_V), 1 - self.config.decay)
        if self.averaged:
            self.sums_VC.lerp_(self.total(sums_VC), 1 - self.config.decay)
        if self.config.restart_below > 0 and (step + 1) % self.config.restart_every == 0:
            restarted = self._restart(quantized.vectors, step)
        if self.averaged:
            alive = self.uses_V > 1e-3  # codes without any use keep their place until a restart
            self.codes_VC[alive] = self.sums_VC[alive] / self.uses_V[alive, None]
        return restarted

    def state(self) -> dict[str, Tensor]:
        return {"uses": self.uses_V, "sums": self.sums_VC}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.uses_V.copy_(state["uses"])
        self.sums_VC.copy_(state["sums"])

    def _restart(self, vectors: list[Tensor], step: int) -> Tensor:
        """Dead codes take the place of vectors drawn from the whole batch."""
        fair = self.uses_V.sum() / len(self.uses_V)
        dead = (self.uses_V < self.config.restart_below * fair).nonzero().flatten()
        world = self._processes()
        among = sum(len(part_NC) for part_NC in vectors) * world
        places = self._draw(among, len(dead), "restart", step)
        picked = torch.zeros_like(self.codes_VC[dead])
        start = 0
        for part_NC in vectors:  # of each scale, the ranks' shares one after the other
            here = places - start - self.rank * len(part_NC)
            mine = (here >= 0) & (here < len(part_NC))
            picked[mine] = part_NC[here[mine]]
            start += world * len(part_NC)
        picked = self.total(picked)
        self.uses_V[dead] = fair
        self.sums_VC[dead] = picked * fair
        self.codes_VC[dead] = picked
        return dead

    def _processes(self) -> int:
        return int(self.total(torch.ones((), device=self.codes_VC.device)))

    def _k_means(self, vectors_NC: Tensor, attempt: int) -> None:
        first = self._draw(len(vectors_NC), len(self.codes_VC), "k-means", attempt)
        self.codes_VC.copy_(vectors_NC[first])
        for _ in range(_K_MEANS_ROUNDS):
            uses_V, sums_VC = self._counted(vectors_NC, self.quantizer.nearest(vectors_NC))
            found = uses_V > 0
            self.codes_VC[found] = sums_VC[found] / uses_V[found, None]
        self.uses_V.copy_(uses_V)
        self.sums_VC.copy_(self.codes_VC * uses_V[:, None])

    def _counted(self, vectors_NC: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        uses_V = torch.bincount(ids_N, minlength=len(self.codes_VC)).to(torch.float32)
        return uses_V, torch.zeros_like(self.codes_VC).index_add_(0, ids_N, vectors_NC)

    def _draw(self, among: int, count: int, purpose: str, place: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self.seed, purpose, place))
        return torch.randint(among, (count,), generator=generator).to(self.codes_VC.device)
