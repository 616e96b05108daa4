"""The commands for a sweep on a cluster: cancel, retry, logs, mirror, doctor."""

import time
from collections import deque
from typing import Annotated

import typer

from pipelines.cli import run as cli_run
from pipelines.cli.options import RUNS, Detach, Dirty, HomeFolder, On, Only, SweepName
from pipelines.cli.run import RunOptions
from pipelines.cli.terminal import console as screen
from pipelines.stages.graph import sweep_stages
from pipelines.workspace.address import imported_sweep
from pipelines.workspace.settings import load_settings
from pipelines.workspace.store import IMPORTED, Home
from pipelines.workspace.sweeps import find_sweep, select_trials

app = typer.Typer()


@app.command()
def cancel(
    name: SweepName,
    only: Only = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="mark the jobs as cancelled without contacting Slurm, for a cluster that no "
            "longer exists",
        ),
    ] = False,
    home: HomeFolder = RUNS,
) -> None:
    """Cancel the jobs of a sweep, or stop it on this machine.

    Everything saved is kept; `retry` resumes.
    """
    from pipelines.execution import control as intervene
    from pipelines.execution.local import STOP
    from pipelines.workspace import driver_lock as driver

    sweep, workspace = find_sweep(name), Home(home)
    folder = workspace.sweep(sweep.name)
    stages = sweep_stages(workspace, sweep)
    cancelled = intervene.cancel(stages, folder, frozenset(only or ()), forget, screen.print_line)
    driver_process = driver.live_driver(folder)
    if driver_process is not None and driver_process.on == "local":
        (folder / STOP).touch()
        screen.print_line(f"requested that {driver_process} saves and stops")
    elif not cancelled:
        screen.print_line(f"{sweep.name}: has no jobs to cancel")


@app.command()
def retry(
    name: SweepName,
    on: Annotated[
        str | None,
        typer.Option("--on", help="cluster, such as h100. Default: that of the last jobs"),
    ] = None,
    only: Only = None,
    detach: Detach = False,
    dirty: Dirty = False,
    home: HomeFolder = RUNS,
) -> None:
    """Run failed and cancelled stages again.

    They resume from their last checkpoint.
    """
    from pipelines.execution import cluster
    from pipelines.execution import control as intervene
    from pipelines.workspace import driver_lock as driver

    sweep, workspace = find_sweep(name), Home(home)
    stages = sweep_stages(workspace, sweep)
    target = on or cluster.last_cluster(stages) or "local"
    driver_process = driver.live_driver(workspace.sweep(sweep.name))
    if on is not None and driver_process is not None and driver_process.on != on:
        raise ValueError(
            f"--on {on}: a driver runs this sweep on {driver_process.on} and would resubmit the "
            f"stages there ({driver_process}). Leave out --on, or stop that driver first"
        )
    reset = intervene.reset_failed(stages, frozenset(only or ()), screen.print_line)
    if not reset:
        screen.print_line(f"{sweep.name}: no stage has failed or was cancelled")
        return
    if driver_process is not None:
        screen.print_line(f"the running driver resubmits them ({driver_process})")
        return
    trials = {trial.name for trial in sweep.trials}
    selected = tuple(trial for trial in only or () if trial in trials)
    options = RunOptions(name, home, target, selected, dirty=dirty, detach=detach)
    cli_run.run(select_trials(sweep, selected), workspace, load_settings(), options)


@app.command()
def logs(
    address: Annotated[str, typer.Argument(help="SWEEP/TRIAL or tokenizers/NAME")],
    rank: Annotated[int, typer.Option(min=0, help="rank of the process, such as 1")] = 0,
    lines: Annotated[
        int, typer.Option(min=1, help="number of lines from the end, such as 200")
    ] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="print new lines until Ctrl-C")
    ] = False,
    home: HomeFolder = RUNS,
) -> None:
    """Print the output of a trial's latest job.

    If the job failed, the error follows.
    """
    from pipelines.execution.slurm.submit import log_of
    from pipelines.stages.attempt import FAILED
    from pipelines.workspace import job_log as jobs
    from var_scaling.disk import read_json

    folder = home / address
    record = jobs.latest(folder)
    if record is None:
        reason = (
            "it ran on this machine; see its terminal" if folder.exists() else "it does not exist"
        )
        raise ValueError(f"{folder}: no cluster job has run in this folder ({reason})")
    if (folder / FAILED).exists():
        screen.print_error(read_json(folder / FAILED)["traceback"])
    path = log_of(Home(home), record, rank)
    if not path.exists():
        state = "has not started" if record.job else "is not submitted to Slurm yet"
        raise ValueError(f"{path}: no output yet; job {record.job or record.submission} {state}")
    with open(path, errors="replace") as file:
        screen.print_line(f"{path} (job {record.job} on {record.cluster})")
        for line in deque(file, lines):
            screen.print_line(line.rstrip("\n"))
        while follow:
            line = file.readline()
            if line:
                screen.print_line(line.rstrip("\n"))
            else:
                time.sleep(0.5)


@app.command()
def mirror(
    name: SweepName,
    follow: Annotated[
        bool, typer.Option("--follow", help="repeat until all stages are done, or Ctrl-C")
    ] = False,
    home: HomeFolder = RUNS,
) -> None:
    """Update MLflow from the results on disk.

    For example after an MLflow outage, or for a detached sweep.
    """
    from pipelines.tracking.sync import mirror as update_mlflow

    workspace = Home(home)
    sweep = imported_sweep(workspace) if name == IMPORTED else find_sweep(name)
    update_mlflow(workspace, sweep, load_settings(), follow, screen.print_line)


@app.command()
def doctor(
    on: On = "local",
    home: HomeFolder = RUNS,
) -> None:
    """Check what a run needs, here or on a cluster.

    Prints how to fix what is missing.
    """
    from pipelines.execution.doctor import examine

    findings = examine(Home(home), load_settings(), on)
    for finding in findings:
        mark = {True: "ok  ", False: "BAD ", None: "note"}[finding.ok]
        screen.print_line(f"{mark}  {finding.name}: {finding.message}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)
