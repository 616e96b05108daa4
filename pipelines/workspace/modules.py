"""User modules that define a family or a dataset: find them, and make jobs able to import them."""

import hashlib
import importlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from var_scaling.datasets import KINDS
from var_scaling.models.registry import FAMILIES


def module_names(records: Iterable[Any]) -> list[str]:
    """The names of families and dataset kinds in trials, models and tokenizers, each once."""
    names = []
    for record in records:
        names += [record.model.family] if hasattr(record, "model") else []
        # A tokenizer has data of its own, which may differ from the trial's.
        owners = (record, getattr(record, "tokenizer", None))
        data = [getattr(owner, "data", None) for owner in owners]
        names += [each.kind for each in data if each is not None]
    return list(dict.fromkeys(names))


def user_modules(names: Iterable[str]) -> tuple[Path, ...]:
    """The file, or the package folder, of each module that is not part of this project."""
    external = (name for name in names if name not in FAMILIES and name not in KINDS)
    return tuple(dict.fromkeys(_source(name) for name in external))


def export_python_path(names: Iterable[str]) -> None:
    """Add the folders of user modules to PYTHONPATH, so that child processes can import them.

    They come last, so that they do not hide modules of this project.
    """
    folders = [str(source.parent) for source in user_modules(names)]
    present = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    if new := [folder for folder in dict.fromkeys(folders) if folder not in present]:
        os.environ["PYTHONPATH"] = os.pathsep.join([*present, *new])


def copy_modules(folder: Path, modules: Iterable[Path]) -> None:
    """Copy the modules into `folder`, from which jobs import them."""
    for source in modules:
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("*.pyc"))
        else:
            shutil.copy2(source, folder / source.name)


def fingerprint(modules: Iterable[Path]) -> str:
    """Eight hex digits of a hash of the modules' source; "" without modules."""
    digest = hashlib.sha256()
    files = [
        path
        for source in modules
        for path in (sorted(source.rglob("*.py")) if source.is_dir() else [source])
    ]
    # \0 separates the name from the content: it occurs in no file name.
    for path in files:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:8] if files else ""


def _source(name: str) -> Path:
    file = importlib.import_module(name).__file__  # importable, because the record could be read
    assert file is not None
    path = Path(file).resolve()
    if name.count(".") == 0 and path.name != "__init__.py":
        return path
    # Module a.b.c in a/b/c.py has two dots, and the folder a is parents[1] of the file. Package a.b
    # in a/b/__init__.py has one dot, and a is parents[1] too.
    return path.parents[name.count(".") - (path.name != "__init__.py")]  # the top package
