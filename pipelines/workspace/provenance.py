"""provenance.json: the code, packages and machine of each attempt at a stage."""

import os
import platform
import socket
import subprocess
import time
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from var_scaling.disk import read_json, write_json

CODE_FOLDERS = ("var_scaling", "pipelines", "analysis", "sweeps")  # the folders that hold code
SNAPSHOT = "snapshot.json"  # in a copy of the code for jobs: which version it is
_PACKAGES = ("torch", "numpy", "ray", "mlflow", "pydantic", "Pillow")


def record_attempt(folder: Path, threads: int, facts: dict[str, Any] | None = None) -> int:
    """Add this attempt, with `facts`, to `folder`/provenance.json; returns its number from 1."""
    before = attempts(folder)
    process = {"started": time.strftime("%F %T %z"), "threads": threads, "pid": os.getpid()}
    _write(folder, [*before, {**process, **(facts or {}), **environment()}])
    return len(before) + 1


def update_attempt(folder: Path, which: int, facts: dict[str, Any]) -> None:
    """Add `facts` to the attempt with index `which`; does nothing if there is no such attempt."""
    recorded = attempts(folder)
    if len(recorded) >= abs(which):
        recorded[which] |= facts
        _write(folder, recorded)


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Every attempt at the stage in `folder`, oldest first."""
    path = folder / "provenance.json"
    return list(read_json(path)["attempts"]) if path.exists() else []


def lost_work(recorded: list[dict[str, Any]]) -> tuple[int, float]:
    """(steps, seconds) of training that attempts did after their last checkpoint, and so lost."""
    steps = sum(attempt.get("lost_steps", 0) for attempt in recorded)
    return steps, sum(attempt.get("lost_seconds", 0.0) for attempt in recorded)


def _write(folder: Path, entries: list[dict[str, Any]]) -> None:
    write_json(folder / "provenance.json", {"attempts": entries})


def commit_of(recorded: list[dict[str, Any]]) -> str | None:
    """The commit of the latest attempt, with "+" if the working tree was dirty."""
    return recorded[-1]["commit"] if recorded else None


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    return {
        "commit": code_version(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


@lru_cache(maxsize=1)
def code_version() -> str | None:
    """The commit of this code, with "+" if files differ from it; None outside git."""
    root = Path(__file__).parents[2]
    # Jobs run a copy of the code, which is not a git checkout.
    if (root / SNAPSHOT).exists():
        return str(read_json(root / SNAPSHOT)["code"])
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git(root, "status", "--porcelain", "--", *CODE_FOLDERS) else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
