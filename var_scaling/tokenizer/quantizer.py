"""The multi-scale residual quantizer (arXiv 2404.02905): two steps, `view` and `grow`, carry it.

Shapes: B images, C code channels, H side of the full grid, S tokens of a scale, L of all, V codes.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var_scaling.config import Tokenizer

_ROWS_AT_ONCE = 1 << 16  # distances to all codes are held for this many vectors


class Quantized(NamedTuple):
    """What the training forward gives back."""

    f_BCHH: Tensor  # the quantised grid, straight-through
    loss: Tensor  # mean over scales of commitment + codebook terms
    ids: list[Tensor]  # per scale, (B, S)
    vectors: list[Tensor]  # per scale, (B × S, C): what was looked up, no gradient


class Quantizer(nn.Module):
    def __init__(self, t: Tokenizer):
        super().__init__()
        self.pyramid = t.pyramid
        self.strength = t.phi_strength
        self.embedding = nn.Embedding(t.codebook_size, t.code_channels)
        held = t.phi_convolutions or t.pyramid.scales
        convs = [nn.Conv2d(t.code_channels, t.code_channels, 3, padding=1) for _ in range(held)]
        for conv in convs:  # phi starts as the identity, so that the walk converges from the start
            nn.init.dirac_(conv.weight)
            conv.bias = nn.Parameter(torch.zeros(t.code_channels))
        self.quant_resi = _named_as_released(convs, t.phi_convolutions) if t.phi_strength else None
        self.choice = phi_choice(t.pyramid.scales, held) if t.phi_convolutions else range(held)
        self._phi = convs if t.phi_strength else []

    def nearest(self, vectors_NC: Tensor) -> Tensor:
        """Ids (N,) of the codes at the least Euclidean distance."""
        codes_VC = self.embedding.weight
        squares_V = codes_VC.square().sum(1)
        chunks = [
            torch.addmm(squares_V, part, codes_VC.T, alpha=-2).argmin(1)
            for part in vectors_NC.split(_ROWS_AT_ONCE)
        ]
        return torch.cat(chunks)

    def view(self, f_BCHH: Tensor, k: int) -> Tensor:
        """What scale k sees of the full grid: its area-resize to that scale's side."""
        side = self.pyramid.patch_nums[k]
        if side == self.pyramid.side:
            return f_BCHH
        return F.interpolate(f_BCHH, size=(side, side), mode="area")

    def grow(self, f_BCHH: Tensor, ids_BS: Tensor, k: int) -> Tensor:
        """The full grid after scale k has added its codes."""
        return self.add(f_BCHH, self.embedding(ids_BS), k)

    def add(self, f_BCHH: Tensor, vectors_BSC: Tensor, k: int) -> Tensor:
        """The same, of code vectors, which sampling may mix."""
        h = rearrange(
            vectors_BSC, "b (y x) c -> b c y x", x=self.pyramid.patch_nums[k]
        ).contiguous()
        if self.pyramid.patch_nums[k] < self.pyramid.side:
            full = self.pyramid.side
            h = F.interpolate(h, size=(full, full), mode="bicubic", align_corners=False)
        return f_BCHH + self.phi(h, k)

    def phi(self, h_BCHH: Tensor, k: int) -> Tensor:
        if not self._phi:
            return h_BCHH
        return h_BCHH * (1 - self.strength) + self._phi[self.choice[k]](h_BCHH) * self.strength

    def encode(self, f_BCHH: Tensor) -> Tensor:
        """Token ids (B, L) of a feature grid, coarse to fine."""
        f_hat, ids = torch.zeros_like(f_BCHH), []
        for k in range(self.pyramid.scales):
            ids.append(self._ids(self.view(f_BCHH - f_hat, k)))
            f_hat = self.grow(f_hat, ids[-1], k)
        return torch.cat(ids, dim=1)

    def decode(self, ids_BL: Tensor) -> Tensor:
        """The full grid (B, C, H, H) that the tokens stand for."""
        f_hat = self.blank(len(ids_BL))
        for k, ids_BS in enumerate(self.scales_of(ids_BL)):
            f_hat = self.grow(f_hat, ids_BS, k)
        return f_hat

    def teacher_input(self, ids_BL: Tensor) -> Tensor:
        """What each scale but the first is shown of those before it: (B, L - first S, C)."""
        f_hat, shown = self.blank(len(ids_BL)), []
        for k, ids_BS in enumerate(self.scales_of(ids_BL)[:-1]):
            f_hat = self.grow(f_hat, ids_BS, k)
            shown.append(rearrange(self.view(f_hat, k + 1), "b c y x -> b (y x) c"))
        if not shown:
            return f_hat.new_zeros(len(ids_BL), 0, f_hat.shape[1])
        return torch.cat(shown, dim=1)

    def forward(self, f_BCHH: Tensor, commitment: float) -> Quantized:
        """Training: the same walk, with gradients to codes, phi and, straight through, f."""
        fixed = f_BCHH.detach()
        f_hat, loss = torch.zeros_like(fixed), f_BCHH.new_zeros(())
        ids, vectors = [], []
        for k in range(self.pyramid.scales):
            seen = self.view(fixed - f_hat.detach(), k)
            vectors.append(rearrange(seen, "b c y x -> (b y x) c"))
            ids.append(self._ids(seen))
            f_hat = self.grow(f_hat, ids[-1], k)
            loss = loss + commitment * F.mse_loss(f_hat.detach(), f_BCHH)
            loss = loss + F.mse_loss(f_hat, fixed)
        straight = (f_hat - f_BCHH).detach() + f_BCHH
        return Quantized(straight, loss / self.pyramid.scales, ids, vectors)

    def scales_of(self, ids_BL: Tensor) -> tuple[Tensor, ...]:
        return ids_BL.split(list(self.pyramid.lengths), dim=1)

    def blank(self, images: int) -> Tensor:
        """The empty grid that every walk starts from."""
        codes_VC, side = self.embedding.weight, self.pyramid.side
        return codes_VC.new_zeros(images, codes_VC.shape[1], side, side)

    def _ids(self, seen_BCSS: Tensor) -> Tensor:
        ids = self.nearest(rearrange(seen_BCSS, "b c y x -> (b y x) c").detach())
        return ids.view(len(seen_BCSS), -1)


def phi_choice(scales: int, held: int) -> list[int]:
    """Which of the `held` convolutions each scale uses: that whose tick is nearest to k / (K - 1).

    Exact ties are decided by float64 rounding as in the released code: leave the sums alone.
    """
    edge = 1 / 3 / held if held == 4 else 1 / 2 / held
    ticks = np.linspace(edge, 1 - edge, held)
    places = [k / (scales - 1) if scales > 1 else 0.0 for k in range(scales)]
    return [int(np.argmin(np.abs(ticks - place))) for place in places]


def _named_as_released(convs: list[nn.Conv2d], shared: int) -> nn.Module:
    """Parameter names `qresi_ls.N` (some shared), `qresi` (one for all), `N` (one per scale)."""
    holder = nn.Module()
    if shared == 0:
        return nn.ModuleList(convs)
    if shared == 1:
        holder.qresi = convs[0]
    else:
        holder.qresi_ls = nn.ModuleList(convs)
    return holder
