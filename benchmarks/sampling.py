"""Time token sampling with four other implementations of the same transformer; same noise.

    python benchmarks/sampling.py [--device cuda --precision bf16] [--grids 4 8 16] [--batches 1 8]

without a cache: at every scale a full forward pass over all tokens so far, for conditional and
    unconditional rows.
as released: keys and values cached, but appended by torch.cat; AdaLN computed again at every scale;
    the unconditional rows run at every scale for every image (arXiv 2404.02905).
+ AdaLN once: as released, but AdaLN is computed once.
+ static cache: moreover, the cache is allocated once. The remaining difference to ours is that
    ours skips the unconditional rows at scales without guidance.

Weights are random, since speed does not depend on them. Filters, random numbers and grids are those
of the sampler; the decoder is not run. The implementations take turns. Printed are medians, half
ranges and ratios of medians. A GPU is synchronised at every scale.
"""

import argparse
import time
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from var_scaling.accounting import total
from var_scaling.config import ImportedTokenizer
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.sample import RequestDraws
from var_scaling.models.attention import AttentionMask
from var_scaling.models.layers import autocast_dtype, full_precision
from var_scaling.models.logits import apply_guidance
from var_scaling.models.var import sampler
from var_scaling.models.var.accounting import var_forward_flops
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.models.var.model import VAR
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.optim import precision_context

# Shapes: R rows (the images, then the same images with the null class), L tokens so far, S tokens
# of this scale.
PYRAMIDS = {4: (1, 2, 3, 4), 8: (1, 2, 3, 4, 6, 8), 16: PAPER_256}
CLASSES = 1000


class Uncached:
    """No cache: the input tokens are stored, and every scale runs all of them again."""

    def __init__(self, model: VAR, pyramid: Pyramid, labels_B: Tensor, guidance: list[float]):
        self.model, self.pyramid, self.guidance = model, pyramid, guidance
        self.labels_R = torch.cat([labels_B, torch.full_like(labels_B, model.classes)])
        self.inputs: list[Tensor] = []

    def logits(self, k: int, input_BSZ: Tensor | None) -> Tensor:
        if input_BSZ is not None:
            self.inputs.append(torch.cat([input_BSZ, input_BSZ]))
        start = self.pyramid.starts[k]
        x_RLC, cond_RC = embedded(self.model, self.labels_R, self.inputs, 0)
        cond = conditioned(self.model, cond_RC)
        mask = AttentionMask(self.pyramid.lengths[: k + 1])
        for block in self.model.blocks:
            x_RLC = block(x_RLC, block.adaln_params(cond), mask)
        return guided_logits(self.model, x_RLC[:, start:], cond_RC, self.guidance[k])


class Released:
    """As released: keys and values appended by torch.cat, AdaLN at every scale.

    `adaln_once` computes AdaLN once, `static_cache` allocates the cache once.
    """

    adaln_once, static_cache = False, False

    def __init__(self, model: VAR, pyramid: Pyramid, labels_B: Tensor, guidance: list[float]):
        self.model, self.pyramid, self.guidance = model, pyramid, guidance
        self.labels_R = torch.cat([labels_B, torch.full_like(labels_B, model.classes)])
        self.appended: list[tuple[Tensor, Tensor] | None] = [None] * len(model.blocks)
        self.adaln_params: list[Tensor] | None = None
        if self.static_cache:
            heads, width = model.config.heads, model.config.width
            size = (len(model.blocks), 2, len(self.labels_R), heads, pyramid.length, width // heads)
            device = labels_B.device
            self.allocated = torch.empty(size, dtype=autocast_dtype(device), device=device)

    def logits(self, k: int, input_BSZ: Tensor | None) -> Tensor:
        start = self.pyramid.starts[k]
        inputs = [] if input_BSZ is None else [torch.cat([input_BSZ, input_BSZ])]
        x_RSC, cond_RC = embedded(self.model, self.labels_R, inputs, start)
        if self.adaln_params is None or not self.adaln_once:
            cond = conditioned(self.model, cond_RC)
            self.adaln_params = [block.adaln_params(cond) for block in self.model.blocks]
        for number, (block, parts) in enumerate(
            zip(self.model.blocks, self.adaln_params, strict=True)
        ):
            update_kv_cache = self.cache_update(number, start, self.pyramid.lengths[k])
            x_RSC = block(x_RSC, parts, None, None, update_kv_cache)
        return guided_logits(self.model, x_RSC, cond_RC, self.guidance[k])

    def cache_update(self, number: int, start: int, length: int):
        def write(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, None]:
            cache = self.allocated[number]
            cache[0, :, :, start : start + length] = key
            cache[1, :, :, start : start + length] = value
            return cache[0, :, :, : start + length], cache[1, :, :, : start + length], None

        def append(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, None]:
            cache = self.appended[number]
            if cache is not None:
                key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
            self.appended[number] = key, value
            return key, value, None

        return write if self.static_cache else append


IMPLEMENTATIONS = {
    "ours": sampler.VARSampler,
    "+ static cache": type("StaticCache", (Released,), {"adaln_once": True, "static_cache": True}),
    "+ AdaLN once": type("AdaLNOnce", (Released,), {"adaln_once": True}),
    "as released": Released,
    "without a cache": Uncached,
}


def embedded(model: VAR, labels_R: Tensor, inputs: list[Tensor], start: int) -> list[Tensor]:
    """The input of the blocks from position `start` on, and the condition, which stays float32."""
    with full_precision(labels_R.device):
        cond_RC = model.class_emb(labels_R)
        parts = [model.word_embed(input_RSZ) for input_RSZ in inputs]
        if start == 0:
            parts.insert(0, cond_RC[:, None] + model.pos_start)
        x_RLC = torch.cat(parts, dim=1)
        positions = slice(start, start + x_RLC.shape[1])
        x_RLC = x_RLC + model.lvl_embed(model.levels_L[positions]) + model.pos_1LC[:, positions]
    return [x_RLC.to(autocast_dtype(labels_R.device)), cond_RC]


def conditioned(model: VAR, cond_RC: Tensor) -> Tensor:
    cond = model.shared_ada_lin(cond_RC) if model.config.shared_adaln else cond_RC
    return cond.to(autocast_dtype(cond_RC.device))


def guided_logits(model: VAR, x_RSC: Tensor, cond_RC: Tensor, weight: float) -> Tensor:
    logits_RSV = model.head(model.head_nm(x_RSC.float(), cond_RC)).float()
    return apply_guidance(*logits_RSV.chunk(2), weight)


# Measuring ---------------------------------------------------------------------------------------


class Run(NamedTuple):
    transformer_seconds: float  # AdaLN and cache included
    seconds: float
    steps: list[sampler.ScaleResult]


def run(
    implementation: type, model: VAR, quantizer: Quantizer, batch: int, sampling: VarSampling
) -> Run:
    """One batch sampled by `sample_tokens`, with `implementation` as its transformer."""
    device, spent = model.pos_start.device, list[float]()

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    class Timed(implementation):
        def __init__(self, *args: object):
            began = clock()
            super().__init__(*args)
            spent.append(clock() - began)

        def logits(self, k: int, input_BSZ: Tensor | None) -> Tensor:
            began = clock()
            logits = super().logits(k, input_BSZ)
            spent.append(clock() - began)
            return logits

    requests = [Request(number, 0) for number in range(batch)]
    labels_B = torch.arange(batch, device=device)
    noise, began = RequestDraws(0, requests, device), clock()
    with patch.object(sampler, "VARSampler", Timed), precision_context(sampling.precision, device):
        steps = list(sampler.sample_tokens(model, quantizer, labels_B, sampling, noise))
    return Run(sum(spent), clock() - began, steps)


def random_model(config: VarModel, t: ImportedTokenizer) -> tuple[VAR, Quantizer]:
    """Random weights with which tokens depend on classes and blocks, unlike at initialisation."""
    torch.manual_seed(0)
    model, quantizer = VAR(config, t, CLASSES, seed=0), Quantizer(t)
    model.class_emb.weight.data.normal_()
    model.head.weight.data.mul_(3 / config.head_init)
    for block in model.blocks:
        block.ada_lin[1].bias.data[: 2 * config.width] = 1  # the gates of attention and MLP
    return model.eval().requires_grad_(False), quantizer.requires_grad_(False)


def difference(ours: Run, theirs: Run) -> str:
    """How many tokens differ, and by how much the logits differ before the first of them."""
    tokens = sum(step.ids_BS.numel() for step in ours.steps)
    differing, largest = 0, 0.0
    for our_step, their_step in zip(ours.steps, theirs.steps, strict=True):
        if not differing:  # after the first different token the inputs differ
            error = (our_step.logits_BSV - their_step.logits_BSV).abs().max()
            largest = max(largest, float(error))
        differing += int((our_step.ids_BS != their_step.ids_BS).sum())
    spread = float(ours.steps[-1].logits_BSV.std())
    equal = "equal tokens" if not differing else f"{differing:,} of {tokens:,} tokens differ"
    return f"{equal}; logits differ by at most {largest:.0e}, their std is {spread:.2f}"


def compare(side: int, batch: int, options: argparse.Namespace) -> None:
    """Check that all implementations sample the same tokens, then time them in turns."""
    t = ImportedTokenizer(name="paper", sha256="0" * 64, pyramid=Pyramid(patch_nums=PYRAMIDS[side]))
    config, device = (
        VarModel(depth=options.depth, width_per_depth=options.width),
        torch.device(options.device),
    )
    model, quantizer = (module.to(device) for module in random_model(config, t))
    sampling = VarSampling(guidance=options.guidance, precision=options.precision)
    gflops = total(var_forward_flops(config, t)) / 1e9
    print(
        f"\n{side} × {side}, batch {batch}: {t.pyramid.length} tokens, {gflops:.3g} GFLOPs per pass"
    )
    first_runs = {  # also the warm-up
        name: run(implementation, model, quantizer, batch, sampling)
        for name, implementation in IMPLEMENTATIONS.items()
    }
    timed: dict[str, list[Run]] = {name: [] for name in IMPLEMENTATIONS}
    for name in list(IMPLEMENTATIONS) * options.repeats:
        result = run(IMPLEMENTATIONS[name], model, quantizer, batch, sampling)
        timed[name].append(result._replace(steps=[]))  # frees the logits
    print(f"{'':18}{'transformer':>12}{'spread':>9}{'÷ ours':>8}{'with filters':>13}{'÷ ours':>8}")
    our_transformer = median(result.transformer_seconds for result in timed["ours"])
    our_total = median(result.seconds for result in timed["ours"])
    for name, runs in timed.items():
        seconds = [result.transformer_seconds for result in runs]
        transformer, total_seconds = median(seconds), median(result.seconds for result in runs)
        spread = (max(seconds) - min(seconds)) / 2 / transformer
        note = ""
        if name != "ours":
            note = "  " + difference(first_runs["ours"], first_runs[name])
        print(
            f"{name:18}{transformer:>10.4f} s{spread:>8.0%} {transformer / our_transformer:>7.2f}"
            f"{total_seconds:>11.4f} s{total_seconds / our_total:>8.2f}{note}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--grids", type=int, nargs="+", choices=PYRAMIDS, default=[4, 8, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument(
        "--width", type=int, default=64, help="width per unit of depth, the width of a head"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.5,
        help="weight at the last scale, rising from 0 at the first; 0: none",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32, bf16 or fp16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    settings = ", ".join(f"{name} {value}" for name, value in vars(options).items())
    print(f"{settings}; {gpu or 'CPU'}, torch {torch.__version__}")
    for side in options.grids:
        for batch in options.batches:
            compare(side, batch, options)


if __name__ == "__main__":
    main()
