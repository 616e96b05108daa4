"""Checks of a cluster: its settings against those of Slurm, a dry submission, and a test job."""

import contextlib
import math
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipelines.execution.backend import BackendUnavailable
from pipelines.execution.checks import (
    TORCH,
    CheckResult,
    check_torch,
    last_error,
    parse_facts,
    run_program,
)
from pipelines.execution.slurm import slurm
from pipelines.workspace.settings import FILE, Cluster, Settings
from pipelines.workspace.store import Home

_PROGRAMS = ("sbatch", "squeue", "srun", "scancel", "scontrol", "sinfo")
_SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "weka", "panfs", "gluster", "pvfs", "cifs",
           "smb", "afs", "9p", "juicefs", "quobyte", "vast")  # fmt: skip
_UP = ("idle", "mixed", "allocated", "completing", "planned", "reserved")  # states of sinfo
# What happens on preemption, by the partition's PreemptMode.
_PREEMPTED = {
    "OFF": "jobs are not preempted",
    "REQUEUE": "a preempted job goes back into the queue and resumes from its last checkpoint",
    "CANCEL": "a preempted job ends; the driver resubmits it, and it resumes from its checkpoint",
    "SUSPEND": "a preempted job is suspended, and continues later",
}


def check_cluster(home: Home, settings: Settings, cluster: Cluster) -> Iterator[CheckResult]:
    """Check everything that a run on `cluster` needs; stops at what makes later checks useless."""
    yield CheckResult(
        "home shared", *_shared(home.root, "give --home a folder on a disk that all nodes share")
    )
    yield CheckResult(
        "Python shared",
        *_shared(Path(sys.prefix), "create the environment on a disk that all nodes share"),
    )
    if cluster.setup:
        yield _setup(cluster)
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        message = f"not in PATH: {', '.join(absent)}; use a login node, or load the module of Slurm"
        yield CheckResult("Slurm", False, message)
        return
    try:
        active = sum(job.active for job in slurm.queue(5).jobs.values())
        yield CheckResult("Slurm", True, f"it answers; {active} jobs of yours are in its queue")
        partitions = _partitions()
        for name in cluster.partition.split(","):
            if name not in partitions:
                message = f"it does not exist; in {FILE} name one of: {', '.join(partitions)}"
                yield CheckResult(f"partition {name}", False, message)
                return
            yield _partition(name, cluster)
    except BackendUnavailable as error:
        message = f"{error}; no job can be submitted until it answers: tell the administrators"
        yield CheckResult("Slurm", False, message)
        return
    yield _nodes(cluster)
    yield from _optional_features()
    submission = _dry_submission(cluster)
    yield submission
    if submission.ok:  # otherwise Slurm would reject srun for the same reason
        yield from _check_node(home, settings, cluster)


def _shared(path: Path, fix: str) -> tuple[bool | None, str]:
    """Whether other machines can read the disk of `path`, judged by the type of its file system.

    The longest mount point that contains `path` is the file system that `path` is on.
    """
    mounts_file = Path("/proc/mounts")
    try:
        text = mounts_file.read_text()
    except UnicodeDecodeError:  # a mount point may have a name in any encoding
        text = mounts_file.read_bytes().decode(errors="replace")
    fields = [line.split()[1:3] for line in text.splitlines()]
    # The kernel writes spaces in mount points as octal escapes, such as \040.
    mounts = [(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), p), kind) for p, kind in fields]
    containing = [mount for mount in mounts if path.resolve().is_relative_to(mount[0])]
    kind = max(containing, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]
    if any(name in kind for name in _SHARED):
        return True, f"{path} is on {kind}, a network file system"
    return (
        None,
        f"{path} is on a local file system ({kind}): check that all nodes see it, or {fix}",
    )


def _setup(cluster: Cluster) -> CheckResult:
    """Check the syntax of the lines of `setup`; they are not run."""
    result = run_program("bash", "-n", "-c", "\n".join(cluster.setup))
    if result.returncode:
        error = result.stderr.strip() or last_error(result)
        return CheckResult("setup", False, f"{error}: fix `setup` of the cluster in {FILE}")
    return CheckResult("setup", True, f"{len(cluster.setup)} lines of shell without a syntax error")


def _partitions() -> list[str]:
    """The names of all partitions. Raises BackendUnavailable."""
    # -a: also hidden partitions, to which jobs can be submitted.
    result = run_program("sinfo", "-a", "-h", "-o", "%R")
    if result.returncode:
        raise BackendUnavailable(f"sinfo: {last_error(result)}")
    return result.stdout.split()


def _partition(name: str, cluster: Cluster) -> CheckResult:
    """Whether the partition `name` accepts the jobs of `cluster`. Raises BackendUnavailable."""
    settings = slurm.partition(name)
    state, max_time = settings["State"], settings["MaxTime"]
    # MaxNodes may be UNLIMITED.
    nodes = min(int(n) for n in (settings["TotalNodes"], settings["MaxNodes"]) if n.isdigit())
    problems = []
    if state != "UP":
        problems.append(f"it is {state}: jobs would wait until it is UP again; use another")
    if _hours(max_time) < cluster.wall_hours:
        hours = _hours(max_time)
        problems.append(
            f"its MaxTime is {max_time}: set wall_hours = {hours:g}, or less, in {FILE}"
        )
    if nodes < cluster.nodes:
        problems.append(
            f"a job may use at most {nodes} of its nodes: set nodes = {nodes}, or less, in {FILE}"
        )
    # PreemptMode may be a list such as GANG,SUSPEND: the last item says what happens to the job.
    mode = settings.get("PreemptMode", "OFF").split(",")[-1]
    preemption = _PREEMPTED.get(mode, mode)
    message = (
        f"UP, {settings['TotalNodes']} nodes, MaxTime {max_time}; {preemption}; a job saves a "
        f"checkpoint every {cluster.save_every_seconds:g} s"
    )
    return CheckResult(f"partition {name}", not problems, "; ".join(problems) or message)


def _hours(time: str) -> float:
    """Hours of a time in Slurm's format days-hours:minutes:seconds; infinity for UNLIMITED."""
    if not time[0].isdigit():
        return math.inf
    days, _, clock = time.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 24 + hours + minutes / 60 + seconds / 3600


def _nodes(cluster: Cluster) -> CheckResult:
    """Whether enough nodes have enough GPUs, and how many of these nodes are up."""
    gpus_needed, nodes_needed = cluster.gpus_per_node, cluster.nodes
    result = run_program("sinfo", "-h", "-p", cluster.partition, "-o", "%D|%T|%G")
    lines = [line.split("|", 2) for line in result.stdout.splitlines()]
    rows = [(int(number), state, gpus_in(gres)) for number, state, gres in lines]
    if not rows:
        return CheckResult(
            "nodes", False, f"sinfo: {last_error(result)}; ask the cluster's administrators"
        )
    large_enough = [(number, state) for number, state, gpus in rows if gpus >= gpus_needed]
    fit = sum(number for number, _ in large_enough)
    # sinfo may append a flag to a state: "~" for a node in power saving, which Slurm starts when
    # it is needed, and "*" for a node that does not respond.
    up = sum(
        number
        for number, state in large_enough
        if state.startswith(_UP) and not state.endswith("*")
    )
    message = f"{fit} nodes have {gpus_needed} GPUs or more, {up} of them up"
    if cluster.device == "cuda" and not gpus_needed:
        fix = f"gpus_per_node is 0, set it in {FILE}"
        return CheckResult("nodes", False, f'device = "cuda" needs GPUs: {fix}')
    if fit < nodes_needed:
        most = max(gpus for _, _, gpus in rows)
        fix = f"lower gpus_per_node = {gpus_needed} or nodes = {nodes_needed} in {FILE}"
        return CheckResult("nodes", False, f"{message}; the most that a node has is {most}: {fix}")
    if up < nodes_needed:
        return CheckResult(
            "nodes", None, f"{message}: a job of {nodes_needed} nodes must wait for the others"
        )
    return CheckResult("nodes", True, message)


def gpus_in(gres: str) -> int:
    """Number of GPUs of a node, from %G of sinfo: `gpu:4`, `gpu:h100:8(S:0-1),nvme:1`, `(null)`."""
    without_parentheses = re.sub(r"\([^)]*\)", "", gres)
    counts = re.findall(r"(?:^|,)gpu(?::[^:,]+)?:(\d+)(?=,|$)", without_parentheses)
    return sum(int(n) for n in counts)


def _options(cluster: Cluster, processes: int, minutes: int) -> list[str]:
    """The options of sbatch and srun for `processes` processes on one node."""
    optional = {"account": cluster.account, "qos": cluster.qos, "constraint": cluster.constraint}
    options = [f"--{name}={value}" for name, value in optional.items() if value is not None]
    options += [f"--gpus-per-node={processes}"] if cluster.gpus_per_node else []
    memory = math.ceil(1024 * cluster.memory_gb_per_gpu * processes)
    return [
        f"--partition={cluster.partition}", "--nodes=1", f"--ntasks-per-node={processes}",
        f"--cpus-per-task={cluster.cpus_per_gpu}", f"--mem={memory}M", f"--time={minutes}",
        *options,
    ]  # fmt: skip


def _dry_submission(cluster: Cluster) -> CheckResult:
    """Submit a job on one whole node with --test-only: sbatch checks it, but does not run it."""
    options = _options(cluster, cluster.workers_per_node, math.floor(60 * cluster.wall_hours))
    signal = f"--signal=USR2@{cluster.signal_seconds}"
    result = run_program("sbatch", "--test-only", *options, signal, "--requeue", "--wrap", "true")
    message = (result.stderr.strip() or result.stdout.strip()).replace("\n", "; ")
    if result.returncode:
        fix = f"fix the cluster in {FILE}; the options were {' '.join(options)}"
        return CheckResult("dry submission", False, f"{message}: {fix}")
    return CheckResult("dry submission", True, message.removeprefix("sbatch: "))


def _optional_features() -> Iterator[CheckResult]:
    """Features of Slurm that are used if present, but not needed."""
    config = run_program("scontrol", "show", "config").stdout
    if re.search(r"^JobRequeue\s*= 0", config, re.MULTILINE):
        message = "JobRequeue = 0; nothing to do, because jobs request --requeue themselves"
        yield CheckResult("requeue", None, message)
    result = run_program("sacct", "-X", "-n", "-S", "now-1hours")
    unavailable = (
        f"no answer ({last_error(result)}); not needed, squeue and the disk show how jobs end"
    )
    ok = None if result.returncode else True
    yield CheckResult("sacct", ok, "it answers" if ok else unavailable)


def _check_node(home: Home, settings: Settings, cluster: Cluster) -> Iterator[CheckResult]:
    """Run a short job if a node is idle, to check that the node sees home, Python, data and GPUs
    under the same paths as this machine.
    """
    idle = run_program("sinfo", "-h", "-p", cluster.partition, "-t", "idle", "-o", "%a %D").stdout
    unknown = "so it is unknown whether nodes see home, Python, data and GPUs: check again later"
    if not re.search("^up [1-9]", idle, re.MULTILINE):
        yield CheckResult("node", None, f"none is idle, {unknown}")
        return
    probe = home.root / f".doctor-{uuid.uuid4().hex}"
    data = {f"data {name}": root for name, root in settings.data.items() if root.exists()}
    paths = {"home": probe, "Python": Path(sys.executable), **data}
    script = _node_script(paths, cluster)
    try:
        home.root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        # Three limits, each above the one before: srun gives up after 30 s without resources,
        # `timeout` ends it after 60 s (SIGKILL 10 s later), run_program after 80 s. --chdir=/,
        # because the current folder may not exist on the node.
        result = run_program(
            *("timeout", "-k", "10", "60", "srun", *_options(cluster, 1, 5), "--immediate=30"),
            *("--job-name=var-scaling-doctor", "--chdir=/", "bash", "-c", script),
            seconds=80,
        )
        written = probe.read_text() == "seen\n"
    except OSError as error:
        yield CheckResult("node", None, f"not checked, the home cannot be written: {error}")
        return
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    facts = parse_facts(result)
    if "node" not in facts:
        # 124 is the exit code of `timeout`; with --immediate, srun reports nodes that are busy.
        late = result.returncode == 124 or "busy" in result.stderr
        message = result.stderr.strip() or "srun did not answer within a minute"
        fix = (
            unknown
            if late
            else "ask the cluster's administrators why srun fails and sbatch does not"
        )
        yield CheckResult("node", None if late else False, f"{message}; {fix}".replace("\n", "; "))
        return
    yield _node_result(f"node {facts['node']}", facts, paths, written)
    name = f"torch on {facts['node']}"
    if result.returncode == 124:
        yield CheckResult(name, None, f"it took longer than a minute to load, {unknown}")
    elif "setup" not in facts:
        message = f"`setup` ends the shell ({last_error(result)}): fix it in {FILE}"
        yield CheckResult(f"setup on {facts['node']}", False, message)
    else:
        yield CheckResult(name, *check_torch(result, cluster.device, cluster.gpu_memory_gb))


def _node_script(paths: dict[str, Path], cluster: Cluster) -> str:
    """Bash that prints what a node sees of `paths`, and writes "seen" to the path of the home."""
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    tests = [f"test -r {path} && echo 'doctor: {name}=yes'" for name, path in quoted.items()]
    # The node must also be able to write to the home: `_check_node` reads it back.
    tests[0] += f" && echo seen > {quoted['home']}"
    # This line is printed only if `setup` did not end the shell.
    after_setup = "echo doctor: setup=yes"
    torch = f"{quoted['Python']} -c {shlex.quote(TORCH)}"
    return "\n".join(
        ["echo doctor: node=$SLURMD_NODENAME", *tests, *cluster.setup, after_setup, torch]
    )


def _node_result(
    node: str, facts: dict[str, str], paths: dict[str, Path], written: bool
) -> CheckResult:
    """Whether the node read all `paths` and, if `written`, wrote to the home."""
    missing = [f"{name} ({path})" for name, path in paths.items() if name not in facts]
    if missing:
        fix = "put it on a disk that all nodes see under the same path"
        return CheckResult(node, False, f"it does not see {', '.join(missing)}: {fix}")
    if not written:
        message = f"it cannot write to {paths['home'].parent}: give --home a folder where it can"
        return CheckResult(node, False, message)
    return CheckResult(node, True, f"it sees {', '.join(paths)} as this machine does")
