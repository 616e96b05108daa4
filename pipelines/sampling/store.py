"""The folder of a set of samples: its images, and for each chunk a mark of what is whole on disk.

A mark is written after its images and lists them with size and checksum. What it does not list, or
what is not there as listed, is drawn again: so whatever a killed process or a full disk left, and
however much a set has grown, the next run makes what is missing and nothing else. No torch.
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

from pipelines.workspace.store import ConfigMismatchError, drift, read_record, refuse
from var_scaling.disk import DONE, is_done, read_json, whole
from var_scaling.experiment.sample_set import Request, SampleSet

RECORD, SAMPLES, STRIPS = "sampling.json", "samples", "strips.png"
_READERS = 8  # files read at a time: a network disk answers late, not slowly


@dataclass(frozen=True)
class StoredImage:
    """An image on disk; `score` where a classifier has judged it."""

    bytes: int
    crc32: int
    score: float | None = None


@dataclass(frozen=True)
class ProcessShare:
    """One process's share of a chunk: what it made, by what code, where, in how long."""

    images: int
    seconds: float
    device: str
    commit: str | None
    host: str


class SampleFolder:
    """The images of `wanted` below `folder`."""

    def __init__(self, folder: Path, wanted: SampleSet):
        self.folder, self.wanted = folder, wanted
        # Where images are drawn to; those that a classifier accepts come into images/ at the end.
        self.drawn = folder / ("images" if wanted.rejection is None else "candidates")

    def init_run_dir(self) -> None:
        """Be the home of `wanted`: new, the same, or the same with another count.

        A count that was never reached may fall again. Raises Drift if the folder belongs to
        another set, or has more images of this one.
        """
        refuse_other(self.folder, self.wanted)
        path = self.folder / RECORD
        if path.exists():
            if self.is_current():
                return
        else:  # it is unknown what the marks belong to
            for mark in (self.folder / "chunks").glob("*.json"):
                mark.unlink(missing_ok=True)
        for stale in (DONE, STRIPS):
            (self.folder / stale).unlink(missing_ok=True)
        with whole(path) as beside:
            beside.write_text(self.wanted.model_dump_json(indent=1) + "\n")

    def is_current(self) -> bool:
        """Whether the folder is the home of this set, with this count."""
        return recorded(self.folder) == self.wanted

    def path(self, request: Request) -> Path:
        return self.drawn / self.wanted.file(request)

    def mark_path(self, chunk: int) -> Path:
        return self.folder / "chunks" / f"{chunk:05d}.json"

    def marked(self) -> set[int]:
        """The chunks of which something is marked: one listing, nothing is read."""
        try:
            names = os.listdir(self.folder / "chunks")
        except FileNotFoundError:
            return set()
        return {int(name[:-5]) for name in names if name[:-5].isdigit()}

    def look(self, chunk: int) -> dict[Request, StoredImage]:
        """Those images of `chunk` that are whole on disk, in the order of drawing."""
        listed = self._mark(chunk)[0]
        judged = self.wanted.rejection is not None
        return {
            request: listed[request]
            for request in self.wanted.chunk(chunk)
            if request in listed
            and (listed[request].score is not None) == judged
            and _size(self.path(request)) == listed[request].bytes
        }

    def look_at_all(self) -> tuple[dict[Request, StoredImage], list[int]]:
        """All images that are whole on disk, in the order of drawing; the chunks that lack some."""
        found: dict[Request, StoredImage] = {}
        lacking = []
        for chunk in range(self.wanted.chunks):
            here = self.look(chunk)
            found |= here
            if len(here) < len(self.wanted.chunk(chunk)):
                lacking.append(chunk)
        return found, lacking

    def damaged(self, found: dict[Request, StoredImage]) -> list[Request]:
        """Those of which the file is not what was written; reads them all."""
        requests = list(found)
        with ThreadPoolExecutor(_READERS) as pool:
            sums = pool.map(lambda one: _crc32(self.path(one)), requests)
            return [
                one for one, crc32 in zip(requests, sums, strict=True) if crc32 != found[one].crc32
            ]

    def write(self, request: Request, pixels_WW3: np.ndarray, score: float | None) -> StoredImage:
        """Put one image in its place, whole."""
        kept = BytesIO()
        Image.fromarray(pixels_WW3).save(kept, format="PNG")
        content = kept.getvalue()
        with whole(self.path(request)) as beside:
            beside.write_bytes(content)
        return StoredImage(len(content), zlib.crc32(content), score)

    def mark(self, chunk: int, images: dict[Request, StoredImage], share: ProcessShare) -> None:
        """Note that these images of `chunk` are whole on disk, last made in `life`."""
        rows = [
            [request.label, request.index, made.bytes, made.crc32, made.score]
            for request, made in images.items()
        ]
        shares = [*(asdict(one) for one in self._mark(chunk)[1]), asdict(share)]
        with whole(self.mark_path(chunk)) as beside:
            beside.write_text(json.dumps({"images": rows, "lives": shares}) + "\n")

    def shares(self) -> Iterator[ProcessShare]:
        """Every process's share of every chunk."""
        for chunk in range(self.wanted.chunks):
            yield from self._mark(chunk)[1]

    def _mark(self, chunk: int) -> tuple[dict[Request, StoredImage], list[ProcessShare]]:
        """What is noted of `chunk`; a torn or foreign file, or a folder, notes nothing."""
        try:
            noted = read_json(self.mark_path(chunk))
            images = {Request(row[0], row[1]): StoredImage(*row[2:]) for row in noted["images"]}
            return images, [ProcessShare(**one) for one in noted["lives"]]
        except (FileNotFoundError, IsADirectoryError, ValueError, LookupError, TypeError):
            return {}, []


class Writers:
    """Threads that write images while the next are drawn: PNG and disk need no interpreter."""

    def __init__(self, at: SampleFolder, threads: int):
        self.at, self.pool = at, ThreadPoolExecutor(threads)
        self.waiting: list[tuple[int, Request, Future[StoredImage]]] = []

    def add(self, chunk: int, request: Request, pixels: np.ndarray, score: float | None) -> None:
        future = self.pool.submit(self.at.write, request, pixels, score)
        self.waiting.append((chunk, request, future))

    def settle(self) -> list[tuple[int, Request, StoredImage]]:
        """What was added, once it is whole on disk. Raises OSError."""
        waiting, self.waiting = self.waiting, []
        return [(chunk, request, future.result()) for chunk, request, future in waiting]

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


def recorded(folder: Path) -> SampleSet:
    """The set that `folder` is the home of. Raises Drift if this version cannot read it."""
    return SampleSet.model_validate_json(json.dumps(read_record(folder / RECORD, SampleSet)))


def refuse_other(folder: Path, wanted: SampleSet) -> None:
    """Raise Drift if `folder` belongs to another set, or has more of this one; nothing is written.

    A larger count that did not come to its end is no more than a wish.
    """
    path = folder / RECORD
    if not path.exists():
        return
    known = recorded(folder)
    if known.grown_from(wanted):
        if not is_done(folder):
            return
        raise ConfigMismatchError(
            f"{folder} has {known.count} images of each class already. Ask for --count "
            f"{known.count} or more, or give the new set a --name of its own"
        )
    if not wanted.grown_from(known):
        refuse(path, drift(path, wanted))


def refuse_changed(folder: Path, wanted: SampleSet) -> None:
    """Raise ConfigMismatchError if `folder` now holds another set, or more or fewer samples."""
    refuse(folder / RECORD, drift(folder / RECORD, wanted))


def _crc32(path: Path) -> int | None:
    try:
        return zlib.crc32(path.read_bytes())
    except FileNotFoundError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
