"""The validation loss, and the error where a family has one, on held-out images, whole and by part.

Classes are never dropped, and what a family draws it draws from the image's number alone, so the
result is a function of weights and tokens.

Shapes: B images of a batch, I of the cache, N scores, P parts of an image.
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
LABELS = ("true", "none")  # what the model is told: each image's class, or that there is none
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
    """Each score of the family, in its unit, in one pass over all images of `cache`.

    For each of `labels` the same numbers, those of "none" under names that end in `_no_label`. The
    standard errors are clustered by image: the tokens of one image are correlated. The batches are
    dealt out to the processes of `world`; all come to the very numbers that one alone comes to.
    """
    family = family_of(spec.config)
    what = family.validation(spec)
    device = quantizer.embedding.weight.device
    was_training = model.training
    model.eval()
    names = [f"{score}{_SUFFIX[told]}" for told in labels for score in what.scores]
    scored = np.arange(0, cache.images, what.every)
    sums_NIP = torch.zeros(
        len(names), len(scored), len(what.parts), dtype=torch.float64, device=world.device
    )
    for start in range(0, len(scored), batch)[world.rank :: world.size]:
        rows = scored[start : start + batch]
        ids_BL, labels_B = (part.to(device) for part in cache.batch(rows, np.zeros_like(rows)))
        found: list[Tensor] = []
        for told in labels:
            shown_B = labels_B if told == "true" else torch.full_like(labels_B, spec.classes)
            shown = Batch(ids_BL, shown_B)
            found += family.validate(spec, model, quantizer, shown, rows.tolist())
        sums_NIP[:, start : start + len(rows)] = torch.stack(found)
        progress(start + len(rows), len(scored))
    model.train(was_training)
    scores: Line = {}
    for name, sums_IP in zip(names, world.sum(sums_NIP).cpu().numpy(), strict=True):
        scores |= _summary(name, sums_IP, what)
    return {**scores, "images_scored": len(scored)}


def evaluation_flops(spec: ModelSpec, images: int, labels: Sequence[str]) -> int:
    """What `evaluate` costs on a cache of so many images: the forwards over those that it scores,
    once for each thing that the model is told.
    """
    family = family_of(spec.config)
    what = family.validation(spec)
    forwards = len(range(0, images, what.every)) * what.passes * len(labels)
    return forwards * total(family.forward_flops(spec))


def _summary(name: str, sums_IP: np.ndarray, what: Validation) -> Line:
    sizes = np.array(what.sizes)
    per_image = sums_IP.sum(1) / sum(what.sizes)
    images = len(per_image)
    stderr = float(per_image.std(ddof=1) / np.sqrt(images)) if images > 1 else None
    last = {f"{name}_last": float(sums_IP[:, -1].mean() / sizes[-1])} if what.last_part else {}
    return {
        name: float(per_image.mean()),
        **last,
        f"{name}_stderr": stderr,
        f"{name}_parts": (sums_IP.mean(0) / sizes).tolist(),
    }
