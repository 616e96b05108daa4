"""`doctor`: check that this machine or a cluster has what a run needs, and say how to fix it.

A failed check is a result, not an error. Probe files are removed; nothing else is written.
"""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from pipelines.execution.checks import TORCH, CheckResult, check_torch, run_program
from pipelines.execution.slurm import doctor as doctor_cluster
from pipelines.workspace.provenance import CODE_FOLDERS, code_version
from pipelines.workspace.settings import FILE, Cluster, Settings
from pipelines.workspace.snapshot import ROOT
from pipelines.workspace.store import Home
from pipelines.workspace.sweeps import known_sweeps

_GB = 1e9
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


def examine(home: Home, settings: Settings, on: str) -> list[CheckResult]:
    """Check everything that a run on `on` needs. Raises SettingsError for an unknown cluster."""
    cluster = None if on == "local" else settings.cluster(on)
    created = [p for p in (home.root, *home.root.parents) if not os.path.lexists(p)]
    try:
        results = [_file(settings), *_data(settings), *_home(home), _mlflow(home, settings)]
        results.append(_code(cluster))
        if cluster is None:
            return [*results, *_local(settings)]
        return [*results, *doctor_cluster.check_cluster(home, settings, cluster)]
    finally:  # remove the folders that the checks created
        # The deepest first. `rmdir` fails, as intended, if a folder is no longer empty.
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _file(settings: Settings) -> CheckResult:
    path = Path(os.environ.get("VAR_SCALING_SETTINGS", FILE)).absolute()
    if not path.exists():
        return CheckResult(
            "settings", None, f"{path} does not exist: data and clusters are configured there"
        )
    clusters = ", ".join(settings.clusters) or "none; add [clusters.NAME] with its partition"
    return CheckResult("settings", True, f"{path}; clusters: {clusters}")


def _data(settings: Settings) -> Iterator[CheckResult]:
    folder = os.environ.get("VAR_SCALING_DATA")
    if folder and not os.path.isdir(os.path.expanduser(folder)):
        message = f"{folder}: no such folder; create it, or unset the variable"
        yield CheckResult("VAR_SCALING_DATA", False, message)
    sweep_of = dict.fromkeys(settings.data, "")  # data set -> a sweep that needs it
    for sweep in known_sweeps():
        for trial in sweep.trials:
            if trial.data.reads_files:
                sweep_of.setdefault(trial.data.name, sweep.name)
    for name, sweep_name in sweep_of.items():
        root = settings.data_root(name)
        if root is None:
            message = (
                f"not configured; sweep {sweep_name} needs it: write "
                f'[data] {name} = "/path" in {FILE}'
            )
            yield CheckResult(f"data {name}", None, message)
        else:
            yield CheckResult(f"data {name}", *_images(root, name))
    for key, path in settings.weights.files():
        readable = os.access(path, os.R_OK) and path.is_file()
        message = str(path) if readable else f"{path}: no readable file; fix [weights] in {FILE}"
        yield CheckResult(f"weights {key}", readable, message)


def _images(root: Path, name: str) -> tuple[bool, str]:
    """(ok, message) on the images in `root`, from its first files only."""
    if not root.is_dir():
        return False, f'{root}: no such folder; write [data] {name} = "/path" in {FILE}'
    try:
        first = _first_file(root)
        if first is None:
            reason = "no image or Parquet files among the first entries: is this the folder?"
            return False, f"{root}: {reason}"
        with open(first, "rb") as file:
            start = file.read(4)
    except OSError as error:
        return (
            False,
            f"{error.filename}: {error.strerror}; the user that runs jobs must be able to read it",
        )
    path = first.relative_to(root)
    if path.suffix == ".parquet":
        valid = start == b"PAR1"  # the first bytes of every Parquet file
        return valid, f"{root}: Parquet, " + (
            f"such as {path}" if valid else f"but {path} is damaged: download it again"
        )
    if len(path.parts) == 1:
        return False, f"{root}: images without a class; put the images of each class in a subfolder"
    return bool(start), f"{root}: folders of images, such as {path}" + (
        "" if start else ", which is empty: download it again"
    )


def _first_file(folder: Path, depth: int = 4) -> Path | None:
    """A Parquet or image file below `folder`. Only some entries are read: there may be millions."""
    first_entries = []
    with os.scandir(folder) as entries:
        for _, entry in zip(range(200), entries, strict=False):
            if not entry.name.startswith("."):
                first_entries.append(entry)
    names = sorted(entry.name for entry in first_entries)
    for kinds in ((".parquet",), _PICTURES):
        for name in names:
            if name.lower().endswith(kinds):
                return folder / name
    folders = sorted(entry.name for entry in first_entries if entry.is_dir()) if depth else []
    paths = (_first_file(folder / name, depth - 1) for name in folders[:8])
    return next((path for path in paths if path is not None), None)


def _home(home: Home) -> Iterator[CheckResult]:
    """Try every file operation that drivers and jobs use in the home. Some disks lack one: Lustre
    mounted without -o flock, for example, has no locks.
    """
    root, step = home.root, "creating it"
    probe = root / f".doctor-{uuid.uuid4().hex}"
    renamed = probe.with_suffix(".other")
    try:
        root.mkdir(parents=True, exist_ok=True)
        # atomic_write renames, file_lock uses flock, and the driver lock needs hard links.
        step = "writing"
        with open(probe, "w") as file:
            file.write("doctor\n")
            step = "locking a file (flock)"
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        step = "renaming"
        os.replace(probe, renamed)
        step = "creating a hard link"
        os.link(renamed, probe)
    except OSError as error:
        message = f"{root}: {step} fails ({error.strerror}): give --home a folder where it works"
        yield CheckResult("home", False, message)
        return
    finally:
        for path in (probe, renamed):
            with contextlib.suppress(OSError):
                path.unlink()
    yield CheckResult("home", True, f"{root} can be written")
    free = shutil.disk_usage(root).free / _GB
    advice = {
        True: "",
        None: "; checkpoints and tokens of a large sweep need more",
        False: ": free some space, or give --home a folder on another disk",
    }
    ok = False if free < 1 else None if free < 50 else True
    message = f"{free:,.1f} GB are free for {root} (a quota may allow less){advice[ok]}"
    yield CheckResult("disk", ok, message)


def _mlflow(home: Home, settings: Settings) -> CheckResult:
    if settings.mlflow.uri is not None:
        return CheckResult("MLflow", *_mlflow_server(settings.mlflow.uri))
    path = home.root / "mlflow.db"
    if not path.exists():
        return CheckResult("MLflow", True, f"{path} will be created")
    # Read-only: a run may be writing to it. quick_check(1) ends at the first error that it finds.
    address = f"file:{quote(str(path))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=5)) as database:
            status = str(database.execute("pragma quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        status = str(error)
    if status == "ok":
        return CheckResult("MLflow", True, f"{path} is intact")
    if "locked" in status:
        return CheckResult("MLflow", None, f"{path} is being written to: check again later")
    fix = "move it away; `var-scaling mirror SWEEP` then fills a new one from the disk"
    return CheckResult("MLflow", False, f"{path} cannot be read ({status}): {fix}")


def _mlflow_server(uri: str) -> tuple[bool | None, str]:
    """(ok, message) on the MLflow server at `uri`."""
    parts = urlsplit(uri)
    # The address without user and password, which must not be printed.
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    if parts.scheme not in ("http", "https"):
        return None, f"{address} is not checked: only http(s) servers are"
    fix = (
        "start that server or fix [mlflow] uri; runs continue without it, and `var-scaling mirror` "
        "adds them later"
    )
    try:
        with urlopen(f"{address.rstrip('/')}/health", timeout=5):
            return True, f"{address} answers"
    except HTTPError as error:
        # The check sends no password, so a server with a login refuses it even if it works.
        if error.code in (401, 403):
            login = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or _TOKEN"
            return None, f"{address} requires a login ({error}): {login}"
        return False, f"{address}/health returns {error}: {fix}"
    except (OSError, HTTPException, ValueError) as error:
        return False, f"{address} does not answer ({error}): {fix}"


def _code(cluster: Cluster | None) -> CheckResult:
    """Whether the code is a git checkout without changes; only cluster jobs need a commit."""
    version = code_version()
    if version is None:
        reason = run_program("git", "-C", str(ROOT), "status").stderr.strip() or "it has no commit"
        message = (
            f"{ROOT} is not a git checkout ({reason}); cluster jobs run a commit: use git clone"
        )
        return CheckResult("code", None if cluster is None else False, message)
    if not version.endswith("+"):
        return CheckResult("code", True, f"commit {version}")
    changed = run_program(
        "git", "-C", str(ROOT), "status", "--porcelain", "-uall", "--", *CODE_FOLDERS
    ).stdout
    # Porcelain lines begin with two state letters and a space.
    names = [line[3:] for line in changed.splitlines()]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    message = f"commit {version.rstrip('+')}, but changed: {', '.join(names[:5])}{more}; commit "
    return CheckResult("code", None, message + "that, or launch on a cluster with --dirty")


def _local(settings: Settings) -> list[CheckResult]:
    configured, present = settings.local.cpus, _cpus()
    message = f"cpus = {configured}; this machine has {present}"
    if configured > present:
        message += f": stages would slow each other down; set [local] cpus = {present} in {FILE}"
    # In a process of its own: a torch that crashes while it loads must not end `doctor`.
    result = run_program(sys.executable, "-c", TORCH, seconds=120)
    return [
        CheckResult("cpus", True if configured <= present else None, message),
        CheckResult("torch", *check_torch(result, settings.local.device, 0.0)),
    ]


def _cpus() -> int:
    """CPUs that this process may use; in a container or a job these may be fewer than exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
