"""Sampling time of VAR, AR and DiT of one size at growing grids, and the law by which it grows.

    python benchmarks/family_sampling.py [--device cuda --depth 16 --width 64 --precision bf16]
        [--grids 4 8 16 32] [--batches 1 8] [--steps 25 250] [--rounds 1] [--out FILE.json]

All have as many blocks of one width, 4,096 codes, random weights, a static cache of keys and values
where there is one, and no guidance. Timed are whole images (draws, transformer, filters, decoder)
and the transformer alone. The families take turns within a round; of several rounds medians are
quoted. Nothing is said of quality: it is speed at equal size, not at equal quality.

law: seconds of the transformer at batch 1 as A side^p, by least squares in logarithms over the
grids; p is about 1 where passes cost the same and are few, 2 where each token has a pass.
Each row is written at once: what is cut off has left all that was measured before.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from var_scaling.accounting import total
from var_scaling.config import ImportedTokenizer
from var_scaling.evaluation.bench import Bench, matmul_peak
from var_scaling.evaluation.rates import MatmulPeak, SamplingSpeed
from var_scaling.evaluation.speed import Subject, sampling_speeds
from var_scaling.models.ar.config import ArModel, ArSampling
from var_scaling.models.base import ModelRecord, ModelSpec, SamplingRecord
from var_scaling.models.dit.config import DitModel, DitSampling
from var_scaling.models.registry import family_of
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE

SCALES = {  # of VAR; those of 16 and 32 are published (arXiv 2404.02905)
    4: (1, 2, 3, 4),
    8: (1, 2, 3, 4, 6, 8),
    16: PAPER_256,
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
CLASSES = 1000


def ways(depth: int, width: int, steps: list[int]) -> dict[str, tuple[ModelRecord, SamplingRecord]]:
    """Name: model and how it is sampled, all without guidance and filters."""
    shape: dict[str, Any] = {"depth": depth, "width_per_depth": width}
    return {
        "var": (VarModel(**shape), VarSampling(guidance=0.0, top_k=0, top_p=0.0)),
        "ar": (ArModel(**shape), ArSampling(guidance=0.0)),
        **{
            f"dit, {number} steps": (DitModel(**shape), DitSampling(guidance=0.0, steps=number))
            for number in steps
        },
    }


def subject(model: ModelRecord, grid: int, channels: int, device: torch.device) -> Subject:
    """One family at one grid: random weights, images of 16 pixels a cell."""
    sides = SCALES[grid] if model.family == "var" else (grid,)
    t = ImportedTokenizer(
        name="random", pyramid=Pyramid(patch_nums=sides), channels=channels, sha256="0" * 64
    )
    spec = ModelSpec(model, t, CLASSES)
    network = family_of(model).build(spec, 0).to(device).eval()
    for parameter in network.parameters():  # DiT is built with a head of zeros
        parameter.requires_grad_(False)
    return Subject(spec, network, MultiScaleVQVAE(t, 0).to(device).eval())


class Report:
    """The rows so far, on disk after each."""

    def __init__(self, path: Path | None, minutes: float):
        self.path, self.began, self.seconds = path, time.monotonic(), 60 * minutes
        self.found: dict[str, Any] = {"rows": []}

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def save(self) -> None:
        if self.path is not None:
            beside = self.path.with_suffix(".part")
            beside.write_text(json.dumps(self.found, indent=1) + "\n")
            os.replace(beside, self.path)


def measure(asked: argparse.Namespace, device: torch.device, report: Report) -> None:
    """Every family at every grid and batch, in rounds; a grid for which time is short is left."""
    bench = Bench(device, asked.seconds)
    peak = matmul_peak(asked.precision, bench)
    report.found["peak_flops_per_second"] = peak.flops_per_second
    ways_there = ways(asked.depth, asked.width, asked.steps)
    spent: float = 0.0
    for grid in asked.grids:
        if report.left() < 2 * spent:
            print(f"grid {grid}: left out, {report.left():.0f} s are left")
            continue
        began = time.monotonic()
        for turn in range(asked.rounds):
            for name, (model, sampling) in ways_there.items():
                here = subject(model, grid, asked.channels, device)
                for speed in _speeds(here, asked, peak, bench, sampling):
                    row: dict[str, Any] = {
                        "family": name, "grid": grid, "batch": speed.batch, "round": turn,
                        "parameters": total(here.family.parameters(here.spec)),
                    }  # fmt: skip
                    if speed.whole is None or speed.transformer is None or speed.decoder is None:
                        row["missing"] = speed.missing
                    else:
                        row |= {
                            "seconds": speed.whole.median_seconds,
                            "transformer_seconds": speed.transformer.median_seconds,
                            "decoder_seconds": speed.decoder.median_seconds,
                            "flops": speed.model_flops, "mfu": speed.transformer_mfu,
                            "repeats": speed.whole.repeats,
                        }  # fmt: skip
                    report.found["rows"].append(row)
                    report.save()
                    print("  ".join(f"{k} {_short(v)}" for k, v in row.items()), flush=True)
        spent = time.monotonic() - began


def _speeds(
    here: Subject,
    asked: argparse.Namespace,
    peak: MatmulPeak,
    bench: Bench,
    sampling: SamplingRecord,
) -> Iterator[SamplingSpeed]:
    """Each batch on its own: on a GPU a larger one is not left out for what a smaller one took."""
    for batch in asked.batches:
        ways = [(asked.precision, 0.0)]
        yield from sampling_speeds(here, ways, [batch], {asked.precision: peak}, bench, sampling)


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Ratios to VAR of the same grid, and the law of each family."""
    lines = [""]
    measured = [row for row in rows if "seconds" in row]

    def typical(name: str, grid: int, batch: int, column: str) -> float:
        found = [
            row[column]
            for row in measured
            if (row["family"], row["grid"], row["batch"]) == (name, grid, batch)
        ]
        return median(found) if found else math.nan

    names = list(dict.fromkeys(row["family"] for row in rows))
    grids = sorted({row["grid"] for row in rows})
    batches = sorted({row["batch"] for row in rows})
    for column, what in (("seconds", "whole image"), ("transformer_seconds", "transformer alone")):
        lines.append(f"{what}: ms an image by batch (ratio to VAR at that grid and batch)")
        heads = [f"{grid}, batch {batch}" for grid in grids for batch in batches]
        lines.append(f"{'':16}" + "".join(f"{head:>20}" for head in heads))
        for name in names:
            cells = []
            for grid in grids:
                for batch in batches:
                    own = typical(name, grid, batch, column) / batch
                    var = typical("var", grid, batch, column) / batch
                    cells.append(f"{1e3 * own:12.4g} ({own / var:4.3g})")
            lines.append(f"{name:16}" + "".join(f"{cell:>20}" for cell in cells))
    for name in names:
        points = [(grid, typical(name, grid, batches[0], "transformer_seconds")) for grid in grids]
        points = [(grid, seconds) for grid, seconds in points if math.isfinite(seconds)]
        if len(points) < 3:
            continue
        x, y = ([math.log(value) for value in each] for each in zip(*points, strict=True))
        slope, intercept = linear_regression(x, y)
        worst = max(abs(b - slope * a - intercept) for a, b in zip(x, y, strict=True))
        local = [
            f"{(after - before) / (right - left):.2f}"
            for (left, right), (before, after) in zip(pairwise(x), pairwise(y), strict=True)
        ]
        lines.append(
            f"{name}: seconds = {math.exp(intercept):.3g} side^{slope:.2f}, off by at most "
            f"{100 * (math.exp(worst) - 1):.0f} %; between neighbours {', '.join(local)}"
        )
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=64, help="for each layer of depth")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--channels", type=int, default=32, help="of the decoder; paper: 160")
    parser.add_argument("--grids", type=int, nargs="+", default=[4, 8, 16], choices=list(SCALES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[25], help="of DiT")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each cell")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    report = Report(asked.out, asked.minutes)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    report.found["machine"] = {
        "name": name, "torch": torch.__version__, "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    report.found["asked"] = {k: v for k, v in vars(asked).items() if k != "out"}
    measure(asked, device, report)
    print("\n".join(tables(report.found["rows"])))


if __name__ == "__main__":
    main()
