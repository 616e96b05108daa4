"""Times: sampling of three families on a GPU, training on a GPU and on a CPU."""

import json
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from published_laws import short
from results import ROOT, Table

from pipelines.workspace.settings import RELATIVE_PEAKS

BENCHMARKS = ROOT / "benchmarks"


def speed_values() -> dict[str, str]:
    return _gpu_values() | _sampling_values() | _cpu_values()


def _gpu_values() -> dict[str, str]:
    """VAR on an H200: shares of the datasheet's peak, milliseconds of a step and of an image."""
    known = json.loads((BENCHMARKS / "measured/gpu_h200.json").read_text())
    rows = {(row["depth"], row["way"]): row for row in known["training"] if row["family"] == "var"}
    sampling = {row["precision"]: row for row in known["sampling"] if row["batch"] == 1}
    # Peaks by the datasheet, as in pipelines/workspace/settings.py.
    peaks = {name: 989e12 * RELATIVE_PEAKS[name] for name in ("fp16", "tf32", "fp32")}
    encoding = {row["precision"]: row["flops_per_second"] for row in known["encoding"]}
    names = {
        "h200.step": "ours",
        "h200.step.compiled": "ours, compiled",
        "h200.released": "released",
        "h200.released.compiled": "released, compiled",
    }
    return {
        f"h200.d{depth}{suffix}": f"{100 * rows[depth, way]['mfu_of_datasheet']:.0f}"
        for depth in (6, 16, 24)
        for suffix, way in (("", "ours, compiled"), (".eager", "ours"))
    } | {
        **{name: f"{1e3 * rows[16, way]['median_seconds']:.0f}" for name, way in names.items()},
        **{f"encode.{name}": f"{100 * encoding[name] / peak:.0f}" for name, peak in peaks.items()},
        "h200.batch": str(rows[16, "ours"]["batch"]),
        "h200.image": f"{1e3 * sampling['fp16']['median_seconds']:.0f}",
        "h200.image.plain": f"{1e3 * sampling['fp16']['without_graphs_seconds']:.0f}",
    }


_CPU = "family_sampling_cpu"


@cache
def _sampling(batch: int, name: str = "") -> pd.DataFrame:
    """Times of a batch by grid, family and round, from the file `name`, by default of the H200."""
    name = name or {1: "family_sampling_h200_batch1", 64: "family_sampling_h200"}[batch]
    known = json.loads((BENCHMARKS / f"measured/{name}.json").read_text())
    rows = pd.DataFrame(known["rows"])
    return rows[rows.batch == batch]


def _times(batch: int, column: str, name: str = "") -> pd.DataFrame:
    """By grid and family: means over the rounds."""
    return _sampling(batch, name).pivot_table(column, "grid", "family", aggfunc="mean")


_FAMILIES = {"VAR": "var", "AR": "ar", "DiT, 25 steps": "dit, 25 steps"}
_GRIDS = (4, 8, 16)


def sampling_tables() -> list[Table]:
    on_gpu = _FAMILIES | {"DiT, 250 steps": "dit, 250 steps"}
    return [_sampling_table("grid", on_gpu, ""), _sampling_table("grid, CPU", _FAMILIES, _CPU)]


def _sampling_table(head: str, families: dict[str, str], name: str) -> Table:
    times = _times(1, "seconds", name)
    rows = [(head, *families)]
    for grid in _GRIDS:
        var = times.loc[grid, "var"]
        cells = [
            f"{1e3 * times.loc[grid, family]:,.0f}"
            + ("" if family == "var" else f" ({_ratio(times.loc[grid, family] / var)})")
            for family in families.values()
        ]
        rows.append((f"{grid} x {grid}", *cells))
    rows.append(("p", *(_power(family, name) for family in families.values())))
    return Table("docs/families.md", tuple(rows), "benchmarks/measured")


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 30 else f"{value:.1f}"


def _power(family: str, name: str) -> str:
    """p of transformer seconds ∝ side^p over the three grids."""
    seconds = _times(1, "transformer_seconds", name)[family].loc[list(_GRIDS)]
    slope = np.polyfit(np.log(_GRIDS), np.log(seconds), 1)[0]
    return f"{slope:.2f}" if abs(slope) < 0.1 else f"{slope:.1f}"


def _sampling_values() -> dict[str, str]:
    one = _times(1, "seconds")
    whole, decoder, transformer = (
        _times(64, column) for column in ("seconds", "decoder_seconds", "transformer_seconds")
    )
    rounds = _sampling(1).pivot_table("seconds", "round", ["grid", "family"])[16]
    by_round = sorted(rounds["ar"] / rounds["var"])
    dit = transformer.loc[16, "dit, 25 steps"] / transformer.loc[16, "var"]
    flops = _sampling(1).pivot_table("flops", "grid", "family")
    mfu = _sampling(1).pivot_table("mfu", "grid", "family")
    ratios = {grid: transformer.loc[grid, "ar"] / transformer.loc[grid, "var"] for grid in _GRIDS}
    return {
        "sampling.ar": f"{one.loc[16, 'ar'] / one.loc[16, 'var']:.1f}",
        "sampling.ar.low": f"{by_round[0]:.1f}",
        "sampling.ar.high": f"{by_round[-1]:.1f}",
        "sampling.mfu": short(100 * mfu.loc[16, "var"], 1),
        **{f"sampling.ar.transformer{grid}": f"{ratio:.1f}" for grid, ratio in ratios.items()},
        "sampling.ar.whole64": f"{whole.loc[16, 'ar'] / whole.loc[16, 'var']:.1f}",
        "sampling.decoder": f"{100 * decoder.loc[16, 'var'] / whole.loc[16, 'var']:.0f}",
        "sampling.dit.transformer": f"{dit:.1f}",
        **_cpu_sampling_values(),
        "sampling.flops.ar": f"{flops.loc[16, 'ar'] / 1e12:.2f}",
        "sampling.flops.var": f"{flops.loc[16, 'var'] / 1e12:.2f}",
    }  # fmt: skip


def _cpu_sampling_values() -> dict[str, str]:
    whole, transformer, decoder = (
        _times(1, column, _CPU).loc[16]
        for column in ("seconds", "transformer_seconds", "decoder_seconds")
    )
    return {
        "sampling.cpu.ar": f"{whole['ar'] / whole['var']:.1f}",
        "sampling.cpu.ar.transformer": f"{transformer['ar'] / transformer['var']:.1f}",
        "sampling.cpu.decoder": f"{100 * decoder['var'] / whole['var']:.0f}",
    }


def _benchmark(name: str) -> list[dict[str, Any]]:
    """Rows of every run of a benchmark, oldest first."""
    lines = (BENCHMARKS / f"results/{name}.jsonl").read_text().splitlines()
    return [row for line in lines for row in json.loads(line)["rows"]]


def _cpu_values() -> dict[str, str]:
    case = [row for row in _benchmark("train") if row["case"] == "d4, 64 px, batch 32"]
    by_way = {
        way: median(
            row["median_seconds"]
            for row in case
            if row["implementation"] == way and row["commit"] == "32b6aa0"
        )
        for way in ("ours", "released")
    }
    return {f"cpu.step.{way}": f"{1e3 * seconds:.0f}" for way, seconds in by_way.items()}
