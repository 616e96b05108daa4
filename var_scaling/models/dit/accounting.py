"""Parameters, FLOPs and memory of the diffusion transformer.

An image is T = (H / patch)² positions of Z patch² numbers each.
"""

from var_scaling.accounting import FEWEST_ROWS, Count
from var_scaling.config import Tokenizer
from var_scaling.models.dit.config import DitModel, DitSampling, times_of
from var_scaling.recipe import Precision

# Bytes that a block keeps for the backward pass, by position and channel.
_KEPT, _KEPT_HALF = 100, 60


def positions(model: DitModel, tokenizer: Tokenizer) -> int:
    return (tokenizer.pyramid.side // model.patch) ** 2


def patch_channels(model: DitModel, tokenizer: Tokenizer) -> tuple[int, int]:
    """Numbers that enter and leave at each position."""
    entering = tokenizer.code_channels * model.patch**2
    return entering, entering * (2 if model.learned_variance else 1)


def dit_parameters(model: DitModel, tokenizer: Tokenizer, classes: int) -> Count:
    """Trainable parameters by component; the sum equals `numel` over the module.

    The table of positions is fixed and not counted.
    """
    width, depth, hidden = model.width, model.depth, model.mlp_ratio * model.width
    entering, leaving = patch_channels(model, tokenizer)
    time = (model.time_channels + 1) * width + (width + 1) * width
    return {
        "embedding": (entering + 1) * width + time + (classes + 1) * width,
        "attention": depth * (4 * width * width + 4 * width),
        "mlp": depth * (2 * hidden * width + hidden + width),
        "adaln": (6 * depth + 2) * (width * width + width),
        "head": (width + 1) * leaving,
    }


def dit_block_parameters(model: DitModel) -> int:
    """Weights of the block matrices, AdaLN's among them: 18 w² a block."""
    return (4 + 2 * model.mlp_ratio + 6) * model.depth * model.width**2


def dit_forward_flops(model: DitModel, tokenizer: Tokenizer) -> Count:
    """FLOPs of one forward over one image at one time. Nothing is masked."""
    width, depth, length = model.width, model.depth, positions(model, tokenizer)
    entering, leaving = patch_channels(model, tokenizer)
    return {
        "embedding": 2 * length * entering * width
        + 2 * model.time_channels * width
        + 2 * width * width,
        "attention_projections": depth * 8 * width * width * length,
        "attention_scores": depth * 4 * length * length * width,
        "mlp": depth * 4 * model.mlp_ratio * width * width * length,
        "adaln": (12 * depth + 4) * width * width,
        "head": 2 * length * width * leaving,
    }


def dit_training_flops(model: DitModel, tokenizer: Tokenizer) -> Count:
    """FLOPs of forward and backward on one image. What data enters needs no gradient."""
    forward = dit_forward_flops(model, tokenizer)
    flops = {name: 3 * count for name, count in forward.items()}
    last_of_time = 2 * model.width**2  # the only layer of the embedding that is fed by another
    flops["embedding"] = 2 * forward["embedding"] + last_of_time
    return flops


def dit_batch_flops(
    model: DitModel, tokenizer: Tokenizer, sampling: DitSampling, images: int, computed: bool
) -> int:
    """FLOPs of sampling a batch: at each step all of the network, twice where it is guided.

    `computed`: with the spare rows that AdaLN takes for a small batch.
    """
    forward = dit_forward_flops(model, tokenizer)
    flops = 0
    for time in times_of(model, sampling.steps):
        rows = images * (2 if sampling.guided_at(time) else 1)
        flops += rows * sum(forward.values())
        if computed:
            flops += max(0, FEWEST_ROWS - rows) * forward["adaln"]
    return flops


def dit_training_bytes(model: DitModel, tokenizer: Tokenizer, precision: Precision) -> float:
    """What one image in a training pass takes besides the weights: an estimate."""
    kept = _KEPT_HALF if precision in ("bf16", "fp16") else _KEPT
    return positions(model, tokenizer) * model.depth * model.width * kept


def dit_sampling_bytes(
    model: DitModel, tokenizer: Tokenizer, sampling: DitSampling, images: int
) -> int:
    """Less than what a batch takes: one block's activations in 2 bytes."""
    rows = images * (2 if sampling.guided else 1)
    return rows * positions(model, tokenizer) * model.width * (4 + 2 * model.mlp_ratio) * 2
