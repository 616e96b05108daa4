"""Speed of sampling and training of a model on this machine; quality is not measured.

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
from var_scaling.evaluation.memory import PeakMemory, memory_shortage, out_of_memory
from var_scaling.evaluation.rates import (
    Peaks,
    SamplingSpeed,
    TrainingSpeed,
    utilisation,
)
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.sample import cast_once, decode_images, sample
from var_scaling.models.base import Batch, ModelFamily, ModelSpec, SamplingRecord, StepDraws
from var_scaling.models.registry import family_of
from var_scaling.models.static_calls import static_calls
from var_scaling.recipe import Optimiser, Precision
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import ScheduledOptimizer, precision_context

Row = TypeVar("Row", SamplingSpeed, TrainingSpeed)
_OPTIMISER = Optimiser(learning_rate=1e-4)  # arbitrary: the trained weights are discarded


@dataclass(frozen=True)
class Subject:
    """The model to time: a network, its spec, and its tokenizer."""

    spec: ModelSpec
    model: nn.Module
    tokenizer: MultiScaleVQVAE

    @property
    def family(self) -> ModelFamily:
        return family_of(self.spec.config)


# Sampling ----------------------------------------------------------------------------------------


def sampling_speeds(
    subject: Subject,
    settings: Sequence[tuple[Precision, float]],
    batches: Sequence[int],
    peaks: Peaks,
    bench: Bench,
    base: SamplingRecord | None = None,
    cuda_graphs: bool = True,
) -> Iterator[SamplingSpeed]:
    """One row for each of `settings` (precision, guidance) and each batch size, in rising order.

    `base` has the other sampling settings; None: the defaults of the family. A batch that does not
    fit into memory, or that takes too long by extrapolation from the previous one, is a row
    without numbers whose `missing` has the reason. `cuda_graphs`: whether a GPU uses them.
    """
    family, spec = subject.family, subject.spec
    base = base or family.sampling()
    family.frames(spec, base)  # raises if the settings do not fit the model
    for precision, guidance in settings:
        seconds_per_image = 0.0
        sampling = base.model_copy(update={"guidance": guidance, "precision": precision})
        # In rising order: the time of a batch is extrapolated from the one before.
        for batch in sorted(batches):
            missing = bench.skip_reason(seconds_per_image * batch) or memory_shortage(
                family.sampling_bytes(spec, sampling, batch), bench.device
            )
            row = SamplingSpeed(
                precision=precision,
                guidance=guidance,
                batch=batch,
                settings=sampling.other_settings(),
                missing=missing,
            )
            if missing is None:
                # The estimate above is a lower bound, so memory can still run out.
                row = or_missing(
                    row,
                    partial(_time_sampling, subject, sampling, batch, peaks, bench, cuda_graphs),
                )
            if row.whole is not None:
                seconds_per_image = row.whole.median_seconds / batch
            yield row


def _time_sampling(
    subject: Subject,
    sampling: SamplingRecord,
    batch: int,
    peaks: Peaks,
    bench: Bench,
    cuda_graphs: bool,
) -> SamplingSpeed:
    family, spec = subject.family, subject.spec
    model, tokenizer = subject.model, subject.tokenizer
    # Classes in turn. Index and class give each image its own random numbers.
    requests = [Request(number % spec.classes, number) for number in range(batch)]
    labels_B = torch.tensor([request.label for request in requests], device=bench.device)
    # The time of the decoder does not depend on the values of the grid.
    blank_BZHH = tokenizer.quantize.empty_grid(batch)
    # Half of the budget for whole images, a quarter for each part. The whole comes first: it also
    # warms up the parts, and only its memory is reported.
    peak_memory = PeakMemory(bench.device)
    calls = static_calls(bench.device, cuda_graphs)

    def sample_batch() -> None:
        list(sample(spec, model, tokenizer, requests, sampling, 0, batch, calls=calls))

    if calls.active:
        sample_batch()  # the next batch, untimed too, records the CUDA graphs
    whole = bench.measure(sample_batch, share=1 / 2)
    memory = peak_memory.read()
    with precision_context(sampling.precision, bench.device), cast_once(model):
        transformer = bench.measure(
            lambda: family.network_passes(
                spec, model, tokenizer.quantize, labels_B, sampling, calls
            ),
            share=1 / 4,
            warmed_up=True,
        )
    decoder = bench.measure(
        lambda: decode_images(tokenizer, blank_BZHH, sampling.precision),
        share=1 / 4,
        warmed_up=True,
    )
    needed, computed = (
        family.batch_flops(spec, sampling, batch, computed) for computed in (False, True)
    )
    # Narrows the type: a record can have a list of weights, but a row has one number.
    assert isinstance(sampling.guidance, float)
    return SamplingSpeed(
        precision=sampling.precision,
        guidance=sampling.guidance,
        batch=batch,
        settings=sampling.other_settings(),
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
    """Times training steps of a new model of the same size; `subject` itself is not changed."""
    family, spec = subject.family, subject.spec
    for precision in precisions:
        seconds_per_image = 0.0
        # Weights, gradients and two moments of AdamW: 16 bytes per parameter. Half the estimate of
        # activations, which has a margin, is a lower bound.
        weights = 16 * sum(p.numel() for p in subject.model.parameters())
        activations = family.training_bytes(spec, precision) / 2
        for images in sorted(micro_batches):
            needed = weights + round(images * activations)
            missing = bench.skip_reason(seconds_per_image * images)
            missing = missing or memory_shortage(needed, bench.device)
            row = TrainingSpeed(precision=precision, micro_batch=images, missing=missing)
            if missing is None:
                row = or_missing(
                    row, partial(_time_training, subject, precision, images, peaks, bench)
                )
            if row.step is not None:
                seconds_per_image = row.step.median_seconds / images
            yield row


def _time_training(
    subject: Subject, precision: Precision, images: int, peaks: Peaks, bench: Bench
) -> TrainingSpeed:
    family, spec, t = subject.family, subject.spec, subject.spec.tokenizer
    peak_memory = PeakMemory(bench.device)
    network = family.build(spec, seed=0).to(bench.device)
    optimizer = ScheduledOptimizer(network, _OPTIMISER, steps=1, precision=precision)
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(t.codebook_size, (images, t.pyramid.length), generator=generator)
    labels_B = torch.randint(spec.classes, (images,), generator=generator)
    draws = StepDraws(seed=0, step=0, images=images, local_slice=slice(0, images))
    batch = Batch(ids_BL, labels_B, family.random_numbers(spec, draws))
    batch = batch.each(lambda part: part.to(bench.device))

    def step() -> None:
        numbers = batch.numbers
        if bench.device.type == "cpu":  # a GPU gets them ahead, as in training
            numbers = family.random_numbers(spec, draws)
        with precision_context(precision, bench.device):
            one = batch._replace(numbers=numbers)
            loss = family.loss(spec, network, subject.tokenizer.quantize, one, draws)
        # Outside of the context: `backward` sets the precision itself, as in training.
        optimizer.backward(optimizer.scale(loss))
        optimizer.step(0)

    timing = bench.measure(step)
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
        memory=peak_memory.read(),
    )


def or_missing(row: Row, measure: Callable[[], Row]) -> Row:
    """The row that `measure` returns, or `row` with `missing` set if memory runs out."""
    try:
        return measure()
    # The CPU allocator raises a plain RuntimeError, so the message decides (out_of_memory).
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # After the except block: the exception would keep the tensors of the failed attempt alive.
    torch.cuda.empty_cache()  # frees the memory of the failed attempt; no effect without a GPU
    return row.model_copy(update={"missing": "out of memory"})
