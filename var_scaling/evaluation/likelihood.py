"""Validation loss, and token error if the family has one, on held-out images, in total and by part.

Class dropout is off, and the random numbers of a family depend only on the image's row, so the
result is a function of weights and tokens.

Shapes: B images of a batch, I images that are scored, N scores, P parts of an image.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from var_scaling.accounting import total
from var_scaling.metrics import Line
from var_scaling.models.base import Batch, ModelSpec, Validation
from var_scaling.models.registry import family_of
from var_scaling.tokenizer.cache import TokenCache
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.world import World

_BATCH = 128
LABELS = ("true", "none")  # class condition: each image's class, or the null class
_SUFFIX = {"true": "", "none": "_no_label"}
_ALONE = World()


@torch.no_grad()
def evaluate(
    spec: ModelSpec,
    model: nn.Module,
    quantizer: Quantizer,
    cache: TokenCache,
    labels: Sequence[str] = LABELS[:1],
    progress: Callable[[int, int], None] = lambda done, of: None,
    batch: int = _BATCH,
    world: World = _ALONE,
) -> Line:
    """The scores of the family, in its unit, in one pass over the images of `cache`.

    They are computed for each of `labels`; the names for "none" end in `_no_label`. The standard
    errors are clustered by image, because the tokens of one image are correlated. The batches are
    distributed over the processes of `world`; every process returns the numbers that a single
    process would compute.
    """
    family = family_of(spec.config)
    validation = family.validation(spec)
    device = quantizer.embedding.weight.device
    was_training = model.training
    model.eval()
    names = [f"{score}{_SUFFIX[label]}" for label in labels for score in validation.scores]
    scored = np.arange(0, cache.images, validation.score_every)
    # Zero except for the images of this process; the sum over processes below joins the parts.
    sums_NIP = torch.zeros(
        len(names), len(scored), len(validation.parts), dtype=torch.float64, device=world.device
    )
    for start in range(0, len(scored), batch)[world.rank :: world.size]:
        rows = scored[start : start + batch]
        # The zeros are epochs: every evaluation uses the first crop of each image.
        ids_BL, labels_B = (part.to(device) for part in cache.batch(rows, np.zeros_like(rows)))
        sums: list[Tensor] = []
        for label in labels:
            null_B = torch.full_like(labels_B, spec.classes)
            labelled = Batch(ids_BL, labels_B if label == "true" else null_B)
            sums += family.validate(spec, model, quantizer, labelled, rows.tolist())
        sums_NIP[:, start : start + len(rows)] = torch.stack(sums)  # (N, B, P)
        progress(start + len(rows), len(scored))
    model.train(was_training)
    scores: Line = {}
    # Each entry is nonzero in one process only, so this sum is exact for any number of processes.
    for name, sums_IP in zip(names, world.sum(sums_NIP).cpu().numpy(), strict=True):
        scores |= _summary(name, sums_IP, validation)
    return {**scores, "images_scored": len(scored)}


def evaluation_flops(spec: ModelSpec, images: int, labels: Sequence[str]) -> int:
    """FLOPs of `evaluate` on a cache of `images`: the forward passes over the images that it
    scores, once for each of `labels`.
    """
    family = family_of(spec.config)
    validation = family.validation(spec)
    forwards = (
        len(range(0, images, validation.score_every)) * validation.forwards_per_image * len(labels)
    )
    return forwards * total(family.forward_flops(spec))


def _summary(name: str, sums_IP: np.ndarray, validation: Validation) -> Line:
    sizes = np.array(validation.sizes)
    per_image = sums_IP.sum(1) / sum(validation.sizes)  # (I,)
    images = len(per_image)
    stderr = float(per_image.std(ddof=1) / np.sqrt(images)) if images > 1 else None
    last = {}
    if validation.last_part:
        last = {f"{name}_last": float(sums_IP[:, -1].mean() / sizes[-1])}
    return {
        name: float(per_image.mean()),
        **last,
        f"{name}_stderr": stderr,
        f"{name}_parts": (sums_IP.mean(0) / sizes).tolist(),
    }
