"""Parameters, FLOPs and memory of the VAR transformer (arXiv 2404.02905)."""

from collections.abc import Sequence

from var_scaling.accounting import Count
from var_scaling.accounting.memory import saved_bytes
from var_scaling.config import Tokenizer
from var_scaling.models.var.config import VarModel
from var_scaling.recipe import Precision

_LOGITS_BYTES = 12  # per token and code: logits, their float32 copy, their gradient


def var_parameters(model: VarModel, tokenizer: Tokenizer, classes: int) -> Count:
    """Trainable parameters by component; the sum equals `numel` over the module."""
    width, depth, pyramid = model.width, model.depth, tokenizer.pyramid
    hidden = model.mlp_ratio * width
    modulation = 6 * width * width + 6 * width
    return {
        # word_embed with its bias; class_emb with the null class; pos_start, pos_1LC, lvl_embed.
        "embedding": (
            (tokenizer.code_channels + 1) * width  # word_embed
            + (classes + 1) * width
            + (pyramid.lengths[0] + pyramid.length + pyramid.scales) * width
        ),
        # Biases of queries, values and the output: keys have none. A temperature for each head.
        "attention": depth
        * (4 * width * width + 3 * width + (model.heads if model.normalised_attention else 0)),
        "mlp": depth * (2 * hidden * width + hidden + width),
        # Shared: one matrix for all blocks, an offset for each. Then scale and shift of the head.
        "adaln": (modulation + depth * 6 * width if model.shared_adaln else depth * modulation)
        + 2 * width * width
        + 2 * width,
        "head": tokenizer.codebook_size * width + tokenizer.codebook_size,
    }


def var_block_parameters(model: VarModel) -> int:
    """Weights of the block matrices, the paper's N: 18 w² per block, so 73,728 d³ at w = 64 d."""
    # In units of w²: q, k, v and output; the two layers of the MLP; AdaLN's six chunks.
    per_block = 4 + 2 * model.mlp_ratio + (0 if model.shared_adaln else 6)
    shared = 6 if model.shared_adaln else 0
    return (per_block * model.depth + shared) * model.width**2


def var_forward_flops(model: VarModel, tokenizer: Tokenizer, dense: bool = False) -> Count:
    """FLOPs of one teacher-forced forward pass over one image's tokens."""
    width, depth, pyramid = model.width, model.depth, tokenizer.pyramid
    length = pyramid.length
    pairs = length * length if dense else pyramid.visible_pairs
    block_adaln = 12 * width * width * (1 if model.shared_adaln else depth)
    return {
        # The input of the first scale is the class, so its tokens pass no linear layer.
        "embedding": 2 * (length - pyramid.lengths[0]) * tokenizer.code_channels * width,
        # Four w x w matrices (q, k, v, output), 2 FLOPs a multiply-add; then q k and weights x v.
        "attention_projections": depth * 8 * width * width * length,
        "attention_scores": depth * 4 * pairs * width,
        "mlp": depth * 4 * model.mlp_ratio * width * width * length,
        "adaln": block_adaln + 4 * width * width,  # per image, not per token
        "head": 2 * length * width * tokenizer.codebook_size,
    }


def var_training_flops(model: VarModel, tokenizer: Tokenizer, dense: bool = False) -> Count:
    """FLOPs of forward and backward on one image. The input embedding needs no input gradient."""
    # The backward pass of a layer is two products: one for its weights, one for its input.
    forward = var_forward_flops(model, tokenizer, dense)
    return {name: (2 if name == "embedding" else 3) * flops for name, flops in forward.items()}


def var_sampling_flops(model: VarModel, tokenizer: Tokenizer, guided: bool = True) -> Count:
    """FLOPs of sampling one image's tokens with a KV cache, without the decoder.

    Guidance needs two passes. Each scale attends to itself and all coarser scales: the pairs of the
    block-causal mask. AdaLN is computed once per image; the released sampler recomputes it at every
    scale.
    """
    passes = 2 if guided else 1
    return {name: passes * flops for name, flops in var_forward_flops(model, tokenizer).items()}


def var_batch_flops(
    model: VarModel, tokenizer: Tokenizer, guidance: Sequence[float], images: int, uncond_first: int
) -> int:
    """FLOPs of sampling a batch of `images` with a guidance weight for each scale; no decoder.

    The unconditional pass runs up to the last scale with a non-zero weight, its head only at scales
    with a non-zero weight. At the first scale it is the same for all images, so 1 row is enough;
    `uncond_first` is the number of rows that are computed there. Keys and values are cached, AdaLN
    is computed once per row.
    """
    width, depth, pyramid = model.width, model.depth, tokenizer.pyramid
    last_guided = max((k for k, weight in enumerate(guidance) if weight), default=-1)
    # AdaLN runs once, over the rows of the first scale; finer scales reuse its result.
    rows = images + uncond_first
    flops = rows * (12 * width * width * (1 if model.shared_adaln else depth) + 4 * width * width)
    for k, (start, length) in enumerate(zip(pyramid.starts, pyramid.lengths, strict=True)):
        if k > 0:
            rows = 2 * images if k <= last_guided else images
            flops += images * 2 * length * tokenizer.code_channels * width
        # Each of the scale's tokens attends to all start + length tokens up to this scale.
        flops_per_token = (8 + 4 * model.mlp_ratio) * width * width + 4 * (start + length) * width
        flops += rows * depth * length * flops_per_token
        # The sampler computes all rows of the first scale, also with a guidance weight of 0 there.
        head_rows = rows if k == 0 or guidance[k] else images
        flops += head_rows * 2 * length * width * tokenizer.codebook_size
    return flops


def var_training_bytes(
    model: VarModel, tokenizer: Tokenizer, precision: Precision, recompute: bool = False
) -> float:
    """Estimated memory of one image's activations and logits in training."""
    length = tokenizer.pyramid.length
    activations = length * model.width * saved_bytes(model.depth, precision, recompute)
    return activations + length * tokenizer.codebook_size * _LOGITS_BYTES


def var_sampling_bytes(
    model: VarModel, tokenizer: Tokenizer, guidance: Sequence[float], images: int
) -> int:
    """A lower bound: keys and values, and the finest scale's logits with their sorted indices."""
    # Guidance at the first scale alone needs no unconditional rows after it, hence no cache.
    rows = 2 * images if any(guidance[1:]) else images
    cache_bytes = 2 * model.depth * model.width * tokenizer.pyramid.length * 2  # 2 bytes each
    logits = tokenizer.pyramid.lengths[-1] * tokenizer.codebook_size
    # float32 logits and the int64 indices of their sort, which top-k and top-p need.
    return rows * cache_bytes + images * logits * (4 + 8)
