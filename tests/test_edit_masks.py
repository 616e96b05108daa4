"""Boxes and masks give the exact hole or an error; no kept cell overlaps the hole."""

import io
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from var_scaling.data.decode import Undecodable
from var_scaling.generation.kept import (
    coarse_positions,
    kept_cells,
    kept_positions,
    scales_covered_by,
)
from var_scaling.generation.masks import Box, EditError, box_hole, mask_hole, open_mask, read_box
from var_scaling.pyramid import PAPER_256, Pyramid

WIDTH, HEIGHT = 40, 20
SMALL = Pyramid(patch_nums=(1, 2, 3, 4))


def refused(*message: str):
    """Expect an EditError whose message has all of these texts."""
    return pytest.raises(EditError, match="".join(f"(?=.*{re.escape(words)})" for words in message))


# Boxes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("4, 2,30,18", (4, 2, 30, 18)),
        ("0,0,1,1", (0, 0, 1, 1)),
        ("0.0,0,1,1", (0, 0, 40, 20)),
        ("0.25,.5,0.75,1.", (10, 10, 30, 20)),
        ("25%,0,50%,100%", (10, 0, 20, 20)),
        ("0.29,0,0.7125,1", (12, 0, 29, 20)),  # 11.6 and 28.5: to the nearest pixel
        ("12.5%,0%,50%,10%", (5, 0, 20, 2)),
    ],
)
def test_a_box_is_in_pixels_unless_it_has_decimal_points_or_percent_signs(text, box):
    assert read_box(text, WIDTH, HEIGHT) == Box(*box)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3", "left,top,right,bottom"),
        ("1,2,3,4,5", "left,top,right,bottom"),
        ("a,2,3,4", "as numbers"),
        ("nan,0,1,1", "as numbers"),
        ("1e1,0,20,10", "as numbers"),
        ("", "as numbers"),
        ("10.5,2,20,10", "10.5 is not. Write pixels as integers"),
        ("0.5,0,2,1", "from 0 to 1, but 2 is not"),
        ("10%,0%,120%,50%", "from 0% to 100%, but 120% is not"),
        ("-0.1,0,0.5,0.5", "-0.1 is not"),
        ("10%,0.1,50%,50%", "0.1 has no %"),
        ("10%,0%,1,50%", "1 has no %"),
        ("30,2,20,10", "is reversed: left 30 is larger than right 20"),
        ("3,12,20,10", "top 12 is larger than bottom 10"),
        ("3,2,3,10", "is empty: left and right are both pixel 3"),
        ("0.5,0.1,0.6,0.11", "is empty: top and bottom are both pixel 2"),
        ("-1,2,10,10", "40 px wide and 20 px high"),
        ("3,2,41,10", "reaches outside the picture"),
    ],
)
def test_an_invalid_box_is_refused_with_its_own_message(text, message):
    with refused(message):
        read_box(text, WIDTH, HEIGHT)


def test_the_holes_of_in_and_out_painting_are_complements():
    box = Box(3, 4, 11, 9)
    inside, outside = (box_hole(box, WIDTH, HEIGHT, outside=out) for out in (False, True))
    assert inside.shape == (HEIGHT, WIDTH)
    assert inside.sum() == 8 * 5
    assert inside[4:9, 3:11].all()
    assert np.array_equal(outside, ~inside)
    with refused("whole picture", "nothing of it would be kept"):
        box_hole(Box(0, 0, WIDTH, HEIGHT), WIDTH, HEIGHT)
    with refused("nothing is left to generate"):
        box_hole(Box(0, 0, WIDTH, HEIGHT), WIDTH, HEIGHT, outside=True)
    with refused("reaches outside"):
        box_hole(Box(0, 0, WIDTH, HEIGHT + 1), WIDTH, HEIGHT)


# Masks ------------------------------------------------------------------------------------------

HOLE = np.zeros((HEIGHT, WIDTH), bool)
HOLE[5:12, 8:30] = True


def gray(hole: int = 255, rest: int = 0) -> Image.Image:
    return Image.fromarray(np.where(HOLE, hole, rest).astype(np.uint8))


def with_alpha(colour: Image.Image, hole: int = 0, rest: int = 255) -> Image.Image:
    image = colour.convert("RGBA")
    image.putalpha(gray(hole, rest))
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(HOLE.astype(np.uint16) * 65535)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_white_is_generated_in_every_mode(mode):
    middle = "LA" if mode == "LA" else "RGB"
    assert np.array_equal(mask_hole(gray().convert(middle).convert(mode), WIDTH, HEIGHT), HOLE)


def test_16_bit_masks_are_scaled_by_their_range():
    assert sixteen_bits().mode == "I;16"
    assert np.array_equal(mask_hole(sixteen_bits(), WIDTH, HEIGHT), HOLE)
    clear = sixteen_bits()
    clear.info["transparency"] = 65535
    assert np.array_equal(mask_hole(clear, WIDTH, HEIGHT), HOLE)


def test_gray_values_are_thresholded_at_one_half():
    assert np.array_equal(mask_hole(gray(128, 127), WIDTH, HEIGHT), HOLE)


def test_transparent_pixels_are_generated_if_there_are_no_white_ones():
    black, white = gray(0, 0), gray(255, 255)
    assert np.array_equal(mask_hole(with_alpha(black), WIDTH, HEIGHT), HOLE)
    assert np.array_equal(mask_hole(with_alpha(black, hole=127, rest=128), WIDTH, HEIGHT), HOLE)
    palette = gray(1, 0).convert("P")
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.info["transparency"] = 1
    assert np.array_equal(mask_hole(palette, WIDTH, HEIGHT), HOLE)
    # White strokes on a transparent background, as drawing tools make them: ambiguous.
    strokes = with_alpha(white, hole=255, rest=0)
    with refused("two ways", f"{HOLE.sum()} pixels are white", f"{(~HOLE).sum()} transparent"):
        mask_hole(strokes, WIDTH, HEIGHT)
    assert np.array_equal(mask_hole(strokes, WIDTH, HEIGHT, by="light"), HOLE)
    assert np.array_equal(mask_hole(strokes, WIDTH, HEIGHT, by="alpha"), ~HOLE)


def test_a_colour_picture_is_refused_as_a_mask_unless_alpha_is_given():
    photo = Image.new("RGB", (WIDTH, HEIGHT), (200, 120, 40))
    with refused("in colours", "(200, 120, 40) at x 0, y 0", "light", "alpha"):
        mask_hole(photo, WIDTH, HEIGHT)
    cut_out = with_alpha(photo)
    with refused("in colours"):
        mask_hole(cut_out, WIDTH, HEIGHT)
    assert np.array_equal(mask_hole(cut_out, WIDTH, HEIGHT, by="alpha"), HOLE)


@pytest.mark.parametrize(
    ("mask", "by", "message"),
    [
        (Image.new("L", (20, 40)), None, ("20 × 40", "40 × 20", "rotated by 90°", "nearest")),
        (Image.new("L", (80, 40)), None, ("80 × 40", "picture 40 × 20", "nearest")),
        (Image.new("L", (WIDTH, HEIGHT), 255), None, ("white everywhere",)),
        (gray(1), None, ("keeps all", "brightest pixel is 1 of 255", "mask of 0 and 1")),
        (with_alpha(gray(0), 9, 9), None, ("transparent everywhere",)),
        (with_alpha(gray(), 200, 255), "alpha", ("keeps all", "alpha 200 of 255")),
        (gray(), "alpha", ("keeps all", "alpha 255 of 255")),
    ],
)
def test_an_empty_or_full_mask_is_refused(mask, by, message):
    with refused(*message):
        mask_hole(mask, WIDTH, HEIGHT, by)


def test_a_mask_file_is_read_upright_in_its_own_mode():
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotated clockwise
    gray().transpose(Image.Transpose.ROTATE_90).save(out, "PNG", exif=exif)
    mask = open_mask(out.getvalue())
    assert mask.mode == "L"
    assert np.array_equal(mask_hole(mask, WIDTH, HEIGHT), HOLE)
    with pytest.raises(Undecodable, match="not an image"):
        open_mask(b"no image")
    with pytest.raises(Undecodable, match="no standard white level"):
        mask_hole(Image.new("F", (WIDTH, HEIGHT)), WIDTH, HEIGHT)


# Cells and positions ----------------------------------------------------------------------------


def square_holes():
    """The side of the finest map, and a hole that does not fill the square window."""
    box = st.tuples(*[st.integers(0, 40)] * 4)
    return st.tuples(st.integers(1, 40), st.integers(1, 12), box)


@given(square_holes())
@settings(max_examples=60, deadline=None)
def test_a_kept_cell_overlaps_no_pixel_of_the_hole(drawn):
    size, side, (y, x, height, width) = drawn
    hole = np.zeros((size, size), bool)
    hole[y : y + height, x : x + width] = True
    # Pixel p spans p to p + 1 and cell i spans i size / side to (i + 1) size / side.
    pixels, cells = np.arange(size) * side, np.arange(side)[:, None] * size
    touches = ((pixels < cells + size) & (cells < pixels + side)).astype(int)
    free = (touches @ hole @ touches.T) == 0
    if free.any():
        assert np.array_equal(kept_cells(hole, side).numpy(), free)
    else:
        with refused(f"each of the {side} × {side} cells"):
            kept_cells(hole, side)


def test_kept_positions_equal_those_of_the_released_demo():
    """Box 0.25 to 0.75 of 64 pixels; the resized maps are computed by hand.

    From 4 to 2, each token is the mean of 4 cells; from 4 to 3, outer ones lie at 1/6 between an
    outer and an inner cell.
    """
    box = read_box("0.25,0.25,0.75,0.75", 64, 64)
    inside, around = (kept_cells(box_hole(box, 64, 64, out), 4) for out in (False, True))
    ring_3 = [1, 1, 1, 1, 0, 1, 1, 1, 1]
    ring_4 = [1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1]
    expected = [1, *[1] * 4, *ring_3, *ring_4]  # 3/4 of each quarter is kept
    assert kept_positions(inside, SMALL).int().tolist() == expected
    expected = [1, *[0] * 4, *(1 - v for v in ring_3), *(1 - v for v in ring_4)]
    assert kept_positions(around, SMALL).int().tolist() == expected
    assert torch.equal(kept_positions(inside.float(), SMALL), kept_positions(inside, SMALL))


@given(st.integers(0, 2**32), st.floats(0.05, 0.9))
@settings(max_examples=25, deadline=None)
def test_a_larger_hole_keeps_a_subset_of_the_positions(seed, share):
    generator = torch.Generator().manual_seed(seed)
    pyramid = Pyramid(patch_nums=PAPER_256)
    larger = torch.rand(16, 16, generator=generator) < share
    smaller = larger & (torch.rand(16, 16, generator=generator) < 0.5)
    if not smaller.any():
        return
    less, more = (kept_positions(~hole, pyramid) for hole in (larger, smaller))
    assert not (less & ~more).any()
    assert torch.equal(more[-256:], ~smaller.flatten())
    assert more[0]


def test_an_empty_hole_and_another_grid_are_refused():
    with refused("every cell", "nothing is left to generate"):
        kept_positions(kept_cells(np.zeros((8, 8), bool), 4), SMALL)
    with refused("3 × 4", "side 4"):
        kept_positions(torch.ones(3, 4), SMALL)


def test_coarse_scales_are_kept_entirely():
    kept = coarse_positions(SMALL, 2)
    assert kept.tolist() == [True] * 5 + [False] * 25
    for scales in (0, 4):
        with refused(f"{scales} scales", "1 to 3"):
            coarse_positions(SMALL, scales)
    with refused("none can be"):
        coarse_positions(Pyramid(patch_nums=(4,)), 1)


def test_a_small_image_keeps_only_the_scales_that_it_resolves():
    paper = Pyramid(patch_nums=PAPER_256)
    shown = {px: scales_covered_by(px, paper, 16) for px in (1, 16, 31, 32, 64, 128, 255)}
    assert shown == {1: 1, 16: 1, 31: 1, 32: 2, 64: 4, 128: 7, 255: 9}
    for pixels in (256, 1000):
        with refused(f"{pixels} px", "images 256", "smaller image"):
            scales_covered_by(pixels, paper, 16)
    with refused("a single scale"):
        scales_covered_by(8, Pyramid(patch_nums=(16,)), 16)
