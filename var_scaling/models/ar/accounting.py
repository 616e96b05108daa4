"""Parameters, FLOPs and memory of the AR transformer.

T tokens of an image are predicted from T inputs: the class first, the last token is not fed back.
"""

from var_scaling.accounting import FEWEST_ROWS, Count
from var_scaling.config import Tokenizer
from var_scaling.models.ar.config import ArModel
from var_scaling.recipe import Precision

# Bytes that a block keeps for the backward pass, by token and channel: as VAR's, whose block it is.
_KEPT, _KEPT_HALF = 100, 60
_LOGITS = 12  # bytes a token and code: logits, their float copy, their gradient


def has_levels(model: ArModel, tokenizer: Tokenizer) -> bool:
    """Whether the model has an embedding for each of the residual codes of a position."""
    return model.positions == "learned" or tokenizer.pyramid.scales > 1


def ar_parameters(model: ArModel, tokenizer: Tokenizer, classes: int) -> Count:
    """Trainable parameters by component; the sum equals `numel` over the module."""
    width, depth, pyramid = model.width, model.depth, tokenizer.pyramid
    adaln = model.block == "adaln"
    words = tokenizer.code_channels + 1 if model.embedding == "codes" else tokenizer.codebook_size
    places = pyramid.length if model.positions == "learned" else 0
    places += pyramid.scales if has_levels(model, tokenizer) else 0
    biases = 3 * width + (model.heads if model.normalised_attention else 0)
    hidden = model.hidden
    return {
        "embedding": (words + classes + 1 + places + adaln) * width,  # adaln: the start token
        "attention": depth * (4 * width * width + (biases if adaln else width)),
        "mlp": depth
        * (2 * hidden * width + hidden + width if adaln else 3 * hidden * width + width),
        "adaln": (6 * depth + 2) * (width * width + width) if adaln else 0,
        "head": tokenizer.codebook_size * width + (tokenizer.codebook_size if adaln else width),
    }


def ar_block_parameters(model: ArModel) -> int:
    """Weights of the block matrices: 18 w² a block with AdaLN, as VAR's."""
    width = model.width
    own = 10 * width + 2 * model.hidden if model.block == "adaln" else 4 * width + 3 * model.hidden
    return model.depth * width * own


def ar_forward_flops(model: ArModel, tokenizer: Tokenizer, dense: bool = False) -> Count:
    """FLOPs of one teacher-forced forward over one image's tokens."""
    width, depth, length = model.width, model.depth, tokenizer.pyramid.length
    pairs = length * length if dense else length * (length + 1) // 2
    adaln = model.block == "adaln"
    vectors = tokenizer.code_channels if model.embedding == "codes" else 0
    return {
        "embedding": 2 * (length - 1) * vectors * width,
        "attention_projections": depth * 8 * width * width * length,
        "attention_scores": depth * 4 * pairs * width,
        "mlp": depth * (4 if adaln else 6) * model.hidden * width * length,
        "adaln": (12 * depth + 4) * width * width if adaln else 0,  # once an image
        "head": 2 * length * width * tokenizer.codebook_size,
    }


def ar_training_flops(model: ArModel, tokenizer: Tokenizer, dense: bool = False) -> Count:
    """FLOPs of forward and backward on one image. The cached tokens need no gradient."""
    forward = ar_forward_flops(model, tokenizer, dense)
    return {name: (2 if name == "embedding" else 3) * flops for name, flops in forward.items()}


def ar_batch_flops(
    model: ArModel, tokenizer: Tokenizer, guided: bool, images: int, computed: bool
) -> int:
    """FLOPs of sampling a batch with cached keys and values, without the decoder."""
    rows = images * (2 if guided else 1)
    if computed:
        rows = max(rows, FEWEST_ROWS)
    return rows * sum(ar_forward_flops(model, tokenizer).values())


def ar_training_bytes(model: ArModel, tokenizer: Tokenizer, precision: Precision) -> float:
    """What one image in a training pass takes besides the weights: an estimate."""
    length = tokenizer.pyramid.length
    kept = _KEPT_HALF if precision in ("bf16", "fp16") else _KEPT
    return length * model.depth * model.width * kept + length * tokenizer.codebook_size * _LOGITS


def ar_sampling_bytes(model: ArModel, tokenizer: Tokenizer, guided: bool, images: int) -> int:
    """Less than what a batch takes: keys and values in 2 bytes, and one token's logits."""
    rows = max(FEWEST_ROWS, images * (2 if guided else 1))
    wide = 2 * model.depth * model.width * tokenizer.pyramid.length
    return rows * (wide * 2 + tokenizer.codebook_size * 4)
