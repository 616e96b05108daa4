"""A set of samples: its images, their order and their file names. No torch.

Requests are ordered by index, then by class, and divided into chunks of a fixed size. So every
prefix has about equally many images of each class, a smaller set is a prefix of a larger one, and
any process can draw any chunk.
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
NONE = "none"  # folder of unconditional samples

Labels = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Request:
    """One image to draw: `label` is its class (the number of classes: the null class), `index` its
    number within the class.

    The image depends only on these two, the model, the settings and the seed.
    """

    label: int
    index: int


class Rejection(Record):
    """Rejection sampling: of the candidates of each class, keep those to whose class a classifier
    gives the highest probability.
    """

    rate: Annotated[float, Field(gt=0, le=1)]  # images kept / candidates drawn
    classifier: str
    classifier_sha256: Sha256
    outputs: tuple[NonNegativeInt, ...] | None = (
        None  # classifier output of each class, if they differ
    )


class SampleSet(Record):
    """Everything that the images of a set depend on."""

    format: Literal[2] = 2  # of the record on disk; 1 had no `sampling.family`
    name: Name
    seed: NonNegativeInt
    classes: Labels  # in ascending order
    model_classes: PositiveInt  # number of classes of the model; as a label: the null class
    count: PositiveInt  # images of each class
    sampling: AnySampling
    rejection: Rejection | None = None
    weights_sha256: Sha256
    tokenizer_sha256: Sha256

    @property
    def candidates(self) -> int:
        """Images drawn of each class: `count` / `rate`, rounded up."""
        if self.rejection is None:
            return self.count
        # An exact fraction, since rounding of a float quotient could change the ceiling.
        return math.ceil(self.count / Fraction(str(self.rejection.rate)))

    @property
    def images(self) -> int:
        return self.count * len(self.classes)

    @property
    def drawn(self) -> int:
        """Number of images that the model generates, rejected candidates included."""
        return self.candidates * len(self.classes)

    @property
    def chunks(self) -> int:
        return -(-self.drawn // CHUNK)

    def chunk(self, number: int) -> list[Request]:
        """The requests of one chunk: CHUNK of them, or fewer in the last chunk."""
        # Position p is image p // classes of class p % classes.
        positions = range(number * CHUNK, min((number + 1) * CHUNK, self.drawn))
        classes = len(self.classes)
        return [Request(self.classes[p % classes], p // classes) for p in positions]

    def file(self, request: Request) -> str:
        """Path of an image in the folder of the set: 0007/00012.png, or none/00012.png."""
        return f"{self.folder(request.label)}/{request.index:05d}.png"

    def folder(self, label: int) -> str:
        return NONE if label == self.model_classes else f"{label:04d}"

    def extends(self, other: "SampleSet") -> bool:
        """Whether this set is `other` with more images of each class."""
        return self.count > other.count and self == other.model_copy(update={"count": self.count})
