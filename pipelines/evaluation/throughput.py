"""Measure a model's sampling and training speed on this machine, and save it with the model.

`speed.json`: {"format": 1, "measured": [BenchmarkResult, ...]}, one entry per command. A later
command replaces the rows that it measures again. Reading it needs no torch.
"""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.checkpoints.load import load_generator
from pipelines.sampling.settings import parse_sampling, resolve_guidance
from pipelines.stages.context import RunContext
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import file_lock, read_measurements, write_measurements
from var_scaling.evaluation.rates import Machine, MatmulPeak, SamplingSpeed, TrainingSpeed
from var_scaling.experiment import ImportedModel, Trial
from var_scaling.models.base import SamplingRecord
from var_scaling.recipe import Precision
from var_scaling.record import Record

SPEED = "speed.json"
_LOCK, _WAIT = "speed.lock", 30.0  # seconds to wait while another process writes the file
ReportProgress = Callable[[str, int, int], None]


class BenchmarkResult(Record):
    """The measurements of one command on one machine."""

    machine: Machine
    weights_sha256: str
    tokenizer_sha256: str
    commit: str | None
    time: str  # UTC
    seconds: float  # time budget of each cell
    peaks: tuple[MatmulPeak, ...]
    sampling: tuple[SamplingSpeed, ...]
    training: tuple[TrainingSpeed, ...]


@dataclass(frozen=True)
class BenchmarkOptions:
    """The cells of the table to measure, and the time budget of each in seconds."""

    batches: tuple[int, ...]
    precisions: tuple[Precision, ...]  # empty: the device's defaults
    guidance: float | None  # besides 0; None: the default, or 0 if it has no effect
    micro_batches: tuple[int, ...]  # of training; empty: do not measure it
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)  # other sampling settings


def measure_speed(
    context: RunContext, address: str, options: BenchmarkOptions, report_progress: ReportProgress
) -> BenchmarkResult:
    """Measure the model at `address`, and write its speed.json.

    Raises ValueError, ConfigMismatchError, FolderInUseError.
    """
    read_benchmarks(context.home.root / address)  # raises now, not after the work, if unreadable
    loaded = load_generator(context, address)
    defaults, guidance = _sampling_settings(loaded.record, options)

    from var_scaling.evaluation.bench import Bench, matmul_peak
    from var_scaling.evaluation.speed import Subject, sampling_speeds, training_speeds
    from var_scaling.process import prepare_process

    prepare_process(context.process.threads)
    device = context.device()
    subject = Subject(loaded.record.spec, loaded.model, loaded.tokenizer)
    bench = Bench(device, options.seconds)
    # bf16 is not measured on a CPU by default: without instructions for it, it was 70 times slower
    # than fp32 (LOG.md).
    precisions = options.precisions or (("fp32",) if device.type == "cpu" else ("fp32", "bf16"))
    # Also without guidance, which needs no unconditional pass. `fromkeys` drops the second value if
    # it is 0 too.
    settings = [(p, scale) for p in precisions for scale in dict.fromkeys((0.0, guidance))]
    cells = len(settings) * len(options.batches) + len(precisions) * len(options.micro_batches)
    # The peaks first: the MFU of every row is relative to the peak of its precision.
    peaks = {}
    for done, precision in enumerate(precisions):
        report_progress(f"matrix products in {precision}", done, len(precisions))
        peaks[precision] = matmul_peak(precision, bench)
    report_progress("sampling", 0, cells)
    sampling = []
    for row in sampling_speeds(
        subject, settings, options.batches, peaks, bench, defaults, context.process.cuda_graphs
    ):
        sampling.append(row)
        report_progress("sampling", len(sampling), cells)
    training = []
    for step in training_speeds(subject, precisions, options.micro_batches, peaks, bench):
        training.append(step)
        report_progress("training", len(sampling) + len(training), cells)
    result = BenchmarkResult(
        machine=machine_of(device),
        weights_sha256=loaded.weights_sha256,
        tokenizer_sha256=loaded.tokenizer_sha256,
        commit=code_version(),
        time=time.strftime("%FT%TZ", time.gmtime()),
        seconds=options.seconds,
        peaks=tuple(peaks.values()),
        sampling=tuple(sampling),
        training=tuple(training),
    )
    save_benchmark(loaded.folder, result)
    return result


def _sampling_settings(
    record: Trial | ImportedModel, options: BenchmarkOptions
) -> tuple[SamplingRecord, float]:
    """The settings to measure, and the guidance to measure besides 0. Raises ValueError."""
    family, given = record.family, dict(options.settings)
    if options.guidance is not None:
        given["guidance"] = options.guidance
    defaults = parse_sampling(family, given)
    guidance = resolve_guidance(defaults, record, None).guidance
    if isinstance(guidance, tuple):
        raise ValueError(
            f"a {family.name} model has a list of guidance scales: give one with --guidance G"
        )
    return defaults, guidance


def read_benchmarks(folder: Path) -> list[BenchmarkResult]:
    """The saved measurements of the model in `folder`, the latest last. Raises ValueError."""
    results = read_measurements(folder / SPEED, BenchmarkResult)
    return sorted(results, key=lambda result: result.time)


def save_benchmark(folder: Path, result: BenchmarkResult) -> None:
    """Save `result`. It replaces the same rows of its machine, and its machine's rows of other
    weights.
    """
    with file_lock(folder, wait=_WAIT, file=_LOCK):
        # Read while the lock is held, so that no result of another process is lost.
        earlier = read_benchmarks(folder)
        others = [kept for one in earlier if (kept := _without_replaced(one, result))]
        write_measurements(folder / SPEED, (*others, result))


def _without_replaced(old: BenchmarkResult, new: BenchmarkResult) -> BenchmarkResult | None:
    """`old` without the rows that `new` replaces; None if none are left."""
    if _machine_key(old) != _machine_key(new):
        return old
    # The model was trained or imported again: its old rows are of another model.
    if (old.weights_sha256, old.tokenizer_sha256) != (new.weights_sha256, new.tokenizer_sha256):
        return None
    settings = {_sampling_key(row) for row in new.sampling}
    steps = {(row.precision, row.micro_batch) for row in new.training}
    rows = {
        "sampling": tuple(row for row in old.sampling if _sampling_key(row) not in settings),
        "training": tuple(
            row for row in old.training if (row.precision, row.micro_batch) not in steps
        ),
    }
    return old.model_copy(update=rows) if any(rows.values()) else None


def _sampling_key(row: SamplingSpeed) -> tuple[str, float, str, int]:
    return row.precision, row.guidance, row.settings, row.batch


def machine_name(result: BenchmarkResult, separator: str) -> str:
    """The name of the GPU, or of the CPU with its number of threads: speed depends on both."""
    threads = result.machine.threads
    suffix = f"{separator}{threads} thread{'s' * (threads > 1)}"
    return result.machine.name + suffix * (result.machine.device == "cpu")


def benchmark_columns(folder: Path) -> dict[str, Any]:
    """The columns of the results row, for the latest machine. A value not measured is absent.

    Sampling: among rows with the largest guidance and otherwise default settings, images/s and
    memory of the fastest row, and the lowest latency of one image. Training: the row with the
    highest tokens/s.
    """
    results = read_benchmarks(folder)
    if not results:
        return {}
    last = results[-1]
    same_machine = [result for result in results if _machine_key(result) == _machine_key(last)]
    sampling = [row for result in same_machine for row in result.sampling]
    columns: dict[str, Any] = {"speed_machine": machine_name(last, ", ")}
    sampling = [row for row in sampling if not row.settings] or sampling
    guidance = max((row.guidance for row in sampling), default=0.0)
    guided = [row for row in sampling if row.guidance == guidance and row.images_per_second]
    if guided:
        best = max(guided, key=lambda row: row.images_per_second or 0.0)
        columns["sampling_images_per_second"] = best.images_per_second
        columns["sampling_peak_memory_bytes"] = best.memory.gpu_peak_bytes
    latencies = [row.whole.median_seconds for row in guided if row.batch == 1 and row.whole]
    if latencies:
        columns["sampling_latency_seconds"] = min(latencies)
    steps = [row for result in same_machine for row in result.training if row.tokens_per_second]
    if steps:
        fastest = max(steps, key=lambda row: row.tokens_per_second or 0.0)
        columns["training_tokens_per_second"] = fastest.tokens_per_second
        columns["training_mfu"] = fastest.mfu
    return {name: value for name, value in columns.items() if value is not None}


def sampling_columns(folder: Path, sampling: SamplingRecord) -> dict[str, Any]:
    """Latency of one image and images/s of the best batch with the settings `sampling`.

    From the latest machine on which these settings were measured; empty if there is none.
    """
    key = sampling.precision, sampling.guidance, sampling.other_settings()
    for result in reversed(read_benchmarks(folder)):
        rows = [r for r in result.sampling if _sampling_key(r)[:3] == key and r.whole is not None]
        if rows:
            latencies = [row.whole.median_seconds for row in rows if row.batch == 1 and row.whole]
            return {
                "latency_seconds": min(latencies, default=None),
                "images_per_second": max(row.images_per_second or 0.0 for row in rows),
                "speed_machine": machine_name(result, ", "),
            }
    return {}


def _machine_key(result: BenchmarkResult) -> tuple[str, int]:
    return result.machine.name, result.machine.threads


def machine_of(device: Any) -> Machine:
    """This machine, as measurements on `device` record it."""
    import torch

    gpu = device.type == "cuda"
    return Machine(
        name=torch.cuda.get_device_name(device) if gpu else _processor(),
        device=device.type,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def _processor() -> str:
    """The name of the CPU from Linux, else from Python."""
    # `platform.processor` gives no model name on Linux.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
