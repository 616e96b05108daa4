"""Cross entropy and top-1 error on held-out tokens: whole, last scale, per scale (VAR.md 2.1).

Labels are never dropped and nothing is random, so the result is a function of weights and tokens.
"""

import numpy as np
import torch
import torch.nn.functional as F

from var_scaling.models.var import VAR
from var_scaling.tokenizer.cache import TokenCache
from var_scaling.tokenizer.quantizer import Quantizer

_BATCH = 128


@torch.no_grad()
def evaluate(model: VAR, quantizer: Quantizer, cache: TokenCache) -> dict[str, object]:
    """Loss in nats a token and error as a share of tokens, over every image of `cache`.

    The standard errors are clustered by image: the tokens of one image are correlated.
    """
    scales = list(quantizer.pyramid.lengths)
    was_training = model.training
    model.eval()
    losses, errors = [], []
    for start in range(0, cache.images, _BATCH):
        rows = np.arange(start, min(start + _BATCH, cache.images))
        ids_BL, labels_B = cache.batch(rows, np.zeros_like(rows))
        logits_BLV = model(labels_B, quantizer.teacher_input(ids_BL))
        loss_BL = F.cross_entropy(logits_BLV.movedim(-1, 1).float(), ids_BL, reduction="none")
        wrong_BL = logits_BLV.argmax(-1) != ids_BL
        losses.append(_scale_sums(loss_BL, scales))
        errors.append(_scale_sums(wrong_BL, scales))
    model.train(was_training)
    return {**_summary("loss", losses, scales), **_summary("error", errors, scales)}


def _scale_sums(values_BL: torch.Tensor, scales: list[int]) -> np.ndarray:
    """(B, K) float64: each image's sum over each scale."""
    parts = values_BL.double().split(scales, dim=1)
    return torch.stack([part.sum(1) for part in parts], dim=1).numpy()


def _summary(name: str, sums: list[np.ndarray], scales: list[int]) -> dict[str, object]:
    sums_IK = np.concatenate(sums)
    per_image = sums_IK.sum(1) / sum(scales)
    images = len(per_image)
    stderr = float(per_image.std(ddof=1) / np.sqrt(images)) if images > 1 else None
    return {
        name: float(per_image.mean()),
        f"{name}_last": float(sums_IK[:, -1].mean() / scales[-1]),
        f"{name}_stderr": stderr,
        f"{name}_per_scale": (sums_IK.mean(0) / np.array(scales)).tolist(),
    }
