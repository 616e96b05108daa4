"""Exact parameters and FLOPs, by component, in integers. Nothing else in the project counts.

Conventions. A multiply-add is 2 FLOPs; matrix products and convolutions are counted, element-wise
work is not. `dense` counts the L² attention pairs that one masked product computes (what torch's
counter sees); otherwise only the pairs that the block-causal mask allows: the model's own FLOPs.
Backward costs twice forward, less the gradient of inputs that need none.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from var_scaling.config import Model, Tokenizer, Trial

Count = dict[str, int]


def total(count: Count) -> int:
    return sum(count.values())


# The transformer (VAR.md 1.2 and 3) -------------------------------------------------------------


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


# The tokenizer (VAR.md 1.1) ---------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One thing with parameters or FLOPs; `flops` are those of one image's forward."""

    component: str
    parameters: int
    flops: int


def tokenizer_layers(tokenizer: Tokenizer) -> Iterator[Layer]:
    """Every counted layer of the multi-scale VQVAE, walked in the order of the modules."""
    t, grid, z = tokenizer, tokenizer.pyramid.side, tokenizer.code_channels
    widths = [t.channels * multiplier for multiplier in t.multipliers]
    deepest = len(widths) - 1

    side = t.data.side
    yield _conv("encoder", 3, t.channels, 3, side)
    width = t.channels
    for level, level_width in enumerate(widths):
        for _ in range(t.residual_blocks):
            yield from _residual("encoder", width, level_width, side)
            width = level_width
            if level == deepest:
                yield from _attention("encoder", width, side)
        if level < deepest:
            side //= 2
            yield _conv("encoder", width, width, 3, side)
    yield from _middle("encoder", width, side)
    yield _norm("encoder", width)
    yield _conv("encoder", width, z, 3, side)
    yield _conv("quant_convs", z, z, 3, grid)

    yield from _quantizer(t)

    yield _conv("quant_convs", z, z, 3, grid)
    yield _conv("decoder", z, width, 3, side)
    yield from _middle("decoder", width, side)
    for level in reversed(range(len(widths))):
        for _ in range(t.residual_blocks + 1):
            yield from _residual("decoder", width, widths[level], side)
            width = widths[level]
            if level == deepest:
                yield from _attention("decoder", width, side)
        if level > 0:
            side *= 2
            yield _conv("decoder", width, width, 3, side)
    yield _norm("decoder", width)
    yield _conv("decoder", width, 3, 3, side)


def tokenizer_parameters(tokenizer: Tokenizer) -> Count:
    counted: Counter[str] = Counter()
    for layer in tokenizer_layers(tokenizer):
        counted[layer.component] += layer.parameters
    return dict(counted)


def tokenizer_flops(tokenizer: Tokenizer) -> Count:
    """FLOPs of one image through encoder, quantizer (search and residual walk) and decoder."""
    counted: Counter[str] = Counter()
    for layer in tokenizer_layers(tokenizer):
        counted[layer.component] += layer.flops
    return dict(counted)


def _conv(component: str, cin: int, cout: int, kernel: int, side: int) -> Layer:
    weights = cin * cout * kernel * kernel
    return Layer(component, weights + cout, 2 * weights * side * side)


def _norm(component: str, width: int) -> Layer:
    return Layer(component, 2 * width, 0)


def _residual(component: str, cin: int, cout: int, side: int) -> Iterator[Layer]:
    yield _norm(component, cin)
    yield _conv(component, cin, cout, 3, side)
    yield _norm(component, cout)
    yield _conv(component, cout, cout, 3, side)
    if cin != cout:
        yield _conv(component, cin, cout, 1, side)


def _attention(component: str, width: int, side: int) -> Iterator[Layer]:
    yield _norm(component, width)
    yield _conv(component, width, 3 * width, 1, side)
    yield Layer(component, 0, 4 * side**4 * width)  # scores and their product with the values
    yield _conv(component, width, width, 1, side)


def _middle(component: str, width: int, side: int) -> Iterator[Layer]:
    yield from _residual(component, width, width, side)
    yield from _attention(component, width, side)
    yield from _residual(component, width, width, side)


def _quantizer(t: Tokenizer) -> Iterator[Layer]:
    z, pyramid = t.code_channels, t.pyramid
    yield Layer("quantizer", t.codes * z, 2 * pyramid.length * z * t.codes)  # nearest codes
    phi = _conv("quantizer", z, z, 3, pyramid.side)
    held = t.phi_convolutions or pyramid.scales
    if t.phi_strength > 0:
        yield Layer("quantizer", held * phi.parameters, pyramid.scales * phi.flops)


# The ledger of a trial --------------------------------------------------------------------------


def trial_ledger(trial: Trial) -> dict[str, int]:
    """Columns of the results row that follow from the record alone, units in the names."""
    parameters = var_parameters(trial.model, trial.tokenizer, trial.data.classes)
    images, length = trial.images_seen, trial.tokenizer.pyramid.length
    flops = total(var_training_flops(trial.model, trial.tokenizer))
    dense = total(var_training_flops(trial.model, trial.tokenizer, dense=True))
    blocks = var_block_parameters(trial.model)
    return {
        "params_total": total(parameters),
        "params_blocks": blocks,
        **{f"params_{component}": count for component, count in parameters.items()},
        "tokens_seen": images * length,
        "images_seen": images,
        "train_flops": images * flops,
        "train_flops_dense_mask": images * dense,
        "train_flops_6n_total": 6 * total(parameters) * images * length,
        "train_flops_6n_blocks": 6 * blocks * images * length,
    }
