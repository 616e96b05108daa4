"""The hole in a user's picture that a model fills: given by a box or by a mask image.

Shapes: h, w height and width of the picture. True marks the hole.
"""

import math
import re
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from var_scaling.data.decode import decode, open_image, to_rgb

_LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue: ITU-R BT.601, as in Pillow's mode L
# Difference between channels, of 255, that makes a mask coloured. JPEG artefacts of a black and
# white mask stay below it.
_COLOURED = 64
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)%?")


class EditError(ValueError):
    """An edit is impossible with this box, mask, window or size; the message gives the reason."""


class Box(NamedTuple):
    """Pixels left ≤ x < right, top ≤ y < bottom."""

    left: int
    top: int
    right: int
    bottom: int


def parse_numbers(text: str, form: str) -> list[str]:
    """The numbers in `text` as strings, one for each name in `form`, such as "left,top,size"."""
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) != len(form.split(",")) or not all(map(_NUMBER.fullmatch, numbers)):
        raise EditError(f"{text!r}: expected {form} as numbers separated by commas")
    return numbers


def read_box(text: str, width: int, height: int) -> Box:
    """Parse `left,top,right,bottom` for a picture of the given size. There are three notations.

    - Integers are pixels: `64,0,192,128`.
    - Percentages are shares of the width and the height: `25%,0%,75%,50%`.
    - If at least one number has a decimal point, all are shares from 0 to 1: `0.25,0,0.75,.5`.

    So `0,0,1,1` is one pixel and `0.0,0,1,1` the whole picture. Among percentages, 0 needs no %.
    Shares are rounded to the nearest pixel. Raises EditError.
    """
    numbers = parse_numbers(text, "left,top,right,bottom")
    if not any(mark in text for mark in ".%"):
        box = Box(*map(int, numbers))
    else:
        box = _box_of_shares(text, numbers, width, height)
    _check_box(f"box {text}", box, width, height)
    return box


def _box_of_shares(text: str, numbers: list[str], width: int, height: int) -> Box:
    percent = "%" in text
    for number in numbers:
        # 0 is the same in pixels and in per cent; any other number without % could mean pixels.
        if percent and not number.endswith("%") and float(number) != 0:
            raise EditError(f"box {text}: {number} has no %, but others do: write all with %")
        value = float(number.rstrip("%"))
        if not 0 <= value <= (100 if percent else 1):
            allowed = "0% to 100%" if percent else "0 to 1"
            notation = "%" if percent else "a decimal point"
            raise EditError(
                f"box {text}: with {notation} the numbers are shares of the picture, from "
                f"{allowed}, but {number} is not. Write pixels as integers"
            )
    whole = 100 if percent else 1
    edges = zip(numbers, (width, height, width, height), strict=True)
    # floor(x + 0.5) rounds halves up; Python's round would round 28.5 down, to the even number.
    return Box(*(math.floor(float(n.rstrip("%")) / whole * edge + 0.5) for n, edge in edges))


def _check_box(prefix: str, box: Box, width: int, height: int) -> None:
    for low, high, names in (
        (box.left, box.right, ("left", "right")),
        (box.top, box.bottom, ("top", "bottom")),
    ):
        if low == high:
            raise EditError(f"{prefix} is empty: {names[0]} and {names[1]} are both pixel {low}")
        if low > high:
            raise EditError(
                f"{prefix} is reversed: {names[0]} {low} is larger than {names[1]} {high}"
            )
    if box.left < 0 or box.top < 0 or box.right > width or box.bottom > height:
        raise EditError(
            f"{prefix} reaches outside the picture, which is {width} px wide and {height} px high"
        )


def box_hole(box: Box, width: int, height: int, outside: bool = False) -> np.ndarray:
    """bool (h, w), True where the model generates: in the box, or around it if `outside`.

    Raises EditError for a box that is empty, reaches outside the picture, or covers all of it.
    """
    prefix = "box " + ",".join(map(str, box))
    _check_box(prefix, box, width, height)
    if box == (0, 0, width, height):
        raise EditError(
            f"{prefix} is the whole picture: "
            + ("nothing is left to generate" if outside else "nothing of it would be kept")
        )
    hole = np.full((height, width), outside)
    hole[box.top : box.bottom, box.left : box.right] = not outside
    return hole


def open_mask(content: bytes) -> Image.Image:
    """A mask file, rotated upright by its EXIF data, in its own mode. Raises Undecodable."""
    decode(content)  # raises for a damaged file; decodes to RGB, but the mask needs its alpha
    with open_image(content) as mask:
        mask.load()
        return ImageOps.exif_transpose(mask)


def mask_hole(
    mask: Image.Image, width: int, height: int, by: Literal["light", "alpha"] | None = None
) -> np.ndarray:
    """bool (h, w), True where the model generates: where the mask is white or transparent.

    `by` = "light": pixels of at least half the brightness of white; transparent pixels count as
    black. `by` = "alpha": pixels of less than half opacity, of any colour. Without `by`, "alpha"
    applies if any pixel is transparent, else "light". Ambiguous masks are then refused: masks in
    colours, and masks with both white and transparent pixels.

    Raises EditError; Undecodable for a pixel format without a defined white.
    """
    if mask.size != (width, height):
        rotated = " It seems to be rotated by 90°." if mask.size == (height, width) else ""
        raise EditError(
            f"the mask is {mask.width} × {mask.height} px, the picture {width} × {height}."
            f"{rotated} Resize the mask to the picture's size without smoothing (nearest neighbour)"
        )
    colour_hw3, alpha_hw = _colour_and_alpha(mask)
    # On black, so that transparent pixels are never white.
    visible_hw3 = colour_hw3 * (alpha_hw[..., None] / np.float32(255))
    light_hw = visible_hw3 @ np.array(_LUMA, np.float32)
    white_hw, transparent_hw = light_hw >= 127.5, alpha_hw < 127.5
    if by is None:
        _refuse_ambiguous(visible_hw3, white_hw, transparent_hw)
        # Not ambiguous: a mask with both white and transparent pixels was refused above.
        by = "alpha" if transparent_hw.any() else "light"
    hole = transparent_hw if by == "alpha" else white_hw
    generated = "transparent" if by == "alpha" else "white"
    if hole.all():
        raise EditError(f"the mask is {generated} everywhere: nothing of the picture would be kept")
    if not hole.any():
        closest = (
            f"its least opaque pixel has alpha {alpha_hw.min()} of 255"
            if by == "alpha"
            else f"its brightest pixel is {light_hw.max():.0f} of 255 (scale a mask of 0 and 1 "
            "to 0 and 255)"
        )
        raise EditError(
            f"the mask keeps all of the picture: {generated} pixels are generated, but {closest}"
        )
    return hole


def _colour_and_alpha(mask: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Colour (h, w, 3) and alpha (h, w), uint8; transparent pixels have their colour too."""
    if not mask.has_transparency_data:
        return np.asarray(to_rgb(mask)), np.full((mask.height, mask.width), 255, np.uint8)
    if mask.mode.startswith("I"):  # 16-bit grey: one of the 65,536 values means transparent
        opaque = np.asarray(mask) != mask.info["transparency"]
        return np.asarray(to_rgb(mask)), opaque.astype(np.uint8) * 255
    rgba = np.asarray(mask.convert("RGBA"))
    return rgba[..., :3], rgba[..., 3]


def _refuse_ambiguous(
    visible_hw3: np.ndarray, white_hw: np.ndarray, transparent_hw: np.ndarray
) -> None:
    coloured_hw = np.ptp(visible_hw3, axis=2) >= _COLOURED
    if coloured_hw.any():
        y, x = np.unravel_index(coloured_hw.argmax(), coloured_hw.shape)
        raise EditError(
            f"the mask is in colours, such as {tuple(visible_hw3[y, x].astype(int).tolist())} at "
            f"x {x}, y {y}. Make it black (keep) and white (generate), or choose how to read it: "
            "light generates bright pixels, alpha generates transparent pixels"
        )
    if transparent_hw.any() and white_hw.any():
        raise EditError(
            f"the mask can be read in two ways: {white_hw.sum():,} pixels are white, "
            f"{transparent_hw.sum():,} transparent. Choose how to read it: light generates white "
            "pixels, alpha generates transparent pixels; or save it without transparency"
        )
