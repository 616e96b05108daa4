"""The lock of a sweep's driver: a file that names its owner, has a heartbeat and can be taken over.

Kernel locks (flock) do not work between login nodes on every shared disk; a file created with
`link` does. Its modification time, by the file server's clock, is the heartbeat.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.workspace.store import FolderInUseError
from var_scaling.disk import read_json

LOCK = "driver.json"
_HEARTBEAT_SECONDS = 5.0
_DEAD_AFTER = 120.0  # seconds without a heartbeat from another machine


@dataclass(frozen=True)
class Driver:
    """The process that drives a sweep. The fields are the keys of driver.json."""

    token: str
    pid: int
    host: str
    boot: str  # id of the host's current boot
    born: str  # when the process started, because the system reuses pids
    since: str
    on: str  # "local", or the cluster
    realm: str = ""  # user and pid namespace: in another one, the pid means another process
    stages: tuple[str, ...] = ()  # the addresses of the stages that it drives

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, on {self.on}, since {self.since}"


@contextlib.contextmanager
def hold_driver_lock(
    folder: Path, on: str, take_over: bool = False, stages: tuple[str, ...] = ()
) -> Iterator[Driver]:
    """Hold the driver lock of the sweep in `folder` during the block.

    Raises FolderInUseError, naming the other driver, unless that one is dead or `take_over` is set.
    A driver whose lock was taken over learns it from `check_driver`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    me = replace(_this_process(on), stages=stages)
    while not _create_lock(folder / LOCK, me):
        other = read_driver(folder)
        if other is None:
            continue  # the other driver released the lock just now
        if not take_over and _is_alive(folder, other):
            raise FolderInUseError(
                f"{folder} is driven by {other}, last heartbeat {_age(folder):.0f} s ago. "
                "Watch it with `var-scaling status`, stop it there, or replace it with "
                "--take-over: its jobs keep running"
            )
        _remove_lock(folder, other)
    ended = threading.Event()
    # In a thread, so that no long step of the driver delays the heartbeat.
    thread = threading.Thread(target=_send_heartbeats, args=(folder, me, ended), daemon=True)
    thread.start()
    try:
        yield me
    finally:
        ended.set()
        thread.join()
        # After a take-over, the file is the lock of another driver.
        if holds_lock(folder, me):
            (folder / LOCK).unlink(missing_ok=True)


def read_driver(folder: Path) -> Driver | None:
    """The driver that the lock in `folder` names, dead or alive; None without a lock."""
    try:
        return Driver(**read_json(folder / LOCK))
    except FileNotFoundError:
        return None


def live_driver(folder: Path) -> Driver | None:
    """The live driver of the sweep in `folder`; None if there is none."""
    driver = read_driver(folder)
    return driver if driver is not None and _is_alive(folder, driver) else None


def holds_lock(folder: Path, me: Driver) -> bool:
    driver = read_driver(folder)
    return driver is not None and driver.token == me.token


def check_driver(folder: Path, me: Driver) -> None:
    """Raise FolderInUseError if another driver has taken over the lock of `me`."""
    if not holds_lock(folder, me):
        other = read_driver(folder) or "no process"
        raise FolderInUseError(f"{folder} is now driven by {other}: this driver exits")


def _this_process(on: str) -> Driver:
    return Driver(
        uuid.uuid4().hex, os.getpid(), socket.gethostname(), _boot(), _born(os.getpid()) or "",
        time.strftime("%F %T"), on, _realm(),
    )  # fmt: skip


def _create_lock(path: Path, me: Driver) -> bool:
    """Create the lock file; False if it exists. `link` is atomic, on NFS too."""
    temporary_path = path.with_name(f".{path.name}.{me.token}")
    # Written before it is linked, so that no process reads a half-written lock.
    temporary_path.write_text(json.dumps(vars(me), indent=1) + "\n")
    try:
        os.link(temporary_path, path)
    except FileExistsError:
        return False
    finally:
        temporary_path.unlink()
    return True


def _remove_lock(folder: Path, other: Driver) -> None:
    """Remove the lock of `other`. If several processes try, one of them succeeds."""
    moved_lock = folder / f".{LOCK}.{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):
        # `rename` is atomic: of several processes, one moves the file, the others get an error.
        os.rename(folder / LOCK, moved_lock)
        # If another process was faster, this is its new lock: put it back.
        if read_json(moved_lock)["token"] != other.token:
            with contextlib.suppress(FileExistsError):
                os.link(moved_lock, folder / LOCK)
        moved_lock.unlink()


def _is_alive(folder: Path, other: Driver) -> bool:
    this_machine = (socket.gethostname(), _boot(), _realm())
    if (other.host, other.boot, other.realm) == this_machine:  # the pid can be looked up
        return _born(other.pid) == other.born
    return _age(folder) < _DEAD_AFTER


def _age(folder: Path) -> float:
    """Seconds since the last heartbeat. Both times are by the file server's clock."""
    # The clocks of two machines may differ: take the time from a new file on the same disk.
    now = folder / f".now.{uuid.uuid4().hex}"
    now.touch()
    try:
        return max(0.0, now.stat().st_mtime - (folder / LOCK).stat().st_mtime)
    except FileNotFoundError:
        return float("inf")
    finally:
        now.unlink()


def _send_heartbeats(folder: Path, me: Driver, ended: threading.Event) -> None:
    while not ended.wait(_HEARTBEAT_SECONDS):
        # A network disk may fail for a moment: one missed heartbeat is no reason to end the driver.
        with contextlib.suppress(OSError):
            if holds_lock(folder, me):
                os.utime(folder / LOCK)


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _realm() -> str:
    return f"{os.getuid()} {os.stat('/proc/self/ns/pid').st_ino}"


def _born(pid: int) -> str | None:
    """When process `pid` started, in clock ticks since boot; None if it has ended."""
    # The second field, the name in parentheses, may contain spaces and parentheses. After it come
    # the state (Z: a zombie, which has ended) and, at 19, `starttime`: see proc(5).
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] != "Z" else None


def _read(path: str) -> str:
    """The text of a file in /proc; "" if there is none, as after the end of a process."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
