"""The images to score: a set of samples, a tokenizer's reconstructions, or a folder of images.

Shapes: B images, W image side in pixels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.evaluation.reference_stats import (
    Batch,
    CropOptions,
    batches_of,
    read_batches,
    reader_count,
    real_data,
    real_images,
)
from pipelines.sampling.finalize import list_images
from pipelines.sampling.store import RECORD, SAMPLES, SampleFolder, recorded
from pipelines.stages.context import RunContext
from pipelines.workspace.address import finished_folder, read_generator, read_tokenizer
from pipelines.workspace.store import weights_of
from var_scaling.config import CacheKind
from var_scaling.data.decode import Undecodable, decode
from var_scaling.data.order import spread_rows
from var_scaling.data.tree import is_image, read_tree
from var_scaling.datasets import DataRecord
from var_scaling.disk import DONE, is_done
from var_scaling.experiment import Trial
from var_scaling.recipe import Precision

if TYPE_CHECKING:
    from var_scaling.tokenizer.model import MultiScaleVQVAE

SPLITS = ("train", "validation")
_MAX_COMPARED = 2048  # images whose tokens in two precisions are compared


@dataclass(frozen=True)
class ImageSet:
    """Square images of one size, read in batches, and their default reference."""

    description: str  # what the images are, shown after the address
    folder: Path | None  # where the result is saved; None: nowhere
    set: str | None  # name of the set of samples
    reconstructed: bool  # whether they are reconstructions by a tokenizer
    count: int
    side: int
    data: DataRecord | None  # the training images of the model, if known
    default_reference: tuple[str, str] | None  # name and split of data, if the user gives none
    batches: Callable[[], Iterator[Batch]]
    classes_N: np.ndarray | None = (
        None  # class of each image, for sets with a fixed count per class
    )
    # Scores of the images themselves, without a reference.
    other_scores: Callable[[], dict[str, float]] = dict


def image_set(
    context: RunContext,
    address: str,
    name: str | None,
    against: str | None,
    images: int,
    crop: CropOptions,
    cache: CacheKind = "tokens",
    encode_precision: Precision | None = None,
) -> ImageSet:
    """The images at `address`.

    For SWEEP/TRIAL or imported/NAME, the set of samples `name`. For tokenizers/NAME, the
    reconstructions of at most `images` images of `against`, from tokens or, with
    `cache="features"`, from the features before quantisation, encoded in `encode_precision` instead
    of the tokenizer's. Else `address` is a folder of images.

    Raises ValueError, DataError, ConfigMismatchError.
    """
    # The record in the folder says what the address is: trial.json and model.json of a model,
    # tokenizer.json of a tokenizer. Otherwise it is a path.
    home = context.home.root / address
    if encode_precision is not None and not (home / "tokenizer.json").exists():
        raise ValueError(
            f"--encode-precision {encode_precision}: is for tokenizers/NAME, and {address} is not "
            "a tokenizer"
        )
    if (home / "trial.json").exists() or (home / "model.json").exists():
        return _samples(context, address, name or "default")
    if name is not None:
        raise ValueError(
            f"--set {name}: only models have sets of samples, and {address} is not a model"
        )
    if (home / "tokenizer.json").exists():
        return _reconstructions(context, address, against, images, crop, cache, encode_precision)
    if Path(address).is_dir():
        return _folder(context, Path(address))
    raise ValueError(
        f"{address}: is neither SWEEP/TRIAL, imported/NAME or tokenizers/NAME in "
        f"{context.home.root} nor a folder of images"
    )


def data_and_split(against: str, default: DataRecord | None) -> tuple[str, str]:
    """Split `imagenet-train` into name and split; `train` means the data `default`.

    Raises ValueError.
    """
    # From the right, because the name of the data may contain dashes.
    name, dash, split = against.rpartition("-")
    if split not in SPLITS or (dash and not name):
        raise ValueError(f"--against {against}: allowed are NAME-train and NAME-validation")
    if name:
        return name, split
    if default is None:
        raise ValueError(f"--against {against}: the data are not known; give NAME-{split}")
    return default.name, split


def _samples(context: RunContext, address: str, name: str) -> ImageSet:
    record = read_generator(finished_folder(context.home, address))
    folder = context.home.root / address / SAMPLES / name
    _check_finished(address, folder)
    images = list_images(folder)
    files = [folder / image["file"] for image in images]
    data = record.data if isinstance(record, Trial) else None
    return ImageSet(
        description=f"set {name}",
        folder=folder,
        set=name,
        reconstructed=False,
        count=len(files),
        side=record.tokenizer.side,
        data=data,
        # The usual reference of a reported FID, as in ADM's statistics of ImageNet.
        default_reference=(data.name, "train") if data else None,
        batches=_file_batches(context, files, record.tokenizer.side),
        classes_N=np.array([image["class"] for image in images]),  # (N,), in drawing order
    )


def _check_finished(address: str, folder: Path) -> None:
    if is_done(folder):
        return
    if not (folder / RECORD).exists():
        sets = sorted(path.parent.name for path in folder.parent.glob(f"*/{DONE}"))
        available = f"its sets are {', '.join(sets)}" if sets else "it has none yet"
        raise ValueError(
            f"{address} has no set of samples {folder.name!r}; {available}. Make it with: "
            f"var-scaling sample {address} --name {folder.name} --count 100"
        )
    record = recorded(folder)
    done = len(SampleFolder(folder, record).marked_chunks())
    raise ValueError(
        f"{folder}: not finished, {done} of {record.chunks} chunks are done. Finish it with the "
        f"options that it was started with: var-scaling sample {address} --name {folder.name} "
        f"--count {record.count} …"
    )


def _reconstructions(
    context: RunContext,
    address: str,
    against: str | None,
    images: int,
    crop: CropOptions,
    cache: CacheKind,
    encode_precision: Precision | None,
) -> ImageSet:
    folder = finished_folder(context.home, address)
    t = read_tokenizer(folder)
    precision = encode_precision or t.encode_precision
    training_data = getattr(t, "data", None)
    if against is None and training_data is None:
        raise ValueError(
            f"{address} is imported: give the images to reconstruct with --against NAME-validation"
        )
    name, split = data_and_split(against or "validation", training_data)
    data = real_data(context, name, split, t.side, training_data, crop)
    source = real_images(context, data, split)
    rows = spread_rows(source.rows, images)

    def load() -> "MultiScaleVQVAE":
        from var_scaling.tokenizer.model import load_tokenizer

        return load_tokenizer(t, *weights_of(folder)).to(context.device())

    def batches() -> Iterator[Batch]:
        originals = batches_of(context, source, data, rows)
        return _reconstructed(load(), originals, cache, precision)

    def compare_tokens() -> dict[str, float]:
        from var_scaling.evaluation.reconstruction import equal_tokens

        if precision == "fp32" or cache == "features":
            return {}
        some = spread_rows(source.rows, min(images, _MAX_COMPARED))
        pixels = (originals for _, originals in batches_of(context, source, data, some))
        return equal_tokens(load(), pixels, precision)

    return ImageSet(
        description=f"reconstructions of {name}-{split}"
        + (f", encoded in {precision}" if precision != "fp32" else ""),
        folder=folder,
        set=None,
        reconstructed=True,
        count=len(rows),
        side=t.side,
        data=training_data,
        default_reference=(name, split),
        batches=batches,
        other_scores=compare_tokens,
    )


def _reconstructed(
    model: "MultiScaleVQVAE", batches: Iterable[Batch], cache: CacheKind, precision: Precision
) -> Iterator[Batch]:
    """The reconstructions of `batches`, with their numbers."""
    from var_scaling.tokenizer.autoencoder import to_pixels, to_unit

    device = next(model.parameters()).device
    for numbers, originals in batches:
        # Batches of the reader may be too large for the decoder's memory.
        parts = to_unit(originals.to(device)).split(model.max_batch_size)
        with torch.no_grad():
            reconstructions = torch.cat(
                [to_pixels(_reconstruct(model, part, cache, precision)) for part in parts]
            )
        yield numbers, reconstructions


def _reconstruct(
    model: "MultiScaleVQVAE", images_B3WW: Tensor, cache: CacheKind, precision: Precision
) -> Tensor:
    """Encoded in `precision`, decoded in fp32, from tokens or from the features before them.

    Features are for models of continuous latents, whose samples are decoded without quantisation.
    """
    from var_scaling.training.optim import precision_context

    # The precision is set here, so that settings left by earlier code have no effect.
    with precision_context(precision, images_B3WW.device):
        encoded = model.features(images_B3WW) if cache == "features" else model.encode(images_B3WW)
    with precision_context("fp32", images_B3WW.device):
        if cache == "features":
            return model.decode_grids(encoded.float())
        return model.decode(encoded)


def _folder(context: RunContext, folder: Path) -> ImageSet:
    names = [name for name in read_tree(folder).file_paths() if is_image(name)]
    files = sorted(folder / name for name in names)
    if not files:
        raise ValueError(f"{folder}: contains no image file")
    # No record gives the size: the first image does, and the others must agree.
    side = _square(files[0]).shape[0]
    return ImageSet(
        # `resolve`, because the name of "." is empty.
        description=f"folder {folder.resolve().name}",
        folder=None,
        set=None,
        reconstructed=False,
        count=len(files),
        side=side,
        data=None,
        default_reference=None,
        batches=_file_batches(context, files, side),
    )


def _file_batches(
    context: RunContext, files: list[Path], side: int
) -> Callable[[], Iterator[Batch]]:
    """A function that reads image files of side `side`, one batch at a time.

    It raises ValueError if an image has another size.
    """

    def read(rows: np.ndarray) -> np.ndarray:
        images = [_square(files[row]) for row in rows.tolist()]
        for row, image in zip(rows.tolist(), images, strict=True):
            if len(image) != side:
                raise ValueError(
                    f"{files[row]}: {len(image)} px, but {files[0].name} has {side} px: all images "
                    "of a set must have the same size"
                )
        return np.stack(images)

    return lambda: read_batches(read, len(files), reader_count(context, len(files)))


def _square(path: Path) -> np.ndarray:
    """uint8 (W, W, 3). Raises ValueError if the image is not square, since no crop is defined."""
    try:
        image: Image.Image = decode(path.read_bytes())
    except Undecodable as error:
        raise ValueError(f"{path}: {error}") from error
    if image.width != image.height:
        raise ValueError(f"{path}: {image.width} × {image.height} px; crop to squares first")
    return np.asarray(image)
