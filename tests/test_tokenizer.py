"""Encoding, decoding, teacher input and training share the same two steps."""

import numpy as np
import pytest
import torch
from conftest import images, tokenizer
from hypothesis import given
from hypothesis import strategies as st

from var_scaling.data.dead_leaves import DeadLeavesSource
from var_scaling.disk import DONE, file_sha256, write_json
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.autoencoder import to_pixels, to_unit
from var_scaling.tokenizer.cache_files import CacheError, describe, open_cache
from var_scaling.tokenizer.codebook import CodebookUpdater
from var_scaling.tokenizer.encode import write_cache
from var_scaling.tokenizer.model import MultiScaleVQVAE, load_tokenizer
from var_scaling.tokenizer.quantizer import Quantized, Quantizer, phi_choice
from var_scaling.weights import WeightsError, save_weights


@pytest.fixture(scope="module")
def model() -> MultiScaleVQVAE:
    return MultiScaleVQVAE(tokenizer()).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def grid(model) -> torch.Tensor:
    return torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def test_the_decoded_grid_equals_the_final_grid_of_the_encoder(model, grid):
    quantized = model.quantize(grid, 0.25)
    ids = model.quantize.encode(grid)
    assert torch.equal(torch.cat(quantized.ids, dim=1), ids)
    torch.testing.assert_close(model.quantize.decode(ids), quantized.f_BCHH)


def test_the_finest_tokens_minimise_the_residual(model, grid):
    """The codes of the last scale leave no larger residual than any constant code."""
    ids = model.quantize.encode(grid)
    without = ids.clone()
    last = model.quantize.pyramid.starts[-1]
    left = (grid - model.quantize.decode(ids)).square().mean()
    for other in range(8):
        without[:, last:] = other
        assert left <= (grid - model.quantize.decode(without)).square().mean()


def test_every_id_is_the_nearest_code(model, grid):
    vectors = torch.randn(50, 4)
    distances = torch.cdist(vectors.double(), model.quantize.embedding.weight.double())
    assert torch.equal(model.quantize.nearest(vectors), distances.argmin(1))


@pytest.mark.parametrize("k", [0, 1])
def test_the_teacher_input_of_a_scale_ignores_its_own_and_later_ids(model, grid, k):
    ids = model.quantize.encode(grid)
    starts = model.quantize.pyramid.starts
    changed = ids.clone()
    changed[:, starts[k + 1] :] = (changed[:, starts[k + 1] :] + 1) % 32
    shown, other = model.quantize.teacher_input(ids), model.quantize.teacher_input(changed)
    upto = starts[k + 1] + model.quantize.pyramid.lengths[k + 1] - starts[1]
    assert torch.equal(shown[:, :upto], other[:, :upto])
    if k == 0:
        assert not torch.equal(shown[:, upto:], other[:, upto:])


def test_with_one_scale_the_tokenizer_is_a_plain_vqvae():
    plain = MultiScaleVQVAE(tokenizer(pyramid=Pyramid(patch_nums=(4,))))
    f = torch.randn(2, 4, 4, 4)
    ids = plain.quantize.encode(f)
    assert ids.shape == (2, 16)
    assert plain.quantize.teacher_input(ids).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("scales", "chosen"),
    [  # exact ties are decided by float64 rounding
        (5, [0, 1, 2, 2, 3]),
        (7, [0, 0, 1, 2, 2, 3, 3]),
        (10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (13, [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_each_scale_uses_the_phi_of_the_released_code(scales, chosen):
    assert phi_choice(scales, 4) == chosen


@pytest.mark.parametrize(
    ("shared", "names"),
    [
        (4, [f"qresi_ls.{n}.weight" for n in range(4)]),
        (1, ["qresi.weight"]),
        (0, [f"{n}.weight" for n in range(3)]),
    ],
)
def test_phi_has_the_released_names(shared, names):
    state = MultiScaleVQVAE(tokenizer(phi_convolutions=shared)).state_dict()
    found = [name.removeprefix("quantize.quant_resi.") for name in state if "quant_resi" in name]
    assert [name for name in found if name.endswith("weight")] == names


@given(st.integers(0, 2**32 - 1))
def test_pixels_survive_conversion_to_unit_range_and_back(seed):
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 3, 3, 3), np.uint8))
    assert torch.equal(to_pixels(to_unit(pixels)), pixels)


def test_dead_codes_are_restarted_deterministically_for_each_step(grid):
    def after(step_count: int) -> CodebookUpdater:
        quantizer = MultiScaleVQVAE(tokenizer()).quantize
        averages = CodebookUpdater(quantizer, tokenizer().codebook, seed=0)
        averages.initialize(grid.repeat(8, 1, 1, 1))
        vectors = torch.randn(200, 4, generator=torch.Generator().manual_seed(1)) + 5
        for step in range(step_count):
            requested = Quantized(vectors, vectors.sum(), [quantizer.nearest(vectors)], [vectors])
            averages.update(requested, step)
        return averages

    averages = after(60)
    vectors = torch.randn(200, 4, generator=torch.Generator().manual_seed(1)) + 5
    assert (
        len(averages.quantizer.nearest(vectors).unique()) > 24
    )  # of 32 codes, which were all far from the vectors
    assert torch.equal(averages.codes_VC, after(60).codes_VC)


# The cache ------------------------------------------------------------------------------------


def written(
    folder,
    model,
    stop=lambda done: False,
    train_images=600,
    shard=None,
    monkeypatch=None,
    threads=1,
):
    data = images(train_images=train_images)
    if shard:
        for module in ("cache_files", "encode"):
            monkeypatch.setattr(f"var_scaling.tokenizer.{module}.SHARD", shard)
        monkeypatch.setattr("var_scaling.tokenizer.encode._BATCH", shard // 2)
    source = DeadLeavesSource(data, "train")
    description = describe(tokenizer(), "abc", data, "train")
    silent = lambda *words: None  # noqa: E731
    complete = write_cache(folder, model, source, description, 0, silent, stop, threads=threads)
    if complete:
        write_json(folder / DONE, {"status": "done"})
    return description, source


def test_the_cache_has_the_tokens_of_the_encoder(tmp_path, model):
    description, source = written(tmp_path, model)
    cache = open_cache(tmp_path, description)
    rows = np.array([599, 3])
    ids, labels = cache.batch(rows, np.zeros(2, dtype=int))
    pixels = torch.from_numpy(source.images(rows))
    assert torch.equal(ids, model.encode(to_unit(pixels)))
    assert labels.tolist() == [599 % 8, 3]


def test_several_threads_write_the_same_cache(tmp_path, model, monkeypatch):
    for threads in (1, 3):
        written(tmp_path / str(threads), model, shard=50, monkeypatch=monkeypatch, threads=threads)
    for name in ("tokens.npy", "labels.npy", "manifest.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes(), name


def test_a_killed_encoding_resumes_to_the_same_cache(tmp_path, model, monkeypatch):
    whole, _ = written(tmp_path / "whole", model, shard=100, monkeypatch=monkeypatch)
    stops = iter([False, True])
    torn = tmp_path / "torn"
    written(torn, model, stop=lambda done: next(stops), shard=100, monkeypatch=monkeypatch)
    with pytest.raises(CacheError, match="the token cache is not finished"):
        open_cache(torn, whole)
    written(torn, model, shard=100, monkeypatch=monkeypatch)
    first, second = (open_cache(tmp_path / name, whole) for name in ("whole", "torn"))
    assert np.array_equal(first.tokens, second.tokens)
    assert first.manifest == second.manifest


def test_damage_is_detected_when_a_cache_is_opened(tmp_path, model):
    description, _ = written(tmp_path, model)
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r+")
    tokens[17, 3] ^= 1
    tokens.flush()
    with pytest.raises(CacheError, match="damaged in shard 0"):
        open_cache(tmp_path, description)


def test_tokens_of_another_tokenizer_are_refused_with_the_difference(tmp_path, model):
    description, _ = written(tmp_path, model)
    with pytest.raises(
        CacheError, match='tokenizer_weights_sha256: recorded "abc", expected "xyz"'
    ):
        open_cache(tmp_path, {**description, "tokenizer_weights_sha256": "xyz"})


def test_weights_are_loaded_as_they_were_saved(tmp_path, model):
    save_weights(model, tmp_path / "w.safetensors")
    path = tmp_path / "w.safetensors"
    again = load_tokenizer(tokenizer(), path, file_sha256(path))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    with pytest.raises(
        WeightsError, match=r"of another shape: quantize.embedding.weight \(32, 4\)"
    ):
        load_tokenizer(tokenizer(codebook_size=64), path, file_sha256(path))


@pytest.mark.parametrize("change", [{}, {"phi_convolutions": 0}, {"phi_strength": 0.0}])
def test_a_frozen_quantizer_computes_the_same_by_one_product(change):
    model = Quantizer(tokenizer(**change))
    ids = torch.arange(2 * model.pyramid.length).view(2, -1) % len(model.embedding.weight)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    before = model.teacher_input(ids).detach(), model.decode(ids).detach()
    model.requires_grad_(False)
    torch.testing.assert_close((model.teacher_input(ids), model.decode(ids)), before)
    assert len(model._maps) == 2
    # Weights that are loaded later are used.
    other = Quantizer(tokenizer(**change))
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.teacher_input(ids), other.teacher_input(ids).detach())
    torch.testing.assert_close(model.decode(ids), other.decode(ids).detach())
