"""Find the best learning rate of each family and size, with the same budget for all.

Images, tokenizers and models are those that `families` compares; they are defined here. The results
are in docs/families.md.
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
STEPS = 1_200  # about half of those of `families`
# With this many steps the distance of the reconstructions to held-out images is about that of other
# real images (docs/families.md).
TOKENIZER_STEPS = 9_600
CODES = 8_192  # codebook size of AR with one scale

images = DeadLeaves(
    name="dead-leaves-0", side=16, train_images=80_000, validation_images=4_096, seed=0
)


def scales_tokenizer(steps: int) -> TrainedTokenizer:
    """The tokenizer of VAR and DiT, 30 x 7 = 210 bits per image, trained for `steps`."""
    name = "multi-scale" if steps == TOKENIZER_STEPS else f"multi-scale-{steps}"
    return tiny_tokenizer(name, images, patch_nums=(1, 2, 3, 4), codebook_size=128, steps=steps)


def one_scale_tokenizer(codebook_size: int) -> TrainedTokenizer:
    """The tokenizer of AR with 16 tokens per image.

    For 8,192 codes (16 x 13 = 208 bits) k-means needs more images, because it needs many more
    vectors than codes, and the moving average of the codes a slower decay, because a code is
    selected only about once in 16 steps.
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
# 16 x 2 x 7 = 224 bits per image.
residual = tiny_tokenizer(
    "residual", images, patch_nums=(4, 4), codebook_size=128, steps=TOKENIZER_STEPS
)


def family_trial(
    name: str, model: ModelRecord, tokenizer: TrainedTokenizer, constant: float
) -> Trial:
    """One trial of a family. Only DiT uses a weight average, as published."""
    return Trial(
        name=name,
        tokenizer=tokenizer,
        data=images,
        model=model,
        optimiser=tiny_optimiser(model.width, constant),
        batch_size=32,
        steps=STEPS,
        # The published 0.9999 averages over about 10,000 steps, more than this whole training;
        # 0.995 over about 200.
        weight_average=0.995 if model.family == "dit" else 0.0,
    )


# 208 to 224 bits per image in all arms. DiT reads the sum of all scales, so it can use VAR's
# tokenizer, and both have the same reconstruction floor.
ARMS = {
    "var": (tiny_var, multi_scale),
    "ar": (tiny_ar, one_scale),
    "ar-residual": (tiny_ar, residual),
    "dit": (tiny_dit, multi_scale),
}

# Peak learning rate times width: the best of this sweep over all sizes (docs/families.md).
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
