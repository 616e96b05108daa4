"""Data parallelism: the rows that each process trains on, and reductions over all processes."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class World:
    """This process (`rank` of `size`) and its device. The world size never changes a result."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    micro_batch_size: int | None = None  # rows in one forward pass; None: all rows of this process
    recompute_activations: bool = False  # keep the input of each block only
    shard_optimizer: bool = False  # each process keeps a part of the optimizer's state

    @property
    def first(self) -> bool:
        """Whether this is process 0, the only one that writes files."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """This process's rows of a global batch. Raises ValueError if it does not divide."""
        if batch % self.size:
            raise ValueError(
                f"batch_size = {batch}: not divisible by {self.size} processes, and rounding it "
                "would change the results; use a number of processes that divides it"
            )
        # Consecutive rows in the order of ranks: the codebook's restart relies on it.
        rows = batch // self.size
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def micro_batches(self, batch: int) -> list[slice]:
        """The same rows in slices of at most `micro_batch_size`; the last may be shorter."""
        share = self.share(batch)
        rows = share.stop - share.start if self.micro_batch_size is None else self.micro_batch_size
        assert rows > 0
        starts = range(share.start, share.stop, rows)
        return [slice(start, min(start + rows, share.stop)) for start in starts]

    def wrap(self, module: nn.Module, all_used: bool = False) -> nn.Module:
        """`module`, with gradients averaged over all processes.

        `all_used`: every step uses every parameter, so the graph is not searched for unused ones.
        DDP then orders its gradient buckets after the first backward pass. A resumed run would sum
        the gradients of three or more processes in another order: drop the gradients of one pass
        before the first step.
        """
        if self.size == 1:
            return module
        return DistributedDataParallel(
            module, find_unused_parameters=not all_used, gradient_as_bucket_view=True
        )

    def sum(self, value: Tensor) -> Tensor:
        if self.size > 1:
            # In place: `value` itself becomes the sum.
            dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        return self.sum(value) / self.size if self.size > 1 else value

    def max(self, value: int) -> int:
        """The largest value over all processes, so that all act on a signal at the same step."""
        if self.size == 1:
            return value
        # On the GPU if there is one: NCCL reduces no CPU tensors.
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)


def recompute_activations(model: nn.Module) -> None:
    """Keep only the input of each block for the backward pass, which computes the rest again.

    Less memory for a third more time; bitwise the same gradients (arXiv 1604.06174). Raises
    ValueError if `model` has no method `run_block`.
    """
    run_block = getattr(model, "run_block", None)
    if run_block is None:
        raise ValueError(
            f"recompute_activations = true: {type(model).__name__} has no method `run_block`"
        )
    # Around the compiled method, if it was compiled. Blocks draw no random numbers.
    model.run_block = partial(  # type: ignore[assignment]
        checkpoint, run_block, use_reentrant=False, preserve_rng_state=False
    )


def sync_gradients(net: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Context of one backward pass: average the gradients over processes `now`, or only add up."""
    if now or not isinstance(net, DistributedDataParallel):
        return nullcontext()
    return net.no_sync()
