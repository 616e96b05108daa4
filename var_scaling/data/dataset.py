"""The images of one split, by row, whatever they are and wherever they come from."""

from typing import Protocol

import numpy as np

from var_scaling.datasets import DataRecord, Reading


class ImageDataset(Protocol):
    """Images by row. A function of its record and split: the same image at any time."""

    rows: int
    labels: np.ndarray  # (rows,) int64
    classes: list[str] | None  # their names, by number; None where labels are bare numbers

    def images(self, rows: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """uint8 (n, side, side, 3) of `rows`, each as epoch `epochs` sees it."""
        ...


def open_images(data: DataRecord, split: str, reading: Reading) -> ImageDataset:
    """The images of `data`'s `split` ("train" or "validation"). Raises DataError, ValueError.

    Image files lie under `reading.root` and are surveyed once, into the folder `reading.survey`.
    """
    found = data.open(split, reading)
    if len(found.labels) != found.rows:
        raise ValueError(f"{data.name}: {found.rows:,} rows, but {len(found.labels):,} labels")
    labels = found.labels
    if found.rows and not (int(labels.min()) >= 0 and int(labels.max()) < data.classes):
        raise ValueError(
            f"{data.name}: labels from {labels.min()} to {labels.max()}, of {data.classes} classes"
        )
    return found
