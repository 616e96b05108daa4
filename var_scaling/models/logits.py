"""Functions of logits: the training loss; guidance, filters, sampling and the Gumbel mixture.

Shapes: B images, S tokens of a scale, V codes, C code channels, M tokens of all images.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_cross_entropy(logits_BSV: Tensor, ids_BS: Tensor) -> Tensor:
    """The mean cross entropy of all tokens in nats, float32. Its gradient can be computed once."""
    logits_MV, ids_M = logits_BSV.flatten(0, -2), ids_BS.flatten()
    if torch.compiler.is_compiling():
        # The compiler fuses this. It saves the logits in their dtype, and no float32 tensor.
        return F.cross_entropy(logits_MV.float(), ids_M)
    loss = _MeanCrossEntropy.apply(logits_MV, ids_M)
    assert isinstance(loss, Tensor)
    return loss


class _MeanCrossEntropy(torch.autograd.Function):
    """F.cross_entropy with the same value, but the gradient is computed in place.

    With 4,096 codes the logits are the largest tensors of a step. F.cross_entropy makes two more
    of their size in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, ids_M: Tensor) -> Tensor:
        log_probs_MV = F.log_softmax(logits_MV, dim=-1, dtype=torch.float32)
        ctx.save_for_backward(log_probs_MV, ids_M)
        ctx.dtype = logits_MV.dtype
        return F.nll_loss(log_probs_MV, ids_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        # The gradient of the sum over tokens: the probabilities, less 1 at the true token.
        log_probs_MV, ids_M = ctx.saved_tensors
        grad_MV = log_probs_MV.exp_()
        minus_one_M1 = grad_MV.new_full((), -1.0).expand(len(ids_M), 1)
        grad_MV.scatter_add_(1, ids_M[:, None], minus_one_M1)
        return grad_MV.mul_(grads[0] / len(ids_M)).to(ctx.dtype), None


def apply_guidance(cond_BSV: Tensor, uncond_BSV: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance (Ho, Salimans 2022): (1 + t) × conditional - t × unconditional."""
    return (1 + weight) * cond_BSV - weight * uncond_BSV


def filter_logits(logits_BSV: Tensor, top_k: int, top_p: float) -> Tensor:
    """The logits with -inf for each code that top-k or top-p removes; 0 disables a filter.

    Top-k keeps every logit that is at least the k-th largest, ties included. Top-p then removes the
    least likely codes that sum to at most 1 - p, never the likeliest (Holtzman et al. 2020).
    """
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
    times the total stays below the total, so a code of probability 0 is never sampled.
    """
    # Not torch.multinomial: it draws for the whole batch from one generator, and each sample must
    # depend on its own seed alone. `right` skips codes of probability 0, whose sums are equal.
    cumulative_BSV = logits_BSV.softmax(-1).double().cumsum(-1)
    target_BS1 = uniform_BS.double()[..., None] * cumulative_BSV[..., -1:]
    return torch.searchsorted(cumulative_BSV, target_BS1, right=True)[..., 0]


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
    # Image by image: the rounding of one product over the batch would depend on the batch size.
    return torch.stack([weights_SV @ codes_VC for weights_SV in weights_BSV])
