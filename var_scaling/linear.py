"""Linear layers that use oneDNN's matrix products on a CPU.

torch multiplies float32 matrices with MKL, which uses no AVX-512 on AMD processors. oneDNN, which
torch uses for convolutions, does: on an EPYC (Zen 5) 237 against 107 GFLOP/s (LOG.md).

Shapes: M rows, K inputs, N outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this many weights the larger overhead of a call costs more than the product. The number of
# rows must not decide: then the rounding of a sample would depend on the size of its batch.
_FEWEST_WEIGHTS = 4096


def _has_product() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_AVAILABLE = _has_product()


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """F.linear, by oneDNN for large float32 matrices on a CPU; equal up to rounding.

    For two rows or more, the result of a row does not depend on the other rows (tested).
    """
    suits = (
        _AVAILABLE
        and weight_NK.numel() >= _FEWEST_WEIGHTS
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
    if not suits:
        return F.linear(x, weight_NK, bias_N)
    result = _OneDnnLinear.apply(x.flatten(0, -2), weight_NK, bias_N)
    assert isinstance(result, Tensor)
    return result.unflatten(0, x.shape[:-1])


def _product(x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x weightᵀ + bias. Of transposed views only `x` is copied."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias_N, "none", [], "")
    return product


def _weight_grad(grad_MN: Tensor, x_MK: Tensor) -> Tensor:
    # The smaller of the two is the one that is copied.
    if grad_MN.shape[1] <= x_MK.shape[1]:
        return _product(grad_MN.T, x_MK.T)
    return _product(x_MK.T, grad_MN.T).T


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return _product(x_MK, weight_NK, bias_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad_MN,), (x_MK, weight_NK) = grads, ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _product(grad_MN, weight_NK.T) if needs_x else None,
            _weight_grad(grad_MN, x_MK) if needs_weight else None,
            grad_MN.sum(0) if needs_bias else None,
        )
