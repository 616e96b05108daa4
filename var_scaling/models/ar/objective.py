"""AR's objective: cross entropy of each token given the class and all tokens before it.

Shapes: B images, T tokens, K residual levels of a position, V codes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from var_scaling.models.ar.config import ArModel
from var_scaling.models.ar.model import from_raster, to_raster, token_inputs
from var_scaling.models.base import Batch, ModelSpec, StepDraws
from var_scaling.models.layers import drop_path_factors
from var_scaling.tokenizer.quantizer import Quantizer


def training_loss(
    spec: ModelSpec[ArModel],
    network: nn.Module,
    quantizer: Quantizer,
    batch: Batch,
    draws: StepDraws,
) -> Tensor:
    """Mean cross entropy over the tokens of `batch`, with drop path per image."""
    model = spec.config
    # For the global batch: the factors do not depend on how it is split over processes.
    generator = torch.Generator().manual_seed(draws.seed_of("drop path"))
    keep_D2B = drop_path_factors(model.drop_path, model.depth, draws.images, generator)
    if keep_D2B is not None:
        keep_D2B = keep_D2B[:, :, draws.local_slice].to(batch.labels_B.device)
    ids_BT = to_raster(batch.ids_BL, spec.tokenizer.pyramid.scales)
    # The last token is no input: nothing follows it.
    previous = token_inputs(model, quantizer, ids_BT[:, :-1])
    loss: Tensor = network(batch.labels_B, previous, keep_D2B, ids_BT)
    return loss


def level_sums(
    spec: ModelSpec[ArModel], network: nn.Module, quantizer: Quantizer, batch: Batch
) -> list[Tensor]:
    """Cross entropy in nats and top-1 errors, both summed per level: two (B, K) float64 tensors."""
    levels = spec.tokenizer.pyramid.scales
    ids_BT = to_raster(batch.ids_BL, levels)
    logits_BTV = network(batch.labels_B, token_inputs(spec.config, quantizer, ids_BT[:, :-1]))
    # F.cross_entropy expects the classes in dimension 1: (B, V, T) and (B, T).
    loss_BT = F.cross_entropy(logits_BTV.movedim(-1, 1).float(), ids_BT, reduction="none")
    error_BT = logits_BTV.argmax(-1) != ids_BT
    return [
        # (B, T) to (B, K, positions), summed over the positions.
        from_raster(values_BT.double(), levels).unflatten(1, (levels, -1)).sum(2)
        for values_BT in (loss_BT, error_BT)
    ]
