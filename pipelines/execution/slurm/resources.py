"""The number of GPUs of a stage on a cluster, how its batch is split, and the wall time of its job.

This does not change any result: the global batch belongs to the trial, and a number of processes
that does not divide it raises an error.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.execution.speeds.throughput import Rate, Throughput, throughput_on
from pipelines.stages.graph import Stages, of_kind
from pipelines.stages.registry import TOKENIZER, TRIAL
from pipelines.workspace.settings import Cluster, SettingsError
from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import (
    encoding_flops,
    tokenizer_parameters,
    tokenizer_train_flops,
)
from var_scaling.config import SomeTokenizer, TrainedTokenizer
from var_scaling.datasets import DataRecord
from var_scaling.experiment import Trial
from var_scaling.experiment.ledger import trial_ledger
from var_scaling.recipe import Precision

# Bytes per parameter. State: weight, gradient, two Adam moments and the bucket for the all-reduce
# of gradients, 4 bytes each. At half precision there is also a copy of the weight, and with weight
# averaging an averaged weight. Of these, the two moments can be shared between GPUs.
_STATE_BYTES, _HALF_COPY_BYTES, _AVERAGE_BYTES, _MOMENTS_BYTES = 20, 2, 4, 8
_USABLE_FRACTION = 0.85  # of a GPU's memory; the rest is workspace and fragmentation
# Bytes per image pixel and base channel: 205 measured in fp32 for the autoencoder; the rest is an
# estimate for the perceptual network and the discriminator.
_TOKENIZER_BYTES = 300
_PART_HOURS = 1.0  # an encoding job should take about this long
# Few different wall times, so that many jobs have equal resources and share an array.
_WALL_HOURS = (0.25, 0.5, 1, 2, 4, 8, 12, 24, 48, 72, 168)


@dataclass(frozen=True)
class Resources:
    """What one job of a stage requests. Jobs with equal resources can share an array."""

    nodes: int
    processes_per_node: int
    gpus_per_node: int
    micro_batch_size: int | None  # images in one pass of one process; None: all its images
    minutes: int  # wall time

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def unknown_names(stages: Stages, cluster: Cluster) -> list[str]:
    """The names in `trial_gpus` that the sweep does not have: they may be misspelt, or belong to
    another sweep.
    """
    names = {stage.name for stage in of_kind(stages, TRIAL, TOKENIZER)}
    return sorted(set(cluster.trial_gpus) - names)


def trial_resources(
    trial: Trial, cluster: Cluster, throughput: Throughput | None = None
) -> Resources:
    """The fewest GPUs that finish `trial` within `finish_within_hours`, else the most allowed.

    Raises SettingsError if the trial does not fit in GPU memory, or if `trial_gpus` does not divide
    the batch.
    """
    flops = trial_ledger(trial)["train_flops"]

    def hours(processes: int) -> float:
        share = trial.batch_size // processes
        if _images_that_fit(trial, share, cluster)[0] < 1:
            return math.inf  # more GPUs may help: they share the optimizer's state
        # The rate depends on the share of a GPU: smaller micro-batches reach less of the peak.
        return trial_rate(trial, processes, cluster, throughput).hours(flops, processes)

    processes = _processes(trial.name, trial.batch_size, hours, cluster)
    micro_batch_size = _even_micro_batch(trial, processes, cluster)
    whole_share = micro_batch_size == trial.batch_size // processes
    return _job(processes, None if whole_share else micro_batch_size, hours(processes), cluster)


def trial_rate(
    trial: Trial, processes: int, cluster: Cluster, throughput: Throughput | None = None
) -> Rate:
    """The throughput of each of `processes` GPUs that train `trial`. Raises SettingsError."""
    share = trial.batch_size // processes
    micro_batch_size = _even_micro_batch(trial, processes, cluster)
    return (throughput or throughput_on(cluster)).rate(trial, share, micro_batch_size)


def _even_micro_batch(trial: Trial, processes: int, cluster: Cluster) -> int:
    """Images in one pass of each of `processes` GPUs."""
    # Memory does not change the number of GPUs: a share that does not fit is processed in several
    # passes, whose gradients are accumulated.
    share = trial.batch_size // processes
    accum_steps = math.ceil(share / _micro_batch_size(trial, share, cluster))
    # Divide the share evenly: passes of equal size need the least memory.
    return math.ceil(share / accum_steps)


def tokenizer_resources(t: SomeTokenizer, cluster: Cluster) -> Resources:
    """Like `trial_resources`, for a tokenizer. It does not accumulate gradients: each process takes
    its share of a batch in one pass, so more GPUs are used if the share does not fit in memory.
    """
    # An imported tokenizer is never run: its resources are only a placeholder.
    if not isinstance(t, TrainedTokenizer):
        return _job(1, None, 0, cluster)
    flops = tokenizer_train_flops(t, t.steps)

    def hours(processes: int) -> float:
        return job_hours(flops, processes, cluster, t.precision)

    processes = _processes(t.name, t.batch_size, hours, cluster)
    if cluster.device == "cuda" and t.name not in cluster.trial_gpus:
        state = total(tokenizer_parameters(t)) * _STATE_BYTES
        # Images that fit beside the state; negative if not even the state fits.
        fit = (_usable(cluster) - state) / (t.side**2 * t.channels * _TOKENIZER_BYTES)
        sufficient = [
            n
            for n in _choices(t.batch_size, cluster)
            if n >= processes and t.batch_size // n <= fit
        ]
        processes = sufficient[0] if sufficient else _choices(t.batch_size, cluster)[-1]
    return _job(processes, None, hours(processes), cluster)


def encoding_parts(t: SomeTokenizer, data: DataRecord, images: int | None, cluster: Cluster) -> int:
    """The number of jobs that share the encoding of `images` images of `data`."""
    if cluster.encoding_jobs is not None:
        return cluster.encoding_jobs
    if images is None:
        return 1
    crops = data.views("train")
    hours = job_hours(images * crops * encoding_flops(t), 1, cluster, t.encode_precision)
    # More parts than jobs that can run at a time would not end sooner.
    most = min(cluster.array_parallelism, cluster.nodes * cluster.workers_per_node)
    return max(1, min(most, math.ceil(hours / _PART_HOURS)))


def encoding_resources(flops: float, cluster: Cluster, precision: Precision) -> Resources:
    """One process on one GPU, for an encoding of `flops` FLOPs in `precision`."""
    return _job(1, None, job_hours(flops, 1, cluster, precision), cluster)


def benchmark_resources(hours: float, cluster: Cluster) -> Resources:
    """One process on one GPU, for `hours` of measurements."""
    return _job(1, None, hours, cluster)


def job_hours(flops: float, processes: int, cluster: Cluster, precision: Precision) -> float:
    """Hours for `flops` in `precision` on `processes` GPUs in a stage that is not a trial: an
    assumption.
    """
    flops_per_second = cluster.sustained_flops * cluster.relative_speed(precision)
    return flops / (flops_per_second * processes) / 3600


def _processes(name: str, batch: int, hours: Callable[[int], float], cluster: Cluster) -> int:
    """The number of GPUs for the batch, by the hours that a number of GPUs takes."""
    if name in cluster.trial_gpus:
        requested = cluster.trial_gpus[name]
        _check_processes(name, requested, batch, cluster)
        return requested
    choices = _choices(batch, cluster)
    within_limit = (n for n in choices if hours(n) <= cluster.finish_within_hours)
    return next(within_limit, choices[-1])


def _choices(batch: int, cluster: Cluster) -> list[int]:
    """The numbers of processes that divide `batch`, ascending: on part of a node, then on whole
    nodes.
    """
    per_node = cluster.workers_per_node
    # Every node of a job has the same number of processes (--ntasks-per-node), so a trial that
    # needs more than one node takes whole nodes.
    within = [n for n in range(1, per_node + 1) if per_node % n == 0]
    whole = [per_node * nodes for nodes in range(2, cluster.nodes + 1)]
    return [n for n in within + whole if batch % n == 0]


def _check_processes(name: str, requested: int, batch: int, cluster: Cluster) -> None:
    """Raise SettingsError if `trial_gpus` requests a number of processes that is not possible."""
    per_node = cluster.workers_per_node
    if batch % requested:
        raise SettingsError(
            f"trial_gpus.{name} = {requested}: does not divide the global batch of {batch}, which "
            "belongs to the trial"
        )
    if requested > per_node * cluster.nodes:
        raise SettingsError(
            f"trial_gpus.{name} = {requested}: more than nodes x gpus_per_node = "
            f"{cluster.nodes} x {per_node}"
        )
    if requested > per_node and requested % per_node:
        raise SettingsError(
            f"trial_gpus.{name} = {requested}: more than one node has, so it must be a multiple of "
            f"{per_node}"
        )


def _micro_batch_size(trial: Trial, share: int, cluster: Cluster) -> int:
    """Images that one process can train on in one pass, at most `share`. Raises SettingsError if
    not even one fits in memory.
    """
    fit, one_image = _images_that_fit(trial, share, cluster)
    if fit < 1:
        raise SettingsError(
            f"{trial.name} needs about {one_image / 1e9:,.0f} GB on each GPU, but gpu_memory_gb = "
            f"{cluster.gpu_memory_gb:g}: use larger GPUs" + _less_memory(cluster)
        )
    return min(fit, share)


def _images_that_fit(trial: Trial, share: int, cluster: Cluster) -> tuple[int, float]:
    """(Images that one process can train on in one pass, memory in bytes that one image needs)."""
    if cluster.device != "cuda":
        return share, 0.0
    shards = trial.batch_size // share if cluster.shard_optimizer else 1
    fixed, per_image = memory_bytes(trial, cluster.recompute_activations, shards)
    return int((_usable(cluster) - fixed) // per_image), (fixed + per_image) / _USABLE_FRACTION


def _less_memory(cluster: Cluster) -> str:
    """The settings that would lower the need of memory, for a message."""
    unused = [
        name for name in ("recompute_activations", "shard_optimizer") if not getattr(cluster, name)
    ]
    return f", or set {' and '.join(f'{name} = true' for name in unused)}" if unused else ""


def memory_bytes(trial: Trial, recompute: bool = False, shards: int = 1) -> tuple[float, float]:
    """Estimated memory on one GPU: (bytes of weights, gradients and optimizer, bytes per image of a
    pass). `recompute`: with recompute_activations. `shards`: GPUs that share the optimizer's state.
    """
    parameters = trial_ledger(trial)["params_total"]
    half = trial.precision in ("bf16", "fp16")
    family = trial.family
    activations = family.recomputed_bytes if recompute else family.training_bytes
    average = _AVERAGE_BYTES if trial.weight_average > 0 else 0
    elsewhere = _MOMENTS_BYTES * (1 - 1 / shards)
    state = _STATE_BYTES - elsewhere + _HALF_COPY_BYTES * half + average
    return parameters * state, activations(trial.spec, trial.precision)


def _usable(cluster: Cluster) -> float:
    return cluster.gpu_memory_gb * 1e9 * _USABLE_FRACTION


def _job(processes: int, micro_batch_size: int | None, hours: float, cluster: Cluster) -> Resources:
    """The resources of a job whose work takes about `hours`."""
    per_node = min(processes, cluster.workers_per_node)
    # Hours for the start-up before the first step, and for the time between Slurm's signal, which
    # may come a minute early, and the end of the job.
    spare = 0.25 + (cluster.signal_seconds + 60) / 3600
    # A quarter more than estimated: evaluation and communication between GPUs are not counted, and
    # the throughput may be an assumption.
    needed = 1.25 * hours + spare
    # A training that needs more than wall_hours is requeued at the wall time, and resumes.
    rounded = next((hours for hours in _WALL_HOURS if hours >= needed), cluster.wall_hours)
    return Resources(
        nodes=processes // per_node,
        processes_per_node=per_node,
        gpus_per_node=per_node if cluster.gpus_per_node else 0,
        micro_batch_size=micro_batch_size,
        # Rounded down: Slurm never starts a job whose time exceeds the partition's MaxTime.
        minutes=math.floor(60 * min(rounded, cluster.wall_hours)),
    )
