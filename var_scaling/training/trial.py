"""Train one model on cached tokens. All inputs and effects are arguments.

Shapes: B images, L tokens.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from var_scaling.accounting import total
from var_scaling.data.loader import in_order
from var_scaling.data.order import batch_rows
from var_scaling.evaluation.likelihood import LABELS, evaluate, evaluation_flops
from var_scaling.experiment.trial import Trial
from var_scaling.metrics import Line
from var_scaling.models.base import Batch, StepDraws
from var_scaling.tokenizer.cache import TokenCache, latent_statistics
from var_scaling.tokenizer.quantizer import Quantizer
from var_scaling.training import compilation
from var_scaling.training.average import WeightAverage
from var_scaling.training.checkpoint import State, checkpoint_name
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
from var_scaling.training.world import World, recompute_activations, sync_gradients


class TrainedModel(NamedTuple):
    """The result of a training."""

    model: nn.Module  # with averaged weights if the trial averages them
    raw: nn.Module | None = None  # with the last weights, only if `model` has averaged ones


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
    permanent_folder: Path | None = None,
    start: Path | None = None,
    compile_network: bool = False,
    on_compiled: Callable[[str | None], None] = lambda error: None,
) -> TrainedModel:
    """The trained model. Resumes bitwise from the last checkpoint in `folder`.

    The checkpoints of `trial.keep_steps` are written to `permanent_folder`. `start` is the file of
    the checkpoint that `trial.start` names. `compile_network` is for steps, not for evaluation:
    `on_compiled` gets None, or the error after which the training goes on with eager code.

    Raises Diverged, Interrupted if `poll_signal` returns STOP, ValueError if the batch is not
    divisible by the number of processes.
    """
    steps = _Steps(trial, quantizer.to(world.device), training, world)
    compiled = False
    if compile_network:  # before the clock of the journal starts
        error = steps.compile_network()
        compiled = error is None
        on_compiled(error)
    steps.wrap()
    # After a call in which all processes meet: one of them may still write a checkpoint.
    journal = Journal(folder, log, partial(progress_of, trial), save_every, world, start)
    steps.begin(journal.start, journal.resumed)

    def validate(done: int) -> None:
        with compilation.eager(compiled):
            scores = held_out_scores(trial, steps.trained, quantizer, held_out, done, world)
        refuse_non_finite({"held-out loss": scores["loss"]}, done, trial.steps)
        journal.write_line("validation", done, scores)

    logged, evaluated = log_steps(trial.steps), frozenset(trial.evaluation_steps)
    pauses = logged | evaluated | frozenset(trial.keep_steps)
    # Lines come before the checkpoint of the same step. After a kill in between, the resumed
    # training repeats the step and its line; readers keep the last one.
    for done, signal in updates(steps.update, journal, trial.steps, poll_signal, pauses):
        if done in logged:
            rate = {"learning_rate": steps.optimizer.rate}
            journal.write_line("train", done, {**journal.means.pop(), **rate})
        with journal.stopwatch.paused():
            if done in evaluated:
                validate(done)
            if done in trial.keep_steps and permanent_folder is not None:
                path = permanent_folder / checkpoint_name(done)
                journal.save_permanent(path, done, steps.state())
        # No checkpoint after the last step: the finished weights are saved instead.
        if done < trial.steps and signal >= Signal.CHECKPOINT:
            journal.save(done, steps.state())
            if signal == Signal.STOP:
                raise Interrupted(f"{trial.name} stopped after step {done} of {trial.steps}")
    return steps.trained


class _Steps:
    """The steps of a trial in this process: its model, averaged weights and optimizer."""

    def __init__(
        self, trial: Trial, quantizer: Quantizer, training: TokenCache, world: World
    ) -> None:
        self.trial, self.quantizer, self.training, self.world = trial, quantizer, training, world
        self.micro_batches = world.micro_batches(trial.batch_size)
        self.model = trial.family.build(trial.spec, trial.seed)
        # Before the average is made, which copies these statistics.
        trial.family.normalize(self.model, latent_statistics(training.manifest))
        self.model = self.model.to(world.device)
        self.average: WeightAverage | None = None
        self.trained = TrainedModel(self.model)
        if trial.weight_average > 0:
            # Its initial weights do not matter: WeightAverage overwrites them.
            averaged = trial.family.build(trial.spec, trial.seed).to(world.device)
            self.average = WeightAverage(self.model, averaged, trial.weight_average)
            self.trained = TrainedModel(averaged, self.model)
        self.optimizer = ScheduledOptimizer(
            self.model, trial.optimiser, trial.steps, trial.precision, world
        )

    def compile_network(self) -> str | None:
        """The error of a failure, after which the steps run eager code."""

        def one_pass_of_each_size() -> None:
            for rows in {rows.stop - rows.start: rows for rows in self.micro_batches}.values():
                self._pass_without_result(self.model, rows)

        # Before the model is wrapped: DistributedDataParallel calls the compiled methods.
        return compilation.compile_network(self.model, one_pass_of_each_size)

    def wrap(self) -> None:
        if self.world.recompute_activations:
            recompute_activations(self.model)
        self.net = self.world.wrap(self.model, all_used=True)

    def begin(self, start: int, checkpoint: State | None) -> None:
        """Make ready for step `start`, with the weights and the optimizer of `checkpoint`."""
        trial, world = self.trial, self.world
        if checkpoint:
            # In place: the optimizer and DistributedDataParallel refer to the same parameters.
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.restore(checkpoint["optimizer"])
            if self.average is not None:
                self.average.average.load_state_dict(checkpoint["average"])
        self.batches = _batches(trial, self.training, start, self.micro_batches, world)
        if world.size > 1 and start < trial.steps:
            # DistributedDataParallel orders its gradient buckets after its first backward pass.
            # With one before the first step, started and resumed runs sum in the same order.
            self._pass_without_result(self.net, self.micro_batches[0])

    def _pass_without_result(self, net: nn.Module, rows: slice) -> None:
        """Forward and backward of rows of the first batch. The gradients are dropped."""
        with precision_context(self.trial.precision, self.world.device):
            loss = batch_loss(self.trial, net, self.quantizer, self.training, 0, rows)
        self.optimizer.discard(loss)

    def update(self, step: int) -> Stats:
        trial, losses = self.trial, []
        rows_here = trial.batch_size // self.world.size
        for rows in self.micro_batches:
            # Gradients add up over the micro-batches; only the last one averages over processes.
            with sync_gradients(self.net, now=rows == self.micro_batches[-1]):
                with precision_context(trial.precision, self.world.device):
                    batch = next(self.batches)
                    loss = loss_of(trial, self.net, self.quantizer, batch, step, rows)
                loss = loss * ((rows.stop - rows.start) / rows_here)  # mean over all rows
                self.optimizer.backward(self.optimizer.scale(loss))
            losses.append(loss.detach())
        # The losses are already weighted by their rows, so their sum is this process's mean.
        stats = {"loss": torch.stack(losses).sum(), **self.optimizer.step(step)}
        if self.average is not None:
            self.average.update(step)
        return stats

    def state(self) -> State:
        # No generator state: all random numbers are functions of seed, purpose and step.
        averaged = {} if self.average is None else {"average": self.average.average.state_dict()}
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state(), **averaged
        }  # fmt: skip


def held_out_scores(
    trial: Trial,
    trained: TrainedModel,
    quantizer: Quantizer,
    held_out: TokenCache,
    done: int,
    world: World,
) -> Line:
    """The validation line of `trained` after `done` steps, a function of its weights and tokens.

    The last line of a trial also has the unconditional scores if it trained with class dropout,
    and the scores of the raw weights if it averages them.
    """
    # Each further setting costs another pass over the images, so they are scored once.
    at_end = done == trial.steps
    settings = LABELS if at_end and trial.class_dropout_prob > 0 else LABELS[:1]
    flops = evaluation_flops(trial.spec, held_out.images, settings)
    raw: Line = {}
    with precision_context(trial.precision, world.device):
        scores = evaluate(trial.spec, trained.model, quantizer, held_out, settings, world=world)
        if at_end and trained.raw is not None:
            raw_scores = evaluate(trial.spec, trained.raw, quantizer, held_out, world=world)
            names = trial.family.validation(trial.spec).scores
            raw = {f"{name}_raw": raw_scores[name] for name in names}
            flops += evaluation_flops(trial.spec, held_out.images, LABELS[:1])
    return {**scores, **raw, "evaluation_flops": flops}


def batch_loss(
    trial: Trial,
    model: nn.Module,
    quantizer: Quantizer,
    training: TokenCache,
    step: int,
    share: slice,
) -> Tensor:
    """Mean training loss of the rows `share` of the global batch `step`, with class dropout.

    Random numbers are drawn for the global batch, so the number of processes changes nothing.
    """
    batch = read_batch(trial, training, step, share)
    return loss_of(trial, model, quantizer, batch, step, share)


def read_batch(trial: Trial, training: TokenCache, step: int, share: slice) -> Batch:
    """The rows `share` of the global batch `step`; some classes are replaced by the null class."""
    rows, epochs = batch_rows(training.images, trial.batch_size, trial.seed, step)
    ids_BL, labels_B = training.batch(rows[share], epochs[share])
    # Classifier-free guidance needs an unconditional prediction.
    draws = _draws(trial, step, share)
    generator = torch.Generator().manual_seed(draws.seed_of("label drop"))
    dropped_B = torch.rand(trial.batch_size, generator=generator)[share]
    null_class = torch.tensor(trial.classes)  # the classes are 0 to trial.classes - 1
    labels_B = labels_B.where(dropped_B >= trial.class_dropout_prob, null_class)
    return Batch(ids_BL, labels_B, trial.family.random_numbers(trial.spec, draws))


def loss_of(
    trial: Trial, model: nn.Module, quantizer: Quantizer, batch: Batch, step: int, share: slice
) -> Tensor:
    """Mean training loss of `batch`, the rows `share` of the global batch `step`."""
    device = quantizer.embedding.weight.device
    # Not blocking: the copy of a pinned batch runs beside the step before.
    on_device = batch.each(lambda part: part.to(device, non_blocking=True))
    draws = _draws(trial, step, share)
    return trial.family.loss(trial.spec, model, quantizer, on_device, draws)


def _draws(trial: Trial, step: int, share: slice) -> StepDraws:
    return StepDraws(trial.seed, step, trial.batch_size, share)


def _batches(
    trial: Trial, training: TokenCache, start: int, micro_batches: list[slice], world: World
) -> Iterator[Batch]:
    """The micro-batches of this process for each step from `start`; for a GPU, read ahead by a
    thread and pinned.
    """
    on_gpu = world.device.type == "cuda"

    def read(key: tuple[int, slice]) -> Batch:
        batch = read_batch(trial, training, *key)
        return batch.each(Tensor.pin_memory) if on_gpu else batch

    keys = ((step, rows) for step in range(start, trial.steps) for rows in micro_batches)
    return in_order(read, keys, workers=0, threads=2 if on_gpu else 1)


def progress_of(trial: Trial, done: int, seconds: float) -> Line:
    """Progress of a trial after `done` steps: images, tokens, FLOPs, and speeds per second."""
    images = done * trial.batch_size
    # Model FLOPs: masked attention pairs and evaluation are not counted.
    flops_per_image = total(trial.family.training_flops(trial.spec))
    return {
        "images_seen": images,
        "tokens_seen": images * trial.family.sequence_length(trial.spec),
        "train_flops": images * flops_per_image,
        "seconds": seconds,
        "images_per_second": images / seconds if seconds > 0 else 0.0,
        "flops_per_second": images * flops_per_image / seconds if seconds > 0 else 0.0,
    }
