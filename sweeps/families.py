"""VAR, AR and DiT on equal terms: equal images, tokenizers of equal recipe, equal training FLOPs.

At each depth every arm may spend what VAR spends on 2,500 steps of 32 images. Learning rates are
those of `families_rates`. All samples are drawn without guidance and without filters.
"""

from sweeps.families_rates import ARMS, RATES, family_trial
from var_scaling.accounting import total
from var_scaling.config import TrainedTokenizer
from var_scaling.experiment import Sweep, Trial
from var_scaling.experiment.scoring import ExtractorName, Scoring
from var_scaling.models.ar.config import ArSampling
from var_scaling.models.base import ModelRecord
from var_scaling.models.dit.config import DitSampling
from var_scaling.models.var.config import VarSampling

SEEDS = {2: 3, 3: 3, 4: 3, 6: 1}  # depth: runs
OTHER_ARM = "ar"  # shown beside the better AR of `families_rates`, by one run of each size
VAR_STEPS = 2_500
UNGUIDED = (
    VarSampling(guidance=0, top_k=0, top_p=0),
    ArSampling(guidance=0),
    DitSampling(guidance=0, steps=25),
)
NETWORKS: tuple[ExtractorName, ...] = ("seeded", "classifier")


def step_flops(trial: Trial) -> int:
    """Of one step of a run, backward counted."""
    return trial.batch_size * total(trial.family.training_flops(trial.spec))


def budgeted(
    name: str, arm: str, model: ModelRecord, tokenizer: TrainedTokenizer, seed: int
) -> Trial:
    """A run that may spend what VAR of its depth spends in VAR_STEPS."""
    trial = family_trial(name, model, tokenizer, RATES[arm])
    first, scales = ARMS["var"]
    of_var = family_trial("var", first(model.depth), scales, RATES["var"])
    steps = round(VAR_STEPS * step_flops(of_var) / step_flops(trial))
    return trial.model_copy(update={"steps": steps, "seed": seed})


sweep = Sweep(
    name="families",
    question="Which family makes the best images of the same compute?",
    trials=tuple(
        budgeted(f"{arm}-d{depth}-s{seed}", arm, build(depth), tokenizer, seed)
        for arm, (build, tokenizer) in ARMS.items()
        for depth, runs in SEEDS.items()
        for seed in range(1 if arm == OTHER_ARM else runs)
    ),
    scorings=(
        Scoring(name="unguided", sampling=UNGUIDED, count=256, extractors=NETWORKS),
        Scoring(name="unguided-raw", sampling=UNGUIDED, count=256, extractors=NETWORKS, raw=True),
    ),
)
