"""The command line `var-scaling`.

Exit codes: 0 done, 1 something failed, 2 invalid options, 3 a folder belongs to a run with a
different config, 4 another process uses the folder, 130 stopped by Ctrl-C.
"""

import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from pipelines.cli import edit as cli_edit
from pipelines.cli import fidelity as cli_fidelity
from pipelines.cli import fit as cli_fit
from pipelines.cli import forecast as cli_forecast
from pipelines.cli import jobs as cli_jobs
from pipelines.cli import models as cli_models
from pipelines.cli import run as cli_run
from pipelines.cli import sample as cli_sample
from pipelines.cli import speed as cli_speed
from pipelines.cli.fit import resolve_sweep
from pipelines.cli.options import (
    RUNS,
    AsJson,
    Detach,
    Dirty,
    HomeFolder,
    On,
    Only,
    SweepName,
    TakeOver,
)
from pipelines.cli.run import RunOptions
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.console import console, errors, print_error
from pipelines.cli.terminal.plan import plan_table
from pipelines.cli.terminal.publish import publish_and_show
from pipelines.execution.backend import BackendUnavailable
from pipelines.execution.speeds.benchmarks import LOCAL
from pipelines.execution.speeds.throughput import cluster_throughput
from pipelines.execution.status import SweepState, View, overview
from pipelines.planning import cost as planning
from pipelines.stages.graph import refuse_mismatch, sweep_stages
from pipelines.workspace.provenance import code_version
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import ConfigMismatchError, FolderInUseError, Home
from pipelines.workspace.sweeps import describe_error, known_sweeps, select_trials

TASKS = {
    "Run a sweep": ("sweeps", "plan", "benchmark", "run", "status", "report", "ui"),
    "Models": ("sample", "edit", "fidelity", "speed", "evaluate", "import", "export"),
    "Laws": ("fit", "forecast", "score", "next", "coverage"),
    "Cluster": ("doctor", "logs", "cancel", "retry", "mirror"),
}


class _CommandsByTask(TyperGroup):
    """Lists the commands by task in `var-scaling --help`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for task, names in TASKS.items():
            with formatter.section(task):
                width = formatter.width - 6 - max(map(len, self.commands))
                formatter.write_dl(
                    [(name, self.commands[name].get_short_help_str(width)) for name in names]
                )


app = typer.Typer(
    cls=_CommandsByTask,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"var-scaling {version('var-scaling')}, {code_version()}")
        raise typer.Exit


@app.callback()
def describe(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="show version and commit"
        ),
    ] = False,
) -> None:
    """Measure how visual autoregressive models scale: tokenize images, train models of several
    sizes, fit a scaling law.
    """


@app.command()
def sweeps(as_json: AsJson = False) -> None:
    """List the sweeps of this project, each with its question."""
    available = known_sweeps()
    if as_json:
        print(json.dumps([sweep.model_dump(mode="json") for sweep in available]))
    else:
        console.print(screen.sweeps_table(available))


@app.command()
def plan(
    name: SweepName,
    home: HomeFolder = RUNS,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="sustained training throughput of one GPU in TFLOP/s for all sizes, such as 350. "
            "Default: by size, measured or assumed",
            show_default=False,
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            help="cluster of var-scaling.toml, such as h100, for its GPUs and price; or local",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show parameters, FLOPs and cost of each trial.

    Nothing is run. GPU time is FLOPs divided by the throughput of a training step. It is measured
    for the sizes that `var-scaling benchmark` has measured on the cluster, or without --on on this
    machine. For other sizes it is assumed from the width of the model; without any measurement, the
    GPU is an H100 with a dense bf16 peak of 989 TFLOP/s. Each row shows which of the two it is.
    """
    if on and tflops is not None:
        raise ValueError(
            f"--tflops {tflops:g}: leave it out with --on {on}, whose settings give the throughput"
        )
    sweep, workspace, settings = resolve_sweep(name, Home(home)), Home(home), load_settings()
    cluster = settings.cluster(on) if on not in (None, LOCAL) else None
    price: planning.Price | None
    if on is not None and cluster is not None:
        price = planning.price_on(cluster, cluster_throughput(workspace, on, cluster))
    elif on == LOCAL:
        price = planning.local_price(workspace, settings.local)
        if price is None:
            raise ValueError(
                f"--on local: {workspace.root} has no measurement of this machine; run "
                f"`var-scaling benchmark {name}` first"
            )
    else:
        price = planning.price_without_cluster(sweep, workspace, settings.local, tflops)
    stages = sweep_stages(workspace, sweep)
    rows = planning.plan_rows(sweep, overview(stages), price, cluster)
    if as_json:
        print(json.dumps(planning.plan_summary(sweep, stages, rows, price)))
    else:
        console.print(plan_table(sweep, stages, rows, price, cluster))
    refuse_mismatch(stages)


@app.command()
def run(
    name: SweepName,
    home: HomeFolder = RUNS,
    on: On = "local",
    only: Only = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the stages that would run, and exit")
    ] = False,
    detach: Detach = False,
    dirty: Dirty = False,
    take_over: TakeOver = False,
) -> None:
    """Run what is not done, fit the laws and write the report.

    After an interruption, run the same command again: it resumes.
    """
    workspace, settings = Home(home), load_settings()
    sweep = select_trials(resolve_sweep(name, workspace), only or ())
    options = RunOptions(
        name, home, on, tuple(only or ()), dirty=dirty, detach=detach, take_over=take_over
    )
    if dry_run:
        screen.print_line(cli_run.dry_run(sweep, workspace, settings, options))
        return
    cli_run.run(sweep, workspace, settings, options)
    if not detach:
        publish_and_show(workspace, resolve_sweep(name, workspace), name, again=False)


@app.command()
def status(
    name: SweepName,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="refresh every 5 s until all stages have ended, or Ctrl-C"),
    ] = False,
) -> None:
    """Show the state of each stage.

    Attempt, step, loss, speed, time left, node, job and error.
    """
    from pipelines.execution import cluster
    from pipelines.execution.slurm import slurm

    sweep, workspace = resolve_sweep(name, Home(home)), Home(home)
    stages = sweep_stages(workspace, sweep)
    refuse_mismatch(stages)
    state = SweepState(stages)

    def poll() -> tuple[list[View], str]:
        queue = slurm.queue_or_none() if cluster.has_live_jobs(stages) else None
        return state.poll(queue), cluster.driver_status(workspace.sweep(sweep.name))

    if watch and as_json:
        raise ValueError("--watch with --json: --json prints the state once; give only one of them")
    if watch:
        screen.watch(sweep, poll)
        return
    views, driver = poll()
    if as_json:
        rows = [asdict(view) for view in views]
        print(json.dumps({"sweep": sweep.name, "driver": driver, "stages": rows}))
    else:
        console.print(screen.status_table(sweep, views, driver))


@app.command()
def ui(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="one or more sweeps whose trials to compare, such as quickstart ./mine.py",
            show_default=False,
        ),
    ] = None,
    home: HomeFolder = RUNS,
    family: Annotated[
        str | None,
        typer.Option(help="only trials of this family, such as var", show_default=False),
    ] = None,
    condition: Annotated[
        str | None,
        typer.Option(
            "--filter",
            help="only trials that match, in MLflow's search syntax, such as \"params.depth = '4' "
            'and metrics.`val/loss` < 2"',
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1024,
            max=65535,
            help="port on 127.0.0.1, 1024 to 65535. Default: 5000",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve MLflow on this machine until Ctrl-C.

    Prints the addresses: of the held-out losses and of the comparison page of the sweeps given, and
    of all experiments. For more than 200 trials, it is a table of them instead: choose fewer with
    --family or --filter.
    """
    workspace, uri = Home(home), load_settings().mlflow.uri
    _check_ui_options(workspace, uri, port, names, {"--family": family, "--filter": condition})
    base = uri or f"http://127.0.0.1:{port or 5000}"
    pages = {"all experiments": base}
    if names:
        pages = _comparison_pages(workspace, uri, base, names, family, condition) | pages
    if uri is not None:
        _print_pages(pages)
        return
    from pipelines.tracking import server as serve

    with serve.server(workspace, port or 5000) as server:
        _print_pages(pages)
        console.print("Stop the server with Ctrl-C; open an address in a browser.")
        server.wait()
    raise typer.Exit(1)  # reached only if the server ended by itself, before Ctrl-C


def _check_ui_options(
    workspace: Home,
    uri: str | None,
    port: int | None,
    names: list[str] | None,
    chosen: dict[str, str | None],
) -> None:
    """Raise ValueError for options that do not fit, or if there is nothing to show."""
    if uri is not None and port is not None:
        raise ValueError(
            f"--port {port}: leave it out, because var-scaling.toml names the server {uri}"
        )
    if uri is None and not (workspace.root / "mlflow.db").exists():
        raise ValueError(
            f"{workspace.root}: nothing has been logged to MLflow yet; start `var-scaling run` "
            "first"
        )
    if not names and (given := [option for option, value in chosen.items() if value]):
        raise ValueError(f"{', '.join(given)}: name the sweeps to choose from, such as quickstart")


def _comparison_pages(
    workspace: Home,
    uri: str | None,
    base: str,
    names: list[str],
    family: str | None,
    condition: str | None,
) -> dict[str, str]:
    """The addresses of the pages that compare the trials of the named sweeps, by title."""
    from pipelines.tracking import mlflow as tracking

    sweeps = [
        resolve_sweep(name, workspace).name if name.endswith(".py") else name
        for name in dict.fromkeys(names)
    ]
    tracker = tracking.MLflowTracker(workspace, uri)
    return tracker.comparison_urls(sweeps, base, family, condition or "")


def _print_pages(pages: dict[str, str]) -> None:
    for title, url in pages.items():
        console.print(f"{title}: {url}", soft_wrap=True, highlight=False)


app.add_typer(cli_fit.app)
app.add_typer(cli_models.app)
app.add_typer(cli_jobs.app)
app.add_typer(cli_forecast.app)
app.add_typer(cli_sample.app)
app.add_typer(cli_edit.app)
app.add_typer(cli_fidelity.app)
app.add_typer(cli_speed.app)


def main() -> None:
    """The console script. Errors that the user can fix are printed without a traceback."""
    # The first match counts: ConfigMismatchError is a ValueError.
    codes = [
        (ConfigMismatchError, 3), (FolderInUseError, 4), (ValueError, 2), (OSError, 1),
        (BackendUnavailable, 1),
    ]  # fmt: skip
    try:
        app()
    except KeyboardInterrupt:
        errors.print("Stopped immediately; everything saved so far is kept.")
        sys.exit(130)
    except (
        ConfigMismatchError,
        FolderInUseError,
        ValueError,
        OSError,
        BackendUnavailable,
    ) as error:
        text = describe_error(error) if isinstance(error, ValidationError) else str(error)
        print_error(f"error: {text}")
        sys.exit(next(code for kind, code in codes if isinstance(error, kind)))


if __name__ == "__main__":
    main()
