"""VAR, AR and DiT on photographs: CIFAR-10 at 32 pixels, a grid of 8 x 8, equal training FLOPs.

At each depth the FLOP budget of every arm is that of VAR's training with 2,000 steps of 32 images
(1.3 epochs). AR uses two residual codes per position: one code per position with as many bits would
need a codebook of 65,536. Learning rates are the best ones for the images of `families_rates`; they
were not tuned on these images.
"""

from sweeps.families import NETWORKS, UNGUIDED, step_flops
from sweeps.families_rates import RATES
from var_scaling.config import TrainedTokenizer
from var_scaling.datasets import ImageFiles
from var_scaling.experiment import Sweep, Trial
from var_scaling.experiment.scoring import Scoring
from var_scaling.ladder import tiny_optimiser, tiny_tokenizer
from var_scaling.models.ar.config import tiny_ar
from var_scaling.models.base import ModelRecord
from var_scaling.models.dit.config import tiny_dit
from var_scaling.models.var.config import tiny_var

# The spread between seeds is pooled over sizes, so the costliest size can have a single run.
SEEDS = {2: 2, 3: 2, 4: 1}  # depth: runs
VAR_STEPS = 2_000

_images = ImageFiles(
    name="cifar10", side=32, classes=10, train_images=50_000, crops=2, enlarge=1.125, flip=True
)


def _tokenizer(name: str, patch_nums: tuple[int, ...]) -> TrainedTokenizer:
    return tiny_tokenizer(name, _images, patch_nums=patch_nums, codebook_size=256, steps=3_000)


# Bits per image: 130 x 8 = 1,040 and 128 x 8 = 1,024.
_scales = _tokenizer("cifar10-scales", (1, 2, 3, 4, 6, 8))
_residual = _tokenizer("cifar10-residual", (8, 8))
_ARMS = {
    "var": (tiny_var, _scales),
    "ar-residual": (tiny_ar, _residual),
    "dit": (tiny_dit, _scales),
}


def _trial(name: str, arm: str, model: ModelRecord, tokenizer: TrainedTokenizer) -> Trial:
    return Trial(
        name=name,
        tokenizer=tokenizer,
        data=_images,
        model=model,
        optimiser=tiny_optimiser(model.width, RATES[arm]),
        batch_size=32,
        steps=VAR_STEPS,
        # See families_rates.family_trial.
        weight_average=0.995 if model.family == "dit" else 0.0,
    )


def _budgeted(arm: str, depth: int, seed: int) -> Trial:
    build, tokenizer = _ARMS[arm]
    trial = _trial(f"{arm}-d{depth}-s{seed}", arm, build(depth), tokenizer)
    budget = VAR_STEPS * step_flops(_trial("var", "var", tiny_var(depth), _scales))
    return trial.model_copy(update={"steps": round(budget / step_flops(trial)), "seed": seed})


sweep = Sweep(
    name="families_cifar10",
    question="Which family makes the best photographs of the same compute?",
    trials=tuple(
        _budgeted(arm, depth, seed)
        for arm in _ARMS
        for depth, runs in SEEDS.items()
        for seed in range(runs)
    ),
    # 205 x 10 classes: about the 2,048 samples of `families`.
    scorings=(
        Scoring(name="unguided", sampling=UNGUIDED, count=205, extractors=NETWORKS),
        Scoring(name="unguided-raw", sampling=UNGUIDED, count=205, extractors=NETWORKS, raw=True),
    ),
)
