"""Training a tokenizer: bitwise resume with every judge, terms of weight 0 absent, many as one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import goes_on, images, numbers, random_cache, stops_after, tokenizer, trial
from safetensors.torch import load_file

from var_scaling.config import TrainedTokenizer
from var_scaling.data.dead_leaves import DeadLeavesSource
from var_scaling.evaluation.likelihood import LABELS, evaluate
from var_scaling.metrics import MetricsLog
from var_scaling.models.var import VAR
from var_scaling.recipe import Codebook, Critic, Losses, Optimiser
from var_scaling.tokenizer.critic import PatchCritic, balanced, say_at
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.perceptual import Perceptual, load_perceptual
from var_scaling.training import checkpoint
from var_scaling.training.average import WeightAverage
from var_scaling.training.judges import Judges
from var_scaling.training.loop import Interrupted, Wish
from var_scaling.training.tokenizer import train_tokenizer
from var_scaling.training.trial import train
from var_scaling.training.world import World
from var_scaling.weights import WeightsError, save_weights

CRITIC = Critic(
    channels=8, halvings=2, starts=0.4, warm_up=0.2, optimiser=Optimiser(learning_rate=1e-3)
)
EVERYTHING = {
    "losses": Losses(l1=0.2, perceptual=0.1, adversarial=0.4, critic=CRITIC),
    "dropout": 0.1,
    "weight_average": 0.9,
}

CRITICISED = {**EVERYTHING, "losses": Losses(adversarial=0.4, critic=CRITIC)}


@pytest.fixture(scope="module")
def vgg() -> Perceptual:
    """Random weights: they judge, though not as people do."""
    torch.manual_seed(0)
    return Perceptual().requires_grad_(False)


def run(folder: Path, t: TrainedTokenizer, vgg=None, heed=goes_on, world=None):
    log = MetricsLog(folder / "metrics.jsonl")
    source = {split: DeadLeavesSource(images(), split) for split in ("train", "validation")}
    judge = vgg if t.losses.perceptual > 0 else None
    try:
        return train_tokenizer(
            t, source["train"], source["validation"], judge, folder / "checkpoint", log, 1e9, heed,
            0, folder / "sheet.png", world or World(),
        )  # fmt: skip
    finally:
        log.close()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        EVERYTHING,
        {**CRITICISED, "precision": "bf16"},
        {**CRITICISED, "precision": "fp16"},
        {**CRITICISED, "codebook": Codebook(learns="gradient", starts_at=2, restart_every=3)},
        {"codebook": Codebook(learns="gradient", k_means_images=0, restart_below=0.0)},
    ],
    ids=["plain", "everything", "bf16", "fp16", "gradient codes", "as released"],
)
def test_an_interrupted_tokenizer_ends_bitwise_where_an_undisturbed_one_does(
    changes, tmp_path, vgg
):
    t = tokenizer(**changes)
    whole = run(tmp_path / "whole", t, vgg)
    for count in (0, 2, 2):  # before, across and after the codebook's start, and the critic's
        with pytest.raises(Interrupted):
            run(tmp_path / "torn", t, vgg, heed=stops_after(count))
    torn = run(tmp_path / "torn", t, vgg)
    for (name, one), other in zip(
        whole.state_dict().items(), torn.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    lines = numbers(tmp_path / "whole" / "metrics.jsonl")
    assert lines == numbers(tmp_path / "torn" / "metrics.jsonl")
    assert (tmp_path / "whole" / "sheet.png").exists()
    scores = [line for line in lines if line["kind"] == "validation"][-1]
    assert len(scores["used_per_scale"]) == len(scores["perplexity_per_scale"]) == 3
    assert scores["codes_dead"] == round(32 * (1 - scores["codes_used_all"]))
    assert -1 <= scores["ssim"] <= 1


def test_a_tokenizer_saves_when_wished_and_goes_on(tmp_path):
    saves = lambda done: Wish.SAVE if done == 6 else Wish.GO_ON  # noqa: E731
    t = tokenizer(**CRITICISED)
    whole = run(tmp_path, t, heed=saves)
    assert checkpoint.latest(tmp_path / "checkpoint")["step"] == 6
    went_on = run(tmp_path, t)
    for name, value in went_on.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_a_tokenizers_batch_is_not_split(tmp_path):
    with pytest.raises(ValueError, match=r"batch = 8 is more than at_once = 3 .* more processes"):
        run(tmp_path, tokenizer(), world=World(at_once=3))
    run(tmp_path, tokenizer(), world=World(at_once=8))


def test_a_tokenizer_learns(tmp_path):
    run(tmp_path, tokenizer(steps=120, batch=16))
    scores = [line for line in numbers(tmp_path / "metrics.jsonl") if line["kind"] == "validation"]
    assert scores[-1]["psnr_db"] > scores[0]["psnr_db"] + 0.3
    assert scores[-1]["codes_used_all"] > 0.9


def test_each_term_is_logged_and_those_of_weight_0_are_not_there(tmp_path, vgg):
    run(tmp_path / "all", tokenizer(**EVERYTHING), vgg)
    early, late = (numbers(tmp_path / "all" / "metrics.jsonl")[place] for place in (0, -2))
    assert {"l1", "l2", "perceptual", "quantisation", "reconstruction", "loss"} <= set(early)
    assert not {"critic", "adversarial", "adversarial_factor"} & set(early)
    assert {"critic", "critic_grad_norm", "adversarial", "adversarial_factor"} <= set(late)
    weighed = 0.2 * early["l1"] + early["l2"] + 0.1 * early["perceptual"]
    assert early["reconstruction"] == pytest.approx(weighed, rel=1e-5)
    run(tmp_path / "one", tokenizer(losses=Losses(l2=0.0, l1=1.0)))
    only = numbers(tmp_path / "one" / "metrics.jsonl")[0]
    assert "l1" in only
    assert not {"l2", "perceptual", "critic"} & set(only)


def test_a_term_of_weight_0_costs_nothing(vgg):
    judges = Judges(tokenizer(), None, World())
    assert (judges.perceptual, judges.critic) == (None, None)
    with pytest.raises(AssertionError):
        Judges(tokenizer(), vgg, World())


# The judges -----------------------------------------------------------------------------------


def test_the_critics_pull_is_made_as_loud_as_the_truths():
    torch.manual_seed(0)
    layer, critic = torch.nn.Conv2d(4, 3, 3, padding=1), PatchCritic(CRITIC, seed=0)
    rebuilt = layer(torch.randn(2, 4, 16, 16))
    truth, verdict = (rebuilt - 0.3).square().mean(), 5 * -critic(rebuilt).mean()
    apart = [
        torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in (truth, verdict)
    ]
    by_truth, by_critic, factor = balanced(
        CRITIC, rebuilt, truth, verdict, layer.weight, lambda value: value
    )
    assert factor == pytest.approx(float(apart[0].norm() / apart[1].norm()), rel=1e-4)
    surrogate = (rebuilt * (by_truth + 0.4 * factor * by_critic)).sum()
    (ours,) = torch.autograd.grad(surrogate, layer.weight)
    torch.testing.assert_close(ours, apart[0] + 0.4 * factor * apart[1])
    assert (0.4 * factor * apart[1]).norm() == pytest.approx(float(0.4 * apart[0].norm()), rel=1e-4)


def test_the_critic_is_silent_then_rises_then_speaks():
    said = [say_at(CRITIC, step, 10) for step in range(10)]
    assert said == [0, 0, 0, 0, 0.5, 1, 1, 1, 1, 1]


def test_an_image_is_no_distance_from_itself_and_gradients_reach_the_rebuilt_alone(vgg):
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    assert vgg(image, image).tolist() == [0, 0]
    other = (image * 0.5).requires_grad_()
    distances = vgg(other, image)
    assert distances.shape == (2,)
    assert (distances > 0).all()
    distances.sum().backward()
    assert other.grad.abs().sum() > 0


def test_perceptual_weights_come_from_one_file_or_two_and_their_hash_is_the_same(tmp_path, vgg):
    state = vgg.state_dict()
    features = {name: value for name, value in state.items() if name.startswith("features")}
    rest = {name: value for name, value in state.items() if name not in features}
    torch.save(state, tmp_path / "both.pth")
    torch.save({**features, "classifier.0.weight": torch.ones(2, 2)}, tmp_path / "vgg16.pth")
    torch.save(rest, tmp_path / "lpips.pth")
    save_weights(vgg, tmp_path / "both.safetensors")
    one = load_perceptual((tmp_path / "both.pth",), None)
    two = load_perceptual((tmp_path / "vgg16.pth", tmp_path / "lpips.pth"), one.sha256)
    assert load_perceptual((tmp_path / "both.safetensors",), None).sha256 == two.sha256
    images_ = torch.rand(2, 2, 3, 16, 16)
    assert torch.equal(two(*images_), vgg(*images_))
    with pytest.raises(WeightsError, match=r"5 missing: lin0.model.1.weight"):
        load_perceptual((tmp_path / "vgg16.pth",), None)
    with pytest.raises(WeightsError, match=r"but losses\.perceptual_sha256 = 000"):
        load_perceptual((tmp_path / "both.pth",), "0" * 64)
    with pytest.raises(WeightsError, match=r"\[weights\]\n  lpips ="):
        load_perceptual((), None)


def test_going_on_with_other_perceptual_weights_is_refused(tmp_path, vgg):
    t = tokenizer(**EVERYTHING)
    with pytest.raises(Interrupted):
        run(tmp_path, t, vgg, heed=stops_after(2))
    other = Perceptual().requires_grad_(False)
    other.sha256 = "b" * 64
    with pytest.raises(ValueError, match="training began with perceptual weights"):
        run(tmp_path, t, other)


def test_a_loss_too_large_for_half_precision_is_skipped_with_the_critic_too(tmp_path):
    loud = CRITICISED["losses"].model_copy(update={"l2": 1e5})
    run(tmp_path, tokenizer(**{**CRITICISED, "losses": loud, "precision": "fp16", "steps": 20}))
    lines = numbers(tmp_path / "metrics.jsonl")
    assert sum(line.get("skipped", 0) for line in lines) > 0


def test_a_critic_too_deep_for_its_images_is_refused_at_once():
    deep = CRITIC.model_copy(update={"halvings": 3})
    with pytest.raises(
        ValueError, match=r"halvings = 3: leaves nothing of images of side 16; at most 2"
    ):
        tokenizer(losses=Losses(adversarial=0.4, critic=deep))
    PatchCritic(CRITIC.model_copy(update={"channels": 40}), seed=0)


# Averages and several processes -----------------------------------------------------------------


def test_the_weight_average_follows_its_ramp():
    module, spare = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    average = WeightAverage(module, spare, decay=0.5)
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1)
    average.update(0)
    torch.testing.assert_close(spare.weight, start + 0.9)  # (0 / 2 + 1) / (0 / 2 + 10) is kept
    for step in range(1000, 1001):
        average.update(step)  # far on: the limit of 0.5
    torch.testing.assert_close(spare.weight, start + 0.95)


def test_what_is_kept_is_the_average(tmp_path):
    kept = run(tmp_path / "a", tokenizer(weight_average=0.99))
    last = run(tmp_path / "b", tokenizer())
    assert not torch.equal(kept.encoder.conv_in.weight, last.encoder.conv_in.weight)
    assert not any(parameter.requires_grad for parameter in kept.parameters())


def shared_tokenizer() -> TrainedTokenizer:
    """Three scales use three of the four phi: one has no gradient on any process."""
    return tokenizer(**EVERYTHING, codebook=Codebook(decay=0.9, restart_every=3))


def run_trial(folder: Path, world: World, heed=goes_on, checkpoints: Path | None = None):
    log = MetricsLog(folder / "metrics.jsonl")
    quantizer = MultiScaleVQVAE(tokenizer()).quantize.requires_grad_(False)
    caches = random_cache(50, seed=1), random_cache(20, seed=2)
    words = (checkpoints or folder / "checkpoint", log, 1e9, heed, world)
    return train(trial(label_drop=0.5), quantizer, *caches, *words)


def scores(world: World) -> dict:
    """Of random weights on 30 images in batches of 4, so that the last is short."""
    model = VAR(trial().model, tokenizer(), 8, seed=0)
    quantizer = MultiScaleVQVAE(tokenizer()).quantize
    return evaluate(model, quantizer, random_cache(30), LABELS, batch=4, world=world)


def wishes_differ(world: World):
    """The first process wants a checkpoint after step 2, the second wants to leave after step 5."""
    wishes = {(0, 2): Wish.SAVE, (1, 5): Wish.STOP}
    return lambda done: wishes.get((world.rank, done), Wish.GO_ON)


WORKER = """
import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock
import test_tokenizer_training as tests
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
    for name, each in {"trial": world, "passes": replace(world, at_once=3)}.items():
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
    """The folder in which two processes did all that WORKER says."""
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
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    return home


def found_by(home: Path, rank: int) -> dict:
    return json.loads((home / f"rank{rank}" / "found.json").read_text())


@pytest.mark.slow
def test_two_processes_train_what_one_does(two, tmp_path, vgg):
    """The same rows, codes restarted from the same vectors, numbers equal to rounding."""
    trial_alone = run_trial(tmp_path / "trial", World())
    alone = {
        "weights": run(tmp_path, shared_tokenizer(), vgg),
        "trial": trial_alone,
        "passes": trial_alone,  # in passes of at most three rows of four
    }
    for what, model in alone.items():
        ranks = [load_file(two / f"rank{rank}" / f"{what}.safetensors") for rank in (0, 1)]
        for name, value in model.state_dict().items():
            assert torch.equal(ranks[0][name], ranks[1][name])
            # A key's bias has no gradient but rounding, which AdamW takes for one.
            torch.testing.assert_close(ranks[0][name], value, rtol=1e-3, atol=1e-3)
    assert not (two / "rank1" / "metrics.jsonl").read_text()  # one of them writes
    for there, here in {".": ".", "trial": "trial", "passes": "trial"}.items():
        lines = [
            [line for line in numbers(folder / "metrics.jsonl") if line["kind"] == "train"]
            for folder in (tmp_path / here, two / "rank0" / there)
        ]
        for line, other in zip(*lines, strict=True):
            assert line.keys() == other.keys()
            found, wanted = (
                [one[name] for name in line if name != "kind"] for one in (other, line)
            )
            np.testing.assert_allclose(found, wanted, rtol=2e-3)


@pytest.mark.slow
def test_gradients_are_exchanged_once_a_step(two):
    assert [found_by(two, rank)["kept_back"] for rank in (0, 1)] == [12, 12]  # one of two passes


@pytest.mark.slow
def test_two_processes_score_exactly_what_one_does(two):
    alone = scores(World())
    assert [found_by(two, rank)["scores"] for rank in (0, 1)] == [alone, alone]
    assert alone["images_scored"] == 30
    assert alone["loss_stderr"] > 0


@pytest.mark.slow
def test_what_one_process_wishes_all_do_and_resume_from(two):
    stopped = "d2 stopped after step 5 of 12"
    assert [found_by(two, rank)["stopped"] for rank in (0, 1)] == [stopped] * 2
    names = sorted(path.name for path in (two / "shared").iterdir())
    assert names == ["step-000000002.pt", "step-000000005.pt"]
    whole, resumed = (
        load_file(two / "rank0" / f"{name}.safetensors") for name in ("trial", "resumed")
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.slow
def test_processes_that_find_different_checkpoints_refuse_to_go_on(two):
    for rank in (0, 1):
        assert "a shared disk?" in found_by(two, rank)["refused"]


def test_a_batch_that_does_not_divide_is_an_error_not_another_batch():
    assert World(rank=1, size=2).share(8) == slice(4, 8)
    with pytest.raises(ValueError, match="batch = 9: does not divide among 2 processes"):
        World(size=2).share(9)
