"""Image files as a dataset. A survey decodes each file once and excludes those that fail."""

import csv
import os
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
from PIL import Image

from var_scaling.class_names import class_label
from var_scaling.data.decode import Undecodable, crop, decode, resized
from var_scaling.data.listing import DataError, Listing, fingerprint, list_images
from var_scaling.data.loader import in_order
from var_scaling.data.tree import OTHER_SUFFIXES
from var_scaling.datasets import ImageFiles, Progress, ReadOptions
from var_scaling.disk import DONE, atomic_write, file_sha256, is_done, read_json, write_json
from var_scaling.randomness import seed_for
from var_scaling.text import cell, one_line

REJECTED_SHARE = 0.01  # above this share of undecodable files, the data set is refused
_CHUNK = 256  # files per call of a worker


def open_files(data: ImageFiles, split: str, options: ReadOptions) -> "FileSource":
    """The images of `data`'s `split` ("train" or "validation"). Raises DataError.

    The files are under `options.root` and are surveyed once, into the folder `options.survey`.
    """
    root, survey, workers, progress = options
    if root is None:
        raise DataError(
            f'data {data.name!r} has no path: put [data] {data.name} = "/path" into '
            f"var-scaling.toml, or set VAR_SCALING_DATA to a folder that holds {data.name}/"
        )
    listing = list_images(root, split, data.validation_share)
    if split == "train" and data.train_images not in (None, len(listing.names)):
        raise DataError(
            f"{root}: {len(listing.names):,} training images found, data {data.name!r} has "
            f"train_images = {data.train_images:,}; set it to {len(listing.names)} or leave it out"
        )
    count = len(listing.classes) if listing.classes is not None else int(listing.labels.max()) + 1
    # Without names, a number below data.classes is allowed: the last classes may have no image.
    if count != data.classes and (listing.classes is not None or count > data.classes):
        names = ", ".join(map(one_line, (listing.classes or [])[:5]))
        raise DataError(
            f"{root}: {count} classes found, data {data.name!r} has classes = {data.classes}; "
            f"set it to {count} or correct the folder"
            + (f"; found: {names}{', …' if count > 5 else ''}" if names else "")
        )
    kept = surveyed(listing, root, survey, workers, progress, data.validation_share)
    source = FileSource(data, split, listing, kept)
    if split == "train":
        _refuse_empty_classes(root, data.classes, source)
    return source


def _refuse_empty_classes(root: Path, classes: int, source: "FileSource") -> None:
    """Refuse a class without training images: the labels do not start at 0, or have gaps."""
    counts = np.bincount(source.labels, minlength=classes)
    empty = [class_label(label, source.classes) for label in np.flatnonzero(counts == 0).tolist()]
    if empty:
        raise DataError(
            f"{root}: {len(empty):,} of {classes:,} classes have no training image: "
            f"{', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}. Labels must count from 0 "
            "without gaps: remove these classes from the data, or set fewer `classes`"
        )


def surveyed(
    listing: Listing, root: Path, folder: Path, workers: int, progress: Progress, share: float = 0.0
) -> np.ndarray:
    """The rows that decode; each is decoded once. `folder`/rejected.csv lists the others.

    A second `share` of held-out images is surveyed in a second folder next to `folder`. Raises
    DataError if more than REJECTED_SHARE fail, or if `folder` is of other files or is damaged.
    """
    expected = {"fingerprint": fingerprint(listing), "images": len(listing.names)}
    if is_done(folder):
        recorded = read_json(folder / DONE)
        if any(recorded[key] != value for key, value in expected.items()):
            if recorded.get("validation_share", share) != share:
                other_folder = folder.with_name(f"{folder.name}-share-{share:g}")
                return surveyed(listing, root, other_folder, workers, progress, share)
            raise DataError(
                f"{root}: the files have changed since they were surveyed into {folder}: "
                f"{recorded['images']:,} images then, {expected['images']:,} now. Existing tokens "
                "would not match them; restore the files, or give the new data a new name"
            )
        return _read_kept(folder / "kept.npy", recorded.get("kept_sha256"))

    # Runs in the workers. Only the failures come back, not the decoded images.
    def rejected_among(rows: range) -> list[tuple[int, str]]:
        reasons = ((row, _decode_error(listing, row)) for row in rows)
        return [(row, reason) for row, reason in reasons if reason]

    count = len(listing.names)
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    rejected: list[tuple[int, str]] = []
    for done, failures in enumerate(in_order(rejected_among, chunks, workers), 1):
        rejected += failures
        progress(f"reading {os.path.basename(folder)}", min(done * _CHUNK, count), count)
    # Before the checks: their messages name this file.
    _write_rejected(folder / "rejected.csv", listing, rejected)
    # Files that are never images, such as Thumbs.db, do not count as damage.
    damaged = [(row, reason) for row, reason in rejected if not _is_other_file(listing.names[row])]
    if len(damaged) > REJECTED_SHARE * count:
        first = "; ".join(
            f"{one_line(listing.names[row])}: {reason}" for row, reason in damaged[:3]
        )
        raise DataError(
            f"{root}: {len(damaged):,} of {count:,} images do not decode, more than "
            f"{REJECTED_SHARE:.0%}. {folder / 'rejected.csv'} lists all; the first: {first}"
        )
    kept = np.setdiff1d(np.arange(count), [row for row, _ in rejected])
    empty = sorted(set(listing.labels.tolist()) - set(listing.labels[kept].tolist()))
    if empty:
        raise DataError(
            f"{root}: no file of class {class_label(empty[0], listing.classes)} is an image; "
            f"{folder / 'rejected.csv'} lists the files. Remove the class, or add its images"
        )
    with atomic_write(folder / "kept.npy") as temporary_path, open(temporary_path, "wb") as file:
        np.save(file, kept)
    survey = {"rejected": len(rejected), "classes": listing.classes, "validation_share": share}
    # DONE is written last: a survey killed before this line is made again.
    kept_sha256 = file_sha256(folder / "kept.npy")
    write_json(folder / DONE, {**expected, **survey, "kept_sha256": kept_sha256})
    return kept


def _read_kept(path: Path, sha256: str | None) -> np.ndarray:
    try:
        actual = file_sha256(path)
        if sha256 in (None, actual):  # None: written by an earlier version
            return np.load(path)
        reason = f"its SHA-256 is {actual}, {DONE} records {sha256}"
    except (OSError, ValueError, EOFError) as error:
        reason = str(error)
    raise DataError(
        f"{path} is damaged: {reason}. Delete {path.parent}, and the files will be surveyed again"
    )


class FileSource:
    """Decoded image files, cropped by the record's settings; validation takes the centre crop."""

    def __init__(self, data: ImageFiles, split: str, listing: Listing, kept: np.ndarray):
        self.data = data
        self.files_fingerprint = fingerprint(listing)
        self.crops = data.crops if split == "train" else 0
        self.rows = len(kept)
        self.labels = listing.labels[kept]
        self.classes = listing.classes
        self._listing = listing
        self._kept = kept

    def images(self, rows: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        pairs = zip(rows.tolist(), np.broadcast_to(epochs, rows.shape).tolist(), strict=True)
        crops = []
        # An encoder asks for all crops of an image in turn: it is decoded once for them.
        for row, of_row in groupby(pairs, key=itemgetter(0)):
            image = resized(self._read(row), self.data.side, self.data.enlarge)
            for _, epoch in of_row:
                crops.append(crop(image, self.data.side, self._draws(row, epoch), self.data.flip))
        return np.stack(crops)

    def _draws(self, row: int, epoch: int) -> np.random.Generator | None:
        if not self.crops:
            return None
        # Crop c of an image is the same in all epochs with epoch % crops = c, so that the token
        # cache can hold it.
        return np.random.default_rng(seed_for(self.data.seed, "crop", row, epoch % self.crops))

    def _read(self, row: int) -> Image.Image:
        kept = int(self._kept[row])
        try:
            return decode(self._listing.read(kept))
        except (Undecodable, OSError) as error:
            name = one_line(self._listing.names[kept])
            raise DataError(f"{name}: was readable in the survey, but not now: {error}") from error


def _decode_error(listing: Listing, row: int) -> str | None:
    try:
        decode(listing.read(row))
    except (Undecodable, OSError) as error:
        return str(error)
    return None


def _write_rejected(path: Path, listing: Listing, rejected: list[tuple[int, str]]) -> None:
    with (
        atomic_write(path) as temporary_path,
        # A file name may have bytes that are not UTF-8.
        open(temporary_path, "w", newline="", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", "class", "reason"])
        for row, reason in rejected:
            label = int(listing.labels[row])
            name = listing.classes[label] if listing.classes is not None else label
            writer.writerow([cell(part) for part in (listing.names[row], name, reason)])


def _is_other_file(name: str) -> bool:
    """Whether the suffix is never that of an image, as of `Thumbs.db` or a list of labels."""
    return os.path.splitext(name)[1].lower() in OTHER_SUFFIXES
