"""One call of `run`, here or on a cluster: what it is told, how it is followed, how it ends."""

from dataclasses import dataclass
from pathlib import Path

import typer

from pipelines.cli.options import RUNS
from pipelines.cli.terminal import console as screen
from pipelines.cli.terminal.console import console, errors, say_error, warn
from pipelines.execution.slurm import slurm
from pipelines.execution.status import overview, state_of
from pipelines.stages.graph import Stages, refuse_mismatch, sweep_stages
from pipelines.workspace.damage import Damage
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from var_scaling.experiment import Sweep


@dataclass(frozen=True)
class Run:
    """What the command line asked for."""

    name: str
    home: Path
    on: str = "local"
    only: tuple[str, ...] = ()
    dirty: bool = False
    detach: bool = False
    take_over: bool = False

    def again(self, verb: str = "run") -> str:
        """The command that goes on from here."""
        words = [f"var-scaling {verb} {self.name}"]
        words += [f"--on {self.on}"] if self.on != "local" else []
        words += [f"--only {name}" for name in self.only]
        words += [f"--home {self.home}"] if self.home != RUNS else []
        return " ".join(words + (["--dirty"] if self.dirty else []))


def run(sweep: Sweep, home: Home, settings: Settings, how: Run) -> None:
    """Bring `sweep` to its end, or as far as it gets: then raises typer.Exit."""
    from pipelines.execution import cluster
    from pipelines.execution import local as orchestrate
    from pipelines.execution.slurm.resources import unknown_names
    from pipelines.execution.tasks import damaged_stages
    from pipelines.tracking import sync as mirror

    if how.on == "local" and how.detach:
        raise ValueError(
            "--detach leaves jobs to Slurm; on this machine: nohup var-scaling run … &"
        )
    stages = sweep_stages(home, sweep)
    refuse_mismatch(stages)
    if home.root.exists() and home.root.stat().st_mode & 0o002:
        warn(
            f"{home.root} can be written to by all users, who could change code that runs as you: "
            "chmod o-w"
        )
    damaged = damaged_stages(stages)
    for stage, found in damaged.items():
        (warn if found.by_run else say_error)(f"{stage}: {found}")
    if all(view.over for view in overview(stages)):
        _leave_damaged(damaged)
        return
    folder, where, every = home.sweep(sweep.name), None, 5.0
    if how.on != "local":
        where = settings.cluster(how.on)
        every = max(every, where.poll_seconds)
        for name in unknown_names(stages, where):
            warn(f"trial_gpus names {name}, which is no trial and no tokenizer of {sweep.name}")
    with mirror.mirroring(home, sweep, settings, warn, every), screen.progress(console) as observe:
        if where is None:
            outcome = orchestrate.run(stages, folder, home, settings, observe, how.take_over)
        else:
            outcome = cluster.launch(
                stages,
                folder,
                home,
                settings,
                how.on,
                how.dirty,
                how.detach,
                how.take_over,
                observe,
            )
    for stage, why in outcome.failures.items():
        say_error(f"failed {stage}: {why}")
    if how.detach:
        _say_left(stages, outcome.failures)
    if outcome.interrupted:
        what = "Left; its jobs go on." if where else "Stopped; everything so far is kept."
        console.print(f"{what} To go on: {how.again()}", soft_wrap=True)
        raise typer.Exit(0 if how.detach and not outcome.failures else 130)
    if outcome.failures:
        mend = how.again("run" if where is None else "retry")
        errors.print(f"The rest is kept. Once mended, go on with: {mend}", soft_wrap=True)
        raise typer.Exit(1)
    if not how.detach:
        _leave_damaged(damaged_stages(stages))


def _leave_damaged(damaged: dict[str, Damage]) -> None:
    """Raise typer.Exit if something is damaged that `run` cannot repair."""
    left = [stage for stage, found in damaged.items() if not found.by_run]
    if left:
        errors.print(
            f"Damaged, and left as it is: {', '.join(left)}. What the laws say without it: "
            "var-scaling fit", soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit(1)


def _say_left(stages: Stages, failures: dict[str, str]) -> None:
    """What a detached run has left behind, and what waits for the next."""
    views = overview(stages, slurm.look(20))
    submitted = [view for view in views if view.state in ("queued", "running")]
    ended = {name.rpartition(" ")[2] for name in failures}
    waiting = [
        view.name
        for view in views
        if view.state in ("waiting", "stopped") and view.name not in ended
    ]
    for view in submitted:
        screen.say(f"{view.kind} {view.name}: job {view.job or '…'}")
    if waiting:
        screen.say(f"not yet: {', '.join(waiting)} (they wait for the above; run again then)")


def dry_run(sweep: Sweep, home: Home, settings: Settings, how: Run) -> str:
    """What `run` would do, in lines."""
    from pipelines.execution.tasks import arrays_of

    stages = sweep_stages(home, sweep)
    refuse_mismatch(stages)
    if how.on == "local":
        views = [view for view in overview(stages) if not view.over]
        return "\n".join(f"{v.kind} {v.name}: {v.state}" for v in views) or "nothing: all is done"
    where, lines = settings.cluster(how.on), []
    queue = slurm.look()
    for task in (task for array in arrays_of(stages, where) for task in array.tasks):
        state, note = state_of(task.folder, queue)
        if task.done or state == "done":
            continue
        verb = {
            "running": "attach to", "queued": "attach to", "failed": "leave (retry it)",
            "cancelled": "leave (retry it)",
        }.get(state, "submit")  # fmt: skip
        asks = task.resources
        gpus = f"{asks.gpus_per_node} GPUs" if asks.gpus_per_node else f"{asks.processes} processes"
        passes = f", {asks.micro_batch_size} images at once" if asks.micro_batch_size else ""
        lines.append(
            f"{verb} {task.name}: {asks.nodes} x {gpus}, {asks.minutes} min a job{passes}"
            + (f"  [{state}: {note}]" if note else "")
        )
    return "\n".join(lines) or "nothing: all is done"
