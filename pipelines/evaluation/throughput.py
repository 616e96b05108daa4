"""Measure how fast one model samples and learns here, and keep it beside the model by machine.

`speed.json`: {"format": 1, "measured": [Measured, ...]}, one entry a command, of an earlier one
what no later one measured again. Reading it needs no torch.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.checkpoints.load import load_generator
from pipelines.sampling.settings import fitting, sampling_of
from pipelines.stages.context import RunContext
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import file_lock
from var_scaling.disk import read_json, write_json
from var_scaling.evaluation.rates import Machine, MatmulPeak, SamplingSpeed, TrainingSpeed
from var_scaling.models.base import SamplingRecord
from var_scaling.recipe import Precision
from var_scaling.record import Record, explain

SPEED = "speed.json"
_FORMAT = 1
_LOCK, _WAIT = "speed.lock", 30.0  # seconds, while another process writes its lines
ReportProgress = Callable[[str, int, int], None]


class BenchmarkResult(Record):
    """What one command measured on one machine."""

    machine: Machine
    weights_sha256: str
    tokenizer_sha256: str
    commit: str | None
    time: str  # UTC
    seconds: float  # that a cell might take
    peaks: tuple[MatmulPeak, ...]
    sampling: tuple[SamplingSpeed, ...]
    training: tuple[TrainingSpeed, ...]


@dataclass(frozen=True)
class BenchmarkOptions:
    """Which cells of the table, and about how many seconds each may have."""

    batches: tuple[int, ...]
    precisions: tuple[Precision, ...]  # none named: those that the device is meant for
    guidance: float | None  # and without; None: the usual one, or 0 where that can do nothing
    micro_batches: tuple[int, ...]  # of training; none: no training
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)  # others of the sampling record


def measure_speed(
    context: RunContext, address: str, asked: BenchmarkOptions, report_progress: ReportProgress
) -> BenchmarkResult:
    """Time the model at `address`, and write its speed.json. Raises ValueError, Drift, Busy."""
    measurements(context.home.root / address)  # what cannot be read shows before the work
    loaded = load_generator(context, address)
    family = loaded.record.family
    given = dict(asked.settings)
    if asked.guidance is not None:
        given["guidance"] = asked.guidance
    usual = sampling_of(family, given)
    guidance = fitting(usual, loaded.record, None).guidance
    if isinstance(guidance, tuple):
        raise ValueError(f"a {family.name} model has a list of guidance: give one, --guidance G")
    import torch

    from var_scaling.evaluation.bench import Bench, matmul_peak
    from var_scaling.evaluation.speed import Subject, sampling_speeds, training_speeds

    torch.set_num_threads(context.process.threads)
    device = context.device()
    subject = Subject(loaded.record.spec, loaded.model, loaded.tokenizer)
    bench = Bench(device, asked.seconds)
    precisions = asked.precisions or (("fp32",) if device.type == "cpu" else ("fp32", "bf16"))
    ways = [(p, weight) for p in precisions for weight in dict.fromkeys((0.0, guidance))]
    cells = len(ways) * len(asked.batches) + len(precisions) * len(asked.micro_batches)
    peaks = {}
    for done, precision in enumerate(precisions):
        report_progress(f"matrix products in {precision}", done, len(precisions))
        peaks[precision] = matmul_peak(precision, bench)
    report_progress("sampling", 0, cells)
    sampling = []
    for row in sampling_speeds(subject, ways, asked.batches, peaks, bench, usual):
        sampling.append(row)
        report_progress("sampling", len(sampling), cells)
    training = []
    for step in training_speeds(subject, precisions, asked.micro_batches, peaks, bench):
        training.append(step)
        report_progress("training", len(sampling) + len(training), cells)
    found = BenchmarkResult(
        machine=_machine(device),
        weights_sha256=loaded.weights_sha256,
        tokenizer_sha256=loaded.tokenizer_sha256,
        commit=code_version(),
        time=time.strftime("%FT%TZ", time.gmtime()),
        seconds=asked.seconds,
        peaks=tuple(peaks.values()),
        sampling=tuple(sampling),
        training=tuple(training),
    )
    note_measured(loaded.folder, found)
    return found


def measurements(folder: Path) -> list[BenchmarkResult]:
    """What was measured of the model in `folder`, the latest last. Raises ValueError."""
    path = folder / SPEED
    if not path.exists():
        return []
    kept = read_json(path)
    if kept.get("format") != _FORMAT:
        raise ValueError(f"{path}: format {kept.get('format')}, this version reads {_FORMAT}")
    try:
        found = [BenchmarkResult.model_validate_json(json.dumps(one)) for one in kept["measured"]]
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, BenchmarkResult)}; move it away") from error
    return sorted(found, key=lambda one: one.time)


def note_measured(folder: Path, found: BenchmarkResult) -> None:
    """Add `found`, in place of the same rows of the same machine, and of all of other weights."""
    with file_lock(folder, wait=_WAIT, file=_LOCK):
        others = [left for one in measurements(folder) if (left := _left(one, found))]
        entries = [one.model_dump(mode="json") for one in (*others, found)]
        write_json(folder / SPEED, {"format": _FORMAT, "measured": entries})


def _left(one: BenchmarkResult, found: BenchmarkResult) -> BenchmarkResult | None:
    """What of `one` is not in `found`: a part measured anew leaves the rest as it was."""
    if _key(one) != _key(found):
        return one
    if (one.weights_sha256, one.tokenizer_sha256) != (found.weights_sha256, found.tokenizer_sha256):
        return None
    ways = {_way(row) for row in found.sampling}
    steps = {(row.precision, row.micro_batch) for row in found.training}
    rows = {
        "sampling": tuple(row for row in one.sampling if _way(row) not in ways),
        "training": tuple(
            row for row in one.training if (row.precision, row.micro_batch) not in steps
        ),
    }
    return one.model_copy(update=rows) if any(rows.values()) else None


def _way(row: SamplingSpeed) -> tuple[str, float, str, int]:
    return row.precision, row.guidance, row.settings, row.batch


def machine_of(one: BenchmarkResult, between: str) -> str:
    """A machine by its name, and a processor by its threads too: speed depends on both."""
    threads = one.machine.threads
    said = f"{between}{threads} thread{'s' * (threads > 1)}"
    return one.machine.name + said * (one.machine.device == "cpu")


def speed_columns(folder: Path) -> dict[str, Any]:
    """The results row's columns, of the machine last measured on; absent is absent.

    Sampling is that with the most guidance and no other unusual setting: images/s of the best
    precision and batch, with the memory of that row, and the least latency of one image. Training
    is the row with most tokens/s.
    """
    found = measurements(folder)
    if not found:
        return {}
    last = found[-1]
    here = [one for one in found if _key(one) == _key(last)]
    sampling = [row for one in here for row in one.sampling]
    columns: dict[str, Any] = {"speed_machine": machine_of(last, ", ")}
    sampling = [row for row in sampling if not row.settings] or sampling
    most = max((row.guidance for row in sampling), default=0.0)
    guided = [row for row in sampling if row.guidance == most and row.images_per_second]
    if guided:
        best = max(guided, key=lambda row: row.images_per_second or 0.0)
        columns["sampling_images_per_second"] = best.images_per_second
        columns["sampling_peak_memory_bytes"] = best.memory.gpu_peak_bytes
    alone = [row.whole.median_seconds for row in guided if row.batch == 1 and row.whole]
    if alone:
        columns["sampling_latency_seconds"] = min(alone)
    steps = [row for one in here for row in one.training if row.tokens_per_second]
    if steps:
        fastest = max(steps, key=lambda row: row.tokens_per_second or 0.0)
        columns["training_tokens_per_second"] = fastest.tokens_per_second
        columns["training_mfu"] = fastest.mfu
    return {name: value for name, value in columns.items() if value is not None}


def sampling_columns(folder: Path, sampling: SamplingRecord) -> dict[str, Any]:
    """Of the model in `folder` so sampled, on the machine last measured on: the latency of one
    image, and images/s of the best batch; empty where it was not timed so.
    """
    asked = sampling.precision, sampling.guidance, sampling.besides()
    for one in reversed(measurements(folder)):
        rows = [row for row in one.sampling if _way(row)[:3] == asked and row.whole is not None]
        if rows:
            alone = [row.whole.median_seconds for row in rows if row.batch == 1 and row.whole]
            return {
                "latency_seconds": min(alone, default=None),
                "images_per_second": max(row.images_per_second or 0.0 for row in rows),
                "speed_machine": machine_of(one, ", "),
            }
    return {}


def _key(one: BenchmarkResult) -> tuple[str, int]:
    return one.machine.name, one.machine.threads


def _machine(device: Any) -> Machine:
    import torch

    gpu = device.type == "cuda"
    return Machine(
        name=torch.cuda.get_device_name(device) if gpu else _processor(),
        device=device.type,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def _processor() -> str:
    """As Linux calls it, else as Python does."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(errors="replace").splitlines() if listed.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
