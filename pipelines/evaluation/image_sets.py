"""The images that fidelity judges: a set of samples, a tokenizer's reconstructions, or a folder.

Shapes: B images, W their side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.evaluation.reference_stats import (
    Batch,
    Cut,
    batches_of,
    read_batches,
    readers,
    real_data,
    real_images,
)
from pipelines.sampling.finalize import images_of
from pipelines.sampling.store import RECORD, SAMPLES, SampleFolder, recorded
from pipelines.stages.context import RunContext
from pipelines.workspace.address import finished, read_generator, read_tokenizer
from pipelines.workspace.store import weights_of
from var_scaling.config import CacheKind
from var_scaling.data.decode import Undecodable, decode
from var_scaling.data.order import spread_rows
from var_scaling.data.tree import is_image, read_tree
from var_scaling.datasets import DataRecord
from var_scaling.disk import DONE, is_done
from var_scaling.experiment import Trial

if TYPE_CHECKING:
    from var_scaling.tokenizer.model import MultiScaleVQVAE

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class ImageSet:
    """Images of one side, to be looked at batch by batch, and what they are to be like."""

    called: str  # what they are, beside the address
    folder: Path | None  # where the result is kept
    set: str | None  # of samples
    rebuilt: bool  # by a tokenizer
    count: int
    side: int
    data: DataRecord | None  # what the model learnt, if that is known
    real: tuple[str, str] | None  # the name and split of the data to compare with, if none is said
    batches: Callable[[], Iterator[Batch]]
    classes_N: np.ndarray | None = None  # of each image, where each class has a fixed number


def image_set(
    context: RunContext,
    address: str,
    name: str | None,
    against: str | None,
    images: int,
    cut: Cut,
    cache: CacheKind = "tokens",
) -> ImageSet:
    """What is at `address`: SWEEP/TRIAL or imported/NAME (its set `name`), tokenizers/NAME (the
    reconstructions of at most `images` images of `against`, through tokens, or through the features
    before they are quantised), or a folder of images.

    Raises ValueError, DataError, Drift.
    """
    home = context.home.root / address
    if (home / "trial.json").exists() or (home / "model.json").exists():
        return _samples(context, address, name or "default")
    if name is not None:
        raise ValueError(f"--set {name}: only a model has sets of samples; {address} is none")
    if (home / "tokenizer.json").exists():
        return _reconstructions(context, address, against, images, cut, cache)
    if Path(address).is_dir():
        return _folder(context, Path(address))
    raise ValueError(
        f"{address}: neither SWEEP/TRIAL, imported/NAME or tokenizers/NAME of {context.home.root}, "
        "nor a folder of images"
    )


def data_and_split(against: str, own: DataRecord | None) -> tuple[str, str]:
    """`imagenet-train` as name and split; `train` alone is of the data `own`. Raises ValueError."""
    name, dash, split = against.rpartition("-")
    if split not in SPLITS or (dash and not name):
        raise ValueError(f"--against {against}: wanted NAME-train or NAME-validation")
    if name:
        return name, split
    if own is None:
        raise ValueError(f"--against {against}: of which data? NAME-{split}")
    return own.name, split


def _samples(context: RunContext, address: str, name: str) -> ImageSet:
    record = read_generator(finished(context.home, address))
    folder = context.home.root / address / SAMPLES / name
    _refuse_unfinished(address, folder)
    images = images_of(folder)
    files = [folder / image["file"] for image in images]
    data = record.data if isinstance(record, Trial) else None
    return ImageSet(
        called=f"set {name}",
        folder=folder,
        set=name,
        rebuilt=False,
        count=len(files),
        side=record.tokenizer.side,
        data=data,
        real=(data.name, "train") if data else None,
        batches=_reading(context, files, record.tokenizer.side),
        classes_N=np.array([image["class"] for image in images]),
    )


def _refuse_unfinished(address: str, folder: Path) -> None:
    if is_done(folder):
        return
    if not (folder / RECORD).exists():
        sets = sorted(path.parent.name for path in folder.parent.glob(f"*/{DONE}"))
        there = f"there is {', '.join(sets)}" if sets else "there is none yet"
        raise ValueError(
            f"{address} has no set of samples {folder.name!r}; {there}. Make it with: "
            f"var-scaling sample {address} --name {folder.name} --count 100"
        )
    wanted = recorded(folder)
    done = len(SampleFolder(folder, wanted).marked())
    raise ValueError(
        f"{folder}: not finished, {done} of {wanted.chunks} chunks are there. Go on with the "
        f"options that it was begun with: var-scaling sample {address} --name {folder.name} "
        f"--count {wanted.count} …"
    )


def _reconstructions(
    context: RunContext, address: str, against: str | None, images: int, cut: Cut, cache: CacheKind
) -> ImageSet:
    folder = finished(context.home, address)
    t = read_tokenizer(folder)
    own = getattr(t, "data", None)
    if against is None and own is None:
        raise ValueError(
            f"{address} was trained elsewhere: say which images it is to give back, --against "
            "NAME-validation"
        )
    name, split = data_and_split(against or "validation", own)
    data = real_data(context, name, split, t.side, own, cut)
    source = real_images(context, data, split)
    rows = spread_rows(source.rows, images)

    def again(model: "MultiScaleVQVAE", images_B3WW: Tensor) -> Tensor:
        if cache == "features":
            return model.render(model.features(images_B3WW)).clamp(-1, 1)
        return model.decode(model.encode(images_B3WW))

    def batches() -> Iterator[Batch]:
        from var_scaling.tokenizer.autoencoder import to_pixels, to_unit
        from var_scaling.tokenizer.model import load_tokenizer
        from var_scaling.training.optim import precision_context

        device = context.device()
        model = load_tokenizer(t, *weights_of(folder)).to(device)
        for numbers, originals in batches_of(context, source, data, rows):
            parts = to_unit(originals).to(device).split(model.max_batch_size)
            with torch.no_grad(), precision_context("fp32", device):
                rebuilt = torch.cat([to_pixels(again(model, p)) for p in parts])
            yield numbers, rebuilt

    return ImageSet(
        called=f"reconstructions of {name}-{split}",
        folder=folder,
        set=None,
        rebuilt=True,
        count=len(rows),
        side=t.side,
        data=own,
        real=(name, split),
        batches=batches,
    )


def _folder(context: RunContext, folder: Path) -> ImageSet:
    names = [name for name in read_tree(folder).file_paths() if is_image(name)]
    files = sorted(folder / name for name in names)
    if not files:
        raise ValueError(f"{folder}: no image file is in it")
    side = _square(files[0]).shape[0]
    return ImageSet(
        called=f"folder {folder.resolve().name}",
        folder=None,
        set=None,
        rebuilt=False,
        count=len(files),
        side=side,
        data=None,
        real=None,
        batches=_reading(context, files, side),
    )


def _reading(context: RunContext, files: list[Path], side: int) -> Callable[[], Iterator[Batch]]:
    """Image files, all of this side, a batch in memory at a time."""

    def read(rows: np.ndarray) -> np.ndarray:
        images = [_square(files[row]) for row in rows.tolist()]
        for row, image in zip(rows.tolist(), images, strict=True):
            if len(image) != side:
                raise ValueError(
                    f"{files[row]}: {len(image)} px, but {files[0].name} has {side}: images of "
                    "one set are of one size"
                )
        return np.stack(images)

    return lambda: read_batches(read, len(files), readers(context, len(files)))


def _square(path: Path) -> np.ndarray:
    """uint8 (W, W, 3). Raises ValueError for another shape: how to crop it is undefined."""
    try:
        image: Image.Image = decode(path.read_bytes())
    except Undecodable as error:
        raise ValueError(f"{path}: {error}") from error
    if image.width != image.height:
        raise ValueError(f"{path}: {image.width} × {image.height} px; crop to squares first")
    return np.asarray(image)
