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

from pipelines.execution.backend import Away, End, Phase, Queue, Seen

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
# Reasons of pending jobs that do not start without a change by a user.
HOPELESS = frozenset(
    (
        "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "JobHeldUser", "JobHeldAdmin",
        "InvalidAccount", "InvalidQOS", "PartitionDown", "PartitionInactive", "AccountNotAllowed",
        "launch failed requeued held", "AssocMaxWallDurationPerJobLimit",
        "QOSMaxWallDurationPerJobLimit", "QOSMaxNodePerJobLimit", "QOSMaxGRESPerJob",
    )
)  # fmt: skip
_END: dict[str, End] = {
    "CANCELLED": "cancelled", "OUT_OF_MEMORY": "out of memory", "PREEMPTED": "no fault",
    "NODE_FAIL": "no fault", "BOOT_FAIL": "no fault", "REVOKED": "no fault",
}  # fmt: skip
_SECONDS = 20.0  # after which a silent slurmctld counts as away


def seen_of(job: str, name: str, state: str, node: str, reason: str) -> Seen:
    """A job as squeue and sacct tell of it."""
    known = state in ENDED or state in ACTIVE
    remark = ""
    if not known:
        remark = f"job {job} is in a state not known here, {state}: taken as active"
    elif state in ACTIVE and reason in HOPELESS:
        remark = f"job {job} waits for what may never be: {reason}"
    note = reason if state == "PENDING" else state.lower() if known else remark
    phase: Phase = "queued"
    if state in ENDED:
        phase = "ended"
    elif state in ("RUNNING", "COMPLETING"):
        phase = "running"
    return Seen(job, name, state, node, phase, _END.get(state, "other"), note, remark)


def queue(seconds: float = _SECONDS) -> Queue:
    """What squeue knows now. Raises Away."""
    text = _ask("squeue", "--me", "-r", "-h", "-t", "all", "-o", "%i|%j|%T|%N|%r", seconds=seconds)
    jobs = {}
    for job, name, state, node, reason in _fields(text, 5):
        jobs[job] = seen_of(job, name, state, node, "" if reason == "None" else reason)
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
    except Away:
        return None


def accounts(names: Iterable[str], seconds: float = _SECONDS) -> dict[str, Seen]:
    """What sacct knows of the jobs with these names; nothing where there is no accounting."""
    wanted = ",".join(sorted(set(names)))
    if not wanted or shutil.which("sacct") is None:
        return {}
    command = ["-X", "-n", "-P", "--name", wanted, "-S", "now-90days"]
    try:
        text = _ask("sacct", *command, "-o", "JobID,JobName,State,NodeList", seconds=seconds)
    except Away:
        return {}  # switched off on many clusters; the disk decides then
    found = {}
    for job, name, state, node in _fields(text, 4):
        found[job] = seen_of(job, name, state.split()[0].rstrip("+"), node, "")
    return found


def cancel(jobs: list[str]) -> None:
    """Ask Slurm to end `jobs`. Raises Away."""
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
    """The partition's settings; empty if there is none of that name. Raises Away."""
    try:
        text = _ask("scontrol", "show", "partition", name, "-o", seconds=5)
    except Away as error:
        if "not found" in str(error):
            return {}
        raise
    return dict(part.split("=", 1) for part in text.split() if "=" in part)


def _ask(*command: str, seconds: float = _SECONDS) -> str:
    """What the program prints, in whatever encoding: a name of any user may be in it."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds,
            check=False, env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise Away(f"{command[0]} is not on this machine: submit from a login node") from error
    except subprocess.TimeoutExpired as error:
        raise Away(f"{command[0]} did not answer within {seconds:g} s") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or done.returncode
        raise Away(f"{command[0]}: {said}")
    return done.stdout
