"""Families in modules of the user's own: where they lie, and how other processes find them."""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from var_scaling.models.registry import FAMILIES, family_named


def sources(families: Iterable[str]) -> tuple[Path, ...]:
    """The file, or the package's folder, of each family that is not one of this project's."""
    return tuple(dict.fromkeys(_source(name) for name in families if name not in FAMILIES))


def share_paths(families: Iterable[str]) -> None:
    """Let the processes that this one starts import the same modules, ours before theirs."""
    folders = [str(source.parent) for source in sources(families)]
    known = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    if new := [folder for folder in dict.fromkeys(folders) if folder not in known]:
        os.environ["PYTHONPATH"] = os.pathsep.join([*known, *new])


def copy_into(folder: Path, modules: Iterable[Path]) -> None:
    """Put the modules into `folder`, from where jobs import them."""
    for source in modules:
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("*.pyc"))
        else:
            shutil.copy2(source, folder / source.name)


def fingerprint(modules: Iterable[Path]) -> str:
    """Eight hex digits of what the modules contain; "" without any."""
    found = hashlib.sha256()
    files = [
        path
        for source in modules
        for path in (sorted(source.rglob("*.py")) if source.is_dir() else [source])
    ]
    for path in files:
        found.update(f"{path.name}\0".encode() + path.read_bytes())
    return found.hexdigest()[:8] if files else ""


def _source(name: str) -> Path:
    family_named(name)  # raises, in words, where it cannot be imported
    file = sys.modules[name].__file__
    assert file is not None
    whole = Path(file).resolve()
    if name.count(".") == 0 and whole.name != "__init__.py":
        return whole
    return whole.parents[name.count(".") - (whole.name != "__init__.py")]
