"""The cost of a sweep as a table."""

from typing import Any

from rich.table import Table

from pipelines.cli.terminal.console import coloured, format_number, new_table
from pipelines.planning.cost import (
    Price,
    format_resources,
    format_throughput,
    preparation_steps,
)
from pipelines.stages.graph import Stages, of_kind
from pipelines.stages.registry import TOKENIZER
from pipelines.workspace.settings import Cluster
from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import tokenizer_parameters
from var_scaling.config import ImportedTokenizer
from var_scaling.experiment import Sweep
from var_scaling.experiment.ledger import model_ledger


def _format_amount(number: float | None) -> str:
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
    """The table of a sweep's stages; with `cluster`, also the resources and price of each."""
    money = ["price"] if price.per_gpu_hour is not None else []
    job_columns = ["GPUs", "micro-batch", "a job", "hours", *money] if cluster is not None else []
    count_columns = [] if job_columns else ["N total", "tokens"]
    of_peak = ["of peak"] if price.throughput is not None else []
    caption = f"{_tokenizers(stages)}\n{_basis_of_hours(price)}; without evaluation"
    if job_columns:
        caption += (
            "\nmicro-batch: images per pass of a GPU, from an estimate of its memory; a job: wall "
            "time of one job, which is then queued again; hours: of training, without queueing"
        )
    table = new_table(
        "trial", "depth", "width", "N blocks", *count_columns, "FLOPs", *of_peak, "GPU-hours",
        *job_columns,
        "batch", "steps", "rate", "state", title=f"{sweep.name}: {sweep.question}", caption=caption,
    )  # fmt: skip
    blank = [""] * (3 + len(count_columns))

    def cost(flops: int, hours: float, resources: list[str], share: str = "") -> list[str]:
        price_cell = [_format_amount(price.money(hours))] if money else []
        job_cells = resources + price_cell if job_columns else []
        shares = [share] if of_peak else []
        return [format_number(flops), *shares, _format_amount(hours), *job_cells]

    total_flops, total_hours = 0, 0.0
    for name, flops, precision, resources in preparation_steps(stages, cluster):
        hours = price.hours(flops, precision)
        table.add_row(name, *blank, *cost(flops, hours, resources), *[""] * 4)
        total_flops, total_hours = total_flops + flops, total_hours + hours
    table.add_section()
    for row in rows:
        flops, hours = row["train_flops"], row["gpu_hours"]
        total_flops, total_hours = total_flops + flops, total_hours + hours
        counts = [format_number(row["params_total"]), format_number(row["tokens_seen"])]
        if job_columns:
            counts = []
        table.add_row(
            row["trial"], str(row["depth"]), str(row["width"]), format_number(row["params_blocks"]),
            *counts, *cost(flops, hours, format_resources(row), format_throughput(row)),
            str(row["batch_size"]), format_number(row["steps"]), f"{row['learning_rate']:.2g}",
            coloured(row["state"]),
        )  # fmt: skip
    for model in sweep.imported:
        ledger = model_ledger(model)
        counts = [] if job_columns else [format_number(ledger["params_total"]), ""]
        table.add_row(
            model.name, str(model.model.depth), str(model.model.width),
            format_number(ledger["params_blocks"]), *counts,
            *[""] * (5 + len(of_peak) + len(job_columns)), "imported",
        )  # fmt: skip
    table.add_section()
    table.add_row("all", *blank, *cost(total_flops, total_hours, [""] * 4), *[""] * 4)
    return table


def _basis_of_hours(price: Price) -> str:
    """What the GPU-hours of the table follow from."""
    unit = "GPU" if price.local is None else "process"
    sustained = f"{format_number(price.sustained_flops)}FLOP/s sustained per {unit}: {price.basis}"
    if price.throughput is None or price.throughput.sustained_flops is not None:
        return f"GPU-hours at {sustained}"
    peak = f"{format_number(price.throughput.peak_flops or 0)}FLOP/s"
    device = f"one GPU with a peak of {peak}"
    if price.local is not None:
        device = f"one process of this machine, whose matrix products reach {peak}"
    return (
        f"GPU-hours of {device}. of peak: model FLOP/s of a training step, measured by "
        "`var-scaling benchmark`, or assumed by width; measured at N: with micro-batches of N. "
        f"Tokenizers and tokens at {sustained}. Rates of half precision; those of fp32 and TF32 "
        "are lower"
    )


def _tokenizers(stages: Stages) -> str:
    lines = []
    for t in (stage.config for stage in of_kind(stages, TOKENIZER)):
        sides = ", ".join(map(str, t.pyramid.patch_nums))
        origin = (
            f"imported, SHA-256 {t.sha256[:12]}…"
            if isinstance(t, ImportedTokenizer)
            else f"{t.steps:,} steps on {t.data.name}"
        )
        lines.append(
            f"tokenizer {t.name}: {total(tokenizer_parameters(t)):,} parameters, "
            f"{t.codebook_size:,} codes, scales {sides} = {t.pyramid.length:,} tokens an image, "
            f"{origin}"
        )
    return "\n".join(lines)
