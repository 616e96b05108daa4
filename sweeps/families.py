"""Compare VAR, AR and DiT with equal images, tokenizer recipes and training FLOPs.

At each depth the FLOP budget of every arm is that of VAR's training with 2,500 steps of 32 images.
Learning rates are those found by `families_rates`. All samples are drawn without guidance and
without filters.
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

# The spread between seeds is pooled over sizes, so the costliest size can have a single run.
SEEDS = {2: 3, 3: 3, 4: 3, 6: 1}  # depth: runs
# `families_rates` found ar-residual better; this arm is for comparison, with one seed per depth.
OTHER_ARM = "ar"
# As in `quickstart`: one epoch.
VAR_STEPS = 2_500
# 0 disables top-k and top-p, which VAR's defaults use.
UNGUIDED = (
    VarSampling(guidance=0, top_k=0, top_p=0),
    ArSampling(guidance=0),
    DitSampling(guidance=0, steps=25),
)
NETWORKS: tuple[ExtractorName, ...] = ("seeded", "classifier")


def step_flops(trial: Trial) -> int:
    """FLOPs of one training step, backward pass included."""
    return trial.batch_size * total(trial.family.training_flops(trial.spec))


def budgeted(
    name: str, arm: str, model: ModelRecord, tokenizer: TrainedTokenizer, seed: int
) -> Trial:
    """A trial whose number of steps uses the FLOPs of VAR_STEPS of VAR at the same depth."""
    trial = family_trial(name, model, tokenizer, RATES[arm])
    build_var, scales = ARMS["var"]
    var_trial = family_trial("var", build_var(model.depth), scales, RATES["var"])
    # Whole steps, so the costs of the arms differ by about 0.1 %.
    steps = round(VAR_STEPS * step_flops(var_trial) / step_flops(trial))
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
    # 256 x 8 classes = 2,048 samples. A standard error needs 4 images for each feature, and the
    # classifier has 224 features.
    scorings=(
        Scoring(name="unguided", sampling=UNGUIDED, count=256, extractors=NETWORKS),
        # Only DiT has a weight average, so this set is drawn from DiT alone.
        Scoring(name="unguided-raw", sampling=UNGUIDED, count=256, extractors=NETWORKS, raw=True),
    ),
)
