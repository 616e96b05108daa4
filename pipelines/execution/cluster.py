"""Launch a sweep on a cluster: run it to its end, or submit what can start now and exit."""

import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipelines.execution.backend import Queue
from pipelines.execution.local import Observe, Outcome, run_on_cluster
from pipelines.execution.ray_session import local_ray
from pipelines.execution.reconcile import NOTE, Reconciler
from pipelines.execution.slurm import slurm
from pipelines.execution.slurm.backend import SlurmBackend
from pipelines.execution.speeds.throughput import cluster_throughput
from pipelines.execution.status import SweepState
from pipelines.execution.tasks import Array, Task, arrays_of, refuse_unready, work_folders
from pipelines.stages.graph import Stages, init_run_dirs, of_kind
from pipelines.stages.registry import TRIAL
from pipelines.workspace import job_log as jobs
from pipelines.workspace.driver_lock import Driver, hold_driver_lock, live_driver
from pipelines.workspace.modules import module_names
from pipelines.workspace.provenance import attempts
from pipelines.workspace.settings import Cluster, MLflow, Settings, SettingsError
from pipelines.workspace.snapshot import take_snapshot
from pipelines.workspace.store import Home
from var_scaling.config import TrainedTokenizer
from var_scaling.disk import is_done
from var_scaling.experiment import Trial

# Environment variables with these prefixes describe another job, or Ray: jobs must not inherit them
# from the shell that submits.
_DROPPED_PREFIXES = ("RAY_", "SBATCH_", "SRUN_",
           "SLURM_JOB", "SLURM_STEP", "SLURM_TASK", "SLURM_NODE", "SLURM_NTASKS",
           "SLURM_PROC", "SLURM_LOCAL", "SLURM_ARRAY", "SLURM_CPUS", "SLURM_MEM", "SLURM_GPUS",
           "SLURM_TRES", "SLURM_SRUN", "SLURM_GTIDS", "SLURM_RESTART")  # fmt: skip


def launch(
    stages: Stages,
    folder: Path,
    home: Home,
    settings: Settings,
    cluster: str,
    dirty: bool,
    detach: bool,
    take_over: bool,
    observe: Observe,
) -> Outcome:
    """Run `stages` of the sweep in `folder` on `cluster` until they end; jobs that already run are
    attached to. With `detach`, submit what can start now, and return.

    Raises DirtyTree, SettingsError, ValueError if something is missing, or FolderInUseError if
    another driver runs this sweep.
    """
    refuse_unready(stages, cluster)
    config = settings.cluster(cluster)
    require_sbatch(cluster)
    # Raises SettingsError before anything is submitted.
    arrays = arrays_of(stages, config, cluster_throughput(home, cluster, config))
    snapshot = take_snapshot(home, dirty, module_names(stage.config for stage in stages))
    settings = _job_settings(stages, settings)
    environment = environment_for_jobs()
    addresses = tuple(stage.address for stage in stages)
    with hold_driver_lock(folder, cluster, take_over, addresses) as driver:
        init_run_dirs(stages)
        backend = SlurmBackend(home, settings, cluster, snapshot, environment)
        # A function and not an object, because the Ray actor creates the reconciler in its process.
        make_reconciler = partial(
            Reconciler, folder, backend, cluster, snapshot.code, config.poll_seconds, driver
        )
        if detach:
            return Outcome(True, submit_once(make_reconciler(), _ready_tasks(arrays, stages)))
        queue, state = _CachedQueue(config), SweepState(stages)
        try:
            # Ray here runs a single actor, which submits and polls; the stages run on the cluster.
            with local_ray(cpus=2):
                failures = run_on_cluster(
                    arrays, make_reconciler, config, lambda: observe(state.poll(queue()))
                )
        except KeyboardInterrupt:
            # Only the driver ends: the jobs continue, and the next run attaches to them.
            return Outcome(True, {})
    return Outcome(False, failures)


def require_sbatch(cluster: str) -> None:
    """Raise SettingsError if this machine cannot submit jobs to Slurm."""
    if shutil.which("sbatch") is None:
        raise SettingsError(
            f"--on {cluster}: sbatch is not in PATH; submit from a login node of Slurm"
        )


def environment_for_jobs() -> dict[str, str]:
    """The environment of this process, without the variables that describe another job."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_DROPPED_PREFIXES)}


class _CachedQueue:
    """Slurm's queue for the display, which redraws often: squeue runs at most every few seconds."""

    def __init__(self, cluster: Cluster):
        self.interval = min(10.0, cluster.poll_seconds)  # seconds
        self.queue: Queue | None = None
        self.queried_at = 0.0

    def __call__(self) -> Queue | None:
        if time.time() - self.queried_at > self.interval:
            # Set before the query, so that a Slurm that does not answer is not queried at every
            # redraw.
            self.queried_at = time.time()
            self.queue = slurm.queue_or_none()
        return self.queue


def _job_settings(stages: Stages, settings: Settings) -> Settings:
    """The settings for jobs: with every data folder written out, so that it does not depend on the
    environment of the job, and without MLflow, to which jobs do not write.
    """
    configs = [stage.config for stage in stages]
    names = {config.data.name for config in configs if isinstance(config, TrainedTokenizer | Trial)}
    roots = {name: settings.data_root(name) for name in sorted(names)}
    data = {**settings.data, **{name: root for name, root in roots.items() if root is not None}}
    return settings.model_copy(update={"data": data, "mlflow": MLflow()})


def _ready_tasks(arrays: list[Array], stages: Stages) -> list[Task]:
    """The tasks that are not done and whose needs are all done."""
    done = {stage.address for stage in stages if is_done(stage.directory)}
    return [
        task
        for array in arrays
        if all(need.address in done for need in array.needs)
        for task in array.tasks
        if not task.done
    ]


def submit_once(reconciler: Reconciler, tasks: list[Task]) -> dict[str, str]:
    """Attach to running jobs, submit the other tasks in arrays of equal resources, and return why
    tasks failed, by name, with the reconciler's notes.

    Polls again as long as a job has ended and the reconciler does not yet know how.
    """
    failures: dict[str, str] = {}
    arrays: dict[object, list[Task]] = {}
    for task in tasks:
        resources = replace(task.resources, micro_batch_size=None)  # Slurm does not use it
        key = (resources, task.payload["module"], task.payload.get("kind"))
        arrays.setdefault(key, []).append(task)
    while True:
        for array in arrays.values():
            failures |= reconciler.step(array)
        # A job that has just ended is decided about only after some polls. Exiting before that
        # would leave it undecided for ever if `run --detach` is called by cron.
        if not reconciler.unsettled:
            return failures | {about: text for about, text in reconciler.notes.items() if text}
        time.sleep(reconciler.poll_seconds)


def has_live_jobs(stages: Stages) -> bool:
    """Whether a cluster job may still work on one of `stages`."""
    records = [jobs.latest(folder) for _, folder in work_folders(stages).values()]
    return any(record is not None and record.live for record in records)


def last_cluster(stages: Stages) -> str | None:
    """The cluster to which a trial was submitted last; before any trial has begun, any other stage.

    None if the trials ran on this machine.
    """
    trials = [stage.directory for stage in of_kind(stages, TRIAL)]
    # Tokenizer and tokens may have been computed on a cluster, and the trials on this machine.
    begun = any(attempts(folder) or jobs.latest(folder) for folder in trials)
    folders = trials if begun else [folder for _, folder in work_folders(stages).values()]
    records = [jobs.latest(folder) for folder in folders]
    submitted = [record for record in records if record is not None and record.cluster]
    return max(submitted, key=lambda record: record.time).cluster if submitted else None


def driver_status(folder: Path) -> str:
    """The process that drives the sweep in `folder` now, and its notes; "" if there is none."""
    driver: Driver | None = live_driver(folder)
    if driver is None:
        return ""
    note = (folder / NOTE).read_text() if (folder / NOTE).exists() else ""
    return f"driver: {driver}" + (f"\n{note}" if note else "")
