"""What a sweep consists of and what it will cost, before anything is spent."""

from typing import Any

from rich.table import Table

from pipelines.collect import View
from pipelines.page import trial_facts
from pipelines.screen import coloured, new_table, short
from var_scaling.accounting import total
from var_scaling.accounting.ledger import model_ledger, trial_ledger
from var_scaling.accounting.tokenizer import (
    encoding_flops,
    tokenizer_parameters,
    tokenizer_train_flops,
)
from var_scaling.config import ImportedTokenizer, Sweep
from var_scaling.datasets import ImageFiles


def plan_rows(sweep: Sweep, views: list[View], sustained: float) -> list[dict[str, Any]]:
    """One plain row a trial: what it is, what it costs, whether it is done.

    `sustained`: FLOP/s of one GPU while it trains, by which FLOPs become hours.
    """
    states = {view.name: view.state for view in views if view.kind == "trial"}
    return [
        {
            "trial": trial.name,
            **trial_facts(trial),
            "learning_rate": trial.optimiser.learning_rate,
            "state": states[trial.name],
            **ledger,
            "gpu_hours": _hours(ledger["train_flops"], sustained),
        }
        for trial in sweep.trials
        for ledger in (trial_ledger(trial),)
    ]


def plan_summary(sweep: Sweep, rows: list[dict[str, Any]], sustained: float) -> dict[str, Any]:
    """The whole plan as JSON."""
    before = [
        {"stage": name, "flops": flops, "gpu_hours": _hours(flops, sustained)}
        for name, flops in preparation(sweep)
    ]
    hours = sum(one["gpu_hours"] for one in [*before, *rows])
    return {
        "sweep": sweep.name,
        "sustained_flops_per_second": sustained,
        "gpu_hours": hours,
        "before": before,
        "trials": rows,
        "imported": [{"model": one.name, **model_ledger(one)} for one in sweep.imported],
    }


def _hours(flops: float, sustained: float) -> float:
    return flops / sustained / 3600


def plan_table(sweep: Sweep, rows: list[dict[str, Any]], sustained: float) -> Table:
    """`sustained` as in `plan_rows`."""

    def hours(flops: float) -> str:
        spent = _hours(flops, sustained)
        if spent < 0.01:
            return "<0.01"
        return f"{spent:.2g}" if spent < 10 else f"{spent:,.0f}"

    table = new_table(
        "trial", "depth", "width", "N blocks", "N total", "tokens", "FLOPs", "GPU-hours", "batch",
        "steps", "rate", "state", title=f"{sweep.name}: {sweep.question}",
        caption=_tokenizers(sweep) + f"\nGPU-hours at {short(sustained)}FLOP/s a GPU, sustained: "
        "an assumption, to be set with --tflops; evaluation not counted",
    )  # fmt: skip
    whole = 0
    for name, flops in preparation(sweep):
        table.add_row(name, *[""] * 5, short(flops), hours(flops), *[""] * 4)
        whole += flops
    table.add_section()
    for row in rows:
        flops = row["train_flops"]
        whole += flops
        table.add_row(
            row["trial"], str(row["depth"]), str(row["width"]), short(row["params_blocks"]),
            short(row["params_total"]), short(row["tokens_seen"]), short(flops), hours(flops),
            str(row["batch"]), short(row["steps"]), f"{row['learning_rate']:.2g}",
            coloured(row["state"]),
        )  # fmt: skip
    for model in sweep.imported:
        known = model_ledger(model)
        table.add_row(
            model.name, str(model.model.depth), str(model.model.width),
            short(known["params_blocks"]), short(known["params_total"]), *[""] * 6, "imported",
        )  # fmt: skip
    table.add_section()
    table.add_row("all", *[""] * 5, short(whole), hours(whole), *[""] * 4)
    return table


def preparation(sweep: Sweep) -> list[tuple[str, int]]:
    """What stands before the trials, and its FLOPs: tokenizers to train, images to encode."""
    steps = [
        (f"tokenizer {t.name}", tokenizer_train_flops(t, t.steps))
        for t in sweep.tokenizers
        if not isinstance(t, ImportedTokenizer)
    ]
    for t, data in sweep.token_sets:
        if data.train_images is not None:
            crops = max(1, data.crops) if isinstance(data, ImageFiles) else 1
            flops = data.train_images * crops * encoding_flops(t)
            steps.append((f"tokens {data.name}", flops))
    return steps


def _tokenizers(sweep: Sweep) -> str:
    lines = []
    for t in sweep.tokenizers:
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
