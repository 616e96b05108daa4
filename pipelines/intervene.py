"""What a person does to a sweep on a cluster: end its jobs, have it tried again."""

from collections.abc import Callable

from pipelines import jobs, slurm
from pipelines.collect import state_of
from pipelines.driver import LOCK, alive
from pipelines.stages.attempt import FAILED
from pipelines.store import Home
from pipelines.units import stage_folders
from var_scaling.config import Sweep
from var_scaling.disk import is_done, read_json


def cancel(
    sweep: Sweep, home: Home, only: frozenset[str], forget: bool, tell: Callable[[str], None]
) -> int:
    """End the jobs of `sweep`, and what is not submitted yet is not; `forget` asks no Slurm.

    Stages that the driver of another sweep waits for are left alone. How many were cancelled.
    """
    folders = stage_folders(home, sweep)
    records = {name: jobs.latest(folder) for name, folder in folders.items()}
    driver = alive(home.sweep(sweep.name))
    driven = driver is not None and driver.on != "local"
    needed = _needed_elsewhere(home, sweep)
    wanted = {}
    for name, record in records.items():
        ended = record is not None and not record.live and record.ended in ("failed", "cancelled")
        if is_done(folders[name]) or ended or not _chosen(name, only):
            continue
        if name in needed:
            tell(f"{name}: left alone, {needed[name]} needs it")
        elif driven or record is not None:
            wanted[name] = record
    for name in wanted:
        jobs.note(folders[name], "cancelled", reason="it was cancelled")
    live = {name: record for name, record in wanted.items() if record is not None and record.live}
    if live and not forget:
        queue = slurm.queue()
        found = [queue.find(one.job, one.name, one.index) for one in live.values()]
        slurm.cancel([seen.job for seen in found if seen is not None and seen.active])
    for name in wanted:
        job = live[name].job if name in live else None
        what = f"job {job} {'forgotten' if forget else 'cancelled'}" if job else "not to be started"
        tell(f"{name}: {what}")
    return len(wanted)


def _needed_elsewhere(home: Home, sweep: Sweep) -> dict[str, str]:
    """Stages of `sweep` that another sweep, being driven now, has in common with it."""
    needed: dict[str, str] = {}
    for lock in home.root.glob(f"*/{LOCK}"):
        if lock.parent.name == sweep.name or alive(lock.parent) is None:
            continue
        trials = [read_json(path) for path in lock.parent.glob("*/trial.json")]
        for trial in trials:
            tokenizer, data = trial["tokenizer"]["name"], trial["data"]["name"]
            for name in stage_folders(home, sweep):
                shared = name.startswith(f"tokens {tokenizer}/{data}-")
                if shared or name == f"tokenizer {tokenizer}":
                    needed[name] = f"sweep {lock.parent.name}"
    return needed


def forgive(
    sweep: Sweep, home: Home, only: frozenset[str], tell: Callable[[str], None]
) -> list[str]:
    """Have what failed or was cancelled tried again; the names of these stages. Raises SlurmAway.

    A driver at work takes them up; else the next run does.
    """
    folders = stage_folders(home, sweep)
    records = [jobs.latest(folder) for folder in folders.values()]
    queue = slurm.queue() if any(one is not None and one.live for one in records) else None
    again = []
    for name, folder in folders.items():
        if state_of(folder, queue)[0] not in ("failed", "cancelled") or not _chosen(name, only):
            continue
        if jobs.latest(folder) is not None:
            jobs.note(folder, "retry")
        (folder / FAILED).unlink(missing_ok=True)
        tell(f"{name}: to be tried again")
        again.append(name)
    return again


def _chosen(name: str, only: frozenset[str]) -> bool:
    return not only or name.partition(" ")[2] in only
