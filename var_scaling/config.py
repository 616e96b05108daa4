"""What a tokenizer, a model, a trial and a sweep are: all that can change a number, no more."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from var_scaling.datasets import Data, DeadLeaves, ImageFiles
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.recipe import (
    Codebook,
    Losses,
    NonNegativeFloat,
    Optimiser,
    Precision,
    ProperShare,
    Sha256,
    Share,
)
from var_scaling.record import Name, Record, difference


class Tokenizer(Record):
    """A multi-scale residual VQVAE (VAR.md 1.1): all that its modules are built from."""

    name: Name
    pyramid: Pyramid = Pyramid(sides=PAPER_256)
    codes: Annotated[int, Field(ge=2, le=65536)] = 4096  # token ids are stored as uint16
    code_channels: PositiveInt = 32
    channels: PositiveInt = 160
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 2, 2, 4)
    residual_blocks: PositiveInt = 2
    norm_groups: PositiveInt = (
        32  # at small widths 1: a channel normalised alone forgets its colour
    )
    phi_convolutions: NonNegativeInt = 4  # 0: one per scale
    phi_strength: Share = 0.5

    @property
    def downsampling(self) -> int:
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def side(self) -> int:
        """Side of the images it takes and gives."""
        return self.pyramid.side * self.downsampling


class TrainedTokenizer(Tokenizer):
    """A tokenizer of our own, and how it is trained."""

    kind: Literal["trained"] = "trained"
    data: Data
    losses: Losses = Losses()
    codebook: Codebook = Codebook()
    optimiser: Optimiser
    batch: PositiveInt  # global, however many processes
    steps: PositiveInt
    dropout: ProperShare = 0.0
    weight_average: ProperShare = 0.0  # decay a step of the averaged weights; 0: the last ones
    precision: Precision = "fp32"
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _codebook_starts(self) -> Self:
        if self.codebook.starts_at >= self.steps:
            raise ValueError(
                f"codebook.starts_at = {self.codebook.starts_at}: must come before the last of "
                f"steps = {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _grid_fits_images(self) -> Self:
        if self.data.side != self.side:
            raise ValueError(
                f"data.side = {self.data.side}: {len(self.multipliers)} multipliers halve the "
                f"image {len(self.multipliers) - 1} "
                f"times, so a finest map of side {self.pyramid.side} "
                f"needs images of side {self.side}"
            )
        return self

    @model_validator(mode="after")
    def _images_are_large_enough_to_judge(self) -> Self:
        if self.losses.perceptual > 0 and self.side < 16:
            raise ValueError(f"losses.perceptual: VGG-16 halves 4 times, images are {self.side}")
        critic = self.losses.critic
        if critic is not None and self.side // 2**critic.halvings < 3:
            raise ValueError(
                f"losses.critic.halvings = {critic.halvings}: leaves nothing of images of side "
                f"{self.side}; at most {(self.side // 3).bit_length() - 1}"
            )
        return self


class ImportedTokenizer(Tokenizer):
    """A tokenizer trained elsewhere, known by the SHA-256 of the file it was read from."""

    kind: Literal["imported"] = "imported"
    sha256: Sha256


SomeTokenizer = TrainedTokenizer | ImportedTokenizer
AnyTokenizer = Annotated[SomeTokenizer, Field(discriminator="kind")]


class Model(Record):
    """A VAR transformer (VAR.md 1.2). One dial, depth; width and heads follow from it."""

    depth: PositiveInt
    width_per_depth: PositiveInt = 64
    mlp_ratio: PositiveInt = 4
    drop_path_per_depth: NonNegativeFloat = 0.1 / 24
    shared_adaln: bool = False
    normalised_attention: bool = True
    gamma_init: NonNegativeFloat = 1e-5  # AdaLN rows that scale a block's output
    adaln_init: NonNegativeFloat = 0.5
    head_init: NonNegativeFloat = 0.02

    @property
    def width(self) -> int:
        return self.width_per_depth * self.depth

    @property
    def heads(self) -> int:
        return self.depth

    @property
    def drop_path(self) -> float:
        """Drop rate of the last block; the rate grows linearly from 0 at the first."""
        return self.drop_path_per_depth * self.depth

    @model_validator(mode="after")
    def _keeps_some_paths(self) -> Self:
        if self.drop_path >= 1:
            raise ValueError(
                f"drop_path_per_depth x depth = {self.drop_path:.3g} must stay below 1"
            )
        return self


class Generator(Record):
    """A model of token maps and the tokenizer whose tokens it predicts."""

    name: Name
    family: Literal["var"] = "var"
    tokenizer: AnyTokenizer
    model: Model


class ImportedModel(Generator):
    """A generator trained elsewhere, known by the SHA-256 of the file it was read from."""

    kind: Literal["imported"] = "imported"
    classes: PositiveInt
    sha256: Sha256


class Trial(Generator):
    """One training run. Two trials with equal records give equal numbers."""

    data: Data
    optimiser: Optimiser
    batch: PositiveInt  # global, however many processes
    steps: PositiveInt
    label_drop: ProperShare = 0.1
    evaluations: Annotated[int, Field(ge=1, le=64)] = 6
    precision: Precision = "fp32"
    seed: NonNegativeInt = 0

    @property
    def classes(self) -> int:
        return self.data.classes

    @property
    def images_seen(self) -> int:
        """Training images of the whole trial, repeats counted."""
        return self.batch * self.steps

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which held-out tokens are scored: the end, and halves of halves before it."""
        return tuple(sorted({max(1, self.steps >> k) for k in range(self.evaluations)}))

    @model_validator(mode="after")
    def _images_fit_tokenizer(self) -> Self:
        if self.data.side != self.tokenizer.side:
            raise ValueError(
                f"data.side = {self.data.side}: the tokenizer takes {self.tokenizer.side}"
            )
        return self


class Sweep(Record):
    """A question and the trials that answer it."""

    name: Name
    question: str
    trials: tuple[Trial, ...]
    imported: tuple[ImportedModel, ...] = ()  # points of the same law, trained elsewhere

    @property
    def tokenizers(self) -> tuple[SomeTokenizer, ...]:
        return tuple({trial.tokenizer.name: trial.tokenizer for trial in self.trials}.values())

    @property
    def token_sets(self) -> tuple[tuple[SomeTokenizer, DeadLeaves | ImageFiles], ...]:
        """Each (tokenizer, data) whose tokens some trial reads."""
        pairs = {(t.tokenizer.name, t.data.name): (t.tokenizer, t.data) for t in self.trials}
        return tuple(pairs.values())

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if not self.trials and not self.imported:
            raise ValueError("trials: at least one is needed")
        return self

    @model_validator(mode="after")
    def _one_name_one_thing(self) -> Self:
        names = sorted(one.name for one in (*self.trials, *self.imported))
        twice = sorted({name for name, following in pairwise(names) if name == following})
        if twice:
            raise ValueError(
                f"trials must have names of their own; given twice: {', '.join(twice)}"
            )
        trained = [t for t in self.tokenizers if isinstance(t, TrainedTokenizer)]
        datasets = [trial.data for trial in self.trials] + [t.data for t in trained]
        for kind, things in (
            ("tokenizer", [trial.tokenizer for trial in self.trials]),
            ("data", datasets),
        ):
            first: dict[str, Record] = {}
            for thing in things:
                known = first.setdefault(thing.name, thing)
                if known != thing:
                    lines = difference(known.model_dump(mode="json"), thing.model_dump(mode="json"))
                    raise ValueError(
                        f"two different {kind}s are named {thing.name}: {'; '.join(lines)}"
                    )
        return self
