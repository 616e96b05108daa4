"""Decode the bytes of an image file to the RGB square that a model gets."""

import io
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Images with a larger aspect ratio are cropped before they are resized: at 256 px, a 1 × 60,000
# strip would need 12 GB of memory for a square that shows 1 / 60,000 of it.
_MAX_ASPECT_RATIO = 16
# Pillow's names of the accepted formats; no external program decodes any. MPO files open as JPEG.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


class Undecodable(ValueError):
    """The bytes are not an image of an accepted format; the message says why."""


def decode(content: bytes) -> Image.Image:
    """The image as a viewer shows it, in 8-bit RGB: EXIF orientation applied, white background.

    Of an animation, the first frame. Raises Undecodable.
    """
    if not content:
        raise Undecodable("empty file")
    try:
        with open_image(content) as image:
            # `open` reads only the header; a truncated file fails here, inside the try block.
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except Undecodable:
        raise
    # Decoders raise errors of many types for damaged content, not only OSError.
    except Exception as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from error


def open_image(content: bytes) -> Image.Image:
    """Open `content` in one of FORMATS; the pixels are not read yet. Raises Undecodable.

    The content decides the format, not the file name. Other formats are refused because Pillow
    would run Ghostscript for EPS, and any installed plugin for others.
    """
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        reason = f"not an image format that is read ({', '.join(FORMATS)})"
        raise Undecodable(f"{reason}{_format_hint(content)}") from error


def _format_hint(content: bytes) -> str:
    """The format that the first bytes indicate, as a part of a message; "" if unknown."""
    # `open` with `formats` may not have loaded all plugins; their prefix tests are needed. No
    # decoder runs. `is True`: a plugin may return a text instead, a warning.
    Image.init()
    for name, (_, accept) in Image.OPEN.items():
        try:
            accepted = accept is not None and accept(content[:16]) is True
        except (IndexError, struct.error):  # too short for that format
            accepted = False
        if accepted and name not in FORMATS:
            return f"; it looks like {name}"
    return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to RGB as it is displayed.

    Pillow's plain `convert` clips 16-bit samples to 255 and shows the hidden colours of transparent
    pixels; this function scales the samples and composites alpha on white.
    """
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise Undecodable("floating-point samples have no standard white level")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.int64)
    if samples.min() < 0 or samples.max() > 65535:
        raise Undecodable("32-bit samples above 65535 or below 0 have no standard white level")
    gray = np.rint(samples / 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        # Compared as 16-bit samples: several of them become the same 8-bit value.
        gray[samples == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def resized(image: Image.Image, side: int, enlarge: float) -> Image.Image:
    """The image with its shorter side resized to round(enlarge × side) by Lanczos."""
    short, long = sorted(image.size)
    if long > _MAX_ASPECT_RATIO * short:
        width, height = (min(edge, _MAX_ASPECT_RATIO * short) for edge in image.size)
        image = ImageOps.fit(image, (width, height), Image.Resampling.BOX)
    scale = round(enlarge * side) / min(image.size)
    # max: rounding must not make an edge shorter than the crop.
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def crop(
    image: Image.Image, side: int, rng: np.random.Generator | None = None, flip: bool = False
) -> np.ndarray:
    """A square of a `resized` image, uint8 (side, side, 3).

    `rng` draws its position and, with `flip`, a mirror; None takes the centre.
    """
    left, top = (image.width - side) // 2, (image.height - side) // 2
    if rng is not None:
        # The order of the three draws is part of the data: in another order each crop changes.
        left = int(rng.integers(image.width - side + 1))
        top = int(rng.integers(image.height - side + 1))
    pixels = np.asarray(image)[top : top + side, left : left + side]
    if rng is not None and flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    # A mirrored view has negative strides, which torch.from_numpy refuses.
    return np.ascontiguousarray(pixels)
