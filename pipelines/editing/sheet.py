"""The sheet of an edit: what was there, what was to be filled, what came of it, side by side."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LEAST, _MOST = 128, 256  # pixels of a tile's longer side
_TEXT, _GAP = 13, 8

Tile = tuple[str, np.ndarray]  # what it is; uint8 (h, w, 3)


def sheet(rows: Sequence[Sequence[Tile]]) -> np.ndarray:
    """uint8 (height, width, 3): each tile under its name, small ones enlarged pixel for pixel."""
    font = ImageFont.load_default(_TEXT)
    shown = [[(name, _fitted(pixels)) for name, pixels in row] for row in rows]
    columns = max(map(len, shown))
    widths = [
        max(max(row[i][1].width, round(font.getlength(row[i][0]))) for row in shown if i < len(row))
        for i in range(columns)
    ]
    heights = [max(image.height for _, image in row) for row in shown]
    above = _TEXT + _GAP
    size = (
        sum(widths) + _GAP * (columns + 1),
        sum(heights) + (above + _GAP) * len(heights) + _GAP // 2,
    )
    paper = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(paper)
    top = _GAP // 2
    for row, height in zip(shown, heights, strict=True):
        left = _GAP
        for (name, image), width in zip(row, widths, strict=False):
            pen.text((left, top), name, fill="black", font=font)
            paper.paste(image, (left, top + above))
            left += width + _GAP
        top += height + above + _GAP
    return np.asarray(paper)


def _fitted(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    longer = max(image.size)
    if longer > _MOST:
        image.thumbnail((_MOST, _MOST), Image.Resampling.LANCZOS)
        return image
    zoom = -(-_LEAST // longer)
    size = (image.width * zoom, image.height * zoom)
    return image.resize(size, Image.Resampling.NEAREST)
