"""What a run needs to go on exactly where it was: written whole, the last two kept."""

import shutil
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from var_scaling.disk import whole

FORMAT = 2
State = dict[str, Any]


def save(folder: Path, step: int, state: State) -> None:
    """Write the state after `step` steps; then drop all but this and the one before."""
    with whole(folder / f"step-{step:09d}.pt") as beside:
        torch.save({"format": FORMAT, "step": step, **state}, beside)
    for old in sorted(folder.glob("step-*.pt"))[:-2]:
        old.unlink()


def latest(folder: Path) -> State | None:
    """The newest checkpoint that can be read, or None. A torn one is passed over with a word."""
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            state: State = torch.load(path, weights_only=True, map_location="cpu")
        except (OSError, EOFError, RuntimeError, UnpicklingError, zipfile.BadZipFile) as error:
            print(f"{path}: unreadable ({error}); trying the one before", flush=True)
            continue
        if state["format"] != FORMAT:
            raise ValueError(f"{path}: format {state['format']}; this code reads {FORMAT}")
        return state
    return None


def clear(folder: Path) -> None:
    """A finished run resumes no more; what killed writers left half-written goes too."""
    if folder.exists():
        shutil.rmtree(folder)
