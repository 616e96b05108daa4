"""What a sweep consists of and what it will cost, before anything is spent."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipelines.collect import View, since
from pipelines.page import trial_facts
from pipelines.resources import (
    encoding_parts,
    job_hours,
    tokenizer_resources,
    trial_resources,
)
from pipelines.screen import coloured, new_table, short
from pipelines.settings import Cluster
from pipelines.stages.graph import Stage, Stages, of_kind
from pipelines.stages.registry import TOKENIZER, TOKENS
from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import (
    encoding_flops,
    tokenizer_parameters,
    tokenizer_train_flops,
)
from var_scaling.config import ImportedTokenizer, TrainedTokenizer
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


def _few(number: float | None) -> str:
    if number is None:
        return ""
    if number < 0.01:
        return "<0.01"
    return f"{number:.2g}" if number < 10 else f"{number:,.0f}"


def plan_table(
    sweep: Sweep,
    stages: Stages,
    rows: list[dict[str, Any]],
    price: Price,
    cluster: Cluster | None = None,
) -> Table:
    """The rows as a person reads them; for a cluster what each takes of it."""
    money = ["price"] if price.per_gpu_hour is not None else []
    there = ["GPUs", "at once", "a job", "hours", *money] if cluster is not None else []
    more = [] if there else ["N total", "tokens"]
    caption = (
        _tokenizers(stages) + f"\nGPU-hours at {short(price.sustained)}FLOP/s a GPU, sustained: "
        f"{price.assumed}; evaluation not counted"
    )
    if there:
        caption += (
            "\nat once: images in one pass of a GPU, by an estimate of its memory; a job: its wall "
            "time, after which it queues up again; hours: of training, queueing apart"
        )
    table = new_table(
        "trial", "depth", "width", "N blocks", *more, "FLOPs", "GPU-hours", *there,
        "batch", "steps", "rate", "state", title=f"{sweep.name}: {sweep.question}", caption=caption,
    )  # fmt: skip
    blank = [""] * (3 + len(more))

    def cost(flops: int, asks: list[str]) -> list[str]:
        paid = [_few(price.money(flops))] if money else []
        return [short(flops), _few(price.hours(flops)), *(asks + paid if there else [])]

    whole = 0
    for name, flops, asked in preparation(stages, cluster):
        table.add_row(name, *blank, *cost(flops, asked), *[""] * 4)
        whole += flops
    table.add_section()
    for row in rows:
        flops = row["train_flops"]
        whole += flops
        counts = [] if there else [short(row["params_total"]), short(row["tokens_seen"])]
        table.add_row(
            row["trial"], str(row["depth"]), str(row["width"]), short(row["params_blocks"]),
            *counts, *cost(flops, _shown(row)), str(row["batch"]), short(row["steps"]),
            f"{row['learning_rate']:.2g}", coloured(row["state"]),
        )  # fmt: skip
    for model in sweep.imported:
        known = model_ledger(model)
        counts = [] if there else [short(known["params_total"]), ""]
        table.add_row(
            model.name, str(model.model.depth), str(model.model.width),
            short(known["params_blocks"]), *counts, *[""] * (5 + len(there)), "imported",
        )  # fmt: skip
    table.add_section()
    table.add_row("all", *blank, *cost(whole, [""] * 4), *[""] * 4)
    return table


def _shown(row: dict[str, Any]) -> list[str]:
    if "processes" not in row:
        return []
    nodes = f"{row['nodes']} x " if row["nodes"] > 1 else ""
    at_once = str(row["at_once"] or row["batch"] // row["processes"])
    return [
        f"{nodes}{row['processes_per_node']}", at_once, f"{row['minutes'] / 60:.3g} h",
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
        asked = _shown({**known, "batch": t.batch})
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


def _tokenizers(stages: Stages) -> str:
    lines = []
    for t in (stage.config for stage in of_kind(stages, TOKENIZER)):
        sides = ", ".join(map(str, t.pyramid.sides))
        origin = (
            f"imported, SHA-256 {t.sha256[:12]}…"
            if isinstance(t, ImportedTokenizer)
            else f"{t.steps:,} steps on {t.data.name}"
        )
        lines.append(
            f"tokenizer {t.name}: {total(tokenizer_parameters(t)):,} parameters, "
            f"{t.codes:,} codes, scales {sides} = {t.pyramid.length:,} tokens an image, {origin}"
        )
    return "\n".join(lines)
