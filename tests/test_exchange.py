"""Import checks every name of released weights, export reproduces them, and no code is run."""

import pytest
import torch
from conftest import CLASSES, SMALL, bring, tokenizer, var_state

from pipelines.checkpoints.convert import export_released
from pipelines.workspace.address import read_generator
from pipelines.workspace.store import ConfigMismatchError, Home
from var_scaling.disk import DONE
from var_scaling.models.var import published
from var_scaling.models.var.config import VarModel
from var_scaling.weights import WeightsError


@pytest.mark.parametrize(
    "model",
    [
        VarModel(depth=2, width_per_depth=8),
        VarModel(depth=1, width_per_depth=8, shared_adaln=True, mlp_ratio=2),
        VarModel(depth=3, width_per_depth=4, normalised_attention=False),
    ],
    ids=["adaln in each block", "shared adaln", "plain attention"],
)
def test_import_export_import_is_the_identity(model, files, tmp_path, vqvae_state):
    torch.save(var_state(model), files[1])
    found = bring(tmp_path / "a", *files)
    assert found.tokenizer.model_copy(update={"name": "small", "sha256": "0" * 64}) == SMALL
    assert found.model.classes == CLASSES
    same = ("depth", "width", "heads", "mlp_ratio", "shared_adaln", "normalised_attention")
    assert all(getattr(found.model.model, name) == getattr(model, name) for name in same)
    out = tmp_path / "out_vqvae.pth", tmp_path / "out_var.pth"
    for address, path in zip(("tokenizers/it", "imported/it"), out, strict=True):
        export_released(Home(tmp_path / "a"), address, path)
    for path, expected in zip(out, (vqvae_state, var_state(model)), strict=True):
        state = torch.load(path, weights_only=True)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    bring(tmp_path / "b", *out)
    for folder in ("tokenizers/it", "imported/it"):
        first, second = (tmp_path / home / folder / "weights.safetensors" for home in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_a_checkpoint_of_the_released_trainer_has_var_and_vqvae(files, tmp_path, vqvae_state):
    model = VarModel(depth=2, width_per_depth=8)
    whole = {"epoch": 3, "trainer": {"vae_local": vqvae_state, "var_wo_ddp": var_state(model)}}
    torch.save(whole, tmp_path / "ar-ckpt-best.pth")
    found = bring(tmp_path / "home", tmp_path / "ar-ckpt-best.pth")
    assert (found.tokenizer.codebook_size, found.model.model.depth) == (16, 2)


def test_a_second_imported_model_uses_the_existing_tokenizer(files, tmp_path):
    home = tmp_path / "home"
    first = bring(home, *files, name="one")
    torch.save(var_state(VarModel(depth=3, width_per_depth=8)), files[1])
    second = bring(home, *files, name="two")
    assert (first.reused, second.reused) == (False, True)
    assert second.model.tokenizer == first.tokenizer
    assert [path.name for path in (home / "tokenizers").iterdir()] == ["one"]
    assert bring(home, *files, name="two").model == second.model  # again: nothing changes
    torch.save(var_state(VarModel(depth=4, width_per_depth=8)), files[1])
    with pytest.raises(ConfigMismatchError, match=r"model.depth: recorded 3, expected 4"):
        bring(home, *files, name="two")


# What must not come in --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.mid.block_1.conv1.bias": None}, "1 missing: encoder.mid.block_1.conv1.bias"),
        ({"encoder.extra": torch.ones(1)}, "1 not known: encoder.extra"),
        (
            {"decoder.conv_in.weight": torch.ones(128, 4, 1, 1)},
            r"of another shape: decoder.conv_in.weight \(128, 4, 1, 1\), expected \(128, 4, 3, 3\)",
        ),
        (
            {"quant_conv.bias": torch.ones(4).double()},
            r"1 not float32.*: quant_conv.bias",
        ),
        ({"quant_conv.bias": torch.full((4,), torch.nan)}, "not finite, in quant_conv.bias"),
        (
            {"encoder.conv_in.weight": None, "encoder.conv_1.weight": torch.ones(1)},
            "1 missing: encoder.conv_in.weight\n  1 not known: encoder.conv_1.weight",
        ),
        (
            {"quantize.embedding.weight": torch.ones(3)},
            r"of another shape: quantize.embedding.weight \(3,\)",
        ),
        (
            {"encoder.down.4.block.0.conv1.weight": None},
            "1 missing: encoder.down.4.block.0.conv1.weight$",
        ),
        ({"quantize.quant_resi.qresi_ls.300000.weight": torch.ones(1)}, "1 not known: quantize.qu"),
    ],
    ids=["missing", "extra", "shape", "type", "nan", "renamed", "flat", "only one", "absurd"],
)
def test_every_wrong_name_and_shape_is_listed(change, message, files, tmp_path, vqvae_state):
    state = {name: value for name, value in {**vqvae_state, **change}.items() if value is not None}
    torch.save(state, files[0])
    with pytest.raises(WeightsError, match=message):
        bring(tmp_path / "home", *files)
    assert not (tmp_path / "home").exists()


def test_a_var_that_does_not_fit_its_tokenizer_is_refused(files, tmp_path):
    home = tmp_path / "home"
    with pytest.raises(WeightsError, match="no VQVAE in these files"):
        bring(home, files[1])
    with pytest.raises(WeightsError, match="each holds a VQVAE"):
        bring(home, files[0], files[0])
    with pytest.raises(WeightsError, match=r"sides \(1, 2\), but --sides is \(1, 3\)"):
        bring(home, *files, patch_nums=(1, 3))
    other = SMALL.model_copy(update={"codebook_size": 8})
    torch.save(var_state(VarModel(depth=2, width_per_depth=8), t=other), files[1])
    with pytest.raises(WeightsError, match="predicts 8 codes of 4 channels; tokenizer it has 16"):
        bring(home, *files)
    bare = var_state(VarModel(depth=2, width_per_depth=8))
    del bare["lvl_1L"]
    torch.save(bare, files[1])
    with pytest.raises(WeightsError, match="does not record the sides of its scales; give --sides"):
        bring(home, *files)
    assert not home.exists()
    assert bring(home, *files, patch_nums=(1, 2)).model.tokenizer.pyramid.patch_nums == (1, 2)


def test_only_models_that_the_released_code_supports_are_exported(tmp_path):
    with pytest.raises(WeightsError, match="norm_groups = 1, channels = 8; the released"):
        published.released_tokenizer_state(tokenizer(), {})
    with pytest.raises(ValueError, match="no finished model or tokenizer in this folder"):
        export_released(Home(tmp_path), "imported/x", tmp_path / "x.pth")
    with pytest.raises(ValueError, match="an address is SWEEP/TRIAL"):
        export_released(Home(tmp_path), "../x", tmp_path / "x.pth")


@pytest.mark.parametrize(
    "change",
    [
        {"attn_bias_for_masking": torch.zeros(1, 1, 5, 5)},
        {"blocks.0.attn.zero_k_bias": torch.ones(16)},
        {"blocks.0.attn.zero_k_bias": torch.zeros(3)},
        {"foo.lvl_1L": torch.zeros(1, 5)},
        {"lvl_1L": torch.tensor([[0, 1, 1, 1, 2]])},
        {"lvl_1L": torch.tensor([[-1, 10**13, 1, 1, 1]])},
    ],
)
def test_a_sidecar_that_would_change_the_model_is_refused(change, files, tmp_path):
    torch.save({**var_state(VarModel(depth=2, width_per_depth=8)), **change}, files[1])
    with pytest.raises(
        WeightsError, match=r"other values than the sizes|not known: foo|lvl_1L does"
    ):
        bring(tmp_path / "home", *files)


@pytest.mark.parametrize(
    "content",
    [
        {0: torch.ones(2)},
        {"trainer": {"vae_local": torch.ones(2)}},
        {"encoder.x": torch.ones(2, 2).to_sparse()},
        {"encoder.x": torch.ones(1).expand(10**10)},
        {"encoder.down.0.block.0.conv1.weight": torch.tensor(1.0)},
        {"quantize.ema_vocab_hit_SV": torch.tensor(1.0)},
        {"word_embed.weight": torch.ones(2), "pos_1LC": torch.ones(2)},
        {"state_dict": {"encoder.x": torch.ones(2)}},
    ],
    ids=["key", "trainer", "sparse", "huge", "scalar", "hits", "flat", "wrapped"],
)
def test_invalid_contents_raise_weights_errors(content, files, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError):
        bring(tmp_path / "home", tmp_path / "odd.pth")
    with pytest.raises(WeightsError):
        bring(tmp_path / "home", files[0], tmp_path / "odd.pth")


def test_a_vqvae_is_imported_with_the_scales_of_its_var(files, tmp_path):
    state = torch.load(files[0], weights_only=True)
    torch.save({**state, "quantize.ema_vocab_hit_SV": torch.zeros(10, 16)}, files[0])
    assert bring(tmp_path / "home", *files).tokenizer.pyramid.patch_nums == (1, 2)


def test_tied_tensors_are_imported_and_a_failed_import_does_not_reserve_its_name(files, tmp_path):
    state = var_state(VarModel(depth=2, width_per_depth=8))
    state["blocks.1.attn.q_bias"] = state["blocks.0.attn.q_bias"]
    torch.save(state, files[1])
    bring(tmp_path / "home", *files)
    folder = tmp_path / "home" / "imported" / "it"
    (folder / DONE).unlink()  # as if the process was killed before it wrote the done file
    torch.save(var_state(VarModel(depth=3, width_per_depth=8)), files[1])
    assert bring(tmp_path / "home", *files).model.model.depth == 3
    assert read_generator(folder).model.depth == 3


def test_an_invalid_name_is_refused_before_any_file_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"--as \.\./x: a name has at most"):
        bring(tmp_path / "home", tmp_path / "absent.pth", name="../x")
