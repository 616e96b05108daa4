"""Train a tokenizer: reconstruction, perceptual and adversarial losses, codebook updates."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from var_scaling.accounting.tokenizer import tokenizer_train_flops
from var_scaling.config import TrainedTokenizer
from var_scaling.data.dataset import ImageDataset
from var_scaling.data.loader import for_device, in_order
from var_scaling.data.order import batch_rows, spread_rows
from var_scaling.evaluation.reconstruction import draw_sheet, reconstruct
from var_scaling.metrics import Line
from var_scaling.randomness import seed_for
from var_scaling.tokenizer.autoencoder import channels_last_on_gpu, to_unit
from var_scaling.tokenizer.codebook import CodebookUpdater
from var_scaling.tokenizer.critic import adversarial_warm_up
from var_scaling.tokenizer.model import MultiScaleVQVAE, frozen_copy
from var_scaling.tokenizer.perceptual import Perceptual
from var_scaling.training.average import WeightAverage
from var_scaling.training.judges import ADVERSARIAL_STATS, ReconstructionLosses
from var_scaling.training.loop import (
    Interrupted,
    Journal,
    Log,
    MeanStats,
    PollSignal,
    Signal,
    Stats,
    log_steps,
    updates,
)
from var_scaling.training.optim import ScheduledOptimizer, precision_context
from var_scaling.training.world import World

_EVALUATIONS = 5  # per training, evenly spaced


def train_tokenizer(
    t: TrainedTokenizer,
    training: ImageDataset,
    held_out: ImageDataset,
    perceptual: Perceptual | None,
    folder: Path,
    log: Log,
    save_every: float,
    poll_signal: PollSignal,
    workers: int,
    sheet: Path,
    world: World,
    threads: int = 1,
) -> MultiScaleVQVAE:
    """The trained tokenizer; with averaged weights if `t.weight_average` > 0.

    `workers` processes read images; without them, `threads` compute them ahead.
    Resumes bitwise. Raises Diverged, Interrupted if `poll_signal` returns STOP, ValueError if the
    batch is not divisible by the number of processes or a process needs several micro-batches.
    """
    # The adaptive weight and the codebook update need all images of a process at once.
    if len(world.micro_batches(t.batch_size)) > 1:
        raise ValueError(
            f"{t.name}: batch_size = {t.batch_size} is more than micro_batch_size = "
            f"{world.micro_batch_size} for each of {world.size} processes, and a "
            "tokenizer's batch cannot be split: use more processes"
        )
    trainer = _TokenizerTrainer(t, perceptual, world)
    journal = Journal(folder, log, partial(progress_of, t), save_every, world)
    journal.means = _MeansWithoutOverflows(journal.means.sums)
    if journal.resumed:
        trainer.restore(journal.resumed["learner"])
    logged = log_steps(t.steps)
    evaluated = frozenset(max(1, t.steps * k // _EVALUATIONS) for k in range(1, _EVALUATIONS + 1))
    batches = _batches(t, training, journal.start, world, workers, threads)

    def update(step: int) -> Stats:
        # Quantisation from step 0 can collapse to a constant (LOG.md), so it may start later. After
        # a resume the codes come from the checkpoint.
        if step == t.codebook.starts_at:
            trainer.initialize_codes(training)
        # To the device as bytes, a quarter of their size as floats.
        pixels = next(batches).to(world.device, non_blocking=True)
        return trainer.train_step(to_unit(pixels), step)

    def validate(done: int) -> None:
        model = frozen_copy(t, trainer.result)
        reconstruction = reconstruct(t, model, held_out, world.device, perceptual)
        journal.write_line("validation", done, reconstruction.scores)
        draw_sheet(sheet, reconstruction.sheet)

    for done, signal in updates(update, journal, t.steps, poll_signal, logged | evaluated):
        if done in logged:
            rate = {"learning_rate": trainer.optimizer.rate}
            journal.write_line("train", done, {**journal.means.pop(), **rate})
        # Only process 0 evaluates; the others wait for it in the next collective call.
        if done in evaluated and world.first:
            with journal.stopwatch.paused():
                validate(done)
        # No checkpoint after the last step: the finished weights are saved instead.
        if done < t.steps and signal >= Signal.CHECKPOINT:
            journal.save(done, {"learner": trainer.state()})
            if signal == Signal.STOP:
                raise Interrupted(f"{t.name} stopped after step {done} of {t.steps}")
    return trainer.result.eval()


def _batches(
    t: TrainedTokenizer,
    training: ImageDataset,
    start: int,
    world: World,
    workers: int,
    threads: int,
) -> Iterator[Tensor]:
    """The uint8 images of this process for each step from `start`, prefetched."""
    share = world.share(t.batch_size)
    # Lazy: the rows of a step are computed when its images are loaded.
    orders = (
        batch_rows(training.rows, t.batch_size, t.seed, step) for step in range(start, t.steps)
    )
    keys = ((rows[share], epochs[share]) for rows, epochs in orders)
    arrays = in_order(lambda key: training.images(*key), keys, workers, threads)
    return for_device(arrays, world.device)


class _MeansWithoutOverflows(MeanStats):
    """Means of the stats without those that an overflow made meaningless."""

    def add(self, stats: Mapping[str, float]) -> None:
        dropped = {name for name, overflowed in _overflows(stats).items() if overflowed}
        super().add({name: value for name, value in stats.items() if name not in dropped})


def _without_overflows(stats: Stats) -> Stats:
    """`stats` with 0 for each that an overflow made meaningless: it may be NaN, which would end the
    training as diverged. The host drops it later, so that no step waits for the flags.
    """
    cleared = {
        name: torch.where(overflowed, 0.0, stats[name])
        for name, overflowed in _overflows(stats).items()
    }
    return {**stats, **cleared}


def _overflows(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Whether an overflow of fp16 made each of these stats meaningless, of numbers or tensors."""
    found = {}
    if "skipped" in stats:
        found = {name: stats["skipped"] > 0 for name in ADVERSARIAL_STATS if name in stats}
    if "critic_skipped" in stats:
        # The scale is 1 or more while it adapts. Below, the critic has diverged.
        adapts = stats["critic_loss_scale"] >= 1
        found["critic_grad_norm"] = (stats["critic_skipped"] > 0) & adapts
    return found


class _TokenizerTrainer:
    """The state of a tokenizer's training: weights, optimizer, codebook, average and critic."""

    def __init__(self, t: TrainedTokenizer, perceptual: Perceptual | None, world: World):
        self.t, self.world = t, world
        model = MultiScaleVQVAE(t, t.seed, t.dropout).to(world.device)
        self.model = channels_last_on_gpu(model)
        # It sets whether the codes need gradients, so it comes before the optimizer and before
        # DistributedDataParallel.
        self.codebook = CodebookUpdater(
            self.model.quantize, t.codebook, t.seed, world.rank, world.size, world.sum
        )
        self.optimizer = ScheduledOptimizer(self.model, t.optimiser, t.steps, t.precision)
        self.losses = ReconstructionLosses(t, perceptual, world)
        self.average = None
        if t.weight_average > 0:
            # Its initial weights do not matter: WeightAverage overwrites them.
            averaged_model = channels_last_on_gpu(MultiScaleVQVAE(t).to(world.device))
            self.average = WeightAverage(self.model, averaged_model, t.weight_average)
        self.net = world.wrap(self.model)

    @property
    def result(self) -> MultiScaleVQVAE:
        """The model that is evaluated and saved: with averaged weights if there are any."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.average, MultiScaleVQVAE)
        return self.average.average

    def initialize_codes(self, training: ImageDataset) -> None:
        """K-means on the features of some images, the same on every process."""
        images = self.t.codebook.k_means_images
        if images == 0:
            self.codebook.initialize(None)
        else:
            # Every process computes the same codes from the same images; nothing is communicated.
            rows = spread_rows(training.rows, images)
            pixels = torch.from_numpy(training.images(rows, np.zeros_like(rows)))
            self.model.eval()  # no dropout: its generators are seeded per training step
            with torch.no_grad(), precision_context(self.t.precision, self.world.device):
                features = [
                    self.model.features(to_unit(part.to(self.world.device))).float()
                    for part in pixels.split(self.model.max_batch_size)
                ]
            self.model.train()
            self.codebook.initialize(torch.cat(features))
        if self.average is not None:
            self.average.reset()  # the weights averaged so far were trained without codes

    def train_step(self, images: Tensor, step: int) -> Stats:
        """One update on this process's `images` (B, 3, H, H); returns the stats of these images.

        Nothing here waits for a GPU.
        """
        t = self.t
        # to_unit returns channels-last images, and convolutions keep the format. On a CPU the
        # backward pass of a norm of several groups is six times slower in that format.
        if t.norm_groups > 1 and images.device.type == "cpu":
            images = images.contiguous()
        if t.dropout > 0:
            rows = range(t.batch_size)[self.world.share(t.batch_size)]
            seed_of = partial(seed_for, t.seed, "dropout", step)
            self.model.draws.seed(seed_of, rows, self.world.device)
        with precision_context(t.precision, self.world.device):
            quantised = step >= t.codebook.starts_at
            rebuilt, quantized = self.net(images, t.losses.commitment, quantised)
            quantisation, restarted_V = rebuilt.new_zeros(()), None
            if quantized is not None:
                restarted_V = self.codebook.update(quantized, step)
                quantisation = quantized.loss
            terms = self.losses.terms(rebuilt, images)
            reconstruction = self.losses.weighted_sum(terms)
            stats = {"reconstruction": reconstruction, "quantisation": quantisation, **terms}
            config = t.losses.critic
            warm_up = adversarial_warm_up(config, step, t.steps) if config else 0.0
            if warm_up > 0:
                scaled, adversarial = self.losses.adversarial_surrogate(
                    rebuilt, self.optimizer.scale(reconstruction), self.optimizer.scale,
                    self.model.decoder.conv_out.weight, warm_up,
                )  # fmt: skip
                # Added after the balance: the adaptive weight compares only losses of the image.
                scaled = scaled + self.optimizer.scale(quantisation)
                stats |= adversarial
            else:
                scaled = self.optimizer.scale(reconstruction + quantisation)
        # Without the adversarial term: the surrogate has its gradient, but not its value.
        stats["loss"] = reconstruction + quantisation
        self.optimizer.backward(scaled)
        stats |= self.optimizer.step(step)
        # The critic is updated after the tokenizer, on the same images without their graph.
        if warm_up > 0:
            stats |= self.losses.train_critic(images, rebuilt.detach(), step)
        if self.average is not None:
            self.average.update(step)
            if restarted_V is not None:  # an average of the old and the new code would be useless
                codes_VC = self.result.quantize.embedding.weight
                codes_VC.copy_(torch.where(restarted_V[:, None], self.codebook.codes_VC, codes_VC))
        return _without_overflows({name: value.detach() for name, value in stats.items()})

    def state(self) -> dict[str, object]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
            # The updater's moving averages; the codes themselves are in "model".
            "upkeep": self.codebook.state(),
            "judges": self.losses.state(),
            "average": self.average.average.state_dict() if self.average else None,
        }

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.restore(state["optimizer"])
        self.codebook.restore(state["upkeep"])
        self.losses.restore(state["judges"])
        if self.average is not None:
            self.average.average.load_state_dict(state["average"])


def progress_of(t: TrainedTokenizer, done: int, seconds: float) -> Line:
    images = done * t.batch_size
    return {
        "images_seen": images,
        "train_flops": tokenizer_train_flops(t, done),
        "seconds": seconds,
        "images_per_second": images / seconds if seconds > 0 else 0.0,
    }
