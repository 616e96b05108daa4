"""submitit's door: an array of units to Slurm, and where their output goes."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.execution.backend import Delayed, Refused, TooMany
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

_NEVER = 60 * 24 * 365  # minutes: what runs here has no wall time
# sbatch failed, and may not tomorrow: slurmctld is away or busy, or too much is queued already.
_PASSING = (
    "Unable to contact", "Socket timed out", "Connection refused", "Transport endpoint",
    "temporarily", "Zero Bytes",
)  # fmt: skip
_TOO_MANY = "MaxSubmitJob"  # in QOSMaxSubmitJobPerUserLimit and its like


def submit(
    tasks: list[Task],
    submission: str,
    home: Home,
    settings: Settings,
    cluster: str,
    snapshot: Snapshot,
    environment: dict[str, str],
) -> list[str]:
    """Slurm's ids of one array over `units`, which ask for the same. Raises Delayed or Refused."""
    import submitit

    works = [
        Work(
            str(home.root), str(task.folder), settings.model_dump_json(), cluster, submission,
            {**task.payload, "at_once": task.resources.micro_batch_size},
        )
        for task in tasks
    ]  # fmt: skip
    folder = _private(home.root / "jobs") / submission
    try:
        with _environment(environment):
            # A trial of weeks runs into its wall time every day: that is no reason to give up.
            executor = submitit.AutoExecutor(folder, "slurm", slurm_max_num_timeout=10**6)
            executor.update_parameters(
                **_parameters(tasks[0], submission, settings.cluster(cluster), snapshot)
            )
            with executor.batch():
                submitted = [executor.submit(work) for work in works]
            return [str(job.job_id) for job in submitted]
    except Exception as error:  # submitit wraps whatever sbatch said
        said = f"sbatch: {_first_line(error)}"
        if _TOO_MANY in str(error):
            raise TooMany(f"{said} ({_TOO_MANY}…)") from error
        # Names of other jobs in what sbatch says may be in any encoding: submitit decodes strictly,
        # after the jobs are submitted. The next look finds them by name.
        passing = isinstance(error, UnicodeDecodeError) or any(w in str(error) for w in _PASSING)
        raise (Delayed if passing else Refused)(said) from error


def run_here(stage: Stage, stop: Path, context: RunContext) -> str:
    """Run `stage` by several processes of this machine until done, or `stop` exists.

    Raises Stopped, or RuntimeError with the error of the process that failed first.
    """
    import submitit

    local, submission, folder = context.settings.local, new_submission(), stage.directory
    work = Work(
        str(context.home.root), str(folder), context.settings.model_dump_json(), LOCAL, submission,
        {**payload_of(stage), "stop": str(stop)},
    )  # fmt: skip
    with file_lock(folder, wait=WAIT):
        executor = submitit.AutoExecutor(_private(context.home.root / "jobs") / submission, "local")
        gpus = {"gpus_per_node": local.processes} if local.device == "cuda" else {}
        executor.update_parameters(
            timeout_min=_NEVER, tasks_per_node=local.processes, local_stderr_to_stdout=True, **gpus
        )
        job = executor.submit(work)
        while not job.done():
            time.sleep(0.2)
        failure = folder / FAILED
        if failure.exists():
            raise RuntimeError(read_json(failure)["error"])
        ended = str(job.results()[0])
    if ended == "stopped":
        raise Stopped(f"{folder.name} stopped")
    return ended


def _private(folder: Path) -> Path:
    """`folder`, there for this user alone: a job runs the pickles that lie in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)
    return folder


def _parameters(
    task: Task, submission: str, cluster: Cluster, snapshot: Snapshot
) -> dict[str, Any]:
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
        # First of all the code as it was submitted, whatever the folder that sbatch was called in.
        "slurm_setup": [*cluster.setup, f'export PYTHONPATH="{code}:$PYTHONPATH"', f'cd "{code}"'],
        "slurm_srun_args": [
            "--kill-on-bad-exit=1",
            "--wait=0",  # the first process may still save when the others have left
            f"--cpus-per-task={cluster.cpus_per_gpu}",
        ],
        "slurm_additional_parameters": {"requeue": True},
        **{name: value for name, value in optional.items() if value is not None},
    }


def log_of(home: Home, record: JobRecord, rank: int = 0) -> Path:
    """Where the output of a process of the job goes."""
    return home.root / "jobs" / record.submission / f"{record.job}_{rank}_log.out"


def last_words(home: Home, record: JobRecord) -> str:
    """The last line of the job's output that says something."""
    path = log_of(home, record)
    if not path.exists():
        return "(it left no log)"
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines()]
    said = [line for line in lines if line and not line.startswith("submitit ")]
    return said[-1] if said else "(its log is empty)"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "sbatch: error" in line]
    return (told or lines or [type(error).__name__])[0]


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """The environment of the caller, not of Ray's worker: sbatch passes it to the job."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
