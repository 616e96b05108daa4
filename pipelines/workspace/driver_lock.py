"""The one driver of a sweep: a lock that says whose it is, shows life, and can be broken.

Kernel locks do not reach across login nodes on every shared disk; a file made by `link` does. Its
modification time, by the file server's clock, is the heartbeat.
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

from pipelines.workspace.store import Busy
from var_scaling.disk import read_json

LOCK = "driver.json"
_BEAT = 5.0
_DEAD_AFTER = 120.0  # seconds without a heartbeat from another machine


@dataclass(frozen=True)
class Driver:
    """Who drives, from where, since when."""

    token: str
    pid: int
    host: str
    boot: str
    born: str  # when the process started: pids are given out again
    since: str
    on: str  # "local", or the cluster
    realm: str = ""  # user and process namespace: elsewhere the same number is another process
    stages: tuple[str, ...] = ()  # the addresses of all that it drives

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}, on {self.on}, since {self.since}"


@contextlib.contextmanager
def driving(
    folder: Path, on: str, take_over: bool = False, stages: tuple[str, ...] = ()
) -> Iterator[Driver]:
    """Be the one driver of the sweep in `folder`.

    Raises Busy, naming the other, unless that one is dead or `take_over`. A driver whose lock was
    taken notices in `still_driving`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    me = replace(_myself(on), stages=stages)
    while not _made(folder / LOCK, me):
        other = owner(folder)
        if other is None:
            continue  # it left just now
        if not take_over and _alive(folder, other):
            raise Busy(
                f"{folder} is driven by {other}, last heartbeat {_age(folder):.0f} s ago. "
                "Watch it with `var-scaling status`, stop it there, or put yourself in its place "
                "with --take-over: its jobs stay"
            )
        _break(folder, other)
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(folder, me, ended), daemon=True)
    thread.start()
    try:
        yield me
    finally:
        ended.set()
        thread.join()
        if is_mine(folder, me):
            (folder / LOCK).unlink(missing_ok=True)


def owner(folder: Path) -> Driver | None:
    """Who drives the sweep in `folder`, dead or alive."""
    try:
        return Driver(**read_json(folder / LOCK))
    except FileNotFoundError:
        return None


def alive(folder: Path) -> Driver | None:
    """Who drives the sweep in `folder` now."""
    other = owner(folder)
    return other if other is not None and _alive(folder, other) else None


def is_mine(folder: Path, me: Driver) -> bool:
    other = owner(folder)
    return other is not None and other.token == me.token


def still_driving(folder: Path, me: Driver) -> None:
    """Raise Busy if another driver has taken the place of `me`."""
    if not is_mine(folder, me):
        raise Busy(f"{folder} is now driven by {owner(folder) or 'no process'}: this driver exits")


def _myself(on: str) -> Driver:
    return Driver(
        uuid.uuid4().hex, os.getpid(), socket.gethostname(), _boot(), _born(os.getpid()) or "",
        time.strftime("%F %T"), on, _realm(),
    )  # fmt: skip


def _made(path: Path, me: Driver) -> bool:
    """Whether the lock is now ours; a link is made by one process only, on NFS too."""
    beside = path.with_name(f".{path.name}.{me.token}")
    beside.write_text(json.dumps(vars(me), indent=1) + "\n")
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True


def _break(folder: Path, other: Driver) -> None:
    """Take the lock of `other` away; of several that try, one moves it."""
    aside = folder / f".{LOCK}.{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder / LOCK, aside)
        if read_json(aside)["token"] != other.token:  # another was quicker, and this is its lock
            with contextlib.suppress(FileExistsError):
                os.link(aside, folder / LOCK)
        aside.unlink()


def _alive(folder: Path, other: Driver) -> bool:
    here = (socket.gethostname(), _boot(), _realm())
    if (other.host, other.boot, other.realm) == here:
        return _born(other.pid) == other.born
    return _age(folder) < _DEAD_AFTER


def _age(folder: Path) -> float:
    """Seconds since the last heartbeat, both times by the clock of the disk."""
    now = folder / f".now.{uuid.uuid4().hex}"
    now.touch()
    try:
        return max(0.0, now.stat().st_mtime - (folder / LOCK).stat().st_mtime)
    except FileNotFoundError:
        return float("inf")
    finally:
        now.unlink()


def _beat(folder: Path, me: Driver, ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with contextlib.suppress(OSError):
            if is_mine(folder, me):
                os.utime(folder / LOCK)


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _realm() -> str:
    return f"{os.getuid()} {os.stat('/proc/self/ns/pid').st_ino}"


def _born(pid: int) -> str | None:
    """When process `pid` started, in ticks since boot; None where it is gone, or a zombie."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] != "Z" else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
