"""Feature extractors of FID and related scores: Inception, or a small network with seeded weights.

A distance is called FID only if Inception extracted the features; otherwise its name contains that
of the extractor. Shapes: B images, H side, C channels, D features, K outputs.
"""

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.disk import file_sha256
from var_scaling.evaluation.frozen import load_frozen, read_frozen, refuse_images
from var_scaling.evaluation.inception import OUTPUTS, WIDTH, Inception
from var_scaling.training.optim import precision_context
from var_scaling.weights import WeightsError, tensors_sha256

INCEPTION = "inception"
# The conversion of TensorFlow's weights that pytorch-fid publishes.
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_BYTES = 95_628_359
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_RELEASE = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"

# kind: (name with Inception, name with any other extractor).
_NAMES = {
    "fid": ("fid", "fd_{}"),
    "inception_score": ("inception_score", "score_{}"),
    "kid": ("kid", "kd_{}"),
    "precision": ("precision", "precision_{}"),
    "recall": ("recall", "recall_{}"),
}

_SEEDED_STAGES = (16, 16, 32)  # channels; their spatial averages are the 64 features
_SEEDED_OUTPUTS = 16
_SEEDED_CONTRAST = 4.0  # factor of the logits, so that Inception Scores are well above 1
_SEEDED_EDGES = 4.0  # weight of edges relative to colours, so that features show blur and noise


class ExtractorOutput(NamedTuple):
    """Features and logits of a batch of images; float32, on the extractor's device."""

    features_BD: Tensor
    logits_BK: Tensor  # without the bias of the last layer


class Extractor(nn.Module):
    """A frozen network that takes uint8 images (B, H, H, 3), H at least `smallest_side`.

    It computes in float32 also inside autocast or with TF32 enabled, so that every caller gets the
    same numbers.
    """

    def __init__(
        self, name: str, sha256: str, width: int, outputs: int, smallest_side: int, net: nn.Module
    ) -> None:
        """`net` maps float32 (B, 3, H, H) in 0 … 255 to features and logits."""
        super().__init__()
        self.name, self.sha256 = name, sha256
        self.width, self.outputs, self.smallest_side = width, outputs, smallest_side
        self.net = net.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @torch.no_grad()
    def forward(self, images_BHH3: Tensor) -> ExtractorOutput:
        """Raises ValueError for images of another type or shape."""
        refuse_images(images_BHH3, self.smallest_side)
        with precision_context("fp32", images_BHH3.device):
            return ExtractorOutput(*self.net(images_BHH3.movedim(3, 1).float()))


def metric_name(kind: str, extractor: Extractor | str) -> str:
    """The column name of a score: `fid`, `inception_score`, `kid`, `precision` or `recall` with
    Inception; `fd_<extractor>`, `score_…`, `kd_…`, `precision_…`, `recall_…` with any other.
    """
    name = extractor if isinstance(extractor, str) else extractor.name
    with_inception, with_other = _NAMES[kind]
    return with_inception if name == INCEPTION else with_other.format(name)


def inception_extractor(path: Path | None) -> Extractor:
    """Inception with the weights in `path`, which must be the published file, byte for byte.

    Raises WeightsError with the expected file if `path` is None or is another file.
    """
    expected = f"  {INCEPTION_FILE}, {INCEPTION_BYTES:,} bytes\n  SHA-256 {INCEPTION_SHA256}"
    if path is None:
        raise WeightsError(
            "FID, IS, KID, precision and recall need Inception's weights, and no file is set. "
            f"It is not downloaded automatically. Download\n{expected}\n  from {_RELEASE}\n"
            f'and add to var-scaling.toml:\n  [weights]\n  inception = "{INCEPTION_FILE}"'
        )
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected\n{expected}\n  from {_RELEASE}")
    # The size before the hash, so that a truncated download gets its own message.
    size = path.stat().st_size
    if size != INCEPTION_BYTES:
        why = "truncated, or another file" if size < INCEPTION_BYTES else "another file"
        raise WeightsError(
            f"{path}: {size:,} bytes, {why}; expected\n{expected}\n  from {_RELEASE}"
        )
    sha256 = file_sha256(path)
    if sha256 != INCEPTION_SHA256:
        raise WeightsError(
            f"{path}: SHA-256 {sha256}; expected\n{expected}\n  from {_RELEASE}\n"
            "Distances with other weights are not FID"
        )
    net = Inception()
    load_frozen(path, read_frozen(path), net)
    return Extractor(INCEPTION, sha256, WIDTH, OUTPUTS, 1, net)


def seeded_extractor() -> Extractor:
    """A small network with pseudo-random weights, bitwise the same on every machine.

    Its distances detect differences between sets of images but do not follow human judgement: it
    is for tests and for a first run without downloads.
    """
    net = _Seeded()
    state = {
        name: hashed_weights(f"seeded {name}", value.shape)
        for name, value in net.state_dict().items()
    }
    # Half of the first filters respond to edges, not to colours: each minus itself rotated by 180°,
    # so that it sums to 0.
    edges = state["stages.0.weight"][_SEEDED_STAGES[0] // 2 :]
    edges.copy_(_SEEDED_EDGES * (edges - edges.flip((2, 3))))
    net.load_state_dict(state)
    return Extractor(
        "seeded",
        tensors_sha256(state),
        sum(_SEEDED_STAGES),
        _SEEDED_OUTPUTS,
        2 ** len(_SEEDED_STAGES),  # each stage halves the side
        net,
    )


def hashed_weights(name: str, shape: tuple[int, ...]) -> Tensor:
    """Float32 weights that depend only on `name` and `shape`: uniform, of variance 2 / fan-in.

    This variance keeps the scale of activations through ReLUs (arXiv 1502.01852). The bits come
    from SHAKE-256, because a library's random generator may change with its version. Vectors are
    biases: uniform in ±0.25.
    """
    count = int(np.prod(shape))
    # 16 bits for each weight, little-endian on every machine. They are exact in float32.
    bits = np.frombuffer(hashlib.shake_256(name.encode()).digest(2 * count), dtype="<u2")
    unit = torch.from_numpy(bits.astype(np.float32) / 2**15 - 1).reshape(shape)
    # Uniform numbers in ±a have variance a² / 3, so a = √(6 / fan-in).
    return unit * (float(np.sqrt(6 / np.prod(shape[1:]))) if len(shape) > 1 else 0.25)


class _Seeded(nn.Module):
    """Three convolutions of stride 2; the features are the spatial averages of all activations."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *_SEEDED_STAGES)
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.out = nn.Linear(sum(_SEEDED_STAGES), _SEEDED_OUTPUTS, bias=False)

    def forward(self, images_B3HH: Tensor) -> tuple[Tensor, Tensor]:
        h_BCHH, averages = images_B3HH / 127.5 - 1, []
        for stage in self.stages:
            h_BCHH = F.relu(stage(h_BCHH))
            averages.append(h_BCHH.mean((2, 3)))
        features_BD = torch.cat(averages, dim=1)
        return features_BD, self.out(features_BD) * _SEEDED_CONTRAST
