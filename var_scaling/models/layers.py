"""Layers that several model families share. VAR's block (arXiv 2404.02905) has the released
parameter names.

Shapes: B images, L tokens, C width, N heads.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_LARGEST_SCALE = math.log(100.0)  # of the learned attention temperature
# Stores the keys and values of the current positions; returns those of all visible positions.
KVCache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Rotate = Callable[[Tensor], Tensor]  # rotary embedding of queries or keys (B, N, L, C / N)


class Attention(nn.Module):
    """Multi-head attention under a boolean mask, with l2-normalised or plain queries and keys."""

    def __init__(self, width: int, heads: int, normalised: bool):
        super().__init__()
        self.heads = heads
        self.normalised = normalised
        if normalised:
            # The logarithm of a positive factor for each head; it starts at 4, as released.
            # Products of unit vectors are in [-1, 1]: without a factor the softmax is never sharp.
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        # One matrix for all three, with the biases apart: the parameters of the released files.
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))  # no key bias: softmax cancels it
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x_BLC: Tensor,
        mask_LL: Tensor | None,
        kv_cache: KVCache | None = None,
        rotate: Rotate | None = None,
    ) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_BLC, self.mat_qkv.weight, bias)
        q, k, v = rearrange(qkv, "b l (three n c) -> three b n l c", three=3, n=self.heads)
        if self.normalised:
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(_LARGEST_SCALE).exp()
            k = F.normalize(k, dim=-1)
            scale = 1.0
        else:
            scale = 0.25 / math.sqrt(q.shape[-1])  # the released code's extra 0.25
        # After the normalisation: a rotation keeps the norm. Before the cache: each key is rotated
        # once, when it is stored.
        if rotate is not None:
            q, k = rotate(q), rotate(k)
        if kv_cache is not None:
            k, v = kv_cache(k, v)
        # A sampler passes no mask: its cache holds only keys that the new positions may see.
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_LL, scale=scale)
        return self.proj(rearrange(h, "b n l c -> b l (n c)"))


class FeedForward(nn.Module):
    def __init__(self, width: int, ratio: int):
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BLC), approximate="tanh"))


class Modulation(nn.Sequential):
    """Condition (B, C) to (B, chunks, 1, C). Its Linear is child 1, as released."""

    def __init__(self, width: int, chunks: int):
        super().__init__(nn.SiLU(), nn.Linear(width, chunks * width))
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
    return F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=1e-6) * (1 + scale_B1C) + shift_B1C


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
        mask_LL: Tensor | None,
        keep_2B11: Tensor | Sequence[float],
        kv_cache: KVCache | None = None,
        rotate: Rotate | None = None,
    ) -> Tensor:
        """`adaln` comes from `adaln_params`; `keep` scales the two residual branches."""
        # Released order: both gates first. DiT's released order differs (dit/model.py).
        gamma1, gamma2, scale1, scale2, shift1, shift2 = adaln_B61C.unbind(1)
        h = gamma1 * self.attn(modulate(x_BLC, scale1, shift1), mask_LL, kv_cache, rotate)
        x_BLC = x_BLC + keep_2B11[0] * h
        h = gamma2 * self.ffn(modulate(x_BLC, scale2, shift2))
        return x_BLC + keep_2B11[1] * h


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
