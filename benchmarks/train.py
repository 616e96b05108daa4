"""Time a training step of transformers on a CPU, against the released way and earlier versions.

    python benchmarks/train.py [--code BEFORE .] [--cases d4 ...] [--seconds 6]

A step goes from token ids to updated weights: teacher input, forward, backward, clipping, AdamW.
released: VAR's released implementation on the same parameters (released.py), without statistics.
released, from images: the same, and each batch is first tokenized, as the released trainer does.
Ours reads cached tokens. Sizes: the quickstart's, 64 and 256 pixels, and tiny AR and DiT.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import turns
from torch import Tensor, nn

from sweeps.quickstart import sweep
from var_scaling.accounting import total
from var_scaling.config import ImportedTokenizer, Tokenizer
from var_scaling.experiment import Trial
from var_scaling.ladder import tiny_optimiser
from var_scaling.models.ar.config import tiny_ar
from var_scaling.models.dit.config import tiny_dit
from var_scaling.models.var.config import VarModel
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.optim import ScheduledOptimizer, adamw
from var_scaling.training.trial import batch_loss

QUICK = sweep.trials[0]
ROWS = 4096  # images of the cache


class Tokens:
    """Random tokens in place of a token cache: the time of a step does not depend on them."""

    def __init__(self, t: Tokenizer, classes: int):
        generator = np.random.default_rng(0)
        self.images = ROWS
        self.tokens = generator.integers(t.codebook_size, size=(ROWS, t.pyramid.length))
        self.tokens = self.tokens.astype(np.uint16)
        self.labels = generator.integers(classes, size=ROWS)

    def batch(self, rows: np.ndarray, _epochs: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.tokens[rows].astype(np.int64)), torch.from_numpy(
            self.labels[rows]
        )


def our_steps(trial: Trial) -> Iterator[None]:
    model = trial.family.build(trial.spec, 0)
    if hasattr(model, "latent_deviation_Z"):
        model.latent_deviation_Z.fill_(1)
    quantizer = Quantizer(trial.tokenizer).requires_grad_(False)
    optimizer = ScheduledOptimizer(model, trial.optimiser, trial.steps, trial.precision)
    tokens: Any = Tokens(trial.tokenizer, trial.classes)
    step = 0
    while True:
        loss = batch_loss(trial, model, quantizer, tokens, step, slice(0, trial.batch_size))
        optimizer.backward(optimizer.scale(loss))
        optimizer.step(step)
        step = (step + 1) % trial.steps
        yield


def released_steps(trial: Trial, from_images: bool = False) -> Iterator[None]:
    from released import Released, encode

    t, classes = trial.tokenizer, trial.classes
    vqvae = MultiScaleVQVAE(t).eval().requires_grad_(False)
    model = trial.family.build(trial.spec, 0)
    optimizer, released = adamw(model, trial.optimiser), Released(model)
    parameters, tokens = list(model.parameters()), Tokens(t, classes)
    step, images = 0, torch.rand(trial.batch_size, 3, t.side, t.side) * 2 - 1
    while True:
        rows = np.arange(step * trial.batch_size, (step + 1) * trial.batch_size) % ROWS
        ids_BL, labels_B = tokens.batch(rows, None)
        dropped_B = torch.rand(trial.batch_size) < trial.class_dropout_prob
        labels_B = torch.where(dropped_B, classes, labels_B)
        with torch.no_grad():
            if from_images:
                ids_BL = torch.cat(encode(vqvae.quantize, vqvae.features(images)), dim=1)
            input_BLZ = vqvae.quantize.teacher_input(ids_BL)
        logits_BLV = released(labels_B, input_BLZ)
        F.cross_entropy(logits_BLV.view(-1, t.codebook_size), ids_BL.view(-1)).backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        yield


def tokenizer_of(patch_nums: tuple[int, ...]) -> ImportedTokenizer:
    """The released architecture with 32 instead of 160 channels."""
    pyramid = Pyramid(patch_nums=patch_nums)
    return ImportedTokenizer(name="random", pyramid=pyramid, channels=32, sha256="0" * 64)


def trial_of(model: Any, t: Tokenizer, batch: int) -> Trial:
    # Only the number of classes of the data matters: the tokens are random.
    data = QUICK.data.model_copy(update={"side": t.side, "name": f"side{t.side}"})
    return Trial(
        name="timed", tokenizer=t, data=data, model=model, optimiser=tiny_optimiser(model.width),
        batch_size=batch, steps=10_000,
    )  # fmt: skip


def case_of(name: str, trial: Trial, *others: str) -> turns.Case:
    ways = {
        "released": lambda: released_steps(trial),
        "released, from images": lambda: released_steps(trial, from_images=True),
    }
    return turns.Case(
        name=name,
        unit="step",
        implementations={turns.OURS: lambda: our_steps(trial)} | {way: ways[way] for way in others},
        flops=trial.batch_size * total(trial.family.training_flops(trial.spec)),
        bytes=trial.batch_size * trial.family.training_bytes(trial.spec, "fp32"),
    )


def cases() -> list[turns.Case]:
    small, paper = tokenizer_of((1, 2, 3, 4)), tokenizer_of(PAPER_256)
    d4 = trial_of(VarModel(depth=4, drop_path_per_depth=0.0), small, 32)
    d6 = trial_of(VarModel(depth=6, drop_path_per_depth=0.0), paper, 4)
    quick = QUICK.tokenizer
    raster = quick.model_copy(update={"pyramid": Pyramid(patch_nums=(4,)), "name": "raster"})
    return [
        case_of("d4, 64 px, batch 32", d4, "released", "released, from images"),
        case_of("d6, 256 px, batch 4", d6, "released"),
        *(case_of(f"quickstart {trial.name}", trial, "released") for trial in sweep.trials),
        case_of("AR d4, 16 px", trial_of(tiny_ar(4), raster, 32)),
        case_of("DiT d4, 16 px", trial_of(tiny_dit(4), quick, 32)),
    ]


if __name__ == "__main__":
    turns.main(__file__, str(__doc__), cases())
