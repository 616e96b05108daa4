"""The images that things learn from: made here, or on disk and known by a name."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from var_scaling.recipe import PositiveFloat, ProperShare
from var_scaling.record import Name, Record


class DeadLeaves(Record):
    """Class-conditional images of occluding discs and boxes, made here: an endless i.i.d. stream.

    Image i of a class is a pure function of (seed, split, class, i), so nothing is ever seen twice
    while a trial asks for at most `train_images` of them.
    """

    kind: Literal["dead_leaves"] = "dead_leaves"
    name: Name
    side: PositiveInt
    classes: PositiveInt = 8
    leaves: PositiveInt = 3
    colours: PositiveInt = 3  # palette colours of a class
    smallest: PositiveFloat = 0.25  # radius range of a leaf, in image sides
    largest: PositiveFloat = 0.6
    train_images: PositiveInt
    validation_images: PositiveInt = 4096
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _radii_in_order(self) -> Self:
        if self.smallest > self.largest:
            raise ValueError(f"smallest = {self.smallest} must not exceed largest = {self.largest}")
        return self


class ImageFiles(Record):
    """Images on disk, by name: where that lies stands in var-scaling.toml, not here.

    `crops` = 0 takes the centre; otherwise crop c of image i is a pure function of (seed, i, c)
    out of the image resized to `enlarge` × side (VAR's recipe: 1.125).
    """

    kind: Literal["images"] = "images"
    name: Name
    side: PositiveInt
    classes: PositiveInt
    train_images: PositiveInt | None = None  # how many there should be, where that is known
    crops: NonNegativeInt = 0
    enlarge: Annotated[float, Field(ge=1)] = 1.0
    flip: bool = False
    validation_share: ProperShare = 0.0  # where the folder has no split of its own
    seed: NonNegativeInt = 0


Data = Annotated[DeadLeaves | ImageFiles, Field(discriminator="kind")]


def as_seen(data: DeadLeaves | ImageFiles, split: str) -> DeadLeaves | ImageFiles:
    """`data` as far as the images of `split` hang on it: only those for training are cropped."""
    if isinstance(data, ImageFiles) and split != "train":
        return data.model_copy(update={"crops": 0, "flip": False, "train_images": None})
    return data
