"""A private Ray session on this machine, in a temporary directory that is removed afterwards.

Ray unpickles and runs whatever it receives, so a user who can connect to it can run code as this
user. Every port is bound to 127.0.0.1, but all users of the machine can connect to that address.
Therefore each request must carry a token that only this user can read.
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

from pipelines.workspace.store import FolderInUseError, file_lock

_PREFIX = "vs-ray-"
# The kernel allows at most 107 bytes for the path of a socket. To the chosen folder are appended
# /vs-ray-12345678/r (18) and /session_2026-11-26_18-07-12_219432_4194304/sockets/plasma_store (64).
_MAX_PATH_BYTES = 107 - 18 - 64
_SOCKET_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_PORT_WAIT = "RAY_gcs_server_port_wait_time_s"
_LONG_TIMEOUT = 180  # seconds for each step of the second start; Ray's defaults are 30 and 60


class RayNotStarted(OSError):
    """Ray does not start on this machine; the message says what was tried and what to set."""


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """Run Ray during the block: offline, without telemetry, accessible to this user only.

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
    """Create a directory of mode 0700 with a short path, and remove it after the block. Directories
    left by killed runs are removed too. Raises RayNotStarted if no folder is suitable.
    """
    parent = _socket_folder()
    _remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with file_lock(folder):  # as long as it is locked, no other run removes it
            yield folder
    finally:
        _end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _socket_folder() -> Path:
    """The first of TMPDIR and _SOCKET_FOLDERS that is writable and has a path short enough for
    Ray's sockets. Raises RayNotStarted.
    """
    candidates = [tempfile.gettempdir(), *_SOCKET_FOLDERS]
    for folder in dict.fromkeys(os.path.realpath(candidate) for candidate in candidates):
        short = len(os.fsencode(folder)) <= _MAX_PATH_BYTES
        if short and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise RayNotStarted(
        "Ray needs a writable directory for its sockets, with a path of at most "
        f"{_MAX_PATH_BYTES} bytes; tried {', '.join(dict.fromkeys(candidates))}. "
        "Set TMPDIR to such a directory"
    )


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories in `parent` that killed runs of this user left."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # FolderInUseError: the run still works. OSError: another run removes it at the same moment.
        with suppress(OSError, FolderInUseError):
            # In /tmp, other users can create folders, and links to any folder, with this prefix.
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with file_lock(folder):
                _end_processes(folder)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Set the environment variables of Ray and its workers; restore the old values afterwards."""
    token = folder / "token"
    # The mode is set on creation, so that the token is never readable by others. O_EXCL refuses a
    # file that is already there.
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(_TOKEN)
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: bind to 127.0.0.1 only
        # Stages reserve CPUs only; Ray must not hide the GPUs from them.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    # RAY_AUTH_TOKEN and RAY_ADDRESS of the user may belong to another Ray cluster.
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


_TOKEN = secrets.token_hex(32)  # the same for all sessions of this process: Ray reads it only once


def _start(folder: Path, cpus: int) -> None:
    """Start Ray; if that fails, try once more with longer timeouts. Raises RayNotStarted."""
    try:
        _init(folder, cpus)
        return
    except Exception as error:  # noqa: BLE001 - Ray raises bare Exceptions
        first_error = error
    _end_processes(folder)
    time.sleep(1)
    try:
        with _longer_timeouts():
            _init(folder, cpus)
    except Exception as error:
        _end_processes(folder)
        load = os.getloadavg()[0]
        raise RayNotStarted(
            f"Ray did not start, neither with its default timeouts ({_first_line(first_error)}) "
            f"nor with {_LONG_TIMEOUT} s for each step ({_first_line(error)}). The machine has a "
            f"load of {load:.1f} on {os.cpu_count()} cores, and {folder.parent} has "
            f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB free. Run again when the load is "
            "lower, with fewer [local] cpus in var-scaling.toml, or with TMPDIR on another disk"
        ) from error


def _init(folder: Path, cpus: int) -> None:
    import ray

    # Ray opens its directory to all users; the private directory around it protects it.
    ray_folder = folder / "r"
    ray_folder.mkdir(exist_ok=True)
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            logging_level="ERROR",
            log_to_driver=False,
            object_store_memory=100 * 2**20,  # bytes; small, because stages pass data on disk
            _temp_dir=str(ray_folder),
        )
    except BaseException:
        # Also after Ctrl-C: a start that was interrupted leaves processes of Ray.
        ray.shutdown()
        raise


@contextmanager
def _longer_timeouts() -> Iterator[None]:
    """Make Ray wait longer for its own processes. Two of the three timeouts have no setting, so
    this patches Ray.
    """
    from ray._private import ray_constants, services

    patched: list[tuple[Any, str, Any]] = [
        (ray_constants, "GCS_SERVER_REQUEST_TIMEOUT_SECONDS", _LONG_TIMEOUT),
        (services, "get_node", _with_retries(services.get_node)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in patched]
    os.environ[_PORT_WAIT] = str(_LONG_TIMEOUT)
    for module, name, value in patched:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _with_retries(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """`get_node`, retried every second until the node has registered, or for _LONG_TIMEOUT."""

    def call(*arguments: Any) -> Any:
        deadline = time.monotonic() + _LONG_TIMEOUT
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1)

    return call


def _end_processes(folder: Path) -> None:
    """Kill the remaining processes of the Ray session in `folder`: those of this user that have
    the folder in their command line.
    """
    killed = []
    for process in psutil.process_iter(["uids", "cmdline"]):
        uids, arguments = process.info["uids"], process.info["cmdline"] or []
        ours = uids is not None and uids.real == os.getuid() and process.pid != os.getpid()
        # The slash, so that a folder whose name begins with this one does not match.
        if ours and any(f"{folder}/" in arg or arg.endswith(str(folder)) for arg in arguments):
            with suppress(psutil.Error):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=5)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
