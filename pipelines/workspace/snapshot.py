"""Copies of the code for jobs: a job that is requeued later runs the code it was submitted with."""

import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.workspace.modules import copy_modules, fingerprint, user_modules
from pipelines.workspace.provenance import CODE_FOLDERS, SNAPSHOT
from pipelines.workspace.store import Home

ROOT = Path(__file__).parents[2]


class DirtyTree(ValueError):
    """Files differ from the commit; the message lists them."""


@dataclass(frozen=True)
class Snapshot:
    folder: Path  # must be first in PYTHONPATH
    code: str  # the commit, with "+" and a hash if files differ from it


def take_snapshot(home: Home, dirty: bool, modules: Iterable[str] = ()) -> Snapshot:
    """Copy the code, with the user's `modules`, into `home`/code, once per version.

    If files differ from the commit: raises DirtyTree unless `dirty`, else saves the differences as
    a patch. Raises ValueError outside a git checkout.
    """
    if (ROOT / SNAPSHOT).exists():  # the process already runs from a snapshot
        return Snapshot(ROOT, json.loads((ROOT / SNAPSHOT).read_text())["code"])
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=all", "--", *CODE_FOLDERS)
    if changed and not dirty:
        raise DirtyTree(
            "the code differs from its commit, so the run could not be reproduced:\n"
            f"{changed}\nCommit it, or run with --dirty to record the difference."
        )
    tree = _write_working_tree() if changed else "HEAD"
    # The hash of the tree identifies the uncommitted code: equal code gives the same folder.
    code = f"{commit}+{_git('rev-parse', '--short=8', tree)}" if changed else commit
    extra = user_modules(modules)
    if extra:
        code += f"+modules-{fingerprint(extra)}"
    folder = home.root / "code" / code.replace("+", "-")
    if not (folder / SNAPSHOT).exists():
        # Unstripped: a binary hunk ends with an empty line, without which it cannot be applied.
        patch = _git_output("diff", "--binary", "HEAD", tree) if changed else None
        _write(folder, tree, code, patch, extra)
    return Snapshot(folder, code)


def _write_working_tree() -> str:
    """The id of a git tree of the current files. Uses its own index, so the user's is unchanged."""
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": f"{scratch}/index"}
        _git("read-tree", "HEAD", **index)
        _git("add", "-A", "--", *CODE_FOLDERS, **index)
        return _git("write-tree", **index)


def _write(folder: Path, tree: str, code: str, patch: str | None, extra: tuple[Path, ...]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # On the same disk, so that the rename is atomic: a job never imports half a copy.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        temporary_folder = Path(scratch) / folder.name
        archive = Path(scratch) / "code.tar"
        _git("archive", "--format=tar", "-o", str(archive), tree, *CODE_FOLDERS)
        with tarfile.open(archive) as tar:
            tar.extractall(temporary_folder, filter="data")
        copy_modules(temporary_folder, extra)
        if patch is not None:
            (temporary_folder / "changes.patch").write_text(patch)
        (temporary_folder / SNAPSHOT).write_text(json.dumps({"code": code}) + "\n")
        try:
            temporary_folder.rename(folder)
        except OSError:
            if not (folder / SNAPSHOT).exists():  # else another driver wrote it meanwhile
                raise


def _git(*arguments: str, **environment: str) -> str:
    # Not `strip`: the first porcelain line may begin with a space.
    return _git_output(*arguments, **environment).rstrip("\n")


def _git_output(*arguments: str, **environment: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, encoding="utf-8",
            errors="replace", check=True, timeout=60, env={**os.environ, **environment},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ValueError(
            "git is needed to copy the code for jobs, but it is not installed"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"{ROOT}: cannot copy the code for jobs from this git checkout: {error.stderr.strip()}"
        ) from error
    return done.stdout
