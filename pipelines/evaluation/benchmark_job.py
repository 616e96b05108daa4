"""Run the measurements of `benchmark --on CLUSTER` as one job on one GPU."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipelines.evaluation.training_benchmark import (
    BenchmarkCase,
    ReportProgress,
    payload_of,
    sizes_done,
)
from pipelines.execution.cluster import environment_for_jobs, require_sbatch
from pipelines.execution.reconcile import Reconciler
from pipelines.execution.slurm.backend import SlurmBackend
from pipelines.execution.slurm.resources import benchmark_resources
from pipelines.execution.speeds.benchmarks import cluster_hardware
from pipelines.execution.tasks import Task
from pipelines.sampling.jobs import reset_failed
from pipelines.stages.context import RunContext
from pipelines.workspace.driver_lock import hold_driver_lock
from pipelines.workspace.modules import module_names
from pipelines.workspace.settings import Cluster, MLflow
from pipelines.workspace.snapshot import take_snapshot
from pipelines.workspace.store import Home
from var_scaling.disk import is_done

# Seconds for a size besides its timed steps: building the model, warm-up, and a first step that may
# compile. An assumption; a job that exceeds its wall time is queued again and continues.
_EXTRA_SECONDS = 120


def benchmark_task(
    home: Home,
    sweep: str,
    cases: Sequence[BenchmarkCase],
    name: str,
    cluster: Cluster,
    seconds: float,
) -> Task:
    """The job that measures `cases` of `sweep` on the cluster called `name`.

    Its folder does not depend on the cases: those that are missing become fewer while it runs, and
    the same command must find it.
    """
    hardware = cluster_hardware(name, cluster)
    folder = home.benchmarks() / "jobs" / f"{sweep}-{hardware.fingerprint()}"
    hours = len(cases) * (4 * seconds + _EXTRA_SECONDS) / 3600
    peak_flops = cluster.peak_tflops * 1e12
    return Task(
        f"benchmark {sweep}",
        folder,
        folder,
        benchmark_resources(hours, cluster),
        payload_of(cases, hardware, seconds, peak_flops, folder),
    )


def run_on_cluster(
    context: RunContext,
    sweep: str,
    cases: Sequence[BenchmarkCase],
    name: str,
    seconds: float,
    dirty: bool,
    report_progress: ReportProgress,
) -> str | None:
    """Measure `cases` in one job, and wait for it; returns its error, if it has failed.

    The job keeps running if this driver is killed; the same command attaches to it. Raises
    SettingsError, DirtyTree, FolderInUseError, KeyboardInterrupt.
    """
    cluster = context.settings.cluster(name)
    require_sbatch(name)
    task = benchmark_task(context.home, sweep, cases, name, cluster, seconds)
    # Jobs run a copy of the code, so an edit of the working tree does not reach them.
    modules = module_names([one.trial for one in cases])
    snapshot = take_snapshot(context.home, dirty, modules)
    settings = context.settings.model_copy(update={"mlflow": MLflow()})
    with hold_driver_lock(_driver_folder(task), name) as driver:
        if is_done(task.folder):  # an earlier job; its sizes are to be measured again
            shutil.rmtree(task.folder)
        reset_failed([task])
        backend = SlurmBackend(context.home, settings, name, snapshot, environment_for_jobs())
        reconciler = Reconciler(
            _driver_folder(task), backend, name, snapshot.code, cluster.poll_seconds, driver
        )
        failures = asyncio.run(_wait(reconciler, task, len(cases), report_progress))
    if not failures:
        return None
    address = task.folder.relative_to(context.home.root)
    return f"{failures[task.name]} (var-scaling logs {address})"


def _driver_folder(task: Task) -> Path:
    """The folder of the driver's lock: not that of the job, which may be deleted."""
    return task.folder.with_name(f"{task.folder.name}-driver")


async def _wait(
    reconciler: Reconciler, task: Task, total: int, report_progress: ReportProgress
) -> dict[str, str]:
    """Wait for the job, reporting how many sizes it has measured; return its error by task."""
    run = asyncio.create_task(reconciler.run_until_done([task]))
    while not run.done():
        report_progress(f"steps on {reconciler.name}", len(sizes_done(task.folder)), total)
        await asyncio.wait([run], timeout=min(1.0, reconciler.poll_seconds))
    return run.result()
