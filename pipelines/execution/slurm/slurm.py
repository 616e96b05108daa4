"""What Slurm says: its queue, its accounts, its partitions and nodes; and how a job is cancelled.

squeue is believed before sacct: accounts lag, and call a requeued job NODE_FAIL for a while.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# The states in which a job is over (squeue and sacct, JOB STATE CODES). Any other state, known here
# or not, is that of a job that may still run: submitted again it would run twice.
ENDED = frozenset(
    (
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "REVOKED", "TIMEOUT",
    )
)  # fmt: skip
ACTIVE = frozenset(
    (
        "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_FED",
        "REQUEUE_HOLD", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT",
        "RESV_DEL_HOLD", "EXPEDITING", "LAUNCH_FAILED", "POWER_UP_NODE", "RECONFIG_FAIL",
    )
)  # fmt: skip
# Why a job is pending that will not start until somebody changes something.
HOPELESS = frozenset(
    (
        "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "JobHeldUser", "JobHeldAdmin",
        "InvalidAccount", "InvalidQOS", "PartitionDown", "PartitionInactive", "AccountNotAllowed",
        "launch failed requeued held", "AssocMaxWallDurationPerJobLimit",
        "QOSMaxWallDurationPerJobLimit", "QOSMaxNodePerJobLimit", "QOSMaxGRESPerJob",
    )
)  # fmt: skip
_SECONDS = 20.0  # after which a silent slurmctld counts as away


class SlurmAway(RuntimeError):
    """Slurm does not answer: nothing is known, so nothing may be concluded."""


@dataclass(frozen=True)
class Seen:
    """One job as Slurm has it."""

    job: str
    name: str
    state: str
    node: str
    reason: str

    @property
    def active(self) -> bool:
        return self.state not in ENDED

    @property
    def unknown(self) -> bool:
        """Whether this version does not know the state."""
        return self.state not in ENDED and self.state not in ACTIVE

    @property
    def remark(self) -> str:
        """What is to be said of it while it is active, or nothing."""
        if self.unknown:
            return f"job {self.job} is in a state not known here, {self.state}: taken as active"
        if self.reason in HOPELESS:
            return f"job {self.job} waits for what may never be: {self.reason}"
        return ""


@dataclass(frozen=True)
class Queue:
    """All of this user's jobs that Slurm remembers, by id and by name."""

    jobs: dict[str, Seen]
    at: float

    def find(self, job: str | None, name: str, index: int | None) -> Seen | None:
        """The job of that id and name; without an id, the one of that name (and array index)."""
        if job is not None:
            seen = self.jobs.get(job)
            return seen if seen is not None and seen.name == name else None
        ends = "" if index is None else f"_{index}"
        named = [s for s in self.jobs.values() if s.name == name and s.job.endswith(ends)]
        return named[0] if named else None


def queue(seconds: float = _SECONDS) -> Queue:
    """What squeue knows now. Raises SlurmAway."""
    text = _ask("squeue", "--me", "-r", "-h", "-t", "all", "-o", "%i|%j|%T|%N|%r", seconds=seconds)
    jobs = {}
    for job, name, state, node, reason in _fields(text, 5):
        jobs[job] = Seen(job, name, state, node, "" if reason == "None" else reason)
    return Queue(jobs, time.time())


def _fields(text: str, count: int) -> Iterator[list[str]]:
    """The lines of a listing of jobs: the id, the name, in which anything may stand, and the rest.

    A line of another kind is part of a name with a line break in it, which is none of ours.
    """
    for line in text.split("\n"):
        job, _, rest = line.partition("|")
        found = [job, *rest.rsplit("|", count - 2)]
        if len(found) == count and re.fullmatch(r"[0-9]+[0-9_+]*", job) and found[2].strip():
            yield found


def look(seconds: float = 1.0) -> Queue | None:
    """The queue, or None where there is no Slurm or it is silent."""
    try:
        return queue(seconds)
    except SlurmAway:
        return None


def accounts(names: Iterable[str], seconds: float = _SECONDS) -> dict[str, Seen]:
    """What sacct knows of the jobs with these names; nothing where there is no accounting."""
    wanted = ",".join(sorted(set(names)))
    if not wanted or shutil.which("sacct") is None:
        return {}
    words = ["-X", "-n", "-P", "--name", wanted, "-S", "now-90days"]
    try:
        text = _ask("sacct", *words, "-o", "JobID,JobName,State,NodeList", seconds=seconds)
    except SlurmAway:
        return {}  # switched off on many clusters; the disk decides then
    found = {}
    for job, name, state, node in _fields(text, 4):
        found[job] = Seen(job, name, state.split()[0].rstrip("+"), node, "")
    return found


def cancel(jobs: list[str]) -> None:
    """Ask Slurm to end `jobs`. Raises SlurmAway."""
    if jobs:
        _ask("scancel", *jobs)


def node_address(node: str) -> str:
    """An address of `node` that resolves here: the name itself, or what Slurm has for it."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        text = _ask("scontrol", "show", "node", node, "-o")
    fields = dict(part.split("=", 1) for part in text.split() if "=" in part)
    return fields.get("NodeAddr", node)


def partition(name: str) -> dict[str, str]:
    """The partition's settings; empty if there is none of that name. Raises SlurmAway."""
    try:
        text = _ask("scontrol", "show", "partition", name, "-o", seconds=5)
    except SlurmAway as error:
        if "not found" in str(error):
            return {}
        raise
    return dict(part.split("=", 1) for part in text.split() if "=" in part)


def _ask(*words: str, seconds: float = _SECONDS) -> str:
    """What the program prints, in whatever encoding: a name of any user may be in it."""
    try:
        done = subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds,
            check=False, env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SlurmAway(f"{words[0]} is not on this machine: submit from a login node") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmAway(f"{words[0]} did not answer within {seconds:g} s") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or done.returncode
        raise SlurmAway(f"{words[0]}: {said}")
    return done.stdout
