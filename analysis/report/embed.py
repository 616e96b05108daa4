"""Images embedded in an HTML page as data URIs; large ones are reduced."""

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

_MAX_BYTES = 1_500_000  # a larger PNG is reduced
_MAX_SIDE = 1_600  # pixels of a reduced image: wider than the page shows at once


class InlineImage(NamedTuple):
    uri: str
    width: int
    height: int
    shrunk: bool  # reduced; the original is on disk


def inline_image(png: Path) -> InlineImage:
    """`png` as a data URI; above 1.5 MB it becomes a JPEG of at most 1,600 pixels a side."""
    content = png.read_bytes()
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        if len(content) <= _MAX_BYTES:
            return InlineImage(_uri("png", content), *image.size, shrunk=False)
        reduced = image.convert("RGB")
        reduced.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        reduced.save(buffer, "JPEG", quality=90, subsampling=0)  # else coloured labels blur
    return InlineImage(_uri("jpeg", buffer.getvalue()), *reduced.size, shrunk=True)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
