"""What a model family is: all that the rest of the program needs of one. No torch on import.

A family is a package, or a module of a user's own, with an object `FAMILY`. Trainer, evaluation,
sampling, timing, accounting, results and reports call its methods and name no family.

Shapes: B images, L tokens of an image, P parts of the validation loss, Z code channels, H side of
the tokenizer's grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from pydantic import PositiveInt

from var_scaling.accounting import Count
from var_scaling.config import CacheKind, Tokenizer
from var_scaling.randomness import seed_for
from var_scaling.recipe import NonNegativeFloat, Precision
from var_scaling.record import Record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from var_scaling.tokenizer.cache import LatentStatistics
    from var_scaling.tokenizer.quantizer import Quantizer
    from var_scaling.weights import State


class SampleDraws(Protocol):
    """The random numbers of a batch of samples, float32 (B, *shape): a function of each sample's
    seed, class and index, the purpose, and the step of the sampler.
    """

    def uniform(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Numbers in [0, 1)."""

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor: ...


class ModelRecord(Record):
    """The shape of a network. A family's own record has `family` fixed, and the fields it needs.

    `family` is the name of a family of this project, or of a module that can be imported and has an
    object FAMILY. It is written into trial.json, so any process that reads it finds the family.
    """

    family: str
    depth: PositiveInt

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        raise NotImplementedError(f"{type(self).__name__} has no width")

    @property
    def heads(self) -> int | None:
        """Attention heads of a block; None where there is no attention."""
        return None

    def at_depth(self, depth: int) -> ModelRecord:
        """The record of another depth on the same ladder."""
        return self.model_copy(update={"depth": depth})


class SamplingRecord(Record):
    """How a model is sampled from, besides seed, class and index. A family's own has more fields.

    `guidance` is g of c + g (c - u), the conditional prediction c and the unconditional u
    (Ho and Salimans 2022); 0 is none. A list has an entry for each step of the sampler.
    """

    family: str
    guidance: NonNegativeFloat | tuple[NonNegativeFloat, ...] = 0.0
    precision: Precision = "fp32"

    @property
    def guided(self) -> bool:
        """Whether the unconditional prediction is needed at all."""
        return any(self.guidance) if isinstance(self.guidance, tuple) else self.guidance > 0

    def describe(self) -> str:
        """The guidance, and every other setting that is not the default: for titles and tables."""
        return ", ".join([self._guidance_words(), *self._others()])

    def besides(self) -> str:
        """The settings other than guidance and precision that are not the default."""
        return ", ".join(self._others("precision"))

    def _others(self, *without: str) -> list[str]:
        fields = type(self).model_fields
        return [
            name if value is True else f"{name} {_plain(value)}"
            for name, value in self
            if name not in ("family", "guidance", *self._said_with_guidance, *without)
            and value != fields[name].default
        ]

    _said_with_guidance: ClassVar[tuple[str, ...]] = ()  # fields that `_guidance_words` tells of

    def _guidance_words(self) -> str:
        return f"guidance {_plain(self.guidance)}" if self.guided else "no guidance"


def _plain(value: Any) -> str:
    return " ".join(map(_plain, value)) if isinstance(value, tuple) else str(value)


M = TypeVar("M", bound=ModelRecord)
S = TypeVar("S", bound=SamplingRecord)


@dataclass(frozen=True)
class ModelSpec(Generic[M]):
    """All that a network is built from. The label `classes` is the null class."""

    config: M
    tokenizer: Tokenizer
    classes: int


@dataclass(frozen=True)
class Validation:
    """What the validation loss of a family is, and the parts of an image that it is reported by."""

    loss_unit: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...]  # terms of the mean in each part, such as its tokens
    scores: tuple[str, ...] = ("loss", "error")  # what `validate` returns sums of
    last_part: bool = False  # whether the last part's scores are reported on their own
    every: int = 1  # one image in so many is scored
    passes: int = 1  # forwards over each scored image


@dataclass(frozen=True)
class StepDraws:
    """The random numbers of a training step: a function of seed, purpose and step.

    They are drawn for all `images` of the global batch, and this process takes the `share` of its
    own: so their number of processes changes nothing.
    """

    seed: int
    step: int
    images: int
    share: slice

    def seed_of(self, purpose: str) -> int:
        """The seed of a generator for one purpose."""
        return seed_for(self.seed, purpose, self.step)


class Batch(NamedTuple):
    """Images as tokens, on the device of the network. Class dropout has been applied."""

    ids_BL: Tensor  # int64; where the family reads features, the grids (B, Z, H, H) in float32
    labels_B: Tensor


class Kept(NamedTuple):
    """Tokens that are given, not drawn."""

    ids_BL: Tensor
    mask_BL: Tensor  # bool, True where they are kept


class Frame(NamedTuple):
    """How far a sampler has come; the last frame is the sample."""

    grid_BZHH: Tensor  # what the tokenizer's decoder takes
    ids_BN: Tensor | None  # the tokens that this frame added; None where none are drawn


class PublishedFormat(ABC):
    """A family's checkpoints as its authors publish them."""

    @abstractmethod
    def export(self, spec: ModelSpec, state: State) -> tuple[State, str]:
        """The weights as the published loader takes them, and how it builds the network."""


class ModelFamily(ABC, Generic[M, S]):
    """One kind of model. Stateless; the methods of the second half import torch."""

    name: str  # in tables and pages
    config: type[M]
    sampling: type[S]
    edits: bool = False  # whether tokens can be kept while the others are drawn

    def reads(self, config: M) -> CacheKind:
        """What the model is trained on: tokens, or the features before they are quantised."""
        return "tokens"

    def check(self, spec: ModelSpec[M]) -> None:
        """Raise ValueError, in words, where the model cannot work on the tokenizer's tokens."""

    @abstractmethod
    def sequence_length(self, spec: ModelSpec[M]) -> int:
        """Positions of one image that go through the network."""

    @abstractmethod
    def parameters(self, spec: ModelSpec[M]) -> Count:
        """Trainable parameters by component (accounting.COMPONENTS)."""

    @abstractmethod
    def block_parameters(self, spec: ModelSpec[M]) -> int:
        """Weights of the block matrices alone, the N of a law."""

    @abstractmethod
    def forward_flops(self, spec: ModelSpec[M], dense: bool = False) -> Count:
        """FLOPs of one forward over one image by component (accounting.FLOP_COMPONENTS).

        `dense` counts masked attention pairs too.
        """

    @abstractmethod
    def training_flops(self, spec: ModelSpec[M], dense: bool = False) -> Count:
        """FLOPs of forward and backward on one image."""

    @abstractmethod
    def sampling_flops(self, spec: ModelSpec[M], guided: bool = True) -> Count:
        """FLOPs of sampling one image without the decoder, the default settings taken."""

    @abstractmethod
    def batch_flops(
        self, spec: ModelSpec[M], sampling: S, images: int, computed: bool = False
    ) -> int:
        """FLOPs of sampling a batch of `images`, without the decoder: those that are needed, or
        with `computed` those that this program's sampler spends.
        """

    @abstractmethod
    def training_bytes(self, spec: ModelSpec[M], precision: Precision) -> float:
        """Memory of one image's activations while training, estimated."""

    @abstractmethod
    def sampling_bytes(self, spec: ModelSpec[M], sampling: S, images: int) -> int:
        """Memory that sampling a batch takes at the least."""

    @abstractmethod
    def validation(self, spec: ModelSpec[M]) -> Validation: ...

    @abstractmethod
    def frames(self, spec: ModelSpec[M], sampling: S) -> tuple[str, ...]:
        """What the frames of `sample` show, in a few letters each.

        Raises ValueError where the settings do not fit the model.
        """

    @property
    def published(self) -> PublishedFormat | None:
        return None

    # With torch ----------------------------------------------------------------------------------

    @abstractmethod
    def build(self, spec: ModelSpec[M], seed: int) -> nn.Module:
        """The network as it starts: a function of spec and seed."""

    @abstractmethod
    def loss(
        self,
        spec: ModelSpec[M],
        network: nn.Module,
        quantizer: Quantizer,
        batch: Batch,
        draws: StepDraws,
    ) -> Tensor:
        """The training loss, a float32 scalar: the mean over the images of `batch`."""

    def normalize(self, network: nn.Module, latents: LatentStatistics | None) -> None:
        """Give a new network the statistics of its training data, None where the token cache has
        none. Most families need none. Raises ValueError, in words, where they are needed.
        """

    @abstractmethod
    def validate(
        self,
        spec: ModelSpec[M],
        network: nn.Module,
        quantizer: Quantizer,
        batch: Batch,
        rows: Sequence[int],
    ) -> list[Tensor]:
        """For each of the scores of `validation` each image's sums by part, (B, P) each.

        `rows`: which images of the validation split these are. A family that needs random numbers
        draws them from these alone.
        """

    @abstractmethod
    def sample(
        self,
        spec: ModelSpec[M],
        network: nn.Module,
        quantizer: Quantizer,
        labels_B: Tensor,
        sampling: S,
        draws: SampleDraws,
        kept: Kept | None = None,
    ) -> Iterator[Frame]:
        """Draw a batch, frame by frame. Runs in the precision of the caller.

        `kept` comes only where `edits` is true. Raises ValueError where the settings lead to
        numbers that are not finite.
        """

    @abstractmethod
    def network_passes(
        self,
        spec: ModelSpec[M],
        network: nn.Module,
        quantizer: Quantizer,
        labels_B: Tensor,
        sampling: S,
    ) -> None:
        """The network's part of a sample and nothing else: for timing it."""


AnyFamily = ModelFamily  # of any records
