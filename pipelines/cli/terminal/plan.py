"""What a sweep will cost, as a table."""

from typing import Any

from rich.table import Table

from pipelines.cli.terminal.console import coloured, new_table, short
from pipelines.planning.cost import Price, preparation, resources_shown
from pipelines.stages.graph import Stages, of_kind
from pipelines.stages.registry import TOKENIZER
from pipelines.workspace.settings import Cluster
from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import tokenizer_parameters
from var_scaling.config import ImportedTokenizer
from var_scaling.experiment import Sweep
from var_scaling.experiment.ledger import model_ledger


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
            *counts, *cost(flops, resources_shown(row)), str(row["batch_size"]),
            short(row["steps"]),            f"{row['learning_rate']:.2g}", coloured(row["state"]),
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
