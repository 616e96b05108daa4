"""From logits to codes: filters, the draw, and the mixture. Pure functions of what they are given.

Shapes: B images, S tokens of a scale, V codes, C code channels.
"""

import torch
from torch import Tensor


def guided(cond_BSV: Tensor, uncond_BSV: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): (1 + t) × told - t × untold the class."""
    return (1 + weight) * cond_BSV - weight * uncond_BSV


def filtered(logits_BSV: Tensor, top_k: int, top_p: float) -> Tensor:
    """The logits, -inf where they may not be chosen; 0 switches a filter off.

    Top-k keeps all that are at least the k-th largest, ties too. Of these top-p drops the least
    likely for as long as they sum to at most 1 - p, never the likeliest (Holtzman et al. 2020).
    """
    few = 0 < top_k < logits_BSV.shape[-1]
    if few:
        falling_BSK, places_BSK = logits_BSV.topk(top_k, dim=-1)
        logits_BSV = logits_BSV.masked_fill(logits_BSV < falling_BSK[..., -1:], -torch.inf)
    if top_p == 0:
        return logits_BSV
    if not few:
        return _likely(logits_BSV, *logits_BSV.sort(dim=-1), top_p)
    # What top-k found is sorted: a third of the time. It is not all where the k-th has its like.
    found_BSV = _likely(logits_BSV, falling_BSK.flip(-1), places_BSK.flip(-1), top_p)
    tied_BS = logits_BSV.isfinite().sum(-1) > top_k
    if tied_BS.any():
        tied_NV = logits_BSV[tied_BS]
        found_BSV[tied_BS] = _likely(tied_NV, *tied_NV.sort(dim=-1), top_p)
    return found_BSV


def _likely(logits_BSV: Tensor, rising_BSK: Tensor, places_BSK: Tensor, top_p: float) -> Tensor:
    """Top-p among the codes at `places`, in rising order of their logits."""
    unlikely_BSK = rising_BSK.softmax(-1).cumsum(-1) <= 1 - top_p
    unlikely_BSK[..., -1] = False
    dropped_BSV = torch.zeros_like(logits_BSV, dtype=torch.bool)
    return logits_BSV.masked_fill(dropped_BSV.scatter_(-1, places_BSK, unlikely_BSK), -torch.inf)


def chosen(logits_BSV: Tensor, uniform_BS: Tensor) -> Tensor:
    """Ids (B, S) drawn from the softmax of the logits, one by each float32 number in [0, 1).

    By inverting the cumulative distribution, summed in float64: a token needs one random number,
    and 24 random bits times the sum stay below it, so no code of probability 0 is ever drawn.
    """
    sums_BSV = logits_BSV.softmax(-1).double().cumsum(-1)
    at_BS1 = uniform_BS.double()[..., None] * sums_BSV[..., -1:]
    return torch.searchsorted(sums_BSV, at_BS1, right=True)[..., 0]


def mixed(
    logits_BSV: Tensor, uniform_BSV: Tensor, sharpening: float, tau: float, codes_VC: Tensor
) -> Tensor:
    """Code vectors (B, S, C) averaged by a Gumbel softmax (Jang et al. 2017) of filtered logits:
    these times `sharpening`, at temperature `tau`.
    """
    least = torch.finfo(uniform_BSV.dtype).tiny  # a 0 would forbid a code, and may be the last
    gumbel_BSV = -(-uniform_BSV.clamp_min(least).log()).log()
    weights_BSV = ((logits_BSV * sharpening + gumbel_BSV) / tau).softmax(-1)
    # One by one: a product over the whole batch would round by its size.
    return torch.stack([weights_SV @ codes_VC for weights_SV in weights_BSV])
