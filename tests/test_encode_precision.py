"""The precision in which images are encoded: its record, the token cache, and equal tokens."""

import json

import numpy as np
import pytest
import torch
from conftest import images, tokenizer
from test_generation import restless

from pipelines.evaluation.image_sets import image_set
from pipelines.stages.context import RunContext, StopFile
from pipelines.stages.stages import cache_description, run_tokenizer, run_tokens
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from var_scaling.config import TrainedTokenizer
from var_scaling.data.dead_leaves import DeadLeavesSource
from var_scaling.disk import DONE, read_json, write_json
from var_scaling.evaluation.reconstruction import equal_tokens, reconstruct
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.cache_files import CacheError, describe, open_cache
from var_scaling.tokenizer.encode import write_cache
from var_scaling.tokenizer.model import MultiScaleVQVAE, float32_products, freeze
from var_scaling.training.optim import precision_context

CPU, DATA = torch.device("cpu"), images(train_images=96)
BF16 = tokenizer(encode_precision="bf16")


@pytest.fixture(scope="module")
def model():
    return freeze(restless(MultiScaleVQVAE(BF16)))


def pixels(count: int = 32) -> torch.Tensor:
    return torch.from_numpy(DeadLeavesSource(DATA, "train").images(np.arange(count)))


def written(folder, model, kind="tokens", workers=0, threads=1):
    """The cache that `model` writes in bf16, and its description."""
    description = describe(BF16, "abc", DATA, "train", kind)
    source = DeadLeavesSource(DATA, "train")
    with precision_context("bf16", CPU):
        write_cache(
            folder, model, source, description, workers, lambda *words: None, lambda done: False,
            threads=threads,
        )  # fmt: skip
    write_json(folder / DONE, {"status": "done"})
    return open_cache(folder, description), description


def test_the_default_is_not_written_so_older_records_and_fingerprints_stay_valid():
    older = json.loads(tokenizer().model_dump_json())
    assert "encode_precision" not in older
    read = TrainedTokenizer.model_validate_json(json.dumps(older))
    assert read.encode_precision == "fp32"
    assert read.fingerprint() == tokenizer(encode_precision="fp32").fingerprint()
    assert read.fingerprint() != BF16.fingerprint()
    assert TrainedTokenizer.model_validate_json(BF16.model_dump_json()) == BF16


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (0, 3), (1, 1)])
def test_the_cache_has_the_tokens_of_the_encoder_in_bf16(
    tmp_path, model, monkeypatch, workers, threads
):
    """Also if other threads encode, or other processes read: autocast is a state of a thread."""
    for module in ("cache_files", "encode"):
        monkeypatch.setattr(f"var_scaling.tokenizer.{module}.SHARD", 32)
    monkeypatch.setattr("var_scaling.tokenizer.encode._BATCH", 16)
    cache, _ = written(tmp_path, model, workers=workers, threads=threads)
    with precision_context("bf16", CPU):
        parts = [model.encode(to_unit(part)) for part in pixels(96).split(16)]
    assert np.array_equal(cache.tokens, torch.cat(parts).numpy())


def test_features_in_bf16_are_those_in_fp32_to_rounding(tmp_path, model):
    cache, _ = written(tmp_path, model, "features")
    exact = model.features(to_unit(pixels(96)))
    error = (torch.from_numpy(cache.tokens[:].astype(np.float32)) - exact).abs().max()
    assert 1e-3 * exact.std() < error < 0.2 * exact.std()


def test_the_nearest_codes_are_found_in_float32(model):
    with precision_context("bf16", CPU):
        features = model.features(to_unit(pixels()))
        ids = model.encode(to_unit(pixels()))
    assert features.dtype == torch.bfloat16
    assert torch.equal(ids, model.quantize.encode(features.float()))


def test_tf32_is_off_for_the_nearest_codes_and_restored():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    with precision_context("tf32", CPU):
        with float32_products(torch.device("cuda")):
            assert not any(switch.allow_tf32 for switch in switches)
        assert all(switch.allow_tf32 for switch in switches)


def test_images_and_weights_are_channels_last(model):
    """On a GPU too: the bytes are copied as they are and converted there."""
    last = torch.channels_last
    assert to_unit(pixels()).is_contiguous(memory_format=last)
    assert model.features(to_unit(pixels())).is_contiguous(memory_format=last)
    assert model.encoder.conv_in.weight.is_contiguous(memory_format=last)


def test_a_cache_without_a_precision_is_of_fp32(tmp_path, model):
    _, expected = written(tmp_path, model)
    with pytest.raises(CacheError, match='encode_precision: recorded "bf16", expected "fp32"'):
        open_cache(tmp_path, {**expected, "encode_precision": "fp32"})
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest.pop("encode_precision") == "bf16"
    write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(CacheError, match='encode_precision: recorded "fp32", expected "bf16"'):
        open_cache(tmp_path, expected)
    assert open_cache(tmp_path, {**expected, "encode_precision": "fp32"}).images == 96


def test_the_share_of_equal_tokens_is_given_for_each_scale(model):
    with precision_context("bf16", CPU):
        half = model.encode(to_unit(pixels()))
    equal = (half == model.encode(to_unit(pixels()))).double()
    shares = equal_tokens(model, pixels().split(20), "bf16")
    assert shares["equal_tokens"] == pytest.approx(float(equal.mean()))
    of_scales = [float(part.mean()) for part in model.quantize.scales_of(equal)]
    assert [shares[f"equal_tokens_{k}"] for k in (1, 2, 3)] == pytest.approx(of_scales)
    assert 0.3 < min(of_scales) < 1
    assert set(equal_tokens(model, [pixels()], "fp32").values()) == {1.0}


def test_the_scores_of_a_tokenizer_have_the_share_only_if_it_encodes_in_another_precision(model):
    held_out = DeadLeavesSource(images(validation_images=40), "validation")
    scores = reconstruct(BF16, model, held_out, CPU, None).scores
    assert 0.3 < scores["equal_tokens"] < 1
    exact = reconstruct(tokenizer(), model, held_out, CPU, None).scores
    assert "equal_tokens" not in exact
    assert exact["psnr_db"] == pytest.approx(scores["psnr_db"], abs=0.5)


def test_the_stages_use_and_record_the_precision(tmp_path):
    """Of tokens, and of the reconstructions that `fidelity` scores."""
    home = Home(tmp_path)
    context = RunContext(home, Settings(), StopFile(tmp_path / "stop"))
    t = tokenizer(steps=4, encode_precision="bf16")
    run_tokenizer(context, t)
    run_tokens(context, t, DATA, "train")
    cache = open_cache(
        home.tokens(t.name, DATA.name, "train"), cache_description(home, t, DATA, "train")
    )
    assert cache.manifest["encode_precision"] == "bf16"

    from pipelines.evaluation.reference_stats import CropOptions
    from var_scaling.tokenizer.model import load_tokenizer

    trained = load_tokenizer(t, *_weights(home, t))
    with precision_context("bf16", CPU):
        assert np.array_equal(cache.tokens, trained.encode(to_unit(pixels(96))).numpy())
    rebuilt = {}
    for precision in (None, "bf16", "fp32"):
        found = image_set(
            context, f"tokenizers/{t.name}", None, None, 40, CropOptions(),
            encode_precision=precision,
        )  # fmt: skip
        rebuilt[precision] = torch.cat([batch for _, batch in found.batches()])
        assert ("encoded in bf16" in found.description) == (precision != "fp32")
        assert bool(found.other_scores()) == (precision != "fp32")
    assert torch.equal(rebuilt[None], rebuilt["bf16"])
    assert not torch.equal(rebuilt[None], rebuilt["fp32"])


def _weights(home: Home, t: TrainedTokenizer):
    from pipelines.workspace.store import weights_of

    return weights_of(home.tokenizer(t.name))
