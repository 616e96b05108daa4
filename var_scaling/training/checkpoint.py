"""Checkpoints: all that a bitwise resume needs, written atomically; the last two are kept."""

import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from var_scaling.disk import atomic_write

# Other I/O errors (a disk that does not respond) are raised: skipping them would lose progress.
# FileNotFoundError: another attempt may delete a checkpoint between the listing and the reading.
_DAMAGE = (EOFError, RuntimeError, ValueError, UnpicklingError, BadZipFile, FileNotFoundError)
# Increased when the content changes, so that an old checkpoint is refused and not misread.
FORMAT = 3
State = dict[str, Any]


def save(folder: Path, step: int, state: State) -> None:
    """Write the state after `step` steps, then delete the earlier checkpoints except the last.

    A later checkpoint is kept: it is damaged, or a newer attempt wrote it.
    """
    # Write first, delete after: a process that is killed in between leaves one file too many.
    last = folder / checkpoint_name(step)
    write(last, step, state)
    earlier = [path for path in sorted(folder.glob("step-*.pt")) if path < last]
    partial = folder.glob(".step-*")  # temporary files of processes that were killed
    # The one before the last stays, because the last may turn out to be damaged.
    for path in [*earlier[:-1], *partial]:
        path.unlink(missing_ok=True)


def checkpoint_name(step: int) -> str:
    # Fixed width: the order of names is the order of steps.
    return f"step-{step:09d}.pt"


def write(path: Path, step: int, state: State) -> None:
    """Write the state after `step` steps atomically."""
    with atomic_write(path) as temporary_path:
        torch.save({"format": FORMAT, "step": step, **state}, temporary_path)


def read(path: Path) -> State:
    """The checkpoint in `path`. Raises ValueError if it is absent, damaged or of another format."""
    try:
        state = _read(path)
    except _DAMAGE as error:
        raise ValueError(f"{path}: cannot read a checkpoint to start from: {error}") from error
    _refuse_format(path, state)
    return state


def latest(folder: Path, rename_damaged: bool = True) -> State | None:
    """The newest undamaged checkpoint, or None. A damaged one is skipped, with a message.

    With `rename_damaged` it is renamed, so that `save` does not count it among the last two.
    """
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            state = _read(path)
        except _DAMAGE as error:
            print(f"{path}: unreadable ({error}); trying the checkpoint before it", flush=True)
            if rename_damaged and path.exists():
                # No longer matched by step-*.pt.
                path.rename(path.with_suffix(".torn"))
            continue
        _refuse_format(path, state)
        return state
    return None


def _refuse_format(path: Path, state: State) -> None:
    if (recorded := state.get("format")) != FORMAT:
        raise ValueError(f"{path}: checkpoint format {recorded}; this code reads {FORMAT}")


def _read(path: Path) -> State:
    with ZipFile(path) as archive:  # torch.load checks neither checksums nor members' headers
        # torch maps the bytes of a member as they lie in the file. A flipped bit in the zip's
        # directory (another type, size or compression) made it return uninitialised memory without
        # an error (LOG.md), so the directory is checked as well as the checksums.
        stored_plain = all(
            (member.compress_type, member.compress_size, member.external_attr)
            == (ZIP_STORED, member.file_size, 0)
            for member in archive.infolist()
        )
        if not stored_plain or archive.testzip() is not None:
            raise BadZipFile("a checksum or header does not match")
    # weights_only: a pickle could run code. On the CPU: the file may come from another device.
    state: State = torch.load(path, weights_only=True, map_location="cpu")
    return state


def clear(folder: Path) -> None:
    """Delete all checkpoints of a finished run, and the partial files of killed processes."""
    if folder.exists():
        shutil.rmtree(folder)
