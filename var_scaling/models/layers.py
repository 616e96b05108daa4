"""Layers that several model families share. VAR's block (arXiv 2404.02905) has the released
parameter names.

Shapes: B images, L tokens, C width, N heads.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var_scaling.linear import Linear
from var_scaling.models.attention import Attention, AttentionMask, KVCache, Rotary


class FeedForward(nn.Module):
    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.fc1 = Linear(width, ratio * width)
        self.fc2 = Linear(ratio * width, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BLC), approximate="tanh"))


class Modulation(nn.Sequential):
    """Condition (B, C) to (B, chunks, 1, C). Its Linear is child 1, as released."""

    def __init__(self, width: int, chunks: int):
        super().__init__(nn.SiLU(), Linear(width, chunks * width))
        self.chunks = chunks

    @property
    def weight(self) -> Tensor:
        linear = self[1]
        assert isinstance(linear, nn.Linear)
        return linear.weight

    def forward(self, cond_BC: Tensor) -> Tensor:
        return rearrange(super().forward(cond_BC), "b (n c) -> b n 1 c", n=self.chunks)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context manager that disables autocast.

    The meta device has no autocast. torch.compile must be able to trace every call in this
    function: under torch 2.11, `is_autocast_available` broke the graph at each call.
    """
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The dtype of a matrix product's output in the current autocast context."""
    device_type = device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return torch.float32


def modulate(x_BLC: Tensor, scale_B1C: Tensor, shift_B1C: Tensor) -> Tensor:
    """LayerNorm without affine parameters, then the condition's scale and shift."""
    # 1 + scale: an output of 0 from the AdaLN layer leaves the norm as it is.
    normed_BLC = F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=1e-6)
    return torch.addcmul(shift_B1C, normed_BLC, 1 + scale_B1C)


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the condition (AdaLN)."""

    def __init__(self, width: int, heads: int, ratio: int, shared_adaln: bool, normalised: bool):
        super().__init__()
        self.attn = Attention(width, heads, normalised)
        self.ffn = FeedForward(width, ratio)
        if shared_adaln:
            # One AdaLN matrix serves all blocks; each block adds only this offset.
            self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, width))
        else:
            self.ada_lin = Modulation(width, 6)

    def adaln_params(self, cond: Tensor) -> Tensor:
        """AdaLN gates, scales, shifts (B, 6, 1, C); `cond` is (B, C), or if shared (B, 6, 1, C)."""
        if hasattr(self, "ada_gss"):
            return cond + rearrange(self.ada_gss, "1 1 n c -> 1 n 1 c")
        return self.ada_lin(cond)

    def forward(
        self,
        x_BLC: Tensor,
        adaln_B61C: Tensor,
        mask: AttentionMask | None,
        keep_2B11: Tensor | None = None,
        kv_cache: KVCache | None = None,
        rotary: Rotary | None = None,
    ) -> Tensor:
        """`adaln` comes from `adaln_params`; `keep` scales both branches (drop path)."""
        # Released order: both gates first. DiT's released order differs (dit/model.py).
        gamma1, gamma2, scale1, scale2, shift1, shift2 = adaln_B61C.unbind(1)
        if keep_2B11 is not None:  # into the gates, which are smaller than the branches
            gamma1, gamma2 = gamma1 * keep_2B11[0], gamma2 * keep_2B11[1]
        h = self.attn(modulate(x_BLC, scale1, shift1), mask, kv_cache, rotary)
        x_BLC = torch.addcmul(x_BLC, gamma1, h)
        return torch.addcmul(x_BLC, gamma2, self.ffn(modulate(x_BLC, scale2, shift2)))


class ModulatedNorm(nn.Module):
    """The last norm before the head: LayerNorm with the condition's scale and shift."""

    def __init__(self, width: int):
        super().__init__()
        self.ada_lin = Modulation(width, 2)

    def forward(self, x_BLC: Tensor, cond_BC: Tensor) -> Tensor:
        scale, shift = self.ada_lin(cond_BC).unbind(1)
        return modulate(x_BLC, scale, shift)


def init_adaln_transformer(
    module: nn.Module, width: int, gamma_init: float, adaln_init: float, head_init: float
) -> None:
    """Initialise a module that has `blocks`, `head_nm` and `head` as the released VAR code does
    (arXiv 2404.02905): standard deviations relative to sqrt(1 / 3C), every bias 0.
    """
    # The standard deviation of torch's default for nn.Linear, uniform in +- C^-0.5.
    std = math.sqrt(1 / (3 * width))
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        # The attention temperature keeps its own start, log 4.
        elif not name.endswith("scale_mul_1H11"):
            nn.init.normal_(parameter, std=std)
    head, head_nm, blocks = module.head, module.head_nm, module.blocks
    assert isinstance(head, nn.Linear)
    assert isinstance(head_nm, ModulatedNorm)
    assert isinstance(blocks, nn.ModuleList)
    nn.init.normal_(head.weight, std=std * head_init)
    head_nm.ada_lin.weight.data.mul_(adaln_init)
    gammas = 2 * width  # the first two of the six chunks
    for block in blocks:
        assert isinstance(block, Block)
        # The residual stream is a sum of 2 D branches: this keeps its initial variance
        # independent of the depth D.
        block.attn.proj.weight.data.div_(math.sqrt(2 * len(blocks)))
        block.ffn.fc2.weight.data.div_(math.sqrt(2 * len(blocks)))
        if hasattr(block, "ada_gss"):
            nn.init.normal_(block.ada_gss, std=width**-0.5)
            block.ada_gss.data[:, :, :2].mul_(gamma_init)
            block.ada_gss.data[:, :, 2:].mul_(adaln_init)
        else:
            block.ada_lin.weight.data[:gammas].mul_(gamma_init)
            block.ada_lin.weight.data[gammas:].mul_(adaln_init)


def branch_factors(
    keep_D2B: Tensor | None, depth: int, dtype: torch.dtype
) -> Sequence[Tensor | None]:
    """For each block the factors (2, B, 1, 1) of its residual branches; None without drop path."""
    return [None] * depth if keep_D2B is None else keep_D2B.to(dtype)[..., None, None].unbind(0)


def drop_path_factors(
    rate: float, depth: int, images: int, generator: torch.Generator
) -> Tensor | None:
    """Factors (D, 2, B) of the residual branches: 0 where dropped, else 1 / (1 - drop rate).

    The drop rate grows linearly from 0 at the first block to `rate` at the last. Returns None if
    `rate` is 0.
    """
    if rate == 0:
        return None
    # Division by the share that is kept preserves the mean of each branch, so evaluation needs no
    # factor.
    rates = torch.linspace(0, rate, depth)[:, None, None]
    kept = torch.rand(depth, 2, images, generator=generator) >= rates
    return kept / (1 - rates)
