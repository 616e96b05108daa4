"""jobs.jsonl: every job that was ever to work in a folder, noted before and after it is submitted.

A submission has a name of its own, under which Slurm knows it too. So a driver that died between
asking Slurm and hearing its answer finds out what became of it, and a job id that another cluster
gave out again is not taken for ours.
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
    """The latest submission for a folder, and what is known of it."""

    submission: str
    cluster: str
    time: float
    index: int | None  # its place in an array
    job: str | None = None  # Slurm's id, once it answered
    ended: str | None = None  # how it ended, once a driver has seen it
    reason: str = ""
    fruitless: int = 0  # ends in a row, this one among them, without a word and without progress
    progress: int = 0  # how far the stage was when it ended
    again: bool = False  # the user requested a retry

    @property
    def live(self) -> bool:
        """Whether the end of the job is unknown."""
        return self.ended is None

    @property
    def name(self) -> str:
        """What Slurm calls the job: no two submissions share it."""
        return f"var-scaling-{self.submission}"


def new_submission() -> str:
    return uuid.uuid4().hex[:10]


def note(folder: Path, event: str, **facts: Any) -> None:
    """Add a line to the ledger of `folder`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"event": event, "time": time.time(), **facts}) + "\n"
    with open(folder / JOBS, "ab") as file:
        if file.tell() and not _ends_whole(folder / JOBS):
            line = "\n" + line  # a killed writer left half a line: it counts for nothing
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def history(folder: Path) -> list[dict[str, Any]]:
    """Every line that is whole, oldest first."""
    try:
        text = (folder / JOBS).read_text(errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # half a line, see `note`
    return lines


def latest(folder: Path) -> JobRecord | None:
    """What the ledger says of the newest submission."""
    record: JobRecord | None = None
    for line in history(folder):
        if line["event"] == "submitting":
            kept = record.fruitless if record and not record.again else 0
            record = JobRecord(
                line["submission"], line["cluster"], line["time"], line["index"],
                fruitless=kept, progress=record.progress if record else 0,
            )  # fmt: skip
        elif line["event"] == "cancelled":  # whether or not it was ever submitted
            begun = record or JobRecord("", "", line["time"], None)
            record = replace(begun, ended="cancelled", reason=line["reason"], again=False)
        elif record is None:
            continue
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


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
