"""A Ray of our own on this machine: reachable by this user alone, in a directory that goes with it.

Ray runs what it is sent and unpickles what it is given, so anyone who reaches it runs code as this
user. Every port is bound to 127.0.0.1, where all users of a machine meet: each request must carry a
token that only this user can read.
"""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from pipelines.workspace.store import Busy, file_lock

_PREFIX = "vs-ray-"
# The kernel takes at most 107 bytes for the path of a socket. Below the place that is chosen come
# /vs-ray-12345678/r and Ray's /session_2026-11-26_18-07-12_219432_4194304/sockets/plasma_store.
_LONGEST = 107 - 18 - 64
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
_PORT_WAIT = "RAY_gcs_server_port_wait_time_s"
_PATIENCE = 180  # seconds for each part of the second start; Ray's own time-outs are 30 and 60


class RayNotStarted(OSError):
    """Ray does not start here; the message says what was tried and what to set."""


@contextmanager
def ray_here(cpus: int) -> Iterator[None]:
    """Ray for the time of the block: offline, without telemetry, for this user alone.

    Raises RayNotStarted.
    """
    with _private_directory() as folder, _environment(folder):
        _start(folder, cpus)
        import ray

        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _private_directory() -> Iterator[Path]:
    """A new directory of mode 0700 with a short path; removed afterwards, as are those of runs
    that were killed. Raises RayNotStarted if there is no place for one.
    """
    place = _place()
    _remove_abandoned(place)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    try:
        with file_lock(folder):  # while this process lives, the directory is not abandoned
            yield folder
    finally:
        _end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _place() -> Path:
    """The first of TMPDIR and the usual places that takes a short path. Raises RayNotStarted."""
    wanted = [tempfile.gettempdir(), *_PLACES]
    for place in dict.fromkeys(os.path.realpath(one) for one in wanted):
        short = len(os.fsencode(place)) <= _LONGEST
        if short and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            return Path(place)
    raise RayNotStarted(
        f"Ray needs a directory that can be written to, with a path of at most {_LONGEST} bytes, "
        f"for its sockets; tried {', '.join(dict.fromkeys(wanted))}. Set TMPDIR to one"
    )


def _remove_abandoned(place: Path) -> None:
    """Remove the directories in `place` that killed runs of this user have left behind."""
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError, Busy):  # another run of this user removes it at the same moment
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with file_lock(folder):
                _end_processes(folder)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What Ray and its workers read from the environment; as it was before, afterwards."""
    token = folder / "token"
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(_TOKEN)
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the odd name of "bind to 127.0.0.1 only"
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    names = (*ours, "RAY_AUTH_TOKEN", "RAY_ADDRESS", _PORT_WAIT)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


_TOKEN = secrets.token_hex(32)  # one for the life of this process: Ray reads the file only once


def _start(folder: Path, cpus: int) -> None:
    """Start Ray; once more, with more time, if that fails. Raises RayNotStarted."""
    try:
        _init(folder, cpus)
        return
    except Exception as error:  # noqa: BLE001 - Ray raises bare Exceptions
        first = error
    _end_processes(folder)
    time.sleep(1)
    try:
        with _patiently():
            _init(folder, cpus)
    except Exception as error:
        _end_processes(folder)
        load = os.getloadavg()[0]
        raise RayNotStarted(
            f"Ray did not start, neither in its usual time ({_first_line(first)}) nor with "
            f"{_PATIENCE} s for each step ({_first_line(error)}). This machine has a load of "
            f"{load:.1f} on {os.cpu_count()} cores and {folder.parent} has "
            f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB free. Run again when it is quieter; "
            "with fewer [local] cpus in var-scaling.toml; or with TMPDIR set to another disk"
        ) from error


def _init(folder: Path, cpus: int) -> None:
    import ray

    inside = folder / "r"  # Ray opens its directory to all users; the one around it stays closed
    inside.mkdir(exist_ok=True)
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            object_store_memory=100 * 2**20,  # stages pass names, not data
            _temp_dir=str(inside),
        )
    except BaseException:
        ray.shutdown()
        raise


@contextmanager
def _patiently() -> Iterator[None]:
    """Let Ray wait longer for its own parts: two of the three time-outs have no setting."""
    from ray._private import ray_constants, services

    patched: list[tuple[Any, str, Any]] = [
        (ray_constants, "GCS_SERVER_REQUEST_TIMEOUT_SECONDS", _PATIENCE),
        (services, "get_node", _retried(services.get_node)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in patched]
    os.environ[_PORT_WAIT] = str(_PATIENCE)
    for module, name, value in patched:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _retried(ask: Callable[..., Any]) -> Callable[..., Any]:
    """`ask`, again each second until it knows the node or the time is over."""

    def patient(*words: Any) -> Any:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return ask(*words)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1)

    return patient


def _end_processes(folder: Path) -> None:
    """End what is left of the Ray in `folder`: processes of this user that name it."""
    left = []
    for process in psutil.process_iter(["uids", "cmdline"]):
        uids, words = process.info["uids"], process.info["cmdline"] or []
        ours = uids is not None and uids.real == os.getuid() and process.pid != os.getpid()
        if ours and any(f"{folder}/" in word or word.endswith(str(folder)) for word in words):
            with suppress(psutil.Error):
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=5)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
