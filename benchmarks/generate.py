"""Time whole samples on a CPU, from class to pixels, against the released way and earlier versions.

    python benchmarks/generate.py [--code BEFORE .] [--cases d4 ...] [--seconds 6]

Noise, transformer with guidance, filters, decoder. Weights are random: speed does not depend on
them. released: released.py, one batch with one random generator. Ours draws each image from its own
seed, so that it does not depend on its batch. benchmarks/sampling.py compares the parts of the
transformer.
"""

from collections.abc import Iterator
from typing import Any

import torch
import turns
from tokenizing import frozen, loaded
from train import tokenizer_of, trial_of

from sweeps.quickstart import sweep
from var_scaling.accounting.tokenizer import tokenizer_flops
from var_scaling.experiment import Trial
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.sample import sample
from var_scaling.models.var.config import VarModel, VarSampling

SAMPLING = VarSampling(guidance=1.5, top_k=900, top_p=0.96)


def ours(trial: Trial, images: int) -> Iterator[Any]:
    model = trial.family.build(trial.spec, 0).eval().requires_grad_(False)
    tokenizer = loaded(trial.tokenizer)
    requests = [Request(number % trial.classes, number) for number in range(images)]
    seed = 0
    while True:
        seed += 1
        yield list(sample(trial.spec, model, tokenizer, requests, SAMPLING, seed, images))


def as_released(trial: Trial, images: int) -> Iterator[Any]:
    import released

    model: Any = trial.family.build(trial.spec, 0).eval().requires_grad_(False)
    vqvae, labels_B = frozen(trial.tokenizer), torch.arange(images) % trial.classes
    while True:
        yield released.sample(model, vqvae, labels_B, 1.5, SAMPLING.top_k, SAMPLING.top_p)


def case_of(name: str, trial: Trial, images: int) -> turns.Case:
    family, t = trial.family, trial.tokenizer
    decoder = tokenizer_flops(t)
    per_image = decoder["decoder"] + decoder["quant_convs"] // 2
    return turns.Case(
        name=f"{name}, {images} image{'s' * (images > 1)}",
        unit="batch",
        implementations={
            turns.OURS: lambda: ours(trial, images),
            "released": lambda: as_released(trial, images),
        },
        flops=family.batch_flops(trial.spec, SAMPLING, images) + images * per_image,
        bytes=family.sampling_bytes(trial.spec, SAMPLING, images),
    )


def cases() -> list[turns.Case]:
    d4 = trial_of(VarModel(depth=4, drop_path_per_depth=0.0), tokenizer_of((1, 2, 3, 4)), 32)
    return [
        case_of("d4, 64 px", d4, 32),
        case_of("d4, 64 px", d4, 1),
        *(case_of(f"quickstart {sweep.trials[d - 1].name}, 16 px", sweep.trials[d - 1], 64)
          for d in (1, 3, 6)),
        case_of("quickstart d6, 16 px", sweep.trials[5], 1),
    ]  # fmt: skip


if __name__ == "__main__":
    turns.main(__file__, str(__doc__), cases())
