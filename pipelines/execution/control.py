"""The user's control of a sweep on a cluster: cancel its jobs, retry what failed."""

from collections.abc import Callable
from pathlib import Path

from pipelines.execution.slurm import slurm
from pipelines.execution.status import state_of
from pipelines.execution.tasks import work_folders
from pipelines.stages.attempt import FAILED
from pipelines.stages.graph import Stage, Stages
from pipelines.workspace import job_log as jobs
from pipelines.workspace.driver_lock import LOCK, live_driver
from var_scaling.disk import is_done


def cancel(
    stages: Stages,
    sweep: Path,
    only: frozenset[str],
    forget: bool,
    print_line: Callable[[str], None],
) -> int:
    """Cancel the jobs of the sweep in the folder `sweep`, and submit no more for it.

    `forget` only records this, without calling Slurm. Stages that the driver of another sweep needs
    are not cancelled. Returns the number of tasks cancelled. Raises BackendUnavailable.
    """
    stage_and_folder = {
        name: value for name, value in work_folders(stages).items() if not value[0].provided
    }
    folders = {name: folder for name, (_, folder) in stage_and_folder.items()}
    records = {name: jobs.latest(folder) for name, folder in folders.items()}
    driver = live_driver(sweep)
    driven = driver is not None and driver.on != "local"
    needed = _stages_of_other_sweeps(sweep)
    selected = {}
    for name, record in records.items():
        stage = stage_and_folder[name][0]
        ended = record is not None and not record.live and record.ended in ("failed", "cancelled")
        if is_done(folders[name]) or ended or not _is_selected(stage, only):
            continue
        if stage.address in needed:
            print_line(f"{name}: not cancelled, sweep {needed[stage.address]} needs it")
        elif driven or record is not None:
            # Also a task without a job, if a driver could submit it later.
            selected[name] = record
    # First the record, so that the driver submits none of them again.
    for name in selected:
        jobs.note(folders[name], "cancelled", reason="it was cancelled")
    live = {name: record for name, record in selected.items() if record is not None and record.live}
    if live and not forget:
        queue = slurm.queue()
        # By name, because the id may not be recorded yet, or belong to a job of another cluster.
        found = [queue.find(record.job, record.name, record.index) for record in live.values()]
        slurm.cancel([status.job for status in found if status is not None and status.active])
    for name in selected:
        job = live[name].job if name in live else None
        result = (
            f"job {job} {'forgotten' if forget else 'cancelled'}"
            if job
            else "will not be submitted"
        )
        print_line(f"{name}: {result}")
    return len(selected)


def _stages_of_other_sweeps(sweep: Path) -> dict[str, str]:
    """Address -> sweep, for the stages of all other sweeps that a driver runs now."""
    needed: dict[str, str] = {}
    for lock in sweep.parent.glob(f"*/{LOCK}"):
        other = live_driver(lock.parent) if lock.parent != sweep else None
        if other is not None:
            needed |= dict.fromkeys(other.stages, lock.parent.name)
    return needed


def reset_failed(
    stages: Stages, only: frozenset[str], print_line: Callable[[str], None]
) -> list[str]:
    """Mark what failed or was cancelled to be run again; returns the names of these tasks.

    The driver that runs now resubmits them; otherwise the next run does. Raises BackendUnavailable.
    """
    stage_and_folder = work_folders(stages)
    records = [jobs.latest(folder) for _, folder in stage_and_folder.values()]
    # Slurm is queried only if the state of a task depends on it: `retry` also works without Slurm.
    live = any(record is not None and record.live for record in records)
    queue = slurm.queue() if live else None
    again = []
    for name, (stage, folder) in stage_and_folder.items():
        failed = state_of(folder, queue)[0] in ("failed", "cancelled")
        if not failed or not _is_selected(stage, only):
            continue
        # A task that failed on this machine has no job record; removing its error file is enough.
        if jobs.latest(folder) is not None:
            jobs.note(folder, "retry")
        (folder / FAILED).unlink(missing_ok=True)
        print_line(f"{name}: will be run again")
        again.append(name)
    return again


def _is_selected(stage: Stage, only: frozenset[str]) -> bool:
    """Whether `only` is empty or names `stage`; this selects all parts of the stage."""
    return not only or stage.name in only
