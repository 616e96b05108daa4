"""How fast a model samples and learns on this machine: timed, never judged.

Shapes: B images, L tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from var_scaling.accounting import total
from var_scaling.evaluation.bench import Bench
from var_scaling.evaluation.memory import PeakMemory, lacking, out_of_memory
from var_scaling.evaluation.rates import (
    Peaks,
    SamplingSpeed,
    TrainingSpeed,
    utilisation,
)
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.sample import rendered, sample
from var_scaling.models.base import Batch, ModelFamily, ModelSpec, SamplingRecord, StepDraws
from var_scaling.models.registry import family_of
from var_scaling.recipe import Optimiser, Precision
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import ScheduledOptimizer, precision_context

Row = TypeVar("Row", SamplingSpeed, TrainingSpeed)
_OPTIMISER = Optimiser(learning_rate=1e-4)  # any: the steps lead nowhere


@dataclass(frozen=True)
class Subject:
    """What is timed: a network, what it is built from, and the tokenizer below it."""

    spec: ModelSpec
    model: nn.Module
    tokenizer: MultiScaleVQVAE

    @property
    def family(self) -> ModelFamily:
        return family_of(self.spec.config)


# Sampling ----------------------------------------------------------------------------------------


def sampling_speeds(
    subject: Subject,
    ways: Sequence[tuple[Precision, float]],
    batches: Sequence[int],
    peaks: Peaks,
    bench: Bench,
    usual: SamplingRecord | None = None,
) -> Iterator[SamplingSpeed]:
    """Each of `ways` (precision, guidance) at each batch, the larger after the smaller; all else
    as in `usual`, or as the family has it.

    A batch that does not fit into memory, or that by the batch before it would take too long, is a
    row without numbers that says so.
    """
    family, spec = subject.family, subject.spec
    usual = usual or family.sampling()
    family.frames(spec, usual)  # raises where the settings do not fit the model
    for precision, guidance in ways:
        an_image = 0.0
        sampling = usual.model_copy(update={"guidance": guidance, "precision": precision})
        for batch in sorted(batches):
            missing = bench.refused(an_image * batch) or lacking(
                family.sampling_bytes(spec, sampling, batch), bench.device
            )
            row = SamplingSpeed(
                precision=precision,
                guidance=guidance,
                batch=batch,
                settings=sampling.besides(),
                missing=missing,
            )
            if missing is None:
                row = _or_missing(row, partial(_cell, subject, sampling, batch, peaks, bench))
            if row.whole is not None:
                an_image = row.whole.median_seconds / batch
            yield row


def _cell(
    subject: Subject, sampling: SamplingRecord, batch: int, peaks: Peaks, bench: Bench
) -> SamplingSpeed:
    family, spec = subject.family, subject.spec
    model, tokenizer = subject.model, subject.tokenizer
    asked = [Request(number % spec.classes, number) for number in range(batch)]
    labels_B = torch.tensor([request.label for request in asked], device=bench.device)
    blank_BZHH = tokenizer.quantize.blank(batch)
    watermark = PeakMemory(bench.device)
    whole = bench.timed(
        lambda: list(sample(spec, model, tokenizer, asked, sampling, 0, batch)), share=1 / 2
    )
    memory = watermark.read()
    with precision_context(sampling.precision, bench.device):
        transformer = bench.timed(
            lambda: family.network_passes(spec, model, tokenizer.quantize, labels_B, sampling),
            share=1 / 4,
            warm=True,
        )
    decoder = bench.timed(lambda: rendered(tokenizer, blank_BZHH), share=1 / 4, warm=True)
    needed, computed = (
        family.batch_flops(spec, sampling, batch, computed) for computed in (False, True)
    )
    assert isinstance(sampling.guidance, float)
    return SamplingSpeed(
        precision=sampling.precision,
        guidance=sampling.guidance,
        batch=batch,
        settings=sampling.besides(),
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


# Training ----------------------------------------------------------------------------------------


def training_speeds(
    subject: Subject,
    precisions: Sequence[Precision],
    micro_batches: Sequence[int],
    peaks: Peaks,
    bench: Bench,
) -> Iterator[TrainingSpeed]:
    """Training steps of another model of its sizes, which itself stays as it is."""
    family, spec = subject.family, subject.spec
    for precision in precisions:
        an_image = 0.0
        # Weights, gradients and AdamW's averages; of an estimate with a margin, half at the least.
        weights = 16 * sum(p.numel() for p in subject.model.parameters())
        activations = family.training_bytes(spec, precision) / 2
        for images in sorted(micro_batches):
            needed = weights + round(images * activations)
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
    family, spec, t = subject.family, subject.spec, subject.spec.tokenizer
    watermark = PeakMemory(bench.device)
    learner = family.build(spec, seed=0).to(bench.device)
    optimizer = ScheduledOptimizer(learner, _OPTIMISER, steps=1, precision=precision)
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(t.codebook_size, (images, t.pyramid.length), generator=generator)
    labels_B = torch.randint(spec.classes, (images,), generator=generator)
    batch = Batch(ids_BL.to(bench.device), labels_B.to(bench.device))
    draws = StepDraws(seed=0, step=0, images=images, share=slice(0, images))

    def step() -> None:
        with precision_context(precision, bench.device):
            loss = family.loss(spec, learner, subject.tokenizer.quantize, batch, draws)
        optimizer.backward(optimizer.scale(loss))
        optimizer.step(0)

    timing = bench.timed(step)
    seconds = timing.median_seconds
    flops = images * total(family.training_flops(spec))
    return TrainingSpeed(
        precision=precision,
        micro_batch=images,
        step=timing,
        images_per_second=images / seconds,
        tokens_per_second=images * family.sequence_length(spec) / seconds,
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
