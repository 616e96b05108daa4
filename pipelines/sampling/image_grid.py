"""Pictures of samples for display: a grid with one row per class, strips of intermediate steps.

Shapes: W side of the samples; all images are uint8 (W, W, 3).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Row = tuple[str, Sequence[np.ndarray]]  # label of the row; its images

_MIN_SIDE = 64  # pixels of a tile's side; smaller samples are enlarged by a whole factor
_TEXT, _GAP = 14, 2  # pixels
_MARGIN = 6  # pixels


def grid(rows: Sequence[Row], title: str) -> np.ndarray:
    """uint8 (height, width, 3): the title, then each row's name followed by its images."""
    return _sheet(rows, title, ())


def strips(rows: Sequence[Row], frames: Sequence[str], title: str) -> np.ndarray:
    """As `grid`, each row the intermediate steps of one image: after each of `frames`."""
    for name, images in rows:
        if len(images) != len(frames):
            raise ValueError(f"{name}: {len(images)} images for {len(frames)} frames")
    *first, last = frames
    return _sheet(rows, title, (*first, f"{last}: whole"))


def _sheet(rows: Sequence[Row], title: str, headers: Sequence[str]) -> np.ndarray:
    font = ImageFont.load_default(_TEXT)
    side = max(len(image) for _, images in rows for image in images)
    side *= max(1, -(-_MIN_SIDE // side))  # -(-a // b): a / b rounded up
    # A column is as wide as its header, which may be wider than a small tile.
    column = max([side, *(round(font.getlength(header)) + 4 for header in headers)])
    left = 2 * _MARGIN + max(round(font.getlength(name)) for name, _ in rows)
    top = 2 * _MARGIN + _TEXT + (_TEXT + _MARGIN if headers else 0)
    columns = max(len(images) for _, images in rows)
    width = max(left + columns * (column + _GAP), round(font.getlength(title)) + _MARGIN) + _MARGIN
    canvas = Image.new("RGB", (width, top + len(rows) * (side + _GAP) + _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    # Pillow's anchors: l, m, r are horizontal; t (top), m (middle), s (baseline) are vertical.
    draw.text((_MARGIN, _MARGIN), title, fill="black", font=font, anchor="lt")
    for number, header in enumerate(headers):
        x = left + number * (column + _GAP)
        draw.text((x, top - _MARGIN), header, fill="black", font=font, anchor="ls")
    for number, (name, images) in enumerate(rows):
        y = top + number * (side + _GAP)
        draw.text((left - _MARGIN, y + side // 2), name, fill="black", font=font, anchor="rm")
        for column_index, pixels in enumerate(images):
            # Nearest neighbour by a whole factor: the pixels of the sample are shown unchanged.
            tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + column_index * (column + _GAP), y))
    return np.asarray(canvas)
