"""Cut a model's square input from a picture of any size, and paste its output into the picture.

Shapes: h, w height and width of the picture, S side of the window in it, H side of the model's
images. The hole is True where the model generates.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from var_scaling.generation.masks import EditError, parse_numbers

_FEATHER = 32  # default feather: window size / 32
_HATCH = 64  # stripes along the longer side of a picture
_STRIPES = ((255, 90, 255), (70, 0, 70))  # light and dark: one is visible on any background
_TINT = 0.6  # opacity of the stripes


class Window(NamedTuple):
    """The square of `size` pixels at (left, top) of a picture that is the model's input."""

    left: int
    top: int
    size: int

    def crop(self, picture_hw: np.ndarray) -> np.ndarray:
        """The window's part of an array (h, w, ...): a view, not a copy."""
        rows, columns = (slice(low, low + self.size) for low in (self.top, self.left))
        return picture_hw[rows, columns]


def read_window(text: str, width: int, height: int) -> Window:
    """Parse `left,top,size` in pixels. Raises EditError if it reaches outside the picture."""
    numbers = parse_numbers(text, "left,top,size")
    # parse_numbers also accepts shares, which only boxes may have.
    if any(mark in text for mark in ".%"):
        raise EditError(f"window {text}: left, top and size must be integers (pixels)")
    window = Window(*map(int, numbers))
    _check_window(window, width, height)
    return window


def _check_window(window: Window, width: int, height: int) -> None:
    prefix = "window " + ",".join(map(str, window))
    if window.size < 1:
        raise EditError(f"{prefix}: its size must be at least one pixel")
    right, bottom = window.left + window.size, window.top + window.size
    if window.left < 0 or window.top < 0 or right > width or bottom > height:
        raise EditError(
            f"{prefix} ends at x {right}, y {bottom} and does not lie within the picture, which is "
            f"{width} px wide and {height} px high"
        )


def centred_window(width: int, height: int) -> Window:
    """The largest square in the middle of the picture."""
    size = min(width, height)
    return Window((width - size) // 2, (height - size) // 2, size)


def window_for(hole_hw: np.ndarray, outpaint: bool, user_window: Window | None = None) -> Window:
    """The window for a picture with this hole.

    The user's window if given. Else, for in-painting, the largest square in the picture with the
    hole as near to its centre as possible; for out-painting, the largest square in the middle.

    Raises EditError if the user's window reaches outside the picture, if an in-painting window
    does not contain the whole hole, or if the window contains nothing of the hole.
    """
    height, width = hole_hw.shape
    # Rows and columns with at least one pixel of the hole.
    ys, xs = (np.flatnonzero(hole_hw.any(axis)) for axis in (1, 0))
    if not len(xs):
        raise EditError("the hole is empty: nothing is left to generate")
    left, right, top, bottom = int(xs[0]), int(xs[-1]) + 1, int(ys[0]), int(ys[-1]) + 1
    hole = f"the hole spans x {left} to {right}, y {top} to {bottom}"
    if user_window is not None:
        window = user_window
        _check_window(window, width, height)
        if not outpaint and missed_share(hole_hw, window) > 0:
            raise EditError(
                f"window {','.join(map(str, window))} cuts the hole: {hole}. The model fills only "
                "the window: give a window around the hole, or none"
            )
    elif outpaint:
        window = centred_window(width, height)
    else:
        size = min(width, height)
        if max(right - left, bottom - top) > size:
            raise EditError(
                f"{hole}, so it fits into no square of {size} px, the largest in this picture of "
                f"{width} × {height}. Fill it in parts, or crop the picture"
            )
        window = Window(
            # Centred on the hole, then moved as little as needed to lie within the picture.
            min(max((left + right - size) // 2, 0), width - size),
            min(max((top + bottom - size) // 2, 0), height - size),
            size,
        )
    # Possible for a given window and for the central one of out-painting.
    if not window.crop(hole_hw).any():
        raise EditError(
            f"window {','.join(map(str, window))} contains nothing of the hole, so nothing is "
            f"left to generate: {hole}"
        )
    return window


def missed_share(hole_hw: np.ndarray, window: Window) -> float:
    """Share of the hole's pixels outside the window: the edit does not change them."""
    return 1 - float(window.crop(hole_hw).sum() / hole_hw.sum())


def to_square(picture_hw3: np.ndarray, window: Window, side: int) -> np.ndarray:
    """uint8 (H, H, 3), H = `side`: the window, resized to the model's image size."""
    return _resized(window.crop(picture_hw3), side)


def _resized(square_SS3: np.ndarray, side: int) -> np.ndarray:
    """Lanczos for downsizing, as for the training images; bicubic for upsizing: it rings less."""
    size = len(square_SS3)
    if size == side:
        return square_SS3.copy()
    resampling = Image.Resampling.LANCZOS if side < size else Image.Resampling.BICUBIC
    image = Image.fromarray(np.ascontiguousarray(square_SS3))
    return np.array(image.resize((side, side), resampling))  # a writable copy, for torch


def paste(
    picture_hw3: np.ndarray,
    generated_HH3: np.ndarray,
    hole_hw: np.ndarray,
    window: Window,
    feather_px: int | None = None,
) -> np.ndarray:
    """uint8 (h, w, 3): the picture at its own size with the hole filled, uint8 like both.

    Pixels outside the hole or outside the window do not change. Inside, the generated image has the
    weights of `fade_in`. Raises EditError as `fade_in` does.
    """
    assert picture_hw3.shape[:2] == hole_hw.shape
    return paste_with_weights(
        picture_hw3, generated_HH3, window, fade_in(hole_hw, window, feather_px)
    )


def paste_with_weights(
    picture_hw3: np.ndarray, generated_HH3: np.ndarray, window: Window, fade_SS: np.ndarray
) -> np.ndarray:
    """`paste` with the weights of `fade_in` computed before, to share them among results."""
    assert picture_hw3.dtype == generated_HH3.dtype == np.uint8
    picture_SS3 = window.crop(picture_hw3).astype(np.float32)
    # The model's image is resized, never the picture: the picture keeps its own pixels.
    generated_SS3 = _resized(generated_HH3, window.size)
    pasted = picture_hw3.copy()
    window.crop(pasted)[:] = np.rint(
        # In this form a weight of 0 gives exactly the picture's pixel, and 1 the generated one.
        picture_SS3 + (generated_SS3 - picture_SS3) * fade_SS[..., None]
    )
    return pasted


def feather_in(window: Window, feather_px: int | None) -> int:
    """The feather in pixels: the given value, else 1/32 of the window.

    Raises EditError if it is not within 0 to 1/4 of the window.
    """
    if feather_px is None:
        return max(1, window.size // _FEATHER)
    if not 0 <= feather_px <= max(1, window.size // 4):
        raise EditError(
            f"feather {feather_px} px: must be 0 to {max(1, window.size // 4)}, a quarter of the "
            f"window's {window.size} px"
        )
    return feather_px


def fade_in(hole_hw: np.ndarray, window: Window, feather_px: int | None = None) -> np.ndarray:
    """float32 (S, S): the weight of the generated image, for the hole's part in the window.

    0 outside the hole. Inside, it rises over `feather_px` pixels from the hole's border; an even
    number counts as the next odd one, 0 and 1 make a hard edge. Where the hole is less than four
    times as wide, it rises over fewer pixels, so that the generated image dominates any hole. The
    edge of the picture is not a border. Raises EditError as `feather_in` does.
    """
    feather_px = feather_in(window, feather_px)
    # Only the hole's part in the window is filled.
    filled_hw = np.zeros_like(hole_hw)
    window.crop(filled_hw)[:] = window.crop(hole_hw)
    # One more pixel on each side within the picture: where the window cuts the hole, its edge is a
    # border of the filled part too.
    left, top = max(window.left - 1, 0), max(window.top - 1, 0)
    right, bottom = window.left + window.size + 1, window.top + window.size + 1
    fade = _fade(filled_hw[top:bottom, left:right], feather_px)
    return Window(window.left - left, window.top - top, window.size).crop(fade)


def _fade(hole_hw: np.ndarray, feather_px: int) -> np.ndarray:
    """float32 (h, w): 0 outside the hole, rising from its border to 1 over at most the feather.

    The ramp lengths are feather, feather / 2, ..., 1. Each pixel uses the longest ramp for which a
    square of four times its length fits into the hole there. Between areas with different ramps the
    weights are blended.
    """
    feathers = [feather_px >> halvings for halvings in range(max(feather_px, 1).bit_length())]
    fade_hw = hole_hw.astype(np.float32)
    # From the shortest ramp to the longest: the longest one that fits is blended over the others.
    for feather in sorted(feathers):
        if feather < 2:
            continue  # a hard edge: the hole itself
        wide_hw = _open(hole_hw, 2 * feather)
        # No square of this size fits into the hole, so no larger one does.
        if not wide_hw.any():
            break
        near_wide_hw, near_hole_hw = (_blur(part, feather) for part in (wide_hw, hole_hw))
        # Share of the hole around a pixel in which this ramp fits. 1 / 255 is the step of _blur: no
        # division by 0.
        share_hw = near_wide_hw / np.maximum(near_hole_hw, np.float32(1 / 255))
        fade_hw += share_hw * (_ramp(hole_hw, feather // 2) - fade_hw)
    return fade_hw * hole_hw


def _ramp(hole_hw: np.ndarray, radius: int) -> np.ndarray:
    """1 / (2 radius + 1) on the hole's outermost pixels, 1 from the (2 radius + 1)th on."""
    # Eroded by the radius first, so that the blur of the same radius begins at the hole's border
    # and stays inside. Padding of 2 x radius: each of the two reaches that far. Mode edge: the
    # picture's edge is not a border of the hole.
    padded = np.pad(hole_hw, 2 * radius, mode="edge")
    height, width = hole_hw.shape
    rows, columns = slice(radius, radius + height), slice(radius, radius + width)
    return _blur(_erode(padded, radius), radius)[rows, columns]


def _open(hole_hw: np.ndarray, radius: int) -> np.ndarray:
    """Morphological opening: the part of the hole covered by squares of side 2 radius + 1 in it."""
    padded = np.pad(hole_hw, 2 * radius)  # with False: a strip along the picture's edge is thin too
    # Erosion of the complement is dilation.
    return ~_erode(~_erode(padded, radius), radius)


def _erode(true_hw: np.ndarray, radius: int) -> np.ndarray:
    """True where the whole square of side 2 radius + 1 is true; loses `radius` on each side.

    The reach doubles in each pass, so the cost grows with the logarithm of the radius.
    """
    for _ in range(2):
        # A square is separable: rows first, then, transposed, columns. The second turn transposes
        # back.
        true_hw, reach = true_hw.T, 1
        while reach <= 2 * radius:
            step = min(reach, 2 * radius + 1 - reach)
            true_hw, reach = true_hw[step:] & true_hw[:-step], reach + step
    return true_hw


def _blur(true_hw: np.ndarray, radius: int) -> np.ndarray:
    """float32 share of true pixels in the square around each pixel, in steps of 1 / 255."""
    # Pillow's box blur takes a time that does not depend on the radius.
    image = Image.fromarray(true_hw.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.BoxBlur(radius)), np.float32) / 255


def overlay(picture_hw3: np.ndarray, hole_hw: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3): the picture with light and dark stripes over the hole, for display."""
    ys, xs = np.nonzero(hole_hw)
    stripe = max(1, max(hole_hw.shape) // _HATCH)
    tint = np.array(_STRIPES, np.float32)[(xs + ys) // stripe % 2]
    marked_hw3 = picture_hw3.copy()
    marked_hw3[hole_hw] = np.rint(marked_hw3[hole_hw] * np.float32(1 - _TINT) + tint * _TINT)
    return marked_hw3
