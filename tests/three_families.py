"""A sweep of two sizes of each family, with tiny images and tokenizers; it takes seconds."""

from conftest import images, tokenizer

from var_scaling.experiment import Sweep, Trial
from var_scaling.experiment.scoring import Scoring
from var_scaling.ladder import tiny_optimiser
from var_scaling.models.ar.config import ArSampling, tiny_ar
from var_scaling.models.base import ModelRecord
from var_scaling.models.dit.config import DitSampling, tiny_dit
from var_scaling.models.var.config import VarSampling, tiny_var
from var_scaling.pyramid import Pyramid

MULTI_SCALE = tokenizer(steps=20)
ONE_SCALE = tokenizer(
    name="one-scale", pyramid=Pyramid(patch_nums=(4,)), codebook_size=64, steps=20
)
RESIDUAL = tokenizer(name="residual", pyramid=Pyramid(patch_nums=(4, 4)), steps=20)


PLAIN = (VarSampling(guidance=0), ArSampling(guidance=0), DitSampling(guidance=0, steps=5))
F = {"latents": "unquantized"}


def family_trial(name: str, model: ModelRecord, t, **changes) -> Trial:
    settings = {
        "name": f"{name}-d{model.depth}",
        "tokenizer": t,
        "data": images(),
        "model": model,
        "optimiser": tiny_optimiser(model.width),
        "batch_size": 8,
        "steps": 12,
        "evaluations": 2,
    }
    return Trial(**{**settings, **changes})


def trials(depth: int) -> tuple[Trial, ...]:
    return (
        family_trial("var", tiny_var(depth), MULTI_SCALE),
        family_trial("ar", tiny_ar(depth), ONE_SCALE),
        family_trial("residual", tiny_ar(depth), RESIDUAL),
        family_trial("dit", tiny_dit(depth), MULTI_SCALE, weight_average=0.9),
        family_trial("features", tiny_dit(depth).model_copy(update=F), MULTI_SCALE),
    )


sweep = Sweep(
    name="three",
    question="Does everything take every family?",
    trials=(*trials(1), *trials(2)),
    scorings=(
        Scoring(name="plain", sampling=PLAIN, count=2, extractors=("seeded", "classifier")),
        Scoring(name="plain-raw", sampling=PLAIN, count=2, raw=True),
        Scoring(name="few", sampling=(DitSampling(steps=2),), count=2, only=("dit-d2",)),
    ),
)
