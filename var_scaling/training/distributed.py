"""Several processes training one thing: who does which rows, what is summed over all of them."""

import os
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """This process, one of `size`, and the device it computes on. It never changes a number."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This process's rows of a global batch. Raises ValueError if it does not divide."""
        if batch % self.size:
            raise ValueError(
                f"batch = {batch}: does not divide among {self.size} processes, and rounding it "
                "would change the numbers; take a number of processes that divides it"
            )
        each = batch // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def wrap(self, module: nn.Module, sometimes_unused: bool = False) -> nn.Module:
        """`module`, its gradients averaged over all processes."""
        if self.size == 1:
            return module
        return DistributedDataParallel(module, find_unused_parameters=sometimes_unused)

    def sum(self, value: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        return self.sum(value) / self.size if self.size > 1 else value

    def means(self, stats: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each stat averaged over all processes, in one exchange."""
        if self.size == 1:
            return stats
        together = self.mean(torch.stack([value.detach().float() for value in stats.values()]))
        return dict(zip(stats, together, strict=True))

    def any(self, asked: bool) -> bool:
        """Whether any process says yes: all must leave a loop at the same step."""
        if self.size == 1:
            return asked
        return bool(self.sum(torch.tensor(float(asked), device=self.device)) > 0)


def join() -> World:
    """The world that RANK, WORLD_SIZE and MASTER_ADDR (as torchrun sets them) describe; else alone.

    GPUs talk by NCCL, processors by gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if size > 1:
        speech = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(speech, rank=rank, world_size=size)
    return World(rank, size, device)


def leave(world: World) -> None:
    if world.size > 1:
        dist.destroy_process_group()
