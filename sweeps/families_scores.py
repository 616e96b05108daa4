"""How the comparison of `families` depends on sampling and tokenizers, at depth 4 and its budget.

Guidance: each arm on one grid. Small sets of one seed choose, larger ones of another are reported.
DiT by the number of its steps, and on the features before they are quantised; AR by its codebook;
VAR and DiT by how long their tokenizer was trained.
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
DIT_STEPS = (2, 5, 10, 50)  # besides the 25 of the other sets
CODEBOOKS = (128, 1_024)  # besides the 8,192 of `ar`
TOKENIZER_STEPS = (900, 2_400)  # besides the 9,600 of the others


def _others() -> tuple[Trial, ...]:
    """One run each of what differs in one thing from an arm."""
    on_f = tiny_dit(DEPTH).model_copy(update={"latents": "unquantized"})
    kinds: list[tuple[str, str, ModelRecord, TrainedTokenizer]] = [
        ("dit-features", "dit", on_f, ARMS["dit"][1])
    ]
    kinds += [
        (f"ar-{codes}", "ar", tiny_ar(DEPTH), one_scale_tokenizer(codes)) for codes in CODEBOOKS
    ]
    for steps in TOKENIZER_STEPS:
        t = scales_tokenizer(steps)
        kinds.append((f"var-t{steps}", "var", tiny_var(DEPTH), t))
        kinds.append((f"dit-t{steps}", "dit", tiny_dit(DEPTH), t))
    return tuple(budgeted(name, arm, model, t, 0) for name, arm, model, t in kinds)


def _guided(guidance: float) -> tuple[Scoring, Scoring]:
    """The set that serves to choose, and the one that is reported; without guidance of all."""
    sampling = tuple(one.model_copy(update={"guidance": guidance}) for one in UNGUIDED)
    choosing = Scoring(
        name=f"choose-g{guidance:g}",
        sampling=sampling,
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
    return choosing, reported


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
        *(one for guidance in GUIDANCE for one in _guided(guidance)),
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
