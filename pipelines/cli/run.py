"""The command `run`, on this machine or on a cluster: options, progress display and outcome."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipelines.cli.options import RUNS
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.console import console, errors, print_error, warn
from pipelines.execution.slurm import slurm
from pipelines.execution.status import overview, state_of
from pipelines.stages.graph import Stages, refuse_mismatch, sweep_stages
from pipelines.workspace.damage import Damage
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from var_scaling.experiment import Sweep

if TYPE_CHECKING:
    from pipelines.execution.local import Outcome

_NOTHING_LEFT = "nothing: everything is done"


@dataclass(frozen=True)
class RunOptions:
    """The options of `run`."""

    name: str
    home: Path
    on: str = "local"
    only: tuple[str, ...] = ()
    dirty: bool = False
    detach: bool = False
    take_over: bool = False

    def resume_command(self, verb: str = "run") -> str:
        """The command that resumes this run."""
        words = [f"var-scaling {verb} {self.name}"]
        words += [f"--on {self.on}"] if self.on != "local" else []
        words += [f"--only {name}" for name in self.only]
        words += [f"--home {self.home}"] if self.home != RUNS else []
        return " ".join(words + (["--dirty"] if self.dirty else []))


def run(sweep: Sweep, home: Home, settings: Settings, options: RunOptions) -> None:
    """Run `sweep` until it is done. Raises typer.Exit if it was interrupted or something failed."""
    from pipelines.execution.tasks import damaged_stages

    if options.on == "local" and options.detach:
        raise ValueError(
            "--detach needs a cluster (--on NAME). To run in the background on this machine: "
            "nohup var-scaling run … &"
        )
    stages = sweep_stages(home, sweep)
    refuse_mismatch(stages)
    _warn_if_writable_by_all(home)
    damaged = damaged_stages(stages)
    for stage, damage in damaged.items():
        (warn if damage.repaired_by_run else print_error)(f"{stage}: {damage}")
    if all(view.over for view in overview(stages)):
        _exit_if_damaged(damaged)
        return
    outcome = _run_stages(stages, sweep, home, settings, options)
    for stage, error in outcome.failures.items():
        print_error(f"failed {stage}: {error}")
    if options.detach:
        _print_submitted(stages, outcome.failures)
    _exit_unless_done(outcome, options)
    if not options.detach:
        _exit_if_damaged(damaged_stages(stages))


def _warn_if_writable_by_all(home: Home) -> None:
    if home.root.exists() and home.root.stat().st_mode & 0o002:
        warn(
            f"{home.root} is writable by all users, who could change code that runs under your "
            f"account. Run chmod o-w {home.root}"
        )


def _run_stages(
    stages: Stages, sweep: Sweep, home: Home, settings: Settings, options: RunOptions
) -> "Outcome":
    """Run `stages` on this machine or on a cluster, with progress display and MLflow mirror."""
    from pipelines.execution import cluster
    from pipelines.execution import local as orchestrate
    from pipelines.execution.slurm.resources import unknown_names
    from pipelines.tracking import sync as mirror

    folder, interval = home.sweep(sweep.name), 5.0  # seconds
    if options.on != "local":
        config = settings.cluster(options.on)
        interval = max(interval, config.poll_seconds)
        for name in unknown_names(stages, config):
            warn(f"trial_gpus names {name}, which is no trial or tokenizer of sweep {sweep.name}")
    with (
        mirror.mirroring(home, sweep, settings, warn, interval),
        screen.progress(console) as observe,
    ):
        if options.on == "local":
            return orchestrate.run(stages, folder, home, settings, observe, options.take_over)
        return cluster.launch(
            stages, folder, home, settings, options.on, options.dirty, options.detach,
            options.take_over, observe,
        )  # fmt: skip


def _exit_unless_done(outcome: "Outcome", options: RunOptions) -> None:
    """If the run was interrupted or failed, print how to resume it, and raise typer.Exit."""
    local = options.on == "local"
    if outcome.interrupted:
        state = "This process exits; its jobs keep running."
        if local:
            state = "Stopped; everything so far is kept."
        console.print(f"{state} To resume: {options.resume_command()}", soft_wrap=True)
        raise typer.Exit(0 if options.detach and not outcome.failures else 130)
    if outcome.failures:
        command = options.resume_command("run" if local else "retry")
        errors.print(
            f"The finished work is kept. Fix the error, then resume with: {command}", soft_wrap=True
        )
        raise typer.Exit(1)


def _exit_if_damaged(damaged: dict[str, Damage]) -> None:
    """Raise typer.Exit if a stage has damage that `run` cannot repair."""
    unrepaired = [stage for stage, damage in damaged.items() if not damage.repaired_by_run]
    if unrepaired:
        errors.print(
            f"Damaged and not repaired: {', '.join(unrepaired)}. To fit the laws without "
            "these stages: var-scaling fit", soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit(1)


def _print_submitted(stages: Stages, failures: dict[str, str]) -> None:
    """Print the jobs that a detached run has submitted, and the stages that a later run submits."""
    views = overview(stages, slurm.queue_or_none(20))
    submitted = [view for view in views if view.state in ("queued", "running")]
    failed = {name.rpartition(" ")[2] for name in failures}  # failures are named "KIND NAME"
    waiting = [
        view.name
        for view in views
        if view.state in ("waiting", "stopped") and view.name not in failed
    ]
    for view in submitted:
        screen.print_line(f"{view.kind} {view.name}: job {view.job or '…'}")
    if waiting:
        screen.print_line(
            f"not submitted: {', '.join(waiting)} (they need the jobs above: when these are done, "
            "run the same command again)"
        )


def dry_run(sweep: Sweep, home: Home, settings: Settings, options: RunOptions) -> str:
    """What `run` would do, one line for each stage or task."""
    from pipelines.execution.speeds.throughput import cluster_throughput
    from pipelines.execution.tasks import arrays_of

    stages = sweep_stages(home, sweep)
    refuse_mismatch(stages)
    if options.on == "local":
        views = [view for view in overview(stages) if not view.over]
        return "\n".join(f"{v.kind} {v.name}: {v.state}" for v in views) or _NOTHING_LEFT
    cluster, lines = settings.cluster(options.on), []
    throughput = cluster_throughput(home, options.on, cluster)
    queue = slurm.queue_or_none()
    arrays = arrays_of(stages, cluster, throughput)
    for task in (task for array in arrays for task in array.tasks):
        state, note = state_of(task.folder, queue)
        if task.done or state == "done":
            continue
        verb = {
            "running": "attach to", "queued": "attach to", "failed": "leave (retry it)",
            "cancelled": "leave (retry it)",
        }.get(state, "submit")  # fmt: skip
        job = task.resources
        gpus = f"{job.gpus_per_node} GPUs" if job.gpus_per_node else f"{job.processes} processes"
        batch = f", micro-batches of {job.micro_batch_size}" if job.micro_batch_size else ""
        lines.append(
            f"{verb} {task.name}: {job.nodes} x {gpus}, {job.minutes} min a job{batch}"
            + (f"  [{state}: {note}]" if note else "")
        )
    return "\n".join(lines) or _NOTHING_LEFT
