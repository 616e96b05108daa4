"""Time a frozen tokenizer on a CPU: encoding to tokens, and decoding sampled grids to images.

    python benchmarks/tokenizing.py [--code BEFORE .] [--cases encode ...] [--seconds 6]

released: one batch in torch's default memory format, with the released quantizer (released.py).
"""

from collections.abc import Iterator
from typing import Any

import torch
import turns
from torch import Tensor
from train import tokenizer_of

from sweeps.quickstart import sweep
from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import tokenizer_flops
from var_scaling.config import Tokenizer
from var_scaling.generation.sample import decode_images
from var_scaling.tokenizer.autoencoder import to_pixels, to_unit
from var_scaling.tokenizer.model import MultiScaleVQVAE


def frozen(t: Tokenizer) -> MultiScaleVQVAE:
    return MultiScaleVQVAE(t).eval().requires_grad_(False)


def loaded(t: Tokenizer) -> MultiScaleVQVAE:
    """A tokenizer as the pipeline loads it, with random weights."""
    try:
        from var_scaling.tokenizer.model import freeze
    except ImportError:  # versions before it
        return frozen(t)
    return freeze(MultiScaleVQVAE(t))


def pixels_of(t: Tokenizer, images: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (images, t.side, t.side, 3)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


def grids_of(t: Tokenizer, images: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    side = t.pyramid.side
    return torch.randn(images, t.code_channels, side, side, generator=generator)


def encode(t: Tokenizer, images: int) -> Iterator[Any]:
    model, pixels = loaded(t), pixels_of(t, images)
    with torch.inference_mode():
        while True:
            yield model.encode(to_unit(pixels))


def encode_as_released(t: Tokenizer, images: int) -> Iterator[Any]:
    import released

    model, pixels = frozen(t), pixels_of(t, images)
    with torch.inference_mode():
        while True:
            # Images from a data loader are contiguous, channels first.
            yield released.encode(model.quantize, model.features(to_unit(pixels).contiguous()))


def decode(t: Tokenizer, images: int) -> Iterator[Any]:
    model, grids = loaded(t), grids_of(t, images)
    while True:
        yield decode_images(model, grids)


def decode_as_released(t: Tokenizer, images: int) -> Iterator[Any]:
    model, grids = frozen(t), grids_of(t, images)
    with torch.inference_mode():
        while True:
            yield to_pixels(model.render(grids))


def cases() -> list[turns.Case]:
    tiny, small = sweep.trials[0].tokenizer, tokenizer_of((1, 2, 3, 4))
    rows = []
    for name, t, images in (("16 px", tiny, 256), ("64 px", small, 32)):
        flops = tokenizer_flops(t)
        decoder = flops["decoder"] + flops["quant_convs"] // 2
        for what, count, ours, theirs in (
            ("encode", total(flops) - decoder, encode, encode_as_released),
            ("decode", decoder, decode, decode_as_released),
        ):
            rows.append(
                turns.Case(
                    name=f"{what}, {name}, {images} images",
                    unit="batch",
                    implementations={
                        turns.OURS: lambda ours=ours, t=t, images=images: ours(t, images),
                        "released": lambda theirs=theirs, t=t, images=images: theirs(t, images),
                    },
                    flops=images * count,
                )
            )
    return rows


if __name__ == "__main__":
    turns.main(__file__, str(__doc__), cases())
