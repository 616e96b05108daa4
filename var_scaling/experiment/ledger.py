"""Costs of a trial: the columns of its results row that follow from its record alone."""

from var_scaling.accounting import COMPONENTS, FLOP_COMPONENTS, total
from var_scaling.accounting.tokenizer import classifier_flops, decoding_flops, encoding_flops
from var_scaling.experiment.scoring import FeatureNetwork, ReconstructionFloor, ScoredSet
from var_scaling.experiment.trial import ImportedModel, Trial
from var_scaling.recipe import Precision


def model_ledger(generator: Trial | ImportedModel) -> dict[str, int]:
    """Parameters and FLOPs per image, by column name; no training is needed."""
    family, spec, tokenizer = generator.family, generator.spec, generator.tokenizer
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
    """`model_ledger`, and the FLOPs of the whole training under each counting convention."""
    family, spec = trial.family, trial.spec
    images, length = trial.images_seen, family.sequence_length(spec)
    per_image = model_ledger(trial)
    flops = family.training_flops(spec)
    dense = total(family.training_flops(spec, dense=True))
    return {
        **per_image,
        "tokens_seen": images * length,
        "images_seen": images,
        "train_flops": images * total(flops),
        **{f"train_flops_{name}": images * flops.get(name, 0) for name in FLOP_COMPONENTS},
        "train_flops_dense_mask": images * dense,
        # C = 6 N D (arXiv 2001.08361): 2 FLOPs forward and 4 backward for each weight and token.
        # Laws can be refitted under each convention (docs/laws.md).
        "train_flops_6n_total": 6 * per_image["params_total"] * images * length,
        "train_flops_6n_blocks": 6 * per_image["params_blocks"] * images * length,
    }


def scoring_precision(config: ScoredSet | ReconstructionFloor | FeatureNetwork) -> Precision:
    """The precision of most FLOPs of `scoring_flops`."""
    if isinstance(config, ScoredSet):
        return config.sampling.precision
    # Of encoding and decoding, the slower one: the decoder runs in fp32, like a feature network.
    return "fp32"


def scoring_flops(config: ScoredSet | ReconstructionFloor | FeatureNetwork) -> int:
    """FLOPs of sampling a set, reconstructing images, or training a feature network; without
    those of the feature extractor.
    """
    if isinstance(config, FeatureNetwork):
        # 3: the backward pass costs twice the forward pass.
        return 3 * config.steps * config.batch_size * classifier_flops(config.data.side)
    if isinstance(config, ReconstructionFloor):
        per_image = encoding_flops(config.tokenizer) + decoding_flops(config.tokenizer)
        return config.images * per_image
    trial, images = config.trial, config.scoring.count * config.trial.classes
    sampling = trial.family.batch_flops(trial.spec, config.sampling, images)
    return sampling + images * decoding_flops(trial.tokenizer)
