"""Run the stages of a sweep with Ray: on this machine, or, through one actor, on a cluster."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.execution.ray_session import local_ray
from pipelines.execution.slurm import submit as launch
from pipelines.execution.status import SweepState, View
from pipelines.execution.tasks import (
    Array,
    Task,
    largest_first,
    refuse_unready,
    retry_requested,
)
from pipelines.stages.attempt import Stopped
from pipelines.stages.context import RunContext, StopFile, asking_to_stop, local_process
from pipelines.stages.graph import Stage, Stages
from pipelines.stages.registry import TOKENIZER, TRIAL
from pipelines.stages.stages import run_stage
from pipelines.workspace.damage import is_complete
from pipelines.workspace.driver_lock import hold_driver_lock
from pipelines.workspace.settings import Cluster, Settings
from pipelines.workspace.store import Home

STOP = "stop"  # name of the file that makes the stages of a sweep on this machine stop
Observe = Callable[[list[View]], None]
Work = Callable[[RunContext], str]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    interrupted: bool
    failures: dict[str, str]  # title of a stage -> the error that stopped it


def run(
    stages: Stages,
    folder: Path,
    home: Home,
    settings: Settings,
    observe: Observe,
    take_over: bool = False,
) -> Outcome:
    """Run `stages` of the sweep in `folder` until they end; interrupted stages resume.

    `observe` gets the state of every stage about twice a second. Ctrl-C or SIGTERM makes the stages
    save and stop; a second one ends them immediately. Raises FolderInUseError if another driver
    runs this sweep, ValueError if a cluster job works on a stage or an imported tokenizer is
    missing.
    """
    refuse_unready(stages, "local")
    state = SweepState(stages)
    driver = hold_driver_lock(folder, "local", take_over, tuple(stage.address for stage in stages))
    with driver, local_ray(settings.local.cpus):
        stop_file = folder / STOP
        # A killed run may have left its stop file, which would stop this run at once.
        stop_file.unlink(missing_ok=True)
        with asking_to_stop(stop_file):
            context = RunContext(home, settings, StopFile(stop_file), local_process(settings.local))
            failures = _run_graph(stages, context, stop_file, lambda: observe(state.poll()))
        interrupted = stop_file.exists()
        stop_file.unlink(missing_ok=True)
        return Outcome(interrupted, failures)


def run_on_cluster(
    arrays: list[Array],
    reconciler: Callable[[], Any],
    cluster: Cluster,
    on_poll: Callable[[], None],
) -> dict[str, str]:
    """Run `arrays` on a cluster: one actor runs the jobs of each array after those it needs.

    `reconciler` creates the actor's Reconciler. `on_poll` is called at least every 5 s. Returns the
    error of each task that is not done, by name. Ctrl-C ends only this driver: the jobs continue.
    """
    import ray

    # Ray does not retry calls of an actor by default; a retry would submit jobs twice.
    # One call per array, and all calls are open at the same time, hence the concurrency. They only
    # wait, so they reserve no CPU.
    actor = ray.remote(num_cpus=0, max_concurrency=1000)(ReconcilerActor).remote(reconciler)
    tasks: dict[str, Task] = {}
    ends: dict[str, list[Any]] = {}  # by address of a stage: the Ray results of its arrays
    waiting = []
    for array in arrays:
        tasks |= {task.name: task for task in array.tasks}
        needs = [end for need in array.needs for end in ends.get(need.address, [])]
        # Ray starts a call when its arguments are available: after the arrays that this one needs.
        waiting.append(actor.run_until_done.remote(array.tasks, *needs))
        for stage in array.stages:
            ends.setdefault(stage.address, []).append(waiting[-1])
    failures: dict[str, str] = {}
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=min(5.0, cluster.poll_seconds))
        on_poll()
        for task in ready:
            failures |= ray.get(task)
        # `retry` was called in another process; it marks the task in jobs.jsonl.
        for name in [name for name in failures if retry_requested(tasks[name])]:
            del failures[name]
            waiting.append(actor.run_until_done.remote([tasks[name]]))
    return failures


class ReconcilerActor:
    """The Ray actor around a Reconciler, which does not depend on Ray itself."""

    def __init__(self, reconciler: Callable[[], Any]):
        self.reconciler = reconciler()

    async def run_until_done(self, tasks: list[Task], *needs: dict[str, str]) -> dict[str, str]:
        return dict(await self.reconciler.run_until_done(tasks, *needs))


def _run_graph(
    stages: Stages, context: RunContext, stop_file: Path, on_poll: Callable[[], None]
) -> dict[str, str]:
    """Run every unfinished stage after those it needs; returns the error of each failed stage.

    A stage goes to Ray only when its needs have ended and a slot is free, largest first: waiting
    tasks would occupy slots, and Ray would start them in another order.
    """
    import ray

    local = context.settings.local
    # A training with several processes occupies the threads of all of them.
    slots = max(1, local.cpus // (context.process.threads * local.processes))
    queue = [
        stage
        for stage in largest_first(stages)
        if not stage.provided and not is_complete(stage.directory)
    ]
    running: dict[Any, Stage] = {}
    errors: dict[str, str] = {}
    blocked: set[str] = set()  # addresses of stages that failed, or need one that did
    while running or queue:
        while len(running) < slots and not stop_file.exists():
            stage = _next(queue, running.values(), blocked)
            if stage is None:
                break
            work, cpus = _work_and_cpus(stage, context, stop_file)
            # Ray runs the stage of a killed worker again; it resumes from its checkpoint.
            task = ray.remote(num_cpus=cpus, max_retries=2)(_call).remote(work, context)
            running[task] = stage
        if not running:
            break  # a stop was requested, or no stage can run
        ready, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
        on_poll()
        for task in ready:
            stage, error = running.pop(task), _error_of(task)
            if error is not None:
                errors[stage.title] = error
                blocked.add(stage.address)
    return errors


def _next(queue: list[Stage], running: Iterable[Stage], blocked: set[str]) -> Stage | None:
    """Remove and return the first stage in `queue` whose needs have ended; None if there is none.

    Stages that need a failed stage are removed too, without an error of their own.
    """
    # A need that is in neither list is done, or is provided.
    unfinished = {stage.address for stage in (*queue, *running)}
    for stage in list(queue):
        needs = {need.address for need in stage.needs}
        if needs & blocked:
            queue.remove(stage)
            blocked.add(stage.address)
        elif not needs & unfinished:
            queue.remove(stage)
            return stage
    return None


def _work_and_cpus(stage: Stage, context: RunContext, stop_file: Path) -> tuple[Work, int]:
    """The function to call with a RunContext, and the CPUs that it uses. A training runs in several
    processes if the settings say so.
    """
    local, threads = context.settings.local, context.process.threads
    # Every other kind runs in one process here: several would do the same work in one folder.
    if stage.kind not in (TOKENIZER, TRIAL) or local.processes == 1:
        return partial(run_stage, stage), threads
    work = partial(launch.run_local_processes, stage, stop_file)
    return work, min(local.cpus, threads * local.processes)


def _call(work: Work, context: RunContext) -> str:
    """Call `work`: Ray accepts plain functions only, and `work` is a functools.partial."""
    return work(context)


def _error_of(task: Any) -> str | None:
    """The error of the Ray task; None if it succeeded, or stopped on request."""
    import ray

    try:
        ray.get(task)
    except ray.exceptions.RayError as error:
        # Ray wraps the exception of a stage. A worker that was killed has no cause.
        cause = getattr(error, "cause", None) or error
        return None if isinstance(cause, Stopped) else f"{type(cause).__name__}: {cause}"
    return None
