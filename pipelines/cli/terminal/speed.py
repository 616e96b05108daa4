"""Measured speeds as tables: of one model, and of the sizes of a sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from pipelines.cli.terminal import console as screen
from pipelines.execution.speeds.benchmarks import StepBenchmark
from pipelines.planning.cost import format_share

if TYPE_CHECKING:
    from pipelines.evaluation.throughput import BenchmarkResult
    from pipelines.evaluation.training_benchmark import BenchmarkCase
    from var_scaling.evaluation.rates import Memory, Timing

_NOTE = (
    "Times are the median seconds of a batch ± half the range. MFU: model FLOP/s of the "
    "transformer over the measured matmul peak of its precision; an unconditional pass counts only "
    "if guidance needs it. The decoder runs in fp32, beside a transformer in another precision in "
    "tf32."
)


def speed_tables(address: str, result: "BenchmarkResult") -> list[Table]:
    """The tables of sampling, training and the machine's matmul peaks."""
    machine = result.machine
    threads = "" if machine.device == "cuda" else f", threads: {machine.threads}"
    sampling = screen.new_table(
        "precision", "guidance", "batch", "images/s", "s a batch", "transformer", "decoder", "MFU",
        "memory", title=f"{address} on {machine.name}{threads}: sampling", caption=_NOTE,
    )  # fmt: skip
    for row in result.sampling:
        guidance = ", ".join(filter(None, (f"{row.guidance:g}", row.settings)))
        condition = (row.precision, guidance, str(row.batch))
        if row.whole is None or row.transformer is None or row.decoder is None:
            sampling.add_row(*condition, "–", row.missing)
            continue
        parts = (f"{part.median_seconds:.3g}" for part in (row.transformer, row.decoder))
        sampling.add_row(
            *condition, f"{row.images_per_second:,.3g}", _format_timing(row.whole), *parts,
            _share(row.transformer_mfu), _format_memory(row.memory),
        )  # fmt: skip
    training = screen.new_table(
        "precision", "micro-batch", "tokens/s", "images/s", "s a step", "MFU", "memory",
        title="training: forward, backward and AdamW on random tokens",
    )  # fmt: skip
    for step in result.training:
        if step.step is None:
            training.add_row(step.precision, str(step.micro_batch), "–", "–", step.missing)
            continue
        training.add_row(
            step.precision, str(step.micro_batch), f"{step.tokens_per_second:,.0f}",
            f"{step.images_per_second:,.3g}", _format_timing(step.step), _share(step.mfu),
            _format_memory(step.memory),
        )  # fmt: skip
    peaks = screen.new_table("precision", "FLOP/s", "side", title="matrix products")
    for peak in result.peaks:
        peaks.add_row(peak.precision, screen.format_number(peak.flops_per_second), f"{peak.side:,}")
    return [sampling, *([training] if result.training else []), peaks]


def _format_timing(timing: "Timing") -> str:
    """The median ± half the range, and the number of repeats."""
    half = (timing.most_seconds - timing.least_seconds) / 2
    return f"{timing.median_seconds:.3g} ± {half:.1g} ({timing.repeats} ×)"


def _share(mfu: float | None) -> str:
    return "–" if mfu is None else f"{mfu:.1%}"


def _format_memory(memory: "Memory") -> str:
    """The peak memory of the GPU; on a CPU, the growth of the process."""
    if memory.gpu_peak_bytes is not None:
        return f"{screen.format_number(memory.gpu_peak_bytes)}B"
    growth = memory.process_growth_bytes
    return "–" if growth is None else f"+ {screen.format_number(growth)}B"


def missing_reason(case: "BenchmarkCase", result: StepBenchmark | None) -> str | None:
    """Why a size has no numbers; None if it has."""
    if case.unfit is not None:
        return case.unfit
    return "not measured" if result is None else result.speed.missing


def benchmark_table(
    title: str, rows: "Sequence[tuple[BenchmarkCase, StepBenchmark | None]]"
) -> Table:
    """A row for each size, with its measurement or the reason why there is none."""
    measured = [result for _, result in rows if result is not None]
    machines = ", ".join(sorted({one.machine.name for one in measured}))
    peaks = " ".join(sorted({f"{screen.format_number(one.peak_flops)}FLOP/s" for one in measured}))
    errors = {one.speed.compile_error for one in measured} - {None}
    eager = "".join(f" Not compiled, because compilation failed: {error}." for error in errors)
    table = screen.new_table(
        "trials", "width", "precision", "images", "micro-batch", "images/s", "s a step", "FLOP/s",
        "of peak", "memory", title=f"{title}: training steps" + f", {machines}" * bool(machines),
        caption="images: of one process in a step; micro-batch: of one pass. s a step: median ± "
        f"half the range. of peak: model FLOP/s over {peaks or 'the peak'}. One process; "
        f"communication between processes is not measured.{eager}",
    )  # fmt: skip
    for case, result in rows:
        trial = case.trial
        others = f" and {len(case.trials) - 1} more" if len(case.trials) > 1 else ""
        size = (
            case.trials[0] + others, str(trial.model.width), trial.precision,
            str(trial.batch_size), str(case.micro_batch),
        )  # fmt: skip
        if result is None or result.speed.step is None or result.flops_per_second is None:
            table.add_row(*size, "–", missing_reason(case, result))
            continue
        speed = result.speed
        table.add_row(
            *size, f"{speed.images_per_second:,.4g}", _format_timing(result.speed.step),
            screen.format_number(result.flops_per_second), format_share(speed.mfu or 0.0),
            _format_memory(speed.memory),
        )  # fmt: skip
    return table
