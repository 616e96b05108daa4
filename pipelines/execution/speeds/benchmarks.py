"""Measured training steps in the home: `benchmarks/`, one file for each machine or cluster.

The file: {"format": 1, "measured": [StepBenchmark, ...]}, one entry for each size. A later
measurement of the same size replaces the entry. Reading it needs no torch.
"""

import json
import re
import socket
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pipelines.workspace.settings import Cluster, Local, compiles
from pipelines.workspace.store import Home, file_lock
from var_scaling.disk import read_json, write_json
from var_scaling.evaluation.rates import Machine, MatmulPeak, TrainingSpeed
from var_scaling.experiment import Trial
from var_scaling.recipe import Precision
from var_scaling.record import Record, explain

LOCAL = "local"
_FORMAT = 1
_WAIT = 30.0  # seconds to wait while another process writes the file


class TrainingSize(Record):
    """What determines the time and memory of a training step of one process."""

    model: dict[str, Any]  # its record as JSON: the file can be read without the module of a family
    patch_nums: tuple[int, ...]
    codebook_size: int
    code_channels: int
    classes: int
    precision: Precision
    averages_weights: bool
    images: int  # of one step
    micro_batch: int  # images of one pass

    def model_key(self) -> str:
        """Equal for sizes that differ at most in their images."""
        return json.dumps(self.model_dump(exclude={"images", "micro_batch"}), sort_keys=True)


def size_of(trial: Trial, images: int, micro_batch: int) -> TrainingSize:
    """The size of a step of `trial` in a process that trains `images` of its batch."""
    t = trial.tokenizer
    return TrainingSize(
        model=trial.model.model_dump(mode="json"),
        patch_nums=t.pyramid.patch_nums,
        codebook_size=t.codebook_size,
        code_channels=t.code_channels,
        classes=trial.classes,
        precision=trial.precision,
        averages_weights=trial.weight_average > 0,
        images=images,
        micro_batch=micro_batch,
    )


class Hardware(Record):
    """Where steps are measured. Measurements of another partition or device are not used."""

    on: str  # "local" or the name of a cluster
    device: Literal["cpu", "cuda"]
    threads: int
    compiles: bool = False  # whether training steps are compiled
    recomputes: bool = False  # whether they compute activations twice
    partition: str | None = None
    constraint: str | None = None


def local_hardware(local: Local) -> Hardware:
    return Hardware(
        on=LOCAL,
        device=local.device,
        threads=min(local.cpus, local.threads_per_stage),
        compiles=compiles(local),
        recomputes=local.recompute_activations,
    )


def cluster_hardware(name: str, cluster: Cluster) -> Hardware:
    return Hardware(
        on=name,
        device=cluster.device,
        threads=cluster.threads_per_process,
        compiles=compiles(cluster),
        recomputes=cluster.recompute_activations,
        partition=cluster.partition,
        constraint=cluster.constraint,
    )


class StepBenchmark(Record):
    """The measurement of one size; `speed.missing` has the reason if it has no numbers."""

    size_fingerprint: str
    size: TrainingSize
    hardware: Hardware
    machine: Machine
    host: str
    commit: str | None
    time: str  # UTC
    seconds: float  # time budget
    peak_flops: float  # FLOP/s; `speed.mfu` is relative to it
    matmul: MatmulPeak
    speed: TrainingSpeed

    @property
    def flops_per_second(self) -> float | None:
        """Model FLOP/s of the step; None if it was not measured."""
        if self.speed.step is None or self.speed.model_flops is None:
            return None
        return self.speed.model_flops / self.speed.step.median_seconds


def benchmarks_file(home: Home, hardware: Hardware) -> Path:
    """The file for `hardware`: of a cluster, or of this machine (machines may share a home)."""
    name = f"{LOCAL}-{socket.gethostname()}" if hardware.on == LOCAL else hardware.on
    # The name of a cluster may contain any character.
    return home.benchmarks() / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.json"


def read_benchmarks(home: Home, hardware: Hardware) -> tuple[StepBenchmark, ...]:
    """The measurements on `hardware`. Raises ValueError if the file cannot be read."""
    path = benchmarks_file(home, hardware)
    return tuple(one for one in _read(path) if one.hardware == hardware)


def save_benchmark(home: Home, benchmark: StepBenchmark) -> None:
    """Save `benchmark`; it replaces that of the same size and hardware."""
    path = benchmarks_file(home, benchmark.hardware)
    with file_lock(path.parent, wait=_WAIT, file=f".{path.stem}.lock"):
        # Read while the lock is held, so that no result of another process is lost.
        others = [
            one
            for one in _read(path)
            if (one.size_fingerprint, one.hardware)
            != (benchmark.size_fingerprint, benchmark.hardware)
        ]
        entries = [one.model_dump(mode="json") for one in (*others, benchmark)]
        write_json(path, {"format": _FORMAT, "measured": entries})


def _read(path: Path) -> list[StepBenchmark]:
    if not path.exists():
        return []
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise ValueError(f"{path}: format {content.get('format')}, this version reads {_FORMAT}")
    try:
        return [
            StepBenchmark.model_validate_json(json.dumps(entry)) for entry in content["measured"]
        ]
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, StepBenchmark)}; move the file away") from error
