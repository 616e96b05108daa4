"""Records of datasets: generated images, image files on disk, or a user's own kind.

No torch, no numpy. `var_scaling.data.dataset.open_images` opens the images of a record.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    model_validator,
)

from var_scaling.recipe import PositiveFloat, ProperShare
from var_scaling.record import Name, Record, validate_tagged

if TYPE_CHECKING:
    from var_scaling.data.dataset import ImageDataset

Progress = Callable[[str, int, int], None]  # what is being done, items done, items in total


class ReadOptions(NamedTuple):
    """How to read the images of a record on this machine: runtime values, not identity."""

    root: Path | None  # folder of the images, from var-scaling.toml; None: not given
    survey: Path  # folder for the list of the files that decode
    workers: int  # processes that read and decode
    progress: Progress


class DataRecord(Record):
    """Square labelled images of one size, with the splits "train" and "validation".

    A user's own dataset is a subclass in any importable module. Its `kind` is the name of the
    module, in which DATASET is the subclass. Only `open` has no default.
    """

    kind: str
    name: Name
    side: PositiveInt
    classes: PositiveInt
    train_images: PositiveInt | None = None  # None: not known
    reads_files: ClassVar[bool] = False  # whether it needs a folder named in var-scaling.toml

    def open(self, split: str, options: ReadOptions) -> ImageDataset:
        """The images of `split`. Raises DataError."""
        raise NotImplementedError(f"{type(self).__name__} must define `open`")

    def views(self, split: str) -> int:
        """Number of versions (such as crops) of each image of `split`."""
        return 1

    def for_split(self, split: str) -> Self:
        """The record with the fields that do not affect the images of `split` at fixed values."""
        return self

    def validation_content(self) -> dict[str, Any]:
        """The fields that the validation images depend on; for generated images not the name."""
        content = self.for_split("validation").model_dump(mode="json")
        # Two records of generated images with equal fields have the same validation
        # images, whatever their names.
        del content["name"], content["train_images"]
        return content

    def crop_settings(self) -> dict[str, float]:
        """How the images are cropped to squares; empty if they are generated as squares."""
        return {}

    def with_crop(self, side: int, changes: Mapping[str, float]) -> Self:
        """A record of each image once, at `side`, with other crop settings. Raises ValueError."""
        if side != self.side or changes:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in changes)
            raise ValueError(
                f"{self.name} are generated at {self.side} px: {side} px or another crop is not "
                "possible" + (f" ({options})" if options else "")
            )
        return self


class DeadLeaves(DataRecord):
    """Generated class-conditional images of overlapping discs and boxes: an i.i.d. sample.

    Image i of a class is a pure function of (seed, split, class, i). A trial that uses at most
    `train_images` images trains on none of them twice.
    """

    kind: Literal["dead_leaves"] = "dead_leaves"
    classes: PositiveInt = 8
    leaves: PositiveInt = 3
    colours: PositiveInt = 3  # palette colours of a class
    smallest: PositiveFloat = 0.25  # radius range of a leaf, in image sides
    largest: PositiveFloat = 0.6
    train_images: PositiveInt
    validation_images: PositiveInt = 4096
    seed: NonNegativeInt = 0

    def open(self, split: str, options: ReadOptions) -> ImageDataset:
        source: ImageDataset = _data_module("dead_leaves").DeadLeavesSource(self, split)
        return source

    @model_validator(mode="after")
    def _radii_in_order(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"smallest = {self.smallest} must not exceed largest = {self.largest}")
        return self


class ImageFiles(DataRecord):
    """Image files on disk. The record has a name; var-scaling.toml has the folder of that name.

    `crops` = 0 takes the centre crop. Otherwise crop c of image i is a pure function of
    (seed, i, c), taken from the image resized to `enlarge` × side (VAR: 1.125).
    """

    kind: Literal["images"] = "images"
    crops: NonNegativeInt = 0
    enlarge: Annotated[float, Field(ge=1)] = 1.0
    flip: bool = False
    validation_share: ProperShare = 0.0  # used if the folder has no validation split
    seed: NonNegativeInt = 0
    reads_files: ClassVar[bool] = True

    def open(self, split: str, options: ReadOptions) -> ImageDataset:
        source: ImageDataset = _data_module("sources").open_files(self, split, options)
        return source

    def views(self, split: str) -> int:
        return max(1, self.crops) if split == "train" else 1

    def for_split(self, split: str) -> Self:
        """Only training images are randomly cropped and mirrored."""
        if split == "train":
            return self
        return self.model_copy(update={"crops": 0, "flip": False, "train_images": None})

    def validation_content(self) -> dict[str, Any]:
        # With the name: it is the only field that identifies the files.
        return self.for_split("validation").model_dump(mode="json")

    def crop_settings(self) -> dict[str, float]:
        return {"enlarge": self.enlarge, "validation_share": self.validation_share}

    def with_crop(self, side: int, changes: Mapping[str, float]) -> Self:
        """The centre crop of each image, without mirroring."""
        return self.for_split("validation").model_copy(update={"side": side, **changes})


KINDS: dict[str, type[DataRecord]] = {"dead_leaves": DeadLeaves, "images": ImageFiles}


def record_of(kind: str) -> type[DataRecord]:
    """The record class of `kind`: one of KINDS, or DATASET of the module with that name.

    Raises ValueError.
    """
    if kind in KINDS:
        return KINDS[kind]
    try:
        module = importlib.import_module(kind)
    except ImportError as error:
        raise ValueError(
            f"{error}: kind of data must be {', '.join(KINDS)} or a module that Python can import "
            "(put its folder on PYTHONPATH)"
        ) from error
    record = getattr(module, "DATASET", None)
    if not (isinstance(record, type) and issubclass(record, DataRecord)):
        raise ValueError(f"module {kind} must define DATASET, a subclass of DataRecord")
    return record


def _read(value: Any, info: ValidationInfo) -> Any:
    return validate_tagged(value, info, "kind", record_of)


# SerializeAsAny: pydantic would otherwise write only the fields of DataRecord, not of the kind.
Data = Annotated[SerializeAsAny[DataRecord], BeforeValidator(_read)]


def _data_module(module: str) -> Any:
    """A module of `var_scaling.data`, imported by name: that layer is above this one."""
    return importlib.import_module(f"var_scaling.data.{module}")
