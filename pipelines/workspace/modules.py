"""Modules of the user's own, with a family or a dataset: where they lie, and who finds them."""

import hashlib
import importlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from var_scaling.datasets import KINDS
from var_scaling.models.registry import FAMILIES


def named_in(things: Iterable[Any]) -> list[str]:
    """The families and kinds of data in records of trials, models and tokenizers, each once."""
    names = []
    for thing in things:
        names += [thing.model.family] if hasattr(thing, "model") else []
        data = [getattr(one, "data", None) for one in (thing, getattr(thing, "tokenizer", None))]
        names += [each.kind for each in data if each is not None]
    return list(dict.fromkeys(names))


def sources(names: Iterable[str]) -> tuple[Path, ...]:
    """The file, or the package's folder, of each that is not one of this project's."""
    own = (name for name in names if name not in FAMILIES and name not in KINDS)
    return tuple(dict.fromkeys(_source(name) for name in own))


def share_paths(names: Iterable[str]) -> None:
    """Let the processes that this one starts import the same modules, ours before theirs."""
    folders = [str(source.parent) for source in sources(names)]
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
    file = importlib.import_module(name).__file__  # the record could be read, so it is there
    assert file is not None
    whole = Path(file).resolve()
    if name.count(".") == 0 and whole.name != "__init__.py":
        return whole
    return whole.parents[name.count(".") - (whole.name != "__init__.py")]
