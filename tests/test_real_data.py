"""The real images, where they lie beside the project: counts, classes, a mixing order."""

from pathlib import Path

import numpy as np
import pytest

from var_scaling.data.order import batch_rows, spread_rows
from var_scaling.data.sources import open_source
from var_scaling.datasets import ImageFiles

DATA = Path(__file__).parents[2] / "shared" / "data"


def opened(name: str, folder: str, classes: int, tmp_path: Path):
    if not (DATA / folder).exists():
        pytest.skip(f"no {DATA / folder}")
    record = ImageFiles(name=name, side=32, classes=classes)
    root = DATA / folder
    return open_source(record, "validation", root, tmp_path, 2, lambda *words: None)


def test_cifar10_is_read_from_parquet(tmp_path):
    source = opened("cifar10", "cifar10", 10, tmp_path)
    assert source.rows == 10_000
    assert np.bincount(source.labels).tolist() == [1_000] * 10
    assert source.images(np.array([0, 9_999]), np.zeros(2, dtype=int)).shape == (2, 32, 32, 3)


def test_tiny_imagenet_is_sorted_by_class_and_drawn_mixed(tmp_path):
    source = opened("tiny-imagenet-50", "tiny-imagenet-50", 50, tmp_path)
    assert source.rows == 2_500
    assert (np.diff(source.labels) >= 0).all()
    for chosen in (batch_rows(source.rows, 250, 0, 0)[0], spread_rows(source.rows, 250)):
        assert len(set(source.labels[chosen])) >= 45
    images = source.images(np.arange(2_500), np.zeros(2_500, dtype=int))
    gray = (images == images[..., :1]).all(axis=(1, 2, 3))
    assert gray.sum() >= 16  # the grayscale JPEGs, turned into three channels
