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
from pipelines.workspace.settings import RELATIVE_PEAKS, Cluster, Local, compiles
from pipelines.workspace.store import Home
from var_scaling.experiment import Trial
from var_scaling.recipe import Precision

MEASURED, ASSUMED, SET = "measured", "assumed", "set"

# Assumed utilisation by width: (width, share of the dense half-precision peak). Larger matrices
# reach more of the peak, in every family.
#
# Widths 384, 1024, 1536: VAR d6, d16, d24 on an H200 (benchmarks/measured/gpu_h200.json). AR and
# DiT reach as much or more there. Above, the share of 1536.
_COMPILED_GPU = ((384, 0.17), (1024, 0.39), (1536, 0.435))
_EAGER_GPU = ((384, 0.095), (1024, 0.235), (1536, 0.285))
# Measured on a CPU for VAR, AR and DiT of widths 16 to 48 (2 cores, 1 thread): about width / 150 of
# the peak of its matrix products. Not measured above 48.
_CPU_WIDTH, _CPU_MOST = 150, 0.33


def assumed_utilisation(width: int, device: str, compiled: bool = True) -> float:
    """Assumed model FLOP/s of a training step over the peak of the device."""
    if device == "cpu":
        return min(_CPU_MOST, width / _CPU_WIDTH)
    by_width = _COMPILED_GPU if compiled else _EAGER_GPU
    (narrowest, least), (_, most) = by_width[0], by_width[-1]
    if width <= narrowest:
        # A step is then limited by the launch of kernels, whose number does not depend on width,
        # and FLOPs are ∝ width².
        return least * (width / narrowest) ** 2
    for (low, low_share), (high, high_share) in pairwise(by_width):
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
    compiled: bool = True  # whether training steps on a GPU are compiled

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
        share = assumed_utilisation(trial.model.width, self.device, self.compiled)
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
        peak,
        fixed,
        cluster.device,
        measured,
        relative_peaks,
        cluster.recompute_activations,
        compiles(cluster),
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
    return Throughput(latest.peak_flops, None, local.device, measured, compiled=compiles(local))


def local_share(trial: Trial, local: Local) -> tuple[int, int]:
    """(images of one process in a step, images of one pass) of `trial` on this machine."""
    images = max(1, trial.batch_size // local.processes)
    return images, min(images, local.micro_batch_size or images)
