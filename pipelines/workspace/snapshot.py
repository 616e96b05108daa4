"""The code as it is now, kept apart: a job requeued next week runs what was submitted today."""

import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipelines.workspace.modules import copy_into, fingerprint, sources
from pipelines.workspace.provenance import ROOMS, SNAPSHOT
from pipelines.workspace.store import Home

ROOT = Path(__file__).parents[2]


class DirtyTree(ValueError):
    """The code differs from its commit; the message lists where."""


@dataclass(frozen=True)
class Snapshot:
    folder: Path  # to be first in PYTHONPATH
    code: str  # the commit; with + and a hash where files differ from it


def take_snapshot(home: Home, dirty: bool, modules: Iterable[str] = ()) -> Snapshot:
    """The code under `home`/code, written once a version, with `modules` of the user's own.

    Raises DirtyTree unless `dirty`; with it the difference from the commit is kept as a patch.
    """
    if (ROOT / SNAPSHOT).exists():  # this is one already
        return Snapshot(ROOT, json.loads((ROOT / SNAPSHOT).read_text())["code"])
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=all", "--", *ROOMS)
    if changed and not dirty:
        raise DirtyTree(
            "the code differs from its commit, so the run could not be reproduced:\n"
            f"{changed}\nCommit it, or run with --dirty to have the difference recorded."
        )
    tree = _tree_as_is() if changed else "HEAD"
    code = f"{commit}+{_git('rev-parse', '--short=8', tree)}" if changed else commit
    own = sources(modules)
    if own:
        code += f"+modules-{fingerprint(own)}"
    folder = home.root / "code" / code.replace("+", "-")
    if not (folder / SNAPSHOT).exists():
        patch = _git("diff", "--binary", "HEAD", tree) if changed else None
        _write(folder, tree, code, patch, own)
    return Snapshot(folder, code)


def _tree_as_is() -> str:
    """A git tree of the working files as they are, the index left as it was."""
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": f"{scratch}/index"}
        _git("read-tree", "HEAD", **index)
        _git("add", "-A", "--", *ROOMS, **index)
        return _git("write-tree", **index)


def _write(folder: Path, tree: str, code: str, patch: str | None, own: tuple[Path, ...]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        beside = Path(scratch) / folder.name
        archive = Path(scratch) / "code.tar"
        _git("archive", "--format=tar", "-o", str(archive), tree, *ROOMS)
        with tarfile.open(archive) as tar:
            tar.extractall(beside, filter="data")
        copy_into(beside, own)
        if patch is not None:
            (beside / "changes.patch").write_text(patch + "\n")
        (beside / SNAPSHOT).write_text(json.dumps({"code": code}) + "\n")
        try:
            beside.rename(folder)
        except OSError:
            if not (folder / SNAPSHOT).exists():  # else another driver wrote the same just now
                raise


def _git(*words: str, **environment: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, encoding="utf-8",
            errors="replace", check=True, timeout=60, env={**os.environ, **environment},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ValueError("git is needed to keep the code that jobs run; it is not here") from error
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"{ROOT} is no git checkout that can be kept for jobs: {error.stderr.strip()}"
        ) from error
    return done.stdout.rstrip("\n")
