"""Training throughput of one GPU by size: measured where the home has it, else assumed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from pipelines.execution.speeds.benchmarks import (
    StepBenchmark,
    cluster_hardware,
    local_hardware,
    read_benchmarks,
    size_of,
)
from pipelines.workspace.settings import RELATIVE_PEAKS, Cluster, Local
from pipelines.workspace.store import Home
from var_scaling.experiment import Trial
from var_scaling.recipe import Precision

MEASURED, ASSUMED, SET = "measured", "assumed", "set"

# Assumed utilisation by width: (width, share of the dense half-precision peak). Larger matrices
# reach more of the peak, in every family.
#
# Widths 384 and 1024: VAR d6 and d16, eager steps on an H200 (benchmarks/measured/gpu_h200.json):
# 11 % and 26 % of the 711 TFLOP/s that matrix products reach there, so 7.6 % and 19 % of its peak
# of 989. Compiled, d6 reaches 20 % of 711, which is not assumed.
# Above: not measured. Of a block, matrix products take time ∝ width² and all else, limited by
# memory bandwidth, ∝ width. If products run at 711 TFLOP/s, the measurement at 1024 gives
# 1 / (989/711 + 4020/width): 25 % at 1536 and 29 % at 1920, the widths of d24 and d30.
_GPU_BY_WIDTH = ((384, 0.075), (1024, 0.19), (1536, 0.25), (1920, 0.28))
# Measured on a CPU for VAR, AR and DiT of widths 16 to 48 (2 cores, 1 thread): about width / 150 of
# the peak of its matrix products. Not measured above 48.
_CPU_WIDTH, _CPU_MOST = 150, 0.33


def assumed_utilisation(width: int, device: str) -> float:
    """Assumed model FLOP/s of a training step over the peak of the device."""
    if device == "cpu":
        return min(_CPU_MOST, width / _CPU_WIDTH)
    (narrowest, least), (_, most) = _GPU_BY_WIDTH[0], _GPU_BY_WIDTH[-1]
    if width <= narrowest:
        # A step is then limited by the launch of kernels, whose number does not depend on width,
        # and FLOPs are ∝ width².
        return least * (width / narrowest) ** 2
    for (low, low_share), (high, high_share) in pairwise(_GPU_BY_WIDTH):
        if width <= high:
            return low_share + (high_share - low_share) * (width - low) / (high - low)
    return most


@dataclass(frozen=True)
class Rate:
    """Training throughput of one GPU (on a CPU: of one process) for one size."""

    flops_per_second: float
    utilisation: float | None  # of the peak; None if no peak is known
    basis: str  # MEASURED, ASSUMED or SET
    micro_batch: int | None = None  # of the measurement, if another one is planned

    def hours(self, flops: float, processes: int = 1) -> float:
        """Hours for `flops` on `processes` GPUs. Communication between them is not counted."""
        return flops / (self.flops_per_second * processes) / 3600


@dataclass(frozen=True)
class Throughput:
    """The rates of all sizes on one kind of device.

    `sustained_flops` is used for all sizes if the user sets it. `peak_flops` is the FLOP/s peak to
    which assumed shares are relative; None only with `sustained_flops`.
    """

    peak_flops: float | None
    sustained_flops: float | None = None
    device: str = "cuda"
    measured: Sequence[StepBenchmark] = ()
    # Peaks relative to `peak_flops`, for what is not measured; 1 if not named.
    relative_peaks: Mapping[Precision, float] = field(default_factory=dict)
    recomputes: bool = False  # whether the forward pass of the blocks is computed twice

    def rate(self, trial: Trial, images: int, micro_batch: int) -> Rate:
        """The rate of a process that trains `images` of the batch, `micro_batch` in a pass."""
        relative = self.relative_peaks.get(trial.precision, 1.0)
        if self.sustained_flops is not None:
            share = None if self.peak_flops is None else self.sustained_flops / self.peak_flops
            return Rate(self.sustained_flops * relative, share, SET)
        assert self.peak_flops is not None
        measured = self._measured(trial, images, micro_batch)
        if measured is not None and measured.flops_per_second is not None:
            flops, other = measured.flops_per_second, measured.size.micro_batch
            return Rate(
                flops, measured.speed.mfu, MEASURED, other if other != micro_batch else None
            )
        share = assumed_utilisation(trial.model.width, self.device)
        if self.recomputes:  # four passes instead of three: the backward pass is as long as two
            share *= 3 / 4
        return Rate(share * self.peak_flops * relative, share, ASSUMED)

    @cached_property
    def _by_model(self) -> dict[str, list[StepBenchmark]]:
        """The measurements with numbers, by model."""
        # Sweeps may have a thousand trials, each looked up for several numbers of GPUs.
        by_model: dict[str, list[StepBenchmark]] = {}
        for one in self.measured:
            if one.flops_per_second is not None:
                by_model.setdefault(one.size.model_key(), []).append(one)
        return by_model

    def _measured(self, trial: Trial, images: int, micro_batch: int) -> StepBenchmark | None:
        """The measurement of this model with the nearest micro-batch; None if there is none."""
        if not self.measured:
            return None
        found = self._by_model.get(size_of(trial, images, micro_batch).model_key(), ())

        # By ratio, because throughput saturates with the micro-batch.
        def distance(one: StepBenchmark) -> tuple[float, float]:
            return (
                abs(math.log(one.size.micro_batch / micro_batch)),
                abs(math.log(one.size.images / images)),
            )

        return min(found, key=distance, default=None)


def throughput_on(cluster: Cluster, measured: Sequence[StepBenchmark] = ()) -> Throughput:
    """The rates on `cluster`. Its setting `utilisation` is used for all sizes, if set."""
    peak = cluster.peak_tflops * 1e12
    fixed = None if cluster.utilisation is None else cluster.utilisation * peak
    relative_peaks = {precision: cluster.relative_peak(precision) for precision in RELATIVE_PEAKS}
    return Throughput(
        peak, fixed, cluster.device, measured, relative_peaks, cluster.recompute_activations
    )


def cluster_throughput(home: Home, name: str, cluster: Cluster) -> Throughput:
    """The rates on the cluster called `name`, with the measurements in `home`. Raises ValueError
    if their file cannot be read.
    """
    return throughput_on(cluster, read_benchmarks(home, cluster_hardware(name, cluster)))


def local_throughput(home: Home, local: Local) -> Throughput | None:
    """The rates of a process on this machine; None if `home` has no measurement of it.

    Assumed shares are relative to the measured peak of matrix products.
    """
    measured = read_benchmarks(home, local_hardware(local))
    if not measured:
        return None
    latest = max(measured, key=lambda one: one.time)
    return Throughput(latest.peak_flops, None, local.device, measured)


def local_share(trial: Trial, local: Local) -> tuple[int, int]:
    """(images of one process in a step, images of one pass) of `trial` on this machine."""
    images = max(1, trial.batch_size // local.processes)
    return images, min(images, local.micro_batch_size or images)
