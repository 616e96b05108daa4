"""Functions of logits in sampling: guidance, filters, sampling and the Gumbel mixture.

Shapes: B images, S tokens of a scale, V codes, K codes that top-k keeps, C code channels.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def apply_guidance(cond_BSV: Tensor, uncond_BSV: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance (Ho, Salimans 2022): (1 + t) × conditional - t × unconditional."""
    return (1 + weight) * cond_BSV - weight * uncond_BSV


def filter_logits(logits_BSV: Tensor, top_k: int, top_p: float) -> Tensor:
    """The logits with -inf for each code that top-k or top-p removes; 0 disables a filter.

    Top-k keeps every logit that is at least the k-th largest, ties included. Top-p then removes the
    least likely codes that sum to at most 1 - p, never the likeliest (Holtzman et al. 2020).
    """
    if logits_BSV.device.type != "cpu":
        return filter_without_waiting(logits_BSV, top_k, top_p)
    use_top_k = 0 < top_k < logits_BSV.shape[-1]
    if use_top_k:
        descending_BSK, indices_BSK = logits_BSV.topk(top_k, dim=-1)
        logits_BSV = logits_BSV.masked_fill(logits_BSV < descending_BSK[..., -1:], -torch.inf)
    if top_p == 0:
        return logits_BSV
    if not use_top_k:
        return _top_p(logits_BSV, *logits_BSV.sort(dim=-1), top_p)
    # topk returns sorted logits, so top-p needs no sort of all V codes (a third of the time).
    # Rows with ties at the k-th logit keep more than k codes: these few rows are sorted in full.
    filtered_BSV = _top_p(logits_BSV, descending_BSK.flip(-1), indices_BSK.flip(-1), top_p)
    tied_BS = logits_BSV.isfinite().sum(-1) > top_k
    # Row by row, so that ties of one image do not change the rounding of the others (LOG.md).
    if tied_BS.any():
        tied_NV = logits_BSV[tied_BS]
        filtered_BSV[tied_BS] = _top_p(tied_NV, *tied_NV.sort(dim=-1), top_p)
    return filtered_BSV


def filter_without_waiting(logits_BSV: Tensor, top_k: int, top_p: float) -> Tensor:
    """`filter_logits` for a GPU: which operations run does not depend on the logits.

    One difference: of codes with equal logits at the border of top-p all stay.
    """
    codes = logits_BSV.shape[-1]
    top_k = top_k if 0 < top_k < codes else codes
    if top_k == codes and top_p == 0:
        return logits_BSV
    ascending_BSK = logits_BSV.topk(top_k, dim=-1).values.flip(-1)
    limit_BS1 = ascending_BSK[..., :1]
    if top_p > 0:
        # Top-k keeps these ties of the k-th logit too; they are the least likely.
        ties_BS1 = (logits_BSV >= limit_BS1).sum(-1, keepdim=True) - top_k
        weights_BSK = (ascending_BSK - ascending_BSK[..., -1:]).exp()
        # The total weight of a code and of all that are less likely.
        cumulative_BSK = weights_BSK.cumsum(-1) + ties_BS1 * weights_BSK[..., :1]
        stays_BSK = cumulative_BSK > (1 - top_p) * cumulative_BSK[..., -1:]
        stays_BSK[..., -1] = True  # the likeliest code always stays
        limit_BS1 = ascending_BSK.where(stays_BSK, torch.inf).amin(-1, keepdim=True)
    return logits_BSV.masked_fill(logits_BSV < limit_BS1, -torch.inf)


def raise_if_not_finite(finite: Mapping[str, Tensor], settings: str) -> None:
    """Raise ValueError for the first flag that is false: its key is not finite.

    The flags are boolean scalars on the device. This waits for the device, so a sampler calls it
    once, at its end.
    """
    flags = torch.stack(list(finite.values())).tolist()
    for what, is_finite in zip(finite, flags, strict=True):
        if not is_finite:
            raise ValueError(
                f"{what} not finite: {settings} is too extreme, or the precision too low"
            )


def _top_p(logits_BSV: Tensor, ascending_BSK: Tensor, indices_BSK: Tensor, top_p: float) -> Tensor:
    """Top-p among the codes `indices`, whose logits `ascending` are in ascending order."""
    # In ascending order the cumulative sum is the probability of a code and of all less likely.
    unlikely_BSK = ascending_BSK.softmax(-1).cumsum(-1) <= 1 - top_p
    unlikely_BSK[..., -1] = False  # the likeliest code always stays
    dropped_BSV = torch.zeros_like(logits_BSV, dtype=torch.bool)
    return logits_BSV.masked_fill(dropped_BSV.scatter_(-1, indices_BSK, unlikely_BSK), -torch.inf)


def sample_ids(logits_BSV: Tensor, uniform_BS: Tensor) -> Tensor:
    """Ids (B, S) sampled from the softmax of the logits with one float32 number in [0, 1) each.

    It inverts the cumulative distribution, summed in float64: the largest float32 number below 1
    times the total stays below the total, so a code of probability 0 is never sampled. Logits that
    are not finite give any valid id.
    """
    # Not torch.multinomial: it draws for the whole batch from one generator, and each sample must
    # depend on its own seed alone. `right` skips codes of probability 0, whose sums are equal.
    cumulative_BSV = logits_BSV.softmax(-1).double().cumsum(-1)
    target_BS1 = uniform_BS.double()[..., None] * cumulative_BSV[..., -1:]
    ids_BS1 = torch.searchsorted(cumulative_BSV, target_BS1, right=True)
    # NaN gives V, which is no code: a lookup of it would end the process on a GPU, before the
    # sampler's own check.
    return ids_BS1[..., 0].clamp_max(logits_BSV.shape[-1] - 1)


def mix_codes(
    logits_BSV: Tensor, uniform_BSV: Tensor, sharpening: float, tau: float, codes_VC: Tensor
) -> Tensor:
    """Code vectors (B, S, C) averaged with the weights of a Gumbel softmax (Jang et al. 2017) of
    the filtered logits times `sharpening`, at temperature `tau`.
    """
    tiny = torch.finfo(uniform_BSV.dtype).tiny  # 0 would give -inf: a row could lose all its codes
    gumbel_BSV = -(-uniform_BSV.clamp_min(tiny).log()).log()
    # Filtered codes have logits of -inf, and the noise is finite: their weights are exactly 0.
    weights_BSV = ((logits_BSV * sharpening + gumbel_BSV) / tau).softmax(-1)
    if codes_VC.device.type != "cpu":
        return weights_BSV @ codes_VC
    # Image by image: the rounding of one product over the batch would depend on the batch size.
    return torch.stack([weights_SV @ codes_VC for weights_SV in weights_BSV])
