"""Any image file's bytes to the RGB square a model sees."""

import io
import struct

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Longer than this many times its width, an image is cut before it is enlarged: at 256 px a
# 1 × 60,000 strip would take 12 GB on the way to a square that shows 1 / 60,000 of it.
_WIDEST = 16
# What is read, as Pillow calls it; all are decoded in this process. An MPO file opens as a JPEG.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


class Undecodable(ValueError):
    """This is no image that we can read; the message says why."""


def decode(content: bytes) -> Image.Image:
    """The picture as a viewer shows it: upright, on white where transparent, 8-bit RGB.

    Raises Undecodable. Animations give their first frame.
    """
    if not content:
        raise Undecodable("empty file")
    try:
        with open_image(content) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except Undecodable:
        raise
    except Exception as error:
        raise Undecodable(f"{type(error).__name__}: {error}") from error


def open_image(content: bytes) -> Image.Image:
    """`content` in one of FORMATS, its pixels not read yet. Raises Undecodable.

    The content decides the format, not the name: Pillow would hand EPS to Ghostscript and others
    to whatever plugin is installed.
    """
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        read = f"not an image format that is read ({', '.join(FORMATS)})"
        raise Undecodable(f"{read}{_kind(content)}") from error


def _kind(content: bytes) -> str:
    """What `content` looks like by its first bytes, if it does: nothing is decoded."""
    Image.init()
    for name, (_, accept) in Image.OPEN.items():
        try:
            known = accept is not None and accept(content[:16]) is True
        except (IndexError, struct.error):  # too short for that format
            known = False
        if known and name not in FORMATS:
            return f"; it looks like {name}"
    return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode as displayed.

    Pillow's plain `convert` clips 16-bit samples to 255 and reveals the colours that lie under
    transparent pixels; here samples are scaled and alpha is composited.
    """
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise Undecodable("floating-point samples have no agreed white")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        return Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.int64)
    if samples.min() < 0 or samples.max() > 65535:
        raise Undecodable("32-bit samples beyond 16 bits have no agreed white")
    gray = np.rint(samples / 257).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray[samples == clear] = 255
    return Image.fromarray(gray).convert("RGB")


def square(
    image: Image.Image, side: int, enlarge: float, where: np.random.Generator | None, flip: bool
) -> np.ndarray:
    """uint8 (side, side, 3): shorter side to round(enlarge × side) by Lanczos, then a crop.

    `where` draws the crop's place and, if `flip`, a mirror; without it the crop is the centre.
    """
    short, long = sorted(image.size)
    if long > _WIDEST * short:
        width, height = (min(edge, _WIDEST * short) for edge in image.size)
        image = ImageOps.fit(image, (width, height), Image.Resampling.BOX)
    scale = round(enlarge * side) / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    if where is not None:
        left = int(where.integers(size[0] - side + 1))
        top = int(where.integers(size[1] - side + 1))
    pixels = np.asarray(image)[top : top + side, left : left + side]
    if where is not None and flip and where.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
