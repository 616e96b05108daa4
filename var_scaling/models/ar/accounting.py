"""Parameters, FLOPs and memory of the AR transformer.

The T tokens of an image are predicted from T inputs: the class and the first T - 1 tokens.
"""

from var_scaling.accounting import FEWEST_ROWS, Count
from var_scaling.accounting.memory import saved_bytes
from var_scaling.config import Tokenizer
from var_scaling.models.ar.config import ArModel
from var_scaling.recipe import Precision

_LOGITS_BYTES = 12  # per token and code: logits, their float32 copy, their gradient


def has_level_embedding(model: ArModel, tokenizer: Tokenizer) -> bool:
    """Whether the model has an embedding for each residual level of a position."""
    return model.positions == "learned" or tokenizer.pyramid.scales > 1


def ar_parameters(model: ArModel, tokenizer: Tokenizer, classes: int) -> Count:
    """Trainable parameters by component; the sum equals `numel` over the module."""
    width, depth, pyramid = model.width, model.depth, tokenizer.pyramid
    adaln = model.block == "adaln"
    # Linear map with bias, or a table with a row for each code.
    rows = tokenizer.code_channels + 1 if model.embedding == "codes" else tokenizer.codebook_size
    position_rows = pyramid.length if model.positions == "learned" else 0
    position_rows += pyramid.scales if has_level_embedding(model, tokenizer) else 0
    # Of queries, values and the output (keys have none), and a temperature for each head.
    biases = 3 * width + (model.heads if model.normalised_attention else 0)
    hidden = model.hidden
    return {
        "embedding": (rows + classes + 1 + position_rows + adaln) * width,  # adaln: pos_start
        # llama: no biases; one RMSNorm weight for each channel before attention, MLP and head.
        "attention": depth * (4 * width * width + (biases if adaln else width)),
        "mlp": depth
        * (2 * hidden * width + hidden + width if adaln else 3 * hidden * width + width),
        "adaln": (6 * depth + 2) * (width * width + width) if adaln else 0,
        "head": tokenizer.codebook_size * width + (tokenizer.codebook_size if adaln else width),
    }


def ar_block_parameters(model: ArModel) -> int:
    """Weights of the block matrices: 18 w² per block with AdaLN, as in VAR."""
    width = model.width
    other, mlp = (10, 2) if model.block == "adaln" else (4, 3)  # matrices w x w and w x hidden
    return model.depth * width * (other * width + mlp * model.hidden)


def ar_forward_flops(model: ArModel, tokenizer: Tokenizer, dense: bool = False) -> Count:
    """FLOPs of one teacher-forced forward pass over one image's tokens."""
    width, depth, length = model.width, model.depth, tokenizer.pyramid.length
    pairs = length * length if dense else length * (length + 1) // 2
    adaln = model.block == "adaln"
    channels = tokenizer.code_channels if model.embedding == "codes" else 0  # a table: no product
    return {
        "embedding": 2 * (length - 1) * channels * width,
        # Four w x w matrices (q, k, v, output), 2 FLOPs a multiply-add; then q k and weights x v.
        "attention_projections": depth * 8 * width * width * length,
        "attention_scores": depth * 4 * pairs * width,
        "mlp": depth * (4 if adaln else 6) * model.hidden * width * length,
        "adaln": (12 * depth + 4) * width * width if adaln else 0,  # per image
        "head": 2 * length * width * tokenizer.codebook_size,
    }


def ar_training_flops(model: ArModel, tokenizer: Tokenizer, dense: bool = False) -> Count:
    """FLOPs of forward and backward on one image. The input embedding needs no input gradient."""
    # The backward pass of a layer is two products: one for its weights, one for its input.
    forward = ar_forward_flops(model, tokenizer, dense)
    return {name: (2 if name == "embedding" else 3) * flops for name, flops in forward.items()}


def ar_batch_flops(
    model: ArModel, tokenizer: Tokenizer, guided: bool, images: int, computed: bool
) -> int:
    """FLOPs of sampling a batch with a KV cache, no decoder; `computed` includes padding rows."""
    # With a cache each visible pair of positions is computed once, as in one teacher-forced pass.
    rows = images * (2 if guided else 1)
    if computed:
        rows = max(rows, FEWEST_ROWS)
    return rows * sum(ar_forward_flops(model, tokenizer).values())


def ar_training_bytes(
    model: ArModel, tokenizer: Tokenizer, precision: Precision, recompute: bool = False
) -> float:
    """Estimated memory of one image's activations and logits in training."""
    length = tokenizer.pyramid.length
    activations = length * model.width * saved_bytes(model.depth, precision, recompute)
    return activations + length * tokenizer.codebook_size * _LOGITS_BYTES


def ar_sampling_bytes(model: ArModel, tokenizer: Tokenizer, guided: bool, images: int) -> int:
    """A lower bound: keys and values in 2 bytes, and one token's logits."""
    rows = max(FEWEST_ROWS, images * (2 if guided else 1))
    cached_numbers = 2 * model.depth * model.width * tokenizer.pyramid.length
    return rows * (cached_numbers * 2 + tokenizer.codebook_size * 4)
