"""What a tokenizer is: all that can change a number, no more."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from var_scaling.datasets import Data
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.recipe import (
    Codebook,
    Losses,
    Optimiser,
    Precision,
    ProperShare,
    Sha256,
    Share,
)
from var_scaling.record import Name, Record

CacheKind = Literal["tokens", "features"]  # of encoded images: ids, or the grid not quantised


class Tokenizer(Record):
    """A multi-scale residual VQVAE (arXiv 2404.02905): all that its modules are built from."""

    name: Name
    pyramid: Pyramid = Pyramid(patch_nums=PAPER_256)
    codebook_size: Annotated[int, Field(ge=2, le=65536)] = 4096  # token ids are stored as uint16
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
    batch_size: PositiveInt  # global, however many processes
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
