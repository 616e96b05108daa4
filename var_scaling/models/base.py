"""The interface of a model family to the rest of the program. Imports no torch.

A family is a package of this project or a user's module, with an object `FAMILY`. Training,
evaluation, sampling, timing, accounting, results and reports call its methods and name no family.

Shapes: B images, L tokens of an image, P parts of the validation loss, Z code channels, H side of
the tokenizer's grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

from pydantic import PositiveInt

from var_scaling.accounting import Count
from var_scaling.config import CacheKind, Tokenizer
from var_scaling.randomness import seed_for
from var_scaling.recipe import NonNegativeFloat, Precision
from var_scaling.record import Record

# For annotations only: `plan`, `status` and `analysis` read families and never load torch.
if TYPE_CHECKING:
    from torch import Tensor, nn

    from var_scaling.models.static_calls import StaticCalls
    from var_scaling.tokenizer.cache import LatentStatistics
    from var_scaling.tokenizer.quantizer import Quantizer
    from var_scaling.weights import State


class SampleDraws(Protocol):
    """The random numbers of a batch of samples, float32 (B, *shape). They depend only on each
    sample's seed, class and index, on the purpose, and on the step of the sampler.
    """

    def uniform(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Numbers in [0, 1)."""

    def uniforms(self, purpose: str, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """`uniform` of the steps 0, 1, …, one shape for each, in one copy to the device."""

    def normal(self, purpose: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers."""


class ModelRecord(Record):
    """The shape of a network. Each family has a subclass that fixes `family` and adds its fields.

    `family` is the name of a family of this project, or of an importable module with an object
    FAMILY. It is written into trial.json, so any process that reads the file finds the family.
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
        """The model of another depth in the same family of sizes."""
        # Record.model_copy validates, so a depth that the family cannot have is refused here.
        return self.model_copy(update={"depth": depth})


class SamplingRecord(Record):
    """The sampling settings other than seed, class and index. Each family has a subclass.

    `guidance` is g of c + g (c - u), with the conditional prediction c and the unconditional u
    (Ho and Salimans 2022); 0 disables it. A list has an entry for each step of the sampler.
    """

    family: str
    guidance: NonNegativeFloat | tuple[NonNegativeFloat, ...] = 0.0
    precision: Precision = "fp32"

    @property
    def guided(self) -> bool:
        """Whether any step needs the unconditional prediction."""
        return any(self.guidance) if isinstance(self.guidance, tuple) else self.guidance > 0

    def describe(self) -> str:
        """The guidance and every other non-default setting, for titles and tables."""
        return ", ".join([self._describe_guidance(), *self._non_default()])

    def other_settings(self) -> str:
        """The non-default settings other than guidance and precision."""
        return ", ".join(self._non_default("precision"))

    def _non_default(self, *excluded: str) -> list[str]:
        fields = type(self).model_fields
        return [
            name if value is True else f"{name} {_to_text(value)}"
            for name, value in self
            if name not in ("family", "guidance", *self._described_with_guidance, *excluded)
            and value != fields[name].default
        ]

    _described_with_guidance: ClassVar[tuple[str, ...]] = ()  # fields in `_describe_guidance`

    def _describe_guidance(self) -> str:
        return f"guidance {_to_text(self.guidance)}" if self.guided else "no guidance"


def _to_text(value: Any) -> str:
    return " ".join(map(_to_text, value)) if isinstance(value, tuple) else str(value)


M = TypeVar("M", bound=ModelRecord)
S = TypeVar("S", bound=SamplingRecord)


@dataclass(frozen=True)
class ModelSpec(Generic[M]):
    """Everything that determines a network. The label `classes` is the null class."""

    config: M
    tokenizer: Tokenizer
    classes: int


@dataclass(frozen=True)
class Validation:
    """The unit of a family's validation loss, and the parts of an image that it is reported for."""

    loss_unit: str
    parts: tuple[str, ...]  # names, such as one for each scale
    sizes: tuple[int, ...]  # terms of the mean in each part, such as its tokens
    scores: tuple[str, ...] = ("loss", "error")  # the scores whose sums `validate` returns
    last_part: bool = False  # whether the last part's scores are also reported separately
    score_every: int = 1  # n: every n-th image is scored
    forwards_per_image: int = 1  # forward passes over each scored image


@dataclass(frozen=True)
class StepDraws:
    """The random numbers of a training step: a function of seed, purpose and step.

    They are drawn for all `images` of the global batch, and this process uses those of its
    `local_slice`. So the number of processes does not change them.
    """

    seed: int
    step: int
    images: int
    local_slice: slice

    def seed_of(self, purpose: str) -> int:
        """The seed of the generator for `purpose`."""
        # No generator outlives a step: a resume then needs no generator state.
        return seed_for(self.seed, purpose, self.step)


class Batch(NamedTuple):
    """Images as tokens, on the device of the network. Class dropout has been applied."""

    ids_BL: Tensor  # int64; if the family trains on features, float32 grids (B, Z, H, H)
    labels_B: Tensor
    numbers: tuple[Tensor, ...] = ()  # ModelFamily.random_numbers of a training step

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The batch with `change` applied to each tensor."""
        ids_BL, labels_B = change(self.ids_BL), change(self.labels_B)
        return type(self)(ids_BL, labels_B, tuple(map(change, self.numbers)))


class KeptTokens(NamedTuple):
    """Tokens that an edit keeps instead of sampling them."""

    ids_BL: Tensor
    mask_BL: Tensor  # bool, True where the token is kept


class Frame(NamedTuple):
    """An intermediate result of a sampler; the last frame is the sample."""

    grid_BZHH: Tensor  # the input of the tokenizer's decoder
    ids_BN: Tensor | None  # the tokens that this frame adds; None if it adds none


class PublishedFormat(ABC):
    """The format in which a family's authors publish their checkpoints."""

    @abstractmethod
    def export(self, spec: ModelSpec, state: State) -> tuple[State, str]:
        """The weights as the published code loads them, and the call that builds the network."""


class ModelFamily(ABC, Generic[M, S]):
    """A kind of model. Stateless. Only the methods below "With torch" import torch."""

    name: str  # in tables and reports
    config: type[M]
    sampling: type[S]
    supports_editing: bool = False  # whether some tokens can be kept while others are sampled

    def cache_kind(self, config: M) -> CacheKind:
        """The training data: tokens, or the encoder's features before quantisation."""
        return "tokens"

    def check(self, spec: ModelSpec[M]) -> None:
        """Raise ValueError with the reason if the model does not fit the tokenizer."""

    @abstractmethod
    def sequence_length(self, spec: ModelSpec[M]) -> int:
        """Sequence positions per image in the network."""

    @abstractmethod
    def parameters(self, spec: ModelSpec[M]) -> Count:
        """Trainable parameters by component (accounting.COMPONENTS)."""

    @abstractmethod
    def block_parameters(self, spec: ModelSpec[M]) -> int:
        """Weights of the block matrices alone: N of the scaling laws."""

    @abstractmethod
    def forward_flops(self, spec: ModelSpec[M], dense: bool = False) -> Count:
        """FLOPs of one forward pass over one image by component (accounting.FLOP_COMPONENTS).

        `dense` also counts the masked attention pairs.
        """

    @abstractmethod
    def training_flops(self, spec: ModelSpec[M], dense: bool = False) -> Count:
        """FLOPs of the forward and backward pass on one image."""

    @abstractmethod
    def sampling_flops(self, spec: ModelSpec[M], guided: bool = True) -> Count:
        """FLOPs of sampling one image with the default settings, without the decoder."""

    @abstractmethod
    def batch_flops(
        self, spec: ModelSpec[M], sampling: S, images: int, computed: bool = False
    ) -> int:
        """FLOPs that sampling a batch of `images` needs, without the decoder; with `computed` those
        that this program's sampler performs, padding rows included.
        """

    @abstractmethod
    def training_bytes(self, spec: ModelSpec[M], precision: Precision) -> float:
        """Estimated memory of one image's activations in training."""

    def recomputed_bytes(self, spec: ModelSpec[M], precision: Precision) -> float:
        """The same if only the inputs of the blocks are kept and the rest is computed again."""
        return self.training_bytes(spec, precision)

    @abstractmethod
    def sampling_bytes(self, spec: ModelSpec[M], sampling: S, images: int) -> int:
        """A lower bound of the memory for sampling a batch."""

    @abstractmethod
    def validation(self, spec: ModelSpec[M]) -> Validation: ...

    @abstractmethod
    def frames(self, spec: ModelSpec[M], sampling: S) -> tuple[str, ...]:
        """A short label for each frame of `sample`, such as "4x4".

        Raises ValueError if the settings do not fit the model.
        """

    @property
    def published(self) -> PublishedFormat | None:
        """The published checkpoint format; None if the family has none."""
        return None

    # With torch ----------------------------------------------------------------------------------

    @abstractmethod
    def build(self, spec: ModelSpec[M], seed: int) -> nn.Module:
        """The network with its initial weights: a function of spec and seed."""

    def random_numbers(self, spec: ModelSpec[M], draws: StepDraws) -> tuple[Tensor, ...]:
        """Random numbers of a training step for `Batch.numbers`, on the CPU; most families need
        none. On a GPU they are drawn beside the step before, so all that take long belong here.
        """
        return ()

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
        """Store the statistics of the training data in a new network. Most families need none.

        Raises ValueError if the family needs them and the token cache has none (`latents` is None).
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
        """For each score of `validation`, the sums over the terms of each part, (B, P).

        `rows` are the indices of the images in the validation split. A family that needs random
        numbers must derive their seeds from these indices alone.
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
        kept: KeptTokens | None = None,
        calls: StaticCalls | None = None,
    ) -> Iterator[Frame]:
        """Sample a batch, frame by frame, in the caller's precision.

        `calls` may run the network; it lasts for several batches. A family may ignore it.
        Before the last frame nothing should wait for the device: for example, a check whether all
        numbers are finite comes at the end. `kept` is given only if `supports_editing` is true.
        Raises ValueError if the settings lead to numbers that are not finite.
        """

    @abstractmethod
    def network_passes(
        self,
        spec: ModelSpec[M],
        network: nn.Module,
        quantizer: Quantizer,
        labels_B: Tensor,
        sampling: S,
        calls: StaticCalls | None = None,
    ) -> None:
        """Run only the network's forward passes of `sample`, for timing."""


AnyFamily = ModelFamily  # with any config and sampling record
