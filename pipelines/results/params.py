"""Names, params and tags of MLflow runs."""

import math
from pathlib import Path
from typing import Any

from pipelines.results.table import schedule_class
from pipelines.workspace.provenance import attempts
from var_scaling.config import ImportedTokenizer, SomeTokenizer
from var_scaling.experiment import ImportedModel, Sweep, Trial
from var_scaling.experiment.ledger import model_ledger, trial_ledger


def run_name(trial: Trial) -> str:
    """The trial's name with its size, by which runs are compared in MLflow."""
    return f"{trial.name} N={trial_ledger(trial)['params_blocks']:.2g}"


def trial_facts(trial: Trial) -> dict[str, Any]:
    """The fields in which the trials of a sweep differ, besides the name."""
    return {
        "family": trial.family.name,
        "depth": trial.model.depth,
        "width": trial.model.width,
        "seed": trial.seed,
        "batch_size": trial.batch_size,
        "steps": trial.steps,
    }


def trial_params(sweep: Sweep, trial: Trial) -> dict[str, Any]:
    """Params of a trial. Sizes are also given as log10, because MLflow's plots have linear axes."""
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
    """Params of an imported model: its shape and the hash of its file."""
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
    """Commit, Slurm job and node of the latest attempt, and the number of attempts."""
    recorded = attempts(folder)
    last = recorded[-1] if recorded else {}
    job = {"slurm_job_id": last.get("job"), "node": last.get("node")}
    # There is no commit if the code ran outside a git repository.
    tags = {"commit": last.get("commit") or "unknown", "attempts": len(recorded), **job}
    return {name: str(value) for name, value in tags.items() if value}


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
    # Only the weights of the loss terms.
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
