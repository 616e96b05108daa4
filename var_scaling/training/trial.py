"""Train one model on cached tokens: everything a trial touches comes in by argument.

Shapes: B images, L tokens.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from var_scaling.accounting import total
from var_scaling.data.order import batch_rows
from var_scaling.evaluation.likelihood import LABELS, evaluate, evaluation_flops
from var_scaling.experiment.trial import Trial
from var_scaling.metrics import Line
from var_scaling.models.base import Batch, StepDraws
from var_scaling.tokenizer.cache import TokenCache, latent_statistics
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training.average import WeightAverage
from var_scaling.training.checkpoint import State, name_of
from var_scaling.training.loop import (
    Interrupted,
    Journal,
    Log,
    PollSignal,
    Signal,
    Stats,
    log_steps,
    refuse_non_finite,
    updates,
)
from var_scaling.training.optim import ScheduledOptimizer, precision_context
from var_scaling.training.world import World, exchanging


class Trained(NamedTuple):
    """A model, and where its weights are an average the last ones too."""

    model: nn.Module
    raw: nn.Module | None = None


def train(
    trial: Trial,
    quantizer: Quantizer,
    training: TokenCache,
    held_out: TokenCache,
    folder: Path,
    log: Log,
    save_every: float,
    poll_signal: PollSignal,
    world: World,
    kept: Path | None = None,
    start: Path | None = None,
) -> Trained:
    """The trained model. Resumes bitwise.

    The checkpoints of `trial.keep_steps` are written into the folder `kept`; `start` is the file
    with that of `trial.start`.

    Raises Diverged, Interrupted if `poll_signal` returns STOP, ValueError if the
    batch does not divide among the processes.
    """
    model = trial.family.build(trial.spec, trial.seed)
    trial.family.normalize(model, latent_statistics(training.manifest))
    model = model.to(world.device)
    average = None
    if trial.weight_average > 0:
        spare = trial.family.build(trial.spec, trial.seed).to(world.device)
        average = WeightAverage(model, spare, trial.weight_average)
    trained = Trained(model) if average is None else Trained(average.average, model)
    quantizer = quantizer.to(world.device)
    optimizer = ScheduledOptimizer(model, trial.optimiser, trial.steps, trial.precision)
    net = world.wrap(model)
    micro_batches, share = world.micro_batches(trial.batch_size), trial.batch_size // world.size
    journal = Journal(folder, log, partial(progress_of, trial), save_every, world, start)
    if journal.resumed:
        model.load_state_dict(journal.resumed["model"])
        optimizer.restore(journal.resumed["optimizer"])
        if average is not None:
            average.average.load_state_dict(journal.resumed["average"])
    logged, evaluated = log_steps(trial.steps), frozenset(trial.evaluation_steps)

    def update(step: int) -> Stats:
        losses = []
        for rows in micro_batches:
            with exchanging(net, now=rows == micro_batches[-1]):
                with precision_context(trial.precision, world.device):
                    loss = batch_loss(trial, net, quantizer, training, step, rows)
                loss = loss * ((rows.stop - rows.start) / share)
                optimizer.backward(optimizer.scale(loss))
            losses.append(loss.detach())
        stats = world.means({"loss": torch.stack(losses).sum(), **optimizer.step(step)})
        if average is not None:
            average.update(step)
        return stats

    def look(done: int) -> None:
        scores = held_out_scores(trial, trained, quantizer, held_out, done, world)
        refuse_non_finite({"held-out loss": scores["loss"]}, done, trial.steps)
        journal.note("validation", done, scores)

    def state() -> State:
        averaged = {} if average is None else {"average": average.average.state_dict()}
        return {"model": model.state_dict(), "optimizer": optimizer.state(), **averaged}

    for done, stats in updates(update, journal.start, trial.steps):
        journal.window.add(stats)
        if done in logged:
            rate = {"learning_rate": optimizer.rate}
            journal.note("train", done, {**journal.window.take(), **rate})
        if done in evaluated:
            with journal.watch.paused():
                look(done)
        if done in trial.keep_steps and kept is not None:
            with journal.watch.paused():
                journal.keep(kept / name_of(done), done, state())
        signal = world.most(poll_signal(done))
        if done < trial.steps and (journal.watch.save_is_due() or signal >= Signal.CHECKPOINT):
            journal.save(done, state())
            if signal == Signal.STOP:
                raise Interrupted(f"{trial.name} stopped after step {done} of {trial.steps}")
    return trained


def held_out_scores(
    trial: Trial,
    trained: Trained,
    quantizer: Quantizer,
    held_out: TokenCache,
    done: int,
    world: World,
) -> Line:
    """What is logged of `trained` after `done` steps: a function of its weights and the tokens.

    At the end of a trial that dropped labels it is scored without the class too, and the raw
    weights of one that averages are scored besides.
    """
    at_end = done == trial.steps
    settings = LABELS if at_end and trial.class_dropout_prob > 0 else LABELS[:1]
    spent = evaluation_flops(trial.spec, held_out.images, settings)
    raw: Line = {}
    with precision_context(trial.precision, world.device):
        scores = evaluate(trial.spec, trained.model, quantizer, held_out, settings, world=world)
        if at_end and trained.raw is not None:
            found = evaluate(trial.spec, trained.raw, quantizer, held_out, world=world)
            names = trial.family.validation(trial.spec).scores
            raw = {f"{name}_raw": found[name] for name in names}
            spent += evaluation_flops(trial.spec, held_out.images, LABELS[:1])
    return {**scores, **raw, "evaluation_flops": spent}


def batch_loss(
    trial: Trial,
    model: nn.Module,
    quantizer: Quantizer,
    training: TokenCache,
    step: int,
    share: slice,
) -> torch.Tensor:
    """Mean training loss of `share` of the global batch `step`, classes dropped.

    What is drawn is drawn for the whole batch: how many processes share it changes nothing.
    """
    rows, epochs = batch_rows(training.images, trial.batch_size, trial.seed, step)
    ids_BL, labels_B = training.batch(rows[share], epochs[share])
    draws = StepDraws(trial.seed, step, trial.batch_size, share)
    generator = torch.Generator().manual_seed(draws.seed_of("label drop"))
    dropped_B = torch.rand(trial.batch_size, generator=generator)[share]
    labels_B = labels_B.where(dropped_B >= trial.class_dropout_prob, torch.tensor(trial.classes))
    device = quantizer.embedding.weight.device
    batch = Batch(ids_BL.to(device), labels_B.to(device))
    return trial.family.loss(trial.spec, model, quantizer, batch, draws)


def progress_of(trial: Trial, done: int, seconds: float) -> Line:
    """How far a trial is after `done` steps, in the units that a law or a budget is stated in."""
    images = done * trial.batch_size
    flops = total(trial.family.training_flops(trial.spec))
    return {
        "images_seen": images,
        "tokens_seen": images * trial.family.sequence_length(trial.spec),
        "train_flops": images * flops,
        "seconds": seconds,
        "images_per_second": images / seconds if seconds > 0 else 0.0,
        "flops_per_second": images * flops / seconds if seconds > 0 else 0.0,
    }
