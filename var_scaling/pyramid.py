"""The scales of a token pyramid: their lengths, positions and attention mask."""

from itertools import accumulate
from typing import Self

from pydantic import model_validator

from var_scaling.record import Record

# VAR, arXiv 2404.02905, section 3.2 and the released presets: 680 and 2,240 tokens.
PAPER_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PAPER_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


class Pyramid(Record):
    """Token maps from coarse to fine. Positions are in raster order within a scale.

    A single scale is the grid of a plain VQVAE. A repeated side adds one more residual code at each
    position (RQ-VAE, arXiv 2203.01941).
    """

    patch_nums: tuple[int, ...]

    @model_validator(mode="after")
    def _sides_do_not_decrease(self) -> Self:
        if not self.patch_nums or self.patch_nums[0] < 1:
            raise ValueError("patch_nums needs at least one side, each at least 1")
        # Equal sides are allowed: residual codes at the same positions.
        if any(low > high for low, high in zip(self.patch_nums, self.patch_nums[1:], strict=False)):
            raise ValueError(
                f"patch_nums = {self.patch_nums}: sides must not decrease, e.g. (1, 2, 3, 4)"
            )
        return self

    @property
    def scales(self) -> int:
        return len(self.patch_nums)

    @property
    def side(self) -> int:
        """Side of the finest map, which is the side of the tokenizer's feature grid."""
        return self.patch_nums[-1]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each scale."""
        return tuple(side * side for side in self.patch_nums)

    @property
    def length(self) -> int:
        """Number of tokens of one image."""
        return sum(self.lengths)

    @property
    def starts(self) -> tuple[int, ...]:
        """Position of each scale's first token."""
        # PAPER_256: 0, 1, 5, 14, 30, 55, 91, 155, 255, 424.
        return (0, *accumulate(self.lengths[:-1]))

    @property
    def levels(self) -> tuple[int, ...]:
        """Scale index of every position, of length `length`."""
        return tuple(k for k, length in enumerate(self.lengths) for _ in range(length))

    @property
    def visible_pairs(self) -> int:
        """(query, key) pairs of the block-causal mask: a scale attends to itself and to coarser.

        286,434 of 680² for the paper's pyramid.
        """
        # A query of scale k attends to all positions up to the end of its own scale.
        ends = accumulate(self.lengths)
        return sum(length * end for length, end in zip(self.lengths, ends, strict=True))
