"""Calls of Slurm's programs: queue, accounting, partitions and nodes, and cancellation of jobs.

squeue takes precedence over sacct: the accounting is delayed, and reports a requeued job as
NODE_FAIL for a while.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator

from pipelines.execution.backend import BackendUnavailable, End, JobStatus, Phase, Queue

# The states of a job that has ended (manuals of squeue and sacct, JOB STATE CODES). In any other
# state, listed below or not, the job may still run: submitted again, it would run twice.
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
# Reasons of pending jobs that will not start unless a user changes something.
HOPELESS = frozenset(
    (
        "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "JobHeldUser", "JobHeldAdmin",
        "InvalidAccount", "InvalidQOS", "PartitionDown", "PartitionInactive", "AccountNotAllowed",
        "launch failed requeued held", "AssocMaxWallDurationPerJobLimit",
        "QOSMaxWallDurationPerJobLimit", "QOSMaxNodePerJobLimit", "QOSMaxGRESPerJob",
    )
)  # fmt: skip
# TIMEOUT and FAILED are absent: after them, a job without progress counts as fruitless.
_END: dict[str, End] = {
    "CANCELLED": "cancelled", "OUT_OF_MEMORY": "out of memory", "PREEMPTED": "no fault",
    "NODE_FAIL": "no fault", "BOOT_FAIL": "no fault", "REVOKED": "no fault",
}  # fmt: skip
_TIMEOUT = 20.0  # seconds after which slurmctld counts as unavailable


def job_status(job: str, name: str, state: str, node: str, reason: str) -> JobStatus:
    """The JobStatus for one line of squeue or sacct."""
    known = state in ENDED or state in ACTIVE
    problem = ""
    if not known:
        problem = f"job {job} is in the unknown state {state}: treated as active"
    elif state in ACTIVE and reason in HOPELESS:
        problem = f"job {job} cannot start without a change by a user: {reason}"
    note = reason if state == "PENDING" else state.lower() if known else problem
    phase: Phase = "queued"
    if state in ENDED:
        phase = "ended"
    elif state in ("RUNNING", "COMPLETING"):
        phase = "running"
    return JobStatus(job, name, state, node, phase, _END.get(state, "other"), note, problem)


def queue(seconds: float = _TIMEOUT) -> Queue:
    """All jobs of this user that squeue lists now. Raises BackendUnavailable."""
    # -r: one line per task of an array. -t all: also jobs that have ended, which squeue lists for
    # MinJobAge, usually 5 minutes. The format: id, name, state, nodes, reason.
    text = _run_program(
        "squeue", "--me", "-r", "-h", "-t", "all", "-o", "%i|%j|%T|%N|%r", seconds=seconds
    )
    jobs = {}
    for job, name, state, node, reason in _parse_jobs(text, 5):
        jobs[job] = job_status(job, name, state, node, "" if reason == "None" else reason)
    return Queue(jobs, time.time())


def _parse_jobs(text: str, count: int) -> Iterator[list[str]]:
    """The `count` fields of each line of a job list: id, name and others, separated by "|".

    The name may contain any characters, "|" and line breaks among them. A line that does not start
    with a job id belongs to a name with a line break; jobs of var-scaling have no such names.
    """
    for line in text.split("\n"):
        job, _, rest = line.partition("|")
        # Split from the right, because only the name, the second field, may contain "|".
        fields = [job, *rest.rsplit("|", count - 2)]
        if len(fields) == count and re.fullmatch(r"[0-9]+[0-9_+]*", job) and fields[2].strip():
            yield fields


# One second only: `status` and the progress display must not wait for a slow slurmctld.
def queue_or_none(seconds: float = 1.0) -> Queue | None:
    """The queue, or None if there is no Slurm or it does not answer."""
    try:
        return queue(seconds)
    except BackendUnavailable:
        return None


def accounts(names: Iterable[str], seconds: float = _TIMEOUT) -> dict[str, JobStatus]:
    """The jobs with these names that sacct lists, by id; empty if there is no accounting."""
    name_list = ",".join(sorted(set(names)))
    if not name_list or shutil.which("sacct") is None:
        return {}
    # -X: jobs without their steps. -P: fields separated by "|". -S: the default is only the current
    # day, but a sweep may be resumed weeks later.
    options = ["-X", "-n", "-P", "--name", name_list, "-S", "now-90days"]
    try:
        text = _run_program(
            "sacct", *options, "-o", "JobID,JobName,State,NodeList", seconds=seconds
        )
    except BackendUnavailable:
        return {}  # many clusters have no accounting; then the disk decides
    jobs = {}
    for job, name, state, node in _parse_jobs(text, 4):
        # sacct prints, for example, "CANCELLED by 1000", and "+" after a truncated state.
        jobs[job] = job_status(job, name, state.split()[0].rstrip("+"), node, "")
    return jobs


def cancel(jobs: list[str]) -> None:
    """Request that Slurm end `jobs`. Raises BackendUnavailable."""
    if jobs:
        _run_program("scancel", *jobs)


def node_address(node: str) -> str:
    """An address of `node` that this machine can resolve: its name, else NodeAddr from Slurm."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        text = _run_program("scontrol", "show", "node", node, "-o")
    fields = dict(part.split("=", 1) for part in text.split() if "=" in part)
    return fields.get("NodeAddr", node)


def partition(name: str) -> dict[str, str]:
    """The settings of the partition; empty if it does not exist. Raises BackendUnavailable."""
    try:
        text = _run_program("scontrol", "show", "partition", name, "-o", seconds=5)
    except BackendUnavailable as error:
        if "not found" in str(error):
            return {}
        raise
    return dict(part.split("=", 1) for part in text.split() if "=" in part)


def _run_program(*command: str, seconds: float = _TIMEOUT) -> str:
    """The output of the program. Raises BackendUnavailable. Invalid bytes are replaced, because the
    output may contain names of other users in any encoding.
    """
    try:
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds,
            check=False, env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise BackendUnavailable(
            f"{command[0]} is not installed on this machine: use a login node"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BackendUnavailable(f"{command[0]} did not answer within {seconds:g} s") from error
    if result.returncode:
        message = result.stderr.strip() or result.stdout.strip() or result.returncode
        raise BackendUnavailable(f"{command[0]}: {message}")
    return result.stdout
