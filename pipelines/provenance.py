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

_PACKAGES = ("torch", "numpy", "ray", "mlflow", "pydantic", "Pillow")


def note_attempt(folder: Path, threads: int, facts: dict[str, str] | None = None) -> None:
    """Add this attempt to `folder`/provenance.json, with what else is known of it."""
    path = folder / "provenance.json"
    attempts = read_json(path)["attempts"] if path.exists() else []
    here = {"started": time.strftime("%F %T %z"), "threads": threads, "pid": os.getpid()}
    write_json(path, {"attempts": [*attempts, {**here, **(facts or {}), **surroundings()}]})


def commit_of(folder: Path) -> str | None:
    """The commit of the latest attempt in `folder`; with + where the tree was dirty."""
    path = folder / "provenance.json"
    return read_json(path)["attempts"][-1]["commit"] if path.exists() else None


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
    root = Path(__file__).parent.parent
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return commit + ("+" if _git(root, "status", "--porcelain") else "")


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
