"""What a tokenizer, a model, a trial and a sweep are: all that can change a number, no more."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.record import Name, Record, difference

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ProperShare = Annotated[float, Field(ge=0, lt=1)]


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
    crops: NonNegativeInt = 0
    enlarge: Annotated[float, Field(ge=1)] = 1.0
    flip: bool = False
    validation_share: ProperShare = 0.0  # where the folder has no split of its own
    seed: NonNegativeInt = 0


Data = Annotated[DeadLeaves | ImageFiles, Field(discriminator="kind")]


class Optimiser(Record):
    """AdamW, its learning rate and weight decay as functions of the share of steps done.

    `plateau` is the share of the steps after warm-up spent at the peak before a linear decay:
    0.05 is VAR's `lin0`, 0.8 a warm-up-stable-decay schedule, 1 a constant rate.
    """

    learning_rate: PositiveFloat
    betas: tuple[ProperShare, ProperShare] = (0.9, 0.95)
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.05
    final_weight_decay: NonNegativeFloat = 0.05
    warm_up: ProperShare = 0.02
    warm_up_from: Share = 0.005
    plateau: Share = 0.05
    final: Share = 0.01
    clip: PositiveFloat = 2.0


class Codebook(Record):
    """How the codes are kept alive: moving averages, k-means first, restart of dead codes."""

    starts_at: NonNegativeInt = 0  # steps of plain autoencoding before anything is quantised
    decay: ProperShare = 0.99
    restart_below: NonNegativeFloat = 0.03  # of a code's fair share of use
    restart_every: PositiveInt = 20  # steps
    k_means_images: PositiveInt = 512


class Tokenizer(Record):
    """A multi-scale residual VQVAE (VAR.md 1.1) and how it is trained."""

    name: Name
    data: Data
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
    commitment: NonNegativeFloat = 0.25
    codebook: Codebook = Codebook()
    optimiser: Optimiser
    batch: PositiveInt
    steps: PositiveInt
    seed: NonNegativeInt = 0

    @property
    def downsampling(self) -> int:
        return int(2 ** (len(self.multipliers) - 1))

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
        wanted = self.pyramid.side * self.downsampling
        if self.data.side != wanted:
            raise ValueError(
                f"data.side = {self.data.side}: {len(self.multipliers)} multipliers halve the "
                f"image {len(self.multipliers) - 1} "
                f"times, so a finest map of side {self.pyramid.side} "
                f"needs images of side {wanted}"
            )
        return self


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


class Trial(Record):
    """One training run. Two trials with equal records give equal numbers."""

    name: Name
    family: Literal["var"] = "var"
    tokenizer: Tokenizer
    data: Data
    model: Model
    optimiser: Optimiser
    batch: PositiveInt  # global, however many processes
    steps: PositiveInt
    label_drop: ProperShare = 0.1
    evaluations: Annotated[int, Field(ge=1, le=64)] = 6
    seed: NonNegativeInt = 0

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
        if self.data.side != self.tokenizer.data.side:
            raise ValueError(
                f"data.side = {self.data.side}: the tokenizer takes {self.tokenizer.data.side}"
            )
        return self


class Sweep(Record):
    """A question and the trials that answer it."""

    name: Name
    question: str
    trials: Annotated[tuple[Trial, ...], Field(min_length=1)]

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        return tuple({trial.tokenizer.name: trial.tokenizer for trial in self.trials}.values())

    @property
    def token_sets(self) -> tuple[tuple[Tokenizer, DeadLeaves | ImageFiles], ...]:
        """Each (tokenizer, data) whose tokens some trial reads."""
        pairs = {(t.tokenizer.name, t.data.name): (t.tokenizer, t.data) for t in self.trials}
        return tuple(pairs.values())

    @model_validator(mode="after")
    def _one_name_one_thing(self) -> Self:
        names = sorted(trial.name for trial in self.trials)
        twice = sorted({name for name, following in pairwise(names) if name == following})
        if twice:
            raise ValueError(
                f"trials must have names of their own; given twice: {', '.join(twice)}"
            )
        datasets = [trial.data for trial in self.trials] + [t.data for t in self.tokenizers]
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
