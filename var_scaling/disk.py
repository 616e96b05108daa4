"""Atomic file writes, JSON and checksums. A folder is complete once it contains `done.json`."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DONE = "done.json"


class DamagedFileError(ValueError):
    """A file is not as it was written; the message names the file and the damage."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The host name is needed because processes on two machines may have the same id.
    temporary_path = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        yield temporary_path
        with open(temporary_path, "rb+") as file:
            os.fsync(file.fileno())  # the content must be on disk before the name
        # Atomic within a file system, hence a temporary file in the same folder: a reader finds the
        # old file or the new one, also after a kill.
        os.replace(temporary_path, path)
    finally:
        temporary_path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as temporary_path:
        # NaN and Infinity are not JSON: other programs could not read the file.
        temporary_path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DamagedFileError, FileNotFoundError."""
    try:
        return json.loads(path.read_bytes())
    # JSONDecodeError, or UnicodeDecodeError if the bytes are not text.
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: not valid JSON ({error})") from error


def is_done(folder: Path) -> bool:
    return (folder / DONE).exists()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
