"""Compare the tasks of a sweep with the jobs on a cluster, and submit what is missing.

The disk decides: a task is done when its folder says so, whatever the backend reports. A job that
ended without an error message is submitted again as long as it makes progress. A task that left an
error, or that was cancelled, is not submitted again until the user runs `retry`.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipelines.execution.backend import (
    Backend,
    BackendUnavailable,
    JobLimitReached,
    JobStatus,
    Queue,
    SubmissionRejected,
    SubmissionUnconfirmed,
)
from pipelines.execution.tasks import Task
from pipelines.stages.attempt import FAILED, heartbeat_age
from pipelines.workspace import job_log as jobs
from pipelines.workspace.driver_lock import Driver, check_driver
from pipelines.workspace.job_log import JobRecord
from pipelines.workspace.store import in_use
from var_scaling.disk import is_done, read_json

NOTE = "driver.note"  # file with the driver's messages, which `status` prints
_MAX_BACKOFF = 300.0  # seconds between two attempts to submit
_MAX_FRUITLESS = 3  # jobs in a row that may end without an error message and without progress
_SUBMISSION_TIMEOUT = 60.0  # seconds that a submission may take
# Polls between the end of a job and the decision about it: on a network disk, the files of the job
# may appear later than the backend reports its end.
_SETTLING_POLLS = 2.0


class Reconciler:
    """Runs tasks on one backend until they end: attaches to their jobs, submits missing ones.

    `cluster` is the name of the backend in jobs.jsonl, `code` the version that its jobs run,
    `sweep` the folder that `driver` drives.
    """

    def __init__(
        self,
        sweep: Path,
        backend: Backend,
        cluster: str,
        code: str,
        poll_seconds: float,
        driver: Driver,
    ):
        self.sweep, self.backend, self.name = sweep, backend, cluster
        self.code, self.poll_seconds, self.driver = code, poll_seconds, driver
        self.queue: Queue | None = None
        self.accounts: Queue | None = None
        self.names: list[str] = []
        # Tasks whose job has ended, not yet decided about: name -> time.time() when first seen.
        self.unsettled: dict[str, float] = {}
        # Unconfirmed submissions of this driver -> time.time() when the submission returned.
        self.submitted_at: dict[str, float] = {}
        self.notes: dict[str, str] = {}  # task or program -> message for `status`
        self.not_before = 0.0  # time.time() before which nothing is submitted
        self.backoff = 0.0  # seconds to wait after the last failed submission
        self.max_array_size: int | None = None  # set once the backend has rejected a larger array

    async def run_until_done(self, tasks: list[Task], *needs: dict[str, str]) -> dict[str, str]:
        """Return when every task has ended: name -> error, for each task that is not done.

        `needs` are the results of the tasks that these need. Raises FolderInUseError if another
        driver took over.
        """
        failed_needs = [name for need in needs for name in need]
        if failed_needs:
            return {task.name: f"needs {', '.join(failed_needs)}" for task in tasks}
        failed: dict[str, str] = {}
        open_tasks = list(tasks)
        while open_tasks:
            failed |= self.step(open_tasks)
            open_tasks = [task for task in open_tasks if not task.done and task.name not in failed]
            if open_tasks:
                await asyncio.sleep(self.poll_seconds)
        self.step([task for task in tasks if task.done])  # records in jobs.jsonl that they ended
        return failed

    def step(self, tasks: list[Task]) -> dict[str, str]:
        """Poll once and submit what is missing: name -> error, for each task that has failed."""
        # At every step: if another driver has taken over, both would submit the same tasks.
        check_driver(self.sweep, self.driver)
        self._poll_queue()
        records = [jobs.latest(task.folder) for task in tasks]
        self.names = [record.name for record in records if record is not None and record.live]
        self.accounts = None
        failed, missing = {}, []
        for task in tasks:
            decision = self._decide(task)
            if decision == "submit":
                missing.append(task)
            elif decision is not None:
                failed[task.name] = decision
        if missing and time.time() >= self.not_before:
            failed |= self._submit(missing[: self.max_array_size])
        return failed

    def _poll_queue(self) -> None:
        """Update `self.queue`, unless another array of this driver has just done so."""
        if self.queue is not None and time.time() - self.queue.queried_at < self.poll_seconds / 2:
            return
        try:
            self.queue = self.backend.queue()
        except BackendUnavailable as error:
            # The previous queue remains. It is not used for jobs that were submitted after it.
            self._set_note(self.backend.name, f"it does not answer, its jobs continue: {error}")
        else:
            self._set_note(self.backend.name, "")

    def _decide(self, task: Task) -> str | None:
        """What to do about `task`. None: nothing, it is done or running; "submit": submit it;
        otherwise the reason why it failed.
        """
        record = jobs.latest(task.folder)
        if task.done:
            if record is not None and record.live:
                self._note_end(task, record, "done", "")
            return None
        if is_done(task.folder) and (record is None or record.ended == "done"):
            # This part is done, but the parts were not joined: one more job joins them.
            return "submit" if self._has_settled(task) else None
        if record is not None and record.ended in ("failed", "cancelled") and not record.again:
            return record.reason
        # No job works on the task, but a run on this machine may.
        if record is None or not record.live or record.again:
            return None if runs_locally(task.folder) else "submit"
        queue = self.queue
        if queue is None or queue.queried_at <= self._known_to_backend_at(record):
            return None  # this queue is too old to list the job
        status = queue.find(record.job, record.name, record.index)
        # The queue takes precedence: sacct reports a requeued job as NODE_FAIL for a while.
        if status is None:
            status = self._find_in_accounts(record)
        # A driver died, or the submission reported an error, before the id was recorded.
        if status is not None and record.job is None:
            jobs.note(task.folder, "submitted", submission=record.submission, job=status.job)
            record = replace(record, job=status.job)
        # Also a job that seemed to have ended one poll ago, and that Slurm has requeued since.
        if status is not None and status.active:
            self.unsettled.pop(task.name, None)
            self._set_note(task.name, status.problem)
            return None
        # Neither the queue nor the accounts list the name: the submission was not accepted.
        if record.job is None:
            self._note_end(task, record, "never submitted", "")
            return "submit"
        return self._handle_end(task, record, status) if self._has_settled(task) else None

    def _has_settled(self, task: Task) -> bool:
        """Whether the job of `task` ended at least _SETTLING_POLLS polls ago."""
        # Read the clock once, so that the first call always returns False, even on a slow machine.
        now = time.time()
        first_seen = self.unsettled.setdefault(task.name, now)
        if now - first_seen < _SETTLING_POLLS * self.poll_seconds:
            return False
        del self.unsettled[task.name]
        return True

    def _known_to_backend_at(self, record: JobRecord) -> float:
        """The time from which the backend lists the job of `record`, if it was accepted. The
        submission of another driver may still be in progress.
        """
        if record.job is not None or record.submission in self.submitted_at:
            return self.submitted_at.get(record.submission, record.time)
        return record.time + _SUBMISSION_TIMEOUT

    def _handle_end(self, task: Task, record: JobRecord, status: JobStatus | None) -> str | None:
        """What to do about a job that has ended while its task is not done: see `_decide`."""
        state, end = (status.state, status.end) if status is not None else ("GONE", "other")
        # An error message of this job decides, before the state that the backend reports. An error
        # of an earlier job does not count.
        path = task.folder / FAILED
        failure = read_json(path) if path.exists() else None
        # A restart id is the job id, a dot and the number of the restart.
        if failure is not None and failure["restart_id"].rpartition(".")[0] == record.job:
            reason = failure["error"] + (f" (rank {failure['rank']})" if failure["rank"] else "")
            return self._note_end(task, record, "failed", reason)
        if end == "cancelled":
            return self._note_end(task, record, "cancelled", f"job {record.job} was cancelled")
        if end == "out of memory":
            reason = f"job {record.job} ran out of memory: raise memory_gb_per_gpu"
            return self._note_end(task, record, "failed", reason)
        reached = progress_in(task.folder)
        # record.progress is that of the previous job's end. Preemptions and failed nodes do not
        # count: a job may be preempted several times before its first checkpoint.
        fruitless = record.fruitless
        if end != "no fault":
            fruitless = fruitless + 1 if reached <= record.progress else 0
        if fruitless >= _MAX_FRUITLESS:
            last_line = self.backend.last_log_line(record)
            reason = (
                f"its job ended {fruitless} times (last state: {state}) without an error message "
                f"and without progress; the last line of its log: {last_line}"
            )
            return self._note_end(task, record, "failed", reason, fruitless)
        self._note_end(task, record, state, "", fruitless)
        return "submit"

    def _note_end(
        self, task: Task, record: JobRecord, how: str, reason: str, fruitless: int = 0
    ) -> str:
        """Record in jobs.jsonl how the job of `task` ended; returns `reason`."""
        jobs.note(
            task.folder, "ended", submission=record.submission, how=how, reason=reason,
            fruitless=fruitless, progress=progress_in(task.folder),
        )  # fmt: skip
        return reason

    def _find_in_accounts(self, record: JobRecord) -> JobStatus | None:
        """The status of a job that the queue no longer lists, from the accounting of the backend,
        which is queried once per step for all jobs.
        """
        if self.accounts is None:
            self.accounts = Queue(self.backend.accounts(self.names), time.time())
        status = self.accounts.find(record.job, record.name, record.index)
        # Active in the accounts but not in the queue: the accounts missed the end of the job (Slurm
        # calls it a runaway job).
        return None if status is None or status.active else status

    def _submit(self, tasks: list[Task]) -> dict[str, str]:
        """Submit `tasks` as one array: name -> error, for each rejected task.

        jobs.jsonl is written before and after the submission, so that the jobs are found again even
        if this driver dies in between.
        """
        submission = jobs.new_submission()
        for index, task in enumerate(tasks):
            # A single task is submitted without an array, so its job id has no index.
            jobs.note(
                task.folder, "submitting", submission=submission, cluster=self.name,
                index=index if len(tasks) > 1 else None, code=self.code,
                resources=task.resources.as_dict(),
            )  # fmt: skip
        try:
            ids = self.backend.submit(tasks, submission)
        except SubmissionUnconfirmed as error:
            # From now on, a poll that does not list the jobs means that they were not accepted.
            self.submitted_at[submission] = time.time()
            if isinstance(error, JobLimitReached):
                # The limit is on all jobs of the user: halve the array until it fits.
                self.max_array_size = max(1, len(tasks) // 2)
            self.backoff = min(_MAX_BACKOFF, max(self.poll_seconds, 2 * self.backoff))
            self.not_before = time.time() + self.backoff
            self._set_note(
                self.backend.submit_command, f"{error}; trying again in {self.backoff:.0f} s"
            )
            return {}  # the next poll shows whether the jobs were accepted in spite of the error
        except SubmissionRejected as error:
            # Recorded as failed, so that the next poll does not submit the same jobs again.
            for task in tasks:
                record = jobs.latest(task.folder)
                assert record is not None
                self._note_end(task, record, "failed", str(error))
            return {task.name: str(error) for task in tasks}
        self.backoff = 0.0
        self._set_note(self.backend.submit_command, "")
        for task, job in zip(tasks, ids, strict=True):
            record = jobs.latest(task.folder)
            jobs.note(task.folder, "submitted", submission=submission, job=job)
            # The user cancelled the task during the submission. If this call fails, the job itself
            # reads the cancellation when it starts, and exits.
            if record is not None and record.ended == "cancelled":
                with suppress(BackendUnavailable):
                    self.backend.cancel([job])
        return {}

    def _set_note(self, subject: str, text: str) -> None:
        """Set the note on `subject` that `status` prints; an empty text removes it."""
        before = dict(self.notes)
        self.notes.pop(subject, None)
        if text:
            self.notes[subject] = text
        if self.notes != before:
            notes = "\n".join(f"{subject}: {text}" for subject, text in self.notes.items())
            (self.sweep / NOTE).write_text(notes)


def runs_locally(folder: Path) -> bool:
    """Whether a run on this machine works in `folder`: it holds the lock, or has a heartbeat."""
    age = heartbeat_age(folder)
    # A lock is visible only on its own machine; a run on another one shows by its heartbeat, which
    # is written every 5 s. Not in a folder with job records: there, the heartbeat may be that of a
    # job that has just ended.
    return in_use(folder) or (jobs.latest(folder) is None and age is not None and age < 60)


def progress_in(folder: Path) -> int:
    """The saved progress of the stage in `folder`: training steps, shards or images. The unit does
    not matter, because only values of the same folder are compared.
    """
    steps = [int(path.stem.rpartition("-")[2]) for path in folder.glob("checkpoint/step-*.pt")]
    shards = [len(read_json(path)["shards_crc32"]) for path in folder.glob("manifest.json")]
    images = [read_json(path)["done"] for path in folder.glob("drawn.json")]
    return max([0, *steps, *shards, *images])
