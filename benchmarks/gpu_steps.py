"""Training steps for gpu.py: the trials, the time and the kernels of a step, and its memory.

Shapes: B images, L tokens, Z code channels, V codes.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from released import Released
from torch import nn

from sweeps.imagenet256 import sweep as imagenet256
from sweeps.imagenet256_families import sweep as imagenet256_families
from var_scaling.accounting import total
from var_scaling.data.order import batch_rows
from var_scaling.evaluation.bench import Bench
from var_scaling.evaluation.memory import PeakMemory, out_of_memory
from var_scaling.evaluation.rates import Memory, Timing
from var_scaling.evaluation.training_step import (
    EnoughSteps,
    StepClock,
    free_memory,
    random_tokens,
    run_steps,
)
from var_scaling.experiment import Trial
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training import compilation
from var_scaling.training.loop import Signal
from var_scaling.training.optim import ScheduledOptimizer, adamw, precision_context
from var_scaling.training.trial import batch_loss
from var_scaling.training.world import World, recompute_activations

Row = dict[str, Any]
# The trial of the sweeps from which the trials of each family are made.
BASES = {"var": "d16", "ar": "llamagen-b", "dit": "dit-b-2"}
# FLOP/s of dense fp16 and bf16 products according to the datasheets, by a part of the GPU's name.
DATASHEET_PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12}
STEPS_PER_REPEAT = {"cpu": 1, "cuda": 10}  # of the released loop; ours reads its stats as often
LARGEST_KERNELS = 14  # in the profile


def trial_of(family: str, depth: int, batch: int, small: bool = False) -> Trial:
    """A trial of sweeps/imagenet256.py or imagenet256_families.py with the batch of one GPU, at
    `depth` and width 64 × depth. Without drop path, which `Released` does not implement.

    `small`: with images of 64 pixels, 64 codes and a tenth of the tokens.
    """
    trials = (*imagenet256.trials, *imagenet256_families.trials)
    base = next(trial for trial in trials if trial.name == BASES[family])
    network: Row = {"depth": depth}
    if family == "var":
        network["drop_path_per_depth"] = 0.0
    else:  # published widths are apart from the rule
        network |= {"fixed_width": None, "fixed_heads": None}
    changes: Row = {
        "name": f"{family}-d{depth}",
        "model": base.model.model_copy(update=network),
        "batch_size": batch,
    }
    if small:
        data = base.data.model_copy(update={"side": 64})
        patch_nums = {"var": (1, 2, 3, 4), "ar": (4,), "dit": (8,)}[family]
        tokens = {"pyramid": Pyramid(patch_nums=patch_nums), "codebook_size": 64, "channels": 32}
        changes |= {
            "data": data,
            "tokenizer": base.tokenizer.model_copy(update={**tokens, "data": data}),
            "precision": "bf16",  # fp16 is slow on a CPU
        }
    return base.model_copy(update=changes)


# Ours --------------------------------------------------------------------------------------------


class Profiler:
    """Called by the training loop when it has read its stats: warms up, then profiles steps."""

    def __init__(self, bench: Bench):
        self.bench, self.calls = bench, 0
        on_gpu = bench.device.type == "cuda"
        activities = torch.profiler.ProfilerActivity
        self.profile = torch.profiler.profile(
            activities=[activities.CUDA if on_gpu else activities.CPU]
        )
        self.began = (0, 0.0)  # steps done, and the time then
        self.kernels: Row = {}

    def __call__(self, done: int) -> Signal:
        """Raises EnoughSteps after the profiled steps."""
        self.bench.synchronize()
        self.calls += 1
        if self.calls == 1:
            return Signal.CONTINUE
        if self.calls == 2:
            self.profile.start()
            self.began = done, time.perf_counter()
            return Signal.CONTINUE
        seconds = time.perf_counter() - self.began[1]
        self.profile.stop()
        self.kernels = kernels_of(self.profile, done - self.began[0], seconds, self.bench.device)
        raise EnoughSteps


def kernels_of(profile: Any, steps: int, seconds: float, device: torch.device) -> Row:
    """The kernels of a step: their number, the seconds in which one runs, and the longest ones as
    [name, times a step, milliseconds a step].
    """
    on_gpu = device.type == "cuda"

    def milliseconds(event: Any) -> float:
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        return float(spent) / 1e3 / steps

    events = sorted(profile.key_averages(), key=milliseconds, reverse=True)
    if on_gpu:
        # Annotations, such as that of the optimizer, contain kernels that are counted already.
        events = [
            event
            for event in events
            if str(event.device_type).endswith("CUDA")
            and not getattr(event, "is_user_annotation", False)
        ]
    return {
        "profiled_steps": steps,
        "profiled_seconds": seconds / steps,
        "busy_seconds": sum(map(milliseconds, events)) / 1e3,
        "kernels": round(sum(event.count for event in events) / steps),
        "largest": [
            [event.key[:80], round(event.count / steps, 1), round(milliseconds(event), 3)]
            for event in events[:LARGEST_KERNELS]
        ],
    }


@contextmanager
def timed_compilation(bench: Bench) -> Iterator[list[float]]:
    """Collects the seconds of each `compile_network` within the block."""
    compile_network, seconds = compilation.compile_network, list[float]()

    def timed(*given: Any) -> str | None:
        began = time.perf_counter()
        error = compile_network(*given)
        bench.synchronize()
        seconds.append(time.perf_counter() - began)
        return error

    with mock.patch.object(compilation, "compile_network", timed):
        yield seconds


def require_compiled(error: str | None) -> None:
    """Raise RuntimeError if the compilation failed: the steps after it would be eager ones."""
    if error is not None:
        raise RuntimeError(f"not compiled: {error}")


def time_ours(trial: Trial, bench: Bench, compiled: bool) -> tuple[Timing, Memory, Row]:
    """Time the steps of the real training loop."""
    free_memory()
    peak_memory, clock = PeakMemory(bench.device), StepClock(bench)
    with timed_compilation(bench) as seconds:
        run_steps(trial, clock, World(device=bench.device), compiled, require_compiled)
    extra = {"compile_seconds": seconds[0]} if seconds else {}
    return Timing.of(clock.seconds_per_step), peak_memory.read(), extra


def kernel_row(trial: Trial, bench: Bench, compiled: bool) -> Row:
    """The kernels of our steps."""
    free_memory()
    profiler = Profiler(bench)
    run_steps(trial, profiler, World(device=bench.device), compiled, require_compiled)
    return {
        "family": trial.family.name,
        "depth": trial.model.depth,
        "way": "ours, compiled" if compiled else "ours",
        "precision": trial.precision,
        "batch": trial.batch_size,
        **profiler.kernels,
    }


# Released ----------------------------------------------------------------------------------------


def released_steps(
    trial: Trial, device: torch.device, compiled: bool
) -> Generator[None, None, None]:
    """Steps of the released loop: autocast, loss scaling for fp16, clipping, fused AdamW."""
    tokens = random_tokens(trial)
    quantizer = Quantizer(trial.tokenizer).requires_grad_(False).to(device)
    model: Any = trial.family.build(trial.spec, 0).to(device)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[trial.precision]
    optimizer = adamw(model, trial.optimiser)
    parameters = list(model.parameters())
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**11, enabled=dtype == torch.float16)
    released = Released(model)
    net: Any = torch.compile(released, dynamic=False) if compiled else released
    clip = trial.optimiser.grad_clip
    assert clip is not None
    with precision_context("tf32", device):
        for step in range(trial.steps):
            rows, epochs = batch_rows(tokens.images, trial.batch_size, trial.seed, step)
            batch = tokens.batch(rows, epochs)
            if device.type == "cuda":  # as a DataLoader with pin_memory
                batch = batch[0].pin_memory(), batch[1].pin_memory()
            ids_BL, labels_B = (part.to(device, non_blocking=True) for part in batch)
            dropped_B = torch.rand(trial.batch_size, device=device) < trial.class_dropout_prob
            labels_B = torch.where(dropped_B, trial.classes, labels_B)
            with torch.no_grad():
                input_BLZ = quantizer.teacher_input(ids_BL)
            with torch.autocast(device.type, dtype=dtype):
                logits_BLV = net(labels_B, input_BLZ)
                loss = F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL.flatten())
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            yield


def time_released(trial: Trial, bench: Bench, compiled: bool) -> tuple[Timing, Memory, Row]:
    """Time the steps of the released loop, several at a time as in our loop."""
    free_memory()
    torch.compiler.reset()
    peak_memory = PeakMemory(bench.device)
    steps = released_steps(trial, bench.device, compiled)
    began = time.perf_counter()
    next(steps)
    bench.synchronize()
    first_seconds = time.perf_counter() - began
    count = STEPS_PER_REPEAT[bench.device.type]

    def several() -> None:
        for _ in range(count):
            next(steps)

    timing = bench.measure(several)
    seconds = {name: value / count for name, value in dict(timing).items() if name != "repeats"}
    # Building the model is part of the first step.
    extra = {"first_step_seconds": first_seconds} if compiled else {}
    steps.close()
    return timing.model_copy(update=seconds), peak_memory.read(), extra


# Rows --------------------------------------------------------------------------------------------


def that_fits(measure: Callable[[int], Any], batch: int) -> int:
    """Call `measure(batch)`, with half the batch as long as memory runs out; returns the batch."""
    while True:
        try:
            measure(batch)
            return batch
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or batch == 1:
                raise
        # After the except block: the exception would keep the tensors of the attempt alive.
        free_memory()
        batch //= 2


def step_row(
    trial: Trial, way: str, timing: Timing, memory: Memory, peak: float, datasheet: float | None
) -> Row:
    """The result of one way to train `trial`. `peak` and `datasheet` are in FLOP/s."""
    seconds = timing.median_seconds
    rate = trial.batch_size * total(trial.family.training_flops(trial.spec)) / seconds
    return {
        "family": trial.family.name,
        "depth": trial.model.depth,
        "way": way,
        "precision": trial.precision,
        "batch": trial.batch_size,
        "median_seconds": seconds,
        "least_seconds": timing.least_seconds,
        "most_seconds": timing.most_seconds,
        "repeats": timing.repeats,
        "images_per_second": trial.batch_size / seconds,
        "mfu_of_measured_peak": rate / peak,
        "mfu_of_datasheet": rate / datasheet if datasheet else None,
        "peak_bytes": memory.gpu_peak_bytes or memory.process_growth_bytes,
    }


# Memory ------------------------------------------------------------------------------------------


class MemoryProbe:
    """Steps of two micro-batches of one network, and the peak of their memory.

    Eager: compiled blocks keep fewer activations.
    """

    def __init__(self, trial: Trial, bench: Bench, recompute: bool):
        self.trial, self.bench = trial, bench
        # Built on the device, where random weights take no time.
        with torch.device(bench.device):
            self.network = trial.family.build(trial.spec, 0)
        if recompute:
            recompute_activations(self.network)
        self.quantizer = Quantizer(trial.tokenizer).requires_grad_(False).to(bench.device)
        self.tokens = random_tokens(trial)
        self.optimizer = ScheduledOptimizer(self.network, trial.optimiser, 2, trial.precision)
        self.seconds = 0.0  # of the last step

    def peak_bytes(self, micro_batch: int) -> int | None:
        """The peak of a step with `micro_batch` images in a pass, or None if it does not fit."""
        free_memory()
        peak_memory = PeakMemory(self.bench.device)
        try:
            began = time.perf_counter()
            self._step(micro_batch)
            self.bench.synchronize()
            self.seconds = time.perf_counter() - began
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        else:
            memory = peak_memory.read()
            return memory.gpu_peak_bytes or memory.process_growth_bytes or 0
        self.optimizer.adamw.zero_grad(set_to_none=True)
        return None

    def _step(self, micro_batch: int) -> None:
        # Two passes: in the second the gradients of the first are in memory.
        for number in range(2):
            share = slice(number * micro_batch, (number + 1) * micro_batch)
            with precision_context(self.trial.precision, self.bench.device):
                loss = batch_loss(self.trial, self.network, self.quantizer, self.tokens, 0, share)
            self.optimizer.backward(self.optimizer.scale(loss))
        self.optimizer.step(0)


def memory_row(trial: Trial, bench: Bench, recompute: bool, largest: int) -> Row:
    """The largest micro-batch up to `largest` that fits, to about 5 %, and the memory of its step.

    Memory is linear in the micro-batch, so two small ones predict the largest.
    """
    one = trial.model_copy(update={"batch_size": 2 * largest})
    probe = MemoryProbe(one, bench, recompute)
    few, more = max(1, largest // 16), max(2, largest // 8)
    probe.peak_bytes(few)  # allocates the state of AdamW
    least, greater = (probe.peak_bytes(micro_batch) for micro_batch in (few, more))
    if least is None or greater is None:
        raise RuntimeError(f"a micro-batch of {more} does not fit into memory")
    per_image = max(1.0, (greater - least) / (more - few))
    fixed = least - few * per_image
    micro_batch = largest
    if bench.device.type == "cuda":
        # 2 % for what is not in tensors, such as the workspaces of cuBLAS and fragments.
        free = 0.98 * torch.cuda.mem_get_info(bench.device)[1] - fixed
        micro_batch = max(1, min(largest, int(free / per_image)))
    peak = probe.peak_bytes(micro_batch)
    while peak is None and micro_batch > 1:
        micro_batch = int(0.95 * micro_batch)
        peak = probe.peak_bytes(micro_batch)
    return {
        "family": trial.family.name,
        "depth": trial.model.depth,
        "way": "recompute_activations" if recompute else "all activations kept",
        "precision": trial.precision,
        "micro_batch": micro_batch,
        "is_limit": micro_batch < largest,
        "peak_bytes": peak,
        "bytes_per_image": per_image,
        "fixed_bytes": fixed,
        "images_per_second": 2 * micro_batch / probe.seconds,
    }
