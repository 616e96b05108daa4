"""FID and related scores of samples, of reconstructions, or of a folder of images."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from pipelines.evaluation.image_sets import ImageSet, data_and_split, image_set
from pipelines.evaluation.reference_stats import (
    MAX_REFERENCE_IMAGES,
    CropOptions,
    Reference,
    ReportProgress,
    gather_statistics,
    real_data,
    reference_from_file,
    reference_of,
)
from pipelines.evaluation.scores import Fidelity, fidelities, save_fidelity
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
from var_scaling.process import prepare_process
from var_scaling.recipe import Precision

# With fewer samples, the bias of FID is larger than the differences between models
# (arXiv 1911.07023).
MIN_FID_SAMPLES = 10_000
# Images per split of the inception score. With so few images of 250 equally likely, certainly
# recognised classes, the score is 188 instead of 250; with 50 images, it is 44.
MIN_SPLIT_SAMPLES = 500


@dataclass(frozen=True)
class FidelityOptions:
    """What to measure, as the command line gives it."""

    set: str | None = None
    extractor: ExtractorName | None = None  # None: Inception if its weights are set
    against: str | None = None  # NAME-train or NAME-validation
    reference: Path | None = None
    images: int | None = None  # most images of the reference and of reconstructions
    encode_precision: Precision | None = None  # of reconstructions; None: the tokenizer's own

    @property
    def max_images(self) -> int:
        return MAX_REFERENCE_IMAGES if self.images is None else self.images

    crop: CropOptions = field(default_factory=CropOptions)


class FidelityResult(NamedTuple):
    title: str
    fidelity: Fidelity
    kept_in: Path | None  # the folder with the saved result; None for a folder of the user's images


def measure_fidelity(
    context: RunContext, address: str, options: FidelityOptions, report_progress: ReportProgress
) -> FidelityResult:
    """Compute and save every score of the images at `address` that the extractor allows.

    Raises ValueError, including WeightsError, StatisticsError, DataError and ConfigMismatchError.
    """
    prepare_process(context.process.threads)
    images = image_set(
        context, address, options.set, options.against, options.max_images, options.crop,
        encode_precision=options.encode_precision,
    )  # fmt: skip
    # Errors in the options are raised before a network is loaded and features are computed.
    reference_data = _reference_data(address, images, options)
    if images.folder is not None:
        fidelities(images.folder)  # raises now, not after the work, if the file cannot be read
    extractor = extractor_named(context, options.extractor, images.data)
    reference = _reference(context, images, reference_data, extractor, options, report_progress)
    return score_image_set(context, address, images, reference, extractor, report_progress)


def score_image_set(
    context: RunContext,
    address: str,
    images: ImageSet,
    reference: Reference,
    extractor: Extractor,
    report_progress: ReportProgress,
) -> FidelityResult:
    """Compute every score of `images` against `reference`, and save it in the images' folder."""
    began = time.monotonic()
    statistics = gather_statistics(
        extractor, images.batches(), images.count, f"features of {address}", report_progress
    )
    # With a fixed number of images of each class, differences between classes add nothing to the
    # standard error (see `frechet_error`).
    strata = None if images.classes_N is None else torch.from_numpy(images.classes_N)
    line = compare(statistics, reference.statistics, extractor, strata)
    fidelity = Fidelity(
        images=images.description,
        set=images.set,
        # The scores are floats; the other values of `line` are counts and a hash.
        scores={name: value for name, value in line.items() if isinstance(value, float)}
        | images.other_scores(),
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
        save_fidelity(images.folder, fidelity)
    return FidelityResult(f"{address}, {images.description}", fidelity, images.folder)


_COUNTS = ("kid_subset_size", "fake_features", "real_features")


def extractor_named(
    context: RunContext, name: ExtractorName | None, data: DataRecord | None
) -> Extractor:
    """The feature network `name`; "classifier" is the classifier trained on `data`."""
    path = context.settings.weights.inception
    # Inception's weights are never downloaded. Features of another network give no FID, so the
    # scores have other names, such as fd_seeded.
    chosen = name or (INCEPTION if path else "seeded")
    if chosen == CLASSIFIER:
        return _classifier(context, data).to(context.device())
    extractor = inception_extractor(path) if chosen == INCEPTION else seeded_extractor()
    return extractor.to(context.device())


def _classifier(context: RunContext, data: DataRecord | None) -> Extractor:
    if data is None:
        raise ValueError(
            "classifier: there is one per data set, but the data of these images are not known; "
            "choose another extractor"
        )
    folder = context.home.network(data.name)
    if not is_done(folder):
        raise ValueError(
            f"classifier: no classifier is trained on {data.name}; a sweep trains it if a scoring "
            'has "classifier" among its extractors'
        )
    # Loading compares the file with the hash in the marker.
    return classifier_extractor(folder / WEIGHTS, read_json(folder / DONE)["weights_sha256"])


def _reference_data(
    address: str, images: ImageSet, options: FidelityOptions
) -> tuple[str, str] | None:
    """(name, split) of the reference images; None if the user gives a statistics file.

    Raises ValueError.
    """
    if options.reference is not None:
        # For a tokenizer, --against says which images to reconstruct.
        if options.against is not None and not images.reconstructed:
            raise ValueError("--against and --reference exclude each other: give one of them")
        unused = [f"--{name.replace('_', '-')}" for name in options.crop.given]
        unused += [] if options.images is None else ["--images"]
        if unused and not images.reconstructed:
            raise ValueError(
                f"{', '.join(unused)}: has no effect on the statistics in the file given by "
                "--reference; leave it out"
            )
        return None
    if options.against is not None:
        return data_and_split(options.against, images.data)
    if images.default_reference is None:
        raise ValueError(
            f"{address}: its reference images are not known: give --against NAME-train or "
            "--reference FILE.npz"
        )
    return images.default_reference


def _reference(
    context: RunContext,
    images: ImageSet,
    reference_data: tuple[str, str] | None,
    extractor: Extractor,
    options: FidelityOptions,
    report_progress: ReportProgress,
) -> Reference:
    if reference_data is None:
        assert options.reference is not None
        return reference_from_file(options.reference, extractor)
    name, split = reference_data
    data = real_data(context, name, split, images.side, images.data, options.crop)
    return reference_of(context, data, split, extractor, options.max_images, report_progress)
