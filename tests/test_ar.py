"""The AR transformer: causal, equal with and without a cache, equal to VAR with one token."""

import numpy as np
import pytest
import torch
from conftest import images, tokenizer

from var_scaling.accounting import total
from var_scaling.experiment import Trial
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.sample import RequestDraws, sample
from var_scaling.ladder import tiny_optimiser
from var_scaling.models.ar.config import ArModel, ArSampling, tiny_ar
from var_scaling.models.ar.model import (
    AR,
    from_raster,
    rotary_angles,
    to_raster,
    token_inputs,
)
from var_scaling.models.ar.sampler import ARSampler
from var_scaling.models.attention import apply_rotary
from var_scaling.models.base import Batch, ModelSpec
from var_scaling.models.registry import family_named, family_of
from var_scaling.models.var.config import VarModel
from var_scaling.models.var.model import VAR
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, CPU = 5, torch.device("cpu")
ONE = tokenizer(pyramid=Pyramid(patch_nums=(4,)))
TWO = tokenizer(pyramid=Pyramid(patch_nums=(4, 4)))  # two residual codes at each position
MODELS = {
    "adaln": ArModel(depth=2, width_per_depth=8, drop_path_per_depth=0.0),
    "rotary": ArModel(depth=2, width_per_depth=8, drop_path_per_depth=0.0, positions="rotary"),
    "llama": ArModel(
        depth=2, width_per_depth=8, block="llama", positions="rotary", embedding="table",
        hidden_multiple=8, drop_path_per_depth=0.0,
    ),
    "llama, learned": ArModel(
        depth=2, width_per_depth=8, block="llama", hidden_multiple=8, drop_path_per_depth=0.0
    ),
}  # fmt: skip


def outspoken(model: ArModel, t) -> AR:
    """Random weights with which all parts affect the logits; at initialisation few do."""
    network = AR(model, t, CLASSES, seed=0)
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return network.eval().requires_grad_(False)


def ids(t, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(t.codebook_size, (count, t.pyramid.length), generator=generator)


@pytest.fixture(scope="module", params=["one", "two"])
def t(request):
    return {"one": ONE, "two": TWO}[request.param]


@pytest.fixture(scope="module")
def vqvae(t):
    return MultiScaleVQVAE(t).eval().requires_grad_(False)


@pytest.mark.parametrize("name", MODELS)
def test_a_token_does_not_change_the_logits_up_to_it(name, t, vqvae):
    model = MODELS[name]
    network, labels_B = outspoken(model, t), torch.arange(2)
    ids_BT = ids(t, 2)
    before = network(labels_B, token_inputs(model, vqvae.quantize, ids_BT[:, :-1]))
    for place in (0, 5, t.pyramid.length - 2):
        changed_BT = ids_BT.clone()
        changed_BT[:, place] = (changed_BT[:, place] + 1) % t.codebook_size
        after = network(labels_B, token_inputs(model, vqvae.quantize, changed_BT[:, :-1]))
        assert torch.equal(before[:, : place + 1], after[:, : place + 1])
        assert not torch.allclose(before[:, place + 1], after[:, place + 1])


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("name", MODELS)
def test_cached_logits_are_those_of_the_full_forward(name, guidance, t, vqvae):
    model = MODELS[name]
    network, labels_B, ids_BT = outspoken(model, t), torch.tensor([1, 4]), ids(t, 2)
    previous = token_inputs(model, vqvae.quantize, ids_BT)
    full = network(labels_B, previous[:, :-1])
    if guidance:
        null = network(torch.full_like(labels_B, CLASSES), previous[:, :-1])
        full = full + guidance * (full - null)
    cached = ARSampler(network, labels_B, guidance)
    for place in range(t.pyramid.length):
        logits_BV = cached.logits(place, previous[:, place - 1 : place] if place else None)
        torch.testing.assert_close(logits_BV, full[:, place], atol=1e-5, rtol=1e-4)


def test_with_one_token_ar_and_var_are_the_same_network():
    one = tokenizer(pyramid=Pyramid(patch_nums=(1,)), multipliers=(1, 2, 2), data=images(side=4))
    shape = {"depth": 2, "width_per_depth": 8, "drop_path_per_depth": 0.0, "gamma_init": 0.5}
    ar, var = (
        kind(model(**shape), one, CLASSES, seed=0).eval()
        for kind, model in ((AR, ArModel), (VAR, VarModel))
    )
    ar.load_state_dict(var.state_dict())
    labels_B, nothing = torch.arange(CLASSES), torch.zeros(CLASSES, 0, one.code_channels)
    assert torch.equal(ar(labels_B, nothing), var(labels_B, nothing))


def test_raster_order_reads_the_residual_codes_of_a_position_together(t):
    levels, positions = t.pyramid.scales, t.pyramid.lengths[0]
    ids_BL = torch.arange(levels * positions)[None]
    ids_BT = to_raster(ids_BL, levels)
    assert ids_BT[0, :levels].tolist() == [level * positions for level in range(levels)]
    assert torch.equal(from_raster(ids_BT, levels), ids_BL)


def test_rotary_attention_depends_on_the_distance_between_tokens():
    angles_TP = rotary_angles(side=4, levels=1, head_width=8)
    assert angles_TP.shape == (16, 4)
    assert not angles_TP[0].any()  # the class
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    cos_TP, sin_TP = angles_TP.cos(), angles_TP.sin()
    turned = [apply_rotary(x.expand(1, 1, 16, 8), cos_TP, sin_TP) for x in (q, k)]
    turned_q, turned_k = (x[0, 0] for x in turned)
    scores = turned_q @ turned_k.T
    # Inputs 1 to 15 are the tokens (0, 0) to (3, 2): one row below, one column to the right.
    torch.testing.assert_close(scores[1, 6], scores[5, 10], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(16))


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_does_not_depend_on_the_batch_size(name, t, vqvae):
    spec = ModelSpec(MODELS[name], t, CLASSES)
    network = outspoken(MODELS[name], t)
    requested = [Request(number % (CLASSES + 1), number) for number in range(7)]
    sampling = ArSampling(guidance=1.0, top_k=20, top_p=0.9, temperature=0.9)
    (together,) = sample(spec, network, vqvae, requested, sampling, seed=3, batch=7)
    alone = list(sample(spec, network, vqvae, requested, sampling, seed=3, batch=1))
    assert torch.equal(together.ids_BL, torch.cat([one.ids_BL for one in alone]))
    assert torch.equal(together.images_BWW3, torch.cat([one.images_BWW3 for one in alone]))


def test_the_tokens_of_a_sample_decode_to_its_image(t, vqvae):
    spec = ModelSpec(MODELS["adaln"], t, CLASSES)
    network = outspoken(MODELS["adaln"], t)
    (drawn,) = sample(
        spec, network, vqvae, [Request(1, 0)], ArSampling(), seed=0, batch=1, strips=True
    )
    assert drawn.ids_BL.shape == (1, t.pyramid.length)
    from var_scaling.generation.sample import decode_images

    assert torch.equal(decode_images(vqvae, vqvae.quantize.decode(drawn.ids_BL)), drawn.images_BWW3)
    frames = family_named("ar").frames(spec, ArSampling())
    assert drawn.strips_BKWW3.shape[1] == len(frames) == 4
    assert torch.equal(drawn.strips_BKWW3[:, -1], drawn.images_BWW3)


def test_sampling_follows_the_model(vqvae, t):
    """Frequencies of the first token over many samples match its probabilities."""
    spec = ModelSpec(MODELS["adaln"], t, CLASSES)
    network, family = outspoken(MODELS["adaln"], t), family_named("ar")
    requested = [Request(2, number) for number in range(2000)]
    draws = RequestDraws(0, requested, CPU)
    labels_B = torch.full((len(requested),), 2)
    sampling = ArSampling(guidance=0.0)
    *_, last = family.sample(spec, network, vqvae.quantize, labels_B, sampling, draws)
    logits_V = ARSampler(network, labels_B[:1], 0.0).logits(0, None)[0]
    counts_V = torch.bincount(last.ids_BN[:, 0], minlength=t.codebook_size) / len(requested)
    expected_V = logits_V.softmax(0)
    assert (counts_V - expected_V).abs().max() < 4 * float(
        (expected_V * (1 - expected_V) / len(requested)).sqrt().max()
    )


def test_validation_sums_give_the_training_loss(t, vqvae):
    spec = ModelSpec(MODELS["adaln"], t, CLASSES)
    network, family = outspoken(MODELS["adaln"], t), family_named("ar")
    batch = Batch(ids(t, 6), torch.arange(6) % CLASSES)
    loss_BK, error_BK = family.validate(spec, network, vqvae.quantize, batch, range(6))
    what = family.validation(spec)
    assert loss_BK.shape == error_BK.shape == (6, len(what.parts))
    from var_scaling.models.base import StepDraws

    loss = family.loss(spec, network, vqvae.quantize, batch, StepDraws(0, 0, 6, slice(0, 6)))
    np.testing.assert_allclose(float(loss_BK.sum()) / 6 / sum(what.sizes), float(loss), rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_counted_parameters_equal_those_of_the_module(name, t):
    spec = ModelSpec(MODELS[name], t, CLASSES)
    counted = family_of(spec.config).parameters(spec)
    network = AR(spec.config, t, CLASSES, seed=0)
    assert total(counted) == sum(parameter.numel() for parameter in network.parameters())


def test_several_scales_are_refused():
    with pytest.raises(ValueError, match=r"tokenizer t has scales 1, 2, 4: use patch_nums=\(4,\)"):
        Trial(
            name="a", tokenizer=tokenizer(), data=images(), model=tiny_ar(1),
            optimiser=tiny_optimiser(8), batch_size=8, steps=4,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fixed_width": 10}, "width 10 does not divide into 4 heads"),
        ({"positions": "rotary", "width_per_depth": 6}, "6 channels per head"),
        ({"drop_path_per_depth": 0.3}, "must stay below 1"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        ArModel(depth=4, **changes)


def test_the_depth_of_a_model_with_fixed_width_cannot_be_varied():
    assert tiny_ar(2).at_depth(5).width == 40
    with pytest.raises(ValueError, match="depth cannot be varied"):
        ArModel(depth=2, fixed_width=48).at_depth(3)
