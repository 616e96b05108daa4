"""Images in one folder a class, and what is refused because it is something else."""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from var_scaling.class_names import alike
from var_scaling.data.tree import DataError, Folder, is_image
from var_scaling.text import one_line

_IMAGES = ("images", "image", "imgs", "img", "pictures", "photos")
_NOT_IMAGES = (
    "masks", "mask", "labels", "label", "annotations", "annotation", "segmentation",
    "segmentations", "groundtruth", "ground_truth", "trimaps",
)  # fmt: skip


class FolderListing:
    """One folder a class, in sorted order; all in it that is not hidden counts as an image.

    Class numbers are the places of the folders' names sorted by code point, as in torchvision's
    ImageFolder: 0, 1, 10, 11, 2. `split_names`: a folder of such a name inside a class is refused.
    """

    def __init__(self, root: Path, base: Folder, split_names: Collection[str]):
        self.root, self.base = root, base
        where = root / base.path
        if base.faults:
            raise DataError(base.faults[0])
        _refuse_loose(where, base)
        if not base.folders:
            raise DataError(f"{where}: holds no class folders (one folder a class, images inside)")
        _refuse_alike(where, base)
        _refuse_annotations(root, base)
        self.classes: list[str] | None = [folder.name for folder in base.folders]
        self.names: list[str] = []
        labels: list[int] = []
        for label, folder in enumerate(base.folders):
            _refuse_splits_inside(where, folder, split_names)
            found = folder.file_paths()
            if not found:
                raise DataError(f"{where / folder.name}: class {folder.name!r} holds no images")
            self.names += found
            labels += [label] * len(found)
        self.labels = np.array(labels, dtype=np.int64)
        if base.has_links():
            base.real_paths()

    def read(self, row: int) -> bytes:
        return (self.root / self.names[row]).read_bytes()


def _refuse_loose(where: Path, base: Folder) -> None:
    loose = [name for name in base.files if is_image(name)]
    if loose:
        raise DataError(
            f"{where}: {len(loose):,} image files lie outside of the class folders (the first: "
            f"{one_line(loose[0])}) and would be of no class; one folder a class, images inside"
        )


def _refuse_alike(where: Path, base: Folder) -> None:
    """Two folders that a person, or another file system, takes for one.

    Single letters may differ in case: sets of handwriting have a class `a` and a class `A`.
    """
    known: dict[str, str] = {}
    for folder in base.folders:
        first = known.setdefault(alike(folder.name), folder.name)
        if first != folder.name:
            raise DataError(
                f"{where}: the class folders {first!a} and {folder.name!a} differ only "
                "in capitals or in the Unicode form of their letters; join or rename them"
            )


def _refuse_splits_inside(where: Path, folder: Folder, split_names: Collection[str]) -> None:
    """A class folder with `train` in it is a wrapper, or the splits lie below the classes."""
    below = [one for one in folder.walk() if one is not folder]
    inside = next((one for one in below if one.name.casefold() in split_names), None)
    if inside is None and below and folder.name.casefold() in split_names:
        inside = below[0]
    if inside is not None:
        raise DataError(
            f"{where}: {one_line(folder.name)!r} would be a class, but holds the folder "
            f"{one_line(os.path.relpath(inside.path, folder.path))!r}. Splits lie above the "
            "classes: ROOT/train/CLASS/image.png, and the root is the folder that holds the splits"
        )


def _refuse_annotations(root: Path, base: Folder) -> None:
    """Folders of masks or labels beside one of images are no classes and no images of a class."""
    for one in base.walk():
        names = {inner.name.casefold(): inner.name for inner in one.folders}
        images, others = names.keys() & set(_IMAGES), names.keys() & set(_NOT_IMAGES)
        if images and others:
            raise DataError(
                f"{root / one.path}: the folder {names[min(images)]!r} lies beside "
                f"{names[min(others)]!r}, as in data for segmentation or detection. Give a root in "
                "which each class is a folder that holds images alone"
            )
