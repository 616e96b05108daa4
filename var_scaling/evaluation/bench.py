"""Timing within a time budget, and the peak FLOP rate of this machine's matrix products."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from var_scaling.evaluation.memory import out_of_memory
from var_scaling.evaluation.rates import MatmulPeak, Timing
from var_scaling.recipe import Precision
from var_scaling.training.optim import precision_context

_SIDES = (256, 512, 1024, 2048, 4096, 8192, 16384)  # of the square matrices
_MIN_REPEATS = 3  # unless they exceed the budget _MAX_OVERRUN times
_MAX_OVERRUN = 3.0  # a cell may take this many times its budget
_HALF_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Bench:
    """A timer for one device; `seconds` is the approximate budget of each cell of the table."""

    device: torch.device
    seconds: float
    clock: Callable[[], float] = time.perf_counter

    def synchronize(self) -> None:
        """Wait until the GPU has finished: CUDA kernels run asynchronously."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(
        self, work: Callable[[], object], share: float = 1.0, warmed_up: bool = False
    ) -> Timing:
        """Repeat `work` for `share` of the budget, after one untimed run unless `warmed_up`."""
        if not warmed_up:
            # A first run allocates memory and selects kernels.
            work()
            self.synchronize()
        seconds = list[float]()
        while not self.is_enough(seconds, share):
            began = self.clock()
            work()
            self.synchronize()
            seconds.append(self.clock() - began)
        return Timing.of(seconds)

    def is_enough(self, seconds: Sequence[float], share: float = 1.0) -> bool:
        """Whether repeats that took `seconds` fill `share` of the budget."""
        spent, limit = sum(seconds), share * self.seconds
        return (spent >= limit and len(seconds) >= _MIN_REPEATS) or spent >= _MAX_OVERRUN * limit

    def skip_reason(self, seconds: float) -> str | None:
        """Why a cell whose repeats take about `seconds` each is not timed; None if it is."""
        if seconds <= _MAX_OVERRUN * self.seconds:
            return None
        return f"skipped: about {seconds:.0f} s per repeat, but the budget is {self.seconds:g} s"


def matmul_peak(precision: Precision, bench: Bench) -> MatmulPeak:
    """The highest FLOP rate over square matrix products of growing size, within the time budget.

    For bf16 and fp16 the matrices have that type already, so that no conversion is timed.
    """
    peaks: list[MatmulPeak] = []
    for side in _SIDES:
        # tf32 is a mode of products of float32 matrices; precision_context sets it.
        dtype = _HALF_DTYPES.get(precision, torch.float32)
        try:
            left, right = (torch.randn(side, side, device=bench.device).to(dtype) for _ in "ab")
            with precision_context(precision, bench.device):
                # The least time, not the median: disturbances only add time, and a peak is wanted.
                least = bench.measure(partial(torch.matmul, left, right), 1 / 8).least_seconds
        except (RuntimeError, MemoryError) as error:
            # A larger product may not fit into memory; the peak is then that of the smaller ones.
            if not peaks or not out_of_memory(error):
                raise
            break
        flops = 2 * side**3
        peaks.append(MatmulPeak(precision=precision, side=side, flops_per_second=flops / least))
        if 8 * least > bench.seconds / 4:  # the next product takes eight times as long
            break
    return max(peaks, key=lambda peak: peak.flops_per_second)
