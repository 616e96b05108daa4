"""AdamW with the paper's groups; learning rate and weight decay as pure functions of the step."""

import math

import torch
from torch import nn

from var_scaling.config import Optimiser

# Besides every vector and bias (VAR.md 2.1); matched as parts of a parameter's name.
_NOT_DECAYED = ("pos_start", "pos_1LC", "lvl_embed", "scale_mul", "ada_gss", "quantize.embedding")


def adamw(model: nn.Module, config: Optimiser) -> torch.optim.AdamW:
    """Two groups, decayed and not; `set_rates` gives both their values at each step."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or any(part in name for part in _NOT_DECAYED)
            (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "decayed": True}, {"params": plain, "decayed": False}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )


def set_rates(optimizer: torch.optim.Optimizer, config: Optimiser, step: int, steps: int) -> float:
    """Put step `step`'s learning rate and weight decay into the groups; returns the rate."""
    rate = learning_rate_at(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
        group["weight_decay"] = weight_decay_at(config, step, steps) if group["decayed"] else 0.0
    return rate


def learning_rate_at(config: Optimiser, step: int, steps: int) -> float:
    """Linear warm-up, a plateau, then linear decay to `final` × peak at the last of `steps`."""
    warm = config.warm_up * steps
    if step < warm:
        share = config.warm_up_from + (1 - config.warm_up_from) * step / warm
    else:
        passed = min(1.0, (step - warm) / max(1.0, steps - 1 - warm))
        left = 1.0
        if passed >= config.plateau and config.plateau < 1:
            left = (1 - passed) / (1 - config.plateau)
        share = config.final + (1 - config.final) * left
    return config.learning_rate * share


def weight_decay_at(config: Optimiser, step: int, steps: int) -> float:
    """Cosine from `weight_decay` to `final_weight_decay` over all steps, warm-up included."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * step / max(1, steps - 1))
    return config.final_weight_decay + (config.weight_decay - config.final_weight_decay) * cosine
