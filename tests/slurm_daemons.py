"""What a throw-away Slurm takes of its host, and gives back to the last child: ports and processes.

A process is ours if it inherited our SLURM_CONF and is one of the daemons or runs in a job of it.
So nothing rests on memory: another process can clear up what a killed one has left behind.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

PORTS = 400  # to a cluster: some for the daemons, the rest for what srun listens on
NAMES = {"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmscriptd", "slurmd", "slurmstepd"}


def claim_ports() -> tuple[socket.socket, range]:
    """Free ports in a row. Who listens on their first owns them all, until that socket closes."""
    starts = list(range(10_000, 32_000, PORTS))  # below those that the kernel gives to clients
    random.SystemRandom().shuffle(starts)
    for start in starts:
        port_guard = socket.socket()
        try:
            port_guard.bind(("127.0.0.1", start))
            port_guard.listen()
            for port in range(start + 1, start + PORTS):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("", port))
            return port_guard, range(start + 1, start + PORTS)
        except OSError:
            port_guard.close()
    raise OSError(f"nowhere are {PORTS} ports in a row free")


class Daemons:
    def __init__(self, root: Path, environment: Mapping[str, str]):
        self.root, self.environment = root, environment
        self.mark = f"SLURM_CONF={environment['SLURM_CONF']}".encode()

    def start(self, *words: str) -> None:
        """For commands that put themselves into the background; what they say is in start.log."""
        log = self.root / "start.log"
        with log.open("wb") as said:
            done = subprocess.run(
                words,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.returncode}\n{log.read_text()}")

    def pid(self, daemon: str) -> int | None:
        """Of a living daemon; a stale file that names another process counts as none."""
        try:
            pid = int((self.root / f"{daemon}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    def stop(self, daemon: str, how: signal.Signals = signal.SIGTERM, seconds: float = 20) -> None:
        """Returns when it has ended."""
        pid = self.pid(daemon)
        if pid is None:
            return
        os.kill(pid, how)
        end = time.monotonic() + seconds
        while self._is_ours(pid):
            if time.monotonic() > end:
                raise TimeoutError(f"{daemon} ({pid}) has not ended in {seconds} s")
            time.sleep(0.02)

    def living(self) -> list[int]:
        """Daemons, job steps and what these started, wherever in the process tree it is now."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if pid != os.getpid() and self._is_ours(pid)]

    def sweep(self, seconds: float = 20) -> None:
        """Ends all that live, at once."""
        end = time.monotonic() + seconds
        while pids := self.living():
            if time.monotonic() > end:
                raise TimeoutError(f"processes {pids} have not ended in {seconds} s")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _is_ours(self, pid: int) -> bool:
        try:
            inherited = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:  # it has ended, or is another user's; a zombie's environment is empty
            return False
        in_a_job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in inherited)
        return self.mark in inherited and (name in NAMES or in_a_job)
