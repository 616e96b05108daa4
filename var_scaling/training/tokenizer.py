"""Train a tokenizer: to give images back, to look right, to fool a critic, to keep its codes."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from var_scaling.accounting.tokenizer import tokenizer_train_flops
from var_scaling.config import TrainedTokenizer
from var_scaling.data.dataset import ImageDataset
from var_scaling.data.loader import in_order
from var_scaling.data.order import batch_rows, spread_rows
from var_scaling.evaluation.reconstruction import draw_sheet, reconstruct
from var_scaling.metrics import Line
from var_scaling.randomness import seed_for
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.codebook import CodebookUpkeep
from var_scaling.tokenizer.critic import say_at
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.perceptual import Perceptual
from var_scaling.training.average import WeightAverage
from var_scaling.training.judges import JUDGED, Judges
from var_scaling.training.loop import (
    Interrupted,
    Journal,
    Log,
    PollSignal,
    Signal,
    Stats,
    log_steps,
    updates,
)
from var_scaling.training.optim import ScheduledOptimizer, precision_context
from var_scaling.training.world import World

_EVALUATIONS = 5


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
) -> MultiScaleVQVAE:
    """The trained tokenizer, its weights averaged where the record says so.

    Resumes bitwise. Raises Diverged, Interrupted if `poll_signal` returns STOP, ValueError if the
    batch does not divide among the processes or a share does not fit one micro-batch.
    """
    if (
        len(world.micro_batches(t.batch_size)) > 1
    ):  # the adaptive factor and the codebook see a share whole
        raise ValueError(
            f"{t.name}: batch_size = {t.batch_size} is more than micro_batch_size = "
            f"{world.micro_batch_size} for each of {world.size} processes, and a "
            "tokenizer's batch cannot be split: use more processes"
        )
    learner = _Learner(t, perceptual, world)
    journal = Journal(folder, log, partial(progress_of, t), save_every, world)
    if journal.resumed:
        learner.restore(journal.resumed["learner"])
    logged = log_steps(t.steps)
    evaluated = frozenset(max(1, t.steps * k // _EVALUATIONS) for k in range(1, _EVALUATIONS + 1))
    batches = _batches(t, training, journal.start, world.share(t.batch_size), workers)

    def update(step: int) -> Stats:
        if step == t.codebook.starts_at:
            learner.start_codes(training)
        return learner.learn(to_unit(torch.from_numpy(next(batches))), step)

    def look(done: int) -> None:
        found = reconstruct(t, learner.best, held_out, world.device, perceptual)
        journal.note("validation", done, found.scores)
        draw_sheet(sheet, found.sheet)

    for done, stats in updates(update, journal.start, t.steps):
        journal.window.add(stats)
        if done in logged:
            rate = {"learning_rate": learner.optimizer.rate}
            journal.note("train", done, {**journal.window.take(), **rate})
        if done in evaluated and world.first:
            with journal.watch.paused():
                look(done)
        signal = world.most(poll_signal(done))
        if done < t.steps and (journal.watch.save_is_due() or signal >= Signal.CHECKPOINT):
            journal.save(done, {"learner": learner.state()})
            if signal == Signal.STOP:
                raise Interrupted(f"{t.name} stopped after step {done} of {t.steps}")
    return learner.best.eval()


def _batches(
    t: TrainedTokenizer, training: ImageDataset, start: int, share: slice, workers: int
) -> Iterator[np.ndarray]:
    """This process's images of every step from `start` on, read ahead by `workers`."""
    orders = (
        batch_rows(training.rows, t.batch_size, t.seed, step) for step in range(start, t.steps)
    )
    keys = ((rows[share], epochs[share]) for rows, epochs in orders)
    return in_order(lambda key: training.images(*key), keys, workers)


class _Learner:
    """All that changes while a tokenizer learns: weights, codes, moments, averages, its judges."""

    def __init__(self, t: TrainedTokenizer, perceptual: Perceptual | None, world: World):
        self.t, self.world = t, world
        self.model = MultiScaleVQVAE(t, t.seed, t.dropout).to(world.device)
        self.upkeep = CodebookUpkeep(self.model.quantize, t.codebook, t.seed, world.rank, world.sum)
        self.optimizer = ScheduledOptimizer(self.model, t.optimiser, t.steps, t.precision)
        self.judges = Judges(t, perceptual, world)
        self.average = None
        if t.weight_average > 0:
            spare = MultiScaleVQVAE(t).to(world.device)
            self.average = WeightAverage(self.model, spare, t.weight_average)
        self.net = world.wrap(self.model)

    @property
    def best(self) -> MultiScaleVQVAE:
        """What would be kept if training ended now."""
        if self.average is None:
            return self.model
        assert isinstance(self.average.average, MultiScaleVQVAE)
        return self.average.average

    def start_codes(self, training: ImageDataset) -> None:
        """K-means on the features of some images: the same on every process."""
        wanted = self.t.codebook.k_means_images
        if wanted == 0:
            self.upkeep.start(None)
        else:
            rows = spread_rows(training.rows, wanted)
            pixels = torch.from_numpy(training.images(rows, np.zeros_like(rows)))
            self.model.eval()  # nothing dropped: what is drawn must be a step's own
            with torch.no_grad(), precision_context(self.t.precision, self.world.device):
                features = [
                    self.model.features(to_unit(part).to(self.world.device)).float()
                    for part in pixels.split(self.model.max_batch_size)
                ]
            self.model.train()
            self.upkeep.start(torch.cat(features))
        if self.average is not None:
            self.average.start()  # what was averaged so far knew no codes

    def learn(self, images: Tensor, step: int) -> Stats:
        """One update on this process's `images` (B, 3, H, H); the stats are over all processes."""
        t = self.t
        images = images.to(self.world.device)
        if t.dropout > 0:
            mine = range(t.batch_size)[self.world.share(t.batch_size)]
            seeds = [seed_for(t.seed, "dropout", step, place) for place in mine]
            self.model.draws.begin(seeds, self.world.device)
        with precision_context(t.precision, self.world.device):
            quantised = step >= t.codebook.starts_at
            rebuilt, quantized = self.net(images, t.losses.commitment, quantised)
            quantisation, restarted = rebuilt.new_zeros(()), None
            if quantized is not None:
                restarted = self.upkeep.update(quantized, step)
                quantisation = quantized.loss
            terms = self.judges.terms(rebuilt, images)
            reconstruction = self.judges.weighed(terms)
            stats = {"reconstruction": reconstruction, "quantisation": quantisation, **terms}
            say = say_at(t.losses.critic, step, t.steps) if t.losses.critic else 0.0
            if say > 0:
                scaled, judged = self.judges.pull(
                    rebuilt, self.optimizer.scale(reconstruction), self.optimizer.scale,
                    self.model.decoder.conv_out.weight, say,
                )  # fmt: skip
                scaled, stats = scaled + self.optimizer.scale(quantisation), {**stats, **judged}
            else:
                scaled = self.optimizer.scale(reconstruction + quantisation)
        stats["loss"] = reconstruction + quantisation
        self.optimizer.backward(scaled)
        found = self.optimizer.step(step)
        if float(found.get("skipped", 0)) > 0:  # the scale was too large: so was what it multiplied
            stats = {name: value for name, value in stats.items() if name not in JUDGED}
        stats |= found
        if say > 0:
            stats |= self.judges.learn(images, rebuilt.detach(), step)
        if self.average is not None:
            self.average.update(step)
            if restarted is not None:  # half-way to its new place a code is of no use to anyone
                self.best.quantize.embedding.weight[restarted] = self.upkeep.codes_VC[restarted]
        return self.world.means({name: value.detach() for name, value in stats.items()})

    def state(self) -> dict[str, object]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
            "upkeep": self.upkeep.state(),
            "judges": self.judges.state(),
            "average": self.average.average.state_dict() if self.average else None,
        }

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.restore(state["optimizer"])
        self.upkeep.restore(state["upkeep"])
        self.judges.restore(state["judges"])
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
