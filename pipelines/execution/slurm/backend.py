"""Slurm as a backend: its queue and accounts, submission by submitit, scancel."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.execution.backend import JobStatus, Queue
from pipelines.execution.slurm import slurm, submit
from pipelines.execution.tasks import Task
from pipelines.workspace.job_log import JobRecord
from pipelines.workspace.settings import Settings
from pipelines.workspace.snapshot import Snapshot
from pipelines.workspace.store import Home


@dataclass(frozen=True)
class SlurmBackend:
    """A Backend for one cluster of the settings, with the code and environment of its jobs."""

    home: Home
    settings: Settings
    cluster: str
    snapshot: Snapshot
    environment: dict[str, str]
    name: str = "Slurm"
    submit_command: str = "sbatch"

    def queue(self) -> Queue:
        return slurm.queue()

    def accounts(self, names: Iterable[str]) -> dict[str, JobStatus]:
        return slurm.accounts(names)

    def submit(self, tasks: list[Task], submission: str) -> list[str]:
        return submit.submit(
            tasks, submission, self.home, self.settings, self.cluster, self.snapshot,
            self.environment,
        )  # fmt: skip

    def cancel(self, jobs: list[str]) -> None:
        slurm.cancel(jobs)

    def last_log_line(self, record: JobRecord) -> str:
        return submit.last_log_line(self.home, record)
