"""Numbers and orders that a small wrong change could break without another test failing."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bring, images, random_cache, tokenizer, trial
from PIL import Image
from scipy import stats
from small_home import context_in, small_home

from analysis.forecasting.forecast import Run, Target, freeze
from pipelines.checkpoints import convert as exchange
from pipelines.results.table import rows_of
from pipelines.stages import stages
from pipelines.tracking.mirror import Mirror
from pipelines.tracking.mlflow import MLflowTracker
from pipelines.workspace.store import Home, init_run_dir
from var_scaling.accounting import total
from var_scaling.data.dataset import open_images
from var_scaling.data.dead_leaves import DeadLeavesSource
from var_scaling.data.decode import crop, resized
from var_scaling.data.order import batch_rows
from var_scaling.datasets import ImageFiles, ReadOptions
from var_scaling.disk import is_done, read_json, write_json
from var_scaling.experiment import Sweep
from var_scaling.models.var.accounting import var_training_flops
from var_scaling.tokenizer import cache_files, encode
from var_scaling.tokenizer.cache import TokenCache
from var_scaling.tokenizer.cache_files import describe, open_cache
from var_scaling.tokenizer.encode import write_cache
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.average import WeightAverage
from var_scaling.training.trial import batch_loss


def silent(what: str, done: int, total: int) -> None:
    """Ignore progress reports."""


# Crops, mirrors, epochs ---------------------------------------------------------------------------


def test_each_epoch_uses_the_next_crop_of_each_image():
    tokens = np.arange(5 * 3 * 2, dtype=np.uint16).reshape(15, 2)  # 5 images of 3 crops
    found = TokenCache(tokens, np.array([4, 3, 2, 1, 0]), 3, {})
    rows = np.array([0, 4, 2, 2])
    for epoch in range(7):
        ids, labels = found.batch(rows, np.full(4, epoch))
        assert ids[:, 0].tolist() == [2 * (3 * row + epoch % 3) for row in (0, 4, 2, 2)]
        assert labels.tolist() == [4, 0, 2, 2]
    ids, _ = found.batch(rows, np.array([0, 1, 2, 3]))  # each image in a different epoch
    assert ids[:, 0].tolist() == [0, 26, 16, 12]


def test_training_reads_the_crops_of_its_epoch(quantizer):
    """Sixteen images in batches of eight: every second step begins an epoch."""
    requested = []

    class Spy(TokenCache):
        def batch(self, rows, epochs):
            requested.append((rows.tolist(), epochs.tolist()))
            return super().batch(rows, epochs)

    whole = random_cache(16)
    spy, one = Spy(whole.tokens, whole.labels, 1, {}), trial()
    for step in range(6):
        batch_loss(one, Answering([]), quantizer, spy, step, slice(0, 8))
    assert [set(epochs) for _, epochs in requested] == [{0}, {0}, {1}, {1}, {2}, {2}]
    for epoch in range(3):
        seen = [row for rows, _ in requested[2 * epoch : 2 * epoch + 2] for row in rows]
        assert sorted(seen) == list(range(16))
    assert requested[0][0] == batch_rows(16, 8, one.seed, 0)[0].tolist()


def slope() -> Image.Image:
    """Dark on the left, bright on the right, so that mirroring is visible."""
    return Image.fromarray(np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))).convert(
        "RGB"
    )


@pytest.mark.parametrize(("flip", "low", "high"), [(True, 0.4, 0.6), (False, 0, 0)])
def test_half_of_all_crops_are_mirrored_with_flip(flip, low, high):
    image = resized(slope(), 16, 1.0)
    shown = [crop(image, 16, np.random.default_rng(seed), flip) for seed in range(400)]
    mirrored = np.mean([pixels[0, 0, 0] > pixels[0, -1, 0] for pixels in shown])
    assert low <= mirrored <= high
    upright = [one[:, ::-1] if one[0, 0, 0] > one[0, -1, 0] else one for one in shown]
    assert all(np.array_equal(one, np.asarray(slope())) for one in upright)


@pytest.fixture
def source(tmp_path):
    """The images of a folder, all larger than their crops."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = generator.integers(0, 256, (20, 30, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{number}.png")

    def opened(split: str, **settings):
        data = ImageFiles(name="pets", side=16, classes=2, **settings)
        return open_images(data, split, ReadOptions(tmp_path / "pets", tmp_path / split, 0, silent))

    return opened


def test_validation_images_have_the_centre_crop_without_mirroring(source):
    rows = np.arange(12)
    plain = source("validation").images(rows, np.zeros(12, int))
    busy = source("validation", crops=4, flip=True)
    for epoch in range(4):
        assert np.array_equal(busy.images(rows, np.full(12, epoch)), plain)
    path = sorted((busy._listing.root / "val").rglob("*.png"))[0]
    centre = crop(resized(Image.open(path).convert("RGB"), 16, 1.0), 16)
    assert np.array_equal(plain[0], centre)


def test_training_crops_differ_by_epoch_and_repeat_periodically(source):
    rows = np.arange(12)
    train = source("train", crops=3, flip=True, enlarge=1.25)
    by_epoch = [train.images(rows, np.full(12, epoch)) for epoch in range(6)]
    for epoch in range(3):
        assert np.array_equal(by_epoch[epoch], by_epoch[epoch + 3])
        assert not np.array_equal(by_epoch[epoch], by_epoch[(epoch + 1) % 3])
    unmirrored = source("train", crops=3, enlarge=1.25).images(rows, np.zeros(12, int))
    same = [np.array_equal(a, b) for a, b in zip(unmirrored, by_epoch[0], strict=True)]
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(unmirrored, by_epoch[0], strict=True)]
    assert all(one or other for one, other in zip(same, mirrored, strict=True))
    assert any(mirrored)
    assert not all(mirrored)


# Training -----------------------------------------------------------------------------------------


class Answering(torch.nn.Module):
    """A model without parameters that records its labels."""

    def __init__(self, noted: list):
        super().__init__()
        self.noted = noted

    def forward(self, labels, shown, kept, ids):
        self.noted.append(labels.clone())
        return torch.zeros(())


def test_labels_are_dropped_independently_at_the_stated_rate(quantizer):
    one, noted = trial(class_dropout_prob=0.3), []
    training = random_cache(64)
    steps = 1500
    for step in range(steps):
        batch_loss(one, Answering(noted), quantizer, training, step, slice(0, 8))
    given = torch.stack(noted)  # (steps, 8)
    dropped = given == one.classes
    share = dropped.double().mean().item()
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / dropped.numel()))
    together = dropped.double().mean(1)
    assert ((together > 0) & (together < 1)).double().mean() > 0.9  # no batch is dropped as a whole
    true = torch.stack([
        training.batch(*batch_rows(64, 8, one.seed, step))[1] for step in range(steps)
    ])  # fmt: skip
    assert torch.equal(given[~dropped], true[~dropped])
    repeated: list = []
    batch_loss(one, Answering(repeated), quantizer, training, 7, slice(0, 8))
    assert torch.equal(repeated[0], given[7])


def test_processes_that_share_a_batch_drop_the_same_labels_as_one(quantizer):
    one, whole, parts = trial(class_dropout_prob=0.5), [], []
    for step in range(20):
        batch_loss(one, Answering(whole), quantizer, random_cache(64), step, slice(0, 8))
        for share in (slice(0, 4), slice(4, 8)):
            batch_loss(one, Answering(parts), quantizer, random_cache(64), step, share)
    assert torch.equal(torch.cat(whole), torch.cat(parts))


@pytest.mark.parametrize(
    ("step", "decay"),
    [(0, 1 / 10), (2, 2 / 11), (10, 6 / 15), (18, 10 / 19), (100, 51 / 60), (10**6, 0.99)],
)
def test_the_decay_of_the_weight_average_follows_its_formula(step, decay):
    """(s / 2 + 1) / (s / 2 + 10) at step s, at most the recipe's."""
    module, mean = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    average = WeightAverage(module, mean, 0.99)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
    average.update(step)
    for parameter in mean.parameters():
        assert parameter.item() == pytest.approx(1 - decay, rel=1e-6)


# Encoding -----------------------------------------------------------------------------------------


def encoded(folder: Path, model, stop=lambda done: False, part=None):
    source = DeadLeavesSource(images(), "train")
    description = describe(tokenizer(), "abc", images(), "train")
    complete = write_cache(folder, model, source, description, 0, silent, stop, part)
    if complete:
        write_json(folder / "done.json", {"status": "done"})
    return description


@pytest.mark.parametrize("part", [None, (1, 2)])
@pytest.mark.parametrize("damaged", [0, 150, 199])
def test_a_resumed_encoding_does_not_use_a_damaged_shard(tmp_path, monkeypatch, part, damaged):
    for module in (cache_files, encode):
        monkeypatch.setattr(module, "SHARD", 100)
    monkeypatch.setattr(encode, "_BATCH", 50)
    model = MultiScaleVQVAE(tokenizer(), seed=1).eval().requires_grad_(False)
    encoded(tmp_path / "whole", model, part=part)
    stops = iter([False, True])
    encoded(tmp_path / "torn", model, lambda done: next(stops), part)
    assert len(read_json(tmp_path / "torn" / "manifest.json")["shards_crc32"]) == 2
    tokens = np.load(tmp_path / "torn" / "tokens.npy", mmap_mode="r+")
    tokens[damaged, 3] ^= 1
    tokens.flush()
    encoded(tmp_path / "torn", model, part=part)
    whole, torn = (np.load(tmp_path / name / "tokens.npy") for name in ("whole", "torn"))
    assert np.array_equal(whole, torn)
    manifests = [read_json(tmp_path / name / "manifest.json") for name in ("whole", "torn")]
    assert manifests[0] == manifests[1]


# Done comes last ----------------------------------------------------------------------------------


class DiskFull(OSError):
    """Raise the error of a full disk."""


def test_a_trial_whose_weights_were_not_written_is_not_done(tmp_path, monkeypatch):
    home = Home(tmp_path / "home")
    place, t = context_in(home), tokenizer(steps=3)
    one = trial(tokenizer=t, steps=2)
    stages.run_tokenizer(place, t)
    for split in ("train", "validation"):
        stages.run_tokens(place, t, one.data, split)

    def full(model, path: Path) -> None:
        assert not is_done(path.parent)
        raise DiskFull("no space left on device")

    monkeypatch.setattr("var_scaling.weights.save_weights", full)
    with pytest.raises(DiskFull):
        stages.run_trial(place, "s", one)
    folder = home.trial("s", one.name)
    assert not is_done(folder)
    monkeypatch.undo()
    assert stages.run_trial(place, "s", one) == "done"
    assert (folder / "weights.safetensors").exists()


@pytest.mark.parametrize("which", [1, 2])
def test_an_import_whose_weights_were_not_written_is_not_done(tmp_path, files, monkeypatch, which):
    save, calls = exchange.save_tensors, []

    def full(state, path: Path) -> None:
        calls.append(path)
        assert not is_done(path.parent)
        if len(calls) == which:
            raise DiskFull("no space left on device")
        save(state, path)

    monkeypatch.setattr(exchange, "save_tensors", full)
    with pytest.raises(DiskFull):
        bring(tmp_path, *files)
    home = Home(tmp_path)
    assert [is_done(home.tokenizer("it")), is_done(home.imported("it"))] == [which == 2, False]
    monkeypatch.undo()
    bring(tmp_path, *files)
    assert is_done(home.imported("it"))


def test_tokens_whose_labels_were_not_written_are_not_done(tmp_path, monkeypatch):
    home = small_home(tmp_path)

    def full(folder: Path, source) -> None:
        assert not is_done(folder)
        raise DiskFull("no space left on device")

    monkeypatch.setattr(encode, "_write_labels", full)
    with pytest.raises(DiskFull):
        stages.run_tokens(context_in(home), tokenizer(), images(), "validation")
    folder = home.tokens("t", "leaves", "validation")
    assert not is_done(folder)
    monkeypatch.undo()
    stages.run_tokens(context_in(home), tokenizer(), images(), "validation")
    expected = stages.cache_description(home, tokenizer(), images(), "validation")
    assert open_cache(folder, expected).images == 100


# Numbers of forecasts, rows and MLflow ------------------------------------------------------------


def test_a_forecast_s_interval_is_that_of_a_new_run():
    """Textbook formula for a straight line in logs: a new observation lies within t s sqrt(1 + h),
    the line itself within t s sqrt(h).
    """
    sizes = 1152.0 * np.arange(1, 9) ** 3
    noise = 0.004 * np.random.default_rng(3).standard_normal(8)
    losses = 20 * sizes**-0.2 * np.exp(noise)
    runs = [
        Run(f"d{k}", {"params_blocks": float(n)}, {"val_loss": float(y)})
        for k, (n, y) in enumerate(zip(sizes, losses, strict=True), 1)
    ]
    at = 1152.0 * 12**3
    target = Target("s", "d12", {"params_blocks": at}, {})
    made = freeze(
        target, runs, "params_blocks", sweep="s", time="2026-01-01T00:00:00Z", commit="c", data="f"
    )
    (pure,) = (one for one in made.metrics[0].predictions if one.law == "pure")
    x, y = np.log(sizes), np.log(losses)
    line = stats.linregress(x, y)
    s = np.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / 6)
    h = 1 / 8 + (np.log(at) - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
    t = stats.t.ppf(0.975, 6)
    assert pure.predicted == pytest.approx(
        np.exp(line.intercept + line.slope * np.log(at)), rel=1e-6
    )
    expected = t * s * np.sqrt(1 + h)
    assert np.log(pure.high / pure.predicted) == pytest.approx(expected, rel=0.05)
    assert np.log(pure.predicted / pure.low) == pytest.approx(expected, rel=0.05)
    assert expected > 1.3 * t * s * np.sqrt(h)  # so that the two differ clearly


def test_lost_flops_are_those_of_the_lost_steps(tmp_path):
    home, one = Home(tmp_path), trial()
    folder = home.trial("s", one.name)
    init_run_dir(folder, "trial.json", one)
    lost = [{"commit": "a", "lost_steps": 5, "lost_seconds": 1.5}, {"commit": "b", "lost_steps": 2}]
    write_json(folder / "provenance.json", {"attempts": [*lost, {"commit": "c"}]})
    line = {"kind": "validation", "step": 12, "time_ms": 1, "loss": 1.0, "seconds": 9.0,
            "images_per_second": 1.0}  # fmt: skip
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (row,) = rows_of(home, Sweep(name="s", question="?", trials=(one,)))
    a_step = one.batch_size * total(var_training_flops(one.model, one.tokenizer))
    assert row["train_flops"] == 12 * a_step
    assert row["lost_flops"] == 7 * a_step
    assert (row["attempts"], row["lost_seconds"], row["commit"]) == (3, 1.5, "c")


def test_mlflow_has_the_time_of_each_measurement(tmp_path):
    home, one = Home(tmp_path), trial()
    folder = home.trial("s", one.name)
    init_run_dir(folder, "trial.json", one)
    write_json(folder / "provenance.json", {"attempts": [{"commit": "abc"}]})
    began = 1_600_000_000_000  # in 2020
    speed = {"seconds": 1.0, "images_per_second": 8.0}
    lines = [
        {"kind": kind, "step": step, "time_ms": began + 1000 * step, "loss": 1.0, **speed}
        for step in (1, 2, 5)
        for kind in ("train", "validation")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sweep = Sweep(name="s", question="?", trials=(one,))
    mirror = Mirror(home, sweep, MLflowTracker(home))
    mirror.catch_up()
    (run,) = mirror.tracker.client.search_runs([mirror.tracker.experiment("s")])
    for name in ("train/loss", "val/loss"):
        history = mirror.tracker.client.get_metric_history(run.info.run_id, name)
        assert [(m.step, m.timestamp) for m in history] == [
            (1, began + 1000), (2, began + 2000), (5, began + 5000),
        ]  # fmt: skip
