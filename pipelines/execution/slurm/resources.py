"""How many GPUs of a cluster a stage gets, how its batch is split, how long a job may take.

Nothing here can change a number: the global batch belongs to the trial, and what does not divide it
is refused.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

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

# Bytes a parameter: weight, gradient, two Adam moments and the bucket in which gradients travel,
# four each; at half precision a copy of the weight besides.
_STATE, _HALF_COPY, _AVERAGE = 20, 2, 4
_USABLE = 0.85  # of a GPU's memory; the rest is workspace and fragments
# By pixel and base channel: 205 measured in fp32 for the autoencoder; its judges by estimate.
_TOKENIZER_IMAGE = 300
_PART_HOURS = 1.0  # an encoding job takes about this long
_WALLS = (0.25, 0.5, 1, 2, 4, 8, 12, 24, 48, 72, 168)  # few lengths, so that arrays form


@dataclass(frozen=True)
class Resources:
    """What one job of a stage asks for. Stages with equal resources share an array."""

    nodes: int
    processes_per_node: int
    gpus_per_node: int
    micro_batch_size: int | None  # images in one pass of one process; None: its whole share
    minutes: int

    @property
    def processes(self) -> int:
        return self.nodes * self.processes_per_node

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def unknown_names(stages: Stages, cluster: Cluster) -> list[str]:
    """What `trial_gpus` names and a sweep has not: another may, or it is misspelt."""
    known = {stage.name for stage in of_kind(stages, TRIAL, TOKENIZER)}
    return sorted(set(cluster.trial_gpus) - known)


def trial_resources(trial: Trial, cluster: Cluster) -> Resources:
    """The fewest GPUs that finish `trial` within `finish_within_hours`, else all it may have.

    Raises SettingsError where it cannot fit or where `trial_gpus` does not divide the batch.
    """
    flops = trial_ledger(trial)["train_flops"]
    processes = _processes(trial.name, trial.batch_size, flops, cluster)
    share = trial.batch_size // processes
    micro_batch_size = _images_at_once(trial, share, cluster)
    passes = math.ceil(share / micro_batch_size)
    return _job(processes, math.ceil(share / passes) if passes > 1 else None, flops, cluster)


def tokenizer_resources(t: SomeTokenizer, cluster: Cluster) -> Resources:
    """The same for a tokenizer, which takes its share of a batch in one pass."""
    if not isinstance(t, TrainedTokenizer):
        return _job(1, None, 0, cluster)
    flops = tokenizer_train_flops(t, t.steps)
    processes = _processes(t.name, t.batch_size, flops, cluster)
    if cluster.device == "cuda" and t.name not in cluster.trial_gpus:
        state = total(tokenizer_parameters(t)) * _STATE
        fit = (_usable(cluster) - state) / (t.side**2 * t.channels * _TOKENIZER_IMAGE)
        more = [
            n
            for n in _choices(t.batch_size, cluster)
            if n >= processes and t.batch_size // n <= fit
        ]
        processes = more[0] if more else _choices(t.batch_size, cluster)[-1]
    return _job(processes, None, flops, cluster)


def encoding_parts(t: SomeTokenizer, data: DataRecord, images: int | None, cluster: Cluster) -> int:
    """Among how many jobs the encoding of `images` images of `data` is spread."""
    if cluster.encoding_jobs is not None:
        return cluster.encoding_jobs
    if images is None:
        return 1
    crops = data.views("train")
    hours = images * crops * encoding_flops(t) / cluster.sustained / 3600
    most = min(cluster.array_parallelism, cluster.nodes * cluster.workers_per_node)
    return max(1, min(most, math.ceil(hours / _PART_HOURS)))


def encoding_resources(flops: float, cluster: Cluster) -> Resources:
    """One process on one GPU, for a part that costs `flops`."""
    return _job(1, None, flops, cluster)


def job_hours(flops: float, processes: int, cluster: Cluster) -> float:
    """How long `flops` take on `processes` GPUs: at the cluster's assumed utilisation."""
    return flops / (cluster.sustained * processes) / 3600


def _processes(name: str, batch: int, flops: float, cluster: Cluster) -> int:
    if name in cluster.trial_gpus:
        asked = cluster.trial_gpus[name]
        _refuse_odd(name, asked, batch, cluster)
        return asked
    choices = _choices(batch, cluster)
    enough = [n for n in choices if job_hours(flops, n, cluster) <= cluster.finish_within_hours]
    return enough[0] if enough else choices[-1]


def _choices(batch: int, cluster: Cluster) -> list[int]:
    """Process counts that divide `batch`: on a part of a node, then on whole nodes."""
    per_node = cluster.workers_per_node
    within = [n for n in range(1, per_node + 1) if per_node % n == 0]
    whole = [per_node * nodes for nodes in range(2, cluster.nodes + 1)]
    return [n for n in within + whole if batch % n == 0]


def _refuse_odd(name: str, asked: int, batch: int, cluster: Cluster) -> None:
    per_node = cluster.workers_per_node
    if batch % asked:
        raise SettingsError(
            f"trial_gpus.{name} = {asked}: does not divide the global batch of {batch}, which "
            "belongs to the trial"
        )
    if asked > per_node * cluster.nodes:
        raise SettingsError(
            f"trial_gpus.{name} = {asked}: more than nodes x gpus_per_node = "
            f"{cluster.nodes} x {per_node}"
        )
    if asked > per_node and asked % per_node:
        raise SettingsError(
            f"trial_gpus.{name} = {asked}: more than a node's {per_node}, so whole nodes are needed"
        )


def _images_at_once(trial: Trial, share: int, cluster: Cluster) -> int:
    """How many images fit through one process at a time. Raises SettingsError if not one does."""
    if cluster.device != "cuda":
        return share
    fixed, each = memory_bytes(trial)
    fit = int((_usable(cluster) - fixed) // each)
    if fit < 1:
        need = (fixed + each) / _USABLE / 1e9
        raise SettingsError(
            f"{trial.name} needs about {need:,.0f} GB on each GPU, gpu_memory_gb = "
            f"{cluster.gpu_memory_gb:g}: weights are not sharded, so take larger GPUs"
        )
    return min(fit, share)


def memory_bytes(trial: Trial) -> tuple[float, float]:
    """(for weights and their optimiser, for each image in a pass): an estimate of one GPU's use."""
    parameters = trial_ledger(trial)["params_total"]
    half = trial.precision in ("bf16", "fp16")
    image = trial.family.training_bytes(trial.spec, trial.precision)
    average = _AVERAGE if trial.weight_average > 0 else 0
    return parameters * (_STATE + _HALF_COPY * half + average), image


def _usable(cluster: Cluster) -> float:
    return cluster.gpu_memory_gb * 1e9 * _USABLE


def _job(processes: int, micro_batch_size: int | None, flops: float, cluster: Cluster) -> Resources:
    per_node = min(processes, cluster.workers_per_node)
    # Room for what precedes the first step, and for the signal, which may come a minute early.
    spare = 0.25 + (cluster.signal_seconds + 60) / 3600
    wanted = 1.25 * job_hours(flops, processes, cluster) + spare
    rounded = next((wall for wall in _WALLS if wall >= wanted), cluster.wall_hours)
    return Resources(
        nodes=processes // per_node,
        processes_per_node=per_node,
        gpus_per_node=per_node if cluster.gpus_per_node else 0,
        micro_batch_size=micro_batch_size,
        minutes=math.floor(60 * min(rounded, cluster.wall_hours)),
    )
