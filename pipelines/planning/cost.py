"""The plan of a sweep: its trials, their cost, and the resources that they use."""

from dataclasses import dataclass
from typing import Any

from pipelines.execution.slurm.resources import (
    encoding_parts,
    job_hours,
    tokenizer_resources,
    trial_resources,
)
from pipelines.execution.status import View, format_duration
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
    """The cost of compute: training FLOP/s of one GPU, and the price of a GPU hour."""

    sustained_flops: float
    per_gpu_hour: float | None = None
    basis: str = "an assumption; set it with --tflops"

    def hours(self, flops: float) -> float:
        return flops / self.sustained_flops / 3600

    def money(self, flops: float) -> float | None:
        return None if self.per_gpu_hour is None else self.hours(flops) * self.per_gpu_hour


def price_on(cluster: Cluster) -> Price:
    basis = f"{cluster.utilisation:.0%} of the peak that the cluster's settings give"
    return Price(cluster.sustained_flops, cluster.price_per_gpu_hour, basis)


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
            "gpu_hours": price.hours(ledger["train_flops"]),
            **(
                {}
                if cluster is None
                else _cluster_columns(trial, ledger["train_flops"], price, cluster)
            ),
        }
        for trial in sweep.trials
        for ledger in (trial_ledger(trial),)
    ]


def _cluster_columns(trial: Trial, flops: int, price: Price, cluster: Cluster) -> dict[str, Any]:
    """The resources of a trial; `hours` is the run time of all its jobs, without queueing."""
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
    preparation = [
        {"stage": name, "flops": flops, "gpu_hours": price.hours(flops)}
        for name, flops, _ in preparation_steps(stages)
    ]
    hours = sum(row["gpu_hours"] for row in [*preparation, *rows])
    return {
        "sweep": sweep.name,
        "sustained_flops_per_second": price.sustained_flops,
        "gpu_hours": hours,
        "price": None if price.per_gpu_hour is None else hours * price.per_gpu_hour,
        "before": preparation,
        "trials": rows,
        "imported": [{"model": model.name, **model_ledger(model)} for model in sweep.imported],
    }


def format_resources(row: dict[str, Any]) -> list[str]:
    """GPUs, micro-batch size, wall time of a job and total hours, as text for a table."""
    if "processes" not in row:
        return []
    nodes = f"{row['nodes']} x " if row["nodes"] > 1 else ""
    micro_batch_size = str(row["at_once"] or row["batch_size"] // row["processes"])
    return [
        f"{nodes}{row['processes_per_node']}", micro_batch_size, f"{row['minutes'] / 60:.3g} h",
        format_duration(3600 * row["hours"]),
    ]  # fmt: skip


def preparation_steps(
    stages: Stages, cluster: Cluster | None = None
) -> list[tuple[str, int, list[str]]]:
    """(title, FLOPs, resources as text) of each stage that runs before the trials."""
    steps = []
    for stage in of_kind(stages, TOKENIZER, TOKENS):
        step = _PREPARATION_COSTS[stage.kind.name](stage, cluster)
        if step is not None:
            steps.append(step)
    return steps


def _training_cost(stage: Stage, cluster: Cluster | None) -> tuple[str, int, list[str]] | None:
    t = stage.config
    if stage.provided or not isinstance(t, TrainedTokenizer):
        return None
    flops, resource_columns = tokenizer_train_flops(t, t.steps), [""] * 4
    if cluster is not None:
        resources = tokenizer_resources(t, cluster)
        hours = job_hours(flops, resources.processes, cluster)
        row = {**resources.as_dict(), "processes": resources.processes, "hours": hours}
        resource_columns = format_resources({**row, "batch_size": t.batch_size})
    return stage.title, flops, resource_columns


def _encoding_cost(stage: Stage, cluster: Cluster | None) -> tuple[str, int, list[str]] | None:
    """Of the training images only: the held-out images are few."""
    t, data, split = stage.config.tokenizer, stage.config.data, stage.config.split
    if split != "train" or data.train_images is None:
        return None
    crops = data.views("train")
    flops = data.train_images * crops * encoding_flops(t)
    resource_columns = [""] * 4
    if cluster is not None:
        parts = encoding_parts(t, data, data.train_images, cluster)
        hours = job_hours(flops, parts, cluster)
        resource_columns = [f"{parts} jobs", "", "", format_duration(3600 * hours)]
    return f"tokens {data.name}", flops, resource_columns


_PREPARATION_COSTS = {"tokenizer": _training_cost, "tokens": _encoding_cost}
