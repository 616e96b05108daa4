"""Multi-head attention: the mask of ordered groups, and the fastest method for each shape.

Shapes: B images, L positions, C width, N heads, c channels of a head, P pairs of
channels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from var_scaling.linear import Linear, linear

_LARGEST_SCALE = math.log(100.0)  # of the learned attention temperature
_SMALLEST_SQUARE = 1e-24  # of a vector's norm: no division by 0
# On a CPU plain products are faster than the fused kernel for up to about this many positions.
_SHORT = 64
# Stores the keys and values of the current positions. Returns those of earlier positions too, and
# what is added to the scores: None, or -inf for positions that are not visible.
KVCache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
Rotary = tuple[Tensor, Tensor]  # cosines and sines (L, c / 2) of the positions' angles


class _Choice(NamedTuple):
    """How the groups of a mask become parts, each of which is one call of attention."""

    short: float  # short groups are joined until a part has at least this many positions
    long: int  # a group of at least this many positions is a part by itself, without a mask
    causal: bool  # whether groups of one position are one part, with the kernel's causal option
    copy_heads: bool  # whether queries, keys and values are copied out of their joint product


# By device type. CPU: measured (LOG.md). CUDA: the flash kernel takes no mask, and at fewer than
# about 100 positions the launches of a call cost more than its masked pairs. It reads each head in
# place, so a copy would only cost time.
_CHOICES = {"cpu": _Choice(_SHORT, 24, False, True), "cuda": _Choice(math.inf, 100, True, False)}


class Part(NamedTuple):
    """Consecutive positions that attend to all positions before `stop`, except for masked ones."""

    start: int
    stop: int
    kind: Literal["all", "masked", "causal"]


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
        self.parts = {device: tuple(_parts(lengths, c)) for device, c in _CHOICES.items()}


def _parts(lengths: Sequence[int], choice: _Choice) -> Iterator[Part]:
    """The parts of consecutive groups of these lengths, in order."""
    if choice.causal and set(lengths) == {1}:
        yield Part(0, len(lengths), "causal")
        return
    start = stop = groups = 0
    for number, length in enumerate(lengths):
        stop, groups = stop + length, groups + 1
        # A long group stays apart from the short ones before it: by itself it needs no mask.
        long_next = number + 1 < len(lengths) and lengths[number + 1] >= choice.long
        joined = stop - start >= choice.short
        if joined or length >= choice.long or long_next or stop == sum(lengths):
            yield Part(start, stop, "all" if groups == 1 else "masked")
            start, groups = stop, 0


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: AttentionMask | None) -> Tensor:
    """Softmax attention of queries, keys and values (B, N, L, c); without a mask over all keys.

    The method depends on the shape and the device; the results are equal up to rounding.
    """
    if mask is None:
        return _attend(q, k, v, scale)
    device = q.device.type
    if device not in mask.parts or (device == "cpu" and q.shape[2] <= _SHORT):
        return _attend(q, k, v, scale, mask.allowed_LL, mask.bias_LL)
    return attend_in_parts(q, k, v, scale, mask, mask.parts[device])


def attend_in_parts(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: AttentionMask, parts: Sequence[Part]
) -> Tensor:
    """The same, part by part, each over the keys that it sees: few or no masked pairs."""
    stops = [part.stop for part in parts]
    queries = q.split([part.stop - part.start for part in parts], dim=2)
    keys, values = _Prefixes.apply(k, *stops), _Prefixes.apply(v, *stops)
    outputs = []
    for part, q, k, v in zip(parts, queries, keys, values, strict=True):
        rows = slice(part.start, part.stop), slice(0, part.stop)
        if part.kind == "causal":
            output = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        elif part.kind == "masked":
            output = _attend(q, k, v, scale, mask.allowed_LL[rows], mask.bias_LL[rows])
        else:
            output = _attend(q, k, v, scale)
        outputs.append(output)
    if len(outputs) == 1:
        return outputs[0]
    # Joined in the order (B, L, N, c), which is that of the flash kernel and of the next product.
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1).transpose(1, 2)


class _Prefixes(torch.autograd.Function):
    """The first `stop` positions of keys or values (B, N, L, c) for each stop; the last is L.

    As slices, each prefix would fill a tensor of L positions with its gradient before their sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *stops: int) -> tuple[Tensor, ...]:
        ctx.stops = stops
        return tuple(x[:, :, :stop] for stop in stops)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total = grads[-1].clone()
        # In the order in which autograd would add them.
        for stop, grad in reversed(list(zip(ctx.stops[:-1], grads[:-1], strict=True))):
            total[:, :, :stop] += grad
        return total, *[None] * len(ctx.stops)


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


def split_heads(qkv_BLC: Tensor, heads: int) -> tuple[list[Tensor], Tensor]:
    """Queries and keys, and the values (B, N, L, c), of the joint product (B, L, 3 C).

    Queries and keys are one tensor (2, B, N, L, c), or two tensors (B, N, L, c).
    """
    if _CHOICES.get(qkv_BLC.device.type, _CHOICES["cpu"]).copy_heads:
        parts = rearrange(qkv_BLC, "b l (three n c) -> three b n l c", three=3, n=heads)
        # One copy here instead of one for each use, and fewer calls.
        parts = parts.contiguous()
        return [parts[:2]], parts[2]
    # Apart from the start: a compiler then writes each gradient to its place, without a copy.
    parts_of_heads = qkv_BLC.unflatten(-1, (3, heads, -1)).unbind(2)
    q, k, v = (part.transpose(1, 2) for part in parts_of_heads)
    return [q, k], v


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
        rotary: Rotary | None = None,
    ) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qk, v = split_heads(linear(x_BLC, self.mat_qkv.weight, bias), self.heads)
        scale = 1.0
        if self.normalised:
            qk = self._unit_vectors(qk)
        else:
            scale = 0.25 / math.sqrt(v.shape[-1])  # the released code's extra 0.25
        h = attend_rotated(qk, v, scale, mask, kv_cache, rotary)
        return self.proj(rearrange(h, "b n l c -> b l (n c)"))

    def _unit_vectors(self, qk: list[Tensor]) -> list[Tensor]:
        """Queries and keys of norm 1, the queries times the temperature."""
        temperature_1N11 = self.scale_mul_1H11.clamp_max(_LARGEST_SCALE).exp()
        factors: list[Tensor | float] = [temperature_1N11, 1]
        if len(qk) == 1:
            factors = [torch.stack([temperature_1N11, torch.ones_like(temperature_1N11)])]
        # One factor a vector instead of F.normalize and a product: half the passes over q and k.
        return [
            part * (_inverse_norms(part) * factor).to(part.dtype)
            for part, factor in zip(qk, factors, strict=True)
        ]


def _inverse_norms(x: Tensor) -> Tensor:
    """The factors (..., 1) that make the vectors (..., c) unit vectors, in float32."""
    squares = x.float().square().sum(-1, keepdim=True)
    return squares.clamp_min(_SMALLEST_SQUARE).rsqrt()


def attend_rotated(
    qk: list[Tensor],
    v: Tensor,
    scale: float,
    mask: AttentionMask | None,
    kv_cache: KVCache | None = None,
    rotary: Rotary | None = None,
) -> Tensor:
    """`attend` after the rotary embedding, in training under `mask` or in sampling over a cache.
    `qk` and `v` are those of `split_heads`.
    """
    # Before the cache: each key is rotated once, when it is stored.
    if rotary is not None:
        qk = [apply_rotary(part, *rotary) for part in qk]
    q, k = qk if len(qk) == 2 else qk[0].unbind(0)
    if kv_cache is None:
        return attend(q, k, v, scale, mask)
    # The fused kernel: its rounding does not depend on the batch size.
    k, v, bias = kv_cache(k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def apply_rotary(x: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    """Rotate each pair of neighbouring channels of x (..., L, 2 P) by its angle."""
    # (..., L, P) each. In float32 also under autocast.
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cos_LP - odd * sin_LP, even * sin_LP + odd * cos_LP], dim=-1)
    return rotated.flatten(-2).to(x.dtype)
