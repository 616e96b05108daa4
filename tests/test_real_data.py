"""Real images, if they are in shared/data: counts, classes, a shuffled order."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import goes_on, numbers, stops_after

from sweeps.rehearsal import sweep as rehearsal
from var_scaling.data.dataset import open_images
from var_scaling.data.order import batch_rows, spread_rows
from var_scaling.datasets import ImageFiles, ReadOptions
from var_scaling.metrics import MetricsLog
from var_scaling.tokenizer.perceptual import Perceptual
from var_scaling.training.loop import Interrupted
from var_scaling.training.tokenizer import train_tokenizer
from var_scaling.training.world import World

DATA = Path(__file__).parents[2] / "shared" / "data"


def opened(name: str, folder: str, classes: int, tmp_path: Path):
    if not (DATA / folder).exists():
        pytest.skip(f"no {DATA / folder}")
    record = ImageFiles(name=name, side=32, classes=classes)
    root = DATA / folder
    return open_images(record, "validation", ReadOptions(root, tmp_path, 2, lambda *words: None))


def test_cifar10_is_read_from_parquet(tmp_path):
    source = opened("cifar10", "cifar10", 10, tmp_path)
    assert source.rows == 10_000
    assert np.bincount(source.labels).tolist() == [1_000] * 10
    assert source.images(np.array([0, 9_999]), np.zeros(2, dtype=int)).shape == (2, 32, 32, 3)


def test_tiny_imagenet_is_sorted_by_class_and_shuffled(tmp_path):
    source = opened("tiny-imagenet-50", "tiny-imagenet-50", 50, tmp_path)
    assert source.rows == 2_500
    assert (np.diff(source.labels) >= 0).all()
    for chosen in (batch_rows(source.rows, 250, 0, 0)[0], spread_rows(source.rows, 250)):
        assert len(set(source.labels[chosen])) >= 45
    images = source.images(np.arange(2_500), np.zeros(2_500, dtype=int))
    gray = (images == images[..., :1]).all(axis=(1, 2, 3))
    assert gray.sum() >= 16  # grayscale JPEGs, converted to three channels


@pytest.mark.thorough
def test_the_tokenizer_of_rehearsal_with_all_losses_resumes_bitwise(tmp_path, monkeypatch):
    """Photographs at 64 px, VGG with random weights; `run rehearsal` trains for 200 steps."""
    for name in ("_HELD_OUT", "_JUDGED", "_SHEET"):
        monkeypatch.setattr(f"var_scaling.evaluation.reconstruction.{name}", 4)
    whole = rehearsal.tokenizers[0]
    t = whole.model_copy(
        update={
            "batch_size": 2, "steps": 5,
            "codebook": whole.codebook.model_copy(update={"starts_at": 1, "k_means_images": 8}),
        }
    )  # fmt: skip
    assert t.losses.perceptual > 0
    assert t.losses.adversarial > 0
    if not (DATA / t.data.name).exists():
        pytest.skip(f"no {DATA / t.data.name}")
    source = {
        split: open_images(
            t.data, split, ReadOptions(DATA / t.data.name, tmp_path / split, 2, lambda *words: None)
        )
        for split in ("train", "validation")
    }
    assert source["train"].rows == 25_000
    torch.manual_seed(0)
    vgg = Perceptual().requires_grad_(False)

    def run(name: str, poll_signal=goes_on):
        log = MetricsLog(tmp_path / name / "metrics.jsonl")
        return train_tokenizer(
            t, source["train"], source["validation"], vgg, tmp_path / name / "checkpoint", log,
            1e9, poll_signal, 0, tmp_path / name / "sheet.png", World(),
        )  # fmt: skip

    undisturbed = run("whole")
    for count in (0, 1):
        with pytest.raises(Interrupted):
            run("torn", poll_signal=stops_after(count))
    torn = run("torn")
    for (name, one), other in zip(
        undisturbed.state_dict().items(), torn.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    lines = numbers(tmp_path / "whole" / "metrics.jsonl")
    assert lines == numbers(tmp_path / "torn" / "metrics.jsonl")
    terms = {
        "l1",
        "l2",
        "perceptual",
        "quantisation",
        "adversarial",
        "adversarial_factor",
        "critic",
    }
    assert terms <= set(lines[-2])
