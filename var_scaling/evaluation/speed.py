"""How fast a model samples and learns on this machine: timed, never judged.

Shapes: B images, S tokens of a scale, L of the pyramid, Z code channels, V codes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from var_scaling.accounting import total
from var_scaling.accounting.sampling import sampled_flops
from var_scaling.accounting.transformer import var_training_flops
from var_scaling.config import Tokenizer
from var_scaling.evaluation.bench import Bench
from var_scaling.evaluation.memory import Watermark, lacking, out_of_memory
from var_scaling.evaluation.rates import (
    Peaks,
    SamplingSpeed,
    TrainingSpeed,
    utilisation,
)
from var_scaling.generation.sample import rendered, sample
from var_scaling.generation.settings import Request, Sampling
from var_scaling.generation.walk import CachedVAR
from var_scaling.models.var import VAR, drop_path_factors
from var_scaling.recipe import Optimiser, Precision
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import Descent, arithmetic

Row = TypeVar("Row", SamplingSpeed, TrainingSpeed)
_OPTIMISER = Optimiser(learning_rate=1e-4)  # any: the steps lead nowhere


@dataclass(frozen=True)
class Subject:
    """What is timed: a model, the tokenizer below it, and that one's record."""

    model: VAR
    tokenizer: MultiScaleVQVAE
    t: Tokenizer


# Sampling ----------------------------------------------------------------------------------------


def sampling_speeds(
    subject: Subject,
    ways: Sequence[tuple[Precision, float]],
    batches: Sequence[int],
    peaks: Peaks,
    bench: Bench,
) -> Iterator[SamplingSpeed]:
    """Each of `ways` (precision, guidance) at each batch, the larger after the smaller.

    A batch that does not fit into memory, or that by the batch before it would take too long, is a
    row without numbers that says so.
    """
    model, t = subject.model, subject.t
    for precision, guidance in ways:
        an_image = 0.0
        for batch in sorted(batches):
            sampling = Sampling(guidance=guidance, precision=precision)
            weights = [at.guidance for at in sampling.steps(t.pyramid.scales)]
            missing = bench.refused(an_image * batch) or lacking(
                _sampling_bytes(model, t, weights, batch), bench.device
            )
            row = SamplingSpeed(
                precision=precision, guidance=guidance, batch=batch, missing=missing
            )
            if missing is None:
                row = _or_missing(row, partial(_cell, subject, sampling, batch, peaks, bench))
            if row.whole is not None:
                an_image = row.whole.median_seconds / batch
            yield row


def _cell(
    subject: Subject, sampling: Sampling, batch: int, peaks: Peaks, bench: Bench
) -> SamplingSpeed:
    model, tokenizer, t = subject.model, subject.tokenizer, subject.t
    weights = [at.guidance for at in sampling.steps(t.pyramid.scales)]
    asked = [Request(number % model.classes, number) for number in range(batch)]
    labels_B = torch.tensor([request.label for request in asked], device=bench.device)
    blank_BZHH = tokenizer.quantize.blank(batch)
    shown = [blank_BZHH.new_zeros(batch, S, t.code_channels) for S in t.pyramid.lengths]
    watermark = Watermark(bench.device)
    whole = bench.timed(
        lambda: list(sample(model, tokenizer, asked, sampling, 0, batch)), share=1 / 2
    )
    memory = watermark.read()
    with arithmetic(sampling.precision, bench.device):
        cached = _walked(model, t, labels_B, weights, shown)
        first_rows = len(cached.cond_RC)
        del cached
        transformer = bench.timed(
            lambda: _walked(model, t, labels_B, weights, shown), share=1 / 4, warm=True
        )
    decoder = bench.timed(lambda: rendered(tokenizer, blank_BZHH), share=1 / 4, warm=True)
    needed, computed = (
        sampled_flops(model.config, t, weights, batch, untold)
        for untold in (int(any(weights)), first_rows - batch)
    )
    assert isinstance(sampling.guidance, float)
    return SamplingSpeed(
        precision=sampling.precision,
        guidance=sampling.guidance,
        batch=batch,
        whole=whole,
        transformer=transformer,
        decoder=decoder,
        images_per_second=batch / whole.median_seconds,
        model_flops=needed,
        computed_flops=computed,
        transformer_mfu=utilisation(
            needed, transformer.median_seconds, peaks.get(sampling.precision)
        ),
        memory=memory,
    )


@torch.no_grad()
def _walked(
    model: VAR, t: Tokenizer, labels_B: Tensor, weights: list[float], shown: list[Tensor]
) -> CachedVAR:
    """The transformer's part of a sample: what it is shown changes no second of it."""
    cached = CachedVAR(model, t.pyramid, labels_B, weights)
    for k, shown_BSZ in enumerate(shown):
        cached.logits(k, shown_BSZ if k else None)
    return cached


def _sampling_bytes(model: VAR, t: Tokenizer, weights: list[float], batch: int) -> int:
    """Less than what a batch takes: keys and values, and the finest logits with their order."""
    rows = 2 * batch if any(weights[1:]) else batch
    wide = 2 * model.config.depth * model.config.width * t.pyramid.length  # a half's 2 bytes each
    return rows * wide * 2 + batch * t.pyramid.lengths[-1] * t.codes * (4 + 8)


# Training ----------------------------------------------------------------------------------------


def training_speeds(
    subject: Subject,
    precisions: Sequence[Precision],
    micro_batches: Sequence[int],
    peaks: Peaks,
    bench: Bench,
) -> Iterator[TrainingSpeed]:
    """Training steps of another model of its sizes, which itself stays as it is."""
    model, t = subject.model, subject.t
    for precision in precisions:
        an_image = 0.0
        for images in sorted(micro_batches):
            needed = 16 * sum(p.numel() for p in model.parameters())  # gradients, AdamW's averages
            needed += images * t.pyramid.length * t.codes * 4
            missing = bench.refused(an_image * images) or lacking(needed, bench.device)
            row = TrainingSpeed(precision=precision, micro_batch=images, missing=missing)
            if missing is None:
                row = _or_missing(row, partial(_steps, subject, precision, images, peaks, bench))
            if row.step is not None:
                an_image = row.step.median_seconds / images
            yield row


def _steps(
    subject: Subject, precision: Precision, images: int, peaks: Peaks, bench: Bench
) -> TrainingSpeed:
    model, t = subject.model, subject.t
    watermark = Watermark(bench.device)
    learner = VAR(model.config, t, model.classes, seed=0).to(bench.device)
    descent = Descent(learner, _OPTIMISER, steps=1, precision=precision)
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(t.codes, (images, t.pyramid.length), generator=generator)
    labels_B = torch.randint(model.classes, (images,), generator=generator).to(bench.device)
    kept = drop_path_factors(model.config, images, generator)
    keep_D2B = None if kept is None else kept.to(bench.device)
    ids_BL = ids_BL.to(bench.device)

    def step() -> None:
        with arithmetic(precision, bench.device):
            with torch.no_grad(), torch.autocast(bench.device.type, enabled=False):
                shown_BLZ = subject.tokenizer.quantize.teacher_input(ids_BL)
            logits_BLV = learner(labels_B, shown_BLZ, keep_D2B)
            loss = F.cross_entropy(logits_BLV.flatten(0, 1).float(), ids_BL.flatten())
        descent.backward(descent.scale(loss))
        descent.step(0)

    timing = bench.timed(step)
    seconds = timing.median_seconds
    flops = images * total(var_training_flops(model.config, t))
    return TrainingSpeed(
        precision=precision,
        micro_batch=images,
        step=timing,
        images_per_second=images / seconds,
        tokens_per_second=images * t.pyramid.length / seconds,
        model_flops=flops,
        mfu=utilisation(flops, seconds, peaks.get(precision)),
        memory=watermark.read(),
    )


def _or_missing(row: Row, measure: Callable[[], Row]) -> Row:
    """What `measure` finds, or `row` with the word that there was too little memory."""
    try:
        return measure()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # what the attempt had taken; of no effect without a GPU
    return row.model_copy(update={"missing": "out of memory"})
