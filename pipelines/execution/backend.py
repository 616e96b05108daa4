"""The interface of a job scheduler, as the reconciler, `status` and `cancel` use it.

slurm/backend.py implements it for Slurm, through submitit; the tests implement it with processes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pipelines.workspace.job_log import JobRecord

if TYPE_CHECKING:
    from pipelines.execution.tasks import Task

Phase = Literal["queued", "running", "ended"]
# Why a job ended, as far as the reconciler treats it differently: a user cancelled it; it ran out
# of memory; "no fault" of the stage, such as a preemption or a failed node; or any other reason.
End = Literal["cancelled", "out of memory", "no fault", "other"]


class BackendUnavailable(RuntimeError):
    """The backend does not answer, so the state of its jobs is unknown."""


class SubmissionUnconfirmed(RuntimeError):
    """The submission reported an error; whether the jobs were accepted is unknown. Try later."""


class JobLimitReached(SubmissionUnconfirmed):
    """The submission exceeds the number of jobs that this user may have. Submit fewer, or later."""


class SubmissionRejected(RuntimeError):
    """The backend will never accept these jobs as they are; the message says why."""


@dataclass(frozen=True)
class JobStatus:
    """The state of one job, as the backend reports it."""

    job: str  # its id
    name: str
    state: str  # the backend's name of the state, such as "PENDING"
    node: str
    phase: Phase
    end: End = "other"  # only meaningful if it has ended
    note: str = ""  # for display: why it waits
    problem: str = ""  # what is wrong with an active job

    @property
    def active(self) -> bool:
        return self.phase != "ended"


@dataclass(frozen=True)
class Queue:
    """All of this user's jobs that the backend lists, at one point in time."""

    jobs: dict[str, JobStatus]  # by id
    queried_at: float  # time.time() of the answer

    def find(self, job: str | None, name: str, index: int | None) -> JobStatus | None:
        """The job with that id and name; without an id, the one with that name and array index."""
        if job is not None:
            # Compare the name too: another cluster may have assigned the same id.
            status = self.jobs.get(job)
            return status if status is not None and status.name == name else None
        suffix = "" if index is None else f"_{index}"
        # The name is unique to one submission, so the index identifies the job within its array.
        matches = [s for s in self.jobs.values() if s.name == name and s.job.endswith(suffix)]
        return matches[0] if matches else None


class Backend(Protocol):
    """A job scheduler. Jobs are named by `JobRecord.name`, so that a job is found again even if the
    driver died before it received the job's id.
    """

    @property
    def name(self) -> str:
        """The name of the backend, for messages."""
        ...

    @property
    def submit_command(self) -> str:
        """The name of the program that submits jobs, for messages."""
        ...

    def queue(self) -> Queue:
        """The jobs that the backend lists now. Raises BackendUnavailable."""
        ...

    def accounts(self, names: Iterable[str]) -> dict[str, JobStatus]:
        """Jobs with these names that the queue no longer lists, by id; empty if there is no
        accounting.
        """
        ...

    def submit(self, tasks: "list[Task]", submission: str) -> list[str]:
        """Submit `tasks`, which need equal resources, as one array; returns the job ids in order.

        Raises SubmissionUnconfirmed or SubmissionRejected.
        """
        ...

    def cancel(self, jobs: list[str]) -> None:
        """Request that `jobs` end. Raises BackendUnavailable."""
        ...

    def last_log_line(self, record: JobRecord) -> str:
        """The last line that the job's stage wrote to its output."""
        ...
