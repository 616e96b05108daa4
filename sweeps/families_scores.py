"""How the comparison of `families` depends on sampling and tokenizers, at depth 4 and its budget.

Guidance: the same grid of weights for each arm. The weight is selected on small sets of one seed;
larger sets of another seed are reported. Other variants: DiT with other numbers of sampling steps
and on the features before quantisation; AR with other codebook sizes; VAR and DiT with tokenizers
that were trained for fewer steps.
"""

from sweeps.families import NETWORKS, UNGUIDED, budgeted
from sweeps.families_rates import ARMS, one_scale_tokenizer, scales_tokenizer
from var_scaling.config import TrainedTokenizer
from var_scaling.experiment import Sweep, Trial
from var_scaling.experiment.scoring import Scoring
from var_scaling.models.ar.config import tiny_ar
from var_scaling.models.base import ModelRecord
from var_scaling.models.dit.config import DitSampling, tiny_dit
from var_scaling.models.var.config import tiny_var

DEPTH, SEEDS = 4, 2
GUIDANCE = (0.0, 0.5, 1.5, 3.0)
DIT_STEPS = (2, 5, 10, 50)  # in addition to the 25 of the other sets
CODEBOOKS = (128, 1_024)  # in addition to the 8,192 of `ar`
TOKENIZER_STEPS = (900, 2_400)  # in addition to the 9,600 of the others


def _others() -> tuple[Trial, ...]:
    """Variants that differ from an arm in one setting, with one seed each."""
    on_features = tiny_dit(DEPTH).model_copy(update={"latents": "unquantized"})
    variants: list[tuple[str, str, ModelRecord, TrainedTokenizer]] = [
        ("dit-features", "dit", on_features, ARMS["dit"][1])
    ]
    variants += [
        (f"ar-{codes}", "ar", tiny_ar(DEPTH), one_scale_tokenizer(codes)) for codes in CODEBOOKS
    ]
    for steps in TOKENIZER_STEPS:
        t = scales_tokenizer(steps)
        variants.append((f"var-t{steps}", "var", tiny_var(DEPTH), t))
        variants.append((f"dit-t{steps}", "dit", tiny_dit(DEPTH), t))
    # Seed 0, as in the first run of each arm: only the named setting differs.
    return tuple(budgeted(name, arm, model, t, 0) for name, arm, model, t in variants)


def _guided(guidance: float) -> tuple[Scoring, Scoring]:
    """The set that is used for selection, and the one that is reported.

    The set without guidance is drawn from all trials, the others from the main ones.
    """
    sampling = tuple(s.model_copy(update={"guidance": guidance}) for s in UNGUIDED)
    selection = Scoring(
        name=f"choose-g{guidance:g}",
        sampling=sampling,
        # 64 x 8 classes = 512 images. With so few, DiT's better weight was missed (LOG.md).
        count=64,
        seed=1,
        chooses=True,
        extractors=NETWORKS,
        only=_names(_main),
    )
    reported = Scoring(
        name=f"g{guidance:g}",
        sampling=sampling,
        count=256,
        extractors=NETWORKS,
        only=_names(_main) if guidance else (),
    )
    return selection, reported


def _names(trials: tuple[Trial, ...]) -> tuple[str, ...]:
    return tuple(trial.name for trial in trials)


_main = tuple(
    budgeted(f"{arm}-s{seed}", arm, build(DEPTH), tokenizer, seed)
    for arm, (build, tokenizer) in ARMS.items()
    for seed in range(SEEDS)
)
sweep = Sweep(
    name="families_scores",
    question="How does the comparison depend on guidance, steps, codebooks and tokenizers?",
    trials=(*_main, *_others()),
    scorings=(
        *(scoring for guidance in GUIDANCE for scoring in _guided(guidance)),
        *(
            Scoring(
                name=f"steps-{steps}",
                sampling=(DitSampling(guidance=0, steps=steps),),
                count=256,
                extractors=NETWORKS,
                only=tuple(name for name in _names(_main) if name.startswith("dit")),
            )
            for steps in DIT_STEPS
        ),
    ),
)
