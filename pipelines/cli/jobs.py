"""The verbs of a sweep on a cluster: end its jobs, try again, read their output, mirror, doctor."""

import time
from collections import deque
from typing import Annotated

import typer

from pipelines.cli import run as running
from pipelines.cli.options import RUNS, Detach, Dirty, HomeFolder, Only, SweepName
from pipelines.cli.run import Run
from pipelines.cli.terminal import console as screen
from pipelines.stages.graph import sweep_stages
from pipelines.workspace.address import imported_sweep
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import IMPORTED, Home
from pipelines.workspace.sweeps import choose, find_sweep

app = typer.Typer()


@app.command()
def cancel(
    name: SweepName,
    only: Only = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="release the jobs without contacting Slurm, if that cluster no longer exists",
        ),
    ] = False,
    home: HomeFolder = RUNS,
) -> None:
    """End a sweep's jobs, on a cluster or here. What they saved is kept; `retry` goes on."""
    from pipelines.execution import control as intervene
    from pipelines.execution.local import STOP
    from pipelines.workspace import driver_lock as driver

    sweep, at = find_sweep(name), Home(home)
    folder = at.sweep(sweep.name)
    stages = sweep_stages(at, sweep)
    ended = intervene.cancel(stages, folder, frozenset(only or ()), forget, screen.say)
    at_it = driver.alive(folder)
    if at_it is not None and at_it.on == "local":
        (folder / STOP).touch()
        screen.say(f"asked {at_it} to save and stop")
    elif not ended:
        screen.say(f"{sweep.name}: no job is known to be there")


@app.command()
def retry(
    name: SweepName,
    on: Annotated[
        str | None, typer.Option("--on", help="cluster. Default: the one of the last jobs")
    ] = None,
    only: Only = None,
    detach: Detach = False,
    dirty: Dirty = False,
    home: HomeFolder = RUNS,
) -> None:
    """Run again what failed or was cancelled, from where it was."""
    from pipelines.execution import cluster
    from pipelines.execution import control as intervene
    from pipelines.workspace import driver_lock as driver

    sweep, at = find_sweep(name), Home(home)
    stages = sweep_stages(at, sweep)
    where = on or cluster.cluster_of(stages) or "local"
    at_it = driver.alive(at.sweep(sweep.name))
    if on is not None and at_it is not None and at_it.on != on:
        raise ValueError(f"--on {on}: {at_it} is at work, and would take it up there")
    again = intervene.reset_failed(stages, frozenset(only or ()), screen.say)
    if not again:
        screen.say(f"{sweep.name}: nothing has failed or was cancelled")
        return
    if at_it is not None:
        screen.say(f"the driver at work takes it up ({at_it})")
        return
    trials = {trial.name for trial in sweep.trials}
    chosen = tuple(n for n in only or () if n in trials)
    how = Run(name, home, where, chosen, dirty=dirty, detach=detach)
    running.run(choose(sweep, chosen), at, load_settings(), how)


@app.command()
def logs(
    address: Annotated[str, typer.Argument(help="SWEEP/TRIAL or tokenizers/NAME")],
    rank: Annotated[int, typer.Option(min=0, help="rank of the process")] = 0,
    lines: Annotated[int, typer.Option(min=1, help="number of lines, from the end")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="print new lines until Ctrl-C")
    ] = False,
    home: HomeFolder = RUNS,
) -> None:
    """What a trial's latest job has written, and the error it ended with."""
    from pipelines.execution.slurm.submit import log_of
    from pipelines.stages.attempt import FAILED
    from pipelines.workspace import job_log as jobs
    from var_scaling.disk import read_json

    folder = home / address
    record = jobs.latest(folder)
    if record is None:
        here = "it ran on this machine, whose terminal has it all" if folder.exists() else "no such"
        raise ValueError(f"{folder}: no job of a cluster has worked here ({here})")
    if (folder / FAILED).exists():
        screen.say_error(read_json(folder / FAILED)["traceback"])
    path = log_of(Home(home), record, rank)
    if not path.exists():
        said = "has not begun" if record.job else "is not in Slurm's hands yet"
        raise ValueError(f"{path}: nothing yet; job {record.job or record.submission} {said}")
    with open(path, errors="replace") as file:
        screen.say(f"{path} (job {record.job} on {record.cluster})")
        for line in deque(file, lines):
            screen.say(line.rstrip("\n"))
        while follow:
            line = file.readline()
            if line:
                screen.say(line.rstrip("\n"))
            else:
                time.sleep(0.5)


@app.command()
def mirror(
    name: SweepName,
    follow: Annotated[
        bool, typer.Option("--follow", help="continue until everything is done, or Ctrl-C")
    ] = False,
    home: HomeFolder = RUNS,
) -> None:
    """Bring MLflow to what the disk says: after an outage, or beside a sweep that was left."""
    from pipelines.tracking.sync import mirror as bring_up_to_date

    at = Home(home)
    sweep = imported_sweep(at) if name == IMPORTED else find_sweep(name)
    bring_up_to_date(at, sweep, load_settings(), follow, screen.say)


@app.command()
def doctor(
    on: Annotated[
        str, typer.Option("--on", help="where to run: local, or a cluster of var-scaling.toml")
    ] = ("local"),
    home: HomeFolder = RUNS,
) -> None:
    """Look at what a run needs, here or on a cluster, and say what to do where it is not there."""
    from pipelines.execution.doctor import examine

    findings = examine(Home(home), load_settings(), on)
    for finding in findings:
        mark = {True: "ok  ", False: "BAD ", None: "note"}[finding.good]
        screen.say(f"{mark}  {finding.what}: {finding.said}")
    if any(finding.good is False for finding in findings):
        raise typer.Exit(1)
