"""The command `speed`: measure how fast a model samples and trains on this machine."""

from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.table import Table

from pipelines.cli.models import Model
from pipelines.cli.options import RUNS, AsJson, HomeFolder, Set, named_settings
from pipelines.cli.terminal import console as screen
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Home
from var_scaling.recipe import Precision

if TYPE_CHECKING:
    from pipelines.evaluation.throughput import BenchmarkResult
    from var_scaling.evaluation.rates import Memory, Timing

app = typer.Typer()

_NOTE = (
    "Times are the median seconds of a batch ± half the range. MFU: model FLOP/s of the "
    "transformer over the measured matmul peak of its precision; an unconditional pass counts only "
    "if guidance needs it. The decoder runs in fp32, beside a transformer in another precision in "
    "tf32."
)


@app.command()
def speed(
    address: Model,
    batches: Annotated[
        str, typer.Option(help="batch sizes of sampling in images, comma separated, such as 1,8")
    ] = "1,8,64",
    precisions: Annotated[
        str | None,
        typer.Option(
            help="precisions among fp32, tf32, bf16, fp16, comma separated, such as fp32,bf16. "
            "Default: fp32, on a GPU also bf16"
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="guidance, such as 1.5; for VAR at its last scale, rising from 0. 0 is measured "
            "too. Default: that of the family; only 0 for a model trained without the null class",
            show_default=False,
        ),
    ] = None,
    settings_of_family: Set = None,
    seconds: Annotated[
        float,
        typer.Option(min=0.001, help="approximate seconds for each row of the table, such as 10"),
    ] = 2.0,
    micro_batches: Annotated[
        str,
        typer.Option(help="micro-batch sizes of training in images, comma separated, such as 8,32"),
    ] = "8,32",
    training: Annotated[
        bool, typer.Option(help="time training steps too, or only sampling")
    ] = True,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Measure the sampling and training speed of one model.

    The device and its threads are those of [local] in var-scaling.toml. The result is written to
    speed.json in the folder of the model. A row replaces the row of the same machine, precision,
    guidance and batch size; other rows are kept if they belong to the same weights. Measure on an
    otherwise idle machine.
    """
    from pipelines.evaluation.throughput import BenchmarkOptions, measure_speed
    from pipelines.stages.context import RunContext, StopFile, local_process
    from pipelines.tracking.sync import mirror_model

    options = BenchmarkOptions(
        _sizes("--batches", batches),
        _precisions(precisions),
        guidance,
        _sizes("--micro-batches", micro_batches) if training else (),
        seconds,
        named_settings(settings_of_family),
    )
    workspace, settings = Home(home), load_settings()
    with screen.progress_bar(f"timing {address}") as report_progress:
        process = local_process(settings.local)
        context = RunContext(
            workspace, settings, StopFile(workspace.root / "stop"), process, report_progress
        )
        result = measure_speed(context, address, options, report_progress)
    mirror_model(workspace, settings, address, screen.warn)
    if as_json:
        print(result.model_dump_json())
        return
    for table in speed_tables(address, result):
        screen.console.print(table)


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
            *condition, f"{row.images_per_second:,.3g}", _spread(row.whole), *parts,
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
            f"{step.images_per_second:,.3g}", _spread(step.step), _share(step.mfu),
            _format_memory(step.memory),
        )  # fmt: skip
    peaks = screen.new_table("precision", "FLOP/s", "side", title="matrix products")
    for peak in result.peaks:
        peaks.add_row(peak.precision, screen.format_number(peak.flops_per_second), f"{peak.side:,}")
    return [sampling, *([training] if result.training else []), peaks]


def _spread(timing: "Timing") -> str:
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


def _sizes(option: str, text: str) -> tuple[int, ...]:
    """Batch sizes in images, in ascending order. Raises ValueError."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"{option} {text}: must be whole numbers of at least 1, separated by commas, such as "
            "1,8"
        )
    return tuple(sorted(set(sizes)))


def _precisions(text: str | None) -> tuple[Precision, ...]:
    """The named precisions, the finest first. Raises ValueError."""
    if text is None:
        return ()
    allowed: tuple[Precision, ...] = get_args(Precision)
    unknown = [name for name in text.split(",") if name not in allowed]
    if unknown:
        raise ValueError(f"--precisions {', '.join(unknown)}: allowed are {', '.join(allowed)}")
    return tuple(name for name in allowed if name in text.split(","))
