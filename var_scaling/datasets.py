"""The images that things learn from: made here, on disk and known by a name, or a user's own.

No torch, no numpy. What a record tells of is opened by `var_scaling.data.dataset.open_images`.
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
from var_scaling.record import Name, Record, read_as

if TYPE_CHECKING:
    from var_scaling.data.dataset import ImageDataset

Progress = Callable[[str, int, int], None]  # what, done, total


class Reading(NamedTuple):
    """Where the images of a record lie on this machine, and how they are read."""

    root: Path | None  # as var-scaling.toml has it; None: it names none
    survey: Path  # a folder for what one look at every file finds
    workers: int  # processes that read
    progress: Progress


class DataRecord(Record):
    """Images of squares of one side, in classes, split in "train" and "validation".

    A dataset of a user's own is a subclass in any importable module, with `kind` the module's name
    and DATASET in the module the subclass. It has `open`; the rest has defaults.
    """

    kind: str
    name: Name
    side: PositiveInt
    classes: PositiveInt
    train_images: PositiveInt | None = None  # how many there are, where that is known
    reads_files: ClassVar[bool] = False  # from a folder that var-scaling.toml names

    def open(self, split: str, reading: Reading) -> ImageDataset:
        """The images of `split`. Raises DataError."""
        raise NotImplementedError(f"{type(self).__name__} has no `open`")

    def views(self, split: str) -> int:
        """How many versions of each image of `split` there are, such as crops."""
        return 1

    def as_seen(self, split: str) -> Self:
        """The record as far as the images of `split` depend on it."""
        return self

    def held_out(self) -> dict[str, Any]:
        """All that the held-out images depend on. What is made here depends on no name."""
        seen = self.as_seen("validation").model_dump(mode="json")
        del seen["name"], seen["train_images"]
        return seen

    def cut(self) -> dict[str, float]:
        """How the images were cut to squares; empty where they are made as squares."""
        return {}

    def cut_to(self, side: int, changes: Mapping[str, float]) -> Self:
        """Each image once, at `side`, cut otherwise. Raises ValueError if it cannot be."""
        if side != self.side or changes:
            options = ", ".join(f"--{one.replace('_', '-')}" for one in changes)
            raise ValueError(
                f"{self.name} are made at {self.side} px: they cannot be had at {side} px, nor cut "
                "otherwise" + (f" ({options})" if options else "")
            )
        return self


class DeadLeaves(DataRecord):
    """Class-conditional images of occluding discs and boxes, made here: an endless i.i.d. stream.

    Image i of a class is a pure function of (seed, split, class, i), so nothing is ever seen twice
    while a trial asks for at most `train_images` of them.
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

    def open(self, split: str, reading: Reading) -> ImageDataset:
        found: ImageDataset = _reader("dead_leaves").DeadLeavesSource(self, split)
        return found

    @model_validator(mode="after")
    def _radii_in_order(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"smallest = {self.smallest} must not exceed largest = {self.largest}")
        return self


class ImageFiles(DataRecord):
    """Images on disk, by name: where that lies stands in var-scaling.toml, not here.

    `crops` = 0 takes the centre; otherwise crop c of image i is a pure function of (seed, i, c)
    out of the image resized to `enlarge` × side (VAR's recipe: 1.125).
    """

    kind: Literal["images"] = "images"
    crops: NonNegativeInt = 0
    enlarge: Annotated[float, Field(ge=1)] = 1.0
    flip: bool = False
    validation_share: ProperShare = 0.0  # where the folder has no split of its own
    seed: NonNegativeInt = 0
    reads_files: ClassVar[bool] = True

    def open(self, split: str, reading: Reading) -> ImageDataset:
        found: ImageDataset = _reader("sources").open_files(self, split, reading)
        return found

    def views(self, split: str) -> int:
        return max(1, self.crops) if split == "train" else 1

    def as_seen(self, split: str) -> Self:
        """Only images for training are cropped and mirrored."""
        if split == "train":
            return self
        return self.model_copy(update={"crops": 0, "flip": False, "train_images": None})

    def held_out(self) -> dict[str, Any]:
        return self.as_seen("validation").model_dump(mode="json")

    def cut(self) -> dict[str, float]:
        return {"enlarge": self.enlarge, "validation_share": self.validation_share}

    def cut_to(self, side: int, changes: Mapping[str, float]) -> Self:
        """No crop but the centre, no mirror."""
        return self.as_seen("validation").model_copy(update={"side": side, **changes})


KINDS: dict[str, type[DataRecord]] = {"dead_leaves": DeadLeaves, "images": ImageFiles}


def record_of(kind: str) -> type[DataRecord]:
    """The record of data of a kind: of this project, or DATASET of the module of that name.

    Raises ValueError.
    """
    if kind in KINDS:
        return KINDS[kind]
    known = ", ".join(KINDS)
    try:
        module = importlib.import_module(kind)
    except ImportError as error:
        raise ValueError(
            f"{error}: data is of a kind {known}, or of a module of your own that Python finds "
            "(put its folder on PYTHONPATH)"
        ) from error
    found = getattr(module, "DATASET", None)
    if not (isinstance(found, type) and issubclass(found, DataRecord)):
        raise ValueError(f"module {kind} has no DATASET, a subclass of DataRecord")
    return found


def _read(value: Any, info: ValidationInfo) -> Any:
    return read_as(value, info, "kind", record_of)


Data = Annotated[SerializeAsAny[DataRecord], BeforeValidator(_read)]


def _reader(module: str) -> Any:
    """What opens the images lies a layer above the records, so it is found by its name."""
    return importlib.import_module(f"var_scaling.data.{module}")
