"""What runs tasks elsewhere: the interface that the reconciler, status and cancel speak to.

Slurm through submitit is one (slurm/backend.py); the tests have one of plain processes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pipelines.workspace.job_log import JobRecord

if TYPE_CHECKING:
    from pipelines.execution.tasks import Task

Phase = Literal["queued", "running", "ended"]
# Why a job is over, as far as that matters: ended by a person; for want of memory; by what is no
# fault of its stage; or in any other way.
End = Literal["cancelled", "out of memory", "no fault", "other"]


class Away(RuntimeError):
    """The backend does not answer: nothing is known, so nothing may be concluded."""


class Delayed(RuntimeError):
    """The submission failed; whether the jobs were accepted is unknown."""


class TooMany(Delayed):
    """More jobs at a time than this user may have: fewer, or later."""


class Refused(RuntimeError):
    """These jobs will never be taken as they are; the message says why."""


@dataclass(frozen=True)
class Seen:
    """One job as the backend has it."""

    job: str
    name: str
    state: str  # in the backend's own words
    node: str
    phase: Phase
    end: End = "other"  # of one that has ended
    note: str = ""  # what a person is told of it: why it waits
    remark: str = ""  # what is wrong with it while it is active

    @property
    def active(self) -> bool:
        return self.phase != "ended"


@dataclass(frozen=True)
class Queue:
    """All of this user's jobs that the backend remembers, by id and by name."""

    jobs: dict[str, Seen]
    at: float  # time.time() of the answer

    def find(self, job: str | None, name: str, index: int | None) -> Seen | None:
        """The job of that id and name; without an id, the one of that name (and array index)."""
        if job is not None:
            seen = self.jobs.get(job)
            return seen if seen is not None and seen.name == name else None
        ends = "" if index is None else f"_{index}"
        named = [s for s in self.jobs.values() if s.name == name and s.job.endswith(ends)]
        return named[0] if named else None


class Backend(Protocol):
    """Jobs are named by `JobRecord.name`, so that one whose id was never heard is found again."""

    @property
    def name(self) -> str:
        """For messages: who does not answer."""
        ...

    @property
    def submits_with(self) -> str:
        """For messages: who takes no job."""
        ...

    def queue(self) -> Queue:
        """What there is now. Raises Away."""
        ...

    def accounts(self, names: Iterable[str]) -> dict[str, Seen]:
        """What is remembered of jobs that the queue has forgotten, by id; nothing if nothing is."""
        ...

    def submit(self, tasks: "list[Task]", submission: str) -> list[str]:
        """The ids of one array over `tasks`, which ask for the same. Raises Delayed or Refused."""
        ...

    def cancel(self, jobs: list[str]) -> None:
        """Ask that `jobs` end. Raises Away."""
        ...

    def last_words(self, record: JobRecord) -> str:
        """The last line of a job's output that says something."""
        ...
