"""Configs of tokenizers: every field that can change a result, and no others."""

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

CacheKind = Literal[
    "tokens", "features"
]  # content of a token cache: ids, or feature grids before quantisation


class Tokenizer(Record):
    """Architecture of a multi-scale residual VQVAE (arXiv 2404.02905)."""

    name: Name
    # The defaults are the released tokenizer (vae_ch160v4096z32.pth): 256 px to 16 x 16.
    pyramid: Pyramid = Pyramid(patch_nums=PAPER_256)
    codebook_size: Annotated[int, Field(ge=2, le=65536)] = 4096  # token ids are stored as uint16
    code_channels: PositiveInt = 32
    channels: PositiveInt = 160
    multipliers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 2, 2, 4)
    residual_blocks: PositiveInt = 2
    norm_groups: PositiveInt = 32  # small widths need 1: groups of one channel lose its mean
    phi_convolutions: NonNegativeInt = 4  # 0: one per scale
    phi_strength: Share = 0.5
    # Of the encoder; the nearest codes are found in float32. Images near the border between two
    # codes get other tokens in another precision. Left out of files and fingerprints where it is
    # fp32, so that those of tokenizers without this field stay valid.
    encode_precision: Annotated[Precision, Field(exclude_if=lambda value: value == "fp32")] = "fp32"

    @property
    def downsampling(self) -> int:
        # The coarsest level is not followed by a downsampling.
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def side(self) -> int:
        """Side of the input and output images, in pixels."""
        return self.pyramid.side * self.downsampling


class TrainedTokenizer(Tokenizer):
    """A tokenizer that this project trains, with its data and training settings."""

    kind: Literal["trained"] = "trained"
    data: Data
    losses: Losses = Losses()
    codebook: Codebook = Codebook()
    optimiser: Optimiser
    batch_size: PositiveInt  # global, over all processes
    steps: PositiveInt
    dropout: ProperShare = 0.0
    weight_average: ProperShare = 0.0  # decay per step of the averaged weights; 0: no average
    precision: Precision = "fp32"
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _codebook_starts(self) -> Self:
        if self.codebook.starts_at >= self.steps:
            raise ValueError(
                f"codebook.starts_at = {self.codebook.starts_at}: must be less than "
                f"steps = {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _grid_fits_images(self) -> Self:
        if self.data.side != self.side:
            raise ValueError(
                f"data.side = {self.data.side}: {len(self.multipliers)} multipliers halve the "
                f"image {len(self.multipliers) - 1} times, so a finest token map of side "
                f"{self.pyramid.side} needs images of side {self.side}"
            )
        return self

    @model_validator(mode="after")
    def _images_are_large_enough_for_the_losses(self) -> Self:
        # VGG-16 halves the side four times: 16 px leave one position at its last stage.
        if self.losses.perceptual > 0 and self.side < 16:
            raise ValueError(
                f"losses.perceptual > 0: needs images of side 16 or more, not {self.side}"
            )
        critic = self.losses.critic
        # After the halvings, two convolutions take one position each: 3 leave one logit.
        if critic is not None and self.side // 2**critic.halvings < 3:
            raise ValueError(
                f"losses.critic.halvings = {critic.halvings}: too many for images of side "
                f"{self.side}; at most {(self.side // 3).bit_length() - 1}"
            )
        return self


class ImportedTokenizer(Tokenizer):
    """A tokenizer trained elsewhere, identified by the SHA-256 of its weights file."""

    kind: Literal["imported"] = "imported"
    sha256: Sha256


SomeTokenizer = TrainedTokenizer | ImportedTokenizer
AnyTokenizer = Annotated[SomeTokenizer, Field(discriminator="kind")]
