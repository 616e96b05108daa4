"""How fast tokens are drawn, beside two other ways to run the same transformer; same noise.

    python benchmarks/sampling.py [--device cuda --precision bf16] [--grids 4 8 16] [--batches 1 8]

without a cache: at every scale a full forward over all tokens up to it, always doubled.
as released: keys and values cached, but grown by torch.cat; AdaLN computed anew at every scale; the
    unconditional half runs at every scale for every image (arXiv 2404.02905).
+ AdaLN once, + still cache: the same with these parts of ours, one after the other. All that is
    left to ours then are the rows that guidance does not need.

Random weights: speed does not depend on them. Filters, draws and grid are those of the
sampler, without decoder. The variants take turns. Printed: medians, half ranges and ratios of
medians. A GPU is synchronised at every scale.
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
from var_scaling.models.layers import autocast_dtype, full_precision
from var_scaling.models.logits import guided
from var_scaling.models.var import sampler as walking
from var_scaling.models.var.accounting import var_forward_flops
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.models.var.model import VAR
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.optim import precision_context

# R rows: the images and, behind them, the same told no class. L tokens so far, S of this scale.
PYRAMIDS = {4: (1, 2, 3, 4), 8: (1, 2, 3, 4, 6, 8), 16: PAPER_256}
CLASSES = 1000


class Uncached:
    """No cache: what is shown is kept, and every scale runs all of it again."""

    def __init__(self, model: VAR, pyramid: Pyramid, labels_B: Tensor, guidance: list[float]):
        self.model, self.pyramid, self.guidance = model, pyramid, guidance
        self.labels_R = torch.cat([labels_B, torch.full_like(labels_B, model.classes)])
        self.shown: list[Tensor] = []

    def logits(self, k: int, shown_BSZ: Tensor | None) -> Tensor:
        if shown_BSZ is not None:
            self.shown.append(torch.cat([shown_BSZ, shown_BSZ]))
        start, length = self.pyramid.starts[k], self.pyramid.lengths[k]
        x_RLC, cond_RC = embedded(self.model, self.labels_R, self.shown, 0)
        cond = conditioned(self.model, cond_RC)
        mask_LL = self.model.mask_LL[: start + length, : start + length]
        for block in self.model.blocks:
            x_RLC = block(x_RLC, block.parts(cond), mask_LL, (1, 1))
        return read(self.model, x_RLC[:, start:], cond_RC, self.guidance[k])


class Grown:
    """Keys and values grown by torch.cat, AdaLN at every scale: as released; with options, less."""

    once, still = False, False

    def __init__(self, model: VAR, pyramid: Pyramid, labels_B: Tensor, guidance: list[float]):
        self.model, self.pyramid, self.guidance = model, pyramid, guidance
        self.labels_R = torch.cat([labels_B, torch.full_like(labels_B, model.classes)])
        self.held: list[tuple[Tensor, Tensor] | None] = [None] * len(model.blocks)
        self.parts: list[Tensor] | None = None
        if self.still:
            heads, width = model.config.heads, model.config.width
            size = (len(model.blocks), 2, len(self.labels_R), heads, pyramid.length, width // heads)
            device = labels_B.device
            self.places = torch.empty(size, dtype=autocast_dtype(device), device=device)

    def logits(self, k: int, shown_BSZ: Tensor | None) -> Tensor:
        start = self.pyramid.starts[k]
        shown = [] if shown_BSZ is None else [torch.cat([shown_BSZ, shown_BSZ])]
        x_RSC, cond_RC = embedded(self.model, self.labels_R, shown, start)
        if self.parts is None or not self.once:
            cond = conditioned(self.model, cond_RC)
            self.parts = [block.parts(cond) for block in self.model.blocks]
        for number, (block, parts) in enumerate(zip(self.model.blocks, self.parts, strict=True)):
            update_kv_cache = self.memory(number, start, self.pyramid.lengths[k])
            x_RSC = block(x_RSC, parts, None, (1, 1), update_kv_cache)
        return read(self.model, x_RSC, cond_RC, self.guidance[k])

    def memory(self, number: int, start: int, length: int):
        def put(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            held = self.places[number]
            held[0, :, :, start : start + length] = key
            held[1, :, :, start : start + length] = value
            return held[0, :, :, : start + length], held[1, :, :, : start + length]

        def grow(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            held = self.held[number]
            if held is not None:
                key, value = torch.cat([held[0], key], dim=2), torch.cat([held[1], value], dim=2)
            self.held[number] = key, value
            return key, value

        return put if self.still else grow


WAYS = {
    "ours": walking.VARSampler,
    "+ still cache": type("StillOnce", (Grown,), {"once": True, "still": True}),
    "+ AdaLN once": type("GrownOnce", (Grown,), {"once": True}),
    "as released": Grown,
    "without a cache": Uncached,
}


def embedded(model: VAR, labels_R: Tensor, shown: list[Tensor], start: int) -> list[Tensor]:
    """What enters the blocks from position `start` on, and the condition, which stays float32."""
    with full_precision(labels_R.device):
        cond_RC = model.class_emb(labels_R)
        parts = [model.word_embed(shown_RSZ) for shown_RSZ in shown]
        if start == 0:
            parts.insert(0, cond_RC[:, None] + model.pos_start)
        x_RLC = torch.cat(parts, dim=1)
        here = slice(start, start + x_RLC.shape[1])
        x_RLC = x_RLC + model.lvl_embed(model.levels_L[here]) + model.pos_1LC[:, here]
    return [x_RLC.to(autocast_dtype(labels_R.device)), cond_RC]


def conditioned(model: VAR, cond_RC: Tensor) -> Tensor:
    cond = model.shared_ada_lin(cond_RC) if model.config.shared_adaln else cond_RC
    return cond.to(autocast_dtype(cond_RC.device))


def read(model: VAR, x_RSC: Tensor, cond_RC: Tensor, weight: float) -> Tensor:
    logits_RSV = model.head(model.head_nm(x_RSC.float(), cond_RC)).float()
    return guided(*logits_RSV.chunk(2), weight)


# Measuring ---------------------------------------------------------------------------------------


class Run(NamedTuple):
    transformer_seconds: float  # AdaLN and cache among it
    seconds: float
    steps: list[walking.Drawn]


def run(way: type, model: VAR, quantizer: Quantizer, batch: int, sampling: VarSampling) -> Run:
    """One batch drawn by the sampler's own walk, with `way` for its transformer."""
    device, spent = model.pos_start.device, list[float]()

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    class Timed(way):
        def __init__(self, *given: object):
            began = clock()
            super().__init__(*given)
            spent.append(clock() - began)

        def logits(self, k: int, shown_BSZ: Tensor | None) -> Tensor:
            began = clock()
            found = super().logits(k, shown_BSZ)
            spent.append(clock() - began)
            return found

    requests = [Request(number, 0) for number in range(batch)]
    labels_B = torch.arange(batch, device=device)
    noise, began = RequestDraws(0, requests, device), clock()
    with patch.object(walking, "VARSampler", Timed), precision_context(sampling.precision, device):
        steps = list(walking.sample_tokens(model, quantizer, labels_B, sampling, noise))
    return Run(sum(spent), clock() - began, steps)


def outspoken(config: VarModel, t: ImportedTokenizer) -> tuple[VAR, Quantizer]:
    """Random weights by which classes and blocks show in the tokens: at the usual start none do."""
    torch.manual_seed(0)
    model, quantizer = VAR(config, t, CLASSES, seed=0), Quantizer(t)
    model.class_emb.weight.data.normal_()
    model.head.weight.data.mul_(3 / config.head_init)
    for block in model.blocks:
        block.ada_lin[1].bias.data[: 2 * config.width] = 1  # the gates of attention and MLP
    return model.eval().requires_grad_(False), quantizer.requires_grad_(False)


def difference(ours: Run, theirs: Run) -> str:
    """Where the tokens differ, and how far the logits do up to there: rounding, or an error."""
    tokens = sum(step.ids_BS.numel() for step in ours.steps)
    other, largest = 0, 0.0
    for mine, its in zip(ours.steps, theirs.steps, strict=True):
        if not other:  # from the first other token on they are shown something else
            largest = max(largest, float((mine.logits_BSV - its.logits_BSV).abs().max()))
        other += int((mine.ids_BS != its.ids_BS).sum())
    spread = float(ours.steps[-1].logits_BSV.std())
    same = "equal tokens" if not other else f"{other:,} of {tokens:,} tokens differ"
    return f"{same}; logits by at most {largest:.0e} of a spread of {spread:.2f}"


def compare(side: int, batch: int, asked: argparse.Namespace) -> None:
    """One grid and batch: first that all draw the same, then the seconds, taking turns."""
    t = ImportedTokenizer(name="paper", sha256="0" * 64, pyramid=Pyramid(patch_nums=PYRAMIDS[side]))
    config, device = (
        VarModel(depth=asked.depth, width_per_depth=asked.width),
        torch.device(asked.device),
    )
    model, quantizer = (module.to(device) for module in outspoken(config, t))
    sampling = VarSampling(guidance=asked.guidance, precision=asked.precision)
    gflops = total(var_forward_flops(config, t)) / 1e9
    print(
        f"\n{side} × {side}, batch {batch}: {t.pyramid.length} tokens, {gflops:.3g} GFLOPs a pass"
    )
    warm = {name: run(way, model, quantizer, batch, sampling) for name, way in WAYS.items()}
    found: dict[str, list[Run]] = {name: [] for name in WAYS}
    for name in list(WAYS) * asked.repeats:
        drawn = run(WAYS[name], model, quantizer, batch, sampling)
        found[name].append(drawn._replace(steps=[]))
    print(f"{'':18}{'transformer':>12}{'spread':>9}{'÷ ours':>8}{'with draws':>13}{'÷ ours':>8}")
    least = [median(part) for part in zip(*(one[:2] for one in found["ours"]), strict=True)]
    for name, runs in found.items():
        seconds = [one.transformer_seconds for one in runs]
        inner, whole = median(seconds), median(one.seconds for one in runs)
        spread = (max(seconds) - min(seconds)) / 2 / inner
        said = "" if name == "ours" else "  " + difference(warm["ours"], warm[name])
        print(
            f"{name:18}{inner:>10.4f} s{spread:>8.0%} {inner / least[0]:>7.2f}"
            f"{whole:>11.4f} s{whole / least[1]:>8.2f}{said}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--grids", type=int, nargs="+", choices=PYRAMIDS, default=[4, 8, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=64, help="of each head; times depth in all")
    parser.add_argument("--guidance", type=float, default=1.5, help="rising from 0; 0: none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of a processor")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="fp32", help="fp32, tf32, bf16 or fp16")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    gpu = torch.cuda.get_device_name() if asked.device == "cuda" else None
    said = ", ".join(f"{name} {value}" for name, value in vars(asked).items())
    print(f"{said}; {gpu or 'processor'}, torch {torch.__version__}")
    for side in asked.grids:
        for batch in asked.batches:
            compare(side, batch, asked)


if __name__ == "__main__":
    main()
