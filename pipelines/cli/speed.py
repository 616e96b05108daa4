"""The commands `speed` and `benchmark`: how fast a model samples and trains, and how fast the sizes
of a sweep train.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from pipelines.cli.models import Model
from pipelines.cli.options import (
    RUNS,
    AsJson,
    Dirty,
    HomeFolder,
    Only,
    Set,
    SweepName,
    named_settings,
)
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.speed import benchmark_table, missing_reason, speed_tables
from pipelines.execution.speeds.benchmarks import (
    LOCAL,
    Hardware,
    StepBenchmark,
    benchmarks_file,
    cluster_hardware,
    local_hardware,
    read_benchmarks,
)
from pipelines.stages.context import local_context
from pipelines.workspace.settings import Settings, load_settings
from pipelines.workspace.store import Home
from pipelines.workspace.sweeps import find_sweep, select_trials
from var_scaling.experiment import Sweep
from var_scaling.recipe import Precision
from var_scaling.text import counted

if TYPE_CHECKING:
    from pipelines.evaluation.training_benchmark import BenchmarkCase

app = typer.Typer()

BatchSizes = Annotated[
    str, typer.Option(help="batch sizes of sampling in images, comma separated, such as 1,8")
]
Precisions = Annotated[
    str | None,
    typer.Option(
        help="precisions among fp32, tf32, bf16, fp16, comma separated, such as fp32,bf16. "
        "Default: fp32, on a GPU also bf16"
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="guidance, such as 1.5; for VAR at its last scale, rising from 0. 0 is measured "
        "too. Default: that of the family; only 0 for a model trained without the null class",
        show_default=False,
    ),
]
SecondsOfRow = Annotated[
    float,
    typer.Option(min=0.001, help="approximate seconds for each row of the table, such as 10"),
]
MicroBatches = Annotated[
    str,
    typer.Option(help="micro-batch sizes of training in images, comma separated, such as 8,32"),
]
WithTraining = Annotated[bool, typer.Option(help="time training steps too, or only sampling")]


@app.command()
def speed(
    address: Model,
    batches: BatchSizes = "1,8,64",
    precisions: Precisions = None,
    guidance: GuidanceScale = None,
    settings_of_family: Set = None,
    seconds: SecondsOfRow = 2.0,
    micro_batches: MicroBatches = "8,32",
    training: WithTraining = True,
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
        context = local_context(workspace, settings, report_progress)
        result = measure_speed(context, address, options, report_progress)
    mirror_model(workspace, settings, address, screen.warn)
    if as_json:
        print(result.model_dump_json())
        return
    for table in speed_tables(address, result):
        screen.console.print(table)


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


@app.command()
def benchmark(
    name: SweepName,
    on: Annotated[
        str,
        typer.Option(
            "--on", help="where to measure: local, or a cluster of var-scaling.toml, such as h100"
        ),
    ] = LOCAL,
    only: Only = None,
    seconds: Annotated[
        float, typer.Option(min=0.001, help="approximate seconds of each size, such as 20")
    ] = 5.0,
    again: Annotated[
        bool, typer.Option("--again", help="measure all sizes again, not only those without result")
    ] = False,
    dirty: Dirty = False,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
) -> None:
    """Measure a training step of each size of a sweep.

    A size is a model, its precision and the images of one process. Its step runs in the real
    training loop with random tokens, so no images and no tokenizer are needed. On a cluster it is
    one job on one GPU. The result is written to benchmarks/ in the run directory; `plan` and `run
    --on` then use it for hours, GPUs and prices. Sizes that are already measured are not measured
    again. Measure on an otherwise idle machine.
    """
    from pipelines.evaluation.training_benchmark import not_measured

    workspace, settings = Home(home), load_settings()
    sweep = select_trials(find_sweep(name), only or ())
    if not sweep.trials:
        raise ValueError(f"{name}: has no trials, so there is no training step to measure")
    hardware, cases = _cases_on(on, sweep, workspace, settings)
    fitting = [one for one in cases if one.unfit is None]
    chosen = fitting if again else not_measured(workspace, hardware, cases)
    if chosen:
        error = _measure(sweep.name, chosen, hardware, workspace, settings, seconds, dirty)
        if error is not None:
            screen.print_error(f"failed on {on}: {error}")
            screen.print_error("The sizes that were measured are kept; run the command again")
            raise typer.Exit(1)
    results = {one.size_fingerprint: one for one in read_benchmarks(workspace, hardware)}
    rows = [(one, results.get(one.size.fingerprint())) for one in cases]
    file = benchmarks_file(workspace, hardware)
    if as_json:
        print(json.dumps(_as_json(sweep.name, file, rows, chosen)))
        return
    screen.console.print(benchmark_table(f"{sweep.name} on {on}", rows))
    measured = sum(
        missing_reason(case, results.get(case.size.fingerprint())) is None for case in chosen
    )
    without = sum(missing_reason(*row) is not None for row in rows)
    summary = (
        f"{measured} size{'s' * (measured != 1)} measured now" if chosen else "nothing to measure"
    )
    if without:
        summary += f", {without} without numbers"
    screen.print_line(f"{summary}: {file}")


def _cases_on(
    on: str, sweep: Sweep, home: Home, settings: Settings
) -> "tuple[Hardware, list[BenchmarkCase]]":
    """The hardware and the sizes to measure there. Raises SettingsError for an unknown cluster."""
    from pipelines.evaluation.training_benchmark import cluster_cases, local_cases
    from pipelines.execution.speeds.throughput import cluster_throughput

    if on == LOCAL:
        return local_hardware(settings.local), local_cases(sweep, settings.local)
    cluster = settings.cluster(on)
    throughput = cluster_throughput(home, on, cluster)
    return cluster_hardware(on, cluster), cluster_cases(sweep, cluster, throughput)


def _measure(
    sweep: str,
    cases: "Sequence[BenchmarkCase]",
    hardware: Hardware,
    home: Home,
    settings: Settings,
    seconds: float,
    dirty: bool,
) -> str | None:
    """Measure `cases` on `hardware`; returns the error of the job, if it has failed."""
    from pipelines.evaluation.benchmark_job import run_on_cluster
    from pipelines.evaluation.training_benchmark import measure

    context = local_context(home, settings)
    with screen.progress_bar(f"timing {counted(len(cases), 'size')}") as report_progress:
        if hardware.on != LOCAL:
            try:
                return run_on_cluster(
                    context, sweep, cases, hardware.on, seconds, dirty, report_progress
                )
            except KeyboardInterrupt:
                screen.print_line(
                    "This process exits; its job keeps running. To wait for it, run the same "
                    "command again"
                )
                raise typer.Exit(130) from None
        for _ in measure(context, cases, hardware, seconds, None, report_progress):
            pass
    return None


def _as_json(
    sweep: str,
    file: Path,
    rows: "Sequence[tuple[BenchmarkCase, StepBenchmark | None]]",
    chosen: "Sequence[BenchmarkCase]",
) -> dict[str, Any]:
    return {
        "sweep": sweep,
        "file": str(file),
        "sizes": [
            {
                "trials": list(case.trials),
                "measured_now": case in chosen,
                "missing": missing_reason(case, result),
                "flops_per_second": None if result is None else result.flops_per_second,
                "benchmark": None if result is None else result.model_dump(mode="json"),
            }
            for case, result in rows
        ],
    }
