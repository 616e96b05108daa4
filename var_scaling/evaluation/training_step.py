"""The time of one training step of a trial on this device, measured in the real training loop.

Random tokens replace the images, so neither a tokenizer nor data is needed: the time of a step does
not depend on the values of its tokens.
"""

import gc
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from var_scaling.accounting import total
from var_scaling.evaluation.bench import Bench
from var_scaling.evaluation.memory import PeakMemory, memory_shortage
from var_scaling.evaluation.rates import MatmulPeak, Timing, TrainingSpeed, utilisation
from var_scaling.evaluation.speed import or_missing
from var_scaling.experiment.trial import Trial
from var_scaling.tokenizer.cache import TokenCache
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.loop import PollSignal, Signal
from var_scaling.training.trial import train
from var_scaling.training.world import World

# Steps: the first allocates memory and selects kernels, a later one the optimizer's state if fp16
# skipped the first update.
_WARM_UP = 3
_STEPS = 10**9  # more than are ever timed: no evaluation and no end of the schedule
_NEVER = 1e12  # seconds between two checkpoints
_TOKENS = 2**20  # of the cache


def step_speed(
    trial: Trial,
    micro_batch: int,
    peak_flops: float,
    matmul: MatmulPeak,
    bench: Bench,
    compile_network: bool = False,
    recompute: bool = False,
) -> TrainingSpeed:
    """The speed of a step of `trial` in one process that trains its whole batch, at most
    `micro_batch` images in a pass. The optimizer, the averaged weights and the log are part of it.

    `mfu` is relative to `peak_flops`. A step that does not fit into memory, or that exceeds the
    budget of `bench` even at the peak `matmul`, is a row without numbers whose `missing` has the
    reason. If compilation fails, the steps are eager, as in a training.
    """
    flops = trial.batch_size * total(trial.family.training_flops(trial.spec))
    missing = bench.skip_reason(flops / matmul.flops_per_second) or memory_shortage(
        _least_bytes(trial, micro_batch), bench.device
    )
    row = TrainingSpeed(
        precision=trial.precision, micro_batch=micro_batch, model_flops=flops, missing=missing
    )
    if missing is not None:
        return row
    free_memory()

    def measure() -> TrainingSpeed:
        peak_memory = PeakMemory(bench.device)
        clock = StepClock(bench)
        world = World(
            device=bench.device, micro_batch_size=micro_batch, recompute_activations=recompute
        )
        errors: list[str | None] = []
        run_steps(trial, clock, world, compile_network, errors.append)
        timing = Timing.of(clock.seconds_per_step)
        seconds = timing.median_seconds
        images_per_second = trial.batch_size / seconds
        peak = matmul.model_copy(update={"flops_per_second": peak_flops})
        return row.model_copy(
            update={
                "step": timing,
                "images_per_second": images_per_second,
                "tokens_per_second": images_per_second * trial.family.sequence_length(trial.spec),
                "mfu": utilisation(flops, seconds, peak),
                "memory": peak_memory.read(),
                "compile_error": errors[0] if errors else None,
            }
        )

    measured = or_missing(row, measure)
    free_memory()
    return measured


def _least_bytes(trial: Trial, micro_batch: int) -> int:
    """A lower bound of the memory of a step."""
    # Weights, gradients and two moments of AdamW: 16 bytes per parameter. Half the estimate of
    # activations, which has a margin, is a lower bound.
    weights = 16 * total(trial.family.parameters(trial.spec))
    activations = trial.family.training_bytes(trial.spec, trial.precision) / 2
    return weights + round(micro_batch * activations)


class EnoughSteps(Exception):
    """Enough steps are timed. Raised between two steps, so that no checkpoint is written."""


class StepClock:
    """Called by the training loop after every step, or on a GPU after several: times them."""

    def __init__(self, bench: Bench):
        self.bench, self.spent, self.seconds_per_step = bench, list[float](), list[float]()
        self.previous: tuple[int, float] | None = None  # steps done, and the time then

    def __call__(self, done: int) -> Signal:
        """Raises EnoughSteps if the timed steps fill the budget of `bench`."""
        self.bench.synchronize()
        now = self.bench.clock()
        # The time until the first call includes building the model.
        if self.previous is not None:
            steps, spent = done - self.previous[0], now - self.previous[1]
            # A step that is longer than the whole budget needs no warm-up.
            if done > _WARM_UP or spent > self.bench.seconds:
                self.spent.append(spent)
                self.seconds_per_step.append(spent / steps)
        if self.bench.is_enough(self.spent):
            raise EnoughSteps
        self.previous = done, self.bench.clock()
        return Signal.CONTINUE


def run_steps(
    trial: Trial,
    poll_signal: PollSignal,
    world: World,
    compile_network: bool = False,
    on_compiled: Callable[[str | None], None] = lambda error: None,
) -> None:
    """Steps of `trial` in the real training loop, until `poll_signal` raises EnoughSteps."""
    endless = trial.model_copy(
        update={"steps": _STEPS, "evaluations": 1, "keep_steps": (), "start": None}
    )
    tokens = random_tokens(trial)
    quantizer = Quantizer(trial.tokenizer).requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder, suppress(EnoughSteps):
        train(
            endless, quantizer, tokens, tokens, Path(folder),
            lambda kind, step, values: None, _NEVER, poll_signal, world,
            compile_network=compile_network, on_compiled=on_compiled,
        )  # fmt: skip


def random_tokens(trial: Trial) -> TokenCache:
    """A cache of random tokens, or of random features for a model that is trained on them."""
    t, generator = trial.tokenizer, np.random.default_rng(0)
    images = max(1, _TOKENS // t.pyramid.length)
    if trial.family.cache_kind(trial.model) == "features":
        grids = (images, t.code_channels, t.pyramid.side, t.pyramid.side)
        tokens = generator.standard_normal(grids, dtype=np.float32).astype(np.float16)
    else:
        ids_NL = generator.integers(t.codebook_size, size=(images, t.pyramid.length))
        tokens = ids_NL.astype(np.uint16)
    channels = t.code_channels
    manifest = {"latents": {"mean": [0.0] * channels, "deviation": [1.0] * channels}}
    return TokenCache(tokens, generator.integers(trial.classes, size=images), 1, manifest)


def free_memory() -> None:
    """Free the memory of an earlier training: its peak must not be counted in the next one."""
    gc.collect()  # the loop's closures refer to each other
    torch.cuda.empty_cache()  # no effect without a GPU
