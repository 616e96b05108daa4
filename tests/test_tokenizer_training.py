"""Tokenizer training: bitwise resume with all losses; terms of weight 0 are absent."""

from pathlib import Path

import pytest
import torch
from conftest import goes_on, images, numbers, stops_after, tokenizer

from var_scaling.config import TrainedTokenizer
from var_scaling.data.dead_leaves import DeadLeavesSource
from var_scaling.metrics import MetricsLog
from var_scaling.recipe import Codebook, Critic, Losses, Optimiser
from var_scaling.tokenizer.critic import PatchCritic, adversarial_warm_up, balanced_gradients
from var_scaling.tokenizer.perceptual import Perceptual, load_perceptual
from var_scaling.training import checkpoint
from var_scaling.training.average import WeightAverage
from var_scaling.training.judges import ReconstructionLosses
from var_scaling.training.loop import Interrupted, Signal
from var_scaling.training.tokenizer import train_tokenizer
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


def run(folder: Path, t: TrainedTokenizer, vgg=None, poll_signal=goes_on, world=None, threads=1):
    log = MetricsLog(folder / "metrics.jsonl")
    source = {split: DeadLeavesSource(images(), split) for split in ("train", "validation")}
    judge = vgg if t.losses.perceptual > 0 else None
    try:
        return train_tokenizer(
            t, source["train"], source["validation"], judge, folder / "checkpoint", log, 1e9,
            poll_signal, 0, folder / "sheet.png", world or World(), threads,
        )  # fmt: skip
    finally:
        log.close()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(EVERYTHING, marks=pytest.mark.thorough),
        {**CRITICISED, "precision": "bf16"},
        {**CRITICISED, "precision": "fp16"},
        {**CRITICISED, "codebook": Codebook(learns="gradient", starts_at=2, restart_every=3)},
        {"codebook": Codebook(learns="gradient", k_means_images=0, restart_below=0.0)},
    ],
    ids=["plain", "everything", "bf16", "fp16", "gradient codes", "as released"],
)
def test_a_resumed_tokenizer_ends_bitwise_equal(changes, tmp_path, vgg):
    t = tokenizer(**changes)
    whole = run(tmp_path / "whole", t, vgg)
    for count in (0, 2, 2):  # before, across and after the start of the codebook and of the critic
        with pytest.raises(Interrupted):
            run(tmp_path / "torn", t, vgg, poll_signal=stops_after(count))
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


def test_a_tokenizer_saves_on_a_signal_and_continues(tmp_path):
    saves = lambda done: Signal.CHECKPOINT if done == 6 else Signal.CONTINUE  # noqa: E731
    t = tokenizer(**CRITICISED)
    whole = run(tmp_path, t, poll_signal=saves)
    assert checkpoint.latest(tmp_path / "checkpoint")["step"] == 6
    went_on = run(tmp_path, t)
    for name, value in went_on.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_threads_that_compute_images_do_not_change_a_tokenizer(tmp_path):
    t = tokenizer()
    models = [run(tmp_path / str(threads), t, threads=threads) for threads in (1, 2)]
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name
    lines = [numbers(tmp_path / name / "metrics.jsonl") for name in ("1", "2")]
    assert lines[0] == lines[1]


def test_a_tokenizers_batch_is_not_split(tmp_path):
    with pytest.raises(
        ValueError, match=r"batch_size = 8 is more than micro_batch_size = 3 .* more processes"
    ):
        run(tmp_path, tokenizer(), world=World(micro_batch_size=3))
    run(tmp_path, tokenizer(), world=World(micro_batch_size=8))


def test_a_tokenizer_learns(tmp_path):
    run(tmp_path, tokenizer(steps=120, batch_size=16))
    scores = [line for line in numbers(tmp_path / "metrics.jsonl") if line["kind"] == "validation"]
    assert scores[-1]["psnr_db"] > scores[0]["psnr_db"] + 0.3
    assert scores[-1]["codes_used_all"] > 0.9


def test_each_loss_term_is_logged_unless_its_weight_is_0(tmp_path, vgg):
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


def test_a_loss_term_of_weight_0_is_not_computed(vgg):
    judges = ReconstructionLosses(tokenizer(), None, World())
    assert (judges.perceptual, judges.critic) == (None, None)
    with pytest.raises(AssertionError):
        ReconstructionLosses(tokenizer(), vgg, World())


# The judges -----------------------------------------------------------------------------------


def test_the_gradient_of_the_critic_is_scaled_to_that_of_the_reconstruction():
    torch.manual_seed(0)
    layer, critic = torch.nn.Conv2d(4, 3, 3, padding=1), PatchCritic(CRITIC, seed=0)
    rebuilt = layer(torch.randn(2, 4, 16, 16))
    truth, verdict = (rebuilt - 0.3).square().mean(), 5 * -critic(rebuilt).mean()
    apart = [
        torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in (truth, verdict)
    ]
    by_truth, by_critic, factor = balanced_gradients(
        CRITIC, rebuilt, truth, verdict, layer.weight, lambda value: value
    )
    assert factor == pytest.approx(float(apart[0].norm() / apart[1].norm()), rel=1e-4)
    surrogate = (rebuilt * (by_truth + 0.4 * factor * by_critic)).sum()
    (ours,) = torch.autograd.grad(surrogate, layer.weight)
    torch.testing.assert_close(ours, apart[0] + 0.4 * factor * apart[1])
    assert (0.4 * factor * apart[1]).norm() == pytest.approx(float(0.4 * apart[0].norm()), rel=1e-4)


def test_the_adversarial_weight_is_0_then_rises_then_1():
    message = [adversarial_warm_up(CRITIC, step, 10) for step in range(10)]
    assert message == [0, 0, 0, 0, 0.5, 1, 1, 1, 1, 1]


def test_lpips_of_equal_images_is_0_and_its_gradient_reaches_only_the_reconstruction(vgg):
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    assert vgg(image, image).tolist() == [0, 0]
    other = (image * 0.5).requires_grad_()
    distances = vgg(other, image)
    assert distances.shape == (2,)
    assert (distances > 0).all()
    distances.sum().backward()
    assert other.grad.abs().sum() > 0


def test_perceptual_weights_from_one_file_or_two_have_the_same_hash(tmp_path, vgg):
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


def test_resuming_with_other_perceptual_weights_is_refused(tmp_path, vgg):
    t = tokenizer(**EVERYTHING)
    with pytest.raises(Interrupted):
        run(tmp_path, t, vgg, poll_signal=stops_after(2))
    other = Perceptual().requires_grad_(False)
    other.sha256 = "b" * 64
    with pytest.raises(ValueError, match="training started with perceptual weights"):
        run(tmp_path, t, other)


@pytest.mark.slow
def test_a_half_precision_overflow_is_skipped_with_the_critic_too(tmp_path):
    loud = CRITICISED["losses"].model_copy(update={"l2": 1e5})
    run(tmp_path, tokenizer(**{**CRITICISED, "losses": loud, "precision": "fp16", "steps": 20}))
    lines = numbers(tmp_path / "metrics.jsonl")
    assert sum(line.get("skipped", 0) for line in lines) > 0


def test_a_critic_too_deep_for_its_images_is_refused_at_once():
    deep = CRITIC.model_copy(update={"halvings": 3})
    with pytest.raises(
        ValueError, match=r"halvings = 3: too many for images of side 16; at most 2"
    ):
        tokenizer(losses=Losses(adversarial=0.4, critic=deep))
    PatchCritic(CRITIC.model_copy(update={"channels": 40}), seed=0)


# Averages -----------------------------------------------------------------


def test_the_weight_average_follows_its_ramp():
    module, spare = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    average = WeightAverage(module, spare, decay=0.5)
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1)
    average.update(0)
    torch.testing.assert_close(spare.weight, start + 0.9)  # the decay is (0 / 2 + 1) / (0 / 2 + 10)
    for step in range(1000, 1001):
        average.update(step)  # after many steps: the limit of 0.5
    torch.testing.assert_close(spare.weight, start + 0.95)


def test_the_saved_weights_are_the_average(tmp_path):
    kept = run(tmp_path / "a", tokenizer(weight_average=0.99))
    last = run(tmp_path / "b", tokenizer())
    assert not torch.equal(kept.encoder.conv_in.weight, last.encoder.conv_in.weight)
    assert not any(parameter.requires_grad for parameter in kept.parameters())
