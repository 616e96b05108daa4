"""Submit an array of tasks to Slurm, or local processes, through submitit; read their log files."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.execution.backend import JobLimitReached, SubmissionRejected, SubmissionUnconfirmed
from pipelines.execution.slurm.worker import LOCAL, Work
from pipelines.execution.tasks import Task, payload_of
from pipelines.stages.attempt import FAILED, WAIT, Stopped
from pipelines.stages.context import RunContext
from pipelines.stages.graph import Stage
from pipelines.workspace.job_log import JobRecord, new_submission
from pipelines.workspace.settings import Cluster, Settings
from pipelines.workspace.snapshot import Snapshot
from pipelines.workspace.store import Home, file_lock
from var_scaling.disk import read_json

_NO_TIME_LIMIT = 60 * 24 * 365  # minutes: local processes have no wall time
# Errors of sbatch that may pass: slurmctld is unavailable or busy.
_TRANSIENT_ERRORS = (
    "Unable to contact", "Socket timed out", "Connection refused", "Transport endpoint",
    "temporarily", "Zero Bytes",
)  # fmt: skip
_LIMIT_ERROR = "MaxSubmitJob"  # part of QOSMaxSubmitJobPerUserLimit and similar error names


def submit(
    tasks: list[Task],
    submission: str,
    home: Home,
    settings: Settings,
    cluster: str,
    snapshot: Snapshot,
    environment: dict[str, str],
) -> list[str]:
    """Submit `tasks`, which need equal resources, as one array; returns Slurm's job ids in order.

    Raises SubmissionUnconfirmed or SubmissionRejected.
    """
    import submitit

    works = [
        Work(
            str(home.root), str(task.folder), settings.model_dump_json(), cluster, submission,
            {**task.payload, "at_once": task.resources.micro_batch_size},
        )
        for task in tasks
    ]  # fmt: skip
    folder = _private_folder(home.root / "jobs") / submission
    try:
        with _environment(environment):
            # A trial that takes weeks reaches the wall time every day, and must be requeued each
            # time; submitit's default is to stop after three times.
            executor = submitit.AutoExecutor(folder, "slurm", slurm_max_num_timeout=10**6)
            executor.update_parameters(
                **_parameters(tasks[0], submission, settings.cluster(cluster), snapshot)
            )
            # In a batch, submitit submits all tasks as one array, with a single call of sbatch.
            with executor.batch():
                submitted = [executor.submit(work) for work in works]
            return [str(job.job_id) for job in submitted]
    except Exception as error:  # submitit wraps every error of sbatch
        message = f"sbatch: {_first_line(error)}"
        if _LIMIT_ERROR in str(error):
            raise JobLimitReached(f"{message} ({_LIMIT_ERROR}…)") from error
        # The output of sbatch may contain job names in any encoding. submitit decodes it strictly,
        # and only after the jobs are submitted: the reconciler's next poll finds them by name.
        transient = isinstance(error, UnicodeDecodeError) or any(
            text in str(error) for text in _TRANSIENT_ERRORS
        )
        raise (SubmissionUnconfirmed if transient else SubmissionRejected)(message) from error


def run_local_processes(stage: Stage, stop: Path, context: RunContext) -> str:
    """Run `stage` with several processes on this machine until it is done, or `stop` exists.

    Raises Stopped, or RuntimeError with the error of the process that failed first.
    """
    import submitit

    local, submission, folder = context.settings.local, new_submission(), stage.directory
    work = Work(
        str(context.home.root), str(folder), context.settings.model_dump_json(), LOCAL, submission,
        {**payload_of(stage), "stop": str(stop)},
    )  # fmt: skip
    # This process locks the folder for all of its child processes (`alone=False`).
    with file_lock(folder, wait=WAIT):
        executor = submitit.AutoExecutor(
            _private_folder(context.home.root / "jobs") / submission, "local"
        )
        # submitit lists this many GPUs in CUDA_VISIBLE_DEVICES; without the option it hides all.
        gpus = {"gpus_per_node": local.processes} if local.device == "cuda" else {}
        executor.update_parameters(
            timeout_min=_NO_TIME_LIMIT,
            tasks_per_node=local.processes,
            local_stderr_to_stdout=True,
            **gpus,
        )
        job = executor.submit(work)
        while not job.done():
            time.sleep(0.2)
        # The file holds the first error, which is the cause of the errors of the other processes.
        failure = folder / FAILED
        if failure.exists():
            raise RuntimeError(read_json(failure)["error"])
        ended = str(job.results()[0])
    if ended == "stopped":
        raise Stopped(f"{folder.name} stopped")
    return ended


def _private_folder(folder: Path) -> Path:
    """Create `folder`, accessible to this user only, because jobs run the pickles in it."""
    # An existing folder keeps its mode: an earlier version may have created it with open
    # permissions.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)
    return folder


def _parameters(
    task: Task, submission: str, cluster: Cluster, snapshot: Snapshot
) -> dict[str, Any]:
    """The parameters of submitit's executor for the job of `task`."""
    resources, code = task.resources, snapshot.folder
    optional = {
        "slurm_account": cluster.account,
        "slurm_qos": cluster.qos,
        "slurm_constraint": cluster.constraint,
        "gpus_per_node": resources.gpus_per_node or None,
    }
    return {
        "name": f"var-scaling-{submission}",
        "timeout_min": resources.minutes,
        "nodes": resources.nodes,
        "tasks_per_node": resources.processes_per_node,
        "cpus_per_task": cluster.cpus_per_gpu,
        "mem_gb": cluster.memory_gb_per_gpu * resources.processes_per_node,
        "slurm_partition": cluster.partition,
        "slurm_signal_delay_s": cluster.signal_seconds,
        "slurm_array_parallelism": cluster.array_parallelism,
        "slurm_stderr_to_stdout": True,
        # Import the code of the snapshot, not that of the folder in which sbatch was called.
        "slurm_setup": [*cluster.setup, f'export PYTHONPATH="{code}:$PYTHONPATH"', f'cd "{code}"'],
        "slurm_srun_args": [
            "--kill-on-bad-exit=1",
            "--wait=0",  # rank 0 may still save when the other processes have exited
            # Since Slurm 22.05, srun does not inherit this option from sbatch.
            f"--cpus-per-task={cluster.cpus_per_gpu}",
        ],
        # Also if the cluster sets JobRequeue=0, Slurm requeues these jobs after a preemption or the
        # failure of a node.
        "slurm_additional_parameters": {"requeue": True},
        **{name: value for name, value in optional.items() if value is not None},
    }


def log_of(home: Home, record: JobRecord, rank: int = 0) -> Path:
    """The file with the output of process `rank` of the job."""
    return home.root / "jobs" / record.submission / f"{record.job}_{rank}_log.out"


def last_log_line(home: Home, record: JobRecord) -> str:
    """The last line of the job's output that is neither empty nor printed by submitit."""
    path = log_of(home, record)
    if not path.exists():
        return "(it left no log)"
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    of_stage = [line for line in lines if line and not line.startswith("submitit ")]
    return of_stage[-1] if of_stage else "(its log is empty)"


def _first_line(error: Exception) -> str:
    """The first line of the error, preferably one of sbatch."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    of_sbatch = [line for line in lines if "sbatch: error" in line]
    return (of_sbatch or lines or [type(error).__name__])[0]


@contextmanager
def _environment(environment: dict[str, str]) -> Iterator[None]:
    """Replace the environment of this process, a Ray worker, by `environment` during the block:
    sbatch passes it on to the job.
    """
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
