"""What is wanted of a cluster against what is there: units of a sweep, seen through to their end.

The disk is asked first: a unit is done when its folder says so, whatever the backend thinks. A job
that ended without a word is submitted again for as long as it got further; one that left an error,
or that was cancelled, waits for `retry`.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipelines.execution.backend import (
    Away,
    Backend,
    Delayed,
    Queue,
    Refused,
    Seen,
    TooMany,
)
from pipelines.execution.tasks import Task
from pipelines.stages.attempt import FAILED, heartbeat_age
from pipelines.workspace import job_log as jobs
from pipelines.workspace.driver_lock import Driver, still_driving
from pipelines.workspace.job_log import JobRecord
from pipelines.workspace.store import in_use
from var_scaling.disk import is_done, read_json

NOTE = "driver.note"  # the driver's message for `status`
_LONGEST = 300.0  # seconds between two tries to submit
_FRUITLESS = 3  # ends without a word in a row, none of them further than the one before
_SUBMITS = 60.0  # seconds that a submission may take
_SETTLES = 2.0  # polls between the end of a job and a verdict: files may come later than the news


class Reconciler:
    """Sees units through on one backend: attaches to what runs, submits what is missing.

    `cluster` is what the ledgers call the backend, `code` the version that its jobs run, `sweep`
    the folder that `driver` drives.
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
        self.unsettled: dict[str, float] = {}  # units whose job has ended, and since when
        self.asked: dict[str, float] = {}  # submissions of this driver, and when sbatch returned
        self.notes: dict[str, str] = {}  # what there is to say, by whom or what it is about
        self.not_before, self.patience = 0.0, 0.0  # when sbatch is tried again; how long it waits
        self.at_most: int | None = None  # jobs in one array, where a limit has shown itself

    async def run_until_done(self, tasks: list[Task], *needs: dict[str, str]) -> dict[str, str]:
        """Come back when every unit has ended: why, by name, for each that is not done.

        `needs` are what the units that these wait for came to. Raises Busy if another driver took
        over.
        """
        lacking = [name for need in needs for name in need]
        if lacking:
            return {task.name: f"needs {', '.join(lacking)}" for task in tasks}
        failed: dict[str, str] = {}
        open_units = list(tasks)
        while open_units:
            failed |= self.step(open_units)
            open_units = [u for u in open_units if not u.done and u.name not in failed]
            if open_units:
                await asyncio.sleep(self.poll_seconds)
        self.step([task for task in tasks if task.done])  # the ledgers hear how it ended
        return failed

    def step(self, tasks: list[Task]) -> dict[str, str]:
        """Look once and submit what is to be submitted: why, by name, for each that has failed."""
        still_driving(self.sweep, self.driver)
        self._look()
        records = [jobs.latest(task.folder) for task in tasks]
        self.names = [record.name for record in records if record is not None and record.live]
        self.accounts = None
        failed, missing = {}, []
        for task in tasks:
            verdict = self._judge(task)
            if verdict == "submit":
                missing.append(task)
            elif verdict is not None:
                failed[task.name] = verdict
        if missing and time.time() >= self.not_before:
            failed |= self._submit(missing[: self.at_most])
        return failed

    def _look(self) -> None:
        """Ask the backend, unless another array of this driver just did."""
        if self.queue is not None and time.time() - self.queue.at < self.poll_seconds / 2:
            return
        try:
            self.queue = self.backend.queue()
        except Away as error:
            self._say(self.backend.name, f"it does not answer, its jobs go on: {error}")
        else:
            self._say(self.backend.name, "")

    def _judge(self, task: Task) -> str | None:
        """None: wait, or done; "submit"; else why it failed."""
        record = jobs.latest(task.folder)
        if task.done:
            if record is not None and record.live:
                self._note_end(task, record, "done", "")
            return None
        if is_done(task.folder) and (record is None or record.ended == "done"):
            return "submit" if self._settled(task) else None  # the parts were not joined
        if record is not None and record.ended in ("failed", "cancelled") and not record.again:
            return record.reason
        if record is None or not record.live or record.again:
            return None if at_work_here(task.folder) else "submit"
        queue = self.queue
        if queue is None or queue.at <= self._known_from(record):
            return None  # nothing is known yet
        seen = queue.find(record.job, record.name, record.index)
        if seen is None:
            seen = self._accounted(record)
        if seen is not None and record.job is None:
            jobs.note(task.folder, "submitted", submission=record.submission, job=seen.job)
            record = replace(record, job=seen.job)
        if seen is not None and seen.active:
            self.unsettled.pop(task.name, None)
            self._say(task.name, seen.remark)
            return None
        if record.job is None:
            self._note_end(task, record, "never submitted", "")
            return "submit"
        return self._conclude(task, record, seen) if self._settled(task) else None

    def _settled(self, task: Task) -> bool:
        """Whether what was first noticed a while ago is still so."""
        now = time.time()  # once: what is first noticed now has not settled, however slow this is
        since = self.unsettled.setdefault(task.name, now)
        if now - since < _SETTLES * self.poll_seconds:
            return False
        del self.unsettled[task.name]
        return True

    def _known_from(self, record: JobRecord) -> float:
        """When `record` is known there, if ever: another driver's submission may be on its way."""
        if record.job is not None or record.submission in self.asked:
            return self.asked.get(record.submission, record.time)
        return record.time + _SUBMITS

    def _conclude(self, task: Task, record: JobRecord, seen: Seen | None) -> str | None:
        """What to do about a job that is over while its unit is not done."""
        how, end = (seen.state, seen.end) if seen is not None else ("GONE", "other")
        failure = task.folder / FAILED
        left = read_json(failure) if failure.exists() else None
        if left is not None and left["restart_id"].rpartition(".")[0] == record.job:
            reason = left["error"] + (f" (rank {left['rank']})" if left["rank"] else "")
            return self._note_end(task, record, "failed", reason)
        if end == "cancelled":
            return self._note_end(task, record, "cancelled", f"job {record.job} was cancelled")
        if end == "out of memory":
            reason = f"job {record.job} ran out of memory: raise memory_gb_per_gpu"
            return self._note_end(task, record, "failed", reason)
        reached = progress_in(task.folder)
        fruitless = record.fruitless
        if end != "no fault":
            fruitless = fruitless + 1 if reached <= record.progress else 0
        if fruitless >= _FRUITLESS:
            last = self.backend.last_words(record)
            reason = (
                f"its job ended {fruitless} times ({how} at last) without a word or any progress"
            )
            return self._note_end(
                task, record, "failed", f"{reason}; its log ends: {last}", fruitless
            )
        self._note_end(task, record, how, "", fruitless)
        return "submit"

    def _note_end(
        self, task: Task, record: JobRecord, how: str, reason: str, fruitless: int = 0
    ) -> str:
        jobs.note(
            task.folder, "ended", submission=record.submission, how=how, reason=reason,
            fruitless=fruitless, progress=progress_in(task.folder),
        )  # fmt: skip
        return reason

    def _accounted(self, record: JobRecord) -> Seen | None:
        """What the accounts say of a job that the queue has forgotten; asked once for all."""
        if self.accounts is None:
            self.accounts = Queue(self.backend.accounts(self.names), time.time())
        seen = self.accounts.find(record.job, record.name, record.index)
        return None if seen is None or seen.active else seen  # active by accounts alone: a runaway

    def _submit(self, tasks: list[Task]) -> dict[str, str]:
        """One array of `units`, noted before and after: why, by name, for each refused."""
        submission = jobs.new_submission()
        for index, task in enumerate(tasks):
            jobs.note(
                task.folder, "submitting", submission=submission, cluster=self.name,
                index=index if len(tasks) > 1 else None, code=self.code,
                resources=task.resources.as_dict(),
            )  # fmt: skip
        try:
            ids = self.backend.submit(tasks, submission)
        except Delayed as error:
            self.asked[submission] = time.time()
            if isinstance(error, TooMany):
                self.at_most = max(1, len(tasks) // 2)
            self.patience = min(_LONGEST, max(self.poll_seconds, 2 * self.patience))
            self.not_before = time.time() + self.patience
            self._say(self.backend.submits_with, f"{error}; tried again in {self.patience:.0f} s")
            return {}  # the next look finds out whether it went through all the same
        except Refused as error:
            for task in tasks:
                record = jobs.latest(task.folder)
                assert record is not None
                self._note_end(task, record, "failed", str(error))
            return {task.name: str(error) for task in tasks}
        self.patience = 0.0
        self._say(self.backend.submits_with, "")
        for task, job in zip(tasks, ids, strict=True):
            record = jobs.latest(task.folder)
            jobs.note(task.folder, "submitted", submission=submission, job=job)
            if record is not None and record.ended == "cancelled":  # while it was submitted
                with suppress(Away):  # then the job itself finds out as it starts
                    self.backend.cancel([job])
        return {}

    def _say(self, about: str, text: str) -> None:
        """Leave a note for those who look at the sweep; no text takes it back."""
        before = dict(self.notes)
        self.notes.pop(about, None)
        if text:
            self.notes[about] = text
        if self.notes != before:
            said = "\n".join(f"{about}: {text}" for about, text in self.notes.items())
            (self.sweep / NOTE).write_text(said)


def at_work_here(folder: Path) -> bool:
    """Whether a run on this machine is at it: by its lock, or by a heartbeat."""
    age = heartbeat_age(folder)
    return in_use(folder) or (jobs.latest(folder) is None and age is not None and age < 60)


def progress_in(folder: Path) -> int:
    """How far the stage in `folder` has come, in whatever counts there; only ever compared."""
    steps = [int(path.stem.rpartition("-")[2]) for path in folder.glob("checkpoint/step-*.pt")]
    shards = [len(read_json(one)["shards_crc32"]) for one in folder.glob("manifest.json")]
    images = [read_json(one)["done"] for one in folder.glob("drawn.json")]
    return max([0, *steps, *shards, *images])
