"""The complete tokenizer: images to token ids and back. Shapes as in quantizer.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from var_scaling.config import Tokenizer
from var_scaling.randomness import seed_for
from var_scaling.tokenizer.autoencoder import (
    Decoder,
    Dropout,
    DropoutDraws,
    Encoder,
    initialize,
)
from var_scaling.tokenizer.groups import group_size, in_groups
from var_scaling.tokenizer.quantizer import Quantized, Quantizer
from var_scaling.weights import load_weights


class MultiScaleVQVAE(nn.Module):
    """VAR's tokenizer with the released parameter names. Images (B, 3, side, side) in [-1, 1]."""

    def __init__(self, t: Tokenizer, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        self.side, self.channels = t.side, t.channels
        self.encode_precision = t.encode_precision
        # The layers draw from torch's global generator. It is seeded for them and restored, so that
        # building a model changes no other random numbers. devices=[]: they are on the CPU. The
        # order of the layers decides which of them gets which numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "tokenizer init"))
            self.draws = DropoutDraws()
            self.encoder = Encoder(t, Dropout(dropout, self.draws))
            self.decoder = Decoder(t, Dropout(dropout, self.draws))
            self.quantize = Quantizer(t)
            self.quant_conv = nn.Conv2d(t.code_channels, t.code_channels, 3, padding=1)
            self.post_quant_conv = nn.Conv2d(t.code_channels, t.code_channels, 3, padding=1)
            for part in (self.encoder, self.decoder, self.quant_conv, self.post_quant_conv):
                initialize(part)

    @property
    def max_batch_size(self) -> int:
        """Images per forward pass for which the largest float32 activation stays within 1 GiB."""
        # `channels` maps at the full side: 2**28 float32 values are 1 GiB.
        return max(1, 2**28 // (self.side**2 * self.channels))

    def forward(
        self, images_B3HH: Tensor, commitment: float, quantised: bool
    ) -> tuple[Tensor, Quantized | None]:
        """For training: the rebuilt images, float32 and not clamped, and the quantizer's output.

        The quantizer runs in float32, outside autocast. With `quantised=False` the model is a plain
        autoencoder. With dropout, call `draws.seed` first.
        """
        f_BCHH, quantized = self.features(images_B3HH), None
        # False in the first steps: a tokenizer that is quantised from the start can collapse to a
        # constant image (LOG.md).
        if quantised:
            with torch.autocast(images_B3HH.device.type, enabled=False):
                quantized = self.quantize(f_BCHH.float(), commitment)
            f_BCHH = quantized.f_BCHH
        return self.render(f_BCHH).float(), quantized

    def features(self, images_B3HH: Tensor) -> Tensor:
        """The feature grid (B, C, H, H) before quantisation."""
        return self.quant_conv(self.encoder(images_B3HH))

    @property
    def group_size(self) -> int:
        """Images that `decode` and `decode_grids` compute together.

        With one CPU thread the result of each image depends on no other image, bit for bit.
        """
        device = self.quantize.embedding.weight.device
        return group_size(self.side**2 * self.channels, device)

    def encode(self, images_B3HH: Tensor) -> Tensor:
        """Token ids (B, L), int64. The encoder runs in the caller's precision, which should be
        `encode_precision`; the nearest codes are always found in float32.
        """
        f_BCHH = self.features(images_B3HH)
        with float32_products(f_BCHH.device):
            return self.quantize.encode(f_BCHH.float())

    def render(self, f_BCHH: Tensor) -> Tensor:
        """The images of quantised grids (B, C, H, H), not clamped, for training."""
        return self.decoder(self.post_quant_conv(f_BCHH))

    def decode(self, ids_BL: Tensor) -> Tensor:
        """The images of token ids (B, L), clamped to [-1, 1]."""

        def decode_group(group: Tensor) -> Tensor:
            return self.render(self.quantize.decode(group)).clamp(-1, 1)

        return in_groups(decode_group, self.group_size, ids_BL)

    def decode_grids(self, f_BCHH: Tensor) -> Tensor:
        """The images of grids (B, C, H, H), clamped to [-1, 1]."""

        def decode_group(group: Tensor) -> Tensor:
            return self.render(group).clamp(-1, 1)

        return in_groups(decode_group, self.group_size, f_BCHH)


@contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32 within the block: a distance between two codes can be smaller than
    the rounding of both.
    """
    switches: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    # Switches of the whole process. Without effect on a CPU, where several threads may encode.
    changed = [s for s in switches if s.allow_tf32] if device.type == "cuda" else []
    try:
        for switch in changed:
            switch.allow_tf32 = False
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for switch in changed:
            switch.allow_tf32 = True


def load_tokenizer(t: Tokenizer, path: Path, sha256: str) -> MultiScaleVQVAE:
    """A trained tokenizer, frozen, in evaluation mode. Raises WeightsError."""
    model = MultiScaleVQVAE(t)
    load_weights(model, path, sha256)
    return freeze(model)


def frozen_copy(t: Tokenizer, model: MultiScaleVQVAE) -> MultiScaleVQVAE:
    """A frozen tokenizer with the weights of `model`, as `load_tokenizer` would load them."""
    copy = MultiScaleVQVAE(t).to(model.quantize.embedding.weight.device)
    copy.load_state_dict(model.state_dict())
    return freeze(copy)


def freeze(model: MultiScaleVQVAE) -> MultiScaleVQVAE:
    """The model for use: in evaluation mode, without gradients, channels-last."""
    # Convolutions of channels-last weights need no reordering: a tenth to a quarter of the time on
    # a CPU (benchmarks/tokenizing.py).
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False)
