"""A set of samples: which images are wanted, in which order, and where each lies. No torch.

Images are drawn in chunks of a fixed number of requests, index by index over all classes: so any
prefix is balanced, a larger set begins with a smaller one, and anybody may draw any chunk.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from var_scaling.models.registry import AnySampling
from var_scaling.recipe import Sha256
from var_scaling.record import Name, Record

CHUNK = 64  # requests
NONE = "none"  # what the class of those told none is called

Labels = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Request:
    """One image to be: the class it is to show (the number of classes: none), and which of those.

    With a seed and the settings it says all that the image depends on.
    """

    label: int
    index: int


class Rejection(Record):
    """Of the candidates of a class those are kept of which a classifier is surest (reject.py)."""

    rate: Annotated[float, Field(gt=0, le=1)]  # images kept by candidate drawn
    classifier: str
    classifier_sha256: Sha256
    outputs: tuple[NonNegativeInt, ...] | None = None  # by class, where the orders differ


class SampleSet(Record):
    """All that the images of a set depend on."""

    format: Literal[2] = 2  # of the record on disk; 1 had no `sampling.family`
    name: Name
    seed: NonNegativeInt
    classes: Labels  # rising
    model_classes: PositiveInt  # that many the model knows; as a label: none
    count: PositiveInt  # images of each class
    sampling: AnySampling
    rejection: Rejection | None = None
    weights_sha256: Sha256
    tokenizer_sha256: Sha256

    @property
    def candidates(self) -> int:
        """How many of each class are drawn: so many that `count` is `rate` of them."""
        if self.rejection is None:
            return self.count
        return math.ceil(self.count / Fraction(str(self.rejection.rate)))  # as it was written

    @property
    def images(self) -> int:
        return self.count * len(self.classes)

    @property
    def drawn(self) -> int:
        """How many images the model has to make."""
        return self.candidates * len(self.classes)

    @property
    def chunks(self) -> int:
        return -(-self.drawn // CHUNK)

    def chunk(self, number: int) -> list[Request]:
        """The requests of one chunk; only the last may have fewer than CHUNK."""
        places = range(number * CHUNK, min((number + 1) * CHUNK, self.drawn))
        many = len(self.classes)
        return [Request(self.classes[place % many], place // many) for place in places]

    def file(self, request: Request) -> str:
        """Where an image lies below its folder: 0007/00012.png, or none/00012.png."""
        return f"{self.folder(request.label)}/{request.index:05d}.png"

    def folder(self, label: int) -> str:
        return NONE if label == self.model_classes else f"{label:04d}"

    def grown_from(self, other: "SampleSet") -> bool:
        """Whether this is `other` with more images of each class."""
        return self.count > other.count and self == other.model_copy(update={"count": self.count})
