"""The hole in a user's picture that a model is to fill: from a box, or from an image as mask.

Shapes: h, w height and width of the picture. True is the hole.
"""

import math
import re
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from var_scaling.data.decode import decode, open_image, to_rgb

_LIGHT = (0.299, 0.587, 0.114)  # of red, green, blue: ITU-R BT.601, as Pillow's mode L
_COLOURED = 64  # of 255 between channels: beyond what JPEG makes of black and white
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)%?")


class EditError(ValueError):
    """A box, mask, window or size asks for an edit that cannot be; the message says why."""


class Box(NamedTuple):
    """Pixels left ≤ x < right, top ≤ y < bottom."""

    left: int
    top: int
    right: int
    bottom: int


def numbers_in(text: str, form: str) -> list[str]:
    """The numbers of `text` as they are written, as many as `form` ("left,top,size") names."""
    numbers = [part.strip() for part in text.split(",")]
    if len(numbers) != len(form.split(",")) or not all(map(_NUMBER.fullmatch, numbers)):
        raise EditError(f"{text!r}: wanted {form} as numbers with commas between them")
    return numbers


def read_box(text: str, width: int, height: int) -> Box:
    """`left,top,right,bottom` on a picture of that size, in one of three ways of writing.

    - Whole numbers are pixels: `64,0,192,128`.
    - With a % behind each they are shares of the width and the height: `25%,0%,75%,50%`.
    - With a decimal point in one or more, all are shares from 0 to 1: `0.25,0,0.75,.5`.

    So `0,0,1,1` is one pixel and `0.0,0,1,1` the whole picture. A bare 0 may stand beside %.
    Shares go to the nearest pixel. Raises EditError.
    """
    numbers = numbers_in(text, "left,top,right,bottom")
    if not any(mark in text for mark in ".%"):
        box = Box(*map(int, numbers))
    else:
        box = _shares(text, numbers, width, height)
    _refuse_box(f"box {text}", box, width, height)
    return box


def _shares(text: str, numbers: list[str], width: int, height: int) -> Box:
    percent = "%" in text
    for number in numbers:
        if percent and not number.endswith("%") and float(number) != 0:
            raise EditError(f"box {text}: {number} has no %, others have: write all the same way")
        value = float(number.rstrip("%"))
        if not 0 <= value <= (100 if percent else 1):
            shares = "0% to 100%" if percent else "0 to 1"
            raise EditError(
                f"box {text}: written with {'%' if percent else 'a decimal point'} it is in shares "
                f"of the picture, from {shares}, and {number} is not. Pixels are whole numbers"
            )
    whole = 100 if percent else 1
    edges = zip(numbers, (width, height, width, height), strict=True)
    return Box(*(math.floor(float(n.rstrip("%")) / whole * edge + 0.5) for n, edge in edges))


def _refuse_box(said: str, box: Box, width: int, height: int) -> None:
    for low, high, names in (
        (box.left, box.right, ("left", "right")),
        (box.top, box.bottom, ("top", "bottom")),
    ):
        if low == high:
            raise EditError(f"{said} is empty: {names[0]} and {names[1]} are both pixel {low}")
        if low > high:
            raise EditError(
                f"{said} is the wrong way round: {names[0]} {low} lies beyond {names[1]} {high}"
            )
    if box.left < 0 or box.top < 0 or box.right > width or box.bottom > height:
        raise EditError(
            f"{said} reaches outside the picture, which is {width} px wide and {height} px high"
        )


def box_hole(box: Box, width: int, height: int, outside: bool = False) -> np.ndarray:
    """bool (h, w), True where the model generates: in the box, or all around it if `outside`.

    Raises EditError for a box that is empty, reaches outside the picture, or covers all of it.
    """
    said = "box " + ",".join(map(str, box))
    _refuse_box(said, box, width, height)
    if box == (0, 0, width, height):
        raise EditError(
            f"{said} is the whole picture: "
            + ("nothing is left to generate" if outside else "nothing of it would be kept")
        )
    hole = np.full((height, width), outside)
    hole[box.top : box.bottom, box.left : box.right] = not outside
    return hole


def open_mask(content: bytes) -> Image.Image:
    """A mask file upright, in a mode of its own. Raises Undecodable, as for any picture."""
    decode(content)
    with open_image(content) as mask:
        mask.load()
        return ImageOps.exif_transpose(mask)


def mask_hole(
    mask: Image.Image, width: int, height: int, by: Literal["light", "alpha"] | None = None
) -> np.ndarray:
    """bool (h, w), True where the model generates: where the mask is white, or transparent.

    By "light", a pixel at least half as bright as white is generated, and what is transparent
    counts as black. By "alpha", a pixel less than half opaque is generated, whatever its colour.
    Without `by`, alpha decides if any pixel is that transparent, else light. Then a mask that can
    be read in two ways is refused: one in colours, or one with white beside transparent pixels.

    Raises EditError; Undecodable for samples that have no agreed white.
    """
    if mask.size != (width, height):
        lying = " It seems to lie on its side." if mask.size == (height, width) else ""
        raise EditError(
            f"the mask is {mask.width} × {mask.height} px, the picture {width} × {height}.{lying} "
            "Bring the mask to the picture's size, without smoothing (nearest neighbour)"
        )
    colour_hw3, alpha_hw = _colour_and_alpha(mask)
    shown_hw3 = colour_hw3 * (alpha_hw[..., None] / np.float32(255))
    light_hw = shown_hw3 @ np.array(_LIGHT, np.float32)
    white_hw, clear_hw = light_hw >= 127.5, alpha_hw < 127.5
    if by is None:
        _refuse_ambiguous(shown_hw3, white_hw, clear_hw)
        by = "alpha" if clear_hw.any() else "light"
    hole = clear_hw if by == "alpha" else white_hw
    generated = "transparent" if by == "alpha" else "white"
    if hole.all():
        raise EditError(f"the mask is {generated} everywhere: nothing of the picture would be kept")
    if not hole.any():
        found = (
            f"its least opaque pixel has alpha {alpha_hw.min()} of 255"
            if by == "alpha"
            else f"its brightest pixel is {light_hw.max():.0f} of 255 (a mask of 0 and 1 has to be "
            "stretched to 0 and 255)"
        )
        raise EditError(
            f"the mask keeps all of the picture: what is {generated} is generated, and {found}"
        )
    return hole


def _colour_and_alpha(mask: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (h, w, 3) and (h, w), the colour also where it does not show."""
    if not mask.has_transparency_data:
        return np.asarray(to_rgb(mask)), np.full((mask.height, mask.width), 255, np.uint8)
    if mask.mode.startswith("I"):  # one of the 65,536 values stands for transparent
        opaque = np.asarray(mask) != mask.info["transparency"]
        return np.asarray(to_rgb(mask)), opaque.astype(np.uint8) * 255
    rgba = np.asarray(mask.convert("RGBA"))
    return rgba[..., :3], rgba[..., 3]


def _refuse_ambiguous(shown_hw3: np.ndarray, white_hw: np.ndarray, clear_hw: np.ndarray) -> None:
    coloured_hw = np.ptp(shown_hw3, axis=2) >= _COLOURED
    if coloured_hw.any():
        y, x = np.unravel_index(coloured_hw.argmax(), coloured_hw.shape)
        raise EditError(
            f"the mask is in colours, such as {tuple(shown_hw3[y, x].astype(int).tolist())} at "
            f"x {x}, y {y}. Make it black (keep) and white (generate), or say what counts: "
            "light, where bright pixels are generated, or alpha, where transparent ones are"
        )
    if clear_hw.any() and white_hw.any():
        raise EditError(
            f"the mask can be read in two ways: {white_hw.sum():,} pixels are white, "
            f"{clear_hw.sum():,} transparent. Say what counts: light, where white is generated, "
            "or alpha, where transparent is; or save it without transparency"
        )
