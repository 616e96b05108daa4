"""Detect missing and changed files of finished stages, and say how to repair them.

`done.json` records the length and SHA-256 of every file that results depend on.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.workspace.log_end import latest_line
from var_scaling.disk import DONE, DamagedFileError, file_sha256, is_done, read_json, write_json

LOG = "metrics.jsonl"
WEIGHTS = "weights.safetensors"
RAW_WEIGHTS = "weights-raw.safetensors"  # the last weights, where WEIGHTS are an average
_RECORDS = ("trial.json", "tokenizer.json")
_ALWAYS = 2**20  # bytes; files up to this length are hashed at every check
_QUICK = 64 * 2**20  # bytes; longer files are hashed only by a thorough check
# Hashes by path, length and time of change, so that `status --watch` reads a file only once.
_hashes: dict[tuple[Path, int, int], str] = {}


def mark_done(folder: Path, marker: dict[str, Any], files: Iterable[str]) -> None:
    """Write `folder`/done.json: `marker`, and the length and hash of each of `files`.

    Call it last: its presence means that the stage is finished.
    """
    write_json(
        folder / DONE, {**marker, "files": {name: file_entry(folder / name) for name in files}}
    )


def file_entry(path: Path) -> dict[str, Any]:
    """The entry of a file in `done.json`."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


@dataclass(frozen=True)
class Damage:
    """The damaged files of the finished stage in `folder`: file name -> what is wrong."""

    folder: Path
    files: dict[str, str]

    @property
    def repaired_by_run(self) -> bool:
        """Whether `var-scaling run` can repair it: it writes a missing record again, and repeats
        the final evaluation from the weights if the log is damaged.
        """
        return DONE not in self.files and all(
            name == LOG or (name in _RECORDS and not (self.folder / name).exists())
            for name in self.files
        )

    def __str__(self) -> str:
        return f"{'; '.join(self.files.values())}. To repair it: {self._repair()}"

    def _repair(self) -> str:
        if self.repaired_by_run:
            again = "the final evaluation is computed again from the weights"
            return f"var-scaling run; {again if LOG in self.files else 'the file is written again'}"
        if not any((self.folder / name).exists() for name in (*_RECORDS, "model.json")):
            return f"delete {self.folder}, then var-scaling run: the images are encoded again"
        retry = "train it (var-scaling run) or import it again"
        return f"restore the file from a copy, or move {self.folder} away and {retry}"


def damage_in(folder: Path, thorough: bool = False) -> Damage | None:
    """The damage of the stage in `folder`; None if it has none, or is not finished.

    Lengths are always compared. Files up to 1 MiB are always hashed; larger files only if their
    time of change is later than that of `done.json`, and files over 64 MiB only if `thorough` too.
    That is enough, because loading weights and tokens always checks their hashes.
    """
    if not is_done(folder):
        return None
    try:
        marker = read_json(folder / DONE)
    except DamagedFileError as error:
        return Damage(folder, {DONE: str(error)})
    files = _damaged_files(folder, marker, thorough)
    if not files and (problem := _missing_final_evaluation(folder, marker)):
        files = {LOG: problem}
    return Damage(folder, files) if files else None


def is_complete(folder: Path) -> bool:
    """Whether the stage in `folder` is done, without damage that `run` could repair."""
    damage = damage_in(folder)
    return is_done(folder) and not (damage is not None and damage.repaired_by_run)


def _damaged_files(folder: Path, marker: dict[str, Any], thorough: bool) -> dict[str, str]:
    recorded = marker.get("files", {})
    if "files" not in marker and "weights_sha256" in marker:  # older versions recorded only this
        recorded = {WEIGHTS: {"bytes": None, "sha256": marker["weights_sha256"]}}
    since = (folder / DONE).stat().st_mtime_ns
    problems = {
        name: _difference(folder / name, entry, since, thorough) for name, entry in recorded.items()
    }
    return {name: problem for name, problem in problems.items() if problem}


def _difference(path: Path, entry: dict[str, Any], since: int, thorough: bool) -> str:
    """How `path` differs from its `entry` in `done.json`, or "".

    `since`: when `done.json` was written, in nanoseconds since 1970.
    """
    try:
        now = path.stat()
        # An entry of an older version has no length: it is None, and not compared.
        if now.st_size != entry["bytes"] is not None:
            # A network file system may return a cached size until the file is opened.
            with open(path, "rb") as file:
                now = os.fstat(file.fileno())
    except FileNotFoundError:
        return f"{path} is missing"
    if now.st_size != entry["bytes"] is not None:
        return f"{path} is damaged: it has {now.st_size:,} bytes, {DONE} records {entry['bytes']:,}"
    key = (path, now.st_size, now.st_mtime_ns)
    if key not in _hashes:
        changed = now.st_mtime_ns > since and (thorough or now.st_size <= _QUICK)
        # Weights and tokens: hashing all of them would make `status` slow.
        if now.st_size > _ALWAYS and not changed:
            return ""
        _hashes[key] = file_sha256(path)
    if _hashes[key] == entry["sha256"]:
        return ""
    actual, recorded = _hashes[key][:12], entry["sha256"][:12]
    return f"{path} is damaged: its SHA-256 is {actual}…, {DONE} records {recorded}…"


def _missing_final_evaluation(folder: Path, marker: dict[str, Any]) -> str:
    """A message if the log of a finished training has no final evaluation, else "".

    Only for a `done.json` of an older version, which recorded no files.
    """
    if "files" in marker or marker["status"] != "done" or "weights_sha256" not in marker:
        return ""
    record = next((folder / name for name in _RECORDS if (folder / name).exists()), None)
    if record is None:
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
    """The status in done.json of the finished stage in `folder`. Raises DamagedFileError."""
    return status_in(folder, read_json(folder / DONE))


def status_in(folder: Path, marker: dict[str, Any]) -> str:
    """The status in `marker`, the done.json of `folder`. Raises DamagedFileError."""
    if "status" not in marker:
        raise DamagedFileError(f"{folder / DONE} is damaged: it records no status")
    return str(marker["status"])
