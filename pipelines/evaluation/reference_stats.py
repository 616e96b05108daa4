"""What samples are compared with: statistics of a data set's images, gathered once, or a file's.

Shapes: B images, W their side.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.stages.attempt import WAIT
from pipelines.stages.context import RunContext
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import file_lock
from var_scaling.data.dataset import ImageDataset, open_images
from var_scaling.data.listing import DataError, list_images
from var_scaling.data.loader import in_order
from var_scaling.data.order import spread_rows
from var_scaling.datasets import DataRecord, ImageFiles, Reading, record_of
from var_scaling.disk import DONE, file_sha256, is_done, read_json, write_json
from var_scaling.evaluation.archives import ExternalStatistics, load_statistics, save_statistics
from var_scaling.evaluation.extractors import Extractor
from var_scaling.evaluation.statistics import Statistics, StatisticsError

MOST = 50_000  # images of a reference: as many as samples are made for a FID that is reported
_BATCH = 64  # images that are looked at together
_WORTH = 1000  # images from which on starting worker processes to read them pays

ReportProgress = Callable[[str, int, int], None]
Batch = tuple[np.ndarray, Tensor]  # rows (B,), images uint8 (B, W, W, 3)


@dataclass(frozen=True)
class Cut:
    """How the images of a folder that no model here was trained on become squares."""

    enlarge: float | None = None  # shorter side before the centre is cut; None: the data's own
    validation_share: float | None = None  # of images held out; None: the data's own, else 0

    @property
    def said(self) -> dict[str, float]:
        """What was asked for, by field."""
        both = {"enlarge": self.enlarge, "validation_share": self.validation_share}
        return {name: value for name, value in both.items() if value is not None}


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, under the name that the result bears."""

    name: str
    statistics: Statistics | ExternalStatistics
    sha256: str  # of the file that holds them


def real_data(
    context: RunContext, name: str, split: str, side: int, own: DataRecord | None, cut: Cut
) -> Any:
    """The record of the real images called `name`, cut to `side`.

    That is `own` where it bears the name, made images that a tokenizer here was trained on, or
    image files. Raises DataError where there are none, ValueError where they cannot be cut so.
    """
    data = own if own is not None and own.name == name else _made_here(context, name)
    if data is None:
        root = context.settings.data_root(name)
        if root is None:
            raise DataError(
                f'{name}: no images of that name: put [data] {name} = "/path" into var-scaling.toml'
            )
        share = cut.validation_share or 0.0
        listing = list_images(root, split, share)
        classes = len(listing.classes) if listing.classes else int(listing.labels.max()) + 1
        data = ImageFiles(name=name, side=side, classes=classes, validation_share=share)
    return data.cut_to(side, cut.said)  # a reference shows each image once, as it is


def _made_here(context: RunContext, name: str) -> DataRecord | None:
    """The made images of that name that a tokenizer here learnt. Raises ValueError if several did,
    of different images.
    """
    found = {}
    for path in sorted((context.home.root / "tokenizers").glob("*/tokenizer.json")):
        data = read_json(path).get("data", {})
        kind = data.get("kind")
        if kind and data.get("name") == name and not record_of(kind).reads_files:
            found[path.parent.name] = record_of(kind).model_validate_json(json.dumps(data))
    if len(set(found.values())) > 1:
        raise ValueError(
            f"{name}: the tokenizers {', '.join(found)} learnt different images of that name; "
            "which are meant is not known here"
        )
    return next(iter(found.values()), None)


def real_images(context: RunContext, data: DataRecord, split: str) -> ImageDataset:
    """The images of a record that `real_data` gave. Raises DataError."""
    survey, root = context.home.survey(data.name, split), context.settings.data_root(data.name)
    report_progress = context.report_progress or (lambda what, done, total: None)
    with file_lock(survey, wait=WAIT) if root else nullcontext():
        reading = Reading(root, survey, _readers(context, data, _WORTH), report_progress)
        return open_images(data, split, reading)


def batches_of(
    context: RunContext, source: ImageDataset, data: DataRecord, rows: np.ndarray
) -> Iterator[Batch]:
    """The images of `rows`, each under its place among them."""
    return read_batches(
        lambda chosen: source.images(rows[chosen], np.zeros_like(chosen)),
        len(rows),
        _readers(context, data, len(rows)),
    )


def read_batches(
    read: Callable[[np.ndarray], np.ndarray], count: int, workers: int
) -> Iterator[Batch]:
    """Images 0 … `count` - 1, a batch in memory at a time, ahead by `workers` processes."""
    starts = range(0, count, _BATCH)
    chosen = [np.arange(start, min(start + _BATCH, count)) for start in starts]
    for rows, images in zip(chosen, in_order(read, chosen, workers), strict=True):
        yield rows, torch.from_numpy(images)


def readers(context: RunContext, count: int) -> int:
    """Worker processes for reading `count` image files."""
    return context.process.workers if count >= _WORTH else 0


def _readers(context: RunContext, data: DataRecord, count: int) -> int:
    """As many, but none for images that are made: that costs less than passing them on."""
    return readers(context, count) if data.reads_files else 0


def gather(
    extractor: Extractor,
    batches: Iterable[Batch],
    count: int,
    what: str,
    report_progress: ReportProgress,
) -> Statistics:
    """What `extractor` makes of `count` images."""
    found = Statistics(extractor)
    for rows, images in batches:
        found.add(extractor(images.to(extractor.device)), rows)
        report_progress(what, found.count, count)
    return found


def reference_of(
    context: RunContext,
    data: DataRecord,
    split: str,
    extractor: Extractor,
    images: int,
    report_progress: ReportProgress,
) -> Reference:
    """Statistics of at most `images` of `data`'s `split`, spread evenly; kept, and used again.

    `data` is what `real_data` gave. Raises StatisticsError where what is kept is of other images,
    or of another extractor.
    """
    source = real_images(context, data, split)
    rows = spread_rows(source.rows, images)
    name = f"{data.name}-{split}"
    if (enlarge := data.cut().get("enlarge", 1)) != 1:
        name += f"-x{enlarge:g}"
    if len(rows) < min(source.rows, MOST) or len(rows) > MOST:  # not the usual choice
        name += f"-{len(rows)}"
    fingerprint = {
        "data": data.model_dump(mode="json"),
        "split": split,
        "images": len(rows),
        "of_images": source.rows,
        "files": getattr(source, "files_fingerprint", None),  # made images have none
    }
    folder = context.home.reference(f"{name}-{data.side}px-{extractor.name}")
    if _is_cut_otherwise(folder, data.model_dump(mode="json")):
        name = f"{name}-{data.fingerprint()[:8]}"
        folder = context.home.reference(f"{name}-{data.side}px-{extractor.name}")
    path = folder / "statistics.npz"
    with file_lock(folder, wait=WAIT):
        if not is_done(folder):
            began = time.monotonic()
            batches = batches_of(context, source, data, rows)
            found = gather(extractor, batches, len(rows), f"reference {name}", report_progress)
            save_statistics(path, found, fingerprint)
            said = {"extractor": extractor.name, "extractor_sha256": extractor.sha256}
            seconds = round(time.monotonic() - began, 3)
            made = {"commit": code_version(), "seconds": seconds}
            write_json(folder / "reference.json", {**said, **fingerprint, **made})
            write_json(folder / DONE, {"status": "done", "sha256": file_sha256(path)})
        try:
            kept = load_statistics(path, extractor, fingerprint)
        except StatisticsError as error:
            raise StatisticsError(
                f"{error}\nMove {folder} away, and they are gathered anew"
            ) from error
    return Reference(name, kept, read_json(folder / DONE)["sha256"])


def _is_cut_otherwise(folder: Path, wanted: dict[str, Any]) -> bool:
    """Whether the finished reference in `folder` is of the same data, cut or split otherwise."""
    if not is_done(folder) or not (folder / "reference.json").exists():
        return False
    recorded = read_json(folder / "reference.json").get("data", {})
    options = {name: wanted[name] for name in ("enlarge", "validation_share") if name in wanted}
    return recorded != wanted and {**recorded, **options} == wanted


def given_reference(path: Path, extractor: Extractor) -> Reference:
    """Statistics in a file from elsewhere: `mu` and `sigma`, as ADM and pytorch-fid give them.

    One that we wrote says what looked and at what: the extractor must be the same, the rest is
    taken as it stands. Its name is the file's with the head of its hash, for two files of one name
    are two references. Raises StatisticsError.
    """
    kept = load_statistics(path, extractor, None, foreign=True)
    sha256 = file_sha256(path)
    return Reference(f"{path.name} {sha256[:8]}", kept, sha256)
