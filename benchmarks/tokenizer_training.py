"""Time a training step of a tokenizer on a CPU, against the usual way and earlier versions.

    python benchmarks/tokenizer_training.py [--code BEFORE .] [--seconds 6]

Squared error and quantisation loss, codes that are moving averages, no critic. usual: the same
modules with images in torch's default memory format and its default allocator. The released
training code of the tokenizer is not public.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import turns
from torch import nn

from sweeps.quickstart import sweep
from var_scaling.accounting.tokenizer import tokenizer_train_flops
from var_scaling.config import TrainedTokenizer
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.codebook import CodebookUpdater
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import adamw
from var_scaling.training.tokenizer import _TokenizerTrainer
from var_scaling.training.world import World


def pixels_of(t: TrainedTokenizer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (t.batch_size, t.side, t.side, 3)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def our_steps(t: TrainedTokenizer) -> Iterator[Any]:
    trainer, pixels = _TokenizerTrainer(t, None, World()), pixels_of(t)
    trainer.codebook.codes_VC.normal_()
    step = t.codebook.starts_at
    while True:
        trainer.train_step(to_unit(pixels), step)
        step = t.codebook.starts_at + (step + 1) % (t.steps - t.codebook.starts_at)
        yield


def usual_steps(t: TrainedTokenizer) -> Iterator[Any]:
    model, pixels = MultiScaleVQVAE(t), pixels_of(t)
    codebook = CodebookUpdater(model.quantize, t.codebook, t.seed)
    codebook.codes_VC.normal_()
    optimizer, parameters = adamw(model, t.optimiser), list(model.parameters())
    step = 0
    while True:
        images = to_unit(pixels).contiguous()
        rebuilt, quantized = model(images, t.losses.commitment, True)
        codebook.update(quantized, step)
        (F.mse_loss(rebuilt, images) + quantized.loss).backward()
        nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        yield


def cases() -> list[turns.Case]:
    tiny = sweep.trials[0].tokenizer
    data = tiny.data.model_copy(update={"side": 64, "name": "side64"})
    small = TrainedTokenizer(
        name="small", data=data, pyramid=Pyramid(patch_nums=(1, 2, 3, 4)), channels=32,
        codebook=tiny.codebook, optimiser=tiny.optimiser, batch_size=32, steps=900,
    )  # fmt: skip
    return [
        turns.Case(
            name=f"{name}, batch 32",
            unit="step",
            implementations={
                turns.OURS: lambda t=t: our_steps(t), "usual": lambda t=t: usual_steps(t),
            },
            flops=tokenizer_train_flops(t, 1),
        )
        for name, t in (("16 px", tiny), ("64 px", small))
    ]  # fmt: skip


if __name__ == "__main__":
    turns.main(__file__, str(__doc__), cases())
