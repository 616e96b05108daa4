"""Sampling time of VAR, AR and DiT of one size at growing grids, and a power law of its growth.

    python benchmarks/family_sampling.py [--device cuda --depth 16 --width 64 --precision bf16]
        [--grids 4 8 16 32] [--batches 1 8] [--steps 25 250] [--rounds 1] [--out FILE.json]

All models have the same number of blocks, the same width, 4,096 codes, random weights, a static
key-value cache (VAR and AR), and no guidance. Whole images (random numbers, transformer, filters,
decoder) and the transformer alone are timed. The families take turns within a round; the tables
show medians over the rounds. This compares speed at equal size, not at equal quality.

law: seconds of the transformer at batch 1 as A side^p, by least squares in logarithms over the
grids; p is about 1 if there are few passes of equal cost, 2 if there is one pass per token.
The file is rewritten after each row, so that an interrupted run keeps its results.
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

SCALES = {  # patch_nums of VAR by grid; those of 16 and 32 are published (arXiv 2404.02905)
    4: (1, 2, 3, 4),
    8: (1, 2, 3, 4, 6, 8),
    16: PAPER_256,
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
CLASSES = 1000


def variants(
    depth: int, width: int, steps: list[int]
) -> dict[str, tuple[ModelRecord, SamplingRecord]]:
    """Model and sampling settings by name, all without guidance and filters."""
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
    """One family at one grid: random weights, 16 × 16 pixels per grid cell."""
    patch_nums = SCALES[grid] if model.family == "var" else (grid,)
    t = ImportedTokenizer(
        name="random", pyramid=Pyramid(patch_nums=patch_nums), channels=channels, sha256="0" * 64
    )
    spec = ModelSpec(model, t, CLASSES)
    network = family_of(model).build(spec, 0).to(device).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return Subject(spec, network, MultiScaleVQVAE(t, 0).to(device).eval())


class Report:
    """The rows so far, written to disk after each row."""

    def __init__(self, path: Path | None, minutes: float):
        self.path, self.began, self.seconds = path, time.monotonic(), 60 * minutes
        self.results: dict[str, Any] = {"rows": []}

    def seconds_left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def save(self) -> None:
        if self.path is not None:
            temporary_path = self.path.with_suffix(".part")
            temporary_path.write_text(json.dumps(self.results, indent=1) + "\n")
            os.replace(temporary_path, self.path)


def measure(options: argparse.Namespace, device: torch.device, report: Report) -> None:
    """Time every family at every grid and batch, in rounds; skip a grid if little time is left."""
    bench = Bench(device, options.seconds)
    peak = matmul_peak(options.precision, bench)
    report.results["peak_flops_per_second"] = peak.flops_per_second
    models = variants(options.depth, options.width, options.steps)
    spent: float = 0.0
    for grid in options.grids:
        if report.seconds_left() < 2 * spent:  # a larger grid takes longer
            print(f"grid {grid}: skipped, {report.seconds_left():.0f} s are left")
            continue
        began = time.monotonic()
        for turn in range(options.rounds):
            for name, (model, sampling) in models.items():
                timed = subject(model, grid, options.channels, device)
                for speed in _speeds(timed, options, peak, bench, sampling):
                    row: dict[str, Any] = {
                        "family": name, "grid": grid, "batch": speed.batch, "round": turn,
                        "parameters": total(timed.family.parameters(timed.spec)),
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
                    report.results["rows"].append(row)
                    report.save()
                    print("  ".join(f"{k} {_short(v)}" for k, v in row.items()), flush=True)
        spent = time.monotonic() - began


def _speeds(
    timed: Subject,
    options: argparse.Namespace,
    peak: MatmulPeak,
    bench: Bench,
    sampling: SamplingRecord,
) -> Iterator[SamplingSpeed]:
    """Each batch size by itself: `sampling_speeds` would skip a large batch because its time,
    extrapolated in proportion from a small one, is too long; on a GPU it is much shorter.
    """
    for batch in options.batches:
        settings = [(options.precision, 0.0)]
        yield from sampling_speeds(
            timed, settings, [batch], {options.precision: peak}, bench, sampling
        )


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Ratios to VAR of the same grid, and the law of each family."""
    lines = [""]
    measured = [row for row in rows if "seconds" in row]

    def typical(name: str, grid: int, batch: int, column: str) -> float:
        values = [
            row[column]
            for row in measured
            if (row["family"], row["grid"], row["batch"]) == (name, grid, batch)
        ]
        return median(values) if values else math.nan

    names = list(dict.fromkeys(row["family"] for row in rows))
    grids = sorted({row["grid"] for row in rows})
    batches = sorted({row["batch"] for row in rows})
    for column, title in (("seconds", "whole image"), ("transformer_seconds", "transformer alone")):
        lines.append(f"{title}: ms per image (ratio to VAR at the same grid and batch)")
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
            f"{name}: seconds = {math.exp(intercept):.3g} side^{slope:.2f}, largest deviation "
            f"{100 * (math.exp(worst) - 1):.0f} %; exponents between grids {', '.join(local)}"
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
    parser.add_argument("--width", type=int, default=64, help="width per unit of depth")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--channels", type=int, default=32, help="of the decoder; paper: 160")
    parser.add_argument("--grids", type=int, nargs="+", default=[4, 8, 16], choices=list(SCALES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[25], help="of DiT")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="time budget of each cell")
    parser.add_argument("--minutes", type=float, default=60.0, help="time budget of the whole run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    report = Report(options.out, options.minutes)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    report.results["machine"] = {
        "name": name, "torch": torch.__version__, "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    report.results["asked"] = {k: v for k, v in vars(options).items() if k != "out"}
    measure(options, device, report)
    print("\n".join(tables(report.results["rows"])))


if __name__ == "__main__":
    main()
