"""The interface of all image datasets: the images of one split, by row."""

from typing import Protocol

import numpy as np

from var_scaling.datasets import DataRecord, ReadOptions


class ImageDataset(Protocol):
    """Images by row. An image depends only on the record, the split, the row and the epoch."""

    rows: int
    labels: np.ndarray  # (rows,) int64
    classes: list[str] | None  # class names by class number; None where the data has no names

    def images(self, rows: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """uint8 (n, side, side, 3): the images of `rows`, each with the crop of its epoch.

        If the record reads no files, several threads may call it at the same time.
        """
        ...


def open_images(data: DataRecord, split: str, options: ReadOptions) -> ImageDataset:
    """The images of `data`'s `split` ("train" or "validation"). Raises DataError, ValueError.

    Image files are under `options.root`. Each is decoded once, and `options.survey` is the folder
    with the result.
    """
    dataset = data.open(split, options)
    labels = dataset.labels
    # For every kind of data, since a user's own dataset may be wrong: a label out of range would
    # fail much later, in the embedding of the classes.
    if len(labels) != dataset.rows:
        raise ValueError(f"{data.name}: {dataset.rows:,} rows, but {len(labels):,} labels")
    if dataset.rows and not (int(labels.min()) >= 0 and int(labels.max()) < data.classes):
        raise ValueError(
            f"{data.name}: labels are {labels.min()} to {labels.max()}; with {data.classes} "
            f"classes, 0 to {data.classes - 1} are allowed"
        )
    return dataset
