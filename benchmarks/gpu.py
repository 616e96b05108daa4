"""One GPU, five minutes: training steps of ours beside the released way; sampling at batch 1.

    python benchmarks/gpu.py [--out gpu.json] [--minutes 4.5] [--device cuda] [--small]

correct: the loss here beside the CPU's in float32, and the released way's beside ours, with the
    same weights. Timings follow only where they agree.
training: one step from token ids to changed weights in fp16, as the released recipe trains: teacher
    input, forward, backward, clipping, fused AdamW. The released way (FoundationVision/VAR) is
    written below: the same operations on the same parameters, with a float mask and in-place
    residuals; drop path 0 and no logged extras for both. Both are also compiled with torch.compile,
    the best that a user of either has by one call. The ways take turns; medians and their ratios.
parts: the largest kernels of one step of ours, by the profiler.
sampling: whole samples at batch 1 and 8, from noise to pixels, with guidance; random weights.

Needs torch, einops and pydantic; for sampling safetensors as well. Each result is written at once:
what is cut off has left all that was measured before. `--small` shows on a CPU that it runs.
"""

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
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
from var_scaling.training.loop import updates
from var_scaling.training.optim import ScheduledOptimizer, adamw, precision_context
from var_scaling.training.trial import batch_loss

CLASSES = 1000
TOLERANCE, ROUGH = 2e-4, 5e-2  # relative, of losses and logits: in float32, in half precision
CLIP = 2.0


@dataclass(frozen=True)
class Scale:
    """What is run: the paper's sizes, or small ones."""

    patch_nums: tuple[int, ...]
    codebook_size: int
    channels: int
    depths: tuple[int, ...]
    batches: dict[int, int]
    precision: str


LARGE = Scale(PAPER_256, 4096, 160, (6, 16), {6: 96, 16: 64}, "fp16")
SMALL = Scale((1, 2, 3, 4), 64, 32, (1, 2), {1: 4, 2: 4}, "bf16")


class Report:
    """The results so far, on disk after each."""

    def __init__(self, path: Path, minutes: float):
        self.path, self.began, self.seconds = path, time.monotonic(), 60 * minutes
        self.found: dict[str, Any] = {}

    def add(self, section: str, row: dict[str, Any]) -> None:
        self.found.setdefault(section, []).append(row)
        self.found["seconds"] = round(time.monotonic() - self.began, 1)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.found, indent=1) + "\n")
        os.replace(beside, self.path)
        shown = "  ".join(f"{k} {_short(v)}" for k, v in row.items() if not isinstance(v, list))
        print(f"{section:9} {shown}", flush=True)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Tokens:
    """Random tokens in place of a cache: what a step costs does not depend on them."""

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


# The released way --------------------------------------------------------------------------------


class Released(nn.Module):
    """The forward pass of the released code on the parameters of our VAR.

    Shapes: B images, L tokens, C width, N heads, V codes.
    """

    def __init__(self, model: VAR):
        super().__init__()
        self.model = model
        blocked = ~model.mask_LL
        self.bias_11LL: Tensor
        floats = torch.zeros(blocked.shape, device=blocked.device).masked_fill(blocked, -torch.inf)
        self.register_buffer("bias_11LL", floats[None, None], persistent=False)

    def forward(self, labels_B: Tensor, input_BLZ: Tensor) -> Tensor:
        model = self.model
        with torch.autocast(labels_B.device.type, enabled=False):
            cond_BC = model.class_emb(labels_B)
            first = cond_BC.unsqueeze(1).expand(-1, model.pos_start.shape[1], -1) + model.pos_start
            x_BLC = torch.cat((first, model.word_embed(input_BLZ.float())), dim=1)
            x_BLC = x_BLC + (model.lvl_embed(model.levels_L[None]) + model.pos_1LC)
        # A small product finds out what autocast works in, as the released code does.
        kind = torch.matmul(x_BLC.new_ones(8, 8), x_BLC.new_ones(8, 8)).dtype
        x_BLC, cond_BC, bias = x_BLC.to(kind), cond_BC.to(kind), self.bias_11LL.to(kind)
        for block in model.blocks:
            x_BLC = self.block(block, x_BLC, cond_BC, bias)
        scale, shift = (
            model.head_nm.ada_lin[1](F.silu(cond_BC)).view(len(x_BLC), 1, 2, -1).unbind(2)
        )
        normed = F.layer_norm(x_BLC.float(), x_BLC.shape[-1:], eps=1e-6)
        return model.head((normed.mul(scale.add(1)).add_(shift)).float()).float()

    @staticmethod
    def block(block: Any, x_BLC: Tensor, cond_BC: Tensor, bias: Tensor) -> Tensor:
        width, attn, ffn = x_BLC.shape[-1:], block.attn, block.ffn
        parts = block.ada_lin[1](F.silu(cond_BC)).view(len(x_BLC), 1, 6, -1).unbind(2)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = parts
        h = F.layer_norm(x_BLC, width, eps=1e-6).mul(scale1.add(1)).add_(shift1)
        joined = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
        qkv = F.linear(h, attn.mat_qkv.weight, joined)
        q, k, v = qkv.view(*h.shape[:2], 3, attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if attn.normalised:
            temperature = attn.scale_mul_1H11.clamp_max(4.605170185988092).exp()
            q, k, scale = F.normalize(q, dim=-1).mul(temperature), F.normalize(k, dim=-1), 1.0
        else:
            scale = 0.25 * q.shape[-1] ** -0.5
        bias = bias.to(v.dtype)
        h = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, bias, scale=scale)
        h = attn.proj(h.transpose(1, 2).reshape(x_BLC.shape))
        x_BLC = x_BLC + h.mul(gamma1)
        h = F.layer_norm(x_BLC, width, eps=1e-6).mul(scale2.add(1)).add_(shift2)
        return x_BLC + ffn.fc2(F.gelu(ffn.fc1(h), approximate="tanh")).mul(gamma2)


# Steps -------------------------------------------------------------------------------------------


def trial_of(scale: Scale, depth: int, t: ImportedTokenizer, batch: int) -> Trial:
    """A trial of the paper's recipe, without drop path: the released way below has none."""
    rung = paper_recipe(depth)
    return Trial(
        name=f"d{depth}",
        tokenizer=t,
        data=DeadLeaves(
            name="none", classes=CLASSES, side=16 * scale.patch_nums[-1], train_images=10**6
        ),
        model=VarModel(depth=depth, gamma_init=rung.model.gamma_init, drop_path_per_depth=0.0),
        optimiser=rung.optimiser,
        batch_size=batch,
        steps=10_000,
        precision=scale.precision,
    )


def our_steps(
    trial: Trial, tokens: Tokens, quantizer: Quantizer, compiled: bool, device: torch.device
) -> Iterator[Any]:
    """The trainer's own loop, step by step."""
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

    yield from updates(update, 0, trial.steps)


def released_steps(
    trial: Trial, tokens: Tokens, quantizer: Quantizer, compiled: bool, device: torch.device
) -> Iterator[Any]:
    """The released trainer's: autocast, a loss scale for fp16, clipping, fused AdamW."""
    model = VAR(trial.model, trial.tokenizer, CLASSES, 0).to(device)
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[trial.precision]
    optimizer = adamw(model, Optimiser(learning_rate=1e-4))
    parameters = list(model.parameters())
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**11, enabled=kind == torch.float16)
    way = Released(model)
    net: Any = torch.compile(way, dynamic=False) if compiled else way
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
        with torch.autocast(device.type, dtype=kind):
            logits_BLV = net(labels_B, input_BLZ)
            loss = F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL.flatten())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        yield step + 1, {"loss": loss.detach()}


WAYS: dict[str, tuple[Callable[..., Iterator[Any]], bool]] = {
    "released": (released_steps, False),
    "ours": (our_steps, False),
    "released, compiled": (released_steps, True),
    "ours, compiled": (our_steps, True),
}


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Sections ----------------------------------------------------------------------------------------


@torch.no_grad()
def losses_agree(scale: Scale, depth: int, t: Any, quantizer: Quantizer, report: Report) -> bool:
    """Ours here, ours on the CPU and the released way, in float32 and in the trial's precision."""
    device = quantizer.embedding.weight.device
    model = VAR(trial_of(scale, depth, t, 2).model, t, CLASSES, 0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # as built, gammas near 0 would hide the blocks
        parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    tokens = Tokens(t, 2)
    shown = quantizer.cpu().teacher_input(tokens.ids_NL)
    quantizer.to(device)

    ids = tokens.ids_NL.flatten()

    def run(net: nn.Module, precision: Any, here: torch.device) -> tuple[float, Tensor]:
        with precision_context(precision, here):
            logits = net(tokens.labels_N.to(here), shown.to(here)).float().cpu().flatten(0, 1)
        return float(F.cross_entropy(logits, ids)), logits

    loss, logits = run(model, "fp32", torch.device("cpu"))
    model.to(device)
    row: dict[str, Any] = {"depth": depth, "cpu fp32": loss}
    agree = True
    for way, net, precision, tolerance in (
        ("ours", model, "fp32", TOLERANCE),
        ("released", Released(model), "fp32", TOLERANCE),
        ("ours", model, scale.precision, ROUGH),
        ("released", Released(model), scale.precision, ROUGH),
    ):
        one, found = run(net, precision, device)
        apart = float((found - logits).norm() / (logits - logits.mean()).norm())
        row |= {f"{way} {precision}": one, f"{way} {precision} logits apart": apart}
        agree &= apart <= tolerance and abs(one - loss) <= tolerance * loss
    report.add("correct", {**row, "agree": agree})
    return agree


def take_turns(
    names: list[str], trial: Trial, quantizer: Quantizer, report: Report
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Seconds of each step by way, and the bytes that a step needs above those held between two."""
    device = quantizer.embedding.weight.device
    tokens = Tokens(trial.tokenizer, 4 * trial.batch_size)
    ways, grown = {}, dict.fromkeys(names)
    for name in names:
        make, compiled = WAYS[name]
        ways[name] = make(trial, tokens, quantizer, compiled, device)
        for _ in range(3):
            next(ways[name])
        settle(device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in (*names, *reversed(names)):  # released, ours, ours, released: drift cancels
        idle = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        deadline = time.perf_counter() + min(6.0, report.left() / 20)
        steps = 0
        while time.perf_counter() < deadline or steps < 3:
            began = time.perf_counter()
            next(ways[name])
            settle(device)
            seconds[name].append(time.perf_counter() - began)
            steps += 1
        if device.type == "cuda":
            grown[name] = torch.cuda.max_memory_allocated(device) - idle
    return seconds, grown


def time_training(
    scale: Scale, depth: int, t: Any, quantizer: Quantizer, peak: float, compiled: bool,
    report: Report,
) -> None:  # fmt: skip
    """The ways take turns, a few steps each, in rounds; a batch that does not fit is halved."""
    batch = scale.batches[depth]
    names = [name for name, (_, how) in WAYS.items() if how == compiled]
    while batch:
        trial = trial_of(scale, depth, t, batch)
        try:
            seconds, grown = take_turns(names, trial, quantizer, report)
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        gc.collect()  # what the attempt had taken
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
            "mfu_of_measured_peak": flops / typical / peak, "bytes_above_idle": grown[name],
        })  # fmt: skip
    theirs, ours = (median(seconds[name]) for name in names)
    report.add("ratio", {
        "depth": depth, "compiled": compiled, "released_by_ours": theirs / ours, "batch": batch,
    })  # fmt: skip


def time_kernels(scale: Scale, depth: int, t: Any, quantizer: Quantizer, report: Report) -> None:
    """Where one step of ours spends its time, by kernel."""
    device = quantizer.embedding.weight.device
    batch = max(1, scale.batches[depth] // 2)
    trial = trial_of(scale, depth, t, batch)
    steps = our_steps(trial, Tokens(t, batch), quantizer, False, device)
    for _ in range(3):
        next(steps)
    settle(device)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    began = time.perf_counter()
    with torch.profiler.profile(activities=kinds) as profile:
        next(steps)
        settle(device)
    whole = time.perf_counter() - began

    def spent(event: Any) -> float:
        return float(
            event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        )

    events = sorted(profile.key_averages(), key=spent, reverse=True)
    events = [e for e in events if device.type != "cuda" or str(e.device_type).endswith("CUDA")]
    report.add("kernels", {
        "depth": depth, "batch": batch, "seconds_profiled": whole,
        "busy_seconds": sum(map(spent, events)) / 1e6, "kernels": sum(e.count for e in events),
        "largest": [[e.key[:100], e.count, spent(e) / 1e3] for e in events[:25]],
    })  # fmt: skip


def time_sampling(scale: Scale, depth: int, t: Any, device: torch.device, report: Report) -> None:
    """Whole samples, as `sample` draws them: noise, transformer, filters, decoder, pixels."""
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
            asked = [Request(number % CLASSES, number) for number in range(batch)]
            seconds: list[float] = []
            deadline = time.perf_counter() + min(4.0, report.left() / 8)
            while time.perf_counter() < deadline or len(seconds) < 3:
                began = time.perf_counter()
                list(sample(spec, model, tokenizer, asked, sampling, 0, batch))
                settle(device)
                seconds.append(time.perf_counter() - began)
            typical = median(seconds[1:])
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
        "--minutes", type=float, default=4.5, help="what may take longer is left out"
    )
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    options = parser.parse_args()
    scale, device = SMALL if options.small else LARGE, torch.device(options.device)
    if device.type == "cpu" and not options.small:
        raise SystemExit("the paper's sizes take a CPU hours: --small")
    report = Report(options.out, options.minutes)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    report.add("machine", {
        "name": name, "torch": torch.__version__, "cuda": torch.version.cuda,
        "cpus": os.cpu_count(), "python": platform.python_version(),
    })  # fmt: skip
    bench = Bench(device, seconds=2.0 if device.type == "cuda" else 0.2)
    found = matmul_peak(scale.precision, bench)  # type: ignore[arg-type]
    peak = found.flops_per_second
    report.add("peak", {"precision": found.precision, "side": found.side, "flops_per_second": peak})
    t = ImportedTokenizer(
        name="random", pyramid=Pyramid(patch_nums=scale.patch_nums),
        codebook_size=scale.codebook_size,        channels=scale.channels, sha256="0" * 64,
    )  # fmt: skip
    quantizer = Quantizer(t).to(device)
    small, large = scale.depths
    for depth in scale.depths:
        if not losses_agree(scale, depth, t, quantizer, report):
            raise SystemExit(f"d{depth}: losses differ, so no timing means anything")

    def training(depth: int, compiled: bool) -> None:
        time_training(scale, depth, t, quantizer, peak, compiled, report)

    # What it is, the seconds it may take, how to do it; the most telling first.
    sections: list[tuple[str, float, Callable[[], None]]] = [
        (f"training d{large}", 30, lambda: training(large, False)),
        (f"sampling d{large}", 20, lambda: time_sampling(scale, large, t, device, report)),
        (f"kernels d{large}", 10, lambda: time_kernels(scale, large, t, quantizer, report)),
        (f"training d{small}", 20, lambda: training(small, False)),
        (f"training d{small}, compiled", 60, lambda: training(small, True)),
        (f"training d{large}, compiled", 120, lambda: training(large, True)),
    ]
    for what, seconds, measure in sections:
        if report.left() < seconds:
            report.add("skipped", {"what": what, "why": f"{report.left():.0f} s are left"})
        else:
            measure()


if __name__ == "__main__":
    main()
