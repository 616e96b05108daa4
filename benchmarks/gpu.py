"""Benchmark one GPU in five minutes: training steps against the released code, and sampling.

    python benchmarks/gpu.py [--out gpu.json] [--minutes 4.5] [--device cuda] [--small]

correct: losses and logits of both implementations with the same weights, on this device, against
    ours on the CPU in float32. The benchmark stops unless they agree.
training: one step from token ids to updated weights in fp16, as in the released recipe: teacher
    input, forward, backward, clipping, fused AdamW. The released implementation
    (FoundationVision/VAR) is in released.py: the same operations on the same parameters, with a
    float mask and in-place residuals. Both use drop path 0 and log nothing but the loss. Both are
    also timed with torch.compile, which a user of either can add by one call. The implementations
    take turns; printed are medians and their ratios.
kernels: the kernels of one of our steps that take longest, by the profiler.
sampling: whole samples at batch 1 and 8, from noise to pixels, with guidance; random weights.

Needs torch, einops and pydantic, and safetensors for sampling. The file is rewritten after each
result, so that an interrupted run keeps its results. `--small` runs small sizes on a CPU.
"""

import argparse
import gc
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from released import Released
from torch import Tensor, nn

from var_scaling.accounting import total
from var_scaling.config import ImportedTokenizer, Tokenizer
from var_scaling.datasets import DeadLeaves
from var_scaling.evaluation.bench import Bench, matmul_peak
from var_scaling.evaluation.memory import out_of_memory
from var_scaling.experiment import Trial
from var_scaling.models.var.accounting import var_training_flops
from var_scaling.models.var.config import VarModel, paper_recipe
from var_scaling.models.var.model import VAR
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.recipe import Optimiser
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.loop import Journal, Signal
from var_scaling.training.optim import ScheduledOptimizer, adamw, precision_context
from var_scaling.training.trial import batch_loss
from var_scaling.training.world import World

CLASSES = 1000
# Relative, of losses and logits, in float32 and in half precision.
TOLERANCE, HALF_TOLERANCE = 2e-4, 5e-2
CLIP = 2.0


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark: those of the paper, or small ones."""

    patch_nums: tuple[int, ...]
    codebook_size: int
    channels: int
    depths: tuple[int, ...]
    batches: dict[int, int]
    precision: str


LARGE = Scale(PAPER_256, 4096, 160, (6, 16), {6: 96, 16: 64}, "fp16")
SMALL = Scale((1, 2, 3, 4), 64, 32, (1, 2), {1: 4, 2: 4}, "bf16")


class Report:
    """The results so far, written to disk after each result."""

    def __init__(self, path: Path, minutes: float):
        self.path, self.began, self.seconds = path, time.monotonic(), 60 * minutes
        self.results: dict[str, Any] = {}

    def add(self, section: str, row: dict[str, Any]) -> None:
        self.results.setdefault(section, []).append(row)
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        temporary_path = self.path.with_suffix(".part")
        temporary_path.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(temporary_path, self.path)
        text = "  ".join(f"{k} {_short(v)}" for k, v in row.items() if not isinstance(v, list))
        print(f"{section:9} {text}", flush=True)

    def seconds_left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Tokens:
    """Random tokens in place of a token cache: the time of a step does not depend on them."""

    def __init__(self, t: Tokenizer, images: int):
        generator = torch.Generator().manual_seed(0)
        self.images = images
        self.ids_NL = torch.randint(
            t.codebook_size, (images, t.pyramid.length), generator=generator
        )
        self.labels_N = torch.randint(CLASSES, (images,), generator=generator)

    def batch(self, rows: Any, epochs: Any) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(rows)
        return self.ids_NL[chosen], self.labels_N[chosen]


# Steps -------------------------------------------------------------------------------------------


def trial_of(scale: Scale, depth: int, t: ImportedTokenizer, batch: int) -> Trial:
    """A trial of the paper's recipe without drop path, which `Released` does not implement."""
    recipe = paper_recipe(depth)
    return Trial(
        name=f"d{depth}",
        tokenizer=t,
        data=DeadLeaves(
            name="none", classes=CLASSES, side=16 * scale.patch_nums[-1], train_images=10**6
        ),
        model=VarModel(depth=depth, gamma_init=recipe.model.gamma_init, drop_path_per_depth=0.0),
        optimiser=recipe.optimiser,
        batch_size=batch,
        steps=10_000,
        precision=scale.precision,
    )


def our_steps(
    trial: Trial, tokens: Tokens, quantizer: Quantizer, compiled: bool, device: torch.device
) -> Iterator[Any]:
    """Steps of our training loop."""
    model = VAR(trial.model, trial.tokenizer, CLASSES, 0).to(device)
    optimizer = ScheduledOptimizer(model, trial.optimiser, trial.steps, trial.precision)
    net: Any = torch.compile(model, dynamic=False) if compiled else model

    def update(step: int) -> dict[str, Tensor]:
        with precision_context(trial.precision, device):
            loss = batch_loss(
                trial,
                net,
                quantizer,
                tokens,
                step,
                slice(0, trial.batch_size),  # type: ignore[arg-type]
            )
        optimizer.backward(optimizer.scale(loss))
        return {"loss": loss.detach(), **optimizer.step(step)}

    with tempfile.TemporaryDirectory() as folder:
        world = World(device=device)
        journal = Journal(Path(folder), lambda *words: None, lambda done, seconds: {}, 1e9, world)
        for step in range(trial.steps):
            journal.add(step + 1, update(step))
            if (step + 1) % journal.steps_per_read == 0:
                journal.read_stats(trial.steps, Signal.CONTINUE)
            yield


def released_steps(
    trial: Trial, tokens: Tokens, quantizer: Quantizer, compiled: bool, device: torch.device
) -> Iterator[Any]:
    """Steps of the released loop: autocast, loss scaling for fp16, clipping, fused AdamW."""
    model = VAR(trial.model, trial.tokenizer, CLASSES, 0).to(device)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[trial.precision]
    optimizer = adamw(model, Optimiser(learning_rate=1e-4))
    parameters = list(model.parameters())
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**11, enabled=dtype == torch.float16)
    released = Released(model)
    net: Any = torch.compile(released, dynamic=False) if compiled else released
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    rows = torch.arange(trial.batch_size)
    for step in range(trial.steps):
        ids_BL, labels_B = tokens.batch((rows + step) % tokens.images, None)
        ids_BL = ids_BL.to(device, non_blocking=True)
        labels_B = labels_B.to(device, non_blocking=True)
        dropped_B = torch.rand(trial.batch_size, device=device) < trial.class_dropout_prob
        labels_B = torch.where(dropped_B, CLASSES, labels_B)
        with torch.no_grad():
            input_BLZ = quantizer.teacher_input(ids_BL)
        with torch.autocast(device.type, dtype=dtype):
            logits_BLV = net(labels_B, input_BLZ)
            loss = F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL.flatten())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        yield step + 1, {"loss": loss.detach()}


IMPLEMENTATIONS: dict[str, tuple[Callable[..., Iterator[Any]], bool]] = {
    "released": (released_steps, False),
    "ours": (our_steps, False),
    "released, compiled": (released_steps, True),
    "ours, compiled": (our_steps, True),
}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Sections ----------------------------------------------------------------------------------------


@torch.no_grad()
def losses_agree(scale: Scale, depth: int, t: Any, quantizer: Quantizer, report: Report) -> bool:
    """Whether our losses and the released ones on this device, in float32 and in the trial's
    precision, agree with ours on the CPU in float32.
    """
    device = quantizer.embedding.weight.device
    model = VAR(trial_of(scale, depth, t, 2).model, t, CLASSES, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # at initialisation gammas near 0 would hide the blocks
        parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    tokens = Tokens(t, 2)
    input_BLZ = quantizer.cpu().teacher_input(tokens.ids_NL)
    quantizer.to(device)

    ids = tokens.ids_NL.flatten()

    def run(net: nn.Module, precision: Any, device: torch.device) -> tuple[float, Tensor]:
        with precision_context(precision, device):
            logits = net(tokens.labels_N.to(device), input_BLZ.to(device))
        logits = logits.float().cpu().flatten(0, 1)
        return float(F.cross_entropy(logits, ids)), logits

    loss, logits = run(model, "fp32", torch.device("cpu"))
    model.to(device)
    row: dict[str, Any] = {"depth": depth, "cpu fp32": loss}
    agree = True
    for name, net, precision, tolerance in (
        ("ours", model, "fp32", TOLERANCE),
        ("released", Released(model), "fp32", TOLERANCE),
        ("ours", model, scale.precision, HALF_TOLERANCE),
        ("released", Released(model), scale.precision, HALF_TOLERANCE),
    ):
        its_loss, its_logits = run(net, precision, device)
        error = float((its_logits - logits).norm() / (logits - logits.mean()).norm())
        row |= {f"{name} {precision}": its_loss, f"{name} {precision} logits apart": error}
        agree &= error <= tolerance and abs(its_loss - loss) <= tolerance * loss
    report.add("correct", {**row, "agree": agree})
    return agree


def take_turns(
    names: list[str], trial: Trial, quantizer: Quantizer, report: Report
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """By implementation: seconds of each step, and peak bytes of a step above idle."""
    device = quantizer.embedding.weight.device
    tokens = Tokens(trial.tokenizer, 4 * trial.batch_size)
    loops, peak_bytes = {}, dict.fromkeys(names)
    for name in names:
        make, compiled = IMPLEMENTATIONS[name]
        loops[name] = make(trial, tokens, quantizer, compiled, device)
        for _ in range(3):  # warm-up, with compilation
            next(loops[name])
        synchronize(device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in (*names, *reversed(names)):  # released, ours, ours, released: drift cancels
        idle = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        deadline = time.perf_counter() + min(6.0, report.seconds_left() / 20)
        steps = 0
        while time.perf_counter() < deadline or steps < 3:
            began = time.perf_counter()
            next(loops[name])
            synchronize(device)
            seconds[name].append(time.perf_counter() - began)
            steps += 1
        if device.type == "cuda":
            peak_bytes[name] = torch.cuda.max_memory_allocated(device) - idle
    return seconds, peak_bytes


def time_training(
    scale: Scale, depth: int, t: Any, quantizer: Quantizer, peak: float, compiled: bool,
    report: Report,
) -> None:  # fmt: skip
    """The implementations take turns, a few steps each; a batch that does not fit is halved."""
    batch = scale.batches[depth]
    names = [name for name, (_, is_compiled) in IMPLEMENTATIONS.items() if is_compiled == compiled]
    while batch:
        trial = trial_of(scale, depth, t, batch)
        try:
            seconds, peak_bytes = take_turns(names, trial, quantizer, report)
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        gc.collect()  # frees the memory of the failed attempt
        torch.cuda.empty_cache()
        report.add("skipped", {"depth": depth, "batch": batch, "why": "out of memory"})
        batch //= 2
    flops = batch * total(var_training_flops(trial.model, t))
    for name in names:
        typical = median(seconds[name])
        report.add("training", {
            "depth": depth, "way": name, "batch": batch, "precision": scale.precision,
            "median_seconds": typical, "least_seconds": min(seconds[name]),
            "steps": len(seconds[name]), "images_per_second": batch / typical,
            "mfu_of_measured_peak": flops / typical / peak, "bytes_above_idle": peak_bytes[name],
        })  # fmt: skip
    theirs, ours = (median(seconds[name]) for name in names)
    report.add("ratio", {
        "depth": depth, "compiled": compiled, "released_by_ours": theirs / ours, "batch": batch,
    })  # fmt: skip


def time_kernels(scale: Scale, depth: int, t: Any, quantizer: Quantizer, report: Report) -> None:
    """The time of one of our steps by kernel."""
    device = quantizer.embedding.weight.device
    batch = max(1, scale.batches[depth] // 2)
    trial = trial_of(scale, depth, t, batch)
    steps = our_steps(trial, Tokens(t, batch), quantizer, False, device)
    for _ in range(3):
        next(steps)
    synchronize(device)
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    began = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        next(steps)
        synchronize(device)
    step_seconds = time.perf_counter() - began

    def self_time(event: Any) -> float:
        return float(
            event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        )

    events = sorted(profile.key_averages(), key=self_time, reverse=True)
    events = [e for e in events if device.type != "cuda" or str(e.device_type).endswith("CUDA")]
    report.add("kernels", {
        "depth": depth, "batch": batch, "seconds_profiled": step_seconds,
        "busy_seconds": sum(map(self_time, events)) / 1e6, "kernels": sum(e.count for e in events),
        "largest": [[e.key[:100], e.count, self_time(e) / 1e3] for e in events[:25]],
    })  # fmt: skip


def time_sampling(scale: Scale, depth: int, t: Any, device: torch.device, report: Report) -> None:
    """Time `sample`: noise, transformer, filters, decoder, pixels."""
    try:
        from var_scaling.experiment.sample_set import Request
        from var_scaling.generation.sample import sample
        from var_scaling.models.var.config import VarSampling
        from var_scaling.tokenizer.model import MultiScaleVQVAE
    except ImportError as error:
        report.add("skipped", {"what": "sampling", "why": str(error)})
        return
    spec = trial_of(scale, depth, t, 1).spec
    model = VAR(spec.config, t, CLASSES, 0).to(device).eval()
    tokenizer = MultiScaleVQVAE(t, 0).to(device).eval()
    for precision in ("fp32", scale.precision):
        for batch in (1, 8):
            sampling = VarSampling(guidance=1.5, precision=precision)
            requests = [Request(number % CLASSES, number) for number in range(batch)]
            seconds: list[float] = []
            deadline = time.perf_counter() + min(4.0, report.seconds_left() / 8)
            while time.perf_counter() < deadline or len(seconds) < 3:
                began = time.perf_counter()
                list(sample(spec, model, tokenizer, requests, sampling, 0, batch))
                synchronize(device)
                seconds.append(time.perf_counter() - began)
            typical = median(seconds[1:])  # the first is the warm-up
            report.add("sampling", {
                "depth": depth, "precision": precision, "batch": batch, "median_seconds": typical,
                "least_seconds": min(seconds), "images_per_second": batch / typical,
                "repeats": len(seconds) - 1,
            })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument(
        "--minutes",
        type=float,
        default=4.5,
        help="time budget; sections that may exceed it are skipped",
    )
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    options = parser.parse_args()
    scale, device = SMALL if options.small else LARGE, torch.device(options.device)
    if device.type == "cpu" and not options.small:
        raise SystemExit("the paper's sizes take hours on a CPU; use --small")
    report = Report(options.out, options.minutes)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    report.add("machine", {
        "name": name, "torch": torch.__version__, "cuda": torch.version.cuda,
        "cpus": os.cpu_count(), "python": platform.python_version(),
    })  # fmt: skip
    bench = Bench(device, seconds=2.0 if device.type == "cuda" else 0.2)
    matmul = matmul_peak(scale.precision, bench)  # type: ignore[arg-type]
    peak = matmul.flops_per_second
    report.add(
        "peak", {"precision": matmul.precision, "side": matmul.side, "flops_per_second": peak}
    )
    t = ImportedTokenizer(
        name="random", pyramid=Pyramid(patch_nums=scale.patch_nums),
        codebook_size=scale.codebook_size, channels=scale.channels, sha256="0" * 64,
    )  # fmt: skip
    quantizer = Quantizer(t).to(device)
    small, large = scale.depths
    for depth in scale.depths:
        if not losses_agree(scale, depth, t, quantizer, report):
            raise SystemExit(f"d{depth}: losses differ, so timings would not be comparable")

    def training(depth: int, compiled: bool) -> None:
        time_training(scale, depth, t, quantizer, peak, compiled, report)

    # (name, expected seconds, function), the most important first.
    sections: list[tuple[str, float, Callable[[], None]]] = [
        (f"training d{large}", 30, lambda: training(large, False)),
        (f"sampling d{large}", 20, lambda: time_sampling(scale, large, t, device, report)),
        (f"kernels d{large}", 10, lambda: time_kernels(scale, large, t, quantizer, report)),
        (f"training d{small}", 20, lambda: training(small, False)),
        (f"training d{small}, compiled", 60, lambda: training(small, True)),
        (f"training d{large}, compiled", 120, lambda: training(large, True)),
    ]
    for name, seconds, measure in sections:
        if report.seconds_left() < seconds:
            report.add("skipped", {"what": name, "why": f"{report.seconds_left():.0f} s are left"})
        else:
            measure()


if __name__ == "__main__":
    main()
