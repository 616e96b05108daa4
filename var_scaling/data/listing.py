"""What images lie at a path: folders by class, or Parquet in the Hugging Face layout."""

import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from var_scaling.randomness import seed_for

# Names that data sets in the wild give their splits, the usual one first.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "test"),
}
_CACHED_BYTES = 1 << 30  # decoded row groups kept by one reader


class DataError(ValueError):
    """The data is not there or not as it must be; the message says what was looked for."""


class Listing(Protocol):
    """The images of one split, before any is decoded."""

    names: list[str]  # as a person would find the image: relative path, or file and row
    labels: np.ndarray  # (images,) int64
    classes: list[str] | None  # None where labels are bare numbers

    def read(self, row: int) -> bytes:
        """The encoded bytes of image `row`."""
        ...


def list_images(root: Path, split: str, validation_share: float) -> Listing:
    """Everything under `root` that belongs to `split`. Raises DataError.

    A split is a folder or Parquet files of that name; where there is none, `validation_share`
    of the whole, chosen by a hash of each name, is held out.
    """
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; give the folder that holds the images")
    parquet = sorted(path for path in root.rglob("*.parquet") if not _hidden(path, root))
    own = {name: _named(root, parquet, name) for name in SPLITS}
    if own["train"] and own["validation"]:
        parts = {name: _listing(root, own[name]) for name in SPLITS}
        _refuse_other_classes(root, parts["train"].classes, parts["validation"].classes)
        return parts[split]
    if own[split] and (own["validation"] or validation_share == 0):
        return _listing(root, own[split])
    base = own["train"] or parquet or [root]
    return _held_out(_listing(root, base), root, split, validation_share)


def _named(root: Path, parquet: list[Path], split: str) -> list[Path]:
    """The Parquet files, or the one folder, that carry a name of `split`; the usual name wins."""
    for name in SPLITS[split]:
        files = [path for path in parquet if name in _words(path.relative_to(root))]
        if files or (not parquet and (root / name).is_dir()):
            return files or [root / name]
    return []


def _listing(root: Path, found: list[Path]) -> Listing:
    if found[0].suffix == ".parquet":
        return ParquetListing(root, found)
    return FolderListing(root, found[0])


def fingerprint(listing: Listing) -> str:
    """Changes with any name, label or class: a data set by another content is another data set."""
    digest = hashlib.sha256(repr(listing.classes).encode())
    digest.update("\0".join(listing.names).encode(errors="surrogateescape"))
    digest.update(listing.labels.tobytes())
    return digest.hexdigest()[:12]


class FolderListing:
    """One folder a class, in sorted order; all in it that is not hidden counts as an image."""

    def __init__(self, root: Path, base: Path):
        self.root = root
        folders = sorted(
            (entry for entry in os.scandir(base) if entry.is_dir() and entry.name[0] != "."),
            key=lambda entry: entry.name,
        )
        if not folders:
            raise DataError(f"{base}: holds no class folders (one folder a class, images inside)")
        self.classes: list[str] | None = [entry.name for entry in folders]
        self.names: list[str] = []
        labels: list[int] = []
        for label, entry in enumerate(folders):
            found = sorted(_files_in(Path(entry.path)))
            if not found:
                raise DataError(f"{entry.path}: class {entry.name!r} holds no images")
            self.names += [os.path.relpath(path, root) for path in found]
            labels += [label] * len(found)
        self.labels = np.array(labels, dtype=np.int64)

    def read(self, row: int) -> bytes:
        return (self.root / self.names[row]).read_bytes()


class ParquetListing:
    """Columns `image` (struct with `bytes`) and `label` (integer), as `datasets` writes them."""

    def __init__(self, root: Path, files: list[Path]):
        self.files = files
        self.names = []
        labels = []
        self._place: list[tuple[int, int, int]] = []  # first row, file, row group
        rows = 0
        for number, path in enumerate(files):
            file = _open_parquet(path)
            for group in range(file.num_row_groups):
                self._place.append((rows, number, group))
                rows += file.metadata.row_group(group).num_rows
            column = file.read(columns=["label"]).column("label")
            if column.null_count:
                raise DataError(f"{path}: {column.null_count} rows have no label")
            labels.append(column.to_numpy())
            shown = os.path.relpath(path, root)
            self.names += [f"{shown}:{row}" for row in range(len(labels[-1]))]
        self.labels = np.concatenate(labels).astype(np.int64)
        if not rows:
            raise DataError(f"{root}: the Parquet files hold no rows")
        if self.labels.min() < 0:
            raise DataError(f"{root}: negative labels; a test split without labels?")
        self.classes = _class_names(_open_parquet(files[0]))
        if self.classes is not None and self.labels.max() >= len(self.classes):
            raise DataError(
                f"{root}: label {self.labels.max()}, but the files name {len(self.classes)} classes"
            )
        self._starts = np.array([first for first, _, _ in self._place])
        self._groups: OrderedDict[int, pa.Array] = OrderedDict()

    def read(self, row: int) -> bytes:
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        content = self._group(place)[row - int(self._starts[place])].as_py()
        return content or b""

    def _group(self, place: int) -> pa.Array:
        """The encoded images of one row group, the most recently used kept in memory."""
        if place not in self._groups:
            _, number, group = self._place[place]
            try:
                table = pq.ParquetFile(self.files[number]).read_row_group(
                    group, columns=["image.bytes"], use_threads=False
                )
            except (OSError, pa.ArrowException) as error:
                path = self.files[number]
                raise DataError(f"{path}: row group {group} is damaged ({error})") from error
            self._groups[place] = table.column("image").combine_chunks().field("bytes")
            while len(self._groups) > 1 and self._cached_bytes() > _CACHED_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(place)
        return self._groups[place]

    def _cached_bytes(self) -> int:
        return sum(group.nbytes for group in self._groups.values())


class _Part:
    """Some rows of a listing."""

    def __init__(self, listing: Listing, rows: np.ndarray):
        self.classes = listing.classes
        self.names = [listing.names[row] for row in rows]
        self.labels = listing.labels[rows]
        self._listing = listing
        self._rows = rows

    def read(self, row: int) -> bytes:
        return self._listing.read(int(self._rows[row]))


def _held_out(listing: Listing, root: Path, split: str, share: float) -> Listing:
    if share == 0:
        looked_for = ", ".join(SPLITS[split])
        raise DataError(
            f"{root}: no {split} split (looked for folders or Parquet files named {looked_for}); "
            "set validation_share to hold out a part of the whole"
        )
    draw = np.array([seed_for(0, f"split:{name}") for name in listing.names]) / 2.0**63
    held = draw < share
    rows = np.flatnonzero(held if split == "validation" else ~held)
    if not len(rows):
        raise DataError(f"{root}: validation_share = {share} leaves no {split} images")
    return _Part(listing, rows)


def _refuse_other_classes(root: Path, train: list[str] | None, held_out: list[str] | None) -> None:
    if train is not None and held_out is not None and train != held_out:
        apart = sorted(set(train) ^ set(held_out))
        what = (
            f"not in both: {', '.join(apart[:9])}" if apart else "the same names in another order"
        )
        raise DataError(f"{root}: train and validation have different classes ({what})")


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _files_in(folder: Path) -> list[str]:
    found = []
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [os.path.join(base, name) for name in files if name[0] != "."]
    return found


def _words(path: Path) -> list[str]:
    """What may name a Parquet file's split: `train/0.parquet`, `train-0-of-9.parquet`."""
    return [*path.parts[:-1], path.stem.split("-")[0]]


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not readable as Parquet ({error})") from error
    schema = file.schema_arrow
    image = schema.field("image").type if "image" in schema.names else None
    label = schema.field("label").type if "label" in schema.names else None
    if image is None or label is None or not pa.types.is_struct(image):
        raise DataError(
            f"{path}: columns are {', '.join(schema.names)}; needed: image (a struct with the "
            "field bytes) and label (integer)"
        )
    if image.get_field_index("bytes") < 0 or not pa.types.is_integer(label):
        raise DataError(
            f"{path}: image is {image} and label is {label}; needed: image a struct with the field "
            "bytes (encoded image), label integer"
        )
    return file


def _class_names(file: pq.ParquetFile) -> list[str] | None:
    """The `ClassLabel` names that `datasets` leaves in the schema's metadata, if it did."""
    metadata = (file.schema_arrow.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    features = json.loads(metadata).get("info", {}).get("features", {})
    return features.get("label", {}).get("names")
