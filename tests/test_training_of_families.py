"""Training of VAR, AR and DiT: resumed, in each precision, recomputed, distributed, averaged."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import in_processes, numbers, stops_after
from safetensors.torch import load_file
from three_families import MULTI_SCALE, ONE_SCALE, RESIDUAL, family_trial, trials

from var_scaling.experiment import Trial
from var_scaling.metrics import MetricsLog, read_metrics
from var_scaling.models.ar.config import ArModel
from var_scaling.models.dit.config import DitModel, tiny_dit
from var_scaling.tokenizer.cache import TokenCache, latent_statistics
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.loop import Interrupted
from var_scaling.training.optim import precision_context
from var_scaling.training.trial import TrainedModel, batch_loss, train
from var_scaling.training.world import World

LLAMA = ArModel(
    depth=2, width_per_depth=8, block="llama", positions="rotary", embedding="table",
    hidden_multiple=8,
)  # fmt: skip
TRAINED = {
    **{trial.name: trial for trial in trials(2)},
    "llama": family_trial("llama", LLAMA, ONE_SCALE),
    "averaged var": trials(2)[0].model_copy(update={"weight_average": 0.9}),
    "noise": family_trial(
        "noise",
        DitModel(depth=2, width_per_depth=8, patch=2, prediction="epsilon", learned_variance=True),
        MULTI_SCALE,
    ),
}


def cache_of(t, images: int, seed: int, features: bool = False) -> TokenCache:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(t.codebook_size, size=(images, t.pyramid.length)).astype(np.uint16)
    if features:
        side = t.pyramid.side
        tokens = generator.normal(size=(images, t.code_channels, side, side)).astype(np.float16)
    channels = t.code_channels
    latents = {"mean": [0.1] * channels, "deviation": [0.5] * channels}
    return TokenCache(tokens, np.arange(images) % 8, 1, {"latents": latents})


def trained(folder: Path, name: str, poll_signal=lambda done: 0, world=None) -> TrainedModel:
    trial, log = TRAINED[name], MetricsLog(folder / "metrics.jsonl")
    quantizer = MultiScaleVQVAE(trial.tokenizer).quantize.requires_grad_(False)
    features = trial.family.cache_kind(trial.model) == "features"
    caches = (cache_of(trial.tokenizer, n, n, features) for n in (50, 40))
    try:
        words = (folder / "checkpoint", log, 1e9, poll_signal, world or World())
        return train(trial, quantizer, *caches, *words)
    finally:
        log.close()


def same(one: TrainedModel, other: TrainedModel) -> bool:
    pairs = [(one.model, other.model)]
    if one.raw is not None:
        pairs.append((one.raw, other.raw))
    return all(
        torch.equal(value, b.state_dict()[name])
        for a, b in pairs
        for name, value in a.state_dict().items()
    )


@pytest.mark.parametrize("name", TRAINED)
def test_a_resumed_training_ends_bitwise_equal_for_each_family(name, tmp_path):
    whole = trained(tmp_path / "whole", name)
    for _ in range(2):
        with pytest.raises(Interrupted):
            trained(tmp_path / "torn", name, stops_after(3))
    torn = trained(tmp_path / "torn", name)
    assert same(whole, torn)
    lines = numbers(tmp_path / "whole" / "metrics.jsonl")
    assert lines == numbers(tmp_path / "torn" / "metrics.jsonl")
    assert lines[-1]["loss"] < lines[0]["loss"] * 1.5


# Relative to fp32: of the loss of a batch, and of the norm of its gradient. Rounding to bf16 has a
# relative error of up to 2e-3, to fp16 of up to 2.4e-4; a CPU computes tf32 as fp32.
TOLERANCES = {"tf32": (0, 0), "bf16": (1e-4, 1e-2), "fp16": (3e-5, 1.5e-3)}


def gradient(trial: Trial, precision: str) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the first batch, with weights at which every part has an effect."""
    quantizer = MultiScaleVQVAE(trial.tokenizer).quantize.requires_grad_(False)
    cache = cache_of(trial.tokenizer, 50, 50, trial.family.cache_kind(trial.model) == "features")
    model = trial.family.build(trial.spec, trial.seed)
    trial.family.normalize(model, latent_statistics(cache.manifest))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # at first gates near 0 hide the blocks
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    with precision_context(precision, torch.device("cpu")):
        loss = batch_loss(trial, model, quantizer, cache, 0, slice(0, trial.batch_size))
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss.item(), torch.cat([grad.flatten() for grad in grads if grad is not None])


@pytest.mark.parametrize("name", list(TRAINED))
def test_loss_and_gradient_in_each_precision_are_those_of_fp32_within_a_tolerance(name):
    loss, grad = gradient(TRAINED[name], "fp32")
    for precision, (of_loss, of_gradient) in TOLERANCES.items():
        other_loss, other_grad = gradient(TRAINED[name], precision)
        assert abs(other_loss - loss) <= of_loss * loss, precision
        assert (other_grad - grad).norm() <= of_gradient * grad.norm(), precision
        if precision != "tf32":  # it is really another precision
            assert not torch.equal(other_grad, grad)


@pytest.mark.parametrize("name", list(TRAINED))
def test_recomputed_activations_need_less_memory_and_give_the_same_weights(name, tmp_path):
    saved = []

    def measured(folder: str, recompute: bool) -> TrainedModel:
        saved.append(0)

        def count(tensor: torch.Tensor) -> torch.Tensor:
            saved[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            world = World(recompute_activations=recompute)
            return trained(tmp_path / folder, name, world=world)

    assert same(measured("kept", False), measured("recomputed", True))
    kept, recomputed = saved
    assert recomputed < kept


WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_training_of_families as tests
from var_scaling.training import distributed
from var_scaling.weights import save_weights
home, rank = Path(sys.argv[1]), int(sys.argv[2])
world = distributed.join(rank, 2, torch.device("cpu"), home / "meeting.json", "127.0.0.1")
for name in tests.TRAINED:
    found = tests.trained(home / f"rank{rank}" / name, name, world=world)
    save_weights(found.model, home / f"rank{rank}" / f"{name}.safetensors")
distributed.leave(world)
"""


@pytest.mark.slow
def test_training_with_two_processes_equals_training_with_one(tmp_path):
    """The same rows and the same noise; numbers equal to rounding."""
    in_processes(WORKER, tmp_path, 2)
    for name in TRAINED:
        alone = trained(tmp_path / "alone" / name, name)
        ranks = [load_file(tmp_path / f"rank{rank}" / f"{name}.safetensors") for rank in (0, 1)]
        for key, value in alone.model.state_dict().items():
            assert torch.equal(ranks[0][key], ranks[1][key])
            if key.endswith("qkv.bias"):  # the bias of keys has a gradient of 0 up to rounding
                continue
            torch.testing.assert_close(ranks[0][key], value, rtol=1e-3, atol=2e-4, msg=key)
        mine = read_metrics(tmp_path / "alone" / name / "metrics.jsonl")[-1]
        theirs = read_metrics(tmp_path / "rank0" / name / "metrics.jsonl")[-1]
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)


def test_the_weight_average_includes_the_weights_of_every_step(tmp_path):
    """Computed by hand: the decay rises to its limit, as for a tokenizer."""
    found = trained(tmp_path, "averaged var")
    assert found.raw is not None
    assert not same(TrainedModel(found.model), TrainedModel(found.raw))
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["loss_raw"] != last["loss"]
    # With a decay of 0 the average equals the last weights.
    micro_batch_size = TRAINED["averaged var"].model_copy(update={"weight_average": 1e-9})
    log = MetricsLog(tmp_path / "once.jsonl")
    quantizer = MultiScaleVQVAE(MULTI_SCALE).quantize.requires_grad_(False)
    caches = (cache_of(MULTI_SCALE, n, n) for n in (50, 40))
    one = train(
        micro_batch_size, quantizer, *caches, tmp_path / "c", log, 1e9, lambda done: 0, World()
    )
    log.close()
    assert one.raw is not None
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, one.raw.state_dict()[name])
    plain = trained(tmp_path / "plain", "var-d2")
    assert same(TrainedModel(one.raw), plain)  # averaging does not change training


def test_a_second_residual_code_reduces_the_error_of_the_grid():
    vqvae = MultiScaleVQVAE(RESIDUAL, seed=0).requires_grad_(False)
    vqvae.quantize.embedding.weight.copy_(
        0.3 * torch.randn(RESIDUAL.codebook_size, RESIDUAL.code_channels)
    )
    f_BCHH = 0.3 * torch.randn(20, RESIDUAL.code_channels, 4, 4)
    ids_BL = vqvae.quantize.encode(f_BCHH)
    assert ids_BL.shape == (20, 32)
    one, two = (
        vqvae.quantize.add_tokens(
            vqvae.quantize.empty_grid(20), vqvae.quantize.scales_of(ids_BL)[0], 0
        ),
        vqvae.quantize.decode(ids_BL),
    )
    assert (two - f_BCHH).square().mean() < 0.8 * (one - f_BCHH).square().mean()


def test_a_dit_on_tokens_of_an_earlier_version_is_refused_with_advice(tmp_path):
    trial, cache = family_trial("dit", tiny_dit(1), MULTI_SCALE), cache_of(MULTI_SCALE, 16, 0)
    quantizer = MultiScaleVQVAE(MULTI_SCALE).quantize
    old = TokenCache(cache.tokens, cache.labels, 1, {})
    words = (tmp_path, lambda *words: None, 1e9, lambda done: 0, World())
    with pytest.raises(ValueError, match="Delete the folder of the tokens; the next run encodes"):
        train(trial, quantizer, old, old, *words)
