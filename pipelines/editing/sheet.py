"""The sheet of an edit: the original, the hole and the results side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MIN_SIDE, _MAX_SIDE = 128, 256  # pixels of a tile's longer side
_TEXT, _GAP = 13, 8  # pixels

Tile = tuple[str, np.ndarray]  # label; uint8 (h, w, 3)


def sheet(rows: Sequence[Sequence[Tile]]) -> np.ndarray:
    """uint8 (height, width, 3): each tile below its label. Small tiles are enlarged."""
    font = ImageFont.load_default(_TEXT)
    tiles = [[(name, _resize(pixels)) for name, pixels in row] for row in rows]
    columns = max(map(len, tiles))
    widths = [
        max(max(row[i][1].width, round(font.getlength(row[i][0]))) for row in tiles if i < len(row))
        for i in range(columns)
    ]
    heights = [max(image.height for _, image in row) for row in tiles]
    label_height = _TEXT + _GAP
    size = (
        sum(widths) + _GAP * (columns + 1),
        sum(heights) + (label_height + _GAP) * len(heights) + _GAP // 2,
    )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    top = _GAP // 2
    for row, height in zip(tiles, heights, strict=True):
        left = _GAP
        for (name, image), width in zip(row, widths, strict=False):  # a row may be shorter
            draw.text((left, top), name, fill="black", font=font)
            canvas.paste(image, (left, top + label_height))
            left += width + _GAP
        top += height + label_height + _GAP
    return np.asarray(canvas)


def _resize(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    longer_side = max(image.size)
    if longer_side > _MAX_SIDE:
        image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
        return image
    zoom = -(-_MIN_SIDE // longer_side)  # rounded up to a whole factor
    size = (image.width * zoom, image.height * zoom)
    return image.resize(size, Image.Resampling.NEAREST)
