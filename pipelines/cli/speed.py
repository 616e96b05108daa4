"""The verb that measures how fast a model samples and learns on this machine."""

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
    "median seconds of a batch ± half the range. MFU: model FLOPs of the transformer over the "
    "measured matmul peak of its precision; a pass without a class counts only where guidance "
    "needs it. The decoder runs in fp32."
)


@app.command()
def speed(
    address: Model,
    batches: Annotated[
        str, typer.Option(help="batch sizes of sampling, comma separated")
    ] = "1,8,64",
    precisions: Annotated[
        str | None,
        typer.Option(
            help="precisions, comma separated, of fp32, tf32, bf16, fp16. Default: fp32, "
            "and bf16 on a GPU"
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="guidance at VAR's last scale, rising from 0; 0 is measured too. "
            "Default: the family's "
            "usual one, and 0 alone for a model that always learnt with a class",
            show_default=False,
        ),
    ] = None,
    settings_of_family: Set = None,
    seconds: Annotated[
        float, typer.Option(min=0.001, help="approximate seconds for each row of the table")
    ] = 2.0,
    micro_batches: Annotated[
        str, typer.Option(help="micro-batch sizes of training, comma separated")
    ] = "8,32",
    training: Annotated[bool, typer.Option(help="whether to time training steps too")] = True,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Time sampling and training of one model on this machine's processor or GPU.

    The device and its threads are those of [local] in var-scaling.toml. All lands in speed.json
    beside the model. A row takes the place of that of the same machine, precision, guidance and
    batch; what is not measured again stays, unless it was of other weights. Measure on a machine
    that does nothing else.
    """
    from pipelines.evaluation.throughput import BenchmarkOptions, measure_speed
    from pipelines.stages.context import RunContext, StopFile, local_process
    from pipelines.tracking.sync import mirror_model

    asked = BenchmarkOptions(
        _sizes("--batches", batches),
        _precisions(precisions),
        guidance,
        _sizes("--micro-batches", micro_batches) if training else (),
        seconds,
        named_settings(settings_of_family),
    )
    at, settings = Home(home), load_settings()
    with screen.steps(f"timing {address}") as report_progress:
        process = local_process(settings.local)
        context = RunContext(at, settings, StopFile(at.root / "stop"), process, report_progress)
        found = measure_speed(context, address, asked, report_progress)
    mirror_model(at, settings, address, screen.warn)
    if as_json:
        print(found.model_dump_json())
        return
    for table in speed_tables(address, found):
        screen.console.print(table)


def speed_tables(address: str, found: "BenchmarkResult") -> list[Table]:
    """Sampling, training and the machine's peaks, as a person reads them."""
    machine = found.machine
    threads = "" if machine.device == "cuda" else f", threads: {machine.threads}"
    sampling = screen.new_table(
        "precision", "guidance", "batch", "images/s", "s a batch", "transformer", "decoder", "MFU",
        "memory", title=f"{address} on {machine.name}{threads}: sampling", caption=_NOTE,
    )  # fmt: skip
    for row in found.sampling:
        guidance = ", ".join(filter(None, (f"{row.guidance:g}", row.settings)))
        way = (row.precision, guidance, str(row.batch))
        if row.whole is None or row.transformer is None or row.decoder is None:
            sampling.add_row(*way, "–", row.missing)
            continue
        parts = (f"{part.median_seconds:.3g}" for part in (row.transformer, row.decoder))
        sampling.add_row(
            *way, f"{row.images_per_second:,.3g}", _spread(row.whole), *parts,
            _share(row.transformer_mfu), _most(row.memory),
        )  # fmt: skip
    training = screen.new_table(
        "precision", "micro-batch", "tokens/s", "images/s", "s a step", "MFU", "memory",
        title="training: forward, backward and AdamW on random tokens",
    )  # fmt: skip
    for step in found.training:
        if step.step is None:
            training.add_row(step.precision, str(step.micro_batch), "–", "–", step.missing)
            continue
        training.add_row(
            step.precision, str(step.micro_batch), f"{step.tokens_per_second:,.0f}",
            f"{step.images_per_second:,.3g}", _spread(step.step), _share(step.mfu),
            _most(step.memory),
        )  # fmt: skip
    peaks = screen.new_table("precision", "FLOP/s", "side", title="matrix products")
    for peak in found.peaks:
        peaks.add_row(peak.precision, screen.short(peak.flops_per_second), f"{peak.side:,}")
    return [sampling, *([training] if found.training else []), peaks]


def _spread(timing: "Timing") -> str:
    half = (timing.most_seconds - timing.least_seconds) / 2
    return f"{timing.median_seconds:.3g} ± {half:.1g} ({timing.repeats} ×)"


def _share(mfu: float | None) -> str:
    return "–" if mfu is None else f"{mfu:.1%}"


def _most(memory: "Memory") -> str:
    """What a GPU held at most; of a processor only by how much the process grew."""
    if memory.gpu_peak_bytes is not None:
        return f"{screen.short(memory.gpu_peak_bytes)}B"
    grown = memory.process_growth_bytes
    return "–" if grown is None else f"+ {screen.short(grown)}B"


def _sizes(option: str, text: str) -> tuple[int, ...]:
    """Images at a time, the fewest first. Raises ValueError."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ValueError(f"{option} {text}: whole numbers from 1 with commas, 1,8,64")
    return tuple(sorted(set(found)))


def _precisions(text: str | None) -> tuple[Precision, ...]:
    """Those named, the finest first. Raises ValueError."""
    if text is None:
        return ()
    known: tuple[Precision, ...] = get_args(Precision)
    unknown = [name for name in text.split(",") if name not in known]
    if unknown:
        said = ", ".join(known)
        raise ValueError(f"--precisions {', '.join(unknown)}: there are {said}")
    return tuple(name for name in known if name in text.split(","))
