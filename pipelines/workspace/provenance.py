"""What code, packages and machine made a number: one entry for each attempt."""

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

ROOMS = ("var_scaling", "pipelines", "analysis", "sweeps")  # where the code is
SNAPSHOT = "snapshot.json"  # marks code that was put aside for jobs, and says what it is
_PACKAGES = ("torch", "numpy", "ray", "mlflow", "pydantic", "Pillow")


def note_attempt(folder: Path, threads: int, facts: dict[str, Any] | None = None) -> int:
    """Add this attempt to `folder`/provenance.json, with what else is known of it; its number."""
    before = attempts(folder)
    here = {"started": time.strftime("%F %T %z"), "threads": threads, "pid": os.getpid()}
    _keep(folder, [*before, {**here, **(facts or {}), **surroundings()}])
    return len(before) + 1


def revise_attempt(folder: Path, which: int, facts: dict[str, Any]) -> None:
    """Add to what is known of an earlier attempt."""
    known = attempts(folder)
    if len(known) >= abs(which):
        known[which] |= facts
        _keep(folder, known)


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Every attempt at the stage in `folder`, oldest first."""
    path = folder / "provenance.json"
    return list(read_json(path)["attempts"]) if path.exists() else []


def lost(folder: Path) -> tuple[int, float]:
    """(steps, seconds of training) that attempts did after their last checkpoint, and lost."""
    known = attempts(folder)
    steps = sum(attempt.get("lost_steps", 0) for attempt in known)
    return steps, sum(attempt.get("lost_seconds", 0.0) for attempt in known)


def _keep(folder: Path, known: list[dict[str, Any]]) -> None:
    write_json(folder / "provenance.json", {"attempts": known})


def commit_of(folder: Path) -> str | None:
    """The commit of the latest attempt in `folder`; with + where the tree was dirty."""
    known = attempts(folder)
    return known[-1]["commit"] if known else None


@lru_cache(maxsize=1)
def surroundings() -> dict[str, Any]:
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
    """The commit that this code is at, `+` appended if files differ from it; None outside git."""
    root = Path(__file__).parents[2]
    if (root / SNAPSHOT).exists():
        return str(read_json(root / SNAPSHOT)["code"])
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git(root, "status", "--porcelain", "--", *ROOMS) else "")


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
