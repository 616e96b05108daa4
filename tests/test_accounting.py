"""The ledger equals what torch holds and counts."""

import pytest
import torch
import torch.nn.functional as F
from conftest import images, tokenizer, trial
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from var_scaling import accounting
from var_scaling.config import ImageFiles, Model, Optimiser, Tokenizer
from var_scaling.models.var import VAR
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE

PAPER = Tokenizer(
    name="paper",
    data=ImageFiles(name="imagenet", side=256, classes=1000),
    optimiser=Optimiser(learning_rate=1e-4),
    batch=1,
    steps=1,
)


def total_parameters(depth: int, shared: bool = False) -> int:
    model = Model(depth=depth, shared_adaln=shared)
    return accounting.total(accounting.var_parameters(model, PAPER, 1000))


@pytest.mark.parametrize(
    ("depth", "own", "shared"),
    [  # VAR.md, section 3
        (6, 18_492_580, 14_071_204),
        (16, 310_283_520, 215_917_824),
        (30, 2_010_020_356, 1_368_598_276),
        (36, 3_465_053_200, 2_350_299_664),
    ],
)
def test_parameters_of_the_papers_models(depth, own, shared):
    assert total_parameters(depth) == own
    assert total_parameters(depth, shared=True) == shared
    assert accounting.var_block_parameters(Model(depth=depth)) == 73_728 * depth**3


def test_parameters_of_the_papers_tokenizer():
    counted = accounting.tokenizer_parameters(PAPER)
    assert counted == {
        "encoder": 44_107_872,
        "decoder": 64_653_923,
        "quantizer": 168_064,
        "quant_convs": 2 * 9_248,
    }
    assert sum(counted.values()) == 108_948_355


@pytest.mark.parametrize(("depth", "gflops"), [(6, 20.9), (16, 310.1), (30, 1923.5)])
def test_forward_flops_of_the_papers_models(depth, gflops):
    flops = accounting.total(accounting.var_forward_flops(Model(depth=depth), PAPER, dense=True))
    assert round(flops / 1e9, 1) == gflops


def test_flops_of_the_papers_tokenizer():
    flops = accounting.tokenizer_flops(PAPER)
    assert round((flops["encoder"] + flops["quant_convs"] / 2) / 1e9, 1) == 215.1
    assert round((flops["decoder"] + flops["quant_convs"] / 2) / 1e9, 1) == 393.7


MODELS = [
    Model(depth=2, width_per_depth=8),
    Model(depth=3, width_per_depth=4, shared_adaln=True, normalised_attention=False, mlp_ratio=2),
]
TOKENIZERS = [
    tokenizer(),
    tokenizer(phi_convolutions=0, multipliers=(1, 2, 3), residual_blocks=2),
    tokenizer(phi_convolutions=1, pyramid=Pyramid(sides=(4,))),
    tokenizer(phi_strength=0.0, multipliers=(1,), data=images(side=4)),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("t", TOKENIZERS)
def test_var_parameters_equal_numel(model, t):
    module = VAR(model, t, 8, seed=0)
    counted = accounting.var_parameters(model, t, 8)
    assert sum(p.numel() for p in module.parameters()) == accounting.total(counted)


@pytest.mark.parametrize("t", TOKENIZERS)
def test_tokenizer_parameters_equal_numel(t):
    module = MultiScaleVQVAE(t)
    counted = accounting.tokenizer_parameters(t)
    assert sum(p.numel() for p in module.parameters()) == accounting.total(counted)
    for name in ("encoder", "decoder"):
        part = sum(p.numel() for p in getattr(module, name).parameters())
        assert part == counted[name]


def counted_flops(work) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("model", MODELS)
def test_var_flops_equal_the_counters(model):
    t, count = tokenizer(), 3
    module = VAR(model, t, 8, seed=0)
    shown = torch.randn(count, t.pyramid.length - 1, t.code_channels)
    labels = torch.zeros(count, dtype=torch.int64)
    ids = torch.zeros(count * t.pyramid.length, dtype=torch.int64)

    def step():
        F.cross_entropy(module(labels, shown).flatten(0, 1), ids).backward()

    forward = accounting.total(accounting.var_forward_flops(model, t, dense=True))
    training = accounting.total(accounting.var_training_flops(model, t, dense=True))
    assert counted_flops(lambda: module(labels, shown)) == count * forward
    assert counted_flops(step) == count * training


@pytest.mark.parametrize("t", TOKENIZERS)
def test_tokenizer_flops_equal_the_counters(t):
    module, images_ = MultiScaleVQVAE(t), torch.randn(2, 3, t.data.side, t.data.side)
    with torch.no_grad():
        counted = counted_flops(lambda: module.decode(module.encode(images_)))
    # Encoding grows the grid through phi once, decoding again; the ledger counts one walk.
    phi = 2 * t.code_channels**2 * 9 * t.pyramid.side**2 * t.pyramid.scales
    again = phi if t.phi_strength else 0
    assert counted == 2 * (accounting.total(accounting.tokenizer_flops(t)) + again)


def test_the_block_causal_mask_saves_what_it_forbids():
    dense = accounting.var_forward_flops(Model(depth=16), PAPER, dense=True)
    model = accounting.var_forward_flops(Model(depth=16), PAPER)
    assert model["attention_scores"] * 680**2 == dense["attention_scores"] * 286_434
    assert {**dense, "attention_scores": 0} == {**model, "attention_scores": 0}


def test_conventions_of_a_trial_are_columns():
    ledger = accounting.trial_ledger(trial())
    assert ledger["tokens_seen"] == 8 * 12 * 21
    assert ledger["train_flops_6n_blocks"] == 6 * ledger["params_blocks"] * ledger["tokens_seen"]
    parts = [ledger[f"params_{p}"] for p in ("embedding", "attention", "mlp", "adaln", "head")]
    assert sum(parts) == ledger["params_total"]
