"""What a person does to a sweep on a cluster: end its jobs, have it tried again."""

from collections.abc import Callable
from pathlib import Path

from pipelines.execution.slurm import slurm
from pipelines.execution.status import state_of
from pipelines.execution.tasks import work_folders
from pipelines.stages.attempt import FAILED
from pipelines.stages.graph import Stage, Stages
from pipelines.workspace import job_log as jobs
from pipelines.workspace.driver_lock import LOCK, alive
from var_scaling.disk import is_done


def cancel(
    stages: Stages,
    sweep: Path,
    only: frozenset[str],
    forget: bool,
    print_line: Callable[[str], None],
) -> int:
    """End the jobs of the sweep in the folder `sweep`, and submit no more; `forget` asks no Slurm.

    Stages that the driver of another sweep waits for are left alone. How many were cancelled.
    """
    found = {name: at for name, at in work_folders(stages).items() if not at[0].provided}
    folders = {name: folder for name, (_, folder) in found.items()}
    records = {name: jobs.latest(folder) for name, folder in folders.items()}
    driver = alive(sweep)
    driven = driver is not None and driver.on != "local"
    needed = _needed_elsewhere(sweep)
    wanted = {}
    for name, record in records.items():
        stage = found[name][0]
        ended = record is not None and not record.live and record.ended in ("failed", "cancelled")
        if is_done(folders[name]) or ended or not _chosen(stage, only):
            continue
        if stage.address in needed:
            print_line(f"{name}: left alone, sweep {needed[stage.address]} needs it")
        elif driven or record is not None:
            wanted[name] = record
    for name in wanted:
        jobs.note(folders[name], "cancelled", reason="it was cancelled")
    live = {name: record for name, record in wanted.items() if record is not None and record.live}
    if live and not forget:
        queue = slurm.queue()
        there = [queue.find(one.job, one.name, one.index) for one in live.values()]
        slurm.cancel([seen.job for seen in there if seen is not None and seen.active])
    for name in wanted:
        job = live[name].job if name in live else None
        what = f"job {job} {'forgotten' if forget else 'cancelled'}" if job else "not to be started"
        print_line(f"{name}: {what}")
    return len(wanted)


def _needed_elsewhere(sweep: Path) -> dict[str, str]:
    """The addresses of stages that other sweeps, driven now, work on, each with that sweep."""
    needed: dict[str, str] = {}
    for lock in sweep.parent.glob(f"*/{LOCK}"):
        other = alive(lock.parent) if lock.parent != sweep else None
        if other is not None:
            needed |= dict.fromkeys(other.stages, lock.parent.name)
    return needed


def reset_failed(
    stages: Stages, only: frozenset[str], print_line: Callable[[str], None]
) -> list[str]:
    """Have what failed or was cancelled tried again; the names of these stages. Raises Away.

    A driver at work takes them up; else the next run does.
    """
    found = work_folders(stages)
    records = [jobs.latest(folder) for _, folder in found.values()]
    queue = slurm.queue() if any(one is not None and one.live for one in records) else None
    again = []
    for name, (stage, folder) in found.items():
        failed = state_of(folder, queue)[0] in ("failed", "cancelled")
        if not failed or not _chosen(stage, only):
            continue
        if jobs.latest(folder) is not None:
            jobs.note(folder, "retry")
        (folder / FAILED).unlink(missing_ok=True)
        print_line(f"{name}: to be tried again")
        again.append(name)
    return again


def _chosen(stage: Stage, only: frozenset[str]) -> bool:
    """Whether `only` names it; with a stage all its parts are chosen."""
    return not only or stage.name in only
