"""Several processes training one thing: who does which rows, what is summed over all of them."""

from contextlib import AbstractContextManager, nullcontext
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
    micro_batch_size: int | None = None  # rows of a batch in one pass; None: all of this process's

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

    def micro_batches(self, batch: int) -> list[slice]:
        """The same rows in order, at most `micro_batch_size` in each part; the last may be shorter."""
        share = self.share(batch)
        each = share.stop - share.start if self.micro_batch_size is None else self.micro_batch_size
        assert each > 0
        starts = range(share.start, share.stop, each)
        return [slice(start, min(start + each, share.stop)) for start in starts]

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module`, its gradients averaged over all processes."""
        if self.size == 1:
            return module
        # Not for the unused alone: without it the gradients are packed anew after a first step, so
        # that sums of more than two are taken in another order after a resume than before.
        return DistributedDataParallel(module, find_unused_parameters=True)

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

    def most(self, value: int) -> int:
        """The largest of all processes' values: what one wants, all do at the same step."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)


def exchanging(net: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Around a pass: its gradients are averaged over all processes `now`, or kept for the next."""
    if now or not isinstance(net, DistributedDataParallel):
        return nullcontext()
    return net.no_sync()
