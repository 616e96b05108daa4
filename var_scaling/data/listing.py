"""Lists the images under a root: one folder per class, or Parquet in the Hugging Face layout."""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from var_scaling.class_names import normalize_name
from var_scaling.data.folders import FolderListing
from var_scaling.data.parquet import ParquetListing, refuse_copies
from var_scaling.data.tree import DataError, Folder, is_image, read_tree
from var_scaling.randomness import seed_for
from var_scaling.text import counted, one_line

# Common names of the splits, the most usual first. Case does not matter.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "test"),
}
_SPLIT_OF_NAME = {name: split for split, names in SPLITS.items() for name in names}
# Further splits that data sets may have; they are not read.
_UNREAD = ("testing", "unlabeled", "unlabelled", "unsupervised", "extra")

Location = TypeVar("Location")  # of a split: a folder, or Parquet files


class Listing(Protocol):
    """The images of one split, before any is decoded."""

    names: list[str]  # for messages: relative path, or Parquet file and row
    labels: np.ndarray  # (images,) int64
    classes: list[str] | None  # class names by number; None if the data has no names

    def read(self, row: int) -> bytes:
        """The encoded bytes of image `row`."""
        ...


def list_images(root: Path, split: str, validation_share: float) -> Listing:
    """The images under `root` that belong to `split`. Raises DataError.

    A split is a folder or Parquet files of that name. If the data has no validation split, the
    share `validation_share` is held out, chosen by a hash of each name. Layouts that are ambiguous,
    or that have images outside of every split, are refused.
    """
    if not root.exists():
        raise DataError(f"{root}: no such folder")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; give the folder that holds the images")
    tree = read_tree(root)
    if tree.faults:
        raise DataError(tree.faults[0])
    parquet = _parquet_files(root, tree)
    if parquet:
        return _list_parquet(root, parquet, split, validation_share)
    return _list_folders(root, tree, split, validation_share)


def fingerprint(listing: Listing) -> str:
    """12 hex digits that depend on all names, labels and class names, in order."""
    digest = hashlib.sha256(repr(listing.classes).encode())
    # No file name contains a NUL. surrogateescape: on Linux a name may be bytes that are not UTF-8.
    digest.update("\0".join(listing.names).encode(errors="surrogateescape"))
    digest.update(listing.labels.tobytes())
    return digest.hexdigest()[:12]


# Folders ------------------------------------------------------------------------------------------


def _list_folders(root: Path, tree: Folder, split: str, share: float) -> Listing:
    bases = _split_folders(root, tree)
    if not bases:
        return _held_out(FolderListing(root, tree, _SPLIT_OF_NAME), root, split, share)
    if len(bases) == 2 and any(base.has_links() for base in bases.values()):
        # The same image in both splits would make the held-out loss too small. Only links are
        # checked: copies and hard links are not found.
        train, validation = (bases[name].real_paths() for name in SPLITS)
        both = train.keys() & validation.keys()
        if both:
            raise DataError(
                f"{root}: {counted(len(both), 'image')} in both train and validation, through "
                f"symbolic links (the first: {one_line(min(both))}); remove each from one of them"
            )
    return _of_split(
        root, bases, lambda base: FolderListing(root, base, _SPLIT_OF_NAME), split, share
    )


def _split_folders(root: Path, tree: Folder) -> dict[str, Folder]:
    """The folder of each split; {} if the root contains the class folders.

    If only one folder has the name of a split and it contains no folders, while other folders
    contain images, it is a class of that name (`train`, among vehicles).
    """
    splits = [folder for folder in tree.folders if folder.name.casefold() in _SPLIT_OF_NAME]
    others = [
        folder
        for folder in tree.folders
        if folder.name.casefold() not in (*_SPLIT_OF_NAME, *_UNREAD) and folder.first_image()
    ]
    # The root contains the class folders, one of which may be named like a split.
    if not splits or (len(splits) == 1 and not splits[0].folders and splits[0].files and others):
        return {}
    # Images outside of the splits would be left out without a message.
    stray = others[0].first_image() if others else None
    stray = stray or next((name for name in tree.files if is_image(name)), None)
    if stray is not None:
        raise DataError(
            f"{root}: holds the split {one_line(splits[0].name)!r}, and images outside of any "
            f"split (the first: {one_line(stray)}). Names of splits: {', '.join(_SPLIT_OF_NAME)}. "
            "If this is a split, rename it; if a class, move it into the splits; else move it away"
        )
    folder_of: dict[str, Folder] = {}
    for split in SPLITS:
        name = _name_of_split(root, split, [folder.name.casefold() for folder in splits])
        matches = [folder for folder in splits if folder.name.casefold() == name]
        if len(matches) > 1:
            names = " and ".join(one_line(folder.name) for folder in matches)
            raise DataError(f"{root}: {names} both name the {split} split; rename one of them")
        if matches:
            folder_of[split] = matches[0]
    return folder_of


# Parquet ------------------------------------------------------------------------------------------


def _parquet_files(root: Path, tree: Folder) -> list[Path]:
    """All Parquet files, sorted. Raises DataError if there are image files too."""
    files = sorted(
        root / folder.path / name
        for folder in tree.walk()
        for name in folder.files
        if name.lower().endswith(".parquet")
    )
    if files:
        tree.refuse_faults()
        image = tree.first_image()
        if image is not None:
            raise DataError(
                f"{root}: holds Parquet files ({os.path.relpath(files[0], root)}) and image files "
                f"({one_line(image)}), so it is unclear which are the data. Give a root with only "
                "one of the two"
            )
    return files


def _list_parquet(root: Path, files: list[Path], split: str, share: float) -> Listing:
    names = {path: _split_name(path.relative_to(root)) for path in files}
    # No file names a split: the files are the whole, of which a share is held out.
    if _SPLIT_OF_NAME.keys().isdisjoint(names.values()):
        listing = _held_out(ParquetListing(root, files), root, split, share)
        refuse_copies(root, files)
        return listing
    stray = next((path for path, name in names.items() if name is None), None)
    if stray:
        raise DataError(
            f"{root}: the name of {os.path.relpath(stray, root)} has no split "
            f"({', '.join(_SPLIT_OF_NAME)}), but other Parquet files do. Rename it or move it away"
        )
    files_of = {}
    for split_name in SPLITS:
        name = _name_of_split(root, split_name, set(filter(None, names.values())))
        if name:
            files_of[split_name] = [path for path in files if names[path] == name]
    listing = _of_split(root, files_of, lambda paths: ParquetListing(root, paths), split, share)
    refuse_copies(root, [path for paths in files_of.values() for path in paths])
    return listing


def _split_name(path: Path) -> str | None:
    """The split in the name of a file or its nearest folder: `train-0-of-9.parquet`, `train/0`."""
    # From right to left: the file's own name before its folders, the nearest folder first. Numbers
    # at the end are shards.
    words = [*path.parts[:-1], path.stem.split("-")[0]]
    for word in reversed(words):
        name = re.sub(r"(\.parquet|[_. ]*\d+)$", "", word.casefold())
        if name in _SPLIT_OF_NAME or name in _UNREAD:
            return name
    return None


# Both ---------------------------------------------------------------------------------------------


def _name_of_split(root: Path, split: str, present: Collection[str]) -> str | None:
    """The name that `split` has under `root`; `test` only if no other name is present.

    Raises DataError if two names are the split's.
    """
    matches = [name for name in SPLITS[split] if name in present]
    if len(matches) > 1 and matches[1] != "test":
        raise DataError(
            f"{root}: {matches[0]} and {matches[1]} both name the {split} split; it is unclear "
            "which to read. Rename one, or move it away"
        )
    return matches[0] if matches else None


def _of_split(
    root: Path,
    locations: Mapping[str, Location],
    read: Callable[[Location], Listing],
    split: str,
    share: float,
) -> Listing:
    """The images of `split`. `locations`: those of the splits that exist, at least one."""
    if len(locations) == len(SPLITS):
        # Both are listed even though one is returned: class k must be the same class in both.
        listings = {name: read(location) for name, location in locations.items()}
        _refuse_other_classes(root, listings["train"].classes, listings["validation"].classes)
        return listings[split]
    if split in locations and ("validation" in locations or share == 0):
        return read(locations[split])
    if "train" not in locations:
        raise DataError(
            f"{root}: no train split (looked for folders or Parquet files named "
            f"{', '.join(SPLITS['train'])}), only a validation split"
        )
    return _held_out(read(locations["train"]), root, split, share)


class _Subset:
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
    """The rows of `split` where `share` of `listing` is held out, by a hash of each name."""
    if share == 0:
        looked_for = ", ".join(SPLITS[split])
        raise DataError(
            f"{root}: no {split} split (looked for folders or Parquet files named {looked_for}); "
            "set validation_share to hold out a share of the images"
        )
    # By name, not by row: images that are added do not move others to another split. seed_for has
    # 63 bits, so this is uniform in [0, 1).
    draw = np.array([seed_for(0, f"split:{name}") for name in listing.names]) / 2.0**63
    is_held_out = draw < share
    rows = np.flatnonzero(is_held_out if split == "validation" else ~is_held_out)
    if not len(rows):
        raise DataError(f"{root}: validation_share = {share} leaves no {split} images")
    return _Subset(listing, rows)


def _refuse_other_classes(root: Path, train: list[str] | None, held_out: list[str] | None) -> None:
    if train == held_out:
        return
    if train is None or held_out is None:
        without = "train" if train is None else "validation"
        raise DataError(
            f"{root}: the files of {without} have no class names, those of the other split do: "
            "equal labels may be different classes. Write both with the same ClassLabel"
        )
    unmatched = sorted(set(train) ^ set(held_out))
    reason = "the same names in a different order"
    if unmatched:
        reason = f"not in both: {', '.join(map(one_line, unmatched[:9]))}"
    if unmatched and sorted(map(normalize_name, train)) == sorted(map(normalize_name, held_out)):
        reason = "their names differ only in case or Unicode form: "
        reason += ", ".join(map(ascii, unmatched[:9]))
    raise DataError(f"{root}: train and validation have different classes ({reason})")
