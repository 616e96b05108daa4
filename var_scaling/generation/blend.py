"""From a picture of any size to the square that a model sees, and back into the picture.

Shapes: h, w height and width of the picture, S side of the window onto it, H side of the model's
images. The hole is True where the model generates.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from var_scaling.generation.masks import EditError, numbers_in

_FEATHER = 32  # window sides in the default feather
_HATCH = 64  # stripes across the longer side of a picture
_STRIPES = ((255, 90, 255), (70, 0, 70))  # light and dark: one shows on any background
_TINT = 0.6


class Window(NamedTuple):
    """Square of `size` pixels at left, top: all that a model sees of a picture."""

    left: int
    top: int
    size: int

    def of(self, picture_hw: np.ndarray) -> np.ndarray:
        """Its part of an array (h, w, ...); a view, not a copy."""
        rows, columns = (slice(low, low + self.size) for low in (self.top, self.left))
        return picture_hw[rows, columns]


def read_window(text: str, width: int, height: int) -> Window:
    """`left,top,size` in whole pixels. Raises EditError if it reaches outside the picture."""
    numbers = numbers_in(text, "left,top,size")
    if any(mark in text for mark in ".%"):
        raise EditError(f"window {text}: left, top and size are whole pixels")
    window = Window(*map(int, numbers))
    _refuse_window(window, width, height)
    return window


def _refuse_window(window: Window, width: int, height: int) -> None:
    said = "window " + ",".join(map(str, window))
    if window.size < 1:
        raise EditError(f"{said}: its size must be at least one pixel")
    right, bottom = window.left + window.size, window.top + window.size
    if window.left < 0 or window.top < 0 or right > width or bottom > height:
        raise EditError(
            f"{said} ends at x {right}, y {bottom} and does not lie within the picture, which is "
            f"{width} px wide and {height} px high"
        )


def centred_window(width: int, height: int) -> Window:
    """The largest square in the middle of the picture."""
    size = min(width, height)
    return Window((width - size) // 2, (height - size) // 2, size)


def window_for(hole_hw: np.ndarray, outpaint: bool, named: Window | None = None) -> Window:
    """What the model is to see of a picture with that hole.

    To in-paint: of the largest squares in the picture the one with the hole most nearly in its
    middle. To out-paint: the largest in the middle of the picture. Either way `named`, if given.

    Raises EditError if `named` reaches outside the picture; if, to in-paint, no such square holds
    the hole, or `named` cuts it; if none of the hole can be seen.
    """
    height, width = hole_hw.shape
    ys, xs = (np.flatnonzero(hole_hw.any(axis)) for axis in (1, 0))
    if not len(xs):
        raise EditError("the hole is empty: nothing is left to generate")
    left, right, top, bottom = int(xs[0]), int(xs[-1]) + 1, int(ys[0]), int(ys[-1]) + 1
    hole = f"the hole spans x {left} to {right}, y {top} to {bottom}"
    if named is not None:
        window = named
        _refuse_window(window, width, height)
        if not outpaint and missed_share(hole_hw, window) > 0:
            raise EditError(
                f"window {','.join(map(str, window))} cuts the hole: {hole}. The model fills only "
                "what it sees: name a window around the hole, or none"
            )
    elif outpaint:
        window = centred_window(width, height)
    else:
        size = min(width, height)
        if max(right - left, bottom - top) > size:
            raise EditError(
                f"{hole}, so it fits into no square of {size} px, the largest in this picture of "
                f"{width} × {height}. Fill it in parts, or crop the picture to what matters"
            )
        window = Window(
            min(max((left + right - size) // 2, 0), width - size),
            min(max((top + bottom - size) // 2, 0), height - size),
            size,
        )
    if not window.of(hole_hw).any():
        raise EditError(
            f"window {','.join(map(str, window))} shows nothing of the hole, so nothing is left "
            f"to generate: {hole}"
        )
    return window


def missed_share(hole_hw: np.ndarray, window: Window) -> float:
    """Share of the hole's pixels outside the window: they stay as they are."""
    return 1 - float(window.of(hole_hw).sum() / hole_hw.sum())


def to_square(picture_hw3: np.ndarray, window: Window, side: int) -> np.ndarray:
    """uint8 (H, H, 3), H = `side`: what the window shows, as large as the model takes it."""
    return _resized(window.of(picture_hw3), side)


def _resized(square_SS3: np.ndarray, side: int) -> np.ndarray:
    """Lanczos down, as the model's training images were made; bicubic up, which rings less."""
    size = len(square_SS3)
    if size == side:
        return square_SS3.copy()
    how = Image.Resampling.LANCZOS if side < size else Image.Resampling.BICUBIC
    image = Image.fromarray(np.ascontiguousarray(square_SS3))
    return np.array(image.resize((side, side), how))  # writable, as torch wants it


def paste(
    picture_hw3: np.ndarray,
    generated_HH3: np.ndarray,
    hole_hw: np.ndarray,
    window: Window,
    feather_px: int | None = None,
) -> np.ndarray:
    """uint8 (h, w, 3): the picture at its own size with the hole filled, uint8 like both.

    Outside the hole, and outside the window, every pixel is the picture's own. Inside, what was
    generated fades in as `fade_in` says. Raises EditError as that does.
    """
    assert picture_hw3.shape[:2] == hole_hw.shape
    return faded(picture_hw3, generated_HH3, window, fade_in(hole_hw, window, feather_px))


def faded(
    picture_hw3: np.ndarray, generated_HH3: np.ndarray, window: Window, fade_SS: np.ndarray
) -> np.ndarray:
    """The same as `paste`, of a fade that was computed before: many results share one."""
    assert picture_hw3.dtype == generated_HH3.dtype == np.uint8
    own_SS3 = window.of(picture_hw3).astype(np.float32)
    new_SS3 = _resized(generated_HH3, window.size)
    pasted = picture_hw3.copy()
    window.of(pasted)[:] = np.rint(own_SS3 + (new_SS3 - own_SS3) * fade_SS[..., None])
    return pasted


def feather_in(window: Window, feather_px: int | None) -> int:
    """The feather in pixels: as given, else 1/32 of the window.

    Raises EditError if it is not from 0 to 1/4 of the window.
    """
    if feather_px is None:
        return max(1, window.size // _FEATHER)
    if not 0 <= feather_px <= max(1, window.size // 4):
        raise EditError(
            f"feather {feather_px} px: wanted 0 to {max(1, window.size // 4)}, a quarter of the "
            f"window's {window.size} px"
        )
    return feather_px


def fade_in(hole_hw: np.ndarray, window: Window, feather_px: int | None = None) -> np.ndarray:
    """float32 (S, S): the generated image's weight, by what of the hole lies in the window.

    0 outside the hole; inside it rises over `feather_px` pixels from the hole's border (an even
    number counts as the next odd one, 0 and 1 make a hard edge), over fewer where the hole is less
    than four times as wide: any hole is more generated than not. The picture's own edge is no
    border. Raises EditError as `feather_in` does.
    """
    feather_px = feather_in(window, feather_px)
    filled_hw = np.zeros_like(hole_hw)
    window.of(filled_hw)[:] = window.of(hole_hw)
    # One pixel more on each side, where there is one: the seam of a hole that the window cuts.
    left, top = max(window.left - 1, 0), max(window.top - 1, 0)
    right, bottom = window.left + window.size + 1, window.top + window.size + 1
    fade = _fade(filled_hw[top:bottom, left:right], feather_px)
    return Window(window.left - left, window.top - top, window.size).of(fade)


def _fade(hole_hw: np.ndarray, feather_px: int) -> np.ndarray:
    """float32 (h, w), 0 outside the hole, rising from its border to 1 over at most the feather.

    Each place takes the longest ramp, of feather, feather / 2, ... 1, whose fourfold fits into the
    hole there as a square; where that changes, one ramp passes into the next.
    """
    feathers = [feather_px >> halvings for halvings in range(max(feather_px, 1).bit_length())]
    fade_hw = hole_hw.astype(np.float32)
    for feather in sorted(feathers):
        if feather < 2:
            continue  # a hard edge: the hole itself
        wide_hw = _opened(hole_hw, 2 * feather)
        if not wide_hw.any():
            break
        near_hw, whole_hw = (_blurred(part, feather) for part in (wide_hw, hole_hw))
        share_hw = near_hw / np.maximum(whole_hw, np.float32(1 / 255))
        fade_hw += share_hw * (_ramp(hole_hw, feather // 2) - fade_hw)
    return fade_hw * hole_hw


def _ramp(hole_hw: np.ndarray, radius: int) -> np.ndarray:
    """1 / (2 radius + 1) on the hole's outermost pixels, 1 from the (2 radius + 1)th on."""
    padded = np.pad(hole_hw, 2 * radius, mode="edge")
    height, width = hole_hw.shape
    rows, columns = slice(radius, radius + height), slice(radius, radius + width)
    return _blurred(_eroded(padded, radius), radius)[rows, columns]


def _opened(hole_hw: np.ndarray, radius: int) -> np.ndarray:
    """The part of the hole that squares of side 2 radius + 1 within it can cover."""
    padded = np.pad(hole_hw, 2 * radius)  # a strip along the picture's edge is thin too
    return ~_eroded(~_eroded(padded, radius), radius)


def _eroded(true_hw: np.ndarray, radius: int) -> np.ndarray:
    """Where the whole square of side 2 radius + 1 is true; `radius` smaller on each side."""
    for _ in range(2):
        true_hw, reach = true_hw.T, 1
        while reach <= 2 * radius:
            step = min(reach, 2 * radius + 1 - reach)
            true_hw, reach = true_hw[step:] & true_hw[:-step], reach + step
    return true_hw


def _blurred(true_hw: np.ndarray, radius: int) -> np.ndarray:
    """float32 share of the square around each pixel that is true, in steps of 1 / 255."""
    image = Image.fromarray(true_hw.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.BoxBlur(radius)), np.float32) / 255


def overlay(picture_hw3: np.ndarray, hole_hw: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3): the picture with the hole under light and dark stripes, for people."""
    ys, xs = np.nonzero(hole_hw)
    stripe = max(1, max(hole_hw.shape) // _HATCH)
    tint = np.array(_STRIPES, np.float32)[(xs + ys) // stripe % 2]
    shown = picture_hw3.copy()
    shown[hole_hw] = np.rint(shown[hole_hw] * np.float32(1 - _TINT) + tint * _TINT)
    return shown
