"""Rejection sampling: of the candidates of a class, keep those of which a classifier is surest.

The "-re" of VAR's tables (arXiv 2404.02905), as in VQ-VAE-2 (1906.00446) and VQ-GAN (2012.09841):
by the probability that a classifier trained on real images gives the class that was asked for.

Shapes: B images, W side, K outputs of the classifier.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from var_scaling.experiment.sample_set import Request


class Accepted(NamedTuple):
    """Which candidates were kept, and the least score among them by class."""

    requests: list[Request]  # in the order of drawing: by index, then by class
    thresholds: dict[int, float]


def accept(scores: Mapping[Request, float], count: int) -> Accepted:
    """The `count` candidates of each class with the largest scores; of equal ones the first drawn.

    Raises ValueError where a class has fewer candidates.
    """
    of_class: dict[int, list[Request]] = {}
    for request in scores:
        of_class.setdefault(request.label, []).append(request)
    kept: list[Request] = []
    thresholds = {}
    for label, candidates in sorted(of_class.items()):
        if len(candidates) < count:
            raise ValueError(f"class {label}: {len(candidates)} candidates, {count} are to be kept")
        best = sorted(candidates, key=lambda one: (-scores[one], one.index))[:count]
        thresholds[label] = scores[best[-1]]
        kept += best
    return Accepted(sorted(kept, key=lambda one: (one.index, one.label)), thresholds)


@torch.no_grad()
def scored(
    probabilities: Callable[[Tensor], Tensor],
    images_BWW3: Tensor,
    labels: Sequence[int],
    outputs: Sequence[int] | None = None,
) -> list[float]:
    """The probability of each image's own class.

    `probabilities` takes uint8 images and gives (B, K); `outputs` says which of the K is a class's,
    where that is not its number. On a processor images go one by one: convolutions round by the
    batch, and a score must not depend on its company.
    """
    parts = images_BWW3.split(1) if images_BWW3.device.type == "cpu" else (images_BWW3,)
    found_BK = torch.cat([probabilities(part) for part in parts]).double().cpu()
    places = [label if outputs is None else outputs[label] for label in labels]
    return [float(row_K[place]) for row_K, place in zip(found_BK, places, strict=True)]
