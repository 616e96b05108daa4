"""The plan of a sweep: its trials, their cost, and the resources that they use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipelines.execution.slurm.resources import (
    encoding_parts,
    job_hours,
    tokenizer_resources,
    trial_rate,
    trial_resources,
)
from pipelines.execution.speeds.throughput import (
    MEASURED,
    SET,
    Rate,
    Throughput,
    local_share,
    local_throughput,
    throughput_on,
)
from pipelines.execution.status import View, format_duration
from pipelines.results.params import trial_facts
from pipelines.stages.graph import Stage, Stages, of_kind
from pipelines.stages.registry import TOKENIZER, TOKENS
from pipelines.workspace.settings import (
    CPU_SHARE,
    ENCODING_SHARES,
    RELATIVE_PEAKS,
    Cluster,
    Local,
)
from pipelines.workspace.store import Home
from var_scaling.accounting.tokenizer import (
    encoding_flops,
    tokenizer_train_flops,
)
from var_scaling.config import TrainedTokenizer
from var_scaling.experiment import Sweep, Trial
from var_scaling.experiment.ledger import model_ledger, trial_ledger
from var_scaling.recipe import Precision

_H100 = Cluster(partition="any")  # the defaults of a cluster are those of an H100


@dataclass(frozen=True)
class Price:
    """The cost of compute: FLOP/s of one GPU, and the price of a GPU hour."""

    # In half precision, in stages that are not trials; without `throughput` of trials too.
    sustained_flops: float
    per_gpu_hour: float | None = None
    basis: str = "an assumption; set it with --tflops"
    throughput: Throughput | None = None  # of trials, by size
    local: Local | None = None  # set if the throughput is that of this machine
    # Of stages that are not trials, over `sustained_flops`; 1 if not named.
    relative_speeds: Mapping[Precision, float] = field(default_factory=dict)

    def hours(self, flops: float, precision: Precision) -> float:
        """GPU-hours for `flops` in `precision` in a stage that is not a trial."""
        relative = self.relative_speeds.get(precision, 1.0)
        return flops / (self.sustained_flops * relative) / 3600

    def money(self, hours: float) -> float | None:
        return None if self.per_gpu_hour is None else hours * self.per_gpu_hour

    def rate(self, trial: Trial) -> Rate:
        """The throughput of one GPU that trains `trial`, without a cluster's division of it."""
        if self.throughput is None:
            return Rate(self.sustained_flops, None, SET)
        images, micro_batch = local_share(trial, self.local or Local())
        return self.throughput.rate(trial, images, micro_batch)


def price_on(cluster: Cluster, throughput: Throughput | None = None) -> Price:
    """The price on `cluster`. `throughput` has the measurements of trials, if there are any."""
    basis = "measured for encoding on an H200" if cluster.device == "cuda" else "an assumption"
    if cluster.utilisation is not None:
        basis = f"{cluster.utilisation:.0%} of the peak, by the cluster's setting `utilisation`"
    return Price(
        cluster.sustained_flops, cluster.price_per_gpu_hour, basis,
        throughput or throughput_on(cluster),
        relative_speeds={name: cluster.relative_speed(name) for name in RELATIVE_PEAKS},
    )  # fmt: skip


def price_without_cluster(
    sweep: Sweep, home: Home, local: Local, tflops: float | None = None
) -> Price:
    """`tflops` TFLOP/s for all, if given. Else the throughput of this machine if `home` has a
    measurement of any size of `sweep`; else an H100 with assumed throughput.
    """
    if tflops is not None:
        return Price(tflops * 1e12, basis="set with --tflops")
    price = local_price(home, local)
    if price is not None and any(price.rate(t).basis == MEASURED for t in sweep.trials):
        return price
    return price_on(_H100)


def local_price(home: Home, local: Local) -> Price | None:
    """The price on this machine; None if `home` has no measurement of it."""
    throughput = local_throughput(home, local)
    if throughput is None or throughput.peak_flops is None:
        return None
    share = CPU_SHARE if local.device == "cpu" else ENCODING_SHARES["fp16"]
    return Price(share * throughput.peak_flops, None, "an assumption", throughput, local)


def plan_rows(
    sweep: Sweep, views: list[View], price: Price, cluster: Cluster | None = None
) -> list[dict[str, Any]]:
    """One JSON row per trial: its config, cost, resources and state."""
    states = {view.name: view.state for view in views if view.kind == "trial"}
    return [
        {
            "trial": trial.name,
            **trial_facts(trial),
            "learning_rate": trial.optimiser.learning_rate,
            "state": states[trial.name],
            **ledger,
            **_cost_columns(trial, ledger["train_flops"], price, cluster),
        }
        for trial in sweep.trials
        for ledger in (trial_ledger(trial),)
    ]


def _cost_columns(
    trial: Trial, flops: int, price: Price, cluster: Cluster | None
) -> dict[str, Any]:
    """GPU-hours of a trial and the throughput that they follow from. With `cluster` also its
    resources; `hours` is then the run time of all its jobs, without queueing.
    """
    if cluster is None:
        return _throughput_columns(price.rate(trial), flops)
    resources = trial_resources(trial, cluster, price.throughput)
    rate = trial_rate(trial, resources.processes, cluster, price.throughput)
    return {
        **_throughput_columns(rate, flops),
        **resources.as_dict(),
        "processes": resources.processes,
        "hours": rate.hours(flops, resources.processes),
        "price": price.money(rate.hours(flops)),
    }


def _throughput_columns(rate: Rate, flops: int) -> dict[str, Any]:
    return {
        "gpu_hours": rate.hours(flops),
        "flops_per_second": rate.flops_per_second,
        "utilisation": rate.utilisation,
        "throughput": rate.basis,
        "measured_micro_batch": rate.micro_batch,
    }


def plan_summary(
    sweep: Sweep, stages: Stages, rows: list[dict[str, Any]], price: Price
) -> dict[str, Any]:
    """The whole plan as JSON."""
    preparation = [
        {
            "stage": step.title,
            "flops": step.flops,
            "precision": step.precision,
            "gpu_hours": price.hours(step.flops, step.precision),
        }
        for step in preparation_steps(stages)
    ]
    hours = sum(row["gpu_hours"] for row in [*preparation, *rows])
    return {
        "sweep": sweep.name,
        "sustained_flops_per_second": price.sustained_flops,
        "gpu_hours": hours,
        "price": price.money(hours),
        "before": preparation,
        "trials": rows,
        "imported": [{"model": model.name, **model_ledger(model)} for model in sweep.imported],
    }


def format_resources(row: dict[str, Any]) -> list[str]:
    """GPUs, micro-batch size, wall time of a job and total hours, as text for a table."""
    if "processes" not in row:
        return []
    nodes = f"{row['nodes']} x " if row["nodes"] > 1 else ""
    micro_batch_size = str(row["micro_batch_size"] or row["batch_size"] // row["processes"])
    return [
        f"{nodes}{row['processes_per_node']}", micro_batch_size, f"{row['minutes'] / 60:.3g} h",
        format_duration(3600 * row["hours"]),
    ]  # fmt: skip


def format_throughput(row: dict[str, Any]) -> str:
    """The share of the peak that a trial's GPU-hours assume, and where it is from."""
    if row["utilisation"] is None:
        return str(row["throughput"])
    other = row["measured_micro_batch"]
    share = format_share(row["utilisation"])
    return f"{share} {row['throughput']}" + (f" at {other}" if other else "")


def format_share(share: float) -> str:
    """A share of the peak in percent, with two digits if it is below 10 %."""
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


class PreparationStep(NamedTuple):
    """A stage that runs before the trials."""

    title: str
    flops: int
    precision: Precision
    resources: list[str]  # as text for a table


def preparation_steps(stages: Stages, cluster: Cluster | None = None) -> list[PreparationStep]:
    """The cost of each stage that runs before the trials."""
    steps = []
    for stage in of_kind(stages, TOKENIZER, TOKENS):
        step = _PREPARATION_COSTS[stage.kind.name](stage, cluster)
        if step is not None:
            steps.append(step)
    return steps


def _training_cost(stage: Stage, cluster: Cluster | None) -> PreparationStep | None:
    t = stage.config
    if stage.provided or not isinstance(t, TrainedTokenizer):
        return None
    flops, resource_columns = tokenizer_train_flops(t, t.steps), [""] * 4
    if cluster is not None:
        resources = tokenizer_resources(t, cluster)
        hours = job_hours(flops, resources.processes, cluster, t.precision)
        row = {**resources.as_dict(), "processes": resources.processes, "hours": hours}
        resource_columns = format_resources({**row, "batch_size": t.batch_size})
    return PreparationStep(stage.title, flops, t.precision, resource_columns)


def _encoding_cost(stage: Stage, cluster: Cluster | None) -> PreparationStep | None:
    """Of the training images only: the held-out images are few."""
    t, data, split = stage.config.tokenizer, stage.config.data, stage.config.split
    if split != "train" or data.train_images is None:
        return None
    crops = data.views("train")
    flops = data.train_images * crops * encoding_flops(t)
    resource_columns = [""] * 4
    if cluster is not None:
        parts = encoding_parts(t, data, data.train_images, cluster)
        hours = job_hours(flops, parts, cluster, t.encode_precision)
        resource_columns = [f"{parts} jobs", "", "", format_duration(3600 * hours)]
    return PreparationStep(f"tokens {data.name}", flops, t.encode_precision, resource_columns)


_PREPARATION_COSTS = {"tokenizer": _training_cost, "tokens": _encoding_cost}
