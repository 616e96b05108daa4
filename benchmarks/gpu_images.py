"""Speed of sampling, encoding and decoding for gpu.py, at one image and at the best batch.

Shapes: B images, Z code channels, H side of the grid or of the images.
"""

from collections.abc import Callable
from typing import Any

import torch
from gpu_checks import pixels_of, random_tokenizer
from gpu_steps import Row

from var_scaling.accounting.tokenizer import decoding_flops, encoding_flops
from var_scaling.evaluation.bench import Bench
from var_scaling.evaluation.memory import out_of_memory
from var_scaling.evaluation.rates import Timing
from var_scaling.evaluation.training_step import free_memory
from var_scaling.experiment import Trial
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.sample import decode_images, sample
from var_scaling.models.base import SamplingRecord
from var_scaling.models.static_calls import static_calls
from var_scaling.recipe import Precision
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import precision_context

GAIN = 1.1  # a larger batch is tried as long as the last doubling gave this factor
MOST_BATCHES = 100  # sampled in one call
UNTIMED = 3  # first batches: kernels are chosen, and CUDA graphs recorded in the second


def best_batch(time_batch: Callable[[int], Timing], first: int, largest: int) -> Row:
    """The batch with the most images a second: doubled from `first` as long as the rate rises by
    10 %, up to `largest` or until memory runs out.
    """
    tried: list[tuple[float, int, Timing]] = []
    batch, stopped = first, "at the largest batch"
    while batch <= largest:
        try:
            timing = time_batch(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not tried:
                raise
            stopped = "out of memory"
            break
        tried.append((batch / timing.median_seconds, batch, timing))
        if len(tried) > 1 and tried[-1][0] < GAIN * tried[-2][0]:
            stopped = "no longer faster"
            break
        batch *= 2
    free_memory()
    _, best, timing = max(tried)
    return {
        **speed_row(best, timing),
        "stopped": stopped,
        "tried": [[batch, rate] for rate, batch, _ in tried],
    }


def speed_row(batch: int, timing: Timing) -> Row:
    return {
        "batch": batch,
        "median_seconds": timing.median_seconds,
        "least_seconds": timing.least_seconds,
        "repeats": timing.repeats,
        "images_per_second": batch / timing.median_seconds,
    }


# Sampling ----------------------------------------------------------------------------------------


class SamplingBench:
    """A network and a tokenizer with random weights, to time whole samples."""

    def __init__(self, trial: Trial, bench: Bench):
        self.trial, self.bench = trial, bench
        self.network = trial.family.build(trial.spec, 0).to(bench.device)
        self.network.eval().requires_grad_(False)  # as loaded for sampling
        self.tokenizer = random_tokenizer(trial).to(bench.device)
        self.first_seconds = 0.0  # of the last first batch

    def time_batch(self, sampling: SamplingRecord, batch: int, graphs: bool = True) -> Timing:
        """Time batch after batch of one call of `sample`, as for a set of images: from noise to
        pixels. The first batches, in which CUDA graphs are recorded, are not timed. `graphs`: use
        them, on a GPU. Raises RuntimeError if that fails.
        """
        spec, bench = self.trial.spec, self.bench
        requests = [Request(n % spec.classes, n) for n in range(batch * MOST_BATCHES)]
        failures = list[str]()
        calls = static_calls(bench.device, graphs, failures.append)
        batches = sample(
            spec, self.network, self.tokenizer, requests, sampling, 0, batch, calls=calls
        )
        seconds = list[float]()
        began = bench.clock()
        for _ in batches:
            bench.synchronize()
            seconds.append(bench.clock() - began)
            if bench.is_enough(seconds[UNTIMED:]):
                break
            began = bench.clock()
        if failures:
            raise RuntimeError(failures[0])
        self.first_seconds = seconds[0]
        return Timing.of(seconds[UNTIMED:])


def sampling_rows(
    subject: SamplingBench, precision: Precision, first: int, largest: int
) -> list[Row]:
    """The rows of one image and of the best batch, with the default settings of the family."""
    sampling: Any = subject.trial.family.sampling(precision=precision)
    common = {
        "family": subject.trial.family.name,
        "depth": subject.trial.model.depth,
        "precision": precision,
    }
    single = speed_row(1, subject.time_batch(sampling, 1))
    single |= {"first_batch_seconds": subject.first_seconds}
    if subject.bench.device.type == "cuda":
        eager = subject.time_batch(sampling, 1, graphs=False)
        single |= {"without_graphs_seconds": eager.median_seconds}
    best = best_batch(lambda batch: subject.time_batch(sampling, batch), first, largest)
    return [{**common, **single}, {**common, **best}]


# Tokenizer ---------------------------------------------------------------------------------------


def encoding_row(
    trial: Trial, model: MultiScaleVQVAE, precision: Precision, bench: Bench, largest: int
) -> Row:
    """Images to tokens with the encoder in `precision`: bytes of the host to ids on the host.

    The first batch is that of the token caches.
    """
    first = min(largest, model.max_batch_size)
    few = pixels_of(trial, min(first, 8))

    def time_batch(batch: int) -> Timing:
        pixels_BHH3 = few.repeat(-(-batch // len(few)), 1, 1, 1)[:batch]
        if bench.device.type == "cuda":
            pixels_BHH3 = pixels_BHH3.pin_memory()

        @torch.inference_mode()
        def encode() -> None:
            with precision_context(precision, bench.device):
                on_device = pixels_BHH3.to(bench.device, non_blocking=True)
                model.encode(to_unit(on_device)).cpu()

        return bench.measure(encode)

    return _tokenizer_row("encode", precision, best_batch(time_batch, first, largest), trial)


def decoding_row(
    trial: Trial, model: MultiScaleVQVAE, precision: Precision, bench: Bench, largest: int
) -> Row:
    """Grids on the device to bytes on the host, as in sampling in `precision`."""
    channels, side = trial.tokenizer.code_channels, trial.tokenizer.pyramid.side

    def time_batch(batch: int) -> Timing:
        grid_BZHH = torch.randn(batch, channels, side, side, device=bench.device)
        return bench.measure(lambda: decode_images(model, grid_BZHH, precision))

    first = min(largest, model.max_batch_size)
    return _tokenizer_row("decode", precision, best_batch(time_batch, first, largest), trial)


def _tokenizer_row(way: str, precision: Precision, speed: Row, trial: Trial) -> Row:
    flops = (encoding_flops if way == "encode" else decoding_flops)(trial.tokenizer)
    return {
        "way": way,
        "precision": precision,
        **speed,
        "flops_per_second": flops * speed["images_per_second"],
    }
