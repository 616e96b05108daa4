"""FLOPs of sampling as it is done: the rows that go through the transformer, scale by scale."""

from collections.abc import Sequence

from var_scaling.config import Model, Tokenizer


def sampled_flops(
    model: Model, tokenizer: Tokenizer, guidance: Sequence[float], images: int, untold_first: int
) -> int:
    """FLOPs of sampling a batch of `images` with a weight of guidance for each scale; no decoder.

    The pass that is told no class runs for as long as a later scale still has weight, its head only
    at those that have. At the first scale it is the same for all images: `untold_first` rows stand
    for it, read in any case, and 1 is needed. Keys and values are cached, AdaLN once a row.
    """
    width, depth, pyramid = model.width, model.depth, tokenizer.pyramid
    until = max((k for k, weight in enumerate(guidance) if weight), default=-1)
    rows = images + untold_first
    flops = rows * (12 * width * width * (1 if model.shared_adaln else depth) + 4 * width * width)
    for k, (start, length) in enumerate(zip(pyramid.starts, pyramid.lengths, strict=True)):
        if k > 0:
            rows = 2 * images if k <= until else images
            flops += images * 2 * length * tokenizer.code_channels * width
        a_token = (8 + 4 * model.mlp_ratio) * width * width + 4 * (start + length) * width
        flops += rows * depth * length * a_token
        read = rows if k == 0 or guidance[k] else images
        flops += read * 2 * length * width * tokenizer.codes
    return flops
