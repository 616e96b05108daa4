"""What a run needs to go on exactly where it was: written whole, the last two kept."""

import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from var_scaling.disk import whole

# A disk that does not answer is none of these: better to end than to begin anew.
_DAMAGE = (EOFError, RuntimeError, ValueError, UnpicklingError, BadZipFile, FileNotFoundError)
FORMAT = 3
State = dict[str, Any]


def save(folder: Path, step: int, state: State) -> None:
    """Write the state after `step` steps; then drop all before it but one.

    A later one is left alone: it is damaged, or a newer attempt's, which must not lose it.
    """
    last = folder / name_of(step)
    write(last, step, state)
    before = [path for path in sorted(folder.glob("step-*.pt")) if path < last]
    torn = folder.glob(".step-*")  # by writers that were killed
    for path in [*before[:-1], *torn]:
        path.unlink(missing_ok=True)


def name_of(step: int) -> str:
    return f"step-{step:09d}.pt"


def write(path: Path, step: int, state: State) -> None:
    """Write the state after `step` steps, whole or not at all."""
    with whole(path) as beside:
        torch.save({"format": FORMAT, "step": step, **state}, beside)


def read(path: Path) -> State:
    """The checkpoint in `path`. Raises ValueError if it is absent, damaged or of another kind."""
    try:
        state = _read(path)
    except _DAMAGE as error:
        raise ValueError(f"{path}: no checkpoint to start from: {error}") from error
    _refuse_format(path, state)
    return state


def latest(folder: Path, set_aside: bool = True) -> State | None:
    """The newest undamaged checkpoint, or None. A damaged one is passed over with a word.

    With `set_aside` it is renamed, so that it takes the place of no good one.
    """
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            state = _read(path)
        except _DAMAGE as error:
            print(f"{path}: unreadable ({error}); trying the one before", flush=True)
            if set_aside and path.exists():
                path.rename(path.with_suffix(".torn"))
            continue
        _refuse_format(path, state)
        return state
    return None


def _refuse_format(path: Path, state: State) -> None:
    if state["format"] != FORMAT:
        raise ValueError(f"{path}: format {state['format']}; this code reads {FORMAT}")


def _read(path: Path) -> State:
    with ZipFile(path) as parts:  # torch looks at no checksum, and believes what a part says it is
        plain = all(
            (part.compress_type, part.compress_size, part.external_attr)
            == (ZIP_STORED, part.file_size, 0)
            for part in parts.infolist()
        )
        if not plain or parts.testzip() is not None:
            raise BadZipFile("not what was written")
    state: State = torch.load(path, weights_only=True, map_location="cpu")
    return state


def clear(folder: Path) -> None:
    """A finished run resumes no more; what killed writers left half-written goes too."""
    if folder.exists():
        shutil.rmtree(folder)
