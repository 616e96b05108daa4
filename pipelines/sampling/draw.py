"""A set of samples drawn: the missing images of its chunks, by one process or by many.

An image depends on the set's record, its class and its index alone, so it does not matter which
process draws which chunk, or whether it was drawn before. The process that finds none missing
completes the set (finalize.py).
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from pipelines.checkpoints.load import Loaded, load_generator
from pipelines.sampling.finalize import end_set, ended, write_strips
from pipelines.sampling.rejection import RejectionClassifier, load_rejection_classifier
from pipelines.sampling.request import Plan
from pipelines.sampling.store import (
    ProcessShare,
    SampleFolder,
    StoredImage,
    Writers,
    refuse_changed,
    refuse_other,
)
from pipelines.stages.attempt import Stopped
from pipelines.stages.context import RunContext
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import ConfigMismatchError
from var_scaling.disk import DONE, is_done, write_json
from var_scaling.experiment.sample_set import Request, SampleSet

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = {"cpu": 16, "cuda": 64}  # images at a time, where nothing is said

Stop = Callable[[int], bool]  # told how many images are done
ReportProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class How:
    """What can be chosen about a set that changes no image: on a processor not one bit."""

    batch: int | None = None
    strips: int = 0  # images to be shown as they come about
    part: tuple[int, int] | None = None  # which of how many; None: all


@dataclass(frozen=True)
class Ready:
    """A model, and the judge of its images if there is one, as the set's record has them."""

    loaded: Loaded
    judge: RejectionClassifier | None
    wanted: SampleSet

    def scores(self, images_BWW3: "Tensor", labels: Sequence[int]) -> list[float | None]:
        """What the judge gives each image for its class."""
        if self.judge is None or self.wanted.rejection is None:
            return [None] * len(labels)
        from var_scaling.generation.reject import scored

        device = self.loaded.device
        outputs = self.wanted.rejection.outputs
        return list(scored(self.judge.probabilities, images_BWW3.to(device), labels, outputs))


def make_ready(context: RunContext, plan: Plan) -> Ready:
    """Load what `plan` needs. Raises Drift where it is not what the record says, ValueError."""
    import torch

    torch.set_num_threads(context.drawing_threads())
    loaded, wanted = load_generator(context, plan.address, plan.raw), plan.wanted
    judge = load_rejection_classifier(context, plan.classifier) if wanted.rejection else None
    found = [("weights", wanted.weights_sha256, loaded.weights_sha256)]
    found += [("tokenizer", wanted.tokenizer_sha256, loaded.tokenizer_sha256)]
    if judge and wanted.rejection:
        found += [("classifier", wanted.rejection.classifier_sha256, judge.sha256)]
    for what, asked, there in found:
        if asked != there:
            raise ConfigMismatchError(
                f"{plan.folder}: its {what} had SHA-256 {asked}; now they have {there}"
            )
    return Ready(loaded, judge, wanted)


def sample_set(
    context: RunContext, plan: Plan, how: How, stop: Stop, report_progress: ReportProgress
) -> list[int]:
    """Draw what is missing of the set, or of one part, here; the chunks that others have to draw.

    Empty: the set is done. Raises Stopped, with what was drawn on disk; Drift, ValueError, OSError.
    """
    at = SampleFolder(plan.folder, plan.wanted)
    refuse_other(plan.folder, plan.wanted)
    there = ended(at)
    if there and not how.strips:
        return []
    ready = make_ready(context, plan)
    at.init_run_dir()  # not before: a larger count that cannot be drawn undoes no finished set
    chunks = [] if there else chunks_of(plan.wanted, how.part)
    if chunks:
        draw(context, ready, at, chunks, how.batch, stop, report_progress)
    return end(context, ready, at, chunks, how, stop, report_progress)


def stop_requested(context: RunContext) -> bool:
    from var_scaling.training.loop import Signal

    return context.requested_signal() == Signal.STOP


def chunks_of(wanted: SampleSet, part: tuple[int, int] | None) -> list[int]:
    """The chunks of one part: every n-th, so that all parts advance through the set alike."""
    first, step = part or (0, 1)
    return list(range(first, wanted.chunks, step))


def draw(
    context: RunContext,
    ready: Ready,
    at: SampleFolder,
    chunks: Sequence[int],
    batch: int | None,
    stop: Stop,
    report_progress: ReportProgress,
) -> None:
    """Draw what is missing of `chunks`. Raises Stopped between two batches, all on disk."""
    from var_scaling.generation.sample import sample

    found = {chunk: at.look(chunk) for chunk in chunks}
    total = sum(len(at.wanted.chunk(chunk)) for chunk in chunks)
    todo = [
        (chunk, request)
        for chunk in chunks
        for request in at.wanted.chunk(chunk)
        if request not in found[chunk]
    ]
    marks = _Marks(at, found, todo, str(context.device()), context.process.save_every)
    title, done = f"samples {at.wanted.name}", total - len(todo)
    report_progress(title, done, total)
    batch = batch or context.process.micro_batch_size or _BATCH[context.process.device]
    requests = [request for _, request in todo]
    place_in_todo = 0
    writers = Writers(at, threads=max(1, min(8, context.process.workers)))
    try:
        if todo and stop(done):
            raise Stopped(f"{title}: {done:,} of {total:,} images are on disk")
        wanted, loaded = at.wanted, ready.loaded
        drawn = sample(
            loaded.record.spec, loaded.model, loaded.tokenizer, requests, wanted.sampling,
            wanted.seed, batch,
        )  # fmt: skip
        for part in drawn:
            marks.note(writers.settle())
            labels = [request.label for request in part.requests]
            scores = ready.scores(part.images_BWW3, labels)
            pixels = part.images_BWW3.numpy()
            here = todo[place_in_todo : place_in_todo + len(labels)]
            for (chunk, request), image, score in zip(here, pixels, scores, strict=True):
                writers.add(chunk, request, image, score)
            place_in_todo += len(labels)
            done += len(labels)
            report_progress(title, done, total)
            if place_in_todo < len(todo) and stop(done):
                raise Stopped(f"{title}: {done:,} of {total:,} images are on disk")
    finally:
        try:
            marks.note(writers.settle(), last=True)
        finally:
            writers.close()


class _Marks:
    """Marks chunks as their last missing image comes to lie on disk, and all at times.

    Between two marks a process that is killed loses at most `every` seconds and a batch.
    """

    def __init__(
        self,
        at: SampleFolder,
        found: dict[int, dict[Request, StoredImage]],
        todo: list[tuple[int, Request]],
        device: str,
        every: float,
    ):
        self.at, self.found, self.device, self.every = at, found, device, every
        self.missing: dict[int, int] = {}
        for chunk, _ in todo:
            self.missing[chunk] = self.missing.get(chunk, 0) + 1
        self.new: dict[int, int] = {}  # images by chunk that are not marked yet
        self.since = monotonic()

    def note(self, made: list[tuple[int, Request, StoredImage]], last: bool = False) -> None:
        """These are on disk; `last`: no more will come, so what there is of a chunk is marked."""
        for chunk, request, image in made:
            self.found[chunk][request] = image
            self.new[chunk] = self.new.get(chunk, 0) + 1
        due = last or monotonic() - self.since >= self.every
        to_mark = [chunk for chunk in self.new if due or self.new[chunk] == self.missing[chunk]]
        for chunk in to_mark:
            now, images = monotonic(), self.new.pop(chunk)
            self.missing[chunk] -= images
            share = ProcessShare(
                images, now - self.since, self.device, code_version(), socket.gethostname()
            )
            self.since = now
            self.at.mark(chunk, self.found[chunk], share)


def end(
    context: RunContext,
    ready: Ready,
    at: SampleFolder,
    chunks: Sequence[int],
    how: How,
    stop: Stop,
    report_progress: ReportProgress,
) -> list[int]:
    """End the set if nothing is missing; else the chunks that are.

    Those of `chunks`, just drawn, that the disk does not have as they were written are drawn once
    more. Two that find nothing missing at the same time both end the set: with the same files.
    Raises Drift if it was made another meanwhile; what `draw` raises.
    """
    lacking = _end(ready, at, how.strips)
    again = sorted(set(chunks).intersection(lacking))
    if not again:
        return lacking
    draw(context, ready, at, again, how.batch, stop, report_progress)
    return _end(ready, at, how.strips)


def _end(ready: Ready, at: SampleFolder, strips: int) -> list[int]:
    unmarked = set(range(at.wanted.chunks)) - at.marked()
    if unmarked:
        return sorted(unmarked)
    done = is_done(at.folder)
    lacking = [] if done else end_set(at, ready.loaded.address, ready.loaded.names)
    if lacking:
        return lacking
    if strips:
        write_strips(at, ready.loaded, strips)
    refuse_changed(at.folder, at.wanted)
    if not done:
        write_json(at.folder / DONE, {"status": "done", "images": at.wanted.images})
    return []
