"""A sweep on a cluster, as a whole: launch it, or submit what can go and leave it."""

import os
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipelines.execution.backend import Queue
from pipelines.execution.local import Observe, Outcome, run_on_cluster
from pipelines.execution.ray_session import ray_here
from pipelines.execution.reconcile import NOTE, Reconciler
from pipelines.execution.slurm import slurm
from pipelines.execution.slurm.backend import SlurmBackend
from pipelines.execution.status import SweepState
from pipelines.execution.tasks import Array, Task, arrays_of, refuse_unready, work_folders
from pipelines.stages.graph import Stages, init_run_dirs, of_kind
from pipelines.stages.registry import TRIAL
from pipelines.workspace import job_log as jobs
from pipelines.workspace.driver_lock import Driver, alive, driving
from pipelines.workspace.modules import named_in
from pipelines.workspace.provenance import attempts
from pipelines.workspace.settings import Cluster, MLflow, Settings, SettingsError
from pipelines.workspace.snapshot import take_snapshot
from pipelines.workspace.store import Home
from var_scaling.config import TrainedTokenizer
from var_scaling.disk import is_done
from var_scaling.experiment import Trial

# What must not reach a job from the shell that submits: it describes another job, or Ray.
_OTHERS = ("RAY_", "SBATCH_", "SRUN_",
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
    """Bring `stages` of the sweep in `folder` to their end on `cluster`: attach to what runs.

    With `detach`, submit what can be submitted now, and leave. Raises DirtyTree, SettingsError,
    ValueError if something is missing, or Busy if another driver is at it.
    """
    refuse_unready(stages, cluster)
    where = settings.cluster(cluster)
    refuse_without_slurm(cluster)
    arrays = arrays_of(stages, where)  # refuses before it spends
    snapshot = take_snapshot(home, dirty, named_in(stage.config for stage in stages))
    settings = _for_jobs(stages, settings)
    environment = environment_for_jobs()
    driven = tuple(stage.address for stage in stages)
    with driving(folder, cluster, take_over, driven) as driver:
        init_run_dirs(stages)
        backend = SlurmBackend(home, settings, cluster, snapshot, environment)
        make = partial(
            Reconciler, folder, backend, cluster, snapshot.code, where.poll_seconds, driver
        )
        if detach:
            return Outcome(True, submit_once(make(), _ready(arrays, stages)))
        queue, state = _Queue(where), SweepState(stages)
        try:
            with ray_here(cpus=2):
                failures = run_on_cluster(stages, make, where, lambda: observe(state.look(queue())))
        except KeyboardInterrupt:
            return Outcome(True, {})
    return Outcome(False, failures)


def refuse_without_slurm(cluster: str) -> None:
    if shutil.which("sbatch") is None:
        raise SettingsError(f"--on {cluster}: no sbatch here; submit from a login node of Slurm")


def environment_for_jobs() -> dict[str, str]:
    """Ours, without what describes another job."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_OTHERS)}


class _Queue:
    """Slurm's queue as the screen needs it: asked seldom."""

    def __init__(self, cluster: Cluster):
        self.every = min(10.0, cluster.poll_seconds)
        self.known: Queue | None = None
        self.asked = 0.0

    def __call__(self) -> Queue | None:
        if time.time() - self.asked > self.every:
            self.asked = time.time()
            self.known = slurm.look()
        return self.known


def _for_jobs(stages: Stages, settings: Settings) -> Settings:
    """What jobs need of the settings: where data lies, whatever their environment says."""
    configs = [stage.config for stage in stages]
    names = {one.data.name for one in configs if isinstance(one, TrainedTokenizer | Trial)}
    roots = {name: settings.data_root(name) for name in sorted(names)}
    data = {**settings.data, **{name: root for name, root in roots.items() if root is not None}}
    return settings.model_copy(update={"data": data, "mlflow": MLflow()})


def _ready(arrays: list[Array], stages: Stages) -> list[Task]:
    """What waits for nothing that is not done."""
    done = {stage.address for stage in stages if is_done(stage.directory)}
    return [
        task
        for array in arrays
        if all(need.address in done for need in array.needs)
        for task in array.tasks
        if not task.done
    ]


def submit_once(reconciler: Reconciler, tasks: list[Task]) -> dict[str, str]:
    """Attach to what runs, submit what is missing, each array of equal resources, and leave.

    Looks again for as long as a job has ended and it is not yet sure how.
    """
    failures: dict[str, str] = {}
    arrays: dict[object, list[Task]] = {}
    for task in tasks:
        asks = replace(task.resources, micro_batch_size=None)
        arrays.setdefault((asks, task.payload["module"], task.payload.get("kind")), []).append(task)
    while True:
        for array in arrays.values():
            failures |= reconciler.step(array)
        if not reconciler.unsettled:
            return failures | {about: text for about, text in reconciler.notes.items() if text}
        time.sleep(reconciler.poll_seconds)


def asks_slurm(stages: Stages) -> bool:
    """Whether a job may have one of `stages` in hand."""
    records = [jobs.latest(folder) for _, folder in work_folders(stages).values()]
    return any(record is not None and record.live for record in records)


def cluster_of(stages: Stages) -> str | None:
    """The cluster that last had one of the trials; before any has begun, one of the other stages.

    None where its trials ran on this machine.
    """
    trials = [stage.directory for stage in of_kind(stages, TRIAL)]
    begun = any(attempts(folder) or jobs.latest(folder) for folder in trials)
    folders = trials if begun else [folder for _, folder in work_folders(stages).values()]
    known = [jobs.latest(folder) for folder in folders]
    there = [record for record in known if record is not None and record.cluster]
    return max(there, key=lambda record: record.time).cluster if there else None


def driver_words(folder: Path) -> str:
    """Who drives the sweep in `folder` now, and what it has to say."""
    driver: Driver | None = alive(folder)
    if driver is None:
        return ""
    note = (folder / NOTE).read_text() if (folder / NOTE).exists() else ""
    return f"driver: {driver}" + (f"\n{note}" if note else "")
