"""VAR's objective: cross entropy of each token given the class and all coarser scales.

Shapes: B images, L tokens of all scales, K scales, Z code channels, V codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.models.base import Batch, ModelSpec, StepDraws
from var_scaling.models.layers import drop_path_factors
from var_scaling.models.var.config import VarModel
from var_scaling.tokenizer.quantizer import Quantizer


def training_loss(
    spec: ModelSpec[VarModel],
    network: nn.Module,
    quantizer: Quantizer,
    batch: Batch,
    draws: StepDraws,
) -> Tensor:
    """Mean cross entropy over the tokens of `batch`, with drop path per image."""
    # For the global batch: the factors do not depend on how it is split over processes.
    generator = torch.Generator().manual_seed(draws.seed_of("drop path"))
    keep_D2B = drop_path_factors(spec.config.drop_path, spec.config.depth, draws.images, generator)
    if keep_D2B is not None:
        keep_D2B = keep_D2B[:, :, draws.local_slice].to(batch.labels_B.device)
    # The tokenizer is frozen here: codes and phi get no gradient from the transformer.
    with torch.no_grad():
        input_BLZ = _teacher_input(quantizer, batch.ids_BL)
    loss: Tensor = network(batch.labels_B, input_BLZ, keep_D2B, batch.ids_BL)
    return loss


def scale_sums(
    spec: ModelSpec[VarModel], network: nn.Module, quantizer: Quantizer, batch: Batch
) -> list[Tensor]:
    """Cross entropy in nats and top-1 errors, both summed per scale: two (B, K) float64 tensors."""
    input_BLZ = _teacher_input(quantizer, batch.ids_BL)
    logits_BLV = network(batch.labels_B, input_BLZ)
    # F.cross_entropy expects the classes in dimension 1: (B, V, L) and (B, L).
    loss_BL = F.cross_entropy(logits_BLV.movedim(-1, 1).float(), batch.ids_BL, reduction="none")
    error_BL = logits_BLV.argmax(-1) != batch.ids_BL
    lengths = list(spec.tokenizer.pyramid.lengths)
    return [_sum_by_scale(values_BL, lengths) for values_BL in (loss_BL, error_BL)]


def _teacher_input(quantizer: Quantizer, ids_BL: Tensor) -> Tensor:
    """The network's inputs for the true tokens, in float32 as in sampling."""
    with torch.autocast(ids_BL.device.type, enabled=False):
        return quantizer.teacher_input(ids_BL)


def _sum_by_scale(values_BL: Tensor, lengths: list[int]) -> Tensor:
    parts = values_BL.double().split(lengths, dim=1)
    return torch.stack([part.sum(1) for part in parts], dim=1)
