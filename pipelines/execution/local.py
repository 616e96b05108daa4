"""Ray's door: the stages of a sweep as a graph of tasks, run as this machine's resources allow."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.execution.ray_session import ray_here
from pipelines.execution.slurm import submit as launch
from pipelines.execution.status import SweepState, View
from pipelines.execution.tasks import Task, arrays_of, largest_first, refuse_unready, to_be_retried
from pipelines.stages.attempt import Stopped
from pipelines.stages.context import RunContext, StopFile, asking_to_stop, local_process
from pipelines.stages.graph import Stage, Stages
from pipelines.stages.registry import TOKENS
from pipelines.stages.stages import run_stage
from pipelines.workspace.damage import ended
from pipelines.workspace.driver_lock import driving
from pipelines.workspace.settings import Cluster, Settings
from pipelines.workspace.store import Home

STOP = "stop"  # a file that asks the stages of a sweep on this machine to stop
Observe = Callable[[list[View]], None]
Work = Callable[[RunContext], str]


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `failures` maps a stage to the error that stopped it."""

    interrupted: bool
    failures: dict[str, str]


def run(
    stages: Stages,
    folder: Path,
    home: Home,
    settings: Settings,
    observe: Observe,
    take_over: bool = False,
) -> Outcome:
    """Bring `stages` of the sweep in `folder` to their end: what is half done goes on.

    `observe` is given the state of every stage about twice a second. Ctrl-C or SIGTERM asks the
    stages to save and stop; a second one ends them at once. Raises Busy if another driver runs this
    sweep, ValueError if a cluster has a stage in hand or an imported tokenizer is not here.
    """
    refuse_unready(stages, "local")
    state = SweepState(stages)
    driver = driving(folder, "local", take_over, tuple(stage.address for stage in stages))
    with driver, ray_here(settings.local.cpus):
        stop_file = folder / STOP
        stop_file.unlink(missing_ok=True)
        with asking_to_stop(stop_file):
            context = RunContext(home, settings, StopFile(stop_file), local_process(settings.local))
            failures = _run_graph(stages, context, stop_file, lambda: observe(state.look()))
        interrupted = stop_file.exists()
        stop_file.unlink(missing_ok=True)
        return Outcome(interrupted, failures)


def run_on_cluster(
    stages: Stages,
    reconciler: Callable[[], Any],
    cluster: Cluster,
    look: Callable[[], None],
) -> dict[str, str]:
    """The same on a cluster: one actor sees all jobs through, each array behind what it needs.

    `reconciler` makes the actor's Reconciler. Returns why, by unit, for each that is not done. Ends
    at once on Ctrl-C: the jobs are Slurm's, and go on.
    """
    import ray

    # No retry of a submission: it would submit twice.
    actor = ray.remote(num_cpus=0, max_concurrency=1000)(ReconcilerActor).remote(reconciler)
    tasks: dict[str, Task] = {}
    ends: dict[str, list[Any]] = {}  # by address: how its arrays end
    waiting = []
    for array in arrays_of(stages, cluster):
        tasks |= {task.name: task for task in array.tasks}
        needs = [end for need in array.needs for end in ends.get(need.address, [])]
        waiting.append(actor.run_until_done.remote(array.tasks, *needs))
        for stage in array.stages:
            ends.setdefault(stage.address, []).append(waiting[-1])
    failures: dict[str, str] = {}
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=min(5.0, cluster.poll_seconds))
        look()
        for task in ready:
            failures |= ray.get(task)
        for name in [name for name in failures if to_be_retried(tasks[name])]:
            del failures[name]
            waiting.append(actor.run_until_done.remote([tasks[name]]))
    return failures


class ReconcilerActor:
    """The actor around a Reconciler, which knows no Ray."""

    def __init__(self, reconciler: Callable[[], Any]):
        self.reconciler = reconciler()

    async def run_until_done(self, tasks: list[Task], *needs: dict[str, str]) -> dict[str, str]:
        return dict(await self.reconciler.run_until_done(tasks, *needs))


def _run_graph(
    stages: Stages, context: RunContext, stop_file: Path, look: Callable[[], None]
) -> dict[str, str]:
    """Run every unfinished stage behind those it needs; returns the errors of those that failed.

    Ray is given a stage when all that it needs has ended and a slot is free, largest first: tasks
    that only wait would hold slots, and Ray would start them in an order of its own.
    """
    import ray

    local = context.settings.local
    slots = max(1, local.cpus // (context.process.threads * local.processes))
    queue = [
        stage
        for stage in largest_first(stages)
        if not stage.provided and not ended(stage.directory)
    ]
    running: dict[Any, Stage] = {}
    errors: dict[str, str] = {}
    without: set[str] = set()  # stages that failed, or lack one that did
    while running or queue:
        while len(running) < slots and not stop_file.exists():
            stage = _next(queue, running.values(), without)
            if stage is None:
                break
            work, cpus = _work_of(stage, context, stop_file)
            # A killed worker's stage is started again: stages go on from the disk.
            task = ray.remote(num_cpus=cpus, max_retries=2)(_do).remote(work, context)
            running[task] = stage
        if not running:
            break  # asked to stop, or nothing left that can be run
        ready, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
        look()
        for task in ready:
            stage, error = running.pop(task), _error_of(task)
            if error is not None:
                errors[stage.title] = error
                without.add(stage.address)
    return errors


def _next(queue: list[Stage], running: Iterable[Stage], without: set[str]) -> Stage | None:
    """Take the first stage out of `queue` that waits for nothing; None where all of them do.

    Those that lack a stage that failed leave the queue: they did not fail by themselves.
    """
    open_ones = {stage.address for stage in (*queue, *running)}
    for stage in list(queue):
        needs = {need.address for need in stage.needs}
        if needs & without:
            queue.remove(stage)
            without.add(stage.address)
        elif not needs & open_ones:
            queue.remove(stage)
            return stage
    return None


def _work_of(stage: Stage, context: RunContext, stop_file: Path) -> tuple[Work, int]:
    """What to call with a place, and the CPUs that it takes: several processes for a training."""
    local, threads = context.settings.local, context.process.threads
    if stage.kind == TOKENS or local.processes == 1:
        return partial(run_stage, stage), threads
    work = partial(launch.run_here, stage, stop_file)
    return work, min(local.cpus, threads * local.processes)


def _do(work: Work, context: RunContext) -> str:
    """Ray takes functions alone, and `work` is one with its arguments."""
    return work(context)


def _error_of(task: Any) -> str | None:
    """Why `task` failed; None if it did not, or was asked to stop."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        return None if isinstance(cause, Stopped) else f"{type(cause).__name__}: {cause}"
    return None
