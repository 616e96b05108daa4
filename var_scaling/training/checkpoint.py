"""What a run needs to go on exactly where it was: written whole, the last two kept."""

import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch

from var_scaling.disk import whole

FORMAT = 2
State = dict[str, Any]


def save(folder: Path, step: int, state: State) -> None:
    """Write the state after `step` steps; then drop all but this and the one before."""
    last = folder / f"step-{step:09d}.pt"
    with whole(last) as beside:
        torch.save({"format": FORMAT, "step": step, **state}, beside)
    kept = sorted(folder.glob("step-*.pt"))
    place = kept.index(last)
    for path in kept[: max(0, place - 1)] + kept[place + 1 :]:  # a later one could not be read
        path.unlink()


def latest(folder: Path) -> State | None:
    """The newest undamaged checkpoint, or None. A damaged one is passed over with a word."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            state = _read(path)
        except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, BadZipFile) as error:
            print(f"{path}: unreadable ({error}); trying the one before", flush=True)
            continue
        if state["format"] != FORMAT:
            raise ValueError(f"{path}: format {state['format']}; this code reads {FORMAT}")
        return state
    return None


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
