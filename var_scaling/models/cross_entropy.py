"""The training loss of models that predict codes.

Shapes: B images, S tokens, V codes, M tokens of all images.
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
