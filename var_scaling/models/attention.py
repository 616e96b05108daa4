"""Multi-head attention: the mask of ordered groups, and the fastest method for each shape.

Shapes: B images, L positions, C width, N heads, c channels of a head, S positions of a group.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var_scaling.linear import Linear, linear

_LARGEST_SCALE = math.log(100.0)  # of the learned attention temperature
_SMALLEST_SQUARE = 1e-24  # of a vector's norm: no division by 0
# On a CPU plain products are faster than the fused kernel for up to about _SHORT positions, and a
# group of at least _LONG positions is faster by itself than under a mask (benchmarks/attention.py).
_SHORT, _LONG = 64, 24
# Stores the keys and values of the current positions; returns those of all visible positions.
KVCache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Rotate = Callable[[Tensor], Tensor]  # rotary embedding of queries and keys (..., L, c)


class AttentionMask(nn.Module):
    """Consecutive groups of positions: each position sees its own group and all groups before it.

    The groups of VAR are its scales. With groups of one position the mask is causal.
    """

    def __init__(self, lengths: Sequence[int]):
        super().__init__()
        self.allowed_LL: Tensor  # bool, True where a row's position sees a column's
        self.bias_LL: Tensor  # float32, 0 where allowed and -inf elsewhere
        groups = [number for number, length in enumerate(lengths) for _ in range(length)]
        group_L = torch.tensor(groups)
        allowed_LL = group_L[:, None] >= group_L[None, :]
        bias_LL = torch.zeros(allowed_LL.shape).masked_fill(~allowed_LL, -torch.inf)
        # Not persistent: both follow from the config, so weight files do not have them.
        self.register_buffer("allowed_LL", allowed_LL, persistent=False)
        self.register_buffer("bias_LL", bias_LL, persistent=False)
        self.parts = tuple(_parts(lengths))


def _parts(lengths: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """Consecutive groups joined to at least _SHORT positions: start, stop, whether one group."""
    start = stop = groups = 0
    for number, length in enumerate(lengths):
        stop, groups = stop + length, groups + 1
        # A long group stays apart from the short ones before it: by itself it needs no mask.
        long_next = number + 1 < len(lengths) and lengths[number + 1] >= _LONG
        if stop - start >= _SHORT or length >= _LONG or long_next or stop == sum(lengths):
            yield start, stop, groups == 1
            start, groups = stop, 0


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: AttentionMask | None) -> Tensor:
    """Softmax attention of queries, keys and values (B, N, L, c); without a mask over all keys.

    The method depends on the shape and the device; the results are equal up to rounding.
    """
    if mask is None:
        return _attend(q, k, v, scale)
    positions = q.shape[2]
    if q.device.type != "cpu" or positions <= _SHORT:
        return _attend(q, k, v, scale, mask.allowed_LL, mask.bias_LL)
    # Part by part, each over the keys that it sees: few or no masked pairs are computed.
    outputs = []
    for start, stop, one_group in mask.parts:
        rows = slice(start, stop), slice(0, stop)
        allowed, bias = (None, None) if one_group else (mask.allowed_LL[rows], mask.bias_LL[rows])
        part = q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop]
        outputs.append(_attend(*part, scale, allowed, bias))
    return torch.cat(outputs, dim=2)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    allowed: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention by one method: plain products for few keys on a CPU, else the fused kernel."""
    # Half precision: the fused kernel keeps the scores in float32, products would round them.
    plain = q.device.type == "cpu" and k.shape[2] <= _SHORT and q.dtype == torch.float32
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
    queries, keys, values = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    queries = queries if scale == 1 else queries * scale
    products = torch.bmm if bias is None else partial(torch.baddbmm, bias)
    scores = products(queries, keys.mT)
    return torch.bmm(scores.softmax(-1), values).unflatten(0, q.shape[:2])


def split_heads(qkv_BLC: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Queries and keys (2, B, N, L, c) and values (B, N, L, c) of the joint product (B, L, 3 C)."""
    # Contiguous: one copy here instead of one for each use.
    parts = rearrange(qkv_BLC, "b l (three n c) -> three b n l c", three=3, n=heads).contiguous()
    return parts[:2], parts[2]


class Attention(nn.Module):
    """Multi-head attention with l2-normalised or plain queries and keys."""

    def __init__(self, width: int, heads: int, normalised: bool):
        super().__init__()
        self.heads = heads
        self.normalised = normalised
        if normalised:
            # The logarithm of a positive factor for each head; it starts at 4, as released.
            # Products of unit vectors are in [-1, 1]: without a factor the softmax is never sharp.
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        # One matrix for all three, with the biases apart: the parameters of the released files.
        self.mat_qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))  # no key bias: softmax cancels it
        self.proj = Linear(width, width)

    def forward(
        self,
        x_BLC: Tensor,
        mask: AttentionMask | None,
        kv_cache: KVCache | None = None,
        rotate: Rotate | None = None,
    ) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qk, v = split_heads(linear(x_BLC, self.mat_qkv.weight, bias), self.heads)
        scale = 1.0
        if self.normalised:
            qk = qk * self._factors(qk).to(qk.dtype)
        else:
            scale = 0.25 / math.sqrt(qk.shape[-1])  # the released code's extra 0.25
        h = attend_rotated(qk, v, scale, mask, kv_cache, rotate)
        return self.proj(rearrange(h, "b n l c -> b l (n c)"))

    def _factors(self, qk_2BNLc: Tensor) -> Tensor:
        """The factors (2, B, N, L, 1) that make queries and keys unit vectors, in float32; those of
        the queries include the temperature.
        """
        # One factor a vector instead of F.normalize and a product: half the passes over q and k.
        squares = qk_2BNLc.float().square().sum(-1, keepdim=True)
        temperature_1N11 = self.scale_mul_1H11.clamp_max(_LARGEST_SCALE).exp()
        temperature = torch.stack([temperature_1N11, torch.ones_like(temperature_1N11)])
        return squares.clamp_min(_SMALLEST_SQUARE).rsqrt() * temperature


def attend_rotated(
    qk_2BNLc: Tensor,
    v: Tensor,
    scale: float,
    mask: AttentionMask | None,
    kv_cache: KVCache | None,
    rotate: Rotate | None,
) -> Tensor:
    """`attend` after the rotary embedding, in training under `mask` or in sampling over a cache."""
    # Before the cache: each key is rotated once, when it is stored.
    q, k = (qk_2BNLc if rotate is None else rotate(qk_2BNLc)).unbind(0)
    if kv_cache is None:
        return attend(q, k, v, scale, mask)
    # No mask: a sampler's cache holds only keys that the new positions may see. The fused kernel:
    # its rounding does not depend on the batch size.
    k, v = kv_cache(k, v)
    return F.scaled_dot_product_attention(q, k, v, scale=scale)
