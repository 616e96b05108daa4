"""The tokenizer whole: images to token ids and back. Shapes as in quantizer.py."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from var_scaling.config import Tokenizer
from var_scaling.disk import whole
from var_scaling.randomness import seed_for
from var_scaling.tokenizer.autoencoder import Decoder, Encoder
from var_scaling.tokenizer.quantizer import Quantizer


class MultiScaleVQVAE(nn.Module):
    """VAR's tokenizer, parameters named as released; images (B, 3, side, side) in [-1, 1]."""

    def __init__(self, t: Tokenizer):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(t.seed, "tokenizer init"))
            self.encoder = Encoder(t)
            self.decoder = Decoder(t)
            self.quantize = Quantizer(t)
            self.quant_conv = nn.Conv2d(t.code_channels, t.code_channels, 3, padding=1)
            self.post_quant_conv = nn.Conv2d(t.code_channels, t.code_channels, 3, padding=1)

    def features(self, images_B3HH: Tensor) -> Tensor:
        """The grid that is quantised."""
        return self.quant_conv(self.encoder(images_B3HH))

    def encode(self, images_B3HH: Tensor) -> Tensor:
        """Token ids (B, L), int64."""
        return self.quantize.encode(self.features(images_B3HH))

    def render(self, f_BCHH: Tensor) -> Tensor:
        """The image of a quantised grid, not clamped."""
        return self.decoder(self.post_quant_conv(f_BCHH))

    def decode(self, ids_BL: Tensor) -> Tensor:
        """The images that the tokens stand for, clamped to [-1, 1]."""
        return self.render(self.quantize.decode(ids_BL)).clamp(-1, 1)


def save_weights(model: nn.Module, path: Path) -> None:
    with whole(path) as beside:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, beside)


def load_weights(model: nn.Module, path: Path) -> None:
    """Strict: every name and shape must match."""
    model.load_state_dict(load_file(path), strict=True)


def load_tokenizer(t: Tokenizer, path: Path) -> MultiScaleVQVAE:
    """A trained tokenizer, frozen, in evaluation mode."""
    model = MultiScaleVQVAE(t)
    load_weights(model, path)
    return model.eval().requires_grad_(False)
