"""The multi-scale residual quantizer (arXiv 2404.02905).

Encoding, decoding and training are one loop over two steps, `resize_to_scale` and `add_tokens`.

Shapes: B images, C code channels, H side of the full grid, S tokens of a scale, L of all, V codes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var_scaling.config import Tokenizer
from var_scaling.linear import linear
from var_scaling.tokenizer.groups import group_size

_LARGEST_MAP = 1024  # numbers of an image: the map of more would take more time than it saves
_CHUNK = 1 << 16  # vectors whose distances to all codes are in memory at the same time


class Quantized(NamedTuple):
    """The output of the quantizer in training."""

    f_BCHH: Tensor  # the quantised grid, straight-through
    loss: Tensor  # mean over scales of commitment + codebook terms
    ids: list[Tensor]  # per scale, (B, S)
    vectors: list[Tensor]  # per scale, (B × S, C): the vectors that were quantised, no gradient


class Quantizer(nn.Module):
    def __init__(self, t: Tokenizer):
        super().__init__()
        self.pyramid = t.pyramid
        self.strength = t.phi_strength
        self.embedding = nn.Embedding(t.codebook_size, t.code_channels)
        count = t.phi_convolutions or t.pyramid.scales
        convs = [nn.Conv2d(t.code_channels, t.code_channels, 3, padding=1) for _ in range(count)]
        for conv in convs:  # phi starts as the identity: the residuals shrink from the first step
            nn.init.dirac_(conv.weight)
            conv.bias = nn.Parameter(torch.zeros(t.code_channels))
        self.quant_resi = _named_as_released(convs, t.phi_convolutions) if t.phi_strength else None
        self.choice = phi_choice(t.pyramid.scales, count) if t.phi_convolutions else range(count)
        # A plain list: a second module attribute would add a second set of parameter names.
        self._phi = convs if t.phi_strength else []
        self._maps: dict[str, Any] = {}

    @property
    def group_size(self) -> int:
        """Grids that samplers compute together, so that no grid depends on another (groups.py)."""
        codes_VC = self.embedding.weight
        return group_size(self.pyramid.side**2 * codes_VC.shape[1], codes_VC.device)

    def nearest(self, vectors_NC: Tensor) -> Tensor:
        """Ids (N,) of the nearest codes by Euclidean distance."""
        codes_VC = self.embedding.weight
        squares_V = codes_VC.square().sum(1)
        # 2**16 vectors x 4,096 codes are 1 GiB of float32 distances.
        # |v - c|² without |v|², which does not change the nearest code: |c|² - 2 v c.
        chunks = [
            linear(part, -2 * codes_VC, squares_V).argmin(1) for part in vectors_NC.split(_CHUNK)
        ]
        return torch.cat(chunks)

    def resize_to_scale(self, f_BCHH: Tensor, k: int) -> Tensor:
        """The full grid resized to the side of scale k, by area averaging."""
        side = self.pyramid.patch_nums[k]
        # Not resized: so a repeated side is plain residual quantisation (arXiv 2203.01941).
        if side == self.pyramid.side:
            return f_BCHH
        return F.interpolate(f_BCHH, size=(side, side), mode="area")

    def add_tokens(self, f_BCHH: Tensor, ids_BS: Tensor, k: int) -> Tensor:
        """The full grid plus the upsampled codes of scale k."""
        return self.add_vectors(f_BCHH, self.embedding(ids_BS), k)

    def add_vectors(self, f_BCHH: Tensor, vectors_BSC: Tensor, k: int) -> Tensor:
        """The same for code vectors: sampling may use mixtures of codes."""
        h = rearrange(
            vectors_BSC, "b (y x) c -> b c y x", x=self.pyramid.patch_nums[k]
        ).contiguous()
        if self.pyramid.patch_nums[k] < self.pyramid.side:
            full = self.pyramid.side
            # Area downwards, bicubic upwards, as in the released code; codes trained with other
            # filters would not fit.
            h = F.interpolate(h, size=(full, full), mode="bicubic", align_corners=False)
        return f_BCHH + self.phi(h, k)

    def phi(self, h_BCHH: Tensor, k: int) -> Tensor:
        """The residual convolution that follows the upsampling of scale k."""
        if not self._phi:
            return h_BCHH
        # A mixture of identity and convolution, as in the released code (strength 0.5).
        return h_BCHH * (1 - self.strength) + self._phi[self.choice[k]](h_BCHH) * self.strength

    def encode(self, f_BCHH: Tensor) -> Tensor:
        """Token ids (B, L) of a feature grid, coarse to fine: each scale quantises the residual."""
        f_hat, ids = torch.zeros_like(f_BCHH), []
        for k in range(self.pyramid.scales):
            ids.append(self._ids(self.resize_to_scale(f_BCHH - f_hat, k)))
            f_hat = self.add_tokens(f_hat, ids[-1], k)
        return torch.cat(ids, dim=1)

    def decode(self, ids_BL: Tensor) -> Tensor:
        """The full grid (B, C, H, H) of token ids (B, L)."""
        return self._of_vectors(self._grid, self.embedding(ids_BL))

    def teacher_input(self, ids_BL: Tensor) -> Tensor:
        """Input of each scale but the first, from the scales before it: (B, L - first S, C)."""
        if self.pyramid.scales == 1:
            return self.embedding(ids_BL[:, :0])
        shown_BI = ids_BL[:, : self.pyramid.starts[-1]]  # the last scale is no input
        return self._of_vectors(self._inputs, self.embedding(shown_BI))

    def _grid(self, vectors_BLC: Tensor) -> Tensor:
        f_hat = self.empty_grid(len(vectors_BLC))
        for k, vectors_BSC in enumerate(vectors_BLC.split(list(self.pyramid.lengths), dim=1)):
            f_hat = self.add_vectors(f_hat, vectors_BSC, k)
        return f_hat

    def _inputs(self, vectors_BIC: Tensor) -> Tensor:
        f_hat, inputs = self.empty_grid(len(vectors_BIC)), []
        # The input of scale k + 1 is the sum of all scales to k, resized to its side, not the codes
        # of scale k alone.
        for k, vectors_BSC in enumerate(vectors_BIC.split(list(self.pyramid.lengths[:-1]), dim=1)):
            f_hat = self.add_vectors(f_hat, vectors_BSC, k)
            inputs.append(rearrange(self.resize_to_scale(f_hat, k + 1), "b c y x -> b (y x) c"))
        return torch.cat(inputs, dim=1)

    def _of_vectors(self, function: Callable[[Tensor], Tensor], vectors_BIC: Tensor) -> Tensor:
        """`function` of code vectors. Resizing and phi are affine: if the quantizer is frozen and
        the pyramid is small, the whole is one matrix product, ten times as fast on a CPU.
        """
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        count = vectors_BIC[0].numel() if len(vectors_BIC) else 0
        if not frozen or not 0 < count <= _LARGEST_MAP:
            return function(vectors_BIC)
        weight, bias, shape = self._affine_map(function, vectors_BIC.shape[1:])
        return linear(vectors_BIC.flatten(1), weight, bias).unflatten(1, shape)

    @torch.no_grad()
    def _affine_map(
        self, function: Callable[[Tensor], Tensor], shape: torch.Size
    ) -> tuple[Tensor, Tensor, torch.Size]:
        """Weight and bias of `function`, and the shape of its result for one image."""
        # Computed again if the weights were loaded or moved.
        state = [(parameter.data_ptr(), parameter._version) for parameter in self.parameters()]
        name = function.__name__
        if name not in self._maps or self._maps[name][0] != state:
            basis = torch.eye(shape.numel(), device=self.embedding.weight.device)
            zero = function(basis.new_zeros(1, *shape))
            columns = function(basis.unflatten(1, shape)) - zero
            affine = columns.flatten(1).T.contiguous(), zero.flatten(), zero.shape[1:]
            self._maps[name] = state, affine
        return self._maps[name][1]

    def forward(self, f_BCHH: Tensor, commitment: float) -> Quantized:
        """For training: `encode` with gradients to codes, phi and, by straight-through, to f."""
        target = f_BCHH.detach()
        f_hat, loss = torch.zeros_like(target), f_BCHH.new_zeros(())
        ids, vectors = [], []
        for k in range(self.pyramid.scales):
            # The choice of ids has no gradient.
            residual = self.resize_to_scale(target - f_hat.detach(), k)
            vectors.append(rearrange(residual, "b c y x -> (b y x) c"))
            ids.append(self._ids(residual))
            f_hat = self.add_tokens(f_hat, ids[-1], k)
            # VQ-VAE's two terms (arXiv 1711.00937, eq. 3), here for the sum up to each scale: the
            # first moves the features to the codes, the second codes and phi to the features. With
            # codes that are moving averages, the second trains phi only.
            loss = loss + commitment * F.mse_loss(f_hat.detach(), f_BCHH)
            loss = loss + F.mse_loss(f_hat, target)
        # Straight-through: the value of f_hat, the gradient as if it were f.
        straight = (f_hat - f_BCHH).detach() + f_BCHH
        return Quantized(straight, loss / self.pyramid.scales, ids, vectors)

    def scales_of(self, ids_BL: Tensor) -> tuple[Tensor, ...]:
        """The ids of each scale, (B, S)."""
        return ids_BL.split(list(self.pyramid.lengths), dim=1)

    def empty_grid(self, images: int) -> Tensor:
        """Zeros (B, C, H, H), to which the scales are added."""
        codes_VC, side = self.embedding.weight, self.pyramid.side
        return codes_VC.new_zeros(images, codes_VC.shape[1], side, side)

    def _ids(self, h_BCSS: Tensor) -> Tensor:
        # Codes are compared with (B * S * S, C) vectors; ids are returned as (B, S * S).
        ids = self.nearest(rearrange(h_BCSS, "b c y x -> (b y x) c").detach())
        return ids.view(len(h_BCSS), -1)


def phi_choice(scales: int, count: int) -> list[int]:
    """For each scale k, the convolution of `count` whose tick is nearest to k / (K - 1).

    float64 rounding decides exact ties as in the released code: do not rewrite the arithmetic.
    """
    # The two edges are those of the released code.
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(edge, 1 - edge, count)
    positions = [k / (scales - 1) if scales > 1 else 0.0 for k in range(scales)]
    return [int(np.argmin(np.abs(ticks - position))) for position in positions]


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
