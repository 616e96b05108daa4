"""Several processes train a tokenizer and a trial as one process does, and stop together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import goes_on, numbers, random_cache, tokenizer, trial
from safetensors.torch import load_file
from test_tokenizer_training import EVERYTHING, run

from var_scaling.config import TrainedTokenizer
from var_scaling.evaluation.likelihood import LABELS, evaluate
from var_scaling.metrics import MetricsLog
from var_scaling.models.var.model import VAR
from var_scaling.recipe import Codebook
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.loop import Signal
from var_scaling.training.trial import train
from var_scaling.training.world import World
from var_scaling.weights import save_weights


def shared_tokenizer() -> TrainedTokenizer:
    """Three scales use three of the four phi: one has no gradient on any process."""
    return tokenizer(**EVERYTHING, codebook=Codebook(decay=0.9, restart_every=3))


def run_trial(
    folder: Path, world: World, poll_signal=goes_on, checkpoints: Path | None = None, batch: int = 8
):
    log = MetricsLog(folder / "metrics.jsonl")
    quantizer = MultiScaleVQVAE(tokenizer()).quantize.requires_grad_(False)
    caches = random_cache(50, seed=1), random_cache(20, seed=2)
    words = (checkpoints or folder / "checkpoint", log, 1e9, poll_signal, world)
    one = trial(class_dropout_prob=0.5, batch_size=batch)
    return train(one, quantizer, *caches, *words).model


def scores(world: World) -> dict:
    """Scores of random weights on 30 images in batches of 4; the last batch has 2."""
    model = VAR(trial().model, tokenizer(), 8, seed=0)
    quantizer = MultiScaleVQVAE(tokenizer()).quantize
    return evaluate(trial().spec, model, quantizer, random_cache(30), LABELS, batch=4, world=world)


def wishes_differ(world: World):
    """Process 0 gets a checkpoint signal after step 2, process 1 a stop signal after step 5."""
    wishes = {(0, 2): Signal.CHECKPOINT, (1, 5): Signal.STOP}
    return lambda done: wishes.get((world.rank, done), Signal.CONTINUE)


WORKER = """
import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock
import test_tokenizer_processes as tests
from var_scaling.training import distributed
from var_scaling.training.loop import Interrupted
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.perceptual import load_perceptual
from var_scaling.weights import save_weights
import torch
from torch.nn.parallel import DistributedDataParallel as DDP
torch.set_num_threads(1)
home, rank = Path(sys.argv[1]), int(sys.argv[2])
world = distributed.join(rank, 2, torch.device("cpu"), home / "meeting.json", "127.0.0.1")
vgg = load_perceptual((home / "vgg.safetensors",), None)
folder = home / f"rank{world.rank}"
model = tests.run(folder, tests.shared_tokenizer(), vgg, world=world)
save_weights(model, folder / "weights.safetensors")
with mock.patch.object(DDP, "no_sync", autospec=True, side_effect=DDP.no_sync) as kept_back:
    for name, each in {"trial": world, "passes": replace(world, micro_batch_size=3)}.items():
        save_weights(tests.run_trial(folder / name, each), folder / f"{name}.safetensors")
found = {"scores": tests.scores(world), "kept_back": kept_back.call_count}
try:
    tests.run_trial(folder / "stopped", world, tests.wishes_differ(world), home / "shared")
except Interrupted as error:
    found["stopped"] = str(error)
resumed = tests.run_trial(folder / "stopped", world, checkpoints=home / "shared")
save_weights(resumed, folder / "resumed.safetensors")
try:
    tests.run_trial(folder / "apart", world, checkpoints=home / ("shared", "empty")[rank])
except RuntimeError as error:
    found["refused"] = str(error)
(folder / "found.json").write_text(json.dumps(found))
distributed.leave(world)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory, vgg) -> Path:
    """The folder in which two processes ran WORKER."""
    home = tmp_path_factory.mktemp("two")
    save_weights(vgg, home / "vgg.safetensors")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(home), str(rank)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    message = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], message
    return home


def found_by(home: Path, rank: int) -> dict:
    return json.loads((home / f"rank{rank}" / "found.json").read_text())


@pytest.mark.slow
def test_training_with_two_processes_equals_training_with_one(two, tmp_path, vgg):
    """The same rows, codes restarted from the same vectors, numbers equal to rounding."""
    trial_alone = run_trial(tmp_path / "trial", World())
    alone = {
        "weights": run(tmp_path, shared_tokenizer(), vgg),
        "trial": trial_alone,
        "passes": trial_alone,  # in micro-batches of at most three of four rows
    }
    for what, model in alone.items():
        ranks = [load_file(two / f"rank{rank}" / f"{what}.safetensors") for rank in (0, 1)]
        for name, value in model.state_dict().items():
            assert torch.equal(ranks[0][name], ranks[1][name])
            # The gradient of the key bias is only rounding error, which AdamW scales up.
            torch.testing.assert_close(ranks[0][name], value, rtol=1e-3, atol=1e-3)
    assert not (two / "rank1" / "metrics.jsonl").read_text()  # only one of them writes
    for there, here in {".": ".", "trial": "trial", "passes": "trial"}.items():
        lines = [
            [line for line in numbers(folder / "metrics.jsonl") if line["kind"] == "train"]
            for folder in (tmp_path / here, two / "rank0" / there)
        ]
        for line, other in zip(*lines, strict=True):
            assert line.keys() == other.keys()
            found, expected = (
                [one[name] for name in line if name != "kind"] for one in (other, line)
            )
            np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.slow
def test_gradients_are_exchanged_once_per_step(two):
    assert [found_by(two, rank)["kept_back"] for rank in (0, 1)] == [
        12,
        12,
    ]  # one of two micro-batches


@pytest.mark.slow
def test_two_processes_compute_exactly_the_scores_of_one(two):
    alone = scores(World())
    assert [found_by(two, rank)["scores"] for rank in (0, 1)] == [alone, alone]
    assert alone["images_scored"] == 30
    assert alone["loss_stderr"] > 0


@pytest.mark.slow
def test_a_signal_to_one_process_acts_on_all(two):
    stopped = "d2 stopped after step 5 of 12"
    assert [found_by(two, rank)["stopped"] for rank in (0, 1)] == [stopped] * 2
    names = sorted(path.name for path in (two / "shared").iterdir())
    assert names == ["step-000000002.pt", "step-000000005.pt"]
    whole, resumed = (
        load_file(two / "rank0" / f"{name}.safetensors") for name in ("trial", "resumed")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.slow
def test_processes_with_different_checkpoints_refuse_to_resume(two):
    for rank in (0, 1):
        assert "disk that all processes share" in found_by(two, rank)["refused"]


def test_a_batch_that_the_processes_do_not_divide_is_an_error():
    assert World(rank=1, size=2).share(8) == slice(4, 8)
    with pytest.raises(ValueError, match="batch_size = 9: not divisible by 2 processes"):
        World(size=2).share(9)


THREE = """
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock
import test_tokenizer_processes as tests
from conftest import stops_after
from torch.nn.parallel import DistributedDataParallel as DDP
from var_scaling.training import distributed, world as worlds
from var_scaling.training.loop import Interrupted
from var_scaling.training.shards import Shards
from var_scaling.weights import save_weights
import torch
torch.set_num_threads(1)
home, rank = Path(sys.argv[1]), int(sys.argv[2])
run = partial(tests.run_trial, batch=6)
kept = []

def gather(shards):
    state = shards.adamw.state.values()
    kept.append(sum(part["exp_avg"].numel() for part in state))
    return Shards_gather(shards)
world = distributed.join(rank, 3, torch.device("cpu"), home / "meeting.json", "127.0.0.1")
# Buckets of a few layers, as a large model has them.
small = partial(DDP, bucket_cap_mb=0.005)
with mock.patch.object(worlds, "DistributedDataParallel", small), \\
        mock.patch("var_scaling.training.trial.sync_gradients", lambda net, now: nullcontext()):
    save_weights(run(home / f"{rank}" / "whole", world), home / f"whole-{rank}")
    for count in (2, 5):
        try:
            run(home / f"{rank}" / "torn", world, stops_after(count), home / "c")
        except Interrupted:
            pass
    torn = run(home / f"{rank}" / "torn", world, checkpoints=home / "c")
    save_weights(torn, home / f"torn-{rank}")
    # Stopped with shards, continued without, and the other way round.
    Shards_gather, shards = Shards.gather, replace(world, shard_optimizer=True)
    with mock.patch.object(Shards, "gather", gather):
        for name, worlds_of_runs in {"s": (shards, world, shards), "o": (world, shards)}.items():
            for one in worlds_of_runs:
                try:
                    model = run(home / f"{rank}" / name, one, stops_after(3), home / name)
                except Interrupted:
                    pass
            model = run(home / f"{rank}" / name, one, checkpoints=home / name)
            save_weights(model, home / f"{name}-{rank}")
(home / f"kept-{rank}").write_text(json.dumps(kept))
distributed.leave(world)
"""


@pytest.mark.slow
def test_a_training_of_three_processes_resumes_bitwise(tmp_path):
    """The sum of three gradients depends on their order, which depends on the buckets of DDP.
    Shares of the optimizer change no bit, and checkpoints with and without them are the same.
    """
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", THREE, str(tmp_path), str(rank)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    message = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], message
    whole = load_file(tmp_path / "whole-0")
    for run_name in ("torn-0", "s-0", "s-1", "s-2", "o-0", "o-2"):
        found = load_file(tmp_path / run_name)
        for name, value in whole.items():
            assert torch.equal(value, found[name]), (run_name, name)
    kept = [json.loads((tmp_path / f"kept-{rank}").read_text()) for rank in range(3)]
    numbers_of_all = sum(value.numel() for value in whole.values())
    for parts in zip(*kept, strict=True):
        assert sum(parts) == numbers_of_all
        assert max(parts) < 0.4 * numbers_of_all
