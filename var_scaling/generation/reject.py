"""Rejection sampling: keep the candidates to which a classifier gives the highest probabilities.

The "-re" of VAR's tables (arXiv 2404.02905), as in VQ-VAE-2 (1906.00446) and VQ-GAN (2012.09841).
The score of a candidate is the probability of its requested class under a classifier that was
trained on real images.

Shapes: B images, W side, K outputs of the classifier.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from var_scaling.experiment.sample_set import Request


class Accepted(NamedTuple):
    """The accepted candidates, and the lowest accepted score of each class."""

    requests: list[Request]  # in sampling order: by index, then by class
    thresholds: dict[int, float]


def accept(scores: Mapping[Request, float], count: int) -> Accepted:
    """The `count` candidates of each class with the largest scores; the lower index breaks ties.

    Raises ValueError if a class has fewer candidates.
    """
    by_class: dict[int, list[Request]] = {}
    for request in scores:
        by_class.setdefault(request.label, []).append(request)
    accepted: list[Request] = []
    thresholds = {}
    for label, candidates in sorted(by_class.items()):
        if len(candidates) < count:
            raise ValueError(
                f"class {label}: {len(candidates)} candidates, but {count} must be kept"
            )
        # A defined order of equal scores: the set must not depend on the order of drawing.
        best = sorted(candidates, key=lambda request: (-scores[request], request.index))[:count]
        thresholds[label] = scores[best[-1]]
        accepted += best
    accepted.sort(key=lambda request: (request.index, request.label))
    return Accepted(accepted, thresholds)


@torch.no_grad()
def classifier_scores(
    probabilities: Callable[[Tensor], Tensor],
    images_BWW3: Tensor,
    labels: Sequence[int],
    outputs: Sequence[int] | None = None,
) -> list[float]:
    """The classifier's probability of each image's class.

    `probabilities` maps uint8 images to (B, K). `outputs` maps a class to its index among the K
    outputs; without it the index is the class. On a CPU the images are scored one by one: the
    rounding of a convolution depends on the batch size, and a score must not.
    """
    # (n, W, W, 3) to (n, K), joined to (B, K).
    parts = images_BWW3.split(1) if images_BWW3.device.type == "cpu" else (images_BWW3,)
    probabilities_BK = torch.cat([probabilities(part) for part in parts]).double().cpu()
    indices = [label if outputs is None else outputs[label] for label in labels]
    return [float(row_K[index]) for row_K, index in zip(probabilities_BK, indices, strict=True)]
