"""What lies where under --home, who may write there, and what stage it is in."""

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.workspace.damage import RAW_WEIGHTS, WEIGHTS
from var_scaling.disk import DONE, Damaged, read_json, whole
from var_scaling.record import Record, difference, explain

_TAKEN = (
    "tokenizers", "tokens", "images", "references", "code", "jobs", "mlartifacts", "mlflow.db",
    "mlflow.lock", "networks",
)  # fmt: skip
_TAKEN_IN_SWEEP = (
    "report",
    "law",
    "forecasts",
    "stop",
    "driver.json",
    "laws.json",
    "results.parquet",
)


IMPORTED = "imported"  # the sweep of all models that were trained elsewhere


class ConfigMismatchError(ValueError):
    """A folder belongs to another record; the message shows where they differ."""


class Busy(RuntimeError):
    """Another process works in this folder; the message says which."""


class Home:
    """The one place on disk that a run writes to."""

    def __init__(self, root: Path):
        self.root = root.absolute()

    def tokenizer(self, name: str) -> Path:
        return self.root / "tokenizers" / name

    def tokens(self, tokenizer: str, data: str, split: str, kind: str = "tokens") -> Path:
        """Of the cache of one split: tokens, or features."""
        return self.root / "tokens" / self.cache_name(tokenizer, data, split, kind)

    @staticmethod
    def cache_name(tokenizer: str, data: str, split: str, kind: str) -> str:
        return f"{tokenizer}/{data}-{split}" + (f"-{kind}" if kind != "tokens" else "")

    def imported(self, name: str) -> Path:
        return self.trial(IMPORTED, name)

    def survey(self, data: str, split: str) -> Path:
        return self.root / "images" / f"{data}-{split}"

    def reference(self, name: str) -> Path:
        """Statistics that samples are compared with."""
        return self.root / "references" / name

    def network(self, data: str) -> Path:
        """The classifier of the images of that name, whose features are compared."""
        return self.root / "networks" / data

    def sweep(self, name: str) -> Path:
        if name in _TAKEN:
            raise ValueError(f"a sweep cannot be named {name!r}: that folder holds something else")
        return self.root / name

    def trial(self, sweep: str, name: str) -> Path:
        if name in _TAKEN_IN_SWEEP:
            raise ValueError(f"a trial cannot be named {name!r}: that is something else's place")
        return self.sweep(sweep) / name


def part_folders(tokens: Path, of: int) -> list[Path]:
    """Where each of `of` jobs puts its part of the tokens in `tokens`."""
    return [tokens / "parts" / f"{number:03d}-of-{of:03d}" for number in range(of)]


def has_results(folder: Path) -> bool:
    """Whether another config would lose something: an end, a checkpoint, a metric, a shard."""
    metrics = folder / "metrics.jsonl"
    if (folder / DONE).exists() or (metrics.exists() and metrics.stat().st_size > 0):
        return True
    manifest = folder / "manifest.json"
    shards = read_json(manifest).get("shards_crc32") if manifest.exists() else None
    return bool(shards) or any(folder.glob("checkpoint/step-*.pt"))


def init_run_dir(folder: Path, file: str, record: Record) -> None:
    """Make `folder` the home of `record`. Raises Drift if there are results of another."""
    path, text = folder / file, record.model_dump_json(indent=1) + "\n"
    bound = has_results(folder)
    if bound:
        refuse(path, drift(path, record))
    if not path.exists() or (not bound and path.read_text() != text):
        with whole(path) as beside:
            beside.write_text(text)


def refuse(path: Path, lines: list[str]) -> None:
    """Raise Drift if `lines`, the differences from what `path` records, are any."""
    if lines:
        raise ConfigMismatchError(
            f"{path.parent} is already the home of another {path.stem}:\n  "
            + "\n  ".join(lines)
            + "\nGive the new one a name of its own, or move the folder away."
        )


def drift(path: Path, record: Record) -> list[str]:
    """How the record in `path` differs from `record`; empty if there is none or they agree."""
    if not path.exists():
        return []
    return difference(read_record(path, type(record)), record.model_dump(mode="json"))


def read_record(path: Path, kind: type[Record]) -> Any:
    """The record in `path` as JSON, fields that came later at their defaults. Raises Drift."""
    refuse_old(path, kind)
    try:
        return kind.model_validate_json(path.read_bytes()).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigMismatchError(
            f"{path} is no record this version reads:\n{explain(error, kind)}"
        ) from error


def refuse_old(path: Path, kind: type[Record]) -> None:
    """Raise Drift, in one sentence, if the record in `path` is of another format than `kind`'s."""
    field = kind.model_fields.get("format")
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return  # no JSON: the reader reports it
    if field is None or not isinstance(content, dict):
        return
    found = content.get("format", 1)
    if found != field.default:
        raise ConfigMismatchError(
            f"{path} has format {found} and this version of the code reads format {field.default}: "
            "use the version that wrote it, or another --home"
        )


def weights_of(folder: Path, raw: bool = False) -> tuple[Path, str]:
    """The weights of the finished stage in `folder`, and the SHA-256 that they must have.

    `raw`: the last ones, of a training that keeps an average of its weights. Raises ValueError
    where there are none.
    """
    marker = read_json(folder / DONE)
    if "weights_sha256" not in marker:
        raise Damaged(f"{folder / DONE} is damaged: it records no hash of the weights")
    if not raw:
        return folder / WEIGHTS, str(marker["weights_sha256"])
    if "raw_weights_sha256" not in marker:
        raise ValueError(
            f"{folder}: has no raw weights beside its own: it was not trained with weight_average"
        )
    return folder / RAW_WEIGHTS, str(marker["raw_weights_sha256"])


@contextmanager
def file_lock(folder: Path, wait: float = 0.0, file: str = "lock") -> Iterator[None]:
    """Be the one process that works in `folder`; the kernel lets go when the process dies.

    Raises Busy, naming the owner, if another still holds it after `wait` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / file, "a+") as lock:
        deadline = time.monotonic() + wait
        while not _take(lock.fileno()):
            if time.monotonic() >= deadline:
                lock.seek(0)
                raise Busy(f"{folder} is in use by {lock.read().strip() or 'another process'}")
            time.sleep(0.2)
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
        lock.flush()
        yield


def in_use(folder: Path) -> bool:
    """Whether a living process on this machine works in `folder`."""
    if not (folder / "lock").exists():
        return False
    with open(folder / "lock", "a+") as lock:
        return not _take(lock.fileno())


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def natural(name: str) -> list[int | str]:
    """Sort key by which d2 comes before d10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
