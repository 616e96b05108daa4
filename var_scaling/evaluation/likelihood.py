"""Cross entropy and top-1 error on held-out tokens: whole, last scale, per scale (VAR.md 2.1).

Labels are never dropped and nothing is random, so the result is a function of weights and tokens.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from var_scaling.accounting import total
from var_scaling.accounting.transformer import var_forward_flops
from var_scaling.config import Model, Tokenizer
from var_scaling.metrics import Line
from var_scaling.models.var import VAR
from var_scaling.tokenizer.cache import TokenCache
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.world import World

_BATCH = 128
LABELS = ("true", "none")  # what the model is told: each image's class, or that there is none
_SUFFIX = {"true": "", "none": "_no_label"}
_ALONE = World()


@torch.no_grad()
def evaluate(
    model: VAR,
    quantizer: Quantizer,
    cache: TokenCache,
    labels: Sequence[str] = LABELS[:1],
    progress: Callable[[int, int], None] = lambda done, of: None,
    batch: int = _BATCH,
    world: World = _ALONE,
) -> Line:
    """Loss in nats a token and error as a share of tokens, in one pass over all images of `cache`.

    For each of `labels` the same numbers, those of "none" under names that end in `_no_label`. The
    standard errors are clustered by image: the tokens of one image are correlated. The batches are
    dealt out to the processes of `world`; all come to the very numbers that one alone comes to.
    """
    scales = list(quantizer.pyramid.lengths)
    device = quantizer.embedding.weight.device
    was_training = model.training
    model.eval()
    names = [f"{score}{_SUFFIX[told]}" for told in labels for score in ("loss", "error")]
    sums_NIK = torch.zeros(
        len(names), cache.images, len(scales), dtype=torch.float64, device=world.device
    )
    for start in range(0, cache.images, batch)[world.rank :: world.size]:
        rows = np.arange(start, min(start + batch, cache.images))
        ids_BL, labels_B = (part.to(device) for part in cache.batch(rows, np.zeros_like(rows)))
        with torch.autocast(device.type, enabled=False):
            shown_BLZ = quantizer.teacher_input(ids_BL)
        found: list[Tensor] = []
        for told in labels:
            shown = labels_B if told == "true" else torch.full_like(labels_B, model.classes)
            found += _per_token(model(shown, shown_BLZ), ids_BL)
        here = slice(start, start + len(rows))
        sums_NIK[:, here] = torch.stack([_scale_sums(values_BL, scales) for values_BL in found])
        progress(int(rows[-1]) + 1, cache.images)
    model.train(was_training)
    scores: Line = {}
    for name, sums_IK in zip(names, world.sum(sums_NIK).cpu().numpy(), strict=True):
        scores |= _summary(name, sums_IK, scales)
    return {**scores, "images_scored": cache.images}


def evaluation_flops(model: Model, tokenizer: Tokenizer, images: int, labels: Sequence[str]) -> int:
    """What `evaluate` costs: one forward an image for each thing that the model is told."""
    return images * len(labels) * total(var_forward_flops(model, tokenizer))


def _per_token(logits_BLV: Tensor, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
    loss_BL = F.cross_entropy(logits_BLV.movedim(-1, 1).float(), ids_BL, reduction="none")
    return loss_BL, logits_BLV.argmax(-1) != ids_BL


def _scale_sums(values_BL: Tensor, scales: list[int]) -> Tensor:
    """(B, K) float64: each image's sum over each scale."""
    parts = values_BL.double().split(scales, dim=1)
    return torch.stack([part.sum(1) for part in parts], dim=1)


def _summary(name: str, sums_IK: np.ndarray, scales: list[int]) -> Line:
    per_image = sums_IK.sum(1) / sum(scales)
    images = len(per_image)
    stderr = float(per_image.std(ddof=1) / np.sqrt(images)) if images > 1 else None
    return {
        name: float(per_image.mean()),
        f"{name}_last": float(sums_IK[:, -1].mean() / scales[-1]),
        f"{name}_stderr": stderr,
        f"{name}_per_scale": (sums_IK.mean(0) / np.array(scales)).tolist(),
    }
