"""Parameters, FLOPs and memory of the VAR transformer (arXiv 2404.02905)."""

from collections.abc import Sequence

from var_scaling.accounting import Count
from var_scaling.config import Tokenizer
from var_scaling.models.var.config import VarModel
from var_scaling.recipe import Precision

# Bytes that a block keeps for the backward pass, by token and channel. Measured with saved-tensor
# hooks at d6 and d10, 680 tokens: 87 and 91 in fp32, 37 and 43 in bf16 (on a CPU; on a GPU more of
# autocast stays in fp32, hence the margin).
_KEPT, _KEPT_HALF = 100, 60
_LOGITS = 12  # bytes a token and code: logits, their float copy, their gradient


def var_parameters(model: VarModel, tokenizer: Tokenizer, classes: int) -> Count:
    """Trainable parameters by component; the sum equals `numel` over the module."""
    width, depth, pyramid = model.width, model.depth, tokenizer.pyramid
    hidden = model.mlp_ratio * width
    modulation = 6 * width * width + 6 * width
    return {
        "embedding": (
            (tokenizer.code_channels + 1) * width  # word_embed
            + (classes + 1) * width
            + (pyramid.lengths[0] + pyramid.length + pyramid.scales) * width
        ),
        "attention": depth
        * (4 * width * width + 3 * width + (model.heads if model.normalised_attention else 0)),
        "mlp": depth * (2 * hidden * width + hidden + width),
        "adaln": (modulation + depth * 6 * width if model.shared_adaln else depth * modulation)
        + 2 * width * width
        + 2 * width,
        "head": tokenizer.codebook_size * width + tokenizer.codebook_size,
    }


def var_block_parameters(model: VarModel) -> int:
    """Weights of the block matrices, the paper's N: 73,728 d³ at width 64 d (18 w² a block)."""
    per_block = 4 + 2 * model.mlp_ratio + (0 if model.shared_adaln else 6)
    shared = 6 if model.shared_adaln else 0
    return (per_block * model.depth + shared) * model.width**2


def var_forward_flops(model: VarModel, tokenizer: Tokenizer, dense: bool = False) -> Count:
    """FLOPs of one teacher-forced forward over one image's tokens."""
    width, depth, pyramid = model.width, model.depth, tokenizer.pyramid
    length = pyramid.length
    pairs = length * length if dense else pyramid.visible_pairs
    conditioned = 12 * width * width * (1 if model.shared_adaln else depth)
    return {
        "embedding": 2 * (length - pyramid.lengths[0]) * tokenizer.code_channels * width,
        "attention_projections": depth * 8 * width * width * length,
        "attention_scores": depth * 4 * pairs * width,
        "mlp": depth * 4 * model.mlp_ratio * width * width * length,
        "adaln": conditioned + 4 * width * width,  # once an image, not once a token
        "head": 2 * length * width * tokenizer.codebook_size,
    }


def var_training_flops(model: VarModel, tokenizer: Tokenizer, dense: bool = False) -> Count:
    """FLOPs of forward and backward on one image. The cached tokens need no gradient."""
    forward = var_forward_flops(model, tokenizer, dense)
    return {name: (2 if name == "embedding" else 3) * flops for name, flops in forward.items()}


def var_sampling_flops(model: VarModel, tokenizer: Tokenizer, guided: bool = True) -> Count:
    """FLOPs of sampling one image's tokens with cached keys and values; guidance runs two.

    Each scale attends to itself and all coarser, the pairs of the block-causal mask; AdaLN is
    computed once an image. The released sampler computes it at every scale. Without the decoder.
    """
    runs = 2 if guided else 1
    return {name: runs * flops for name, flops in var_forward_flops(model, tokenizer).items()}


def sampled_flops(
    model: VarModel, tokenizer: Tokenizer, guidance: Sequence[float], images: int, uncond_first: int
) -> int:
    """FLOPs of sampling a batch of `images` with a weight of guidance for each scale; no decoder.

    The pass that is told no class runs for as long as a later scale still has weight, its head only
    at those that have. At the first scale it is the same for all images: `untold_first` rows stand
    for it, read in any case, and 1 is needed. Keys and values are cached, AdaLN once a row.
    """
    width, depth, pyramid = model.width, model.depth, tokenizer.pyramid
    until = max((k for k, weight in enumerate(guidance) if weight), default=-1)
    rows = images + uncond_first
    flops = rows * (12 * width * width * (1 if model.shared_adaln else depth) + 4 * width * width)
    for k, (start, length) in enumerate(zip(pyramid.starts, pyramid.lengths, strict=True)):
        if k > 0:
            rows = 2 * images if k <= until else images
            flops += images * 2 * length * tokenizer.code_channels * width
        a_token = (8 + 4 * model.mlp_ratio) * width * width + 4 * (start + length) * width
        flops += rows * depth * length * a_token
        read = rows if k == 0 or guidance[k] else images
        flops += read * 2 * length * width * tokenizer.codebook_size
    return flops


def var_training_bytes(model: VarModel, tokenizer: Tokenizer, precision: Precision) -> float:
    """What one image in a training pass takes besides the weights: an estimate."""
    length = tokenizer.pyramid.length
    kept = _KEPT_HALF if precision in ("bf16", "fp16") else _KEPT
    return length * model.depth * model.width * kept + length * tokenizer.codebook_size * _LOGITS


def var_sampling_bytes(
    model: VarModel, tokenizer: Tokenizer, guidance: Sequence[float], images: int
) -> int:
    """Less than what a batch takes: keys and values, and the finest logits with their order."""
    rows = 2 * images if any(guidance[1:]) else images
    wide = 2 * model.depth * model.width * tokenizer.pyramid.length  # a half's 2 bytes each
    return rows * wide * 2 + images * tokenizer.pyramid.lengths[-1] * tokenizer.codebook_size * (
        4 + 8
    )
