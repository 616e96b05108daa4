"""Whether what a run needs is there, here or on a cluster, and what to do where it is not.

A check that fails is a finding, not an error. Probe files go again; nothing else is written.
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

from pipelines.execution.checks import TORCH, CheckResult, ask, torch_sees
from pipelines.execution.slurm import doctor as doctor_cluster
from pipelines.workspace.provenance import ROOMS, code_version
from pipelines.workspace.settings import FILE, Cluster, Settings
from pipelines.workspace.snapshot import ROOT
from pipelines.workspace.store import Home
from pipelines.workspace.sweeps import known_sweeps

_GB = 1e9
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


def examine(home: Home, settings: Settings, on: str) -> list[CheckResult]:
    """Everything that a run needs on `on`. Raises SettingsError where there is no such cluster."""
    cluster = None if on == "local" else settings.cluster(on)
    absent = [p for p in (home.root, *home.root.parents) if not os.path.lexists(p)]
    try:
        found = [_file(settings), *_data(settings), *_home(home), _mlflow(home, settings)]
        found.append(_code(cluster))
        if cluster is None:
            return [*found, *_here(settings)]
        return [*found, *doctor_cluster.look(home, settings, cluster)]
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _file(settings: Settings) -> CheckResult:
    path = Path(os.environ.get("VAR_SCALING_SETTINGS", FILE)).absolute()
    if not path.exists():
        return CheckResult("settings", None, f"no {path}: data and clusters would be named there")
    named = ", ".join(settings.clusters) or "none; a [clusters.NAME] with its partition adds one"
    return CheckResult("settings", True, f"{path}; clusters: {named}")


def _data(settings: Settings) -> Iterator[CheckResult]:
    under, wanted = os.environ.get("VAR_SCALING_DATA"), dict.fromkeys(settings.data, "")
    if under and not os.path.isdir(os.path.expanduser(under)):
        said = f"{under}: no such folder; make it, or unset the variable"
        yield CheckResult("VAR_SCALING_DATA", False, said)
    for sweep in known_sweeps():
        for trial in sweep.trials:
            if trial.data.reads_files:
                wanted.setdefault(trial.data.name, sweep.name)
    for name, sweep_name in wanted.items():
        root = settings.data_root(name)
        if root is None:
            said = f'not here; {sweep_name} needs it: [data] {name} = "/path" in {FILE}'
            yield CheckResult(f"data {name}", None, said)
        else:
            yield CheckResult(f"data {name}", *_images(root, name))
    for key, path in settings.weights.files():
        readable = os.access(path, os.R_OK) and path.is_file()
        said = str(path) if readable else f"{path}: no readable file; mend [weights] in {FILE}"
        yield CheckResult(f"weights {key}", readable, said)


def _images(root: Path, name: str) -> tuple[bool, str]:
    """What lies in `root`, from its first files alone."""
    if not root.is_dir():
        return False, f'{root}: no such folder; write [data] {name} = "/path" in {FILE}'
    try:
        first = _first_file(root)
        if first is None:
            why = "neither image files nor Parquet among the first entries: is this the folder?"
            return False, f"{root}: {why}"
        with open(first, "rb") as file:
            start = file.read(4)
    except OSError as error:
        return (
            False,
            f"{error.filename}: {error.strerror}; the user who runs jobs must be able to read it",
        )
    shown = first.relative_to(root)
    if shown.suffix == ".parquet":
        return start == b"PAR1", f"{root}: Parquet, " + (
            f"such as {shown}" if start == b"PAR1" else f"but {shown} is none: fetch it again"
        )
    if len(shown.parts) == 1:
        return False, f"{root}: images without a class; put each class into a folder of its own"
    return bool(start), f"{root}: folders of images, such as {shown}" + (
        "" if start else ", which is empty: fetch it again"
    )


def _first_file(folder: Path, depth: int = 4) -> Path | None:
    """A Parquet or image file; few entries are looked at, for there may be millions."""
    some = []
    with os.scandir(folder) as entries:
        for _, entry in zip(range(200), entries, strict=False):
            if not entry.name.startswith("."):
                some.append(entry)
    names = sorted(entry.name for entry in some)
    for kinds in ((".parquet",), _PICTURES):
        for name in names:
            if name.lower().endswith(kinds):
                return folder / name
    folders = sorted(entry.name for entry in some if entry.is_dir()) if depth else []
    found = (_first_file(folder / name, depth - 1) for name in folders[:8])
    return next((path for path in found if path is not None), None)


def _home(home: Home) -> Iterator[CheckResult]:
    """All that drivers and jobs do to files there: Lustre without -o flock knows no locks."""
    root, step = home.root, "making it"
    probe = root / f".doctor-{uuid.uuid4().hex}"
    other = probe.with_suffix(".other")
    try:
        root.mkdir(parents=True, exist_ok=True)
        step = "writing"
        with open(probe, "w") as file:
            file.write("doctor\n")
            step = "locking a file (flock)"
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        step = "renaming"
        os.replace(probe, other)
        step = "a hard link"
        os.link(other, probe)
    except OSError as error:
        said = f"{root}: {step} fails ({error.strerror}): give --home a folder where it works"
        yield CheckResult("home", False, said)
        return
    finally:
        for path in (probe, other):
            with contextlib.suppress(OSError):
                path.unlink()
    yield CheckResult("home", True, f"{root} can be written")
    free = shutil.disk_usage(root).free / _GB
    advice = {
        True: "",
        None: "; checkpoints and tokens of a large sweep need more",
        False: ": make room, or give --home another disk",
    }
    good = False if free < 1 else None if free < 50 else True
    said = f"{free:,.1f} GB are free for {root} (a quota may allow less){advice[good]}"
    yield CheckResult("disk", good, said)


def _mlflow(home: Home, settings: Settings) -> CheckResult:
    if settings.mlflow.uri is not None:
        return CheckResult("MLflow", *_answers(settings.mlflow.uri))
    path = home.root / "mlflow.db"
    if not path.exists():
        return CheckResult("MLflow", True, f"{path} will be made")
    address = f"file:{quote(str(path))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=5)) as database:
            said = str(database.execute("pragma quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said == "ok":
        return CheckResult("MLflow", True, f"{path} is whole")
    if "locked" in said:
        return CheckResult("MLflow", None, f"{path} is being written to: look again later")
    mend = "move it away, and `var-scaling mirror SWEEP` fills a new one from the disk"
    return CheckResult("MLflow", False, f"{path} cannot be read ({said}): {mend}")


def _answers(uri: str) -> tuple[bool | None, str]:
    parts = urlsplit(uri)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # without a password
    if parts.scheme not in ("http", "https"):
        return None, f"{shown} is not asked: only http(s) servers are"
    mend = "start that server or mend [mlflow] uri; runs go on without, and `mirror` catches up"
    try:
        with urlopen(f"{shown.rstrip('/')}/health", timeout=5):
            return True, f"{shown} answers"
    except HTTPError as error:
        if error.code in (401, 403):
            login = "MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN, are for that"
            return None, f"{shown} wants a login ({error}): {login}"
        return False, f"{shown}/health says {error}: {mend}"
    except (OSError, HTTPException, ValueError) as error:
        return False, f"{shown} does not answer ({error}): {mend}"


def _code(cluster: Cluster | None) -> CheckResult:
    version = code_version()
    if version is None:
        why = ask("git", "-C", str(ROOT), "status").stderr.strip() or "it has no commit"
        said = f"{ROOT} is no git checkout ({why}); jobs of a cluster are given a commit: git clone"
        return CheckResult("code", None if cluster is None else False, said)
    if not version.endswith("+"):
        return CheckResult("code", True, f"commit {version}")
    changed = ask("git", "-C", str(ROOT), "status", "--porcelain", "-uall", "--", *ROOMS).stdout
    names = [line[3:] for line in changed.splitlines()]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    said = f"commit {version.rstrip('+')}, but changed: {', '.join(names[:5])}{more}; commit that, "
    return CheckResult("code", None, said + "or a launch on a cluster wants --dirty")


def _here(settings: Settings) -> list[CheckResult]:
    asked, present = settings.local.cpus, _cpus()
    said = f"cpus = {asked}, of {present} here"
    if asked > present:
        said += f": stages would crowd each other; [local] cpus = {present} in {FILE}"
    answer = ask(sys.executable, "-c", TORCH, seconds=120)
    return [
        CheckResult("cpus", True if asked <= present else None, said),
        CheckResult("torch", *torch_sees(answer, settings.local.device, 0.0)),
    ]


def _cpus() -> int:
    """Those that this process may use; a container or a job may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
