"""Train one VAR on cached tokens: everything a trial touches comes in by argument.

Shapes: B images, L tokens, D depth, Z code channels.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from var_scaling.accounting import total, var_training_flops
from var_scaling.config import Trial
from var_scaling.data.order import batch_rows
from var_scaling.evaluation.likelihood import evaluate
from var_scaling.models.var import VAR, drop_path_factors
from var_scaling.randomness import seed_for
from var_scaling.results import Line
from var_scaling.tokenizer.cache import TokenCache
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training import checkpoint
from var_scaling.training.loop import (
    Interrupted,
    Stats,
    Stopwatch,
    Window,
    descend,
    log_steps,
    refuse_non_finite,
    updates,
)
from var_scaling.training.optim import adamw, set_rates

Log = Callable[[str, int, Line], None]


def train(
    trial: Trial,
    quantizer: Quantizer,
    training: TokenCache,
    held_out: TokenCache,
    folder: Path,
    log: Log,
    save_every: float,
    stop: Callable[[], bool],
) -> VAR:
    """The trained model. Resumes bitwise; raises Diverged, or Interrupted if `stop` asks."""
    model = VAR(trial.model, trial.tokenizer, trial.data.classes, trial.seed)
    optimizer = adamw(model, trial.optimiser)
    state = checkpoint.latest(folder) or {"step": 0, "seconds": 0.0, "window": None}
    if state["step"]:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    window, watch = Window(state["window"]), Stopwatch(state["seconds"], save_every)
    logged, evaluated = log_steps(trial.steps), frozenset(trial.evaluation_steps)

    def update(step: int) -> Stats:
        set_rates(optimizer, trial.optimiser, step, trial.steps)
        loss = batch_loss(trial, model, quantizer, training, step)
        norm = descend(loss, optimizer, model.parameters(), trial.optimiser.clip)
        return {"loss": loss.detach(), "grad_norm": norm}

    def save(done: int) -> None:
        weights, moments = model.state_dict(), optimizer.state_dict()
        progress = {"seconds": watch.lap(), "window": window.sums}
        checkpoint.save(folder, done, {"model": weights, "optimizer": moments, **progress})
        watch.saved()

    for done, stats in updates(update, state["step"], trial.steps):
        window.add(stats)
        if done in logged:
            rate = {"learning_rate": optimizer.param_groups[0]["lr"]}
            log("train", done, {**window.take(), **rate, **progress_of(trial, done, watch.lap())})
        if done in evaluated:
            with watch.paused():
                scores = evaluate(model, quantizer, held_out)
                refuse_non_finite({"held-out loss": scores["loss"]}, done, trial.steps)
                log("validation", done, {**scores, **progress_of(trial, done, watch.lap())})
        if done < trial.steps and (watch.save_is_due() or stop()):
            save(done)
            if stop():
                raise Interrupted(f"{trial.name} stopped after step {done} of {trial.steps}")
    return model


def batch_loss(
    trial: Trial, model: VAR, quantizer: Quantizer, training: TokenCache, step: int
) -> torch.Tensor:
    """Mean cross entropy over the tokens of the global batch `step`, some labels dropped."""
    rows, epochs = batch_rows(training.images, trial.batch, trial.seed, step)
    ids_BL, labels_B = training.batch(rows, epochs)
    dropped_B = torch.rand(trial.batch, generator=_generator(trial, "label drop", step))
    labels_B = labels_B.where(dropped_B >= trial.label_drop, torch.tensor(trial.data.classes))
    with torch.no_grad():
        shown_BLZ = quantizer.teacher_input(ids_BL)
    keep_D2B = drop_path_factors(trial.model, trial.batch, _generator(trial, "drop path", step))
    logits_BLV = model(labels_B, shown_BLZ, keep_D2B)
    return F.cross_entropy(logits_BLV.flatten(0, 1), ids_BL.flatten())


def progress_of(trial: Trial, done: int, seconds: float) -> Line:
    """How far a trial is after `done` steps, in the units that a law or a budget is stated in."""
    images = done * trial.batch
    flops = total(var_training_flops(trial.model, trial.tokenizer))
    return {
        "images_seen": images,
        "tokens_seen": images * trial.tokenizer.pyramid.length,
        "train_flops": images * flops,
        "seconds": seconds,
        "images_per_second": images / seconds if seconds > 0 else 0.0,
        "flops_per_second": images * flops / seconds if seconds > 0 else 0.0,
    }


def _generator(trial: Trial, purpose: str, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(trial.seed, purpose, step))
