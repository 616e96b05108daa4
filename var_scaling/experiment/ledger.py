"""What a trial costs: the columns of the results row that follow from its record alone."""

from var_scaling.accounting import COMPONENTS, FLOP_COMPONENTS, total
from var_scaling.accounting.tokenizer import classifier_flops, decoding_flops, encoding_flops
from var_scaling.experiment.scoring import FeatureNetwork, ReconstructionFloor, ScoredSet
from var_scaling.experiment.trial import ImportedModel, Trial


def model_ledger(thing: Trial | ImportedModel) -> dict[str, int]:
    """Parameters, and FLOPs of one image; units in the names. Known without any training."""
    family, spec, tokenizer = thing.family, thing.spec, thing.tokenizer
    parameters = family.parameters(spec)
    return {
        "params_total": total(parameters),
        "params_blocks": family.block_parameters(spec),
        **{f"params_{component}": parameters.get(component, 0) for component in COMPONENTS},
        "forward_flops": total(family.forward_flops(spec)),
        "sampling_flops": total(family.sampling_flops(spec)),
        "encoding_flops": encoding_flops(tokenizer),
        "decoding_flops": decoding_flops(tokenizer),
    }


def trial_ledger(trial: Trial) -> dict[str, int]:
    """All of it, and what the whole training takes, under each convention of counting."""
    family, spec = trial.family, trial.spec
    images, length = trial.images_seen, family.sequence_length(spec)
    known = model_ledger(trial)
    flops = family.training_flops(spec)
    dense = total(family.training_flops(spec, dense=True))
    return {
        **known,
        "tokens_seen": images * length,
        "images_seen": images,
        "train_flops": images * total(flops),
        **{f"train_flops_{name}": images * flops.get(name, 0) for name in FLOP_COMPONENTS},
        "train_flops_dense_mask": images * dense,
        "train_flops_6n_total": 6 * known["params_total"] * images * length,
        "train_flops_6n_blocks": 6 * known["params_blocks"] * images * length,
    }


def scoring_flops(config: ScoredSet | ReconstructionFloor | FeatureNetwork) -> int:
    """What drawing a set of samples, reconstructing images, or training a feature network takes;
    looking at the images apart.
    """
    if isinstance(config, FeatureNetwork):
        return 3 * config.steps * config.batch_size * classifier_flops(config.data.side)
    if isinstance(config, ReconstructionFloor):
        each = encoding_flops(config.tokenizer) + decoding_flops(config.tokenizer)
        return config.images * each
    trial, images = config.trial, config.scoring.count * config.trial.classes
    drawing = trial.family.batch_flops(trial.spec, config.sampling, images)
    return drawing + images * decoding_flops(trial.tokenizer)
