"""Counted parameters and FLOPs equal numel and torch's FLOP counter."""

import pytest
import torch
import torch.nn.functional as F
from conftest import images, tokenizer, trial
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from var_scaling.accounting import total
from var_scaling.accounting.tokenizer import (
    critic_layers,
    tokenizer_flops,
    tokenizer_parameters,
    tokenizer_train_flops,
    tokenizer_training_flops,
    vgg_layers,
)
from var_scaling.config import Tokenizer
from var_scaling.experiment.ledger import trial_ledger
from var_scaling.models.var.accounting import (
    var_block_parameters,
    var_forward_flops,
    var_parameters,
    var_sampling_flops,
    var_training_flops,
)
from var_scaling.models.var.config import VarModel
from var_scaling.models.var.model import VAR
from var_scaling.pyramid import PAPER_512, Pyramid
from var_scaling.recipe import Codebook, Critic, Losses, Optimiser
from var_scaling.results import COLUMNS
from var_scaling.tokenizer.critic import PatchCritic
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.perceptual import Perceptual
from var_scaling.training.distributed import World
from var_scaling.training.tokenizer import _TokenizerTrainer

PAPER = Tokenizer(name="paper")


# Counted on the released classes: depth, parameters, those with shared AdaLN,
# forward GFLOPs over every pair, the share of attention scores in % of them, sampling GFLOPs.
GOLDEN = [
    (6, 18_492_580, 14_071_204, 20.9, 20.4, 38.7),
    (7, 28_346_865, 21_124_209, 31.3, 18.6, 58.4),
    (8, 41_315_904, 30_308_928, 44.7, 16.9, 84.1),
    (9, 57_842_065, 41_920_273, 61.6, 15.6, 116.6),
    (10, 78_367_716, 56_253_156, 82.3, 14.4, 156.6),
    (11, 103_335_225, 73_602_489, 107.3, 13.3, 204.9),
    (12, 133_186_960, 94_263_184, 137.0, 12.4, 262.5),
    (13, 168_365_289, 118_530_153, 171.6, 11.7, 330.1),
    (14, 209_312_580, 146_698_308, 211.8, 11.0, 408.4),
    (15, 256_471_201, 179_062_561, 257.8, 10.3, 498.4),
    (16, 310_283_520, 215_917_824, 310.1, 9.8, 600.8),
    (17, 371_191_905, 257_559_009, 369.0, 9.3, 716.4),
    (18, 439_638_724, 304_281_028, 435.0, 8.8, 846.0),
    (19, 516_066_345, 356_378_793, 508.4, 8.4, 990.5),
    (20, 600_917_136, 414_147_216, 589.7, 8.0, 1150.6),
    (21, 694_633_465, 477_881_209, 679.3, 7.7, 1327.1),
    (22, 797_657_700, 547_875_684, 777.5, 7.4, 1521.0),
    (23, 910_432_209, 624_425_553, 884.8, 7.1, 1732.9),
    (24, 1_033_399_360, 707_825_728, 1001.6, 6.8, 1963.7),
    (25, 1_167_001_521, 798_371_121, 1128.2, 6.6, 2214.1),
    (26, 1_311_681_060, 896_356_644, 1265.1, 6.3, 2485.1),
    (27, 1_467_880_345, 1_002_077_209, 1412.7, 6.1, 2777.4),
    (28, 1_636_041_744, 1_115_827_728, 1571.4, 5.9, 3091.8),
    (29, 1_816_607_625, 1_237_903_113, 1741.5, 5.7, 3429.1),
    (30, 2_010_020_356, 1_368_598_276, 1923.5, 5.5, 3790.1),
    (31, 2_216_722_305, 1_508_208_129, 2117.8, 5.4, 4175.7),
    (32, 2_437_155_840, 1_657_027_584, 2324.8, 5.2, 4586.6),
    (33, 2_671_763_329, 1_815_351_553, 2544.8, 5.1, 5023.6),
    (34, 2_920_987_140, 1_983_474_948, 2778.4, 4.9, 5487.7),
    (35, 3_185_269_641, 2_161_692_681, 3025.8, 4.8, 5979.5),
    (36, 3_465_053_200, 2_350_299_664, 3287.5, 4.7, 6499.8),
]


@pytest.mark.parametrize(("depth", "own", "shared", "forward", "attention", "sampling"), GOLDEN)
def test_paper_models_have_the_published_parameters_and_flops(
    depth, own, shared, forward, attention, sampling
):
    model, other = VarModel(depth=depth), VarModel(depth=depth, shared_adaln=True)
    assert total(var_parameters(model, PAPER, 1000)) == own
    assert total(var_parameters(other, PAPER, 1000)) == shared
    assert var_block_parameters(model) == 73_728 * depth**3
    flops = var_forward_flops(model, PAPER, dense=True)
    assert round(total(flops) / 1e9, 1) == forward
    assert round(100 * flops["attention_scores"] / total(flops), 1) == attention
    # The released sampler computes AdaLN again at each of the ten scales, for both halves.
    again = 2 * 9 * flops["adaln"]
    assert round((total(var_sampling_flops(model, PAPER)) + again) / 1e9, 1) == sampling


def test_the_paper_model_at_512_pixels_has_the_published_counts():
    large = PAPER.model_copy(update={"pyramid": Pyramid(patch_nums=PAPER_512)})
    model = VarModel(depth=36, shared_adaln=True)
    assert (large.side, large.pyramid.length) == (512, 2240)
    assert total(var_parameters(model, large, 1000)) == 2_353_893_904
    assert round(total(var_forward_flops(model, large, dense=True)) / 1e9) == 11_981


def test_the_paper_tokenizer_has_the_published_parameters():
    counted = tokenizer_parameters(PAPER)
    assert counted == {
        "encoder": 44_107_872,
        "decoder": 64_653_923,
        "quantizer": 168_064,
        "quant_convs": 2 * 9_248,
    }
    assert sum(counted.values()) == 108_948_355


@pytest.mark.parametrize(
    ("channels", "parameters"),
    [(32, 4_612_867), (64, 17_702_179), (96, 39_454_531), (128, 69_869_923)],
)
def test_narrower_tokenizers_have_the_stated_parameters(channels, parameters):
    narrow = PAPER.model_copy(update={"channels": channels})
    assert total(tokenizer_parameters(narrow)) == parameters


def test_the_paper_tokenizer_has_the_stated_flops():
    flops = tokenizer_flops(PAPER)
    assert round((flops["encoder"] + flops["quant_convs"] / 2) / 1e9, 1) == 215.1
    assert round((flops["decoder"] + flops["quant_convs"] / 2) / 1e9, 1) == 393.7


MODELS = [
    VarModel(depth=2, width_per_depth=8),
    VarModel(
        depth=3, width_per_depth=4, shared_adaln=True, normalised_attention=False, mlp_ratio=2
    ),
]
TOKENIZERS = [
    tokenizer(),
    tokenizer(phi_convolutions=0, multipliers=(1, 2, 3), residual_blocks=2),
    tokenizer(phi_convolutions=1, pyramid=Pyramid(patch_nums=(4,))),
    tokenizer(phi_strength=0.0, multipliers=(1,), data=images(side=4)),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("t", TOKENIZERS)
def test_var_parameters_equal_numel(model, t):
    module = VAR(model, t, 8, seed=0)
    counted = var_parameters(model, t, 8)
    assert sum(p.numel() for p in module.parameters()) == total(counted)


@pytest.mark.parametrize("t", TOKENIZERS)
def test_tokenizer_parameters_equal_numel(t):
    module = MultiScaleVQVAE(t)
    counted = tokenizer_parameters(t)
    assert sum(p.numel() for p in module.parameters()) == total(counted)
    for name in ("encoder", "decoder"):
        part = sum(p.numel() for p in getattr(module, name).parameters())
        assert part == counted[name]


def counted_flops(work) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("model", MODELS)
def test_var_flops_equal_those_of_torchs_counter(model):
    t, count = tokenizer(), 3
    module = VAR(model, t, 8, seed=0)
    shown = torch.randn(count, t.pyramid.length - 1, t.code_channels)
    labels = torch.zeros(count, dtype=torch.int64)
    ids = torch.zeros(count * t.pyramid.length, dtype=torch.int64)

    def step():
        F.cross_entropy(module(labels, shown).flatten(0, 1), ids).backward()

    forward = total(var_forward_flops(model, t, dense=True))
    training = total(var_training_flops(model, t, dense=True))
    assert counted_flops(lambda: module(labels, shown)) == count * forward
    assert counted_flops(step) == count * training


@pytest.mark.parametrize("t", TOKENIZERS)
def test_tokenizer_flops_equal_those_of_torchs_counter(t):
    module = MultiScaleVQVAE(t)
    images_ = torch.randn(module.group_size, 3, t.side, t.side)  # one group, without padding
    with torch.no_grad():
        counted = counted_flops(lambda: module.decode(module.encode(images_)))
    # Encoding and decoding each apply phi at every scale; the accounting counts it once.
    phi = 2 * t.code_channels**2 * 9 * t.pyramid.side**2 * t.pyramid.scales
    again = phi if t.phi_strength else 0
    assert counted == len(images_) * (total(tokenizer_flops(t)) + again)


@pytest.mark.parametrize("depth", [6, 16, 30])
def test_torchs_counter_agrees_at_the_paper_size(depth):
    """On torch's meta device: shapes and counts, no numbers."""
    with torch.device("meta"):
        module = VAR(VarModel(depth=depth), PAPER, 1000, seed=0)
        shown, labels = torch.randn(1, 679, 32), torch.zeros(1, dtype=torch.int64)
        forward = var_forward_flops(VarModel(depth=depth), PAPER, dense=True)
        assert counted_flops(lambda: module(labels, shown)) == total(forward)


def test_torchs_counter_agrees_for_the_paper_tokenizer():
    with torch.device("meta"):
        module = MultiScaleVQVAE(PAPER)
        counted = counted_flops(lambda: module.features(torch.randn(1, 3, 256, 256)))
        flops = tokenizer_flops(PAPER)
        assert counted == flops["encoder"] + flops["quant_convs"] // 2
        counted = counted_flops(lambda: module.render(torch.randn(1, 32, 16, 16)))
        assert counted == flops["decoder"] + flops["quant_convs"] // 2


def test_the_block_causal_mask_saves_the_flops_of_masked_pairs():
    dense = var_forward_flops(VarModel(depth=16), PAPER, dense=True)
    model = var_forward_flops(VarModel(depth=16), PAPER)
    assert model["attention_scores"] * 680**2 == dense["attention_scores"] * 286_434
    assert {**dense, "attention_scores": 0} == {**model, "attention_scores": 0}


TRAIN_FLOPS_PARTS = {
    f"train_flops_{part}"
    for part in ("embedding", "attention_projections", "attention_scores", "mlp", "adaln", "head")
}
JUDGED = Losses(
    l1=0.2, perceptual=1.0, adversarial=0.4,
    critic=Critic(channels=8, halvings=2, starts=0.25, optimiser=Optimiser(learning_rate=1e-4)),
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"losses": Losses(commitment=0.1, l1=1.0, l2=0.0)},
        {"losses": JUDGED, "codebook": Codebook(learns="gradient", starts_at=1)},
    ],
)
def test_tokenizer_training_flops_equal_those_of_torchs_counter(changes):
    t = tokenizer(steps=8, batch_size=2, dropout=0.1, **changes)
    perceptual = Perceptual().requires_grad_(False) if t.losses.perceptual else None
    learner = _TokenizerTrainer(t, perceptual, World())
    images_ = torch.rand(2, 3, t.side, t.side) * 2 - 1
    late = counted_flops(lambda: learner.train_step(images_, 6))
    judged = t.losses.critic is not None
    assert late == 2 * total(tokenizer_training_flops(t, judged))
    # Over all steps: the critic runs in the last six of eight.
    plain = total(tokenizer_training_flops(t, with_critic=False))
    later = total(tokenizer_training_flops(t, with_critic=True))
    expected = 2 * (2 * plain + 6 * later) if judged else 16 * plain
    before = tokenizer_training_flops(t, with_critic=False)["quantizer"] * t.codebook.starts_at
    expected -= 2 * before
    assert tokenizer_train_flops(t, 8) == expected


def test_critic_and_vgg_counts_equal_numel_and_torchs_counter():
    critic = PatchCritic(JUDGED.critic, seed=0)
    image = torch.rand(1, 3, 32, 32)
    layers = list(critic_layers(JUDGED.critic, 32))
    assert sum(p.numel() for p in critic.parameters()) == sum(layer.parameters for layer in layers)
    assert counted_flops(lambda: critic(image)) == sum(layer.flops for layer in layers)
    vgg = Perceptual()
    held = sum(p.numel() for p in vgg.parameters())
    assert held == 14_714_688 + 1_472  # VGG-16's convolutions; one weight for each compared channel
    layers = list(vgg_layers(32))
    twice = sum((2 if layer.component == "vgg" else 1) * layer.flops for layer in layers)
    assert counted_flops(lambda: vgg(image, image)) == twice


def test_each_flop_convention_of_a_trial_is_a_column():
    ledger = trial_ledger(trial())
    assert ledger["tokens_seen"] == 8 * 12 * 21
    assert ledger["train_flops_6n_blocks"] == 6 * ledger["params_blocks"] * ledger["tokens_seen"]
    parts = [ledger[f"params_{p}"] for p in ("embedding", "attention", "mlp", "adaln", "head")]
    assert sum(parts) == ledger["params_total"]
    flops = [count for name, count in ledger.items() if name in TRAIN_FLOPS_PARTS]
    assert len(flops) == 6
    assert sum(flops) == ledger["train_flops"]
    assert set(ledger) <= {column.name for column in COLUMNS}
