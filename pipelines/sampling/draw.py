"""Draw the missing images of a sample set, by one process or by several.

An image depends only on the set's record, its class and its index. So any process may draw any
chunk, and an image that is drawn again is the same. The process that finds no image missing
completes the set (finalize.py).
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from pipelines.checkpoints.load import LoadedModel, load_generator
from pipelines.sampling.finalize import finalize_set, is_finished, write_strips
from pipelines.sampling.rejection import RejectionClassifier, load_rejection_classifier
from pipelines.sampling.request import Plan
from pipelines.sampling.store import (
    ImageWriters,
    ProcessShare,
    SampleFolder,
    StoredImage,
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

_BATCH = {"cpu": 16, "cuda": 64}  # images per forward pass, by device, if no option gives it

Stop = Callable[[int], bool]  # (images done) -> whether to stop
ReportProgress = Callable[[str, int, int], None]  # (task, images done, images in total)


@dataclass(frozen=True)
class DrawOptions:
    """How to draw a set. No option changes an image; on a CPU the bits are the same too."""

    batch: int | None = None  # images per forward pass
    strips: int = 0  # number of images whose intermediate steps are shown
    part: tuple[int, int] | None = None  # (index from 0, number of parts); None: all parts


@dataclass(frozen=True)
class LoadedSampler:
    """The loaded model and classifier of a set. Their checksums match the set's record."""

    loaded: LoadedModel
    classifier: RejectionClassifier | None  # None without rejection
    config: SampleSet

    def scores(self, images_BWW3: "Tensor", labels: Sequence[int]) -> list[float | None]:
        """The classifier's probability of each image's own class; None without a classifier."""
        if self.classifier is None or self.config.rejection is None:
            return [None] * len(labels)
        from var_scaling.generation.reject import classifier_scores

        device = self.loaded.device
        outputs = self.config.rejection.outputs
        return list(
            classifier_scores(
                self.classifier.probabilities, images_BWW3.to(device), labels, outputs
            )
        )


def load_sampler(context: RunContext, plan: Plan) -> LoadedSampler:
    """Load the model and the classifier of `plan`.

    Raises ConfigMismatchError if a checksum differs from the record, ValueError.
    """
    from var_scaling.process import prepare_process

    # One thread on a CPU: with several, the rounding of a matrix product depends on the batch, and
    # an image must not.
    prepare_process(context.drawing_threads())
    loaded, config = load_generator(context, plan.address, plan.raw), plan.config
    classifier = load_rejection_classifier(context, plan.classifier) if config.rejection else None
    # Between two runs the model may be trained again or the classifier file replaced. All images of
    # a set must come from the same files.
    checksums = [("weights", config.weights_sha256, loaded.weights_sha256)]
    checksums += [("tokenizer", config.tokenizer_sha256, loaded.tokenizer_sha256)]
    if classifier and config.rejection:
        checksums += [("classifier", config.rejection.classifier_sha256, classifier.sha256)]
    for file, recorded, actual in checksums:
        if recorded != actual:
            raise ConfigMismatchError(
                f"{plan.folder}: the {file} file had SHA-256 {recorded} when the set was begun, "
                f"and has {actual} now. Restore the file, or give the new set a --name of its own"
            )
    return LoadedSampler(loaded, classifier, config)


def sample_set(
    context: RunContext,
    plan: Plan,
    options: DrawOptions,
    stop: Stop,
    report_progress: ReportProgress,
) -> list[int]:
    """Draw the missing images of the set, or of one part, in this process.

    Returns the chunks that other parts still have to draw; empty: the set is done. Raises Stopped
    (the images drawn so far are on disk), ConfigMismatchError, ValueError, OSError.
    """
    store = SampleFolder(plan.folder, plan.config)
    refuse_other(plan.folder, plan.config)
    finished = is_finished(store)
    if finished and not options.strips:
        return []
    sampler = load_sampler(context, plan)
    # Only after loading, because it removes the done marker if the count is larger: when the model
    # cannot be loaded, the finished smaller set stays finished.
    store.init_run_dir()
    chunks = [] if finished else chunks_of_part(plan.config, options.part)
    if chunks:
        draw(context, sampler, store, chunks, options.batch, stop, report_progress)
    return finish_set(context, sampler, store, chunks, options, stop, report_progress)


def stop_requested(context: RunContext) -> bool:
    from var_scaling.training.loop import Signal

    return context.requested_signal() == Signal.STOP


def chunks_of_part(config: SampleSet, part: tuple[int, int] | None) -> list[int]:
    """The chunks of one part: every n-th chunk, beginning with the part's own index."""
    # So chunk c belongs to part c % n; `_run_part` in jobs.py relies on it.
    first, step = part or (0, 1)
    return list(range(first, config.chunks, step))


def draw(
    context: RunContext,
    sampler: LoadedSampler,
    store: SampleFolder,
    chunks: Sequence[int],
    batch: int | None,
    stop: Stop,
    report_progress: ReportProgress,
) -> None:
    """Draw the missing images of `chunks`.

    Raises Stopped between two batches, when all images drawn are on disk.
    """
    from var_scaling.generation.sample import sample

    # A mark is rewritten as a whole, so it needs the images of earlier runs too.
    stored = {chunk: store.stored_images(chunk) for chunk in chunks}
    total = sum(len(store.config.chunk(chunk)) for chunk in chunks)
    todo = _missing_images(store.config, stored)
    marker = _ChunkMarker(store, stored, todo, str(context.device()), context.process.save_every)
    title, done = f"samples {store.config.name}", total - len(todo)
    report_progress(title, done, total)
    batch = batch or context.process.micro_batch_size or _BATCH[context.process.device]
    requests = [request for _, request in todo]
    position = 0  # in `todo`
    writers = ImageWriters(store, threads=max(1, min(8, context.process.workers)))
    try:
        # Before the first batch too: the stop may have been requested while the model was loaded.
        if todo and stop(done):
            raise Stopped(f"{title}: {done:,} of {total:,} images are on disk")
        config, loaded = store.config, sampler.loaded
        drawn = sample(
            loaded.record.spec, loaded.model, loaded.tokenizer, requests, config.sampling,
            config.seed, batch, calls=context.static_calls(store.folder),
        )  # fmt: skip
        for part in drawn:
            marker.note(writers.flush())  # the batch before, written while this one was drawn
            labels = [request.label for request in part.requests]
            scores = sampler.scores(part.images_BWW3, labels)
            pixels = part.images_BWW3.numpy()
            batch_todo = todo[position : position + len(labels)]
            for (chunk, request), image, score in zip(batch_todo, pixels, scores, strict=True):
                writers.add(chunk, request, image, score)
            position += len(labels)
            done += len(labels)
            report_progress(title, done, total)
            # Not after the last batch: these chunks are complete, and the set can be completed too.
            if position < len(todo) and stop(done):
                raise Stopped(f"{title}: {done:,} of {total:,} images are on disk")
    finally:
        # Also after an error or a stop: images that are on disk get their mark. If that fails, for
        # example on a full disk, the threads must end all the same.
        try:
            marker.note(writers.flush(), last=True)
        finally:
            writers.close()


def _missing_images(
    config: SampleSet, stored: dict[int, dict[Request, StoredImage]]
) -> list[tuple[int, Request]]:
    """(chunk, image) of each image that is not `stored`.

    One list over all chunks: a batch may continue in the next chunk, so only the last one is small.
    """
    return [
        (chunk, request)
        for chunk, images in stored.items()
        for request in config.chunk(chunk)
        if request not in images
    ]


class _ChunkMarker:
    """Writes the mark of a chunk once its last missing image is on disk, and at intervals.

    A process that is killed loses at most the images of `interval` seconds and of one batch.
    """

    def __init__(
        self,
        store: SampleFolder,
        stored: dict[int, dict[Request, StoredImage]],
        todo: list[tuple[int, Request]],
        device: str,
        interval: float,  # seconds between two marks
    ):
        self.store, self.stored, self.device, self.interval = store, stored, device, interval
        self.missing: dict[int, int] = {}  # by chunk, number of images that are not marked yet
        for chunk, _ in todo:
            self.missing[chunk] = self.missing.get(chunk, 0) + 1
        self.new: dict[int, int] = {}  # by chunk, number of these that are on disk
        self.since = monotonic()

    def note(self, written: list[tuple[int, Request, StoredImage]], last: bool = False) -> None:
        """Add images that are on disk. `last`: no more follow; mark incomplete chunks too."""
        for chunk, request, image in written:
            self.stored[chunk][request] = image
            self.new[chunk] = self.new.get(chunk, 0) + 1
        due = last or monotonic() - self.since >= self.interval
        # A chunk that is complete is marked at once, because other processes look only at the marks
        # to find out whether the set is complete.
        to_mark = [chunk for chunk in self.new if due or self.new[chunk] == self.missing[chunk]]
        for chunk in to_mark:
            now, images = monotonic(), self.new.pop(chunk)
            self.missing[chunk] -= images
            # The time since the previous mark of this process: its shares do not overlap, so the
            # manifest can add them up.
            share = ProcessShare(
                images, now - self.since, self.device, code_version(), socket.gethostname()
            )
            self.since = now
            self.store.mark(chunk, self.stored[chunk], share)


def finish_set(
    context: RunContext,
    sampler: LoadedSampler,
    store: SampleFolder,
    chunks: Sequence[int],
    options: DrawOptions,
    stop: Stop,
    report_progress: ReportProgress,
) -> list[int]:
    """Complete the set if no image is missing; otherwise return the chunks with missing images.

    `chunks` were just drawn: those whose files differ from what was written are drawn once more.
    Two processes may complete the set at the same time; both write the same files. Raises
    ConfigMismatchError if the record was changed meanwhile, and what `draw` raises.
    """
    incomplete = _finish_if_complete(sampler, store, options.strips)
    # The chunks of other parts may not have been drawn yet. Those of this process were, so their
    # files were lost or damaged after they were written.
    damaged = sorted(set(chunks).intersection(incomplete))
    if not damaged:
        return incomplete
    draw(context, sampler, store, damaged, options.batch, stop, report_progress)
    return _finish_if_complete(sampler, store, options.strips)


def _finish_if_complete(sampler: LoadedSampler, store: SampleFolder, strips: int) -> list[int]:
    # A cheap test by one directory listing. A mark may list only a part of its chunk;
    # `finalize_set` reads all marks and finds that out.
    unmarked = set(range(store.config.chunks)) - store.marked_chunks()
    if unmarked:
        return sorted(unmarked)
    # Another process may have completed the set meanwhile.
    done = is_done(store.folder)
    incomplete = [] if done else finalize_set(store, sampler.loaded.address, sampler.loaded.names)
    if incomplete:
        return incomplete
    if strips:
        write_strips(store, sampler.loaded, strips)
    # Last check before the marker: a larger --count may have replaced the record while this process
    # drew the smaller one.
    refuse_changed(store.folder, store.config)
    if not done:
        write_json(store.folder / DONE, {"status": "done", "images": store.config.images})
    return []
