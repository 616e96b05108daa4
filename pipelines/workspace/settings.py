"""Settings of this machine and of clusters: var-scaling.toml and environment variables."""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from var_scaling.explain import explain
from var_scaling.recipe import Precision

FILE = "var-scaling.toml"
POINTS = 40  # of a training curve in the tracker
# Peaks of an H100 SXM: 989 TFLOP/s in bf16 and fp16, 495 in TF32, both dense, and 67 in fp32, which
# has no tensor cores (NVIDIA H100 Tensor Core GPU Datasheet, which gives 1,979 and 989 with
# sparsity). An A100 has 312, 156 and 19.5.
RELATIVE_PEAKS: dict[Precision, float] = {
    "bf16": 1.0, "fp16": 1.0, "tf32": 495 / 989, "fp32": 67 / 989,
}  # fmt: skip
# Share of the peak of its precision that the encoder reaches at 256 pixels on an H200
# (benchmarks/measured/gpu_h200.json). Assumed on all GPUs and for all stages that are not trials.
ENCODING_SHARES: dict[Precision, float] = {"bf16": 0.105, "fp16": 0.11, "tf32": 0.17, "fp32": 0.29}
CPU_SHARE = 0.4  # the same on a CPU, of the measured peak of matrix products: an assumption


class SettingsError(ValueError):
    """var-scaling.toml cannot be used; the message names file, key and what is allowed."""


class Local(BaseModel):
    """`--on local`: this machine.

    More threads per stage help little at tiny sizes (2 threads: 1.3 times faster) and cost much on
    shared cores: two such stages on two busy cores ran 70 times slower than with one thread each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: Annotated[int, Field(ge=1)] = os.cpu_count() or 1
    threads_per_stage: Annotated[int, Field(ge=1)] = 1
    save_every_seconds: Annotated[float, Field(gt=0)] = 20.0
    device: Literal["cpu", "cuda"] = "cpu"
    processes: Annotated[int, Field(ge=1)] = 1  # of one training; one per GPU
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None  # None: a process's whole share
    recompute_activations: bool = False  # of trials: less memory, a third more time
    shard_optimizer: bool = False  # of trials: each GPU keeps a part of the optimizer's state
    compile: bool | None = None  # training steps by torch.compile; None: on GPUs only
    cuda_graphs: bool = True  # sampling by CUDA graphs; no effect without a GPU


class Cluster(BaseModel):
    """`--on NAME`: a Slurm cluster, as seen from the machine that submits to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: Annotated[int, Field(ge=1)] = 1  # most that one trial may use
    gpus_per_node: Annotated[int, Field(ge=0)] = 8  # 0: a CPU cluster
    cpus_per_gpu: Annotated[int, Field(ge=1)] = 8
    memory_gb_per_gpu: Annotated[float, Field(gt=0)] = 64.0
    wall_hours: Annotated[float, Field(gt=0)] = 24.0  # of one job; a trial may need several
    setup: tuple[str, ...] = ()  # shell lines that run before the job
    device: Literal["cpu", "cuda"] = "cuda"
    gpu_memory_gb: Annotated[float, Field(gt=0)] = 80.0
    peak_tflops: Annotated[float, Field(gt=0)] = 989.0  # of one GPU, dense, half precision: H100
    peak_tflops_tf32: Annotated[float, Field(gt=0)] | None = None  # None: half of peak_tflops
    peak_tflops_fp32: Annotated[float, Field(gt=0)] | None = None  # None: 6.8 % of peak_tflops
    utilisation: Annotated[float, Field(gt=0, le=1)] | None = None  # of the peak; None: by size
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = None
    signal_seconds: Annotated[int, Field(ge=10)] = 120  # before a job's end, to save
    save_every_seconds: Annotated[float, Field(gt=0)] = 600.0
    array_parallelism: Annotated[int, Field(ge=1)] = 64  # jobs of one array at a time
    finish_within_hours: Annotated[float, Field(gt=0)] = 168.0  # sets the number of GPUs of a trial
    trial_gpus: dict[str, Annotated[int, Field(ge=1)]] = {}  # by trial, instead of that rule
    encoding_jobs: Annotated[int, Field(ge=1)] | None = None  # None: one per hour of work
    threads_per_process: Annotated[int, Field(ge=1)] = 1
    recompute_activations: bool = False  # of trials: less memory, a third more time
    shard_optimizer: bool = False  # of trials: each GPU keeps a part of the optimizer's state
    compile: bool | None = None  # training steps by torch.compile; None: on GPUs only
    cuda_graphs: bool = True  # sampling by CUDA graphs; no effect without a GPU
    poll_seconds: Annotated[float, Field(gt=0)] = 30.0  # between two polls of the queue

    @model_validator(mode="after")
    def _leaves_time_to_work(self) -> Self:
        # Slurm may send the signal up to 60 s early.
        if self.wall_hours * 3600 < self.signal_seconds + 60:
            raise ValueError(
                f"wall_hours = {self.wall_hours:g} is {self.wall_hours * 3600:.0f} s: too short "
                f"for signal_seconds = {self.signal_seconds}, which may come a minute early"
            )
        return self

    def relative_peak(self, precision: Precision) -> float:
        """The peak of a GPU in `precision` relative to half precision; 1 on a CPU."""
        peaks = {"tf32": self.peak_tflops_tf32, "fp32": self.peak_tflops_fp32}
        peak = peaks.get(precision)
        if self.device == "cpu":
            return 1.0
        return RELATIVE_PEAKS[precision] if peak is None else peak / self.peak_tflops

    @property
    def sustained_flops(self) -> float:
        """FLOP/s of one GPU in half precision, in all that is not a trial: tokenizers, encoding,
        sampling. The throughput of trials depends on their size (execution/speeds/throughput.py).
        """
        share = CPU_SHARE if self.device == "cpu" else ENCODING_SHARES["fp16"]
        return self.peak_tflops * 1e12 * (share if self.utilisation is None else self.utilisation)

    def relative_speed(self, precision: Precision) -> float:
        """FLOP/s in `precision` over `sustained_flops`."""
        relative = self.relative_peak(precision)
        if self.device == "cpu" or self.utilisation is not None:
            return relative
        return relative * ENCODING_SHARES[precision] / ENCODING_SHARES["fp16"]

    @property
    def workers_per_node(self) -> int:
        """Processes of one trial on one node: one a GPU."""
        return max(1, self.gpus_per_node)


def compiles(where: Local | Cluster) -> bool:
    """Whether training steps are compiled there."""
    return where.device == "cuda" if where.compile is None else where.compile


class MLflow(BaseModel):
    """The tracking server; if none is given, a database in the home."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str | None = None


class Tracking(BaseModel):
    """What is copied to the tracker, and which tracker that is.

    `module`: a tracker instead of MLflow, a module with the function `open_tracker(home)`.

    `points`: of the training curve of each run, the first point, the last one, the one before each
    evaluation and this many evenly spaced ones are copied. "all": every point. Evaluations are all
    copied. The log on disk always has every point.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    module: str | None = None
    points: Annotated[int, Field(ge=1)] | Literal["all"] = POINTS


class Weights(BaseModel):
    """Files of third-party weights that some losses and scores need; never downloaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lpips: tuple[Path, ...] = ()  # VGG-16 and LPIPS weights, in one or two files
    inception: Path | None = None  # feature network of FID and related scores
    classifier: Path | None = None  # a ResNet for rejection sampling

    def files(self) -> list[tuple[str, Path]]:
        """(key, path) of every file that is set."""
        named = [("inception", self.inception), ("classifier", self.classifier)]
        single = [(key, path) for key, path in named if path is not None]
        return [*(("lpips", path) for path in self.lpips), *single]

    def under(self, base: Path) -> Self:
        """The same with relative paths resolved against `base`."""
        paths: dict[str, Any] = {key: base / path.expanduser() for key, path in self.files()}
        paths["lpips"] = tuple(base / path.expanduser() for path in self.lpips)
        return self.model_copy(update=paths)


class Settings(BaseModel):
    """The content of var-scaling.toml. No setting can change a trial's numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: dict[str, Path] = {}
    local: Local = Local()
    weights: Weights = Weights()
    mlflow: MLflow = MLflow()
    tracking: Tracking = Tracking()
    clusters: dict[str, Cluster] = {}

    def cluster(self, name: str) -> Cluster:
        """The cluster called `name`. Raises SettingsError."""
        if name not in self.clusters:
            known = ", ".join(["local", *self.clusters])
            raise SettingsError(
                f"--on {name}: no [clusters.{name}] in var-scaling.toml; allowed are {known}"
            )
        return self.clusters[name]

    def data_root(self, name: str) -> Path | None:
        """The folder of data `name`: from [data], else the folder `name` in VAR_SCALING_DATA."""
        if name in self.data:
            return self.data[name].expanduser()
        parent = os.environ.get("VAR_SCALING_DATA")
        if parent and (Path(parent).expanduser() / name).exists():
            return Path(parent).expanduser().absolute() / name
        return None


def load_settings(path: Path | None = None) -> Settings:
    """The settings in `path`, VAR_SCALING_SETTINGS or ./var-scaling.toml; else the defaults.

    Relative paths in the file are relative to its folder. Raises SettingsError.
    """
    named = path or (
        Path(os.environ["VAR_SCALING_SETTINGS"]) if "VAR_SCALING_SETTINGS" in os.environ else None
    )
    file = named or Path(FILE)
    if not file.exists():
        if named:
            raise SettingsError(f"{file}: no such settings file")
        return Settings()
    try:
        settings = Settings.model_validate(tomllib.loads(file.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{file}: {explain(error, Settings)}") from error
    # Absolute, because jobs run in another folder.
    base = file.absolute().parent
    paths = {name: base / root.expanduser() for name, root in settings.data.items()}
    return settings.model_copy(update={"data": paths, "weights": settings.weights.under(base)})
