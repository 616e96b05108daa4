"""Published sizes: exact parameters and FLOPs, counted on the meta device."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from var_scaling.accounting import total
from var_scaling.config import Tokenizer
from var_scaling.models.ar.config import ArModel, llamagen
from var_scaling.models.base import ModelRecord, ModelSpec
from var_scaling.models.dit.config import DitModel, published_dit
from var_scaling.models.registry import family_of
from var_scaling.models.var.config import VarModel
from var_scaling.pyramid import Pyramid

pytestmark = pytest.mark.golden

KL_F8 = Tokenizer(name="kl-f8", pyramid=Pyramid(patch_nums=(32,)), code_channels=4)
KL_F8_512 = KL_F8.model_copy(update={"pyramid": Pyramid(patch_nums=(64,))})
VAR = Tokenizer(name="var")

# Peebles and Xie (arXiv 2212.09748), rebuilt and counted: trainable parameters, the fixed table of
# positions besides, forward FLOPs (the paper's "Gflops" are multiply-adds, half of ours).
DIT = [
    ("S", 8, 33_142_016, 33_148_160, 715_948_032),
    ("S", 4, 32_920_448, 32_945_024, 2_825_158_656),
    ("S", 2, 32_865_056, 32_963_360, 12_111_347_712),
    ("B", 8, 130_869_248, 130_881_536, 2_835_087_360),
    ("B", 4, 130_426_496, 130_475_648, 11_130_372_096),
    ("B", 2, 130_315_808, 130_512_416, 46_010_204_160),
    ("L", 8, 458_578_432, 458_594_816, 10_022_813_696),
    ("L", 4, 457_988_224, 458_053_760, 39_391_330_304),
    ("L", 2, 457_840_672, 458_102_816, 161_395_245_056),
    ("XL", 8, 675_664_640, 675_683_072, 14_784_823_296),
    ("XL", 4, 675_000_704, 675_074_432, 58_087_342_080),
    ("XL", 2, 674_834_720, 675_129_632, 237_242_843_136),
]
DIT_MATRICES = {
    "S": (21_233_664, 10_940_160),
    "B": (84_934_656, 43_703_808),
    "L": (301_989_888, 153_241_600),
    "XL": (445_906_944, 225_803_520),
}

# Sun et al. (arXiv 2406.06525), likewise: parameters, weights of the blocks, of the embedding or
# the head, forward FLOPs over 256 and 576 tokens with full attention.
LLAMAGEN = [
    ("B", 110_888_448, 84_934_656, 12_582_912, 52_344_913_920, 124_570_828_800),
    ("L", 342_910_976, 308_281_344, 16_777_216, 172_872_433_664, 407_082_369_024),
    ("XL", 774_699_520, 731_381_760, 20_971_520, 397_284_474_880, 927_863_930_880),
    ("XXL", 1_410_972_672, 1_358_954_496, 25_165_824, 727_996_956_672, 1_692_351_332_352),
    ("3B", 3_096_659_200, 2_988_441_600, 52_428_800, 1_577_058_304_000, 3_605_004_288_000),
]

# Depth, parameters, forward FLOPs over all pairs, over those that the mask allows (VAR, 256 px).
VAR_SIZES = {
    12: (133_186_960, 136_955_904_000, 130_469_093_376),
    16: (310_283_520, 310_062_284_800, 298_530_177_024),
    20: (600_917_136, 589_709_230_080, 571_690_311_680),
    24: (1_033_399_360, 1_001_584_754_688, 975_637_512_192),
    30: (2_010_020_356, 1_923_519_160_320, 1_882_976_593_920),
}


def one_map(side: int) -> Tokenizer:
    return Tokenizer(
        name="vq", pyramid=Pyramid(patch_nums=(side,)), codebook_size=16_384, code_channels=8
    )


@pytest.fixture(autouse=True)
def _no_initial_weights(monkeypatch):
    """Skip weight initialisation, which takes most of the time and does not affect counts."""
    for name in ("normal_", "zeros_", "xavier_uniform_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *words, **more: tensor)


def built(spec: ModelSpec) -> torch.nn.Module:
    with torch.device("meta"):
        return family_of(spec.config).build(spec, seed=0)


def counted(spec: ModelSpec, network: torch.nn.Module) -> int:
    """FLOPs that torch counts for one forward pass of one image."""
    t, model = spec.tokenizer, spec.config
    label = torch.zeros(1, dtype=torch.long, device="meta")
    if isinstance(model, DitModel):
        grid = torch.zeros(1, t.code_channels, t.pyramid.side, t.pyramid.side, device="meta")
        words = (grid, torch.ones(1, device="meta"), label)
    elif isinstance(model, ArModel) and model.embedding == "table":
        words = (label, label.new_zeros(1, t.pyramid.length - 1))
    else:
        first = 1 if isinstance(model, ArModel) else t.pyramid.lengths[0]
        fed = t.pyramid.length - first
        words = (label, torch.zeros(1, fed, t.code_channels, device="meta"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(*words)
    return counter.get_total_flops()


def counted_by_blocks(spec: ModelSpec, of_depth: Callable[[int], ModelRecord]) -> int:
    """The same for a deep model, from models of one and two blocks: all blocks cost the same."""
    first, second = (
        counted(one, built(one))
        for one in (ModelSpec(of_depth(blocks), spec.tokenizer, spec.classes) for blocks in (1, 2))
    )
    return first + (spec.config.depth - 1) * (second - first)


def numel(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("size", "patch", "trainable", "parameters", "flops"), DIT)
def test_published_dit_models_have_the_published_counts(size, patch, trainable, parameters, flops):
    model = published_dit(size, patch)
    spec = ModelSpec(model, KL_F8, 1000)
    family = family_of(model)
    counts, network = family.parameters(spec), built(spec)
    assert total(counts) == numel(network) == trainable
    assert trainable + family.sequence_length(spec) * model.width == parameters
    matrices, adaln = DIT_MATRICES[size]
    assert counts["adaln"] == adaln
    assert family.block_parameters(spec) - 6 * model.depth * model.width**2 == matrices
    assert total(family.forward_flops(spec)) == flops
    by_blocks = counted_by_blocks(spec, lambda depth: model.model_copy(update={"depth": depth}))
    assert by_blocks == flops + padded(spec)
    if size == "S":
        assert counted(spec, network) == by_blocks


def padded(spec: ModelSpec) -> int:
    """The condition of a single image is computed in four rows (accounting.FEWEST_ROWS)."""
    width = spec.config.width
    time = 2 * spec.config.time_channels * width + 2 * width * width
    return 3 * (family_of(spec.config).forward_flops(spec)["adaln"] + time)


def test_the_published_dit_at_512_pixels_has_its_counts():
    model = published_dit("XL", 2)
    spec = ModelSpec(model, KL_F8_512, 1000)
    family = family_of(model)
    assert family.sequence_length(spec) == 1024
    assert total(family.parameters(spec)) + 1024 * model.width == 676_014_368
    assert total(family.forward_flops(spec)) == 1_049_076_596_736


@pytest.mark.parametrize(("size", "parameters", "blocks", "table", "short", "long"), LLAMAGEN)
def test_published_llamagen_models_have_the_published_counts(
    size, parameters, blocks, table, short, long
):
    spec, larger = (ModelSpec(llamagen(size), one_map(side), 1000) for side in (16, 24))
    family, network = family_of(spec.config), built(spec)
    assert total(family.parameters(spec)) == numel(network) == parameters
    assert family.block_parameters(spec) == blocks
    assert family.parameters(spec)["head"] - spec.config.width == table
    by_blocks = counted_by_blocks(
        spec, lambda depth: spec.config.model_copy(update={"depth": depth})
    )
    assert total(family.forward_flops(spec, dense=True)) == by_blocks == short
    if size == "B":
        assert counted(spec, network) == by_blocks
    assert total(family.forward_flops(larger, dense=True)) == long
    pairs, seen = (
        256 * 256,
        256 * 257 // 2,
    )  # a causal count has half of the pairs, and the diagonal
    full, causal = (
        family.forward_flops(spec, dense)["attention_scores"] for dense in (True, False)
    )
    assert causal * pairs == full * seen


@pytest.mark.parametrize("depth", range(6, 37))
def test_published_var_models_have_the_published_counts(depth):
    spec = ModelSpec(VarModel(depth=depth), VAR, 1000)
    family, network = family_of(spec.config), built(spec)
    parameters = total(family.parameters(spec))
    full, causal = (total(family.forward_flops(spec, dense)) for dense in (True, False))
    assert parameters == numel(network)
    width = spec.config.width
    by_blocks = counted_by_blocks(
        spec, lambda blocks: VarModel(depth=blocks, width_per_depth=width // blocks)
    )
    assert full == by_blocks
    if depth == 12:
        assert full == counted(spec, network)
    assert VAR_SIZES.get(depth, (parameters, full, causal)) == (parameters, full, causal)


@pytest.mark.parametrize("model", [VarModel, ArModel, DitModel])
@pytest.mark.parametrize("depth", [2, 6])
def test_blocks_of_the_ladder_are_equal(model, depth):
    spec = ModelSpec(model(depth=depth), one_map(16), 1000)
    assert family_of(spec.config).block_parameters(spec) == 18 * depth * (64 * depth) ** 2
    flops = family_of(spec.config).forward_flops(spec, dense=True)
    assert total(flops) + (padded(spec) if model is DitModel else 0) == counted(spec, built(spec))
