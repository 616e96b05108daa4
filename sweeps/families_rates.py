"""The best learning rate of each family and size, found with the same budget for all.

Everything else is what `families` compares: the images, the tokenizers and the models of each
family are defined here. The table of what came out is in docs/families.md.
"""

from var_scaling.config import TrainedTokenizer
from var_scaling.datasets import DeadLeaves
from var_scaling.experiment import Sweep, Trial
from var_scaling.ladder import tiny_optimiser, tiny_tokenizer
from var_scaling.models.ar.config import tiny_ar
from var_scaling.models.base import ModelRecord
from var_scaling.models.dit.config import tiny_dit
from var_scaling.models.var.config import tiny_var

CONSTANTS = (0.125, 0.25, 0.5, 1.0)  # rate = constant / width
DEPTHS = (2, 4, 6)
STEPS = 1_200
TOKENIZER_STEPS = 9_600  # reconstructions are then as near as other images (docs/families.md)
CODES = 8_192  # of AR on one scale

images = DeadLeaves(
    name="dead-leaves-0", side=16, train_images=80_000, validation_images=4_096, seed=0
)


def scales_tokenizer(steps: int) -> TrainedTokenizer:
    """VAR's, of 30 x 7 = 210 bits an image, trained for so many steps."""
    name = "multi-scale" if steps == TOKENIZER_STEPS else f"multi-scale-{steps}"
    return tiny_tokenizer(name, images, patch_nums=(1, 2, 3, 4), codebook_size=128, steps=steps)


def one_scale_tokenizer(codebook_size: int) -> TrainedTokenizer:
    """AR's, of 16 tokens an image. Of 8,192 codes (16 x 13 = 208 bits) k-means needs many more
    vectors than codes, and a moving average over more steps: a code is asked for once in 16.
    """
    name = "one-scale" if codebook_size == CODES else f"one-scale-{codebook_size}"
    t = tiny_tokenizer(
        name, images, patch_nums=(4,), codebook_size=codebook_size, steps=TOKENIZER_STEPS
    )
    if codebook_size < CODES:
        return t
    codebook = t.codebook.model_copy(update={"k_means_images": 4_096, "decay": 0.99})
    return t.model_copy(update={"codebook": codebook})


multi_scale = scales_tokenizer(TOKENIZER_STEPS)
one_scale = one_scale_tokenizer(CODES)
# 16 x 2 x 7 = 224 bits an image.
residual = tiny_tokenizer(
    "residual", images, patch_nums=(4, 4), codebook_size=128, steps=TOKENIZER_STEPS
)


def family_trial(
    name: str, model: ModelRecord, tokenizer: TrainedTokenizer, constant: float
) -> Trial:
    """One run of a family; only DiT averages its weights, as published, and keeps both."""
    return Trial(
        name=name,
        tokenizer=tokenizer,
        data=images,
        model=model,
        optimiser=tiny_optimiser(model.width, constant),
        batch_size=32,
        steps=STEPS,
        weight_average=0.995 if model.family == "dit" else 0.0,
    )


ARMS = {
    "var": (tiny_var, multi_scale),
    "ar": (tiny_ar, one_scale),
    "ar-residual": (tiny_ar, residual),
    "dit": (tiny_dit, multi_scale),
}

# Peak rate times width: what this sweep found best over its sizes (docs/families.md).
RATES = {"var": 0.25, "ar": 0.25, "ar-residual": 0.25, "dit": 0.25}

sweep = Sweep(
    name="families_rates",
    question="Which constant in rate = constant / width is best for each family and size?",
    trials=tuple(
        family_trial(f"{arm}-d{depth}-c{constant:g}", build(depth), tokenizer, constant)
        for arm, (build, tokenizer) in ARMS.items()
        for depth in DEPTHS
        for constant in CONSTANTS
    ),
)
