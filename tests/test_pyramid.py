"""Geometry of the scales."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from var_scaling.pyramid import PAPER_256, Pyramid

SIDES = st.lists(st.integers(1, 20), min_size=1, max_size=6, unique=True).map(
    lambda sides: tuple(sorted(sides))
)


def test_the_papers_pyramid_has_680_tokens_and_286434_visible_pairs():
    paper = Pyramid(patch_nums=PAPER_256)
    assert (paper.length, paper.scales, paper.side) == (680, 10, 16)
    assert paper.visible_pairs == 286_434  # of the paper's pyramid, block-causal


@given(SIDES)
def test_scales_tile_the_positions_without_gap_or_overlap(sides):
    pyramid = Pyramid(patch_nums=sides)
    ends = [s + n for s, n in zip(pyramid.starts, pyramid.lengths, strict=True)]
    assert pyramid.starts == (0, *ends[:-1])
    assert ends[-1] == pyramid.length == len(pyramid.levels)


@given(SIDES)
def test_the_number_of_visible_pairs_equals_that_of_the_mask(sides):
    from var_scaling.models.attention import AttentionMask

    pyramid = Pyramid(patch_nums=sides[:3])
    assert pyramid.visible_pairs == int(AttentionMask(pyramid.lengths).allowed_LL.sum())


@pytest.mark.parametrize("sides", [(), (0, 1), (3, 1), (1, 3, 2)])
def test_decreasing_patch_nums_are_refused(sides):
    with pytest.raises(ValidationError, match="side"):
        Pyramid(patch_nums=sides)
