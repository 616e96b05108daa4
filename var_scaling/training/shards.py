"""AdamW's state in shares: each process keeps and applies the updates of some parameters only.

Stage 1 of ZeRO (arXiv 1910.02054). An update does not depend on other parameters, so the weights
are bitwise those of an optimizer without shares.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from var_scaling.training.world import World

_NAMES = ("step", "exp_avg", "exp_avg_sq")  # of the tensors of AdamW's state of a parameter


class Shards:
    """The parameters of `adamw`, each with the process that updates it. Every process must call
    each method at the same time.
    """

    def __init__(self, adamw: torch.optim.AdamW, world: World):
        self.adamw, self.world = adamw, world
        self.parameters: list[nn.Parameter] = [
            parameter for group in adamw.param_groups for parameter in group["params"]
        ]
        self.owners = _owners([parameter.numel() for parameter in self.parameters], world.size)

    def drop_other_gradients(self) -> None:
        """Before the update: AdamW skips a parameter without a gradient, and keeps no state."""
        for parameter, owner in zip(self.parameters, self.owners, strict=True):
            if owner != self.world.rank:
                parameter.grad = None

    @torch.no_grad()
    def exchange(self) -> None:
        """After the update: send the own parameters to all processes, and receive the others."""
        sent = [
            dist.broadcast(parameter, src=owner, async_op=True)
            for parameter, owner in zip(self.parameters, self.owners, strict=True)
        ]
        for work in sent:
            assert work is not None
            work.wait()

    def gather(self) -> dict[str, Any]:
        """In process 0 the state of all parameters, as an optimizer without shares has it, with
        the received part in the memory of the host. Elsewhere the state of the own parameters.
        """
        state = self.adamw.state_dict()
        for index, (parameter, owner) in enumerate(zip(self.parameters, self.owners, strict=True)):
            if owner == self.world.rank and owner > 0:
                for name in _NAMES:
                    dist.send(state["state"][index][name], 0)
            elif owner > 0 and self.world.first:
                received = {}
                for name in _NAMES:
                    value = parameter.new_empty(() if name == "step" else parameter.shape)
                    dist.recv(value, owner)
                    received[name] = value.cpu()
                state["state"][index] = received
        return state

    def own(self, state: dict[str, Any]) -> dict[str, Any]:
        """The part of `state`, a result of `gather` in process 0, that this process keeps."""
        kept = {i: part for i, part in state["state"].items() if self.owners[i] == self.world.rank}
        return {**state, "state": kept}


def _owners(sizes: list[int], processes: int) -> list[int]:
    """The process of each parameter: the largest first, each to the process with the least."""
    loads, owners = [0] * processes, [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += sizes[index]
    return owners
