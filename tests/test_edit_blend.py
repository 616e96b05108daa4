"""The window contains the hole; blending changes no pixel outside it and fills the inside."""

import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from var_scaling.data.decode import crop, resized, to_rgb
from var_scaling.generation.blend import (
    Window,
    centred_window,
    fade_in,
    missed_share,
    overlay,
    paste,
    paste_with_weights,
    read_window,
    to_square,
    window_for,
)
from var_scaling.generation.masks import Box, EditError, box_hole


def refused(*message: str):
    return pytest.raises(EditError, match="".join(f"(?=.*{re.escape(words)})" for words in message))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@st.composite
def pictures(draw):
    """Width, height, and a box that is smaller than the picture."""
    width, height = draw(st.integers(1, 48)), draw(st.integers(1, 48))
    assume(width * height > 1)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    box = Box(left, top, right, bottom)
    assume(box != (0, 0, width, height))
    return width, height, box


# Windows ----------------------------------------------------------------------------------------


@given(pictures())
@settings(max_examples=80, deadline=None)
def test_the_window_is_the_largest_square_with_the_hole_as_central_as_possible(drawn):
    width, height, box = drawn
    hole, size = box_hole(box, width, height), min(width, height)
    if max(box.right - box.left, box.bottom - box.top) > size:
        with refused(f"no square of {size} px", f"{width} × {height}"):
            window_for(hole, outpaint=False)
        return
    window = window_for(hole, outpaint=False)
    assert window.size == size
    assert window.crop(hole).shape == (size, size)
    assert missed_share(hole, window) == 0

    def off(left: int, top: int) -> int:
        return abs(2 * left + size - box.left - box.right) + abs(
            2 * top + size - box.top - box.bottom
        )

    places = [(x, y) for x in range(width - size + 1) for y in range(height - size + 1)]
    assert off(window.left, window.top) == min(off(*place) for place in places)


def test_out_painting_uses_the_central_window_by_default():
    hole = box_hole(Box(40, 10, 60, 30), 100, 40, outside=True)
    window = window_for(hole, outpaint=True)
    assert window == centred_window(100, 40) == (30, 0, 40)
    assert missed_share(hole, window) == pytest.approx(60 * 40 / (100 * 40 - 20 * 20))
    named = Window(45, 5, 30)
    assert window_for(hole, outpaint=True, user_window=named) == named
    assert centred_window(3, 8) == (0, 2, 3)


def test_a_given_window_is_used_or_refused_but_not_moved():
    hole = box_hole(Box(40, 10, 60, 30), 100, 40)
    assert window_for(hole, False, read_window("38, 8,24", 100, 40)) == (38, 8, 24)
    with refused("cuts the hole", "x 40 to 60, y 10 to 30"):
        window_for(hole, False, Window(45, 5, 30))
    with refused("contains nothing of the hole"):
        window_for(hole, True, Window(0, 0, 10))
    with refused("hole is empty"):
        window_for(np.zeros((4, 4), bool), False)
    with refused("100 px wide and 40 px high"):
        window_for(hole, False, Window(70, 0, 40))
    for text, message in {
        "1,2": "left,top,size",
        "0,0,0": "at least one pixel",
        "0,0,0.5": "must be integers",
        "0,0,50%": "must be integers",
        "-1,0,10": "within the picture",
        "61,0,40": "x 101, y 40",
    }.items():
        with refused(message):
            read_window(text, 100, 40)


# The square and back ----------------------------------------------------------------------------


def test_the_square_is_the_window_resized_to_the_side_of_the_model():
    picture = noise(20, 30)
    window = Window(7, 3, 16)
    assert np.array_equal(to_square(picture, window, 16), picture[3:19, 7:23])
    elsewhere = noise(20, 30, seed=1)
    window.crop(elsewhere)[:] = window.crop(picture)
    for side in (1, 5, 40):
        shown = to_square(picture, window, side)
        assert shown.shape == (side, side, 3)
        assert shown.flags.writeable
        # Pixels outside the window do not affect the result.
        assert np.array_equal(shown, to_square(elsewhere, window, side))


def test_a_square_picture_is_preprocessed_as_the_training_images():
    picture = noise(40, 40)
    expected = crop(resized(Image.fromarray(picture), 16, 1.0), 16, None, flip=False)
    assert np.array_equal(to_square(picture, centred_window(40, 40), 16), expected)


@given(pictures(), st.sampled_from([1, 8, 16, 40]), st.booleans(), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_pixels_outside_the_hole_are_unchanged(drawn, side, outside, feather):
    width, height, box = drawn
    hole = box_hole(box, width, height, outside)
    window = centred_window(width, height)
    picture, generated = noise(height, width), noise(side, side, seed=1)
    before = picture.copy()
    changed = paste(picture, generated, hole, window, min(feather, window.size // 4))
    seen = np.zeros_like(hole)
    window.crop(seen)[:] = window.crop(hole)
    assert changed.shape == picture.shape
    assert changed.dtype == np.uint8
    assert np.array_equal(changed[~seen], picture[~seen])
    assert np.array_equal(picture, before)


BLACK, WHITE = (np.full((64, 64, 3), level, np.uint8) for level in (0, 255))
WHOLE = Window(0, 0, 64)


def weights(hole: np.ndarray, feather: int | None = None) -> np.ndarray:
    """The blend weights: the result of pasting white on black."""
    return paste(BLACK, WHITE, hole, WHOLE, feather)[..., 0] / 255


@given(st.integers(0, 63), st.integers(0, 63), st.integers(0, 16))
@settings(max_examples=40, deadline=None)
def test_the_core_of_a_hole_has_the_generated_pixels(x, y, feather):
    hole = np.zeros((64, 64), bool)
    hole[y : y + 40, x : x + 40] = True
    deep = feather // 2 * 2  # hole pixels on all sides, or the edge of the picture
    around = sliding_window_view(np.pad(hole, deep, mode="edge"), (2 * deep + 1, 2 * deep + 1))
    core = around.all(axis=(2, 3))
    picture, generated = noise(64, 64), noise(64, 64, seed=1)
    pasted = paste(picture, generated, hole, WHOLE, feather)
    assert np.array_equal(pasted[core], generated[core])
    assert (weights(hole, feather)[core] == 1).all()


def test_the_blend_is_linear_over_the_feather():
    hole = box_hole(Box(16, 0, 48, 64), 64, 64)
    row, ramp = weights(hole, 6)[32], np.arange(1, 8) / 7  # 6 is even: the next odd number
    assert row[16:23] == pytest.approx(ramp, abs=0.01)
    assert row[41:48] == pytest.approx(ramp[::-1], abs=0.01)
    assert (row[23:41] == 1).all()
    # The default is 1/32 of the window: 2 here, so a ramp of 3.
    assert weights(hole)[32, 16:19] == pytest.approx([1 / 3, 2 / 3, 1], abs=0.01)
    for edge in (0, 1):
        assert np.array_equal(weights(hole, edge), hole)


@pytest.mark.parametrize("wide", [1, 2, 3, 5, 8, 13, 16, 17, 24, 33, 40])
def test_a_hole_thinner_than_its_feather_is_mostly_generated(wide):
    """Also next to a large hole: each connected part of a mask has its own feather."""
    strip, edge, spot = (np.zeros((64, 64), bool) for _ in range(3))
    strip[:, 4 : 4 + wide], edge[:, :wide] = True, True
    spot[2 : 2 + wide, 3 : 3 + wide], spot[44:] = True, True
    for hole in (strip, edge, spot):
        inside = weights(hole, 16)[:43][hole[:43]]
        assert inside.mean() > 0.5
        assert inside.max() == 1


@given(st.lists(st.tuples(*[st.integers(0, 63)] * 4), min_size=1, max_size=6), st.integers(0, 16))
@settings(max_examples=60, deadline=None)
def test_any_hole_is_more_generated_than_not(boxes, feather):
    hole = np.zeros((64, 64), bool)
    for y, x, height, width in boxes:
        hole[y : y + height + 1, x : x + width + 1] = True
    assert weights(hole, feather)[hole].mean() > 0.5


def test_the_seam_of_a_hole_cut_by_the_window_is_blended():
    hole = box_hole(Box(30, 20, 34, 24), 64, 32, outside=True)
    window = centred_window(64, 32)
    weight = paste(BLACK[:32], WHITE, hole, window, 4)[..., 0] / 255
    assert (weight[4, :16] == 0).all()
    assert weight[4, 16:20] == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.01)
    assert (weight[:, 24] == 1).all()  # the edge of the picture is not a seam


def test_results_with_shared_blend_weights_equal_those_with_their_own():
    picture, hole = noise(40, 64), box_hole(Box(20, 5, 50, 30), 64, 40)
    window = window_for(hole, outpaint=False)
    fade = fade_in(hole, window, 6)
    assert (fade[~window.crop(hole)] == 0).all()
    for seed in (1, 2):
        result = noise(16, 16, seed)
        alone = paste(picture, result, hole, window, 6)
        assert np.array_equal(paste_with_weights(picture, result, window, fade), alone)


def test_a_feather_beyond_a_quarter_of_the_window_is_refused():
    hole = box_hole(Box(4, 4, 12, 12), 32, 32)
    for feather in (-1, 9):
        with refused(f"feather {feather} px", "0 to 8", "32 px"):
            paste(noise(32, 32), noise(16, 16), hole, Window(0, 0, 32), feather)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_any_mode_and_shape_can_be_edited(mode):
    if mode == "I;16":
        image = Image.fromarray(noise(21, 33)[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(noise(21, 33)).convert(mode)
    assert image.mode == mode
    picture = np.asarray(to_rgb(image))
    hole = box_hole(Box(5, 5, 20, 20), 33, 21)
    window = window_for(hole, outpaint=False)
    pasted = paste(picture, to_square(picture, window, 16), hole, window)
    assert np.array_equal(pasted[~hole], picture[~hole])
    same = paste(picture, to_square(picture, window, window.size), hole, window)
    assert np.array_equal(same, picture)


@given(st.tuples(*[st.integers(0, 255)] * 3))
@settings(max_examples=30, deadline=None)
def test_the_overlay_is_visible_on_any_background_and_only_in_the_hole(colour):
    picture = np.full((80, 100, 3), colour, np.uint8)
    hole = box_hole(Box(20, 20, 50, 60), 100, 80)
    shown = overlay(picture, hole)
    assert np.array_equal(shown[~hole], picture[~hole])
    off = np.abs(shown.astype(int) - picture)[hole].max(axis=1)
    assert (off > 50).mean() > 0.4  # at least one of the two stripe colours
    assert np.ptp(shown[hole].astype(int), axis=0).max() > 90  # the two stripe colours differ
