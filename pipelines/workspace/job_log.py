"""jobs.jsonl: the log of all jobs submitted for a folder, with lines before and after submission.

Each submission has a unique name, which is also the job's name in Slurm. So a driver can find the
job of a submission whose answer was lost because the previous driver died, and does not mistake a
job of another cluster that has the same job id for its own.
"""

import json
import os
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

JOBS = "jobs.jsonl"


@dataclass(frozen=True)
class JobRecord:
    """The latest submission for a folder, and its state as far as the log records it."""

    submission: str
    cluster: str
    time: float
    index: int | None  # within a job array
    job: str | None = None  # Slurm's job id, once Slurm has answered
    ended: str | None = None  # how it ended, once a driver has seen it
    reason: str = ""
    # Consecutive jobs, this one included, that ended without a reason and without progress.
    fruitless: int = 0
    progress: int = 0  # how far the stage was when it ended
    again: bool = False  # the user requested a retry

    @property
    def live(self) -> bool:
        """Whether the end of the job is unknown."""
        return self.ended is None

    @property
    def name(self) -> str:
        """The job's name in Slurm; unique to the submission."""
        return f"var-scaling-{self.submission}"


def new_submission() -> str:
    return uuid.uuid4().hex[:10]


def note(folder: Path, event: str, **facts: Any) -> None:
    """Append a line to the job log of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"event": event, "time": time.time(), **facts}) + "\n"
    with open(folder / JOBS, "ab") as file:
        if file.tell() and not _ends_with_newline(folder / JOBS):
            line = "\n" + line  # a killed writer left half a line, which readers skip
        file.write(line.encode())
        # The line must be on disk before sbatch is called: a driver that is killed in between finds
        # the job by the name that the line records.
        file.flush()
        os.fsync(file.fileno())


def history(folder: Path) -> list[dict[str, Any]]:
    """All complete lines, oldest first."""
    try:
        text = (folder / JOBS).read_text(errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # an incomplete line, see `note`
    return lines


def latest(folder: Path) -> JobRecord | None:
    """The newest submission in the job log; None if there is none."""
    record: JobRecord | None = None
    for line in history(folder):
        # The next job inherits the count of fruitless jobs; a retry by the user resets it.
        if line["event"] == "submitting":
            fruitless = record.fruitless if record and not record.again else 0
            record = JobRecord(
                line["submission"], line["cluster"], line["time"], line["index"],
                fruitless=fruitless, progress=record.progress if record else 0,
            )  # fmt: skip
        elif line["event"] == "cancelled":  # with or without a submission before
            previous = record or JobRecord("", "", line["time"], None)
            record = replace(previous, ended="cancelled", reason=line["reason"], again=False)
        elif record is None:
            continue
        # Lines about an older submission may come late, and are ignored.
        elif line["event"] == "submitted" and line["submission"] == record.submission:
            record = replace(record, job=line["job"])
        elif line["event"] == "ended" and line["submission"] == record.submission:
            record = replace(
                record, ended=line["how"], reason=line["reason"],
                fruitless=line["fruitless"], progress=line["progress"],
            )  # fmt: skip
        elif line["event"] == "retry":
            record = replace(record, again=True)
    return record


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
