"""Image files as a dataset, after one look at every file."""

import csv
import os
from pathlib import Path

import numpy as np

from var_scaling.class_names import called
from var_scaling.data.decode import Undecodable, decode, square
from var_scaling.data.listing import DataError, Listing, fingerprint, list_images
from var_scaling.data.loader import in_order
from var_scaling.data.tree import OTHER_SUFFIXES
from var_scaling.datasets import ImageFiles, Progress, Reading
from var_scaling.disk import DONE, file_sha256, is_done, read_json, whole, write_json
from var_scaling.randomness import seed_for
from var_scaling.text import cell, one_line

REJECTED_SHARE = 0.01  # more than this undecodable: the data is broken, not a few files
_CHUNK = 256


def open_files(data: ImageFiles, split: str, reading: Reading) -> "FileSource":
    """The images of `data`'s `split` ("train" or "validation"). Raises DataError.

    The files lie under `reading.root` and are surveyed once, into the folder `reading.survey`.
    """
    root, survey, workers, progress = reading
    if root is None:
        raise DataError(
            f'data {data.name!r} has no path: put [data] {data.name} = "/path" into '
            f"var-scaling.toml, or set VAR_SCALING_DATA to a folder that holds {data.name}/"
        )
    listing = list_images(root, split, data.validation_share)
    if split == "train" and data.train_images not in (None, len(listing.names)):
        raise DataError(
            f"{root}: {len(listing.names):,} training images found, data {data.name!r} says "
            f"{data.train_images:,}"
        )
    found = len(listing.classes) if listing.classes is not None else int(listing.labels.max()) + 1
    if found != data.classes and (listing.classes is not None or found > data.classes):
        names = ", ".join(map(one_line, (listing.classes or [])[:5]))
        raise DataError(
            f"{root}: {found} classes found, data {data.name!r} says {data.classes}"
            + (f"; found: {names}{', …' if found > 5 else ''}" if names else "")
        )
    kept = surveyed(listing, root, survey, workers, progress, data.validation_share)
    source = FileSource(data, split, listing, kept)
    if split == "train":
        _refuse_empty_classes(root, data.classes, source)
    return source


def _refuse_empty_classes(root: Path, classes: int, source: "FileSource") -> None:
    """A class that no training image has: labels that do not start at 0, or have holes."""
    counts = np.bincount(source.labels, minlength=classes)
    empty = [called(label, source.classes) for label in np.flatnonzero(counts == 0).tolist()]
    if empty:
        raise DataError(
            f"{root}: {len(empty):,} of {classes:,} classes have no training image: "
            f"{', '.join(empty[:5])}{', …' if len(empty) > 5 else ''}. Labels count from 0 without "
            "holes: take these classes out of the data, or say fewer classes"
        )


def surveyed(
    listing: Listing, root: Path, folder: Path, workers: int, progress: Progress, share: float = 0.0
) -> np.ndarray:
    """Rows that decode, found by decoding each once; the rest stand in `folder`/rejected.csv.

    What was held out by another `share` is surveyed in a folder beside it. Raises DataError above
    REJECTED_SHARE, or if `folder` surveyed other files, or is damaged.
    """
    wanted = {"fingerprint": fingerprint(listing), "images": len(listing.names)}
    if is_done(folder):
        recorded = read_json(folder / DONE)
        if any(recorded[key] != value for key, value in wanted.items()):
            if recorded.get("validation_share", share) != share:
                beside = folder.with_name(f"{folder.name}-share-{share:g}")
                return surveyed(listing, root, beside, workers, progress, share)
            raise DataError(
                f"{root}: the files have changed since they were surveyed into {folder}: "
                f"{recorded['images']:,} images then, {wanted['images']:,} now. Tokens made from "
                "them would not match; restore the files, or give the new data a new name"
            )
        return _read_kept(folder / "kept.npy", recorded.get("kept_sha256"))

    def look(rows: range) -> list[tuple[int, str]]:
        reasons = ((row, _why_not(listing, row)) for row in rows)
        return [(row, why) for row, why in reasons if why]

    count = len(listing.names)
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    rejected: list[tuple[int, str]] = []
    for done, found in enumerate(in_order(look, chunks, workers), 1):
        rejected += found
        progress(f"reading {os.path.basename(folder)}", min(done * _CHUNK, count), count)
    _write_rejected(folder / "rejected.csv", listing, rejected)
    damaged = [(row, why) for row, why in rejected if not _other_file(listing.names[row])]
    if len(damaged) > REJECTED_SHARE * count:
        first = "; ".join(f"{one_line(listing.names[row])}: {why}" for row, why in damaged[:3])
        raise DataError(
            f"{root}: {len(damaged):,} of {count:,} images do not decode, more than "
            f"{REJECTED_SHARE:.0%}. All are listed in {folder / 'rejected.csv'}; the first: {first}"
        )
    kept = np.setdiff1d(np.arange(count), [row for row, _ in rejected])
    lost = sorted(set(listing.labels.tolist()) - set(listing.labels[kept].tolist()))
    if lost:
        raise DataError(
            f"{root}: nothing in class {called(lost[0], listing.classes)} is an image; "
            f"{folder / 'rejected.csv'} lists the files. Remove the class, or bring its images"
        )
    with whole(folder / "kept.npy") as beside, open(beside, "wb") as file:
        np.save(file, kept)
    noted = {"rejected": len(rejected), "classes": listing.classes, "validation_share": share}
    kept_sha256 = file_sha256(folder / "kept.npy")
    write_json(folder / DONE, {**wanted, **noted, "kept_sha256": kept_sha256})
    return kept


def _read_kept(path: Path, sha256: str | None) -> np.ndarray:
    try:
        found = file_sha256(path)
        if sha256 in (None, found):
            return np.load(path)
        why = f"its SHA-256 is {found}, {DONE} records {sha256}"
    except (OSError, ValueError, EOFError) as error:
        why = str(error)
    raise DataError(f"{path} is damaged: {why}. Delete {path.parent}: the files are surveyed again")


class FileSource:
    """Decoded image files, cropped as the record says; validation always takes the centre."""

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
        return np.stack([self._image(row, epoch) for row, epoch in pairs])

    def _image(self, row: int, epoch: int) -> np.ndarray:
        where = None
        if self.crops:
            crop = epoch % self.crops
            where = np.random.default_rng(seed_for(self.data.seed, "crop", row, crop))
        kept = int(self._kept[row])
        try:
            image = decode(self._listing.read(kept))
        except (Undecodable, OSError) as error:
            name = one_line(self._listing.names[kept])
            raise DataError(f"{name}: could be read when surveyed, now not: {error}") from error
        return square(image, self.data.side, self.data.enlarge, where, self.data.flip)


def _why_not(listing: Listing, row: int) -> str | None:
    try:
        decode(listing.read(row))
    except (Undecodable, OSError) as error:
        return str(error)
    return None


def _write_rejected(path: Path, listing: Listing, rejected: list[tuple[int, str]]) -> None:
    with (
        whole(path) as beside,
        open(beside, "w", newline="", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", "class", "reason"])
        for row, why in rejected:
            label = int(listing.labels[row])
            name = listing.classes[label] if listing.classes is not None else label
            writer.writerow([cell(part) for part in (listing.names[row], name, why)])


def _other_file(name: str) -> bool:
    """Whether the file is, by its suffix, no image at all, as `Thumbs.db` or a list of labels."""
    return os.path.splitext(name)[1].lower() in OTHER_SUFFIXES
