"""Parameters and FLOPs of the VAR transformer (VAR.md 1.2 and 3)."""

from var_scaling.accounting import Count
from var_scaling.config import Model, Tokenizer


def var_parameters(model: Model, tokenizer: Tokenizer, classes: int) -> Count:
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
        "head": tokenizer.codes * width + tokenizer.codes,
    }


def var_block_parameters(model: Model) -> int:
    """Weights of the block matrices, the paper's N: 73,728 d³ at width 64 d (18 w² a block)."""
    per_block = 4 + 2 * model.mlp_ratio + (0 if model.shared_adaln else 6)
    shared = 6 if model.shared_adaln else 0
    return (per_block * model.depth + shared) * model.width**2


def var_forward_flops(model: Model, tokenizer: Tokenizer, dense: bool = False) -> Count:
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
        "head": 2 * length * width * tokenizer.codes,
    }


def var_training_flops(model: Model, tokenizer: Tokenizer, dense: bool = False) -> Count:
    """FLOPs of forward and backward on one image. The cached tokens need no gradient."""
    forward = var_forward_flops(model, tokenizer, dense)
    return {name: (2 if name == "embedding" else 3) * flops for name, flops in forward.items()}


def var_sampling_flops(model: Model, tokenizer: Tokenizer, guided: bool = True) -> Count:
    """FLOPs of sampling one image's tokens with cached keys and values; guidance runs two.

    Each scale attends to itself and all coarser, the pairs of the block-causal mask; AdaLN is
    computed once an image. The released sampler computes it at every scale. Without the decoder.
    """
    runs = 2 if guided else 1
    return {name: runs * flops for name, flops in var_forward_flops(model, tokenizer).items()}
