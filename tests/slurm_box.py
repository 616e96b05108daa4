"""A private, throw-away Slurm cluster on this host: virtual nodes, pretended GPUs, real daemons.

Everything lives in one folder and listens on 127.0.0.1; nothing under /etc is read or written.
Credentials come from a munged of our own, so that no other user of the host can submit as us.
Needs Debian's slurm-wlm (Slurm 22.05), with accounting also slurmdbd and mariadb-server.
"""

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import slurm_accounts
from slurm_daemons import Daemons, claim_ports

USER = pwd.getpwuid(os.getuid()).pw_name
HOST = socket.gethostname().split(".")[0]

# cred_expire is also how long a requeued job waits until it may start again; below 5 is refused.
# ReturnToService=1: a node that was killed returns when it is started, one set down when resumed.
# config_overrides believes our numbers of CPUs and MB, whatever this host has.
SLURM_CONF = """
ClusterName=box
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SrunPortRange={srun_ports}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory_per_cpu}
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000,bf_interval=2,sched_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=1
MinJobAge={remembers}
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=5
{optional}
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


class Box:
    """A cluster with a lifetime: `up`, then jobs and disasters, then `down`, whatever has come."""

    def __init__(
        self,
        root: Path,
        nodes: int = 2,
        cpus: int = 4,
        memory_mb: int = 8000,
        gpus: int = 2,
        accounting: bool = False,
        remembers: int = 604800,
    ):
        """`cpus`, `memory_mb`, `gpus` are each node's. With `accounting` the real sacct answers,
        without it fails, as on many clusters. `remembers`: seconds from a job's end until squeue
        has forgotten it."""
        self.root = root.resolve()
        if len(str(self.root)) > 70:
            raise ValueError(f"a path too long for the sockets in it: {self.root}")
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.cpus, self.memory_mb, self.gpus = cpus, memory_mb, gpus
        self.accounting, self.remembers = accounting, remembers
        self.port_guard: socket.socket | None = None
        self.environment = {
            name: value
            for name, value in os.environ.items()  # we may be in a job of another cluster
            if not name.startswith(("SLURM", "SBATCH", "SALLOC", "SRUN", "SQUEUE", "SACCT"))
        }
        self.environment["PATH"] = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        self.environment["SLURM_CONF"] = f"{self.root}/slurm.conf"
        self.environment["MYSQL_UNIX_PORT"] = f"{self.root}/database.socket"  # for slurmdbd
        self.daemons = Daemons(self.root, self.environment)

    # Lifetime ------------------------------------------------------------------------------------

    def up(self) -> None:
        """Starts afresh: jobs of an earlier life are forgotten, and ids begin at 1 again."""
        self.down()
        try:
            self._configure()
            self.daemons.start(
                *("munged", "--force", f"--socket={self.root}/munge.socket", "--num-threads=2"),
                *(f"--key-file={self.root}/munge.key", f"--seed-file={self.root}/munge.seed"),
                *(f"--pid-file={self.root}/munged.pid", f"--log-file={self.root}/munged.log"),
            )
            if self.accounting:
                database = slurm_accounts.start_database(self.daemons, USER)
                self.wait(database.exists, "MariaDB")
                self.daemons.start("slurmdbd")
                self.wait(lambda: self._try("sacctmgr", "-n", "show", "user"), "slurmdbd")
            self.daemons.start("slurmctld", "-c")
            for node in self.nodes:
                self.start_node(node)
            idle = ("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D")
            self.wait(lambda: self._try(*idle).strip() == str(len(self.nodes)), "idle nodes")
            self.run("srun", "--immediate=20", "-N", str(len(self.nodes)), "true")
            if self.accounting:
                self.wait(lambda: self._try("sacct", "-n"), "an answer of sacct")
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Ends daemons and jobs, however far `up` came; at once: their state is not needed."""
        self.daemons.sweep()
        if self.port_guard:
            self.port_guard.close()
            self.port_guard = None

    # Disasters -----------------------------------------------------------------------------------

    def stop_controller(self) -> None:
        self.daemons.stop("slurmctld")

    def start_controller(self) -> None:
        """With its jobs, as after a restart of the head node."""
        self.daemons.start("slurmctld")
        self.wait(lambda: " UP" in self._try("scontrol", "ping"), "the controller")

    def kill_node(self, node: str) -> None:
        """Its slurmd dies, the processes of its jobs live on; Slurm notices after SlurmdTimeout."""
        self.daemons.stop(f"slurmd.{node}", signal.SIGKILL)

    def start_node(self, node: str) -> None:
        self.daemons.start("slurmd", "-N", node)

    def set_node(self, node: str, state: str) -> None:
        """`state`: down (its jobs are requeued), drain, or resume after either."""
        self.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")

    # Questions -----------------------------------------------------------------------------------

    def jobs(self) -> list[dict[str, str]]:
        """All jobs that slurmctld knows, a line for each task of an array: id (7 or 8_0), name,
        state, node (empty without one), restarts."""
        layout = "JobArrayID:200,Name:200,State:200,NodeList:200,RestartCnt:200"
        keys = ("id", "name", "state", "node", "restarts")
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-O", layout).splitlines()
        return [
            {key: line[200 * at :][:200].strip() for at, key in enumerate(keys)} for line in lines
        ]

    def run(self, *words: str) -> str:
        """In the box's own folder, where sbatch then leaves its slurm-*.out; returns its stdout."""
        done = subprocess.run(
            words, cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.returncode}\n{done.stderr}{done.stdout}")
        return done.stdout

    def wait(self, true: Callable[[], object], what: str, seconds: float = 60) -> object:
        """What `true` returned when it first was true."""
        end = time.monotonic() + seconds
        while not (answer := true()):
            if time.monotonic() > end:
                log = self.root / "slurmctld.log"
                tail = log.read_text().splitlines()[-20:] if log.exists() else []
                jobs = self._try("squeue", "-r", "-t", "all").splitlines()
                raise TimeoutError("\n".join([f"{what}: not in {seconds} s", *tail, *jobs]))
            time.sleep(0.1)
        return answer

    def _try(self, *words: str) -> str:
        """What it says, nothing if it fails."""
        try:
            return self.run("timeout", "10", *words)
        except RuntimeError:
            return ""

    # Configuration -------------------------------------------------------------------------------

    def _configure(self) -> None:
        for folder in ("state", "spool", "devices", "database"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
            (self.root / folder).mkdir(parents=True)
        for log in self.root.glob("*.log"):
            log.unlink()
        for node in self.nodes:
            (self.root / "spool" / node).mkdir()
        self.port_guard, ports = claim_ports()
        named = {"root": self.root, "user": USER}
        optional = "GresTypes=gpu\n" if self.gpus else ""
        if self.accounting:
            resources = "gres/gpu" if self.gpus else "cpu"
            optional += slurm_accounts.SLURM_CONF.format(
                **named, port=ports[1], resources=resources
            )
        gpus = f"Gres=gpu:{self.gpus}" if self.gpus else ""
        nodes = [
            f"NodeName={node} NodeHostname={HOST} NodeAddr=127.0.0.1 Port={port}"
            f" CPUs={self.cpus} RealMemory={self.memory_mb} {gpus}"
            for node, port in zip(self.nodes, ports[2:], strict=False)
        ]
        slurm_conf = SLURM_CONF.format(
            **named,
            host=HOST,
            port=ports[0],
            srun_ports=f"{ports[2 + len(nodes)]}-{ports[-1]}",
            memory_per_cpu=self.memory_mb // self.cpus,
            remembers=self.remembers,
            optional=optional,
            nodes="\n".join(nodes),
        )
        self._write("slurm.conf", slurm_conf.encode())
        self._write("gres.conf", "".join(f"Name=gpu File={d}\n" for d in self._devices()).encode())
        slurmdbd_conf = slurm_accounts.SLURMDBD_CONF.format(**named, port=ports[1])
        self._write("slurmdbd.conf", slurmdbd_conf.encode())
        self._write("munge.key", os.urandom(128))

    def _write(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.touch(mode=0o600)  # munged and slurmdbd refuse to read what others could read
        path.write_bytes(content)

    def _devices(self) -> Iterator[Path]:
        """Slurm wants a character device for each GPU, none of them twice; never opened."""
        for number in range(self.gpus):
            device = self.root / "devices" / f"nvidia{number}"
            try:
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(240, number))
            except PermissionError:  # not root
                device = Path(f"/dev/tty{number}")
            yield device
