"""One call of `sample`, here or on a cluster: who may do it, how it is stopped, how it ended."""

import asyncio
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.execution.cluster import environment_for_jobs, refuse_without_slurm, submit_once
from pipelines.execution.reconcile import Reconciler
from pipelines.execution.slurm.backend import SlurmBackend
from pipelines.execution.tasks import Task
from pipelines.sampling.draw import How, ReportProgress, sample_set, stop_requested
from pipelines.sampling.finalize import ended
from pipelines.sampling.jobs import images_drawn, others_at_it, reset_failed, sample_tasks
from pipelines.sampling.processes import ProcessFailed, sample_set_by
from pipelines.sampling.request import Plan
from pipelines.sampling.store import STRIPS, SampleFolder, refuse_other
from pipelines.stages.attempt import Stopped
from pipelines.stages.context import RunContext, StopFile, asking_to_stop
from pipelines.workspace.address import read_generator
from pipelines.workspace.driver_lock import driving
from pipelines.workspace.modules import named_in
from pipelines.workspace.settings import MLflow
from pipelines.workspace.snapshot import take_snapshot
from pipelines.workspace.store import Busy, file_lock, in_use


@dataclass(frozen=True)
class Outcome:
    """How it ended: done, unless one of these says otherwise."""

    stopped: str | None = None  # asked to stop, or left: what to know
    failures: dict[str, str] = field(default_factory=dict)  # by unit
    missing: str | None = None  # this part is done, the set is not


@dataclass(frozen=True)
class Launch:
    """What is said about a cluster."""

    cluster: str
    jobs: int
    retry: bool
    detach: bool
    dirty: bool
    take_over: bool


def here(
    context: RunContext, plan: Plan, how: How, processes: int, report_progress: ReportProgress
) -> Outcome:
    """Draw on this machine. Raises Busy, Drift, ValueError, OSError."""
    refuse_other(plan.folder, plan.wanted)
    mine = "" if how.part is None else f"-{how.part[0] + 1}-of-{how.part[1]}"
    with _alone(plan.folder, how.part):
        stop_file = plan.folder / f"stop{mine}"
        stop_file.unlink(missing_ok=True)
        context = replace(context, requested_signal=StopFile(stop_file))
        try:
            with asking_to_stop(stop_file):
                if processes > 1:
                    left = sample_set_by(processes, context, plan, how, stop_file, report_progress)
                else:
                    left = sample_set(
                        context, plan, how, lambda done: stop_requested(context), report_progress
                    )
        except Stopped as error:
            return Outcome(stopped=str(error))
        except ProcessFailed as error:
            return Outcome(failures={plan.wanted.name: str(error)})
        finally:
            stop_file.unlink(missing_ok=True)
    if not left:
        return Outcome()
    if how.part is None:
        lost = f"{plan.folder} does not keep what is written: {len(left):,} of its chunks, twice"
        return Outcome(failures={plan.wanted.name: lost})
    others = f"{len(left):,} of {plan.wanted.chunks:,} chunks are still missing"
    return Outcome(
        missing=f"This part is done; {others}. The last part to finish completes the set."
    )


@contextmanager
def _alone(folder: Path, part: tuple[int, int] | None) -> Iterator[None]:
    """Be the one who draws the set here; or the one at this part, beside those at others.

    Raises Busy, naming the owner.
    """
    if part is None:
        with file_lock(folder):
            yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    mine = f"{part[0] + 1}-of-{part[1]}"
    with open(folder / "lock", "a+") as lock, file_lock(folder, file=f"lock-{mine}"):
        if not _locked(lock.fileno(), fcntl.LOCK_SH):
            lock.seek(0)
            raise Busy(f"{folder} is in use by {lock.read().strip() or 'another process'}")
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}, which draws part {mine}\n")
        lock.flush()
        yield


def other_split(folder: Path, part: tuple[int, int]) -> str:
    """Which part of another number of parts is being drawn on this machine; "" if none."""
    for path in sorted(folder.glob("lock-*-of-*")):
        other = path.name.removeprefix("lock-").replace("-of-", "/")
        if other.endswith(f"/{part[1]}"):
            continue
        with open(path, "a+") as lock:
            if not _locked(lock.fileno(), fcntl.LOCK_SH):
                return (
                    f"part {other} of this set is being drawn: some of its chunks are those of "
                    f"part {part[0] + 1}/{part[1]} too, and both draw them. Begin all parts with "
                    "the same number behind the stroke"
                )
    return ""


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def on_cluster(
    context: RunContext, plan: Plan, how: How, launch: Launch, report_progress: ReportProgress
) -> Outcome:
    """Draw as an array of jobs: what is done stays, what runs is attached to.

    Killing this driver ends no job. Raises Busy, Drift, DirtyTree, ValueError, SettingsError.
    """
    where = context.settings.cluster(launch.cluster)
    refuse_other(plan.folder, plan.wanted)
    at = SampleFolder(plan.folder, plan.wanted)
    if ended(at):
        if how.strips and not (plan.folder / STRIPS).exists():
            raise ValueError(
                f"{plan.folder} is done, so no job is left to draw strips: the same words without "
                f"--on {launch.cluster} draw them here"
            )
        return Outcome()
    refuse_without_slurm(launch.cluster)
    record = read_generator(context.home.root / plan.address)
    tasks = sample_tasks(plan, how, launch.jobs, record, where)
    others = others_at_it(plan, tasks, launch.cluster)
    if others:
        raise ValueError(others)
    if in_use(plan.folder):
        raise Busy(f"{plan.folder} is being drawn by a process of this machine")
    snapshot = take_snapshot(context.home, launch.dirty, named_in([record]))
    settings = context.settings.model_copy(update={"mlflow": MLflow()})
    with driving(plan.folder, launch.cluster, launch.take_over) as driver:
        at.init_run_dir()
        if launch.retry:
            reset_failed(tasks)
        backend = SlurmBackend(
            context.home, settings, launch.cluster, snapshot, environment_for_jobs()
        )
        reconciler = Reconciler(
            plan.folder, backend, launch.cluster, snapshot.code, where.poll_seconds, driver
        )
        if launch.detach:
            missing = [task for task in tasks if not task.done]
            failures = _with_logs(context, tasks, submit_once(reconciler, missing))
            return Outcome(None if failures else _LEFT, failures)
        try:
            failures = asyncio.run(_run_until_done(reconciler, tasks, plan, report_progress))
        except KeyboardInterrupt:
            return Outcome(stopped=_LEFT)
    return Outcome(failures=_with_logs(context, tasks, failures))


_LEFT = "Left; its jobs go on"


def _with_logs(context: RunContext, tasks: list[Task], failures: dict[str, str]) -> dict[str, str]:
    """The same, and where a unit's output is."""
    where = {task.name: task.folder.relative_to(context.home.root) for task in tasks}
    return {
        name: f"{why} (var-scaling logs {where[name]})" if name in where else why
        for name, why in failures.items()
    }


async def _run_until_done(
    reconciler: Reconciler, tasks: list[Task], plan: Plan, report_progress: ReportProgress
) -> dict[str, str]:
    """Why, by unit, for each that is not done; the disk says meanwhile how far they are."""
    seen = asyncio.create_task(reconciler.run_until_done(tasks))
    title, total = f"samples {plan.wanted.name}", plan.wanted.drawn
    while not seen.done():
        report_progress(title, min(total, images_drawn(tasks)), total)
        await asyncio.wait([seen], timeout=min(1.0, reconciler.poll_seconds))
    return seen.result()
