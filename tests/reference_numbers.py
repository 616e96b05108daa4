"""Weights and images by a formula, for which the results of the released code are recorded.

`reference_numbers.json` has the results of the released code (github.com/FoundationVision/VAR,
commit 78b9539, MIT licence; float32, CPU, torch 2.13.0) for the weights and images below, so that
any clone can test that this code computes the same. No number in it comes from this project.
The sizes are small: 64 px, sides 1, 2, 3, 4, 64 codes, a transformer of depth 2 and width 128.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

FILE = Path(__file__).with_name("reference_numbers.json")
_SPREAD = {  # scales by the end of the name; for other names from the fan-in
    "embedding.weight": 1.0, "class_emb.weight": 0.5, "lvl_embed.weight": 0.3, "pos_start": 0.5,
    "pos_1LC": 0.5, "ada_gss": 0.5, "bias": 0.1,
}  # fmt: skip


def numbers() -> dict:
    return json.loads(FILE.read_text())


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Multiples of 2^-15 in (-1, 1) that depend only on the name.

    The raw bits of PCG64 are the same in every version of NumPy; its distributions are not.
    """
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(48)).astype(np.float64) - 32767.5).reshape(shape) / 32768


def formula_state(shapes: Mapping[str, tuple[int, ...]], salt: str) -> dict[str, torch.Tensor]:
    """A value for each name of a released state dict; each affects the outputs."""
    return {
        name: torch.from_numpy(_values(name, shape, salt).astype(np.float32))
        for name, shape in shapes.items()
    }


def _values(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    drawn = uniform(f"{salt}:{name}", shape)
    if name.endswith("scale_mul_1H11"):  # one head above the clamp at log(100)
        return np.where(np.arange(shape[1]).reshape(1, -1, 1, 1) == 0, 5.25, 1.4 + 0.3 * drawn)
    for end, spread in _SPREAD.items():
        if name.endswith(end):
            return spread * drawn
    if len(shape) == 1:  # the gains of norms
        return 1 + 0.3 * drawn
    return drawn * np.sqrt(3 / np.prod(shape[1:]))


def images(count: int = 2, side: int = 64) -> torch.Tensor:
    """(B, 3, H, H) in [-1, 1]: waves with some noise, so that patches differ."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    waves = [
        np.sin(2 * np.pi * ((1 + b) * rows + (2 + c) * columns) + b + c)
        for b in range(count)
        for c in range(3)
    ]
    smooth = np.array(waves).reshape(count, 3, side, side)
    drawn = 0.7 * np.round(smooth * 1024) / 1024 + 0.3 * uniform("images", smooth.shape)
    return torch.from_numpy(drawn.astype(np.float32))


def some(values: torch.Tensor, count: int = 24) -> list[float]:
    """About `count` of the values, evenly spaced over the flat tensor."""
    flat = values.detach().flatten()
    return flat[:: max(1, len(flat) // count)].tolist()
