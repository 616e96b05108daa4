"""The command line: verbs, and the names of sweeps.

Exit codes: 0 done, 1 something failed, 2 asked wrongly, 3 a folder is the home of something else,
4 another process is at it, 130 stopped by Ctrl-C.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from pipelines import cli_cluster, cli_models, running, screen
from pipelines import plan as planning
from pipelines.address import imported_sweep
from pipelines.arguments import RUNS, AsJson, Detach, Dirty, HomeFolder, Only, SweepName
from pipelines.collect import View, overview
from pipelines.rows import write_results
from pipelines.running import Run
from pipelines.screen import console, errors, say_error, warn
from pipelines.settings import load_settings
from pipelines.slurm import SlurmAway
from pipelines.store import IMPORTED, Busy, Drift, Home
from pipelines.sweeps import choose, explained, find_sweep, known_sweeps
from var_scaling.config import Sweep

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def describe() -> None:
    """Find out how visual autoregressive models scale: images to tokens to trials to a law."""


@app.command()
def sweeps(as_json: AsJson = False) -> None:
    """The sweeps that come with this project."""
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
        float, typer.Option(min=1e-3, help="what one GPU sustains in training, in TFLOP/s")
    ] = 400.0,
    on: Annotated[
        str | None, typer.Option("--on", help="a cluster of var-scaling.toml: GPUs, hours, price")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a sweep consists of and what it costs, before anything is spent.

    GPU time is FLOPs over --tflops. 400 TFLOP/s is 40 % of an H100's dense bf16 peak of 989: an
    assumption until you have measured your own.
    """
    from pipelines import orchestrate

    sweep, at = _find(name, home), Home(home)
    cluster = load_settings().cluster(on) if on else None
    price = planning.price_on(cluster) if cluster else planning.Price(tflops * 1e12)
    rows = planning.plan_rows(sweep, overview(at, sweep), price, cluster)
    if as_json:
        print(json.dumps(planning.plan_summary(sweep, rows, price)))
    else:
        console.print(planning.plan_table(sweep, rows, price, cluster))
    orchestrate.refuse_drift(at, sweep)


@app.command()
def run(
    name: SweepName,
    home: HomeFolder = RUNS,
    on: Annotated[str, typer.Option("--on", help="local, or a cluster of var-scaling.toml")] = (
        "local"
    ),
    only: Only = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run; no more")] = False,
    detach: Detach = False,
    dirty: Dirty = False,
    take_over: Annotated[bool, typer.Option("--take-over", help="break another's lock")] = False,
) -> None:
    """Train what is missing, then fit and report. Run it again after any interruption."""
    sweep, at, settings = choose(_find(name, home), only or ()), Home(home), load_settings()
    how = Run(name, home, on, tuple(only or ()), dirty=dirty, detach=detach, take_over=take_over)
    if dry_run:
        screen.say(running.dry_run(sweep, at, settings, how))
        return
    running.run(sweep, at, settings, how)
    if not detach:
        _publish(at, _find(name, home), name, again=False)


@app.command()
def status(
    name: SweepName,
    home: HomeFolder = RUNS,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="until Ctrl-C, or all is done")] = False,
) -> None:
    """How far each stage is: attempt, step, loss, speed, node, job, and what went wrong."""
    from pipelines import cluster, orchestrate, slurm

    sweep, at = _find(name, home), Home(home)
    orchestrate.refuse_drift(at, sweep)

    def look() -> tuple[list[View], str]:
        queue = slurm.look() if cluster.asks_slurm(at, sweep) else None
        return overview(at, sweep, queue), cluster.driver_words(at, sweep)

    if watch:
        screen.watch(sweep, look)
        return
    views, driver = look()
    if as_json:
        stages = [asdict(view) for view in views]
        print(json.dumps({"sweep": sweep.name, "driver": driver, "stages": stages}))
    else:
        console.print(screen.status_table(sweep, views, driver))


@app.command()
def fit(name: SweepName, home: HomeFolder = RUNS, as_json: AsJson = False) -> None:
    """Fit the laws again to whatever has finished, draw and report them."""
    _publish(Home(home), _find(name, home), name, again=True, as_json=as_json)


@app.command()
def report(name: SweepName, home: HomeFolder = RUNS) -> None:
    """Write the report and say where it is."""
    from pipelines.publish import publish, report_path

    at, sweep = Home(home), _find(name, home)
    publish(at, sweep, _results(at, sweep), again=True)
    print(report_path(at, sweep))


@app.command()
def ui(
    name: Annotated[str | None, typer.Argument(help="a sweep to compare the trials of")] = None,
    home: HomeFolder = RUNS,
    port: Annotated[int, typer.Option(min=1024, max=65535)] = 5000,
) -> None:
    """Serve MLflow on this machine and say where to look; Ctrl-C ends it."""
    from pipelines import serve, tracking

    at, uri = Home(home), load_settings().mlflow.uri
    if uri is not None:
        screen.say(tracking.Mirror(at, _find(name, home), uri).url(uri) if name else uri)
        return
    if not (at.root / "mlflow.db").exists():
        raise ValueError(f"{at.root}: nothing has been logged here yet; `var-scaling run` does")
    base = f"http://127.0.0.1:{port}"
    pages = {"all experiments": base}
    if name:
        pages = {"compare": tracking.Mirror(at, _find(name, home)).url(base), **pages}
    with serve.server(at, port) as server:
        for what, url in pages.items():
            console.print(f"{what}: {url}", soft_wrap=True, highlight=False)
        server.wait()
    raise typer.Exit(1)  # it was to run until Ctrl-C


app.add_typer(cli_models.app)
app.add_typer(cli_cluster.app)


def _find(name: str, home: Path) -> Sweep:
    """The sweep of that name or path; `imported` is made of what was imported into `home`."""
    return imported_sweep(Home(home)) if name == IMPORTED else find_sweep(name)


def _publish(at: Home, sweep: Sweep, name: str, again: bool, as_json: bool = False) -> None:
    """Fit, draw, report, mirror and show."""
    from pipelines import publish

    laws = publish.publish(at, sweep, _results(at, sweep), again)
    if not publish.mirrored(at, sweep, laws) or again:
        from pipelines import mirror

        uri = load_settings().mlflow.uri
        if mirror.attempt(lambda: _mirror_all(at, sweep, laws, uri), warn):
            publish.note_mirrored(at, sweep, laws)
    if as_json:
        print(json.dumps(laws))
        return
    console.print(screen.law_tables(laws))
    for why in screen.gathered(laws["refused"]):
        console.print(f"not fitted: {why}", soft_wrap=True, highlight=False, markup=False)
    screen.say_paths(console, publish.paths(at, sweep), name)


def _mirror_all(at: Home, sweep: Sweep, laws: dict[str, Any], uri: str | None) -> None:
    from pipelines import publish, tracking

    mirror = tracking.Mirror(at, sweep, uri)
    mirror.catch_up()
    folder = at.sweep(sweep.name)
    files = [*sorted((folder / "report").iterdir()), folder / "results.parquet"]
    mirror.publish_law(publish.law_scalars(laws), publish.law_columns(laws), files)


def _results(at: Home, sweep: Sweep) -> str:
    from pipelines import orchestrate

    orchestrate.refuse_drift(at, sweep)  # else old losses would stand beside new sizes
    fingerprint = write_results(at, sweep)
    if fingerprint is None:
        raise ValueError(f"{sweep.name}: no trial has been evaluated yet; `var-scaling run` does")
    return fingerprint


def main() -> None:
    """The console script: what a person can mend is said in a line, not in a traceback."""
    codes = [(Drift, 3), (Busy, 4), (ValueError, 2), (OSError, 1), (SlurmAway, 1)]
    try:
        app()
    except KeyboardInterrupt:
        errors.print("Stopped at once; what was saved is kept.")
        sys.exit(130)
    except (Drift, Busy, ValueError, OSError, SlurmAway) as error:
        said = explained(error) if isinstance(error, ValidationError) else str(error)
        say_error(f"error: {said}")
        sys.exit(next(code for kind, code in codes if isinstance(error, kind)))


if __name__ == "__main__":
    main()
