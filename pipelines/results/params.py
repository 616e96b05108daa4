"""What MLflow's comparison page knows of a run before it starts: its name and its params."""

import math
from pathlib import Path
from typing import Any

from pipelines.results.table import schedule_class
from pipelines.workspace.provenance import attempts
from var_scaling.config import ImportedTokenizer, SomeTokenizer
from var_scaling.experiment import ImportedModel, Sweep, Trial
from var_scaling.experiment.ledger import model_ledger, trial_ledger


def run_name(trial: Trial) -> str:
    """The trial by its name and size; the size is what the comparison page is read for."""
    return f"{trial.name} N={trial_ledger(trial)['params_blocks']:.2g}"


def trial_facts(trial: Trial) -> dict[str, Any]:
    """What tells one trial of a sweep from another, besides its name."""
    return {
        "family": trial.family.name,
        "depth": trial.model.depth,
        "width": trial.model.width,
        "seed": trial.seed,
        "batch_size": trial.batch_size,
        "steps": trial.steps,
    }


def trial_params(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    """What the comparison page plots by; its axes are linear, so sizes come as log10 too."""
    ledger = trial_ledger(trial)
    return {
        "sweep": sweep.name,
        **trial_facts(trial),
        "learning_rate": f"{trial.optimiser.learning_rate:.4g}",
        "tokenizer": trial.tokenizer.name,
        "data": trial.data.name,
        "params_total": ledger["params_total"],
        "params_blocks": ledger["params_blocks"],
        "train_flops": ledger["train_flops"],
        "tokens_seen": ledger["tokens_seen"],
        "schedule": schedule_class(trial.optimiser),
        "log10_N": round(math.log10(ledger["params_blocks"]), 3),
        "log10_C": round(math.log10(ledger["train_flops"]), 3),
        "log10_D": round(math.log10(ledger["tokens_seen"]), 3),
    }


def imported_params(model: ImportedModel) -> dict[str, Any]:
    """What is known of a model that was trained elsewhere: its shape and its file."""
    ledger = model_ledger(model)
    return {
        "family": model.family.name,
        "depth": model.model.depth,
        "width": model.model.width,
        "tokenizer": model.tokenizer.name,
        "params_total": ledger["params_total"],
        "params_blocks": ledger["params_blocks"],
        "sha256": model.sha256,
        "log10_N": round(math.log10(ledger["params_blocks"]), 3),
    }


def attempt_tags(folder: Path) -> dict[str, str]:
    """By which code, in which attempt, job and on which node the latest numbers came about."""
    known = attempts(folder)
    last = known[-1] if known else {}
    where = {"slurm_job_id": last.get("job"), "node": last.get("node")}
    said = {"commit": last.get("commit") or "unknown", "attempts": len(known), **where}
    return {name: str(value) for name, value in said.items() if value}


def tokenizer_params(t: SomeTokenizer) -> dict[str, Any]:
    shape = {
        "kind": t.kind,
        "side": t.side,
        "codebook_size": t.codebook_size,
        "code_channels": t.code_channels,
        "channels": t.channels,
        "pyramid": t.pyramid.patch_nums,
        "tokens_per_image": t.pyramid.length,
    }
    if isinstance(t, ImportedTokenizer):
        return {**shape, "sha256": t.sha256}
    losses = t.losses.model_dump(exclude={"critic", "perceptual_sha256"})
    return {
        **shape,
        "data": t.data.name,
        "batch_size": t.batch_size,
        "steps": t.steps,
        "precision": t.precision,
        "seed": t.seed,
        **{f"loss_{name}": weight for name, weight in losses.items()},
    }
