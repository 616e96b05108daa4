"""Moving average (EMA) of the weights over the training steps."""

import torch
from torch import nn


class WeightAverage:
    """Moving average of a module's weights. At step s the decay is (s/2 + 1) / (s/2 + 10), at most
    `decay`: the early average is short. `average` is a second module of the same shape.
    """

    def __init__(self, module: nn.Module, average: nn.Module, decay: float):
        self.module, self.average, self.decay = module, average.requires_grad_(False), decay
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Set the average to the current weights of the module."""
        # Includes the buffers, which do not change in training: `update` averages parameters only.
        self.average.load_state_dict(self.module.state_dict())

    @torch.no_grad()
    def update(self, step: int) -> None:
        # With the full decay from the start, the initial weights would dominate the average for
        # about 1 / (1 - decay) steps.
        decay = min(self.decay, (step / 2 + 1) / (step / 2 + 10))
        means: list[torch.Tensor] = list(self.average.parameters())
        values: list[torch.Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(means, values, 1 - decay)
