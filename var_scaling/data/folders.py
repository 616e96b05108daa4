"""Images in one folder per class. Other folder layouts are refused with a message."""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from var_scaling.class_names import normalize_name
from var_scaling.data.tree import DataError, Folder, is_image
from var_scaling.text import counted, one_line

_IMAGES = ("images", "image", "imgs", "img", "pictures", "photos")
_NOT_IMAGES = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "segmentation",
    "segmentations", "groundtruth", "ground_truth", "trimaps",
)  # fmt: skip


class FolderListing:
    """One folder per class; every file in it that is not hidden is listed as an image.

    Class numbers follow the folder names sorted by code point, as in torchvision's ImageFolder:
    0, 1, 10, 11, 2. A folder inside a class with a name in `split_names` is refused.
    """

    def __init__(self, root: Path, base: Folder, split_names: Collection[str]):
        self.root, self.base = root, base
        folder_path = root / base.path
        if base.faults:
            raise DataError(base.faults[0])
        _refuse_loose(folder_path, base)
        if not base.folders:
            raise DataError(
                f"{folder_path}: holds no class folders (one folder per class, images inside)"
            )
        _refuse_similar_names(folder_path, base)
        _refuse_annotations(root, base)
        self.classes: list[str] | None = [folder.name for folder in base.folders]
        self.names: list[str] = []
        labels: list[int] = []
        for label, folder in enumerate(base.folders):
            _refuse_splits_inside(folder_path, folder, split_names)
            paths = folder.file_paths()
            if not paths:
                raise DataError(
                    f"{folder_path / folder.name}: class {folder.name!r} holds no images"
                )
            self.names += paths
            labels += [label] * len(paths)
        self.labels = np.array(labels, dtype=np.int64)
        if base.has_links():
            base.real_paths()  # raises DataError if a link makes one file appear twice

    def read(self, row: int) -> bytes:
        return (self.root / self.names[row]).read_bytes()


def _refuse_loose(folder_path: Path, base: Folder) -> None:
    loose = [name for name in base.files if is_image(name)]
    if loose:
        raise DataError(
            f"{folder_path}: {counted(len(loose), 'image file')} outside of the class folders (the "
            f"first: {one_line(loose[0])}), so without a class; move each into "
            "the folder of its class"
        )


def _refuse_similar_names(folder_path: Path, base: Folder) -> None:
    """Refuse two folder names that some file systems cannot distinguish.

    Single letters may differ in case: handwriting datasets have a class `a` and a class `A`.
    """
    names: dict[str, str] = {}
    for folder in base.folders:
        # On a case-insensitive disk, a copy of the data would join the two classes.
        first = names.setdefault(normalize_name(folder.name), folder.name)
        if first != folder.name:
            raise DataError(
                f"{folder_path}: the class folders {first!a} and {folder.name!a} differ only "
                "in capitals or in the Unicode form of their letters; join or rename them"
            )


def _refuse_splits_inside(folder_path: Path, folder: Folder, split_names: Collection[str]) -> None:
    """Refuse a class folder that contains a split: the root or the order of levels is wrong."""
    subfolders = [subfolder for subfolder in folder.walk() if subfolder is not folder]
    split = next((sub for sub in subfolders if sub.name.casefold() in split_names), None)
    # A class named like a split, with folders inside: they are probably the classes.
    if split is None and subfolders and folder.name.casefold() in split_names:
        split = subfolders[0]
    if split is not None:
        raise DataError(
            f"{folder_path}: {one_line(folder.name)!r} would be a class, but holds the folder "
            f"{one_line(os.path.relpath(split.path, folder.path))!r}. Splits must be above the "
            "classes: ROOT/train/CLASS/image.png, and the root is the folder that holds the splits"
        )


def _refuse_annotations(root: Path, base: Folder) -> None:
    """Refuse an image folder next to a folder of masks or labels: neither is a class."""
    for folder in base.walk():
        names = {subfolder.name.casefold(): subfolder.name for subfolder in folder.folders}
        images, others = names.keys() & set(_IMAGES), names.keys() & set(_NOT_IMAGES)
        if images and others:
            raise DataError(
                f"{root / folder.path}: the folder {names[min(images)]!r} is next to "
                f"{names[min(others)]!r}, as in data for segmentation or detection. Give a root in "
                "which each class is a folder that contains only images"
            )
