"""Weights averaged over the steps of a training."""

import torch
from torch import nn


class WeightAverage:
    """Moving average of a module's weights; the decay grows as (s/2 + 1) / (s/2 + 10) to its limit.

    `average` is a module of the same kind to hold it.
    """

    def __init__(self, module: nn.Module, average: nn.Module, decay: float):
        self.module, self.average, self.decay = module, average.requires_grad_(False), decay
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """Forget what was: the average is the module as it is now."""
        self.average.load_state_dict(self.module.state_dict())

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (step / 2 + 1) / (step / 2 + 10))
        pairs = zip(self.average.parameters(), self.module.parameters(), strict=True)
        for mean, value in pairs:
            mean.lerp_(value, 1 - decay)
