"""Count the kernels and bytes of a training step on a GPU, and estimate its time. Needs no GPU.

    python benchmarks/kernels.py [--families var ar dit tokenizer] [--depths 6 16 30] [--out FILE]

All steps are at 256 pixels, from token ids (or features) to gradients. var: the paper's recipe,
with drop path. ar and dit: LlamaGen's and DiT's published settings at VAR's widths
(sweeps/imagenet256_families.py). tokenizer: the whole training step of VAR's tokenizer with critic,
LPIPS and updates, and encoding. Nothing is computed: all tensors are fake. Variants:

masked: eager code, and one attention call under the dense mask, as before this benchmark;
eager: eager code, and the parts of attention that a GPU uses;
compiled: the same, with the methods compiled that training compiles (training/compilation.py);
whole: the same, with the whole network compiled to one graph (--variants whole);
training, encoding: of the tokenizer, eager.

Eager kernels are the aten operations of forward and backward that are no views and no allocations.
CUDA's autocast computes LayerNorm and RMSNorm in float32 and a CPU's does not, so they get a cast
here. Compiled kernels are the nodes of the inductor's scheduler after fusion, at the full batch:
the graphs of one block, times the depth, and of the head, by its rules for a GPU. They do not
know that there is one: a long reduction may become two kernels. A kernel that reads a part of a
tensor in two patterns, as the norm of a query does, is counted with both.
The rest (embeddings, teacher input) is eager in all variants. Each kernel reads its inputs and
writes its outputs once. Products are matrix products, attention and convolutions; what cuDNN does
within a convolution, such as a change of the memory format, is not counted.

Model of the time, for an H100. A matrix product runs at MATMUL_SHARE of the peak (measured on an
H200, which has the same peak: measured/gpu_h200_60739c9.json). Attention runs at MASKED_FLOPS under
a mask (from the same file: 17.4 ms for batch 32 at d16), and at PLAIN_FLOPS without one (an
assumption).
Every other kernel runs at MEMORY_SHARE of the bandwidth (an assumption) and takes at least
LEAST_SECONDS. The host launches an eager kernel in LAUNCH_SECONDS; the step takes the longer of
host and device. A compiled method has the same cost a kernel: its launches are cheaper, but its
guards are checked. The update reads and writes UPDATE_BYTES for each parameter: loss scale, norm,
clipping and fused AdamW. MFU: model FLOPs, without masked pairs, over time and peak. `h200` is the
same with its bandwidth, to compare with the measured steps of eager masked code: .309 s at d16 and
.0739 s at d6 (measured/gpu_h200_60739c9.json, torch 2.11). The model gives .218 and .040: it is too
optimistic by 1.4 and 1.8 times. Compiled steps take .149 and .033 s (measured/gpu_h200.json).
Compare its variants, and do not plan with its times. The tokenizer has no estimate: no speed of its
convolutions was measured.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from kernel_counts import (
    EagerCounter,
    Kernel,
    compiled_kernels,
    eager_kernels,
    is_tensor,
    remove,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from sweeps import imagenet256, imagenet256_families
from var_scaling import linear
from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import encoding_flops, tokenizer_training_flops
from var_scaling.config import ImportedTokenizer, Tokenizer, TrainedTokenizer
from var_scaling.models import attention
from var_scaling.models.base import Batch, ModelRecord, ModelSpec, StepDraws
from var_scaling.models.registry import family_of
from var_scaling.models.var.config import paper_recipe
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.tokenizer import autoencoder
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.perceptual import Perceptual
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.tokenizer import _TokenizerTrainer
from var_scaling.training.world import World

CLASSES = 1000
# Images of one GPU, by depth.
BATCHES = {
    "var": {6: 96, 16: 64, 30: 16},
    "ar": {6: 256, 16: 128},
    "dit": {6: 256, 16: 128},
}
VARIANTS = {
    "var": ("masked", "eager", "compiled"),
    "ar": ("eager", "compiled"),
    "dit": ("eager", "compiled"),
    "tokenizer": ("training", "encoding"),
}
TOKENIZER_BATCH = 16
PEAK, H100_BANDWIDTH, H200_BANDWIDTH = 989e12, 3.35e12, 4.8e12
MATMUL_SHARE, MEMORY_SHARE = 0.72, 0.8
MASKED_FLOPS, PLAIN_FLOPS = 190e12, 250e12  # FLOP/s of all computed pairs
LEAST_SECONDS, LAUNCH_SECONDS = 2e-6, 4e-6
UPDATE_BYTES = 48
TOKENIZER = ImportedTokenizer(
    name="paper", pyramid=Pyramid(patch_nums=PAPER_256), codebook_size=4096, channels=160,
    sha256="0" * 64,
)  # fmt: skip


def settings_of(family: str, depth: int) -> tuple[ModelRecord, Tokenizer]:
    """Model and tokenizer of a family at 256 pixels; width 64 x depth, `depth` heads."""
    if family == "var":
        return paper_recipe(depth).model, TOKENIZER
    trials = imagenet256_families.sweep.trials
    trial = next(trial for trial in trials if trial.model.family == family)
    sizes = {"depth": depth, "fixed_width": None, "fixed_heads": None}
    return trial.model.model_copy(update=sizes), trial.tokenizer


# Families ----------------------------------------------------------------------------------------


class Case:
    """Fake tensors of a training step of a family at `depth`."""

    def __init__(self, family: str, depth: int, batch: int):
        model, t = settings_of(family, depth)
        self.family = family_of(model)
        self.spec = ModelSpec(model, t, CLASSES)
        self.network = self.family.build(self.spec, 0)
        self.quantizer = Quantizer(t).requires_grad_(False)
        inputs = torch.zeros(batch, t.pyramid.length, dtype=torch.int64)
        if self.family.cache_kind(model) == "features":
            inputs = torch.zeros(batch, t.code_channels, t.pyramid.side, t.pyramid.side)
        self.draws = StepDraws(0, 0, batch, slice(0, batch))
        numbers = self.family.random_numbers(self.spec, self.draws)
        self.batch = Batch(inputs, torch.zeros(batch, dtype=torch.int64), numbers)

    def loss(self) -> Tensor:
        return self.family.loss(self.spec, self.network, self.quantizer, self.batch, self.draws)

    def calls(self, names: tuple[str, ...]) -> dict[str, list[tuple[Any, ...]]]:
        """The arguments of each call of these methods of the network in one step."""
        calls: dict[str, list[tuple[Any, ...]]] = {name: [] for name in names}

        def record(name: str, method: Any, *arguments: Any) -> Any:
            calls[name].append(arguments)
            return method(*arguments)

        with ExitStack() as stack:
            for name in names:
                method = partial(record, name, getattr(self.network, name))
                stack.enter_context(mock.patch.object(self.network, name, method))
            self.eager_kernels(self.loss, ())
        return calls

    def eager_kernels(self, method: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Kernel]:
        self.network.zero_grad()  # else the gradients are added to those of the count before
        return eager_kernels(method, inputs)


def new_tensors(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """`arguments` with new tensors, so that the backward pass ends there."""

    def new(leaf: Any) -> Any:
        if not is_tensor(leaf):
            return leaf
        return torch.empty_like(leaf).detach().requires_grad_(leaf.requires_grad)

    return tuple(tree_map(new, arguments))


def kernels_of(family: str, depth: int, batch: int, variant: str) -> list[Kernel]:
    """The kernels of forward and backward of one step."""
    # The parts of attention that a GPU uses. `masked`: no long groups, and no causal option.
    masked = variant == "masked"
    choice = attention._Choice(math.inf, 10**9 if masked else 100, not masked, masked)
    # The noise is drawn on the CPU.
    drawn = mock.patch(
        "var_scaling.models.dit.objective.normal_of",
        lambda draws, purpose, shape: torch.empty(draws.images, *shape),
    )
    with mock.patch.dict(attention._CHOICES, {"cpu": choice}), drawn, FakeTensorMode():
        case = Case(family, depth, batch)
        rest = case.eager_kernels(case.loss, ())
        if variant in ("masked", "eager"):
            return rest
        names = ("forward",) if variant == "whole" else case.network.compiled_methods
        compiled: list[Kernel] = []
        for name, calls in case.calls(names).items():
            # All calls of a method have equal shapes: for each, the kernels of the first.
            method, inputs = getattr(case.network, name), new_tensors(calls[0])
            rest = remove(rest, case.eager_kernels(method, inputs) * len(calls))
            compiled += compiled_kernels(method, new_tensors(calls[0])) * len(calls)
        return rest + compiled


def estimate(kernels: list[Kernel], params: int, bandwidth: float) -> float:
    """Seconds of a step with these kernels."""
    flops_per_second = {
        "product": MATMUL_SHARE * PEAK,
        "masked attention": MASKED_FLOPS,
        "plain attention": PLAIN_FLOPS,
        "other": math.inf,
    }
    device = sum(
        max(
            LEAST_SECONDS,
            kernel.bytes / (MEMORY_SHARE * bandwidth),
            kernel.flops / flops_per_second[kernel.kind],
        )
        for kernel in kernels
    )
    update = UPDATE_BYTES * params / (MEMORY_SHARE * bandwidth)
    return max(device, LAUNCH_SECONDS * len(kernels)) + update


def row_of(family: str, depth: int, variant: str) -> dict[str, Any]:
    batch, began = BATCHES[family][depth], time.perf_counter()
    kernels = kernels_of(family, depth, batch, variant)
    spec = ModelSpec(*settings_of(family, depth), CLASSES)
    params = total(family_of(spec.config).parameters(spec))
    flops = batch * total(family_of(spec.config).training_flops(spec))
    h100, h200 = (estimate(kernels, params, b) for b in (H100_BANDWIDTH, H200_BANDWIDTH))
    return {
        "family": family,
        "depth": depth,
        "variant": variant,
        "batch": batch,
        "kernels": len(kernels),
        "model_tflop": flops / 1e12,
        "computed_attention_tflop": sum(k.flops for k in kernels if "att" in k.kind) / 1e12,
        "other_gb": other_gb(kernels),
        "h100_seconds": h100,
        "h100_mfu": flops / h100 / PEAK,
        "h200_seconds": h200,
        "seconds_to_count": time.perf_counter() - began,
    }


def other_gb(kernels: list[Kernel]) -> float:
    return sum(kernel.bytes for kernel in kernels if kernel.kind == "other") / 1e9


# Tokenizer ---------------------------------------------------------------------------------------


def tokenizer_row(variant: str) -> dict[str, Any]:
    """Of a training step with all losses, or of encoding the same number of images in float32."""
    t, began = imagenet256.tokenizer, time.perf_counter()
    with ExitStack() as stack:
        # What a GPU uses: its draws of dropout, its norms, no oneDNN, and operations on lists of
        # tensors (each counts as one kernel). The weights need not be channels-last: the images
        # are, and convolutions and norms keep the format.
        groups = autoencoder._DROPOUT_GROUP
        stack.enter_context(mock.patch.dict(groups, cpu=groups["cuda"]))
        stack.enter_context(mock.patch.object(autoencoder.GroupNorm, "forward", norm_of_gpu))
        stack.enter_context(mock.patch.object(linear, "_AVAILABLE", False))
        foreach = "torch.nn.utils.clip_grad._has_foreach_support"
        stack.enter_context(mock.patch(foreach, return_value=True))
        # A module of fake tensors cannot be moved to the device on which it is.
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", lambda module, _: module))
        stack.enter_context(FakeTensorMode())
        pixels_BHH3 = torch.empty(TOKENIZER_BATCH, t.side, t.side, 3, dtype=torch.uint8)
        run, flops = encoding_of(t), encoding_flops(t)
        if variant == "training":
            run, flops = training_of(t), total(tokenizer_training_flops(t, with_critic=True))
        counter = stack.enter_context(EagerCounter())
        run(to_unit(pixels_BHH3))
    return {
        "family": "tokenizer",
        "depth": None,
        "variant": variant,
        "batch": TOKENIZER_BATCH,
        "kernels": len(counter.kernels),
        "model_tflop": TOKENIZER_BATCH * flops / 1e12,
        "other_gb": other_gb(counter.kernels),
        "seconds_to_count": time.perf_counter() - began,
    }


def norm_of_gpu(layer: autoencoder.GroupNorm, x_BWHH: Tensor) -> Tensor:
    settings = layer.weight, layer.bias, layer.num_groups, layer.eps
    result: Tensor = autoencoder._ChannelsLastNorm.apply(x_BWHH, *settings)
    return result


def training_of(t: TrainedTokenizer) -> Callable[[Tensor], Any]:
    """The last training step that restarts no codes, as on a GPU."""
    t = t.model_copy(update={"batch_size": TOKENIZER_BATCH})
    trainer = _TokenizerTrainer(t, Perceptual().requires_grad_(False), World())
    for optimizer in (trainer.optimizer, trainer.losses.optimizer):
        optimizer.waits = False
    step = t.steps - 1 - (t.steps % t.codebook.restart_every == 0)
    # AdamW makes its averages in the first step.
    trainer.train_step(torch.empty(TOKENIZER_BATCH, 3, t.side, t.side), step)
    return lambda images_B3HH: trainer.train_step(images_B3HH, step)


def encoding_of(t: TrainedTokenizer) -> Callable[[Tensor], Any]:
    return MultiScaleVQVAE(t).eval().requires_grad_(False).encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*BATCHES, "tokenizer"]
    parser.add_argument("--families", nargs="+", default=names, choices=names)
    parser.add_argument("--depths", type=int, nargs="+", default=[6, 16, 30])
    parser.add_argument("--variants", nargs="+", help="default: those of each family")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "measured/kernels.json")
    options = parser.parse_args()
    # Rows that are not counted now are kept.
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    print("family     depth  variant   batch  kernels  TFLOP  other GB  H100 s   MFU     H200 s")
    for family in options.families:
        for depth in options.depths if family in BATCHES else [None]:
            if family in BATCHES and depth not in BATCHES[family]:
                continue
            for variant in options.variants or VARIANTS[family]:
                row = row_of(family, depth, variant) if depth else tokenizer_row(variant)
                key = family, depth, variant
                rows = [old for old in rows if key_of(old) != key] + [row]
                print(line_of(row), flush=True)
    rows.sort(key=lambda row: (names.index(row["family"]), row["depth"] or 0))
    options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


def key_of(row: dict[str, Any]) -> tuple[str, int | None, str]:
    return row["family"], row["depth"], row["variant"]


def line_of(row: dict[str, Any]) -> str:
    line = (
        f"{row['family']:9}  {row['depth'] or '':5}  {row['variant']:8}  {row['batch']:5}  "
        f"{row['kernels']:7}  {row['model_tflop']:5.1f}  {row['other_gb']:8.0f}"
    )
    if "h100_seconds" not in row:
        return line
    times = f"{row['h100_seconds']:.4f}  {row['h100_mfu']:6.1%}  {row['h200_seconds']:.4f}"
    return f"{line}  {times}"


if __name__ == "__main__":
    main()
