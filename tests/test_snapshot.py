"""Snapshots: jobs run the code of a commit; uncommitted changes are refused or recorded."""

import subprocess
from pathlib import Path

import pytest

from pipelines.workspace import snapshot
from pipelines.workspace.snapshot import DirtyTree, take_snapshot
from pipelines.workspace.store import Home


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e", *words],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A small git checkout instead of ours."""
    root = tmp_path / "checkout"
    for room in snapshot.CODE_FOLDERS:
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text("x = 1\n")
    (root / "notes.txt").write_text("not code\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    monkeypatch.setattr(snapshot, "ROOT", root)
    return root


def test_a_snapshot_is_the_code_at_its_commit_and_does_not_change(checkout, tmp_path):
    home = Home(tmp_path / "runs")
    (checkout / "notes.txt").write_text("changed\n")  # not code, so not refused
    first = take_snapshot(home, dirty=False)
    assert (first.folder / "pipelines" / "__init__.py").read_text() == "x = 1\n"
    (checkout / "pipelines" / "__init__.py").write_text("x = 2\n")
    git(checkout, "commit", "-qam", "two")
    second = take_snapshot(home, dirty=False)
    assert first.code != second.code
    assert (first.folder / "pipelines" / "__init__.py").read_text() == "x = 1\n"


def test_the_saved_difference_of_a_binary_file_can_be_applied(checkout, tmp_path):
    changed = bytes(range(256))
    (checkout / "sweeps" / "z.bin").write_bytes(changed)
    kept = take_snapshot(Home(tmp_path / "runs"), dirty=True)
    (checkout / "sweeps" / "z.bin").unlink()
    git(checkout, "apply", str(kept.folder / "changes.patch"))
    assert (checkout / "sweeps" / "z.bin").read_bytes() == changed


def test_uncommitted_code_is_refused_or_saved_with_the_difference(checkout, tmp_path):
    home = Home(tmp_path / "runs")
    (checkout / "pipelines" / "__init__.py").write_text("x = 2\n")
    (checkout / "sweeps" / "new.py").write_text("y = 1\n")
    with pytest.raises(DirtyTree, match=r"(?s)pipelines/__init__.py.*sweeps/new.py"):
        take_snapshot(home, dirty=False)
    kept = take_snapshot(home, dirty=True)
    assert (kept.folder / "pipelines" / "__init__.py").read_text() == "x = 2\n"
    assert (kept.folder / "sweeps" / "new.py").exists()
    patch = (kept.folder / "changes.patch").read_text()
    assert "-x = 1" in patch
    assert "+y = 1" in patch
    status = subprocess.run(
        ["git", "-C", str(checkout), "status", "--porcelain"], capture_output=True, text=True
    ).stdout
    assert status == " M pipelines/__init__.py\n?? sweeps/new.py\n"  # the index did not change
    assert take_snapshot(home, dirty=True) == kept
