"""How a tokenizer uses a GPU, tested without one: no wait within a step, one format of tensors.

On the meta device tensors have no values: code that needs one raises an error there. The code paths
are those of a GPU.
"""

import copy
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import images as leaves
from conftest import numbers, stops_after, tokenizer
from test_generation import restless
from test_tokenizer_training import CRITICISED, EVERYTHING, run
from torch import nn

from var_scaling.data.dead_leaves import DeadLeavesSource
from var_scaling.data.loader import for_device, in_order
from var_scaling.recipe import Codebook
from var_scaling.tokenizer import autoencoder
from var_scaling.tokenizer.autoencoder import (
    AttentionBlock,
    DropoutDraws,
    GroupNorm,
    _ChannelsLastNorm,
    to_unit,
)
from var_scaling.tokenizer.cache_files import describe
from var_scaling.tokenizer.codebook import CodebookUpdater
from var_scaling.tokenizer.critic import hinge_loss
from var_scaling.tokenizer.encode import _Encoder, write_cache
from var_scaling.tokenizer.model import MultiScaleVQVAE, freeze
from var_scaling.tokenizer.perceptual import Perceptual
from var_scaling.training.loop import Diverged, Interrupted
from var_scaling.training.tokenizer import _TokenizerTrainer
from var_scaling.training.world import World

CPU, META = torch.device("cpu"), torch.device("meta")
CHANNELS_LAST = torch.channels_last
# Generators of random numbers exist only for real devices.
ON_META = {**EVERYTHING, "dropout": 0.0, "norm_groups": 4}
STEPS = (0, 2, 5, 6)  # before the codes; codes; restarts and critic; critic


@pytest.fixture
def meta_steps(monkeypatch):
    """Autocast and the fused AdamW refuse the meta device by its name only."""
    monkeypatch.setattr(torch, "autocast", lambda *words, **options: nullcontext())
    # By `sys.modules`: torch.optim hides its module `adam`.
    monkeypatch.setattr(
        sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda parameter: None
    )


def trainer_on_meta(**changes) -> _TokenizerTrainer:
    t = tokenizer(**{**ON_META, **changes})
    vgg = Perceptual() if t.losses.perceptual > 0 else None
    return _TokenizerTrainer(t, vgg, World(device=META))


def images_on_meta() -> torch.Tensor:
    return to_unit(torch.empty(8, 16, 16, 3, dtype=torch.uint8, device=META))


# No waits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("learns", ["averages", "gradient"])
def test_no_training_step_needs_a_value(precision, learns, meta_steps):
    codebook = Codebook(starts_at=2, restart_every=3, learns=learns)
    trainer = trainer_on_meta(precision=precision, codebook=codebook)
    assert trainer.optimizer.scaler.is_enabled() == (precision == "fp16")
    for step in STEPS:
        stats = trainer.train_step(images_on_meta(), step)
        assert {value.device for value in stats.values()} == {META}
        assert ("critic_grad_norm" in stats) == (step >= 5)
        assert ("critic_skipped" in stats) == (step >= 5 and precision == "fp16")


@pytest.mark.parametrize("wait", [torch.nonzero, torch.Tensor.item, torch.Tensor.cpu, bool])
def test_the_test_above_detects_a_wait(wait, meta_steps, monkeypatch):
    trainer = trainer_on_meta()
    uses_and_sums = CodebookUpdater._uses_and_sums

    def waits(updater, *words):
        wait(updater.uses_V.sum())
        return uses_and_sums(updater, *words)

    monkeypatch.setattr(CodebookUpdater, "_uses_and_sums", waits)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        trainer.train_step(images_on_meta(), step=2)


def test_encoding_needs_no_value(meta_steps):
    model = freeze(MultiScaleVQVAE(tokenizer()).to(META))
    assert model.encode(images_on_meta()).shape == (8, 21)
    assert model.features(images_on_meta()).shape == (8, 4, 4, 4)


# Codes --------------------------------------------------------------------------------------------


def restarted_by_indices(updater, vectors, step):
    """The plain restart: one number for each dead code, in the order of the codes."""
    mean_use = updater.uses_V.mean()
    dead = (updater.uses_V < updater.config.restart_below * mean_use).nonzero().flatten()
    joined = torch.cat(vectors)
    return dead, joined[updater._draw(len(joined), len(dead), "restart", step)]


@pytest.mark.parametrize("least_use", [0.0, 0.3, 3.0])
def test_dead_codes_get_the_vectors_that_are_drawn_for_them(least_use):
    """No code, some and all of them are dead."""
    generator = torch.Generator().manual_seed(0)
    config = Codebook(restart_below=least_use)
    updater = CodebookUpdater(MultiScaleVQVAE(tokenizer()).quantize, config, seed=0)
    updater.uses_V.copy_(torch.rand(32, generator=generator))
    vectors = [torch.randn(count, 4, generator=generator) for count in (8, 32, 128)]
    codes_VC, uses_V, mean_use = updater.codes_VC.clone(), updater.uses_V.clone(), 0.0
    dead, expected = restarted_by_indices(updater, vectors, 5)
    mean_use = uses_V.sum() / 32
    restarted_V = updater._restart(vectors, 5)
    assert restarted_V.nonzero().flatten().tolist() == dead.tolist()
    assert len(dead) == {0.0: 0, 3.0: 32}.get(least_use, len(dead))
    codes_VC[dead], uses_V[dead] = expected, mean_use
    assert torch.equal(updater.codes_VC, codes_VC)
    assert torch.equal(updater.uses_V, uses_V)
    assert torch.equal(updater.sums_VC[dead], expected * mean_use)


# Overflows in fp16 --------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_overflow_of_the_critic_is_skipped_and_not_logged(tmp_path, monkeypatch):
    """Its gradient norm is no number then, and ended the training as diverged."""
    monkeypatch.setattr("var_scaling.training.optim._INITIAL_SCALE", 2.0**30)
    monkeypatch.setattr("var_scaling.training.optim._MAX_SCALE", 2.0**30)
    t = tokenizer(**CRITICISED, precision="fp16", steps=40)
    run(tmp_path / "whole", t)
    lines = [line for line in numbers(tmp_path / "whole/metrics.jsonl") if line["kind"] == "train"]
    with_critic = [line for line in lines if "critic" in line]
    overflows = [line for line in with_critic if line["critic_skipped"] > 0]
    assert 0 < len(overflows) < len(with_critic)
    for line in with_critic:
        assert ("critic_grad_norm" in line) == (line["critic_skipped"] == 0)
        assert ("adversarial" in line) == (line["skipped"] == 0)
    # A resume logs the same.
    with pytest.raises(Interrupted):
        run(tmp_path / "torn", t, poll_signal=stops_after(len(lines) - len(with_critic) + 2))
    run(tmp_path / "torn", t)
    assert numbers(tmp_path / "torn/metrics.jsonl") == numbers(tmp_path / "whole/metrics.jsonl")


def test_a_critic_whose_loss_scale_falls_below_1_has_diverged(tmp_path, monkeypatch):
    def infinite_gradient(real, fake):
        loss = hinge_loss(real, fake)
        loss.register_hook(lambda grad: grad * torch.inf)
        return loss

    monkeypatch.setattr("var_scaling.training.judges.hinge_loss", infinite_gradient)
    with pytest.raises(Diverged, match=r"critic_grad_norm = (nan|inf) at step 28"):
        run(tmp_path, tokenizer(**CRITICISED, precision="fp16", steps=40))


# Formats ------------------------------------------------------------------------------------------


def use_norms_of_a_gpu(monkeypatch):
    def forward(layer, x):
        return _ChannelsLastNorm.apply(x, layer.weight, layer.bias, layer.num_groups, layer.eps)

    monkeypatch.setattr(GroupNorm, "forward", forward)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_norm_of_a_gpu_computes_the_same(groups, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 6, 6, generator=generator).to(memory_format=CHANNELS_LAST)
    grad = torch.randn(3, 8, 6, 6, generator=generator).to(memory_format=CHANNELS_LAST)
    layer = GroupNorm(groups, 8, eps=1e-6)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)

    def result_and_gradients():
        given = x.clone().requires_grad_()
        layer.zero_grad()
        y = layer(given)
        y.backward(grad)
        return y.detach(), given.grad, layer.weight.grad, layer.bias.grad

    usual, of_half = result_and_gradients(), layer(x.bfloat16().float())
    use_norms_of_a_gpu(monkeypatch)
    ours = result_and_gradients()
    torch.testing.assert_close(ours, usual, rtol=1e-5, atol=1e-5)
    assert all(values.is_contiguous(memory_format=CHANNELS_LAST) for values in ours[:2])
    torch.testing.assert_close(layer(x.bfloat16()), of_half.bfloat16())


def loss_and_gradients(model: MultiScaleVQVAE, images: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    rebuilt, quantized = model(images, 0.25, True)
    loss = (rebuilt - images).square().mean() + quantized.loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [loss.detach(), rebuilt.detach(), *gradients]


@pytest.mark.parametrize("groups", [1, 4])
def test_a_channels_last_tokenizer_computes_the_same(groups, monkeypatch):
    model = restless(MultiScaleVQVAE(tokenizer(norm_groups=groups))).train()
    model.requires_grad_()
    pixels = torch.randint(256, (4, 16, 16, 3), generator=torch.Generator().manual_seed(0))
    images = to_unit(pixels.to(torch.uint8))
    usual = loss_and_gradients(model, images.contiguous())
    use_norms_of_a_gpu(monkeypatch)
    model.to(memory_format=CHANNELS_LAST)
    ours = loss_and_gradients(model, images)
    assert len(usual) > 50
    for one, other in zip(ours, usual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Full backward hook")  # images get no gradient
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_maps_of_a_training_step_are_channels_last(precision, vgg, monkeypatch):
    """Forward and backward: convolutions of a CPU choose the format of their results as those of
    a GPU do. Only the gradients of queries, keys and values are joined in another format."""
    use_norms_of_a_gpu(monkeypatch)
    t = tokenizer(**{**EVERYTHING, "dropout": 0.0, "precision": precision})
    trainer = _TokenizerTrainer(t, copy.deepcopy(vgg), World())
    judges, converted = trainer.losses, []

    def check(layer, *values):
        maps = [part for given in values for part in given if part is not None]
        if not all(part.is_contiguous(memory_format=CHANNELS_LAST) for part in maps):
            converted.append(layer)

    def check_forward(layer, given, result):
        check(layer, given, (result,))

    for network in (trainer.model.encoder, trainer.model.decoder, judges.critic, judges.perceptual):
        network.to(memory_format=CHANNELS_LAST)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.GroupNorm):
                layer.register_forward_hook(check_forward)
                layer.register_full_backward_hook(check)
    pixels = torch.randint(256, (8, 16, 16, 3), generator=torch.Generator().manual_seed(0))
    trainer.train_step(to_unit(pixels.to(torch.uint8)), step=5)
    attention = [m for m in trainer.model.modules() if isinstance(m, AttentionBlock)]
    assert len(attention) == 5
    assert set(converted) == {layer.qkv for layer in attention}


def test_on_a_gpu_all_convolutions_are_channels_last(meta_steps):
    trainer = trainer_on_meta()
    judges = trainer.losses
    networks = trainer.model, trainer.average.average, judges.critic, judges.perceptual
    weights = [weight for network in networks for weight in network.parameters()]
    assert all(w.is_contiguous(memory_format=CHANNELS_LAST) for w in weights if w.ndim == 4)
    on_cpu = _TokenizerTrainer(tokenizer(), None, World()).model
    assert all(weight.is_contiguous() for weight in on_cpu.parameters())


# Dropout ------------------------------------------------------------------------------------------


def masks(rows: range, group: int, monkeypatch) -> torch.Tensor:
    """Masks of two layers for the images `rows` of a global batch, in groups of `group` images."""
    monkeypatch.setitem(autoencoder._DROPOUT_GROUP, "cpu", group)
    draws = DropoutDraws()
    draws.seed(lambda k: 100 + k, rows, CPU)
    x = torch.ones(len(rows), 3, 4, 4)
    return torch.stack([draws.kept(x, 0.3), draws.kept(x, 0.3)], dim=1)


@pytest.mark.parametrize("group", [1, 4, 5, 8])
@pytest.mark.parametrize("processes", [2, 3, 4, 12])
def test_dropout_does_not_depend_on_the_number_of_processes(group, processes, monkeypatch):
    whole = masks(range(12), group, monkeypatch)
    rows = 12 // processes
    shares = [range(rank * rows, (rank + 1) * rows) for rank in range(processes)]
    assert torch.equal(torch.cat([masks(one, group, monkeypatch) for one in shares]), whole)
    assert len({tuple(mask.flatten().tolist()) for mask in whole.flatten(0, 1)}) == 24
    assert 0.25 < 1 - whole.float().mean() < 0.35


def test_on_a_cpu_each_image_has_its_own_generator():
    draws = DropoutDraws()
    draws.seed(lambda k: 7 * k, range(2, 5), CPU)
    kept = draws.kept(torch.ones(3, 2, 4, 4), 0.5)
    for row, mask in zip(range(2, 5), kept, strict=True):
        drawn = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(7 * row))
        assert torch.equal(mask, drawn >= 0.5)


# Images -------------------------------------------------------------------------------------------


def test_arrays_of_other_processes_arrive_in_shared_memory():
    arrays = list(in_order(lambda key: np.full((2, 3), key, np.uint8), range(3), workers=1))
    assert [array.tolist() for array in arrays] == [[[k] * 3] * 2 for k in range(3)]
    assert all(torch.from_numpy(array).is_shared() or array.base.is_shared() for array in arrays)
    others = in_order(lambda key: [("a", key)], range(3), workers=1)
    assert list(others) == [[("a", key)] for key in range(3)]


def test_images_for_a_gpu_are_bytes_that_a_thread_pins_ahead(monkeypatch):
    pinned = []

    def pin(values):
        pinned.append((values.dtype, threading.current_thread() is threading.main_thread()))
        return values

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    arrays = [np.full((2, 3), key, np.uint8) for key in range(5)]
    assert [int(values[0, 0]) for values in for_device(iter(arrays), CPU)] == [0, 1, 2, 3, 4]
    assert pinned == []
    values = for_device(iter(arrays), torch.device("cuda"))
    assert [int(part[0, 0]) for part in values] == [0, 1, 2, 3, 4]
    assert pinned == [(torch.uint8, False)] * 5


@pytest.mark.parametrize(("on_cpu", "expected"), [(True, [7] * 6), (False, [6] * 7)])
def test_on_a_gpu_all_crops_of_an_image_are_in_one_batch(tmp_path, monkeypatch, on_cpu, expected):
    """So its file is decoded once. On a CPU the size of a batch decides the rounding."""
    source, t = DeadLeavesSource(leaves(train_images=14), "train"), tokenizer()
    description = {**describe(t, "abc", source.data, "train"), "crops": 3}
    batches, read, begin = [], source.images, _Encoder.__init__

    def images(rows, epochs):
        batches.append(rows.tolist())
        return read(rows, epochs)

    def begins(encoder, *words):
        begin(encoder, *words)
        encoder.on_cpu = on_cpu

    monkeypatch.setattr(source, "images", images)
    monkeypatch.setattr(_Encoder, "__init__", begins)
    monkeypatch.setattr("var_scaling.tokenizer.encode._BATCH", 7)
    model, goes_on = freeze(MultiScaleVQVAE(t)), lambda done: False
    write_cache(tmp_path, model, source, description, 0, lambda *words: None, goes_on)
    assert [len(rows) for rows in batches] == expected
    assert [row for rows in batches for row in rows] == [row for row in range(14) for _ in range(3)]
    if not on_cpu:
        assert sum(len(set(rows)) for rows in batches) == 14
