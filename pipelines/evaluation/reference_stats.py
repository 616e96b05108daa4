"""Reference statistics for FID and related scores: computed once from images, or read from a file.

Shapes: B images, W image side in pixels.
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
from var_scaling.datasets import DataRecord, ImageFiles, ReadOptions, record_of
from var_scaling.disk import DONE, file_sha256, is_done, read_json, write_json
from var_scaling.evaluation.archives import ExternalStatistics, load_statistics, save_statistics
from var_scaling.evaluation.extractors import Extractor
from var_scaling.evaluation.statistics import Statistics, StatisticsError

MAX_REFERENCE_IMAGES = 50_000  # the usual number of samples for a reported FID
_BATCH = 64  # images per pass of the feature network
_MIN_FOR_WORKERS = 1000  # images; for fewer, starting worker processes takes longer than it saves

ReportProgress = Callable[[str, int, int], None]
Batch = tuple[np.ndarray, Tensor]  # rows (B,), images uint8 (B, W, W, 3)


@dataclass(frozen=True)
class CropOptions:
    """How to crop image files to squares. None: as the data record has it."""

    enlarge: float | None = None  # shorter side before the centre crop, as a factor
    validation_share: float | None = None  # of all images; 0 if neither has it

    @property
    def given(self) -> dict[str, float]:
        """The fields that are not None."""
        both = {"enlarge": self.enlarge, "validation_share": self.validation_share}
        return {name: value for name, value in both.items() if value is not None}


@dataclass(frozen=True)
class Reference:
    """Statistics of reference images, and the reference's name in results."""

    name: str
    statistics: Statistics | ExternalStatistics
    sha256: str  # of the statistics file


def real_data(
    context: RunContext,
    name: str,
    split: str,
    side: int,
    training_data: DataRecord | None,
    crop: CropOptions,
) -> Any:
    """The record of the real images `name`, cropped to `side`.

    It is `training_data` if that has the name, else the generated images of that name on which a
    tokenizer in this home was trained, else image files. Raises DataError if there are none,
    ValueError if they cannot be cropped so.
    """
    if training_data is not None and training_data.name == name:
        data: DataRecord | None = training_data
    else:
        data = _generated_images(context, name)
    if data is None:
        root = context.settings.data_root(name)
        if root is None:
            raise DataError(
                f'{name}: no such images; add [data] {name} = "/path" to var-scaling.toml'
            )
        share = crop.validation_share or 0.0
        listing = list_images(root, split, share)
        classes = len(listing.classes) if listing.classes else int(listing.labels.max()) + 1
        data = ImageFiles(name=name, side=side, classes=classes, validation_share=share)
    return data.with_crop(side, crop.given)  # without augmentation


def _generated_images(context: RunContext, name: str) -> DataRecord | None:
    """The generated images `name` on which a tokenizer in this home was trained.

    Raises ValueError if tokenizers were trained on different images of that name.
    """
    records = {}
    for path in sorted((context.home.root / "tokenizers").glob("*/tokenizer.json")):
        data = read_json(path).get("data", {})
        kind = data.get("kind")
        if kind and data.get("name") == name and not record_of(kind).reads_files:
            records[path.parent.name] = record_of(kind).model_validate_json(json.dumps(data))
    # Equal records count once: several tokenizers may be trained on the same images.
    if len(set(records.values())) > 1:
        raise ValueError(
            f"{name}: the tokenizers {', '.join(records)} were trained on different images of that "
            "name, so the name is ambiguous"
        )
    return next(iter(records.values()), None)


def real_images(context: RunContext, data: DataRecord, split: str) -> ImageDataset:
    """The images of a record from `real_data`. Raises DataError."""
    listing = context.home.image_listing(data.name, split)
    root = context.settings.data_root(data.name)
    report_progress = context.report_progress or (lambda what, done, total: None)
    # The first use of image files decodes each of them and writes the listing. Two processes must
    # not do that at once; generated images have no listing.
    with file_lock(listing, wait=WAIT) if root else nullcontext():
        reading = ReadOptions(
            root, listing, _readers(context, data, _MIN_FOR_WORKERS), report_progress
        )
        return open_images(data, split, reading)


def batches_of(
    context: RunContext, source: ImageDataset, data: DataRecord, rows: np.ndarray
) -> Iterator[Batch]:
    """The images of `rows` in batches. Each batch has its indices into `rows`."""
    return read_batches(
        # Epoch 0 of each row: without augmentation all epochs are the same.
        lambda chosen: source.images(rows[chosen], np.zeros_like(chosen)),
        len(rows),
        _readers(context, data, len(rows)),
    )


def read_batches(
    read: Callable[[np.ndarray], np.ndarray], count: int, workers: int
) -> Iterator[Batch]:
    """Images 0 … `count` - 1 in batches, read ahead by `workers` processes."""
    starts = range(0, count, _BATCH)
    chosen = [np.arange(start, min(start + _BATCH, count)) for start in starts]
    for rows, images in zip(chosen, in_order(read, chosen, workers), strict=True):
        yield rows, torch.from_numpy(images)


def reader_count(context: RunContext, count: int) -> int:
    """Worker processes for reading `count` image files."""
    return context.process.workers if count >= _MIN_FOR_WORKERS else 0


def _readers(context: RunContext, data: DataRecord, count: int) -> int:
    """The same, but 0 for generated images: generating one is faster than sending it."""
    return reader_count(context, count) if data.reads_files else 0


def gather_statistics(
    extractor: Extractor,
    batches: Iterable[Batch],
    count: int,
    what: str,
    report_progress: ReportProgress,
) -> Statistics:
    """Statistics of the features of `count` images."""
    statistics = Statistics(extractor)
    for rows, images in batches:
        statistics.add(extractor(images.to(extractor.device)), rows)
        report_progress(what, statistics.count, count)
    return statistics


def reference_of(
    context: RunContext,
    data: DataRecord,
    split: str,
    extractor: Extractor,
    images: int,
    report_progress: ReportProgress,
) -> Reference:
    """Statistics of at most `images` evenly spaced images of a split, saved and reused.

    `data` comes from `real_data`. Raises StatisticsError if the saved statistics are of other
    images or of another extractor.
    """
    source = real_images(context, data, split)
    rows = spread_rows(source.rows, images)
    # The name identifies the reference in saved results (`_identity` in scores.py), so other crops
    # and other numbers of images get a suffix.
    name = f"{data.name}-{split}"
    if (enlarge := data.crop_settings().get("enlarge", 1)) != 1:
        name += f"-x{enlarge:g}"
    if (
        len(rows) < min(source.rows, MAX_REFERENCE_IMAGES) or len(rows) > MAX_REFERENCE_IMAGES
    ):  # not the default number
        name += f"-{len(rows)}"
    # Saved with the statistics and compared when they are loaded: a name may come to stand for
    # other images.
    fingerprint = {
        "data": data.model_dump(mode="json"),
        "split": split,
        "images": len(rows),
        "of_images": source.rows,
        "files": getattr(source, "files_fingerprint", None),  # None for generated images
    }
    folder = context.home.reference(f"{name}-{data.side}px-{extractor.name}")
    if _is_cropped_otherwise(folder, data.model_dump(mode="json")):
        name = f"{name}-{data.fingerprint()[:8]}"
        folder = context.home.reference(f"{name}-{data.side}px-{extractor.name}")
    path = folder / "statistics.npz"
    # Several stages may need the same reference: the first computes it, the others wait.
    with file_lock(folder, wait=WAIT):
        if not is_done(folder):
            began = time.monotonic()
            batches = batches_of(context, source, data, rows)
            statistics = gather_statistics(
                extractor, batches, len(rows), f"reference {name}", report_progress
            )
            save_statistics(path, statistics, fingerprint)
            network = {"extractor": extractor.name, "extractor_sha256": extractor.sha256}
            seconds = round(time.monotonic() - began, 3)
            origin = {"commit": code_version(), "seconds": seconds}
            write_json(folder / "reference.json", {**network, **fingerprint, **origin})
            write_json(folder / DONE, {"status": "done", "sha256": file_sha256(path)})
        try:
            saved = load_statistics(path, extractor, fingerprint)
        except StatisticsError as error:
            raise StatisticsError(
                f"{error}\nMove {folder} away to compute the statistics again"
            ) from error
    return Reference(name, saved, read_json(folder / DONE)["sha256"])


def _is_cropped_otherwise(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the reference in `folder` is of the same data with another crop or split."""
    if not is_done(folder) or not (folder / "reference.json").exists():
        return False
    recorded = read_json(folder / "reference.json").get("data", {})
    options = {name: record[name] for name in ("enlarge", "validation_share") if name in record}
    # Equal but for the crop: a second reference, not an error.
    return recorded != record and {**recorded, **options} == record


def reference_from_file(path: Path, extractor: Extractor) -> Reference:
    """Statistics in an external file: `mu` and `sigma`, as ADM and pytorch-fid provide them.

    A file written by this project records its extractor, which must be the same. The reference's
    name includes the head of the file's hash, so that two files of one name are two references.
    Raises StatisticsError.
    """
    statistics = load_statistics(path, extractor, None, allow_external=True)
    sha256 = file_sha256(path)
    return Reference(f"{path.name} {sha256[:8]}", statistics, sha256)
