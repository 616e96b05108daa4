"""Finished stages of which a file is no longer what it was: what is wrong, and how to repair it.

`done.json` records the length and SHA-256 of every file that results rest on.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.workspace.log_end import latest_line
from var_scaling.disk import DONE, Damaged, file_sha256, is_done, read_json, write_json

LOG = "metrics.jsonl"
WEIGHTS = "weights.safetensors"
RAW_WEIGHTS = "weights-raw.safetensors"  # the last ones, where WEIGHTS are an average
_RECORDS = ("trial.json", "tokenizer.json")
_ALWAYS = 2**20  # bytes; files up to this length are hashed at every look
_QUICK = 64 * 2**20  # bytes; longer files are hashed only by a thorough look
# Hashes by path, length and time of change: `status --watch` reads a file once.
_hashes: dict[tuple[Path, int, int], str] = {}


def mark_done(folder: Path, marker: dict[str, Any], files: Iterable[str]) -> None:
    """Write `folder`/done.json, the last of its files: `marker`, and how each of `files` is now."""
    write_json(folder / DONE, {**marker, "files": {name: noted(folder / name) for name in files}})


def noted(path: Path) -> dict[str, Any]:
    """What `done.json` records of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


@dataclass(frozen=True)
class Damage:
    """What is wrong with the finished stage in `folder`, by file name."""

    folder: Path
    files: dict[str, str]

    @property
    def by_run(self) -> bool:
        """Whether `run` repairs it: a record that is gone is written again, of a damaged log the
        final evaluation is computed again from the weights.
        """
        return DONE not in self.files and all(
            name == LOG or (name in _RECORDS and not (self.folder / name).exists())
            for name in self.files
        )

    def __str__(self) -> str:
        return f"{'; '.join(self.files.values())}. To repair it: {self._repair()}"

    def _repair(self) -> str:
        if self.by_run:
            again = "the final evaluation is computed again from the weights"
            return f"var-scaling run; {again if LOG in self.files else 'the file is written again'}"
        if not any((self.folder / name).exists() for name in (*_RECORDS, "model.json")):
            return f"delete {self.folder}, then var-scaling run: the images are encoded again"
        anew = "train it (var-scaling run) or import it anew"
        return f"copy the file back from where you have it, or move {self.folder} away and {anew}"


def damage_in(folder: Path, thorough: bool = False) -> Damage | None:
    """What is wrong with the stage in `folder`; None where it is whole, or not finished.

    Lengths are always compared. Files up to 1 MiB are hashed; larger ones if they have changed
    since `done.json` was written, and files over 64 MiB only by a `thorough` look: it is the load
    of weights and tokens that always reads them whole.
    """
    if not is_done(folder):
        return None
    files = _damaged_files(folder, thorough)
    if not files and (why := _lost_end(folder)):
        files = {LOG: why}
    return Damage(folder, files) if files else None


def ended(folder: Path) -> bool:
    """Whether the stage in `folder` is done, and leaves nothing that `run` could repair."""
    found = damage_in(folder)
    return is_done(folder) and not (found is not None and found.by_run)


def _damaged_files(folder: Path, thorough: bool) -> dict[str, str]:
    try:
        marker = read_json(folder / DONE)
    except Damaged as error:
        return {DONE: str(error)}
    recorded = marker.get("files", {})
    if "files" not in marker and "weights_sha256" in marker:  # of a version that recorded no more
        recorded = {WEIGHTS: {"bytes": None, "sha256": marker["weights_sha256"]}}
    since = (folder / DONE).stat().st_mtime_ns
    found = {name: _unlike(folder / name, was, since, thorough) for name, was in recorded.items()}
    return {name: why for name, why in found.items() if why}


def _unlike(path: Path, was: dict[str, Any], since: int, thorough: bool) -> str:
    """How `path` differs from what was recorded at the time `since`, or ""."""
    try:
        now = path.stat()
        if now.st_size != was["bytes"] is not None:
            with open(path, "rb") as file:  # a network's disk may answer from memory until then
                now = os.fstat(file.fileno())
    except FileNotFoundError:
        return f"{path} is missing"
    if now.st_size != was["bytes"] is not None:
        return f"{path} is damaged: it has {now.st_size:,} bytes, {DONE} records {was['bytes']:,}"
    key = (path, now.st_size, now.st_mtime_ns)
    if key not in _hashes:
        changed = now.st_mtime_ns > since and (thorough or now.st_size <= _QUICK)
        if now.st_size > _ALWAYS and not changed:
            return ""
        _hashes[key] = file_sha256(path)
    if _hashes[key] == was["sha256"]:
        return ""
    now_is, recorded = _hashes[key][:12], was["sha256"][:12]
    return f"{path} is damaged: its SHA-256 is {now_is}…, {DONE} records {recorded}…"


def _lost_end(folder: Path) -> str:
    """Why the log of a finished training lacks its final evaluation, where `done.json` is of a
    version that recorded no files.
    """
    marker = read_json(folder / DONE)
    record = next((folder / name for name in _RECORDS if (folder / name).exists()), None)
    trained = marker["status"] == "done" and "weights_sha256" in marker
    if "files" in marker or record is None or not trained:
        return ""
    steps = read_json(record).get("steps")
    line = latest_line(folder / LOG, "validation")
    if steps is None or (line is not None and line["step"] == steps):
        return ""
    reached = "none" if line is None else f"the last at step {line['step']:,}"
    return (
        f"{folder / LOG} is damaged: {DONE} says that the training ended, but the evaluation after "
        f"step {steps:,} is missing ({reached})"
    )


def status_of(folder: Path) -> str:
    """How the finished stage in `folder` ended, by its done.json. Raises Damaged."""
    marker = read_json(folder / DONE)
    if "status" not in marker:
        raise Damaged(f"{folder / DONE} is damaged: it records no status")
    return str(marker["status"])
