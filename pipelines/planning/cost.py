"""What a sweep consists of and what it will cost, before anything is spent."""

from dataclasses import dataclass
from typing import Any

from pipelines.execution.slurm.resources import (
    encoding_parts,
    job_hours,
    tokenizer_resources,
    trial_resources,
)
from pipelines.execution.status import View, since
from pipelines.results.params import trial_facts
from pipelines.stages.graph import Stage, Stages, of_kind
from pipelines.stages.registry import TOKENIZER, TOKENS
from pipelines.workspace.settings import Cluster
from var_scaling.accounting.tokenizer import (
    encoding_flops,
    tokenizer_train_flops,
)
from var_scaling.config import TrainedTokenizer
from var_scaling.experiment import Sweep, Trial
from var_scaling.experiment.ledger import model_ledger, trial_ledger


@dataclass(frozen=True)
class Price:
    """What a FLOP costs: FLOP/s of one GPU while it trains, and money for an hour of it."""

    sustained: float
    per_gpu_hour: float | None = None
    assumed: str = "an assumption, to be set with --tflops"

    def hours(self, flops: float) -> float:
        return flops / self.sustained / 3600

    def money(self, flops: float) -> float | None:
        return None if self.per_gpu_hour is None else self.hours(flops) * self.per_gpu_hour


def price_on(cluster: Cluster) -> Price:
    assumed = f"{cluster.utilisation:.0%} of the cluster's peak, as its settings say"
    return Price(cluster.sustained, cluster.price_per_gpu_hour, assumed)


def plan_rows(
    sweep: Sweep, views: list[View], price: Price, cluster: Cluster | None = None
) -> list[dict[str, Any]]:
    """One plain row a trial: what it is, what it costs and takes, whether it is done."""
    states = {view.name: view.state for view in views if view.kind == "trial"}
    return [
        {
            "trial": trial.name,
            **trial_facts(trial),
            "learning_rate": trial.optimiser.learning_rate,
            "state": states[trial.name],
            **ledger,
            "gpu_hours": price.hours(ledger["train_flops"]),
            **({} if cluster is None else _asks(trial, ledger["train_flops"], price, cluster)),
        }
        for trial in sweep.trials
        for ledger in (trial_ledger(trial),)
    ]


def _asks(trial: Trial, flops: int, price: Price, cluster: Cluster) -> dict[str, Any]:
    """What a trial takes of a cluster; hours are those of its jobs together, queueing apart."""
    resources = trial_resources(trial, cluster)
    return {
        **resources.as_dict(),
        "processes": resources.processes,
        "hours": job_hours(flops, resources.processes, cluster),
        "price": price.money(flops),
    }


def plan_summary(
    sweep: Sweep, stages: Stages, rows: list[dict[str, Any]], price: Price
) -> dict[str, Any]:
    """The whole plan as JSON."""
    before = [
        {"stage": name, "flops": flops, "gpu_hours": price.hours(flops)}
        for name, flops, _ in preparation(stages)
    ]
    hours = sum(one["gpu_hours"] for one in [*before, *rows])
    return {
        "sweep": sweep.name,
        "sustained_flops_per_second": price.sustained,
        "gpu_hours": hours,
        "price": None if price.per_gpu_hour is None else hours * price.per_gpu_hour,
        "before": before,
        "trials": rows,
        "imported": [{"model": one.name, **model_ledger(one)} for one in sweep.imported],
    }


def resources_shown(row: dict[str, Any]) -> list[str]:
    """GPUs, images at once, wall time of a job and hours in all, to be shown."""
    if "processes" not in row:
        return []
    nodes = f"{row['nodes']} x " if row["nodes"] > 1 else ""
    micro_batch_size = str(row["at_once"] or row["batch_size"] // row["processes"])
    return [
        f"{nodes}{row['processes_per_node']}", micro_batch_size, f"{row['minutes'] / 60:.3g} h",
        since(3600 * row["hours"]),
    ]  # fmt: skip


def preparation(stages: Stages, cluster: Cluster | None = None) -> list[tuple[str, int, list[str]]]:
    """What stands before the trials, its FLOPs, and what it takes of a cluster, to be shown."""
    steps = []
    for stage in of_kind(stages, TOKENIZER, TOKENS):
        known = _PREPARES[stage.kind.name](stage, cluster)
        if known is not None:
            steps.append(known)
    return steps


def _training_cost(stage: Stage, cluster: Cluster | None) -> tuple[str, int, list[str]] | None:
    t = stage.config
    if stage.provided or not isinstance(t, TrainedTokenizer):
        return None
    flops, asked = tokenizer_train_flops(t, t.steps), [""] * 4
    if cluster is not None:
        resources = tokenizer_resources(t, cluster)
        hours = job_hours(flops, resources.processes, cluster)
        known = {**resources.as_dict(), "processes": resources.processes, "hours": hours}
        asked = resources_shown({**known, "batch_size": t.batch_size})
    return stage.title, flops, asked


def _encoding_cost(stage: Stage, cluster: Cluster | None) -> tuple[str, int, list[str]] | None:
    """Of the training images: those held out are few."""
    t, data, split = stage.config.tokenizer, stage.config.data, stage.config.split
    if split != "train" or data.train_images is None:
        return None
    crops = data.views("train")
    flops, asked = data.train_images * crops * encoding_flops(t), [""] * 4
    if cluster is not None:
        parts = encoding_parts(t, data, data.train_images, cluster)
        asked = [f"{parts} jobs", "", "", since(3600 * job_hours(flops, parts, cluster))]
    return f"tokens {data.name}", flops, asked


_PREPARES = {"tokenizer": _training_cost, "tokens": _encoding_cost}
