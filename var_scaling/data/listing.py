"""What images lie at a path: folders by class, or Parquet in the Hugging Face layout."""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from var_scaling.class_names import alike
from var_scaling.data.folders import FolderListing
from var_scaling.data.parquet import ParquetListing, refuse_copies
from var_scaling.data.tree import DataError, Folder, is_image, read_tree
from var_scaling.randomness import seed_for
from var_scaling.text import one_line

# Names that data sets in the wild give their splits, the usual one first. Capitals do not matter.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "test"),
}
_NAMES = {name: split for split, names in SPLITS.items() for name in names}
# May lie beside the two that are read, and are not.
_UNREAD = ("testing", "unlabeled", "unlabelled", "unsupervised", "extra")

Found = TypeVar("Found")  # where a split lies


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
    of the whole, chosen by a hash of each name, is held out. What could be read in two ways, or
    would leave images out that no split's name explains, is refused.
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
    """Changes with any name, label or class: a data set by another content is another data set."""
    digest = hashlib.sha256(repr(listing.classes).encode())
    digest.update("\0".join(listing.names).encode(errors="surrogateescape"))
    digest.update(listing.labels.tobytes())
    return digest.hexdigest()[:12]


# Folders ------------------------------------------------------------------------------------------


def _list_folders(root: Path, tree: Folder, split: str, share: float) -> Listing:
    bases = _split_folders(root, tree)
    if not bases:
        return _held_out(FolderListing(root, tree, _NAMES), root, split, share)
    if len(bases) == 2 and any(base.has_links() for base in bases.values()):
        train, validation = (bases[name].real_paths() for name in SPLITS)
        both = train.keys() & validation.keys()
        if both:
            raise DataError(
                f"{root}: {len(both):,} images are in train and in validation, by symbolic links; "
                f"one is {one_line(min(both))}"
            )
    return _of_split(root, bases, lambda base: FolderListing(root, base, _NAMES), split, share)


def _split_folders(root: Path, tree: Folder) -> dict[str, Folder]:
    """The folder of each split; {} where the root holds the classes themselves.

    A single folder of a split's name that holds no folders, beside others with images, is a class
    of that name (`train`, among vehicles).
    """
    named = [one for one in tree.folders if one.name.casefold() in _NAMES]
    known = (*_NAMES, *_UNREAD)
    others = [one for one in tree.folders if one.name.casefold() not in known and one.first_image()]
    if not named or (len(named) == 1 and not named[0].folders and named[0].files and others):
        return {}
    stray = others[0].first_image() if others else None
    stray = stray or next((name for name in tree.files if is_image(name)), None)
    if stray is not None:
        raise DataError(
            f"{root}: holds the split {one_line(named[0].name)!r}, and images outside of any "
            f"split (the first: {one_line(stray)}). Splits are called {', '.join(_NAMES)}: if "
            "that is one, rename it; if it is a class, move it into the splits; else move it away"
        )
    found: dict[str, Folder] = {}
    for split in SPLITS:
        name = _one_name(root, split, [one.name.casefold() for one in named])
        chosen = [one for one in named if one.name.casefold() == name]
        if len(chosen) > 1:
            names = " and ".join(one_line(one.name) for one in chosen)
            raise DataError(f"{root}: {names} both name the {split} split; rename one of them")
        if chosen:
            found[split] = chosen[0]
    return found


# Parquet ------------------------------------------------------------------------------------------


def _parquet_files(root: Path, tree: Folder) -> list[Path]:
    """All Parquet files, sorted. Raises DataError where there are images beside them."""
    found = sorted(
        root / folder.path / name
        for folder in tree.walk()
        for name in folder.files
        if name.lower().endswith(".parquet")
    )
    if found:
        tree.refuse_faults()
        image = tree.first_image()
        if image is not None:
            raise DataError(
                f"{root}: holds Parquet files ({os.path.relpath(found[0], root)}) and image files "
                f"({one_line(image)}): which of them are the data is not known. Give a root with "
                "one kind"
            )
    return found


def _list_parquet(root: Path, files: list[Path], split: str, share: float) -> Listing:
    names = {path: _split_name(path.relative_to(root)) for path in files}
    if _NAMES.keys().isdisjoint(names.values()):
        listing = _held_out(ParquetListing(root, files), root, split, share)
        refuse_copies(root, files)
        return listing
    stray = next((path for path, name in names.items() if name is None), None)
    if stray:
        raise DataError(
            f"{root}: {os.path.relpath(stray, root)} carries no split's name "
            f"({', '.join(_NAMES)}), though other Parquet files do. Rename it or move it away"
        )
    own = {}
    for one in SPLITS:
        name = _one_name(root, one, set(filter(None, names.values())))
        if name:
            own[one] = [path for path in files if names[path] == name]
    listing = _of_split(root, own, lambda found: ParquetListing(root, found), split, share)
    refuse_copies(root, [path for found in own.values() for path in found])
    return listing


def _split_name(path: Path) -> str | None:
    """What names a Parquet file's split, the nearest: `train-0-of-9.parquet`, `train/0.parquet`."""
    words = [*path.parts[:-1], path.stem.split("-")[0]]
    for word in reversed(words):
        plain = re.sub(r"(\.parquet|[_. ]*\d+)$", "", word.casefold())
        if plain in _NAMES or plain in _UNREAD:
            return plain
    return None


# Both ---------------------------------------------------------------------------------------------


def _one_name(root: Path, split: str, present: Collection[str]) -> str | None:
    """The name under which `split` lies here; `test` only where the set has no other.

    Raises DataError where two names claim to be the split.
    """
    claims = [name for name in SPLITS[split] if name in present]
    if len(claims) > 1 and claims[1] != "test":
        raise DataError(
            f"{root}: {claims[0]} and {claims[1]} both name the {split} split; which of them is "
            "meant is not known. Rename one, or move it away"
        )
    return claims[0] if claims else None


def _of_split(
    root: Path, own: Mapping[str, Found], read: Callable[[Found], Listing], split: str, share: float
) -> Listing:
    """The images of `split`, of those splits that lie here: at least one."""
    if len(own) == len(SPLITS):
        parts = {name: read(found) for name, found in own.items()}
        _refuse_other_classes(root, parts["train"].classes, parts["validation"].classes)
        return parts[split]
    if split in own and ("validation" in own or share == 0):
        return read(own[split])
    if "train" not in own:
        raise DataError(
            f"{root}: no train split (looked for folders or Parquet files named "
            f"{', '.join(SPLITS['train'])}), only one for validation"
        )
    return _held_out(read(own["train"]), root, split, share)


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
    if train == held_out:
        return
    if train is None or held_out is None:
        without = "train" if train is None else "validation"
        raise DataError(
            f"{root}: the files of one split name their classes, those of {without} do not: equal "
            "labels need not be the same class. Write both with the same ClassLabel"
        )
    apart = sorted(set(train) ^ set(held_out))
    what = "the same names in another order"
    if apart:
        what = f"not in both: {', '.join(map(one_line, apart[:9]))}"
    if apart and sorted(map(alike, train)) == sorted(map(alike, held_out)):
        what = "their names differ only in capitals or Unicode form: "
        what += ", ".join(map(ascii, apart[:9]))
    raise DataError(f"{root}: train and validation have different classes ({what})")
