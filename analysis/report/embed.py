"""A picture as a page holds it: inside it, as it is, or shrunk where it would weigh too much."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

_MOST_BYTES = 1_500_000  # of a PNG that goes in as it is
_MOST_SIDE = 1_600  # pixels of one that does not: more than a page shows at a time


class Inlined(NamedTuple):
    uri: str
    width: int
    height: int
    shrunk: bool  # the whole one is only on disk


def inlined(png: Path) -> Inlined:
    """`png` as a data URI; above 1.5 MB it becomes a JPEG of at most 1,600 pixels a side."""
    content = png.read_bytes()
    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        if len(content) <= _MOST_BYTES:
            return Inlined(_uri("png", content), *picture.size, shrunk=False)
        small = picture.convert("RGB")
        small.thumbnail((_MOST_SIDE, _MOST_SIDE), Image.Resampling.LANCZOS)
        held = io.BytesIO()
        small.save(held, "JPEG", quality=90, subsampling=0)  # labels would bleed
    return Inlined(_uri("jpeg", held.getvalue()), *small.size, shrunk=True)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
