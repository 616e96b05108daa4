"""FID and related scores of samples, of reconstructions, or of a folder of images."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from pipelines.evaluation.image_sets import ImageSet, data_and_split, image_set
from pipelines.evaluation.reference_stats import (
    MOST,
    Cut,
    Reference,
    ReportProgress,
    gather,
    given_reference,
    real_data,
    reference_of,
)
from pipelines.evaluation.scores import Fidelity, fidelities, note_fidelity
from pipelines.stages.context import RunContext
from pipelines.workspace.damage import WEIGHTS
from pipelines.workspace.provenance import code_version
from var_scaling.datasets import DataRecord
from var_scaling.disk import DONE, is_done, read_json
from var_scaling.evaluation.classifier import CLASSIFIER, classifier_extractor
from var_scaling.evaluation.extractors import (
    INCEPTION,
    Extractor,
    inception_extractor,
    seeded_extractor,
)
from var_scaling.evaluation.fidelity import compare
from var_scaling.experiment.scoring import ExtractorName

ENOUGH = 10_000  # samples; of fewer, FID is biased by more than models differ (arXiv 1911.07023)
# Images of a split of the inception score. Of as many, drawn from 250 equal classes and each sure,
# it comes to 188 instead of 250, and of 50 images to 44.
ENOUGH_A_SPLIT = 500


@dataclass(frozen=True)
class FidelityOptions:
    """What is to be measured, in a person's words."""

    set: str | None = None
    extractor: ExtractorName | None = None  # None: Inception where its weights are named
    against: str | None = None  # NAME-train or NAME-validation
    reference: Path | None = None
    images: int | None = None  # of a reference that is gathered here, and of reconstructions

    @property
    def most(self) -> int:
        return MOST if self.images is None else self.images

    cut: Cut = field(default_factory=Cut)


class Found(NamedTuple):
    title: str
    fidelity: Fidelity
    kept_in: Path | None  # the folder; None: one of the user's, in which nothing is written


def measure_fidelity(
    context: RunContext, address: str, asked: FidelityOptions, report_progress: ReportProgress
) -> Found:
    """Every score of the images at `address` that the extractor allows, kept beside them.

    Raises ValueError (of it WeightsError, StatisticsError, DataError, Drift).
    """
    torch.set_num_threads(context.process.threads)
    images = image_set(context, address, asked.set, asked.against, asked.most, asked.cut)
    wanted = _wanted(address, images, asked)
    if images.folder is not None:
        fidelities(images.folder)  # what cannot be read shows before the work
    extractor = extractor_named(context, asked.extractor, images.data)
    reference = _reference(context, images, wanted, extractor, asked, report_progress)
    return compared(context, address, images, reference, extractor, report_progress)


def compared(
    context: RunContext,
    address: str,
    images: ImageSet,
    reference: Reference,
    extractor: Extractor,
    report_progress: ReportProgress,
) -> Found:
    """Every score of `images` against `reference`, kept beside them."""
    began = time.monotonic()
    gathered = gather(
        extractor, images.batches(), images.count, f"looking at {address}", report_progress
    )
    strata = None if images.classes_N is None else torch.from_numpy(images.classes_N)
    line = compare(gathered, reference.statistics, extractor, strata)
    found = Fidelity(
        images=images.called,
        set=images.set,
        scores={name: value for name, value in line.items() if isinstance(value, float)},
        samples=line["fake_images"],
        references=line.get("real_images"),
        counts={name: line[name] for name in _COUNTS if name in line},
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        reference=reference.name,
        reference_sha256=reference.sha256,
        commit=code_version(),
        time=time.strftime("%FT%TZ", time.gmtime()),
        seconds=round(time.monotonic() - began, 3),
        device=context.process.device,
    )
    if images.folder is not None:
        note_fidelity(images.folder, found)
    return Found(f"{address}, {images.called}", found, images.folder)


_COUNTS = ("kid_subset_size", "fake_features", "real_features")


def extractor_named(
    context: RunContext, name: ExtractorName | None, data: DataRecord | None
) -> Extractor:
    """The network that looks; "classifier" is the one that learnt the classes of `data`."""
    path = context.settings.weights.inception
    chosen = name or (INCEPTION if path else "seeded")
    if chosen == CLASSIFIER:
        return _classifier(context, data).to(context.device())
    made = inception_extractor(path) if chosen == INCEPTION else seeded_extractor()
    return made.to(context.device())


def _classifier(context: RunContext, data: DataRecord | None) -> Extractor:
    if data is None:
        raise ValueError(
            "classifier: whose classes? It is trained on the images that a model here learnt"
        )
    folder = context.home.network(data.name)
    if not is_done(folder):
        raise ValueError(
            f"classifier: none has learnt the classes of {data.name}; a sweep with a scoring whose "
            'extractors have "classifier" trains it'
        )
    return classifier_extractor(folder / WEIGHTS, read_json(folder / DONE)["weights_sha256"])


def _wanted(address: str, images: ImageSet, asked: FidelityOptions) -> tuple[str, str] | None:
    """Name and split of the data to compare with; None: a file says it. Raises ValueError."""
    if asked.reference is not None:
        if asked.against is not None and not images.rebuilt:  # there it says which images
            raise ValueError("--against or --reference: one thing to compare with, not two")
        theirs = [f"--{name.replace('_', '-')}" for name in asked.cut.said]
        theirs += [] if asked.images is None else ["--images"]
        if theirs and not images.rebuilt:
            raise ValueError(
                f"{', '.join(theirs)}: what --reference holds was gathered elsewhere, and cannot "
                "be had otherwise"
            )
        return None
    if asked.against is not None:
        return data_and_split(asked.against, images.data)
    if images.real is None:
        raise ValueError(
            f"{address}: what it is to be like is not known here: --against NAME-train, or "
            "--reference FILE.npz"
        )
    return images.real


def _reference(
    context: RunContext,
    images: ImageSet,
    wanted: tuple[str, str] | None,
    extractor: Extractor,
    asked: FidelityOptions,
    report_progress: ReportProgress,
) -> Reference:
    if wanted is None:
        assert asked.reference is not None
        return given_reference(asked.reference, extractor)
    name, split = wanted
    data = real_data(context, name, split, images.side, images.data, asked.cut)
    return reference_of(context, data, split, extractor, asked.most, report_progress)
