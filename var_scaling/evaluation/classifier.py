"""A small residual classifier of a data set, used as the feature extractor of its samples.

It is trained once with one recipe (experiment.scoring.FeatureNetwork) on the training images of
the models, and identified by the hash of its weights. Its features are the spatial averages of all
its stages: those of the last stage alone separate the classes and encode little else.

Shapes: B images, W side of the images, C channels, H side of a map, K classes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.accounting.tokenizer import CLASSIFIER_STAGES
from var_scaling.data.dataset import ImageDataset
from var_scaling.data.order import spread_rows
from var_scaling.evaluation.extractors import Extractor
from var_scaling.evaluation.frozen import load_frozen
from var_scaling.experiment.scoring import FeatureNetwork
from var_scaling.randomness import seed_for
from var_scaling.training.optim import precision_context
from var_scaling.weights import load_tensors

CLASSIFIER = "classifier"
_GROUPS = 8  # of GroupNorm: the features of an image do not depend on the rest of its batch
_WEIGHT_DECAY = 0.05
_MAX_VALIDATION = 2_048  # held-out images over which the accuracy is measured
_BATCH = 256  # images at a time


class SmallResNet(nn.Module):
    """Images (B, 3, W, W) in 0 … 255 to features (B, D) and logits (B, K)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        first = CLASSIFIER_STAGES[0]
        # No stride and no pooling, unlike in ImageNet's ResNets: the images are small.
        self.stem = nn.Conv2d(3, first, 3, padding=1)
        widths = (first, *CLASSIFIER_STAGES)
        # `widths` is one longer, so each pair is (before, after). Equal widths: the side is kept.
        self.stages = nn.ModuleList(
            _Block(before, after) for before, after in zip(widths, CLASSIFIER_STAGES, strict=False)
        )
        self.out = nn.Linear(CLASSIFIER_STAGES[-1], classes)

    def forward(self, images_B3WW: Tensor) -> tuple[Tensor, Tensor]:
        h_BCHH, features = self.stem(images_B3WW / 127.5 - 1), []
        for stage in self.stages:
            h_BCHH = stage(h_BCHH)
            features.append(h_BCHH.mean((2, 3)))
        return torch.cat(features, dim=1), self.out(features[-1])


class _Block(nn.Module):
    """x + two convolutions of x (arXiv 1512.03385); a block that widens halves the map."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1)
        self.norm1 = nn.GroupNorm(_GROUPS, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.norm2 = nn.GroupNorm(_GROUPS, after)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1, stride)

    def forward(self, x_BCHH: Tensor) -> Tensor:
        h_BCHH = F.relu(self.norm1(self.conv1(x_BCHH)))
        return F.relu(self.shortcut(x_BCHH) + self.norm2(self.conv2(h_BCHH)))


def train_classifier(
    config: FeatureNetwork,
    training: ImageDataset,
    held_out: ImageDataset,
    device: torch.device,
    report_progress: Callable[[str, int, int], None],
) -> tuple[SmallResNet, float]:
    """The trained network, on `device`, and its accuracy on held-out images.

    AdamW with a cosine schedule, in float32. `report_progress` may raise to stop the training; it
    is not saved then, since it takes a minute or two.
    """
    # torch initialises from the global generator. fork_rng restores the caller's state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "feature network"))
        network = SmallResNet(config.data.classes).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    draw = np.random.default_rng(config.seed)
    with precision_context("fp32", device):
        for step in range(config.steps):
            rows = draw.integers(training.rows, size=config.batch_size)
            logits_BK = network(_images(training, rows, device))[1]
            loss = F.cross_entropy(logits_BK, torch.from_numpy(training.labels[rows]).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            report_progress(f"network {config.name}", step + 1, config.steps)
        correct = 0
        # Spread over the split: rows may be sorted by class.
        rows = spread_rows(held_out.rows, _MAX_VALIDATION)
        with torch.no_grad():
            for start in range(0, len(rows), _BATCH):
                chosen = rows[start : start + _BATCH]
                predicted = network(_images(held_out, chosen, device))[1].argmax(1).cpu().numpy()
                correct += int((predicted == held_out.labels[chosen]).sum())
    return network, correct / len(rows)


def classifier_extractor(path: Path, sha256: str) -> Extractor:
    """The network in `path`. Raises WeightsError if the hash of its weights is not `sha256`."""
    state = load_tensors(path, sha256)
    network = SmallResNet(len(state["out.bias"]))
    load_frozen(path, state, network)
    # Every stage but the first halves the side.
    smallest = 2 ** (len(CLASSIFIER_STAGES) - 1)
    width = sum(CLASSIFIER_STAGES)
    return Extractor(CLASSIFIER, sha256, width, network.out.out_features, smallest, network)


def _images(source: ImageDataset, rows: np.ndarray, device: torch.device) -> Tensor:
    """Float32 (B, 3, W, W), in 0 … 255, with the crops of epoch 0."""
    images_BWW3 = torch.from_numpy(source.images(rows, np.zeros_like(rows)))
    return images_BWW3.to(device).movedim(3, 1).float()
