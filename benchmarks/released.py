"""VAR's released implementation (FoundationVision/VAR) on the parameters of our modules.

Shapes: B images, L tokens, C width, N heads, V codes, Z code channels, H side of the grid.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.models.var.model import VAR
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.quantizer import Quantizer


def plain(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer as nn.Linear computes it."""
    return F.linear(x, layer.weight, layer.bias)


class Released(nn.Module):
    """The forward pass of the released code, with the parameters of our VAR.

    Shapes: B images, L tokens, C width, N heads, V codes.
    """

    def __init__(self, model: VAR):
        super().__init__()
        self.model = model
        blocked = ~model.mask.allowed_LL
        self.bias_11LL: Tensor
        mask = torch.zeros(blocked.shape, device=blocked.device).masked_fill(blocked, -torch.inf)
        self.register_buffer("bias_11LL", mask[None, None], persistent=False)

    def forward(self, labels_B: Tensor, input_BLZ: Tensor) -> Tensor:
        model = self.model
        with torch.autocast(labels_B.device.type, enabled=False):
            cond_BC = model.class_emb(labels_B)
            first = cond_BC.unsqueeze(1).expand(-1, model.pos_start.shape[1], -1) + model.pos_start
            x_BLC = torch.cat((first, plain(model.word_embed, input_BLZ.float())), dim=1)
            x_BLC = x_BLC + (model.lvl_embed(model.levels_L[None]) + model.pos_1LC)
        # The dtype of autocast, found by a small product as in the released code.
        dtype = torch.matmul(x_BLC.new_ones(8, 8), x_BLC.new_ones(8, 8)).dtype
        x_BLC, cond_BC, bias = x_BLC.to(dtype), cond_BC.to(dtype), self.bias_11LL.to(dtype)
        for block in model.blocks:
            x_BLC = self.block(block, x_BLC, cond_BC, bias)
        scale, shift = (
            plain(model.head_nm.ada_lin[1], F.silu(cond_BC)).view(len(x_BLC), 1, 2, -1).unbind(2)
        )
        normed = F.layer_norm(x_BLC.float(), x_BLC.shape[-1:], eps=1e-6)
        h = normed.mul(scale.add(1)).add_(shift).float()
        return plain(model.head, h).float()

    @staticmethod
    def block(block: Any, x_BLC: Tensor, cond_BC: Tensor, bias: Tensor) -> Tensor:
        width, attn, ffn = x_BLC.shape[-1:], block.attn, block.ffn
        parts = plain(block.ada_lin[1], F.silu(cond_BC)).view(len(x_BLC), 1, 6, -1).unbind(2)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = parts
        h = F.layer_norm(x_BLC, width, eps=1e-6).mul(scale1.add(1)).add_(shift1)
        qkv_bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
        qkv = F.linear(h, attn.mat_qkv.weight, qkv_bias)
        q, k, v = qkv.view(*h.shape[:2], 3, attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if attn.normalised:
            temperature = attn.scale_mul_1H11.clamp_max(4.605170185988092).exp()  # ln 100
            q, k, scale = F.normalize(q, dim=-1).mul(temperature), F.normalize(k, dim=-1), 1.0
        else:
            scale = 0.25 * q.shape[-1] ** -0.5
        bias = bias.to(v.dtype)
        h = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, bias, scale=scale)
        h = plain(attn.proj, h.transpose(1, 2).reshape(x_BLC.shape))
        x_BLC = x_BLC + h.mul(gamma1)
        h = F.layer_norm(x_BLC, width, eps=1e-6).mul(scale2.add(1)).add_(shift2)
        return x_BLC + plain(ffn.fc2, F.gelu(plain(ffn.fc1, h), approximate="tanh")).mul(gamma2)


def encode(quantizer: Quantizer, f_BZHH: Tensor) -> list[Tensor]:
    """Token ids of each scale, as in `f_to_idxBl_or_fhat`."""
    rest, f_hat, ids = f_BZHH.clone(), torch.zeros_like(f_BZHH), []
    codes_VZ = quantizer.embedding.weight
    full, sides = quantizer.pyramid.side, quantizer.pyramid.patch_nums
    for k, side in enumerate(sides):
        small = F.interpolate(rest, size=(side, side), mode="area") if side < full else rest
        rows = small.permute(0, 2, 3, 1).reshape(-1, codes_VZ.shape[1])
        distances = rows.square().sum(1, keepdim=True) + codes_VZ.square().sum(1)
        distances.addmm_(rows, codes_VZ.T, alpha=-2, beta=1)
        chosen = distances.argmin(1).view(-1, side, side)
        h = quantizer.embedding(chosen).permute(0, 3, 1, 2)
        h = F.interpolate(h, size=(full, full), mode="bicubic").contiguous() if side < full else h
        h = quantizer.phi(h.contiguous(), k)
        f_hat.add_(h)
        rest.sub_(h)
        ids.append(chosen.flatten(1))
    return ids


@torch.inference_mode()
def sample(
    model: VAR, vqvae: MultiScaleVQVAE, labels_B: Tensor, guidance: float, top_k: int, top_p: float
) -> Tensor:
    """Images (B, 3, W, W), as in `autoregressive_infer_cfg`: keys and values appended by torch.cat,
    AdaLN at each scale, guidance on all rows, and one decoder batch.
    """
    quantizer, count = vqvae.quantize, len(labels_B)
    pyramid = quantizer.pyramid
    cond = model.class_emb(torch.cat([labels_B, torch.full_like(labels_B, model.classes)]))
    positions_1LC = model.lvl_embed(model.levels_L[None]) + model.pos_1LC
    f_hat = quantizer.empty_grid(count)
    x = cond[:, None] + model.pos_start + positions_1LC[:, : pyramid.lengths[0]]
    caches: list[tuple[Tensor, Tensor] | None] = [None] * len(model.blocks)
    for k, side in enumerate(pyramid.patch_nums):
        for number, block in enumerate(model.blocks):
            x, caches[number] = _block_with_cache(block, x, cond, caches[number])
        scale, shift = (
            plain(model.head_nm.ada_lin[1], F.silu(cond)).view(len(x), 1, 2, -1).unbind(2)
        )
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6).mul(scale.add(1)).add_(shift)
        logits = plain(model.head, normed)
        weight = guidance * k / max(1, pyramid.scales - 1)
        logits = (1 + weight) * logits[:count] - weight * logits[count:]
        ids_BS = _top_k_top_p(logits, top_k, top_p)
        h = quantizer.embedding(ids_BS).transpose(1, 2).reshape(count, -1, side, side)
        if side < pyramid.side:
            h = F.interpolate(h, size=(pyramid.side, pyramid.side), mode="bicubic")
        f_hat.add_(quantizer.phi(h, k))
        if k + 1 < pyramid.scales:
            finer = pyramid.patch_nums[k + 1]
            small = (
                F.interpolate(f_hat, size=(finer, finer), mode="area").flatten(2).transpose(1, 2)
            )
            start = pyramid.starts[k + 1]
            x = plain(model.word_embed, small)
            x = (x + positions_1LC[:, start : start + finer * finer]).repeat(2, 1, 1)
    return vqvae.render(f_hat).clamp(-1, 1).add(1).mul(0.5)


def _block_with_cache(
    block: Any, x: Tensor, cond: Tensor, cache: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    width, attn, ffn = x.shape[-1:], block.attn, block.ffn
    parts = plain(block.ada_lin[1], F.silu(cond)).view(len(x), 1, 6, -1).unbind(2)
    gamma1, gamma2, scale1, scale2, shift1, shift2 = parts
    h = F.layer_norm(x, width, eps=1e-6).mul(scale1.add(1)).add_(shift1)
    bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    qkv = F.linear(h, attn.mat_qkv.weight, bias).view(*h.shape[:2], 3, attn.heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    temperature = attn.scale_mul_1H11.clamp_max(4.605170185988092).exp()  # ln 100
    q, k = F.normalize(q, dim=-1).mul(temperature), F.normalize(k, dim=-1)
    if cache is not None:
        k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
    h = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    x = x + plain(attn.proj, h.transpose(1, 2).reshape(x.shape)).mul_(gamma1)
    h = F.layer_norm(x, width, eps=1e-6).mul(scale2.add(1)).add_(shift2)
    return x + plain(ffn.fc2, F.gelu(plain(ffn.fc1, h), approximate="tanh")).mul(gamma2), (k, v)


def _top_k_top_p(logits_BSV: Tensor, top_k: int, top_p: float) -> Tensor:
    if 0 < top_k < logits_BSV.shape[-1]:
        smallest = logits_BSV.topk(top_k, largest=True, sorted=False).values.amin(-1, keepdim=True)
        logits_BSV.masked_fill_(logits_BSV < smallest, -torch.inf)
    if top_p > 0:
        ascending, indices = logits_BSV.sort(dim=-1)
        removed = ascending.softmax(-1).cumsum_(-1) <= 1 - top_p
        removed[..., -1:] = False
        logits_BSV.masked_fill_(removed.scatter(-1, indices, removed), -torch.inf)
    rows = logits_BSV.softmax(-1).flatten(0, 1)
    return torch.multinomial(rows, 1).view(logits_BSV.shape[:2])
