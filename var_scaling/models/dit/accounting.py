"""Parameters, FLOPs and memory of the diffusion transformer.

An image has T = (H / patch)² positions with Z patch² numbers each.
"""

from var_scaling.accounting import FEWEST_ROWS, Count
from var_scaling.accounting.memory import saved_bytes
from var_scaling.config import Tokenizer
from var_scaling.models.dit.config import DitModel, DitSampling, sampling_times
from var_scaling.recipe import Precision


def positions(model: DitModel, tokenizer: Tokenizer) -> int:
    return (tokenizer.pyramid.side // model.patch) ** 2


def patch_channels(model: DitModel, tokenizer: Tokenizer) -> tuple[int, int]:
    """Input and output channels of each position."""
    channels_in = tokenizer.code_channels * model.patch**2
    return channels_in, channels_in * (2 if model.learned_variance else 1)


def dit_parameters(model: DitModel, tokenizer: Tokenizer, classes: int) -> Count:
    """Trainable parameters by component; the sum equals `numel` over the module.

    The position embedding is fixed and not counted.
    """
    width, depth, hidden = model.width, model.depth, model.mlp_ratio * model.width
    channels_in, channels_out = patch_channels(model, tokenizer)
    # Two linear layers with biases.
    time = (model.time_channels + 1) * width + (width + 1) * width
    return {
        "embedding": (channels_in + 1) * width + time + (classes + 1) * width,
        # Biases of queries, keys, values and the output.
        "attention": depth * (4 * width * width + 4 * width),
        "mlp": depth * (2 * hidden * width + hidden + width),
        # Six chunks in each block, two (scale and shift) in the last norm.
        "adaln": (6 * depth + 2) * (width * width + width),
        "head": (width + 1) * channels_out,
    }


def dit_block_parameters(model: DitModel) -> int:
    """Weights of the block matrices including AdaLN: 18 w² per block at MLP ratio 4."""
    return (4 + 2 * model.mlp_ratio + 6) * model.depth * model.width**2


def dit_forward_flops(model: DitModel, tokenizer: Tokenizer) -> Count:
    """FLOPs of one forward pass over one image at one time. No attention pair is masked."""
    width, depth, length = model.width, model.depth, positions(model, tokenizer)
    channels_in, channels_out = patch_channels(model, tokenizer)
    return {
        # The patches, then the time MLP, which runs once per image and not per position.
        "embedding": 2 * length * channels_in * width
        + 2 * model.time_channels * width
        + 2 * width * width,
        # Four w x w matrices (q, k, v, output), 2 FLOPs a multiply-add; then q k and weights x v.
        "attention_projections": depth * 8 * width * width * length,
        "attention_scores": depth * 4 * length * length * width,
        "mlp": depth * 4 * model.mlp_ratio * width * width * length,
        "adaln": (12 * depth + 4) * width * width,
        "head": 2 * length * width * channels_out,
    }


def dit_training_flops(model: DitModel, tokenizer: Tokenizer) -> Count:
    """FLOPs of forward and backward on one image. The network's inputs need no gradient."""
    forward = dit_forward_flops(model, tokenizer)
    flops = {name: 3 * count for name, count in forward.items()}
    # The time MLP's second layer is the only embedding layer whose input needs a gradient.
    flops["embedding"] = 2 * forward["embedding"] + 2 * model.width**2
    return flops


def dit_batch_flops(
    model: DitModel, tokenizer: Tokenizer, sampling: DitSampling, images: int, computed: bool
) -> int:
    """FLOPs of sampling a batch: one pass at each step, two with guidance.

    `computed` also counts the padding rows of AdaLN in a small batch.
    """
    forward = dit_forward_flops(model, tokenizer)
    flops = 0
    for time in sampling_times(model, sampling.steps):
        rows = images * (2 if sampling.guided_at(time) else 1)
        flops += rows * sum(forward.values())
        if computed:
            # Only the condition is padded, as long as the positions make enough rows themselves.
            flops += max(0, FEWEST_ROWS - rows) * forward["adaln"]
    return flops


def dit_training_bytes(
    model: DitModel, tokenizer: Tokenizer, precision: Precision, recompute: bool = False
) -> float:
    """Estimated memory of one image's activations in training."""
    blocks = saved_bytes(model.depth, precision, recompute)
    return positions(model, tokenizer) * model.width * blocks


def dit_sampling_bytes(
    model: DitModel, tokenizer: Tokenizer, sampling: DitSampling, images: int
) -> int:
    """A lower bound: one block's activations in 2 bytes."""
    rows = images * (2 if sampling.guided else 1)
    return rows * positions(model, tokenizer) * model.width * (4 + 2 * model.mlp_ratio) * 2
