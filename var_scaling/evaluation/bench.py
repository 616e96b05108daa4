"""A stopwatch with a budget, and the most that this machine's matrix products reach by it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from var_scaling.evaluation.memory import out_of_memory
from var_scaling.evaluation.rates import MatmulPeak, Timing
from var_scaling.recipe import Precision
from var_scaling.training.optim import precision_context

_SIDES = (256, 512, 1024, 2048, 4096, 8192, 16384)  # of the products that look for the peak
_FEWEST = 3  # repeats, where that much time is left
_PATIENCE = 3.0  # times its seconds that a piece of work may take
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Bench:
    """Where it is measured, and about how many seconds each cell of the table may have."""

    device: torch.device
    seconds: float
    clock: Callable[[], float] = time.perf_counter

    def settle(self) -> None:
        """Wait for what a GPU has been told to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def timed(self, work: Callable[[], object], share: float = 1.0, warm: bool = False) -> Timing:
        """Repeat `work` for `share` of the cell's seconds, once more first if it is not `warm`."""
        if not warm:
            work()
            self.settle()
        limit, seconds = share * self.seconds, list[float]()
        while sum(seconds) < limit or len(seconds) < _FEWEST:
            if sum(seconds) >= _PATIENCE * limit:
                break
            began = self.clock()
            work()
            self.settle()
            seconds.append(self.clock() - began)
        return Timing.of(seconds)

    def refused(self, seconds: float) -> str | None:
        """Why a repeat of about that many `seconds` is left out, if it is."""
        if seconds <= _PATIENCE * self.seconds:
            return None
        return f"left out: about {seconds:.0f} s each, for a cell of {self.seconds:g} s"


def matmul_peak(precision: Precision, bench: Bench) -> MatmulPeak:
    """The best of several square products at growing sides, for as long as there is time.

    In bf16 and fp16 of matrices that are so already: nothing is converted.
    """
    found: list[MatmulPeak] = []
    for side in _SIDES:
        kind = _HALVES.get(precision, torch.float32)
        try:
            left, right = (torch.randn(side, side, device=bench.device).to(kind) for _ in "ab")
            with precision_context(precision, bench.device):
                least = bench.timed(partial(torch.matmul, left, right), 1 / 8).least_seconds
        except (RuntimeError, MemoryError) as error:
            if not found or not out_of_memory(error):
                raise
            break
        flops = 2 * side**3
        found.append(MatmulPeak(precision=precision, side=side, flops_per_second=flops / least))
        if 8 * least > bench.seconds / 4:  # the next one takes eight times as long
            break
    return max(found, key=lambda peak: peak.flops_per_second)
