"""Slurm as a backend: its queue and accounts, submission by submitit, scancel."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.execution.backend import Queue, Seen
from pipelines.execution.slurm import slurm, submit
from pipelines.execution.tasks import Task
from pipelines.workspace.job_log import JobRecord
from pipelines.workspace.settings import Settings
from pipelines.workspace.snapshot import Snapshot
from pipelines.workspace.store import Home


@dataclass(frozen=True)
class SlurmBackend:
    """One cluster of the settings, and the code and environment that its jobs get."""

    home: Home
    settings: Settings
    cluster: str
    snapshot: Snapshot
    environment: dict[str, str]
    name: str = "Slurm"
    submits_with: str = "sbatch"

    def queue(self) -> Queue:
        return slurm.queue()

    def accounts(self, names: Iterable[str]) -> dict[str, Seen]:
        return slurm.accounts(names)

    def submit(self, tasks: list[Task], submission: str) -> list[str]:
        return submit.submit(
            tasks, submission, self.home, self.settings, self.cluster, self.snapshot,
            self.environment,
        )  # fmt: skip

    def cancel(self, jobs: list[str]) -> None:
        slurm.cancel(jobs)

    def last_words(self, record: JobRecord) -> str:
        return submit.last_words(self.home, record)
