"""Reference numbers of VAR; settings are read from the reference folder."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_reference_numbers import DECAYS

from pipelines.checkpoints.convert import export_released, import_released
from pipelines.workspace.store import Home, weights_of
from var_scaling.config import Tokenizer
from var_scaling.models.base import ModelSpec
from var_scaling.models.var import published
from var_scaling.models.var.config import VarModel
from var_scaling.models.var.model import VAR
from var_scaling.pyramid import Pyramid
from var_scaling.recipe import Optimiser
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import learning_rate_at, weight_decay_at
from var_scaling.weights import load_weights

FOLDER = Path(
    os.environ.get("VAR_SCALING_REFERENCE", Path(__file__).parents[2] / "shared" / "reference")
)
pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(
        not (FOLDER / "config.json").exists(), reason=f"no reference arrays at {FOLDER}"
    ),
]
_OURS_TO_REBUILD = ("ema_vocab_hit_SV", "lvl_1L", "attn_bias_for_masking", "zero_k_bias")


def arrays(name: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / name) as found:
        return {key: torch.from_numpy(found[key]) for key in found.files}


def weights(name: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in arrays(name).items() if not k.endswith(_OURS_TO_REBUILD)}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, bar: float = 2e-4) -> None:
    worst = (ours.detach() - theirs).abs().max()
    assert worst <= bar * (1 + theirs.abs().max()), f"off by {worst:.2e}"


@pytest.fixture(scope="module")
def settings() -> dict:
    return json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def record(settings) -> Tokenizer:
    v = settings["vqvae"]
    assert (v["using_znorm"], v["quant_conv_ks"]) == (False, 3)  # all fields of our tokenizers
    return Tokenizer(
        name="reference",
        pyramid=Pyramid(patch_nums=tuple(v["v_patch_nums"])),
        codebook_size=v["vocab_size"],
        code_channels=v["z_channels"],
        channels=v["ch"],
        multipliers=tuple(v["ch_mult"]),
        residual_blocks=v["num_res_blocks"],
        phi_convolutions=v["share_quant_resi"],
        phi_strength=v["quant_resi"],
    )


@pytest.fixture(scope="module")
def model(record) -> MultiScaleVQVAE:
    module = MultiScaleVQVAE(record)
    module.load_state_dict(weights("vqvae_state.npz"), strict=True)
    return module


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return arrays("vqvae_io.npz")


def test_features_and_tokens_equal_the_reference(model, io):
    assert_close(model.encoder(io["images"]), io["enc_out"])
    assert_close(model.features(io["images"]), io["f"])
    ids = model.encode(io["images"])
    assert torch.equal(ids, io["idx_all"])
    for k, part in enumerate(model.quantize.scales_of(ids)):
        assert torch.equal(part, io[f"idx_{k}"])


def test_grids_reconstructions_and_teacher_inputs_equal_the_reference(model, io):
    ids = io["idx_all"]
    f_hat = model.quantize.empty_grid(len(ids))
    for k, part in enumerate(model.quantize.scales_of(ids)):
        f_hat = model.quantize.add_tokens(f_hat, part, k)
        assert_close(f_hat, io["f_hat_per_scale"][k])
        assert_close(model.render(f_hat).clamp(-1, 1), io["recon_per_scale"][k])
    assert_close(model.quantize.decode(ids), io["f_hat"])
    assert_close(model.render(f_hat), io["recon_unclamped"])
    assert_close(model.decode(ids), io["recon"])
    assert_close(model.quantize.teacher_input(ids), io["var_input"])


def test_the_training_step_of_the_tokenizer_equals_the_reference(model, settings, io):
    expected = arrays("vqvae_train_step.npz")
    model.zero_grad()
    commitment = settings["vqvae"]["beta"]
    rebuilt, quantized = model(io["images"], commitment, quantised=True)
    error = F.mse_loss(rebuilt, io["images"])
    (error + quantized.loss).backward()
    assert_close(rebuilt, expected["rec"])
    assert_close(quantized.loss, expected["vq_loss"])
    assert_close(error, expected["rec_mse"])
    assert_close(error + quantized.loss, expected["total_loss"])
    check_gradients(model, expected)


@pytest.mark.parametrize("name", ["var", "var_saln"])
def test_logits_losses_and_gradients_equal_the_reference(name, record, settings, io):
    v = {**settings["var"], **settings[name]}
    config = VarModel(
        depth=v["depth"],
        width_per_depth=v["embed_dim"] // v["depth"],
        mlp_ratio=int(v["mlp_ratio"]),
        shared_adaln=v["shared_aln"],
        normalised_attention=v["attn_l2_norm"],
    )
    assert config.heads == v["num_heads"]
    module = VAR(config, record, v["num_classes"], seed=0)
    module.load_state_dict(weights(f"{name}_state.npz"), strict=True)
    expected, ids = arrays(f"{name}_io.npz"), io["idx_all"]
    null_class = torch.full_like(expected["labels"], v["num_classes"])
    assert_close(module(null_class, io["var_input"]), expected["logits_uncond"])
    logits = module(expected["labels"], io["var_input"])
    assert_close(logits, expected["logits"])
    losses = F.cross_entropy(logits.movedim(-1, 1), ids, reduction="none")
    assert_close(losses, expected["loss_per_token"])
    parts = losses.split(list(record.pyramid.lengths), dim=1)
    assert_close(torch.stack([part.mean() for part in parts]), expected["loss_per_scale"])
    assert_close(losses.mean(), expected["loss"])
    assert_close(parts[-1].mean(), expected["loss_tail"])
    right = (logits.argmax(-1) == ids).float() * 100
    assert_close(right.mean(), expected["acc_mean"])
    assert_close(right[:, -record.pyramid.lengths[-1] :].mean(), expected["acc_tail"])
    losses.mean().backward()
    check_gradients(module, expected)


def check_gradients(module: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    parameters = dict(module.named_parameters())
    named = [key for key in expected if key.startswith("grad.")]
    assert named
    for key in named:
        assert_close(parameters[key.removeprefix("grad.")].grad, expected[key], 1e-3)
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in parameters.values() if p.grad is not None]
    )
    assert_close(norm, expected["grad_global_norm"], 1e-3)


def schedules() -> list[str]:
    if not (FOLDER / "lr_wd_schedule.npz").exists():
        return []
    return sorted({name.rsplit(".", 1)[0] for name in arrays("lr_wd_schedule.npz")})


@pytest.mark.parametrize("name", schedules())
def test_every_schedule_equals_the_reference(name):
    found = arrays("lr_wd_schedule.npz")
    peak, wd, wd_end, warm, total, start, end = found[f"{name}.args"].tolist()
    decay, bend = DECAYS[name.split("_")[0]]
    o = Optimiser(
        learning_rate=peak,
        weight_decay=wd,
        final_weight_decay=wd_end,
        warm_up=warm / total,
        warm_up_from=start,
        decay=decay,
        plateau=bend,
        final=end,
    )
    steps = range(int(total))
    ours = [learning_rate_at(o, step, int(total)) for step in steps]
    np.testing.assert_allclose(ours, found[f"{name}.lr"], rtol=1e-9)
    ours = [weight_decay_at(o, step, int(total)) for step in steps]
    np.testing.assert_allclose(ours, found[f"{name}.wd"], rtol=1e-9)


# The lists of names, and the way in and out -----------------------------------------------------


def listed(name: str) -> dict[str, tuple[tuple[int, ...], str, str]]:
    """Entries of a released state dict: name to (shape, type, parameter or buffer)."""
    lines = (FOLDER / name).read_text().splitlines()
    entries = [line.split("\t") for line in lines]
    return {
        key: (tuple(int(side) for side in re.findall(r"\d+", shape)), kind, role)
        for key, shape, kind, role in entries
    }


def shown(state: dict[str, torch.Tensor], ours: set[str]) -> dict:
    return {
        name: (
            tuple(value.shape),
            str(value.dtype).removeprefix("torch."),
            "param" if name in ours else "buffer",
        )
        for name, value in state.items()
    }


def test_an_export_has_the_names_shapes_and_types_of_the_released_files():
    paper = Tokenizer(name="paper")
    with torch.device("meta"):
        vqvae, var = MultiScaleVQVAE(paper), VAR(VarModel(depth=16), paper, 1000, seed=0)
    state = vqvae.state_dict()
    exported = published.released_tokenizer_state(paper, state)
    assert shown(exported, set(state)) == listed("state_dict_vqvae_v4096_z32_ch160.tsv")
    state = var.state_dict()
    exported = published.ReleasedVar().export(ModelSpec(VarModel(depth=16), paper, 1000), state)[0]
    assert shown(exported, set(state)) == listed("state_dict_var_d16.tsv")


@pytest.mark.parametrize("name", ["var", "var_saln"])
def test_released_files_survive_import_and_export_bitwise(name, settings, record, io, tmp_path):
    """The config derived from the files equals config.json, and the model computes the same."""
    files = [tmp_path / "vqvae.pth", tmp_path / "var.pth"]
    before = [arrays("vqvae_state.npz"), arrays(f"{name}_state.npz")]
    for path, state in zip(files, before, strict=True):
        torch.save(state, path)
    home = Home(tmp_path / "runs")
    found = import_released(home, files, "first", None, lambda text: None)
    v = {**settings["var"], **settings[name]}
    assert found.tokenizer.model_dump(exclude={"name", "sha256", "kind"}) == record.model_dump(
        exclude={"name"}
    )
    m = found.model.model
    assert (m.depth, m.width, m.heads) == (v["depth"], v["embed_dim"], v["num_heads"])
    assert (m.shared_adaln, found.model.classes) == (v["shared_aln"], v["num_classes"])

    out = [tmp_path / "vqvae_again.pth", tmp_path / "var_again.pth"]
    for address, path in zip(("tokenizers/first", "imported/first"), out, strict=True):
        export_released(home, address, path)
    for path, state in zip(out, before, strict=True):
        exported = torch.load(path, weights_only=True)
        assert exported.keys() == state.keys()
        for key, value in state.items():
            assert exported[key].dtype == value.dtype
            assert torch.equal(exported[key], value), key

    other = Home(tmp_path / "again")
    import_released(other, out, "first", None, lambda text: None)
    for folder in ("tokenizers/first", "imported/first"):
        first, second = (h.root / folder / "weights.safetensors" for h in (home, other))
        assert first.read_bytes() == second.read_bytes()

    module = VAR(m, found.tokenizer, found.model.classes, seed=0)
    load_weights(module, *weights_of(home.imported("first")))
    expected = arrays(f"{name}_io.npz")
    assert_close(module(expected["labels"], io["var_input"]), expected["logits"])
