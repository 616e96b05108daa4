"""The command line: verbs, and the names of sweeps.

Exit codes: 0 done, 1 something failed, 2 asked wrongly, 3 a folder is the home of something else,
4 another process is at it, 130 stopped by Ctrl-C.
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
from pipelines.cli import forecast as cli_laws
from pipelines.cli import jobs as cli_cluster
from pipelines.cli import models as cli_models
from pipelines.cli import run as running
from pipelines.cli import sample as cli_sample
from pipelines.cli import speed as cli_speed
from pipelines.cli.fit import sweep_of
from pipelines.cli.options import RUNS, AsJson, Detach, Dirty, HomeFolder, Only, SweepName
from pipelines.cli.run import Run
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.console import console, errors, say_error
from pipelines.cli.terminal.plan import plan_table
from pipelines.cli.terminal.publish import publish_and_show
from pipelines.execution.backend import Away
from pipelines.execution.status import SweepState, View, overview
from pipelines.planning import cost as planning
from pipelines.stages.graph import refuse_mismatch, sweep_stages
from pipelines.workspace.provenance import code_version
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import Busy, ConfigMismatchError, Home
from pipelines.workspace.sweeps import choose, explained, known_sweeps

TASKS = {
    "Run a sweep": ("sweeps", "plan", "run", "status", "report", "ui"),
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


_TFLOPS = 400.0  # 40 % of an H100's dense bf16 peak of 989


def _print_version(wanted: bool) -> None:
    if wanted:
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
    """Find out how visual autoregressive models scale: images to tokens to trials to a law."""


@app.command()
def sweeps(as_json: AsJson = False) -> None:
    """List the sweeps of this project, each with its question."""
    found = known_sweeps()
    if as_json:
        print(json.dumps([sweep.model_dump(mode="json") for sweep in found]))
    else:
        console.print(screen.sweeps_table(found))


@app.command()
def plan(
    name: SweepName,
    home: HomeFolder = RUNS,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="sustained training throughput of one GPU in TFLOP/s. Default: 400",
            show_default=False,
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", help="cluster of var-scaling.toml, for GPUs, hours and price"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show parameters, FLOPs and cost of each trial before anything runs.

    GPU time is FLOPs over --tflops. 400 TFLOP/s is 40 % of an H100's dense bf16 peak of 989: an
    assumption until you have measured your own.
    """
    if on and tflops is not None:
        raise ValueError(
            f"--tflops {tflops:g}: what a GPU of --on {on} sustains is in its settings"
        )
    sweep, at = sweep_of(name, Home(home)), Home(home)
    cluster = load_settings().cluster(on) if on else None
    price = planning.price_on(cluster) if cluster else planning.Price((tflops or _TFLOPS) * 1e12)
    stages = sweep_stages(at, sweep)
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
    on: Annotated[
        str, typer.Option("--on", help="where to run: local, or a cluster of var-scaling.toml")
    ] = ("local"),
    only: Only = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what would run, and exit")
    ] = False,
    detach: Detach = False,
    dirty: Dirty = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="take over the lock of another driver")
    ] = False,
) -> None:
    """Train what is missing, fit the laws and write the report. Run it again after any "
    "interruption."""
    at, settings = Home(home), load_settings()
    sweep = choose(sweep_of(name, at), only or ())
    how = Run(name, home, on, tuple(only or ()), dirty=dirty, detach=detach, take_over=take_over)
    if dry_run:
        screen.say(running.dry_run(sweep, at, settings, how))
        return
    running.run(sweep, at, settings, how)
    if not detach:
        publish_and_show(at, sweep_of(name, at), name, again=False)


@app.command()
def status(
    name: SweepName,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="refresh until everything is done, or Ctrl-C")
    ] = False,
) -> None:
    """Show the state of each stage: attempt, step, loss, speed, node, job and error."""
    from pipelines.execution import cluster
    from pipelines.execution.slurm import slurm

    sweep, at = sweep_of(name, Home(home)), Home(home)
    stages = sweep_stages(at, sweep)
    refuse_mismatch(stages)
    state = SweepState(stages)

    def look() -> tuple[list[View], str]:
        queue = slurm.look() if cluster.asks_slurm(stages) else None
        return state.look(queue), cluster.driver_words(at.sweep(sweep.name))

    if watch and as_json:
        raise ValueError("--watch or --json: JSON is of one look")
    if watch:
        screen.watch(sweep, look)
        return
    views, driver = look()
    if as_json:
        shown = [asdict(view) for view in views]
        print(json.dumps({"sweep": sweep.name, "driver": driver, "stages": shown}))
    else:
        console.print(screen.status_table(sweep, views, driver))


@app.command()
def ui(
    name: Annotated[str | None, typer.Argument(help="sweep whose trials to compare")] = None,
    home: HomeFolder = RUNS,
    port: Annotated[
        int | None,
        typer.Option(
            min=1024, max=65535, help="port on 127.0.0.1. Default: 5000", show_default=False
        ),
    ] = None,
) -> None:
    """Serve MLflow on this machine and say where to look; Ctrl-C ends it."""
    from pipelines.tracking import mlflow as tracking
    from pipelines.tracking import server as serve

    at, uri = Home(home), load_settings().mlflow.uri
    if uri is not None and port is not None:
        raise ValueError(f"--port {port}: MLflow is served at {uri}, as var-scaling.toml says")
    if uri is not None:
        shown = sweep_of(name, at).name if name else None
        screen.say(tracking.MLflowTracker(at, uri).url(shown, uri) if shown else uri)
        return
    if not (at.root / "mlflow.db").exists():
        raise ValueError(f"{at.root}: nothing has been logged here yet; `var-scaling run` does")
    port = port or 5000
    base = f"http://127.0.0.1:{port}"
    pages = {"all experiments": base}
    if name:
        shown = sweep_of(name, at).name
        pages = {"compare": tracking.MLflowTracker(at).url(shown, base), **pages}
    with serve.server(at, port) as server:
        for what, url in pages.items():
            console.print(f"{what}: {url}", soft_wrap=True, highlight=False)
        server.wait()
    raise typer.Exit(1)  # it was to run until Ctrl-C


app.add_typer(cli_fit.app)
app.add_typer(cli_models.app)
app.add_typer(cli_cluster.app)
app.add_typer(cli_laws.app)
app.add_typer(cli_sample.app)
app.add_typer(cli_edit.app)
app.add_typer(cli_fidelity.app)
app.add_typer(cli_speed.app)


def main() -> None:
    """The console script: what a person can mend is said in a line, not in a traceback."""
    codes = [(ConfigMismatchError, 3), (Busy, 4), (ValueError, 2), (OSError, 1), (Away, 1)]
    try:
        app()
    except KeyboardInterrupt:
        errors.print("Stopped at once; what was saved is kept.")
        sys.exit(130)
    except (ConfigMismatchError, Busy, ValueError, OSError, Away) as error:
        said = explained(error) if isinstance(error, ValidationError) else str(error)
        say_error(f"error: {said}")
        sys.exit(next(code for kind, code in codes if isinstance(error, kind)))


if __name__ == "__main__":
    main()
