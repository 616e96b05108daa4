"""Run `sample` on this machine or on a cluster: locks, stop requests and the outcome."""

import asyncio
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.execution.cluster import environment_for_jobs, require_sbatch, submit_once
from pipelines.execution.reconcile import Reconciler
from pipelines.execution.slurm.backend import SlurmBackend
from pipelines.execution.tasks import Task
from pipelines.sampling.draw import DrawOptions, ReportProgress, sample_set, stop_requested
from pipelines.sampling.finalize import is_finished
from pipelines.sampling.jobs import images_drawn, other_job, reset_failed, sample_tasks
from pipelines.sampling.processes import ProcessFailed, sample_set_in_processes
from pipelines.sampling.request import Plan
from pipelines.sampling.store import STRIPS, SampleFolder, refuse_other
from pipelines.stages.attempt import Stopped
from pipelines.stages.context import RunContext, StopFile, asking_to_stop
from pipelines.workspace.address import read_generator
from pipelines.workspace.driver_lock import hold_driver_lock
from pipelines.workspace.modules import module_names
from pipelines.workspace.settings import MLflow
from pipelines.workspace.snapshot import take_snapshot
from pipelines.workspace.store import FolderInUseError, file_lock, in_use
from var_scaling.text import counted


@dataclass(frozen=True)
class Outcome:
    """How sampling ended. The set is done if no field is set."""

    stopped: str | None = None  # message, if it was stopped or the driver exited early
    failures: dict[str, str] = field(default_factory=dict)  # error message by task
    missing: str | None = None  # message, if this part is done and the set is not


@dataclass(frozen=True)
class ClusterOptions:
    """The options of `sample` for a cluster."""

    cluster: str
    jobs: int
    retry: bool
    detach: bool
    dirty: bool
    take_over: bool


def sample_locally(
    context: RunContext,
    plan: Plan,
    draw_options: DrawOptions,
    processes: int,
    report_progress: ReportProgress,
) -> Outcome:
    """Draw on this machine. Raises FolderInUseError, ConfigMismatchError, ValueError, OSError."""
    refuse_other(plan.folder, plan.config)
    part = draw_options.part
    # Parts that are drawn at the same time have locks and stop files of their own.
    suffix = "" if part is None else f"-{part[0] + 1}-of-{part[1]}"
    with _sampling_lock(plan.folder, part):
        stop_file = plan.folder / f"stop{suffix}"
        stop_file.unlink(missing_ok=True)  # left by a killed process
        # A file, because the worker processes must see the request too.
        context = replace(context, requested_signal=StopFile(stop_file))
        try:
            with asking_to_stop(stop_file):
                if processes > 1:
                    incomplete = sample_set_in_processes(
                        processes, context, plan, draw_options, stop_file, report_progress
                    )
                else:
                    incomplete = sample_set(
                        context,
                        plan,
                        draw_options,
                        lambda done: stop_requested(context),
                        report_progress,
                    )
        except Stopped as error:
            return Outcome(stopped=str(error))
        except ProcessFailed as error:
            return Outcome(failures={plan.config.name: str(error)})
        finally:
            stop_file.unlink(missing_ok=True)
    if not incomplete:
        return Outcome()
    if part is None:
        # `finish_set` has already drawn damaged chunks a second time.
        lost = (
            f"{plan.folder}: files of {counted(len(incomplete), 'chunk')} were written twice and "
            "are missing or damaged again: check the disk"
        )
        return Outcome(failures={plan.config.name: lost})
    others = f"Chunks still missing: {len(incomplete):,} of {plan.config.chunks:,}"
    return Outcome(
        missing=f"This part is done. {others}. The last part to finish completes the set."
    )


@contextmanager
def _sampling_lock(folder: Path, part: tuple[int, int] | None) -> Iterator[None]:
    """Lock the whole set, or one part of it; processes may draw different parts at the same time.

    A part takes the lock of the set as a shared lock. Raises FolderInUseError, naming the owner.
    """
    if part is None:
        with file_lock(folder):
            yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{part[0] + 1}-of-{part[1]}"
    # The lock file of `file_lock(folder)`. Its exclusive lock, for the whole set, and the shared
    # locks of the parts exclude each other. The second file excludes the same part.
    with open(folder / "lock", "a+") as lock, file_lock(folder, file=f"lock-{name}"):
        if not _try_lock(lock.fileno(), fcntl.LOCK_SH):
            lock.seek(0)
            raise FolderInUseError(
                f"{folder} is in use by {lock.read().strip() or 'another process'}"
            )
        # Parts share this file, so it names the one that began last.
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()}, which draws part {name}\n")
        lock.flush()
        yield


def conflicting_part(folder: Path, part: tuple[int, int]) -> str:
    """A message if this machine draws a part of another division into parts; "" if not."""
    for path in sorted(folder.glob("lock-*-of-*")):
        other = path.name.removeprefix("lock-").replace("-of-", "/")
        # Parts of the same division have no chunk in common.
        if other.endswith(f"/{part[1]}"):
            continue
        with open(path, "a+") as lock:
            # Files of ended processes remain; only the lock shows that a part is being drawn.
            # Closing the file releases the lock that this test takes.
            if not _try_lock(lock.fileno(), fcntl.LOCK_SH):
                return (
                    f"part {other} of this set is being drawn. Some of its chunks belong to part "
                    f"{part[0] + 1}/{part[1]} too, and both draw them. Start all parts with the "
                    "same number after the slash"
                )
    return ""


def _try_lock(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sample_on_cluster(
    context: RunContext,
    plan: Plan,
    draw_options: DrawOptions,
    cluster_options: ClusterOptions,
    report_progress: ReportProgress,
) -> Outcome:
    """Draw with an array of jobs. Finished parts are kept; running jobs are attached to.

    The jobs keep running if this driver is killed. Raises FolderInUseError, ConfigMismatchError,
    DirtyTree, ValueError, SettingsError.
    """
    cluster = context.settings.cluster(cluster_options.cluster)
    refuse_other(plan.folder, plan.config)
    store = SampleFolder(plan.folder, plan.config)
    if is_finished(store):
        if draw_options.strips and not (plan.folder / STRIPS).exists():
            raise ValueError(
                f"{plan.folder} is done, so no job is left to draw strips. The same command "
                f"without --on {cluster_options.cluster} draws them on this machine"
            )
        return Outcome()
    require_sbatch(cluster_options.cluster)
    record = read_generator(context.home.root / plan.address)
    tasks = sample_tasks(plan, draw_options, cluster_options.jobs, record, cluster)
    _refuse_other_processes(plan, tasks, cluster_options.cluster)
    # Jobs run a copy of the code, so an edit of the working tree does not reach a job that starts
    # or is requeued later. Jobs do not write to MLflow.
    snapshot = take_snapshot(context.home, cluster_options.dirty, module_names([record]))
    settings = context.settings.model_copy(update={"mlflow": MLflow()})
    with hold_driver_lock(
        plan.folder, cluster_options.cluster, cluster_options.take_over
    ) as driver:
        store.init_run_dir()
        if cluster_options.retry:
            reset_failed(tasks)
        backend = SlurmBackend(
            context.home, settings, cluster_options.cluster, snapshot, environment_for_jobs()
        )
        reconciler = Reconciler(
            plan.folder,
            backend,
            cluster_options.cluster,
            snapshot.code,
            cluster.poll_seconds,
            driver,
        )
        if cluster_options.detach:
            missing = [task for task in tasks if not task.done]
            failures = _with_logs(context, tasks, submit_once(reconciler, missing))
            return Outcome(None if failures else _DRIVER_EXITED, failures)
        try:
            failures = asyncio.run(_run_until_done(reconciler, tasks, plan, report_progress))
        except KeyboardInterrupt:
            return Outcome(stopped=_DRIVER_EXITED)
    return Outcome(failures=_with_logs(context, tasks, failures))


def _refuse_other_processes(plan: Plan, tasks: list[Task], cluster: str) -> None:
    """Raise ValueError or FolderInUseError if other jobs or this machine draw the set."""
    message = other_job(plan, tasks, cluster)
    if message:
        raise ValueError(message)
    # Jobs do not take this lock, because it works on one machine only.
    if in_use(plan.folder):
        raise FolderInUseError(f"{plan.folder} is being drawn by a process of this machine")


_DRIVER_EXITED = "This process exits; its jobs keep running"


def _with_logs(context: RunContext, tasks: list[Task], failures: dict[str, str]) -> dict[str, str]:
    """`failures`, each followed by the command that shows the logs of its task."""
    addresses = {task.name: task.folder.relative_to(context.home.root) for task in tasks}
    return {
        name: f"{error} (var-scaling logs {addresses[name]})" if name in addresses else error
        for name, error in failures.items()
    }


async def _run_until_done(
    reconciler: Reconciler, tasks: list[Task], plan: Plan, report_progress: ReportProgress
) -> dict[str, str]:
    """Run the jobs, report the progress found on disk, and return the errors by task."""
    run = asyncio.create_task(reconciler.run_until_done(tasks))
    title, total = f"samples {plan.config.name}", plan.config.drawn
    while not run.done():
        report_progress(title, min(total, images_drawn(tasks)), total)
        # Unlike `wait_for`, this does not cancel the task at the timeout; and unlike `sleep`, it
        # returns as soon as the task ends.
        await asyncio.wait([run], timeout=min(1.0, reconciler.poll_seconds))
    return run.result()
