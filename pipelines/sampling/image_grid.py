"""Samples as pictures for people: a grid with a row for each class, strips from scale to scale.

Shapes: W side of the samples; all are uint8 (W, W, 3).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Row = tuple[str, Sequence[np.ndarray]]  # what it is; its images

_LEAST = 64  # pixels of a tile's side; smaller samples are enlarged by a whole number
_TEXT, _GAP = 14, 2
_MARGIN = 6


def grid(rows: Sequence[Row], title: str) -> np.ndarray:
    """uint8 (height, width, 3): a row of images behind each name, and the title above."""
    return _sheet(rows, title, ())


def strips(rows: Sequence[Row], frames: Sequence[str], title: str) -> np.ndarray:
    """The same, each row one image as it comes about: after each of `frames`, the last whole."""
    for name, images in rows:
        if len(images) != len(frames):
            raise ValueError(f"{name}: {len(images)} images for {len(frames)} frames")
    *first, last = frames
    return _sheet(rows, title, (*first, f"{last}: whole"))


def _sheet(rows: Sequence[Row], title: str, heads: Sequence[str]) -> np.ndarray:
    font = ImageFont.load_default(_TEXT)
    side = max(len(image) for _, images in rows for image in images)
    side *= max(1, -(-_LEAST // side))
    column = max([side, *(round(font.getlength(head)) + 4 for head in heads)])
    left = 2 * _MARGIN + max(round(font.getlength(name)) for name, _ in rows)
    top = 2 * _MARGIN + _TEXT + (_TEXT + _MARGIN if heads else 0)
    columns = max(len(images) for _, images in rows)
    width = max(left + columns * (column + _GAP), round(font.getlength(title)) + _MARGIN) + _MARGIN
    paper = Image.new("RGB", (width, top + len(rows) * (side + _GAP) + _MARGIN), "white")
    pen = ImageDraw.Draw(paper)
    pen.text((_MARGIN, _MARGIN), title, fill="black", font=font, anchor="lt")
    for number, head in enumerate(heads):
        x = left + number * (column + _GAP)
        pen.text((x, top - _MARGIN), head, fill="black", font=font, anchor="ls")
    for number, (name, images) in enumerate(rows):
        y = top + number * (side + _GAP)
        pen.text((left - _MARGIN, y + side // 2), name, fill="black", font=font, anchor="rm")
        for place, pixels in enumerate(images):
            tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
            paper.paste(tile, (left + place * (column + _GAP), y))
    return np.asarray(paper)
