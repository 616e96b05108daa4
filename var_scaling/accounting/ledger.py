"""What a trial costs: the columns of the results row that follow from its record alone."""

from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import decoding_flops, encoding_flops
from var_scaling.accounting.transformer import (
    var_block_parameters,
    var_forward_flops,
    var_parameters,
    var_sampling_flops,
    var_training_flops,
)
from var_scaling.config import ImportedModel, Trial


def model_ledger(thing: Trial | ImportedModel) -> dict[str, int]:
    """Parameters, and FLOPs of one image; units in the names. Known without any training."""
    model, tokenizer = thing.model, thing.tokenizer
    parameters = var_parameters(model, tokenizer, thing.classes)
    return {
        "params_total": total(parameters),
        "params_blocks": var_block_parameters(model),
        **{f"params_{component}": count for component, count in parameters.items()},
        "forward_flops": total(var_forward_flops(model, tokenizer)),
        "sampling_flops": total(var_sampling_flops(model, tokenizer)),
        "encoding_flops": encoding_flops(tokenizer),
        "decoding_flops": decoding_flops(tokenizer),
    }


def trial_ledger(trial: Trial) -> dict[str, int]:
    """All of it, and what the whole training takes, under each convention of counting."""
    images, length = trial.images_seen, trial.tokenizer.pyramid.length
    known = model_ledger(trial)
    flops = var_training_flops(trial.model, trial.tokenizer)
    dense = total(var_training_flops(trial.model, trial.tokenizer, dense=True))
    return {
        **known,
        "tokens_seen": images * length,
        "images_seen": images,
        "train_flops": images * total(flops),
        **{f"train_flops_{component}": images * count for component, count in flops.items()},
        "train_flops_dense_mask": images * dense,
        "train_flops_6n_total": 6 * known["params_total"] * images * length,
        "train_flops_6n_blocks": 6 * known["params_blocks"] * images * length,
    }
