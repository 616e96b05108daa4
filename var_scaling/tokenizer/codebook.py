"""Keep every code in use: moving averages of what it is asked for, k-means, restarts.

Gradient descent from a uniform start leaves four codes in five unused at small scale (TINY.md:
19 % of 1,024 used against 100 %). Shapes: N vectors, C code channels, V codes.
"""

import torch
from torch import Tensor

from var_scaling.config import Codebook
from var_scaling.randomness import seed_for
from var_scaling.tokenizer.quantizer import Quantizer

_K_MEANS_ROUNDS = 10


class CodebookAverages:
    """The moving averages that are the codes; they live as long as the training does."""

    def __init__(self, quantizer: Quantizer, config: Codebook, seed: int):
        self.quantizer = quantizer
        self.codes_VC = quantizer.embedding.weight.requires_grad_(False)
        self.config = config
        self.seed = seed
        self.uses_V = torch.zeros(len(self.codes_VC))
        self.sums_VC = torch.zeros_like(self.codes_VC)

    @torch.no_grad()
    def start(self, f_BCHH: Tensor) -> None:
        """Codes by k-means of what the scales see of `f`, then of the residuals they leave."""
        scales = range(self.quantizer.pyramid.scales)
        views = [self.quantizer.view(f_BCHH, k).movedim(1, -1).flatten(0, 2) for k in scales]
        self._k_means(torch.cat(views), 0)
        for attempt in (1, 2):
            self._k_means(torch.cat(self.quantizer(f_BCHH).vectors), attempt)

    @torch.no_grad()
    def update(self, vectors_NC: Tensor, ids_N: Tensor, step: int) -> None:
        """Move each code towards the vectors that chose it; restart those nobody chose."""
        uses_V, sums_VC = self._totals(vectors_NC, ids_N)
        self.uses_V.lerp_(uses_V, 1 - self.config.decay)
        self.sums_VC.lerp_(sums_VC, 1 - self.config.decay)
        if (step + 1) % self.config.restart_every == 0:
            self._restart(vectors_NC, step)
        alive = self.uses_V > 1e-3  # the codes without any use keep their place until a restart
        self.codes_VC[alive] = self.sums_VC[alive] / self.uses_V[alive, None]

    def state(self) -> dict[str, Tensor]:
        return {"uses": self.uses_V, "sums": self.sums_VC}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.uses_V.copy_(state["uses"])
        self.sums_VC.copy_(state["sums"])

    def _restart(self, vectors_NC: Tensor, step: int) -> None:
        fair = self.uses_V.sum() / len(self.uses_V)
        dead = (self.uses_V < self.config.restart_below * fair).nonzero().flatten()
        places = self._draw(len(vectors_NC), len(dead), "restart", step)
        self.uses_V[dead] = fair
        self.sums_VC[dead] = vectors_NC[places] * fair

    def _k_means(self, vectors_NC: Tensor, attempt: int) -> None:
        first = self._draw(len(vectors_NC), len(self.codes_VC), "k-means", attempt)
        self.codes_VC.copy_(vectors_NC[first])
        for _ in range(_K_MEANS_ROUNDS):
            uses_V, sums_VC = self._totals(vectors_NC, self.quantizer.nearest(vectors_NC))
            found = uses_V > 0
            self.codes_VC[found] = sums_VC[found] / uses_V[found, None]
        self.uses_V.copy_(uses_V)
        self.sums_VC.copy_(self.codes_VC * uses_V[:, None])

    def _totals(self, vectors_NC: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        uses_V = torch.bincount(ids_N, minlength=len(self.codes_VC)).to(torch.float32)
        return uses_V, torch.zeros_like(self.codes_VC).index_add_(0, ids_N, vectors_NC)

    def _draw(self, among: int, count: int, purpose: str, place: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_for(self.seed, purpose, place))
        return torch.randint(among, (count,), generator=generator)
