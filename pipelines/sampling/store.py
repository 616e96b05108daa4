"""The folder of a sample set: its images, and a mark for each chunk that lists the written images.

A mark is written after its images and has their sizes and checksums. An image that no mark lists,
or whose file differs from the mark, is drawn again. So after a killed process, a full disk or a
larger --count, the next run draws exactly the missing images. Does not import torch.
"""

import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.workspace.store import (
    ConfigMismatchError,
    raise_if_mismatch,
    read_record,
    record_differences,
)
from var_scaling.disk import DONE, atomic_write, is_done, read_json
from var_scaling.experiment.sample_set import Request, SampleSet
from var_scaling.text import counted

RECORD, SAMPLES, STRIPS = "sampling.json", "samples", "strips.png"
_READERS = 8  # files read in parallel: a network disk has a high latency, but enough bandwidth


@dataclass(frozen=True)
class StoredImage:
    """An image file. `score`: with rejection, the classifier's probability of its class."""

    bytes: int
    crc32: int
    score: float | None = None


@dataclass(frozen=True)
class ProcessShare:
    """One process's contribution to a chunk: images, duration, device, code version, host."""

    images: int
    seconds: float
    device: str
    commit: str | None
    host: str


class SampleFolder:
    """The folder of the sample set `config`."""

    def __init__(self, folder: Path, config: SampleSet):
        self.folder, self.config = folder, config
        # With rejection all candidates are drawn here; at the end the accepted ones are linked into
        # images/.
        self.drawn = folder / ("images" if config.rejection is None else "candidates")

    def init_run_dir(self) -> None:
        """Write the record of `config`: a new set, the same set, or the same with another count.

        A larger count that was requested but not completed may be lowered again. Raises
        ConfigMismatchError if the folder belongs to another set or has more images of this one.
        """
        refuse_other(self.folder, self.config)
        path = self.folder / RECORD
        if path.exists():
            if self.is_current():
                return
        else:  # without a record it is unknown to which set the marks belong
            for mark in (self.folder / "chunks").glob("*.json"):
                mark.unlink(missing_ok=True)
        # Before the record changes: if the process is killed in between, the set is unfinished, not
        # done with too few images. The strips show another count.
        for stale in (DONE, STRIPS):
            (self.folder / stale).unlink(missing_ok=True)
        with atomic_write(path) as temporary_path:
            temporary_path.write_text(self.config.model_dump_json(indent=1) + "\n")

    def is_current(self) -> bool:
        """Whether the folder has the record of exactly this set, with this count."""
        return recorded(self.folder) == self.config

    def path(self, request: Request) -> Path:
        return self.drawn / self.config.file(request)

    def mark_path(self, chunk: int) -> Path:
        return self.folder / "chunks" / f"{chunk:05d}.json"

    def marked_chunks(self) -> set[int]:
        """The chunks that have a mark, by one listing of the folder; no file is read."""
        try:
            names = os.listdir(self.folder / "chunks")
        except FileNotFoundError:
            return set()
        # Temporary files of `atomic_write` begin with a dot, so they are not digits.
        return {int(name[:-5]) for name in names if name[:-5].isdigit()}

    def stored_images(self, chunk: int) -> dict[Request, StoredImage]:
        """The images of `chunk` that are complete on disk, in drawing order.

        Compares sizes, not checksums: `damaged` does that.
        """
        listed = self._mark(chunk)[0]
        needs_score = self.config.rejection is not None
        return {
            request: listed[request]
            # A mark may list more: of a larger count that was begun and then given up.
            for request in self.config.chunk(chunk)
            if request in listed
            and (listed[request].score is not None) == needs_score
            and _size(self.path(request)) == listed[request].bytes
        }

    def all_stored_images(self) -> tuple[dict[Request, StoredImage], list[int]]:
        """All images that are complete on disk, in drawing order; the chunks that miss images."""
        stored: dict[Request, StoredImage] = {}
        incomplete = []
        for chunk in range(self.config.chunks):
            in_chunk = self.stored_images(chunk)
            stored |= in_chunk
            if len(in_chunk) < len(self.config.chunk(chunk)):
                incomplete.append(chunk)
        return stored, incomplete

    def damaged(self, images: dict[Request, StoredImage]) -> list[Request]:
        """The images whose file has another checksum than when it was written; reads all files."""
        requests = list(images)
        with ThreadPoolExecutor(_READERS) as pool:
            checksums = pool.map(lambda request: _crc32(self.path(request)), requests)
            return [
                request
                for request, crc32 in zip(requests, checksums, strict=True)
                if crc32 != images[request].crc32
            ]

    def write(self, request: Request, pixels_WW3: np.ndarray, score: float | None) -> StoredImage:
        """Write one image atomically."""
        # Encoded in memory, so that size and checksum are those of the intended bytes. Read from
        # the file, they would agree with whatever a faulty disk returns.
        buffer = BytesIO()
        Image.fromarray(pixels_WW3).save(buffer, format="PNG")
        content = buffer.getvalue()
        with atomic_write(self.path(request)) as temporary_path:
            temporary_path.write_bytes(content)
        return StoredImage(len(content), zlib.crc32(content), score)

    def mark(self, chunk: int, images: dict[Request, StoredImage], share: ProcessShare) -> None:
        """Record that `images` of `chunk` are complete on disk; `share`: this process's part."""
        rows = [
            [request.label, request.index, image.bytes, image.crc32, image.score]
            for request, image in images.items()
        ]
        # Shares of earlier runs are kept; on disk, their key is "lives".
        shares = [*map(asdict, self._mark(chunk)[1]), asdict(share)]
        with atomic_write(self.mark_path(chunk)) as temporary_path:
            temporary_path.write_text(json.dumps({"images": rows, "lives": shares}) + "\n")

    def process_shares(self) -> Iterator[ProcessShare]:
        """Every process's share of every chunk."""
        for chunk in range(self.config.chunks):
            yield from self._mark(chunk)[1]

    def _mark(self, chunk: int) -> tuple[dict[Request, StoredImage], list[ProcessShare]]:
        """The images and shares of the mark of `chunk`; none if it is missing or unreadable."""
        try:
            mark = read_json(self.mark_path(chunk))
            images = {Request(row[0], row[1]): StoredImage(*row[2:]) for row in mark["images"]}
            return images, [ProcessShare(**share) for share in mark["lives"]]
        # A damaged mark is no error: its images are drawn again, which gives the same files.
        except (FileNotFoundError, IsADirectoryError, ValueError, LookupError, TypeError):
            return {}, []


class ImageWriters:
    """Threads that write images while the next batch is drawn.

    PNG compression and file writes release the interpreter lock.
    """

    def __init__(self, store: SampleFolder, threads: int):
        self.store, self.pool = store, ThreadPoolExecutor(threads)
        self.pending: list[tuple[int, Request, Future[StoredImage]]] = []

    def add(self, chunk: int, request: Request, pixels: np.ndarray, score: float | None) -> None:
        future = self.pool.submit(self.store.write, request, pixels, score)
        self.pending.append((chunk, request, future))

    def flush(self) -> list[tuple[int, Request, StoredImage]]:
        """Wait until every added image is on disk, and return these. Raises OSError."""
        pending, self.pending = self.pending, []
        return [(chunk, request, future.result()) for chunk, request, future in pending]

    def close(self) -> None:
        # Writes that have not begun are dropped: after an error, no mark will list their images.
        self.pool.shutdown(cancel_futures=True)


def recorded(folder: Path) -> SampleSet:
    """The record of the set in `folder`.

    Raises ConfigMismatchError if this version cannot read it.
    """
    # Through JSON text: records are strict, and pydantic accepts a list as a tuple only from JSON.
    return SampleSet.model_validate_json(json.dumps(read_record(folder / RECORD, SampleSet)))


def refuse_other(folder: Path, config: SampleSet) -> None:
    """Raise ConfigMismatchError if `folder` belongs to another set or has more images of this one.

    A larger count that was not completed does not count. Writes nothing.
    """
    path = folder / RECORD
    if not path.exists():
        return
    existing = recorded(folder)
    # The recorded count is larger: it may be lowered again unless all its images were drawn.
    if existing.extends(config):
        if not is_done(folder):
            return
        raise ConfigMismatchError(
            f"{folder} has {counted(existing.count, 'image')} of each class already. Ask for "
            f"--count {existing.count} or more, or give the new set a --name of its own"
        )
    # Equal records have no differences, so this raises only for another set.
    if not config.extends(existing):
        raise_if_mismatch(path, record_differences(path, config))


def refuse_changed(folder: Path, config: SampleSet) -> None:
    """Raise ConfigMismatchError if `folder` now has another set or another count."""
    raise_if_mismatch(folder / RECORD, record_differences(folder / RECORD, config))


def _crc32(path: Path) -> int | None:
    try:
        return zlib.crc32(path.read_bytes())
    except FileNotFoundError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1  # equals no recorded size
