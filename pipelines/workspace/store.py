"""The folders of a home (--home), their locks, their records and files of measurements."""

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipelines.workspace.damage import RAW_WEIGHTS, WEIGHTS
from var_scaling.disk import DONE, DamagedFileError, atomic_write, read_json, write_json
from var_scaling.explain import explain
from var_scaling.record import Record, difference

# Sweeps are folders of the home, and trials folders of their sweep: these names are taken.
_RESERVED = (
    "tokenizers", "tokens", "images", "references", "code", "jobs", "mlartifacts", "mlflow.db",
    "mlflow.lock", "networks", "benchmarks",
)  # fmt: skip
_RESERVED_IN_SWEEP = (
    "report",
    "law",
    "forecasts",
    "stop",
    "driver.json",
    "driver.note",
    "laws.json",
    "results.parquet",
    "images.parquet",
)


IMPORTED = "imported"  # the name of the sweep that holds all imported models
_MEASUREMENTS_FORMAT = 1
_Measurement = TypeVar("_Measurement", bound=Record)


class ConfigMismatchError(ValueError):
    """A folder belongs to a run with a different config; the message shows the differences."""


class FolderInUseError(RuntimeError):
    """Another process has locked this folder; the message names it."""


class Home:
    """The root folder for everything that runs write."""

    def __init__(self, root: Path):
        self.root = root.absolute()

    def tokenizer(self, name: str) -> Path:
        return self.root / "tokenizers" / name

    def tokens(self, tokenizer: str, data: str, split: str, kind: str = "tokens") -> Path:
        """The cache of one split; `kind` is tokens or features."""
        return self.root / "tokens" / self.cache_name(tokenizer, data, split, kind)

    @staticmethod
    def cache_name(tokenizer: str, data: str, split: str, kind: str) -> str:
        return f"{tokenizer}/{data}-{split}" + (f"-{kind}" if kind != "tokens" else "")

    def imported(self, name: str) -> Path:
        return self.trial(IMPORTED, name)

    def image_listing(self, data: str, split: str) -> Path:
        """The list of the image files of one split, and what was found in them."""
        return self.root / "images" / f"{data}-{split}"

    def reference(self, name: str) -> Path:
        """Statistics of reference images, with which samples are compared."""
        return self.root / "references" / name

    def network(self, data: str) -> Path:
        """The classifier trained on `data`, whose features serve as a distance between images."""
        return self.root / "networks" / data

    def benchmarks(self) -> Path:
        """Measured training steps, one file for each machine or cluster."""
        return self.root / "benchmarks"

    def sweep(self, name: str) -> Path:
        if name in _RESERVED:
            raise ValueError(f"a sweep cannot be named {name!r}: the name is reserved")
        return self.root / name

    def trial(self, sweep: str, name: str) -> Path:
        if name in _RESERVED_IN_SWEEP:
            raise ValueError(f"a trial cannot be named {name!r}: the name is reserved")
        return self.sweep(sweep) / name


def part_folders(tokens: Path, count: int) -> list[Path]:
    """The folders into which `count` jobs write their parts of the cache in `tokens`."""
    return [tokens / "parts" / f"{number:03d}-of-{count:03d}" for number in range(count)]


def has_results(folder: Path) -> bool:
    """Whether `folder` has results: a done marker, a checkpoint, a metric or a shard."""
    metrics = folder / "metrics.jsonl"
    if (folder / DONE).exists() or (metrics.exists() and metrics.stat().st_size > 0):
        return True
    manifest = folder / "manifest.json"
    shards = read_json(manifest).get("shards_crc32") if manifest.exists() else None
    return bool(shards) or any(folder.glob("checkpoint/step-*.pt"))


def init_run_dir(folder: Path, file: str, record: Record) -> None:
    """Write `record` to `folder`/`file`.

    Raises ConfigMismatchError if the folder has results of a different record.
    """
    path, text = folder / file, _as_text(record)
    has_any = has_results(folder)
    if has_any:
        raise_if_mismatch(path, record_differences(path, record))
    # With results, an equal record is not written again: its text may lack newer fields.
    if not path.exists() or (not has_any and path.read_text() != text):
        with atomic_write(path) as temporary_path:
            temporary_path.write_text(text)


def _as_text(record: Record) -> str:
    return record.model_dump_json(indent=1) + "\n"


def is_recorded(path: Path, record: Record) -> bool:
    """Whether `path` has exactly the text of `record`. A quick check: an equal record that another
    version of the code wrote may have another text.
    """
    try:
        return path.read_bytes() == _as_text(record).encode()
    except FileNotFoundError:
        return False


def raise_if_mismatch(path: Path, lines: list[str]) -> None:
    """Raise ConfigMismatchError if there are `lines`: the differences from the record in `path`."""
    if lines:
        raise ConfigMismatchError(
            f"{path.parent} already belongs to a different {path.stem}:\n  "
            + "\n  ".join(lines)
            + "\nGive the new one another name, or move the folder away."
        )


def record_differences(path: Path, record: Record) -> list[str]:
    """How the record in `path` differs from `record`; empty if it does not, or is missing."""
    if not path.exists():
        return []
    return difference(read_record(path, type(record)), record.model_dump(mode="json"))


def read_record(path: Path, kind: type[Record]) -> Any:
    """The record in `path` as JSON, with newer fields at their defaults.

    Raises ConfigMismatchError if this version cannot read it.
    """
    check_format(path, kind)
    try:
        return kind.model_validate_json(path.read_bytes()).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigMismatchError(
            f"{path}: this version cannot read the record:\n{explain(error, kind)}"
        ) from error


def check_format(path: Path, kind: type[Record]) -> None:
    """Raise ConfigMismatchError if the record in `path` has another format number than `kind`.

    Without this check, the error would list every changed field.
    """
    field = kind.model_fields.get("format")
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return  # not JSON: the reader reports it
    if field is None or not isinstance(content, dict):
        return
    written = content.get("format", 1)
    if written != field.default:
        raise ConfigMismatchError(
            f"{path} has format {written}, but this version of the code reads format "
            f"{field.default}: use the version that wrote it, or another --home"
        )


def read_measurements(path: Path, kind: type[_Measurement]) -> list[_Measurement]:
    """The records that `write_measurements` wrote to `path`; none if there is no such file.

    Raises ValueError if this version cannot read the file.
    """
    if not path.exists():
        return []
    content = read_json(path)
    if content.get("format") != _MEASUREMENTS_FORMAT:
        raise ValueError(
            f"{path}: format {content.get('format')}, this version reads {_MEASUREMENTS_FORMAT}"
        )
    try:
        # In JSON a tuple is an array: strict validation accepts it only from JSON.
        return [kind.model_validate_json(json.dumps(entry)) for entry in content["measured"]]
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, kind)}; move the file away") from error


def write_measurements(path: Path, measured: Sequence[Record]) -> None:
    """Write all records of the file; the caller holds its lock, or results could be lost."""
    entries = [one.model_dump(mode="json") for one in measured]
    write_json(path, {"format": _MEASUREMENTS_FORMAT, "measured": entries})


def weights_of(folder: Path, raw: bool = False) -> tuple[Path, str]:
    """(file, expected SHA-256) of the weights of the finished stage in `folder`.

    `raw`: the last weights, of a training that also keeps an average of its weights. Raises
    ValueError if there are none.
    """
    marker = read_json(folder / DONE)
    if "weights_sha256" not in marker:
        raise DamagedFileError(f"{folder / DONE} is damaged: it records no hash of the weights")
    if not raw:
        return folder / WEIGHTS, str(marker["weights_sha256"])
    if "raw_weights_sha256" not in marker:
        raise ValueError(
            f"{folder}: has no raw weights, because it was not trained with weight_average"
        )
    return folder / RAW_WEIGHTS, str(marker["raw_weights_sha256"])


@contextmanager
def file_lock(folder: Path, wait: float = 0.0, file: str = "lock") -> Iterator[None]:
    """Hold the lock of `folder` during the block; the kernel releases it if the process dies.

    Raises FolderInUseError, naming the owner, if another process holds it for `wait` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # "a+" does not truncate: the file still names the owner if another process holds the lock. It
    # is not removed afterwards, because a waiting process would then lock a file without a name.
    with open(folder / file, "a+") as lock:
        deadline = time.monotonic() + wait
        while not _take(lock.fileno()):
            if time.monotonic() >= deadline:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                raise FolderInUseError(f"{folder} is in use by {owner}")
            time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
        lock.flush()
        yield


def in_use(folder: Path) -> bool:
    """Whether a process on this machine holds the lock of `folder`."""
    if not (folder / "lock").exists():
        return False
    # Closing the file releases a lock that this call has taken.
    with open(folder / "lock", "a+") as lock:
        return not _take(lock.fileno())


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def natural_key(name: str) -> list[int | str]:
    """Sort key that orders numbers by value: d2 comes before d10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
