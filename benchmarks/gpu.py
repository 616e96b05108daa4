"""Benchmark one GPU in at most nine minutes: steps, results, sampling, encoding, resume, memory.

    python benchmarks/gpu.py [--out gpu.json] [--minutes 8.5] [--only SECTION ...] [--small]

d16, d6, d24: a training step of VAR, from token ids to updated weights, in fp16 as in the released
    recipe. `ours` is the product's training loop, eager and compiled. `released` is the released
    implementation (FoundationVision/VAR, in released.py): the same operations on the same
    parameters, with a float mask and in-place residuals, eager and with torch.compile, which a user
    can add by one call. Drop path is 0 in both.
correct: loss, logits and gradient of d16 by precision, ours eager and compiled, and the released
    ones, against ours on the CPU in float32 with the same weights; tokens and decoded pixels of a
    tokenizer. If the network's results differ by more than the tolerances (gpu_checks.py), the
    timings of VAR's steps are marked as not comparable.
sampling: whole samples of d16, from noise to pixels, in fp32 (the released default) and in fp16.
encoding: images to tokens at 256 pixels by precision, and grids to images. Random weights.
families: a training step of AR and DiT, eager and compiled, in bf16.
resume: whether a training that stops and resumes ends with the same bits as one that does not.
memory: the largest micro-batch of d30, with all activations and with `recompute_activations`.
kernels: the longest kernels of our steps of d16.

MFU: model FLOPs, without masked pairs, over the measured peak of matrix products (`peak`) or over
that of the datasheet. Seconds of a step are means of ten steps on a GPU, where the host reads stats
after every tenth; the median is over these means. The seconds of a compilation are apart.

Needs torch, einops, numpy, pydantic and safetensors. The file is rewritten after each result. A
section that would exceed the time is skipped; one that fails does not stop the others. The exit
status is 1 if one failed or results differ. `--small` runs small sizes on a CPU: of the results
only agreement has a meaning then.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from gpu_checks import (
    TOLERANCES,
    check_network,
    check_tokenizer,
    random_tokenizer,
    resume_row,
)
from gpu_images import SamplingBench, decoding_row, encoding_row, sampling_rows
from gpu_steps import (
    DATASHEET_PEAKS,
    Row,
    kernel_row,
    memory_row,
    step_row,
    that_fits,
    time_ours,
    time_released,
    trial_of,
)

from var_scaling.evaluation.bench import Bench, matmul_peak
from var_scaling.evaluation.training_step import free_memory
from var_scaling.experiment import Trial
from var_scaling.process import prepare_process
from var_scaling.recipe import Precision

SECTIONS = (
    "d16", "correct", "sampling", "encoding", "d6", "d24", "families", "resume", "memory",
    "kernels",
)  # fmt: skip
KERNELS_SECONDS = 30.0  # expected for the section
LABELS = ("family", "depth", "way", "precision")  # of a row: its first column
NOT_PRINTED = (
    *LABELS, "section", "least_seconds", "most_seconds", "repeats", "fixed_bytes", "images",
    "bytes_per_image", "largest_levels", "profiled_steps", "trace",
)  # fmt: skip
OVERRUN = 2.0  # a measurement is stopped after this many times its expected seconds
LEAST_LIMIT = 60.0  # seconds; not before these, because the first compilation is slow


@dataclass(frozen=True)
class Sizes:
    """Sizes of the benchmark: those of the paper, or small ones for a CPU."""

    small: bool
    depths: dict[str, int]  # of each section
    batches: dict[str, int]  # by family and depth
    compiled: tuple[str, ...]  # the sections that also compile
    compiled_checks: tuple[Precision, ...]
    checked_images: int  # of the tokenizer
    sampled: tuple[int, int]  # first and largest batch
    encoded: int  # largest batch
    resume_steps: int
    micro_batch: int  # largest of the section memory
    cell_seconds: float

    def trial(self, section: str, family: str = "var") -> Trial:
        depth = self.depths[section]
        return trial_of(family, depth, self.batches[f"{family}-{depth}"], self.small)


LARGE = Sizes(
    small=False,
    depths={"d16": 16, "d6": 6, "d24": 24, "resume": 6, "memory": 30},
    batches={
        "var-16": 64, "var-6": 96, "var-24": 32, "var-30": 1,
        "ar-16": 128, "ar-6": 256, "dit-16": 128, "dit-6": 256,
    },
    compiled=SECTIONS, compiled_checks=tuple(TOLERANCES), checked_images=4, sampled=(8, 256),
    encoded=400, resume_steps=40, micro_batch=128, cell_seconds=1.0,
)  # fmt: skip
SMALL = Sizes(
    small=True,
    depths={"d16": 2, "d6": 1, "d24": 3, "resume": 1, "memory": 2},
    batches={
        "var-2": 4, "var-1": 4, "var-3": 4,
        "ar-2": 4, "ar-1": 4, "dit-2": 4, "dit-1": 4,
    },
    compiled=("d16",), compiled_checks=("bf16",), checked_images=1, sampled=(2, 4),
    encoded=4, resume_steps=4, micro_batch=8, cell_seconds=0.1,
)  # fmt: skip


# Report ------------------------------------------------------------------------------------------


class OutOfTime(BaseException):
    """The time of a measurement is over. Not an Exception: `compile_network` catches these."""


class Report:
    """The results so far, written to disk after each result."""

    def __init__(self, path: Path, minutes: float):
        self.path, self.began, self.seconds = path, time.monotonic(), 60 * minutes
        self.results: dict[str, Any] = {}
        self.comparable: bool | None = None  # timings of VAR's steps; None: not checked
        self.failed = False

    def add(self, section: str, row: Row) -> None:
        self.results.setdefault(section, []).append(row)
        self.write()
        label = " ".join(str(row[name]) for name in LABELS if row.get(name) is not None)
        values = "  ".join(
            shown(name, value)
            for name, value in row.items()
            if name not in NOT_PRINTED and not isinstance(value, list) and value is not None
        )
        elapsed = time.monotonic() - self.began
        print(f"{elapsed:5.0f} s  {section:8}  {label:32}  {values}", flush=True)

    def write(self) -> None:
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        temporary_path = self.path.with_suffix(".part")
        temporary_path.write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(temporary_path, self.path)

    def mark_comparable(self, comparable: bool) -> None:
        """Whether VAR's timings, those before and those after this call, are comparable."""
        self.comparable = comparable
        for row in (*self.results.get("training", ()), *self.results.get("ratio", ())):
            if row["family"] == "var":
                row["comparable"] = comparable
        self.write()

    def seconds_left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)


def shown(name: str, value: Any) -> str:
    """Name and value as text, with the unit that `name` has at its end."""
    if not isinstance(value, float | int) or isinstance(value, bool):
        text = str(value)
    elif name == "images_per_second":
        return f"{value:.4g} images/s"
    elif name.endswith("flops_per_second"):
        name, text = name.removesuffix("flops_per_second"), f"{value / 1e12:.4g} TFLOP/s"
    elif name.endswith("seconds"):
        name = name.removesuffix("_seconds")
        text = f"{1e3 * value:.4g} ms" if value < 10 else f"{value:.3g} s"
    elif name.endswith("bytes"):
        name, text = name.removesuffix("_bytes"), f"{value / 1e9:.2f} GB"
    elif name.startswith("mfu") or name == "equal_tokens":
        text = f"{value:.1%}"
    else:
        text = f"{value:.4g}"
    return f"{name.replace('_', ' ')} {text}".strip()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after `seconds`."""

    def stop(number: int, frame: Any) -> None:
        raise OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, *timer)


# Sections ----------------------------------------------------------------------------------------


class Sections:
    """The measurements of each section, on one device."""

    def __init__(self, sizes: Sizes, device: torch.device, report: Report):
        self.sizes, self.device, self.report = sizes, device, report
        self.bench = Bench(device, sizes.cell_seconds)
        self.peaks: dict[str, float] = {}
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.datasheet = next((f for part, f in DATASHEET_PEAKS.items() if part in name), None)
        report.add("machine", {
            "name": name, "torch": torch.__version__, "cuda": torch.version.cuda,
            "cpus": os.cpu_count(), "python": platform.python_version(), "small": sizes.small,
            "datasheet_flops_per_second": self.datasheet,
        })  # fmt: skip

    def measure_peak(self, precision: Precision) -> float:
        """FLOP/s of the largest matrix product in `precision`, measured once."""
        if precision not in self.peaks:
            matmul = matmul_peak(precision, self.bench)
            self.peaks[precision] = matmul.flops_per_second
            self.report.add("peak", matmul.model_dump())
        return self.peaks[precision]

    def time_step(self, trial: Trial, way: str) -> None:
        """A training step of `trial`; a batch that does not fit is halved."""
        compiled = way.endswith("compiled")
        time_way = time_ours if way.startswith("ours") else time_released

        def measure(batch: int) -> None:
            one = trial.model_copy(update={"batch_size": batch})
            timing, memory, extra = time_way(one, self.bench, compiled)
            peak = self.measure_peak(trial.precision)
            row = {**step_row(one, way, timing, memory, peak, self.datasheet), **extra}
            is_var = trial.family.name == "var"
            self.report.add(
                "training", {**row, "comparable": self.report.comparable if is_var else None}
            )

        that_fits(measure, trial.batch_size)
        if trial.family.name == "var":
            self._add_ratio(trial.model.depth, compiled)

    def _add_ratio(self, depth: int, compiled: bool) -> None:
        """Our speed over the released one, both eager or both compiled, when both are known."""
        suffix = ", compiled" if compiled else ""
        speeds = {
            row["way"]: row["images_per_second"]
            for row in self.report.results["training"]
            if row["family"] == "var" and row["depth"] == depth
        }
        ours, released = (speeds.get(way + suffix) for way in ("ours", "released"))
        if ours and released:
            self.report.add("ratio", {
                "family": "var", "depth": depth, "way": "compiled" if compiled else "eager",
                "released_by_ours": ours / released, "comparable": self.report.comparable,
            })  # fmt: skip

    def check_network(self) -> None:
        rows = []
        for row in check_network(self.sizes.trial("d16"), self.device, self.sizes.compiled_checks):
            self.report.add("correct", row)
            rows.append(row)
        self.report.mark_comparable(all(row["agrees"] for row in rows))
        if not self.report.comparable:
            raise RuntimeError("results differ from the CPU's: timings are not comparable")

    def check_tokenizer(self) -> None:
        trial, images = self.sizes.trial("d16"), self.sizes.checked_images
        rows = []
        for row in check_tokenizer(trial, self.device, images):
            self.report.add("correct", row)
            rows.append(row)
        if not all(row["agrees"] for row in rows):
            raise RuntimeError("tokens or pixels differ from the CPU's")

    def time_sampling(self) -> None:
        trial = self.sizes.trial("d16")
        subject = SamplingBench(trial, self.bench)
        for precision in ("fp32", trial.precision):
            for row in sampling_rows(subject, precision, *self.sizes.sampled):
                self.report.add("sampling", row)

    def time_tokenizer(self) -> None:
        trial, largest = self.sizes.trial("d16"), self.sizes.encoded
        model = random_tokenizer(trial).to(self.device)
        for precision in TOLERANCES:
            self.report.add("encoding", encoding_row(trial, model, precision, self.bench, largest))
        for precision in ("fp32", "tf32"):  # the decoder's precisions
            self.report.add("decoding", decoding_row(trial, model, precision, self.bench, largest))

    def check_resume(self, compiled: bool) -> None:
        update = {"steps": self.sizes.resume_steps, "evaluations": 1, "weight_average": 0.9}
        trial = self.sizes.trial("resume").model_copy(update={**update, "batch_size": 8})
        row = resume_row(trial, self.device, compiled)
        self.report.add("resume", row)
        if not row["agrees"]:
            raise RuntimeError("a resumed training ends with other weights or losses")

    def profile_step(self, compiled: bool) -> None:
        self.report.add("kernels", kernel_row(self.sizes.trial("d16"), self.bench, compiled))

    def measure_memory(self, recompute: bool) -> None:
        trial = self.sizes.trial("memory")
        row = memory_row(trial, self.bench, recompute, self.sizes.micro_batch)
        self.report.add("memory", row)


@dataclass(frozen=True)
class Measurement:
    """A part of a section, which is skipped or fails by itself."""

    section: str
    name: str
    expected_seconds: float  # on an H200
    run: Callable[[], None]


def measurements(sections: Sections) -> Iterator[Measurement]:
    """All measurements, in order."""
    sizes = sections.sizes

    def step(section: str, trial: Trial, way: str, seconds: float) -> Iterator[Measurement]:
        if not way.endswith("compiled") or section in sizes.compiled:
            run = partial(sections.time_step, trial, way)
            yield Measurement(section, f"{trial.name}, {way}", seconds, run)

    main, small, large = (sizes.trial(section) for section in ("d16", "d6", "d24"))
    yield from step("d16", main, "released", 12)
    yield from step("d16", main, "ours", 12)
    yield from step("d16", main, "ours, compiled", 22)
    yield from step("d16", main, "released, compiled", 65)
    yield Measurement("correct", "network", 45, sections.check_network)
    yield Measurement("correct", "tokenizer", 15, sections.check_tokenizer)
    yield Measurement("sampling", "sampling", 20, sections.time_sampling)
    yield Measurement("encoding", "encoding", 25, sections.time_tokenizer)
    for section, trial, eager, compiled in (("d6", small, 5, 14), ("d24", large, 15, 25)):
        yield from step(section, trial, "ours", eager)
        yield from step(section, trial, "ours, compiled", compiled)
    for depth in ("d16", "d6"):
        for family in ("ar", "dit"):
            trial = sizes.trial(depth, family)
            yield from step("families", trial, "ours", 6)
            yield from step("families", trial, "ours, compiled", 15)
    yield Measurement("resume", "resume, ours", 8, partial(sections.check_resume, False))
    if "resume" in sizes.compiled:
        yield Measurement(
            "resume", "resume, ours, compiled", 25, partial(sections.check_resume, True)
        )
    yield Measurement("memory", "memory", 15, partial(sections.measure_memory, False))
    yield Measurement("memory", "memory, recomputed", 20, partial(sections.measure_memory, True))
    # Only if time is left for the kernels, too, which come last: a profiler that was used can make
    # later launches slower.
    yield from step("d6", small, "released", 5 + KERNELS_SECONDS)
    yield from step("d24", large, "released", 15 + KERNELS_SECONDS)
    for compiled in (False, True):
        if not compiled or "kernels" in sizes.compiled:
            run = partial(sections.profile_step, compiled)
            name = "kernels, ours" + ", compiled" * compiled
            yield Measurement("kernels", name, KERNELS_SECONDS / 2, run)


def measure(one: Measurement, report: Report) -> None:
    """Run one measurement if enough time is left. An error is recorded and not raised."""
    left, label = report.seconds_left(), {"section": one.section, "way": one.name}
    if left < one.expected_seconds:
        report.add("skipped", {**label, "why": f"{max(0, left):.0f} s are left"})
        return
    limit = min(left, max(LEAST_LIMIT, OVERRUN * one.expected_seconds))
    try:
        with limited(limit):
            one.run()
    except OutOfTime:
        report.add("skipped", {**label, "why": f"took more than {limit:.0f} s"})
    except Exception as error:  # noqa: BLE001  the other sections must run
        report.failed = True
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        trace = traceback.format_exc()[-3000:]
        report.add("errors", {**label, "error": text, "trace": trace})
    # After the except block: the exception would keep its tensors alive.
    torch.compiler.reset()
    free_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=8.5, help="time for all sections")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--small", action="store_true", help="small sizes, for a CPU")
    options = parser.parse_args()
    sizes, device = SMALL if options.small else LARGE, torch.device(options.device)
    if device.type == "cpu" and not options.small:
        raise SystemExit("the paper's sizes take hours on a CPU; use --small")
    # On a CPU one thread: several do not always add in the same order.
    prepare_process(threads=1 if device.type == "cpu" else torch.get_num_threads())
    report = Report(options.out, options.minutes)
    sections = Sections(sizes, device, report)
    for one in measurements(sections):
        if one.section in options.only:
            measure(one, report)
    report.write()
    if report.failed:
        raise SystemExit("errors or differences: see `errors` in the file")


if __name__ == "__main__":
    main()
