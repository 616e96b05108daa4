"""Whether a cluster will do: what Slurm says of it, a dry submission, and what one node sees."""

import contextlib
import math
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipelines.execution.backend import Away
from pipelines.execution.checks import TORCH, CheckResult, ask, complaint, facts, torch_sees
from pipelines.execution.slurm import slurm
from pipelines.workspace.settings import FILE, Cluster, Settings
from pipelines.workspace.store import Home

_PROGRAMS = ("sbatch", "squeue", "srun", "scancel", "scontrol", "sinfo")
_SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "weka", "panfs", "gluster", "pvfs", "cifs",
           "smb", "afs", "9p", "juicefs", "quobyte", "vast")  # fmt: skip
_UP = ("idle", "mixed", "allocated", "completing", "planned", "reserved")
_PREEMPTED = {
    "OFF": "no job here is preempted",
    "REQUEUE": "a preempted job goes back into the queue and on from its last save",
    "CANCEL": "a preempted job is ended; the driver submits it again, from its last save",
    "SUSPEND": "a preempted job is suspended, and goes on where it was",
}


def look(home: Home, settings: Settings, cluster: Cluster) -> Iterator[CheckResult]:
    """Everything that a run needs of `cluster`, as far as Slurm answers."""
    yield CheckResult(
        "home shared", *_shared(home.root, "give --home a folder on a disk of all nodes")
    )
    yield CheckResult(
        "Python shared", *_shared(Path(sys.prefix), "make the environment on such a one")
    )
    if cluster.setup:
        yield _setup(cluster)
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    if absent:
        said = f"not in PATH: {', '.join(absent)}; go to a login node, or load Slurm's module"
        yield CheckResult("Slurm", False, said)
        return
    try:
        waiting = sum(seen.active for seen in slurm.queue(5).jobs.values())
        yield CheckResult("Slurm", True, f"it answers; {waiting} jobs of yours are in its queue")
        known = _partitions()
        for name in cluster.partition.split(","):
            if name not in known:
                said = f"there is none; in {FILE} name one of: {', '.join(known)}"
                yield CheckResult(f"partition {name}", False, said)
                return
            yield _partition(name, cluster)
    except Away as error:
        said = f"{error}; no job can be submitted until it answers: tell the administrators"
        yield CheckResult("Slurm", False, said)
        return
    yield _nodes(cluster)
    yield from _customs()
    submission = _dry_submission(cluster)
    yield submission
    if submission.good:  # else srun would be refused for the same reason
        yield from _from_a_node(home, settings, cluster)


def _shared(path: Path, mend: str) -> tuple[bool | None, str]:
    """Whether the disk of `path` is one that other machines can see, judged by its kind."""
    listed = Path("/proc/mounts")
    try:
        text = listed.read_text()
    except UnicodeDecodeError:  # a mount point may have a name in any encoding
        text = listed.read_bytes().decode(errors="replace")
    mounts = [line.split()[1:3] for line in text.splitlines()]
    points = [(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), at), kind) for at, kind in mounts]
    under = [one for one in points if path.resolve().is_relative_to(one[0])]
    kind = max(under, key=lambda one: len(one[0]), default=("", "unknown"))[1]
    if any(word in kind for word in _SHARED):
        return True, f"{path} lies on {kind}, a network's file system"
    return (
        None,
        f"{path} lies on a local file system ({kind}): all nodes must see it too, or {mend}",
    )


def _setup(cluster: Cluster) -> CheckResult:
    """The shell's opinion of the lines; they are not run here."""
    answer = ask("bash", "-n", "-c", "\n".join(cluster.setup))
    if answer.returncode:
        said = (
            f"{answer.stderr.strip() or complaint(answer)}: mend `setup` of the cluster in {FILE}"
        )
        return CheckResult("setup", False, said)
    return CheckResult("setup", True, f"{len(cluster.setup)} lines of shell without a syntax error")


def _partitions() -> list[str]:
    """Raises Away."""
    answer = ask("sinfo", "-a", "-h", "-o", "%R")
    if answer.returncode:
        raise Away(f"sinfo: {complaint(answer)}")
    return answer.stdout.split()


def _partition(name: str, cluster: Cluster) -> CheckResult:
    """Raises Away."""
    settings = slurm.partition(name)
    state, longest = settings["State"], settings["MaxTime"]
    nodes = min(int(n) for n in (settings["TotalNodes"], settings["MaxNodes"]) if n.isdigit())
    wrong = []
    if state != "UP":
        wrong.append(f"it is {state}: jobs would wait until it is UP again; take another")
    if _hours(longest) < cluster.wall_hours:
        hours = _hours(longest)
        wrong.append(f"its MaxTime is {longest}: wall_hours = {hours:g}, or less, in {FILE}")
    if nodes < cluster.nodes:
        wrong.append(f"a job may have {nodes} of its nodes: nodes = {nodes}, or less, in {FILE}")
    mode = settings.get("PreemptMode", "OFF").split(",")[-1]
    kept = f"{_PREEMPTED.get(mode, mode)}; a job saves every {cluster.save_every_seconds:g} s"
    said = f"UP, {settings['TotalNodes']} nodes, MaxTime {longest}; {kept}"
    return CheckResult(f"partition {name}", not wrong, "; ".join(wrong) or said)


def _hours(time: str) -> float:
    """Slurm's days-hours:minutes:seconds."""
    if not time[0].isdigit():
        return math.inf  # UNLIMITED
    days, _, clock = time.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 24 + hours + minutes / 60 + seconds / 3600


def _nodes(cluster: Cluster) -> CheckResult:
    """Whether enough nodes have the GPUs, and how many of these are at work."""
    wanted, asked = cluster.gpus_per_node, cluster.nodes
    answer = ask("sinfo", "-h", "-p", cluster.partition, "-o", "%D|%T|%G")
    lines = [line.split("|", 2) for line in answer.stdout.splitlines()]
    rows = [(int(number), state, gpus_in(gres)) for number, state, gres in lines]
    if not rows:
        return CheckResult(
            "nodes", False, f"sinfo: {complaint(answer)}; ask the cluster's administrators"
        )
    fit = sum(number for number, _, gpus in rows if gpus >= wanted)
    up = sum(number for number, state, gpus in rows if gpus >= wanted and state.startswith(_UP))
    said = f"{fit} nodes have {wanted} GPUs or more, {up} of them up"
    if cluster.device == "cuda" and not wanted:
        mend = f"give gpus_per_node in {FILE}, which is 0"
        return CheckResult("nodes", False, f'device = "cuda" needs GPUs: {mend}')
    if fit < asked:
        most = max(gpus for _, _, gpus in rows)
        mend = f"lower gpus_per_node = {wanted} or nodes = {asked} in {FILE}"
        return CheckResult("nodes", False, f"{said}; the most that one has is {most}: {mend}")
    if up < asked:
        return CheckResult(
            "nodes", None, f"{said}: a job of {asked} nodes has to wait for the others"
        )
    return CheckResult("nodes", True, said)


def gpus_in(gres: str) -> int:
    """GPUs of a node as sinfo's %G has them: `gpu:4`, `gpu:h100:8(S:0-1),nvme:1`, `(null)`."""
    bare = re.sub(r"\([^)]*\)", "", gres)
    return sum(int(n) for n in re.findall(r"(?:^|,)gpu(?::[^:,]+)?:(\d+)(?=,|$)", bare))


def _options(cluster: Cluster, processes: int, minutes: int) -> list[str]:
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
    """What sbatch says to a job on one whole node that is not to run."""
    options = _options(cluster, cluster.workers_per_node, math.floor(60 * cluster.wall_hours))
    signal = f"--signal=USR2@{cluster.signal_seconds}"
    answer = ask("sbatch", "--test-only", *options, signal, "--requeue", "--wrap", "true")
    said = (answer.stderr.strip() or answer.stdout.strip()).replace("\n", "; ")
    if answer.returncode:
        mend = f"mend the cluster in {FILE}; it was asked for {' '.join(options)}"
        return CheckResult("dry submission", False, f"{said}: {mend}")
    return CheckResult("dry submission", True, said.removeprefix("sbatch: "))


def _customs() -> Iterator[CheckResult]:
    config = ask("scontrol", "show", "config").stdout
    if re.search(r"^JobRequeue\s*= 0", config, re.MULTILINE):
        said = "off by JobRequeue = 0; nothing to do, for jobs ask for --requeue themselves"
        yield CheckResult("requeue", None, said)
    answer = ask("sacct", "-X", "-n", "-S", "now-1hours")
    silent = f"no answer ({complaint(answer)}); not needed, squeue and the disk tell how jobs end"
    good = None if answer.returncode else True
    yield CheckResult("sacct", good, "it answers" if good else silent)


def _from_a_node(home: Home, settings: Settings, cluster: Cluster) -> Iterator[CheckResult]:
    """A minute's job, where a node is idle: does it see home, Python, data and GPUs as we do?"""
    idle = ask("sinfo", "-h", "-p", cluster.partition, "-t", "idle", "-o", "%a %D").stdout
    unknown = "so it is unknown whether nodes see home, Python, data and GPUs: check again later"
    if not re.search("^up [1-9]", idle, re.MULTILINE):
        yield CheckResult("node", None, f"none is idle, {unknown}")
        return
    probe = home.root / f".doctor-{uuid.uuid4().hex}"
    data = {f"data {name}": root for name, root in settings.data.items() if root.exists()}
    paths = {"home": probe, "Python": Path(sys.executable), **data}
    quoted = {what: shlex.quote(str(path)) for what, path in paths.items()}
    tests = [f"test -r {path} && echo 'doctor: {what}=yes'" for what, path in quoted.items()]
    tests[0] += f" && echo seen > {quoted['home']}"
    begun, torch = "echo doctor: setup=yes", f"{quoted['Python']} -c {shlex.quote(TORCH)}"
    script = "\n".join(["echo doctor: node=$SLURMD_NODENAME", *tests, *cluster.setup, begun, torch])
    try:
        home.root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        answer = ask(
            *("timeout", "-k", "10", "60", "srun", *_options(cluster, 1, 5), "--immediate=30"),
            *("--job-name=var-scaling-doctor", "--chdir=/", "bash", "-c", script),
            seconds=80,
        )
        written = probe.read_text() == "seen\n"
    except OSError as error:
        yield CheckResult("node", None, f"not asked, for the home cannot be written: {error}")
        return
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    seen = facts(answer)
    if "node" not in seen:
        late = answer.returncode == 124 or "busy" in answer.stderr
        said = answer.stderr.strip() or "srun gave no answer within a minute"
        mend = (
            unknown
            if late
            else "ask the cluster's administrators why srun fails and sbatch does not"
        )
        yield CheckResult("node", None if late else False, f"{said}; {mend}".replace("\n", "; "))
        return
    yield _sight(f"node {seen['node']}", seen, paths, written)
    what = f"torch on {seen['node']}"
    if answer.returncode == 124:
        yield CheckResult(what, None, f"it took longer than a minute to load, {unknown}")
    elif "setup" not in seen:
        said = f"`setup` ends the shell ({complaint(answer)}): mend it in {FILE}"
        yield CheckResult(f"setup on {seen['node']}", False, said)
    else:
        yield CheckResult(what, *torch_sees(answer, cluster.device, cluster.gpu_memory_gb))


def _sight(node: str, seen: dict[str, str], paths: dict[str, Path], written: bool) -> CheckResult:
    blind = [f"{what} ({path})" for what, path in paths.items() if what not in seen]
    if blind:
        mend = "put it on a disk that all nodes see under the same path"
        return CheckResult(node, False, f"it does not see {', '.join(blind)}: {mend}")
    if not written:
        said = f"it cannot write to {paths['home'].parent}: give --home a folder where it may"
        return CheckResult(node, False, said)
    return CheckResult(node, True, f"it sees {', '.join(paths)} as this machine does")
