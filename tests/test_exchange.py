"""Released weights come in checked, to the last name, and go out as they came; nothing is run."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import images, tokenizer, trial, var_scaling
from PIL import Image

from pipelines.address import imported_sweep, read_generator
from pipelines.exchange import export_released, import_released
from pipelines.orchestrate import refuse_drift
from pipelines.rows import rows_of, write_results
from pipelines.settings import Settings
from pipelines.stages import Place, run_tokenizer, run_tokens, run_trial
from pipelines.store import Drift, Home
from var_scaling.config import ImportedTokenizer, Model, Sweep
from var_scaling.disk import DONE, write_json
from var_scaling.models import released
from var_scaling.models.var import VAR
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.weights import WeightsError, read_file, read_tensors

SMALL = ImportedTokenizer(
    name="small", sha256="0" * 64, codes=16, code_channels=4, channels=32,
    pyramid=Pyramid(sides=(1, 2)),
)  # fmt: skip
CLASSES = 3


def var_state(model: Model, seed: int = 0, t: ImportedTokenizer = SMALL) -> dict:
    state = VAR(model, t, CLASSES, seed=seed).state_dict()
    return released.released_var_state(model, t, state)


@pytest.fixture(scope="module")
def vqvae_state() -> dict:
    state = MultiScaleVQVAE(SMALL, seed=1).state_dict()
    return released.released_tokenizer_state(SMALL, state)


@pytest.fixture
def files(tmp_path, vqvae_state) -> tuple[Path, Path]:
    paths = tmp_path / "vqvae.pth", tmp_path / "var.pth"
    torch.save(vqvae_state, paths[0])
    torch.save(var_state(Model(depth=2, width_per_depth=8)), paths[1])
    return paths


def bring(home: Path, *paths: Path, name: str = "it", sides=None):
    return import_released(Home(home), list(paths), name, sides, lambda text: None)


@pytest.mark.parametrize(
    "model",
    [
        Model(depth=2, width_per_depth=8),
        Model(depth=1, width_per_depth=8, shared_adaln=True, mlp_ratio=2),
        Model(depth=3, width_per_depth=4, normalised_attention=False),
    ],
    ids=["adaln in each block", "shared adaln", "plain attention"],
)
def test_in_out_and_in_again_is_the_identity(model, files, tmp_path, vqvae_state):
    torch.save(var_state(model), files[1])
    found = bring(tmp_path / "a", *files)
    assert found.tokenizer.model_copy(update={"name": "small", "sha256": "0" * 64}) == SMALL
    assert found.model.classes == CLASSES
    same = ("depth", "width", "heads", "mlp_ratio", "shared_adaln", "normalised_attention")
    assert all(getattr(found.model.model, name) == getattr(model, name) for name in same)
    out = tmp_path / "out_vqvae.pth", tmp_path / "out_var.pth"
    for address, path in zip(("tokenizers/it", "imported/it"), out, strict=True):
        export_released(Home(tmp_path / "a"), address, path)
    for path, wanted in zip(out, (vqvae_state, var_state(model)), strict=True):
        state = torch.load(path, weights_only=True)
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], value) for name, value in wanted.items())
    bring(tmp_path / "b", *out)
    for folder in ("tokenizers/it", "imported/it"):
        first, second = (tmp_path / home / folder / "weights.safetensors" for home in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_a_checkpoint_of_the_released_trainer_holds_both(files, tmp_path, vqvae_state):
    model = Model(depth=2, width_per_depth=8)
    whole = {"epoch": 3, "trainer": {"vae_local": vqvae_state, "var_wo_ddp": var_state(model)}}
    torch.save(whole, tmp_path / "ar-ckpt-best.pth")
    found = bring(tmp_path / "home", tmp_path / "ar-ckpt-best.pth")
    assert (found.tokenizer.codes, found.model.model.depth) == (16, 2)


def test_a_second_model_uses_the_tokenizer_that_is_here(files, tmp_path):
    home = tmp_path / "home"
    first = bring(home, *files, name="one")
    torch.save(var_state(Model(depth=3, width_per_depth=8)), files[1])
    second = bring(home, *files, name="two")
    assert (first.reused, second.reused) == (False, True)
    assert second.model.tokenizer == first.tokenizer
    assert [path.name for path in (home / "tokenizers").iterdir()] == ["one"]
    assert bring(home, *files, name="two").model == second.model  # again: nothing changes
    torch.save(var_state(Model(depth=4, width_per_depth=8)), files[1])
    with pytest.raises(Drift, match=r"model.depth: recorded 3, wanted 4"):
        bring(home, *files, name="two")


# What must not come in --------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def test_code_in_a_file_is_named_and_not_run(tmp_path):
    torch.save({"a": torch.ones(2), "b": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"refused\. Beside tensors it names \S*exec"):
        read_file(tmp_path / "evil.pth")
    torch.save({"a": Evil()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"refused\. Beside tensors it names \S*exec"):
        read_file(tmp_path / "old.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")  # a whole module, not its state
    with pytest.raises(WeightsError, match=r"torch\.save\(model\.state_dict\(\)"):
        read_file(tmp_path / "module.pth")


def flip(path: Path) -> None:
    """One bit of a tensor's bytes."""
    with zipfile.ZipFile(path) as archive:
        place = max(archive.infolist(), key=lambda member: member.file_size).header_offset + 4096
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "cut short"),
        (flip, "does not match its checksum"),
        (lambda path: path.write_text("hello, I am no model"), "no file of weights"),
        (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "no file of weights|not named tensors"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: (path.unlink(), path.mkdir()), "a folder"),
        (lambda path: torch.save([torch.ones(2)], path), "holds a list, not named tensors"),
        (lambda path: torch.save({"w": 3}, path), r"more than named tensors: w \(a int\)"),
        (lambda path: torch.save({"w": torch.ones(2)}, path), "neither a VQVAE nor a VAR"),
    ],
    ids=["empty", "short", "bit", "text", "pickle", "gone", "folder", "list", "numbers", "other"],
)
def test_a_damaged_file_says_what_is_wrong_with_it(damage, message, files, tmp_path):
    damage(files[0])
    with pytest.raises(WeightsError, match=message):
        bring(tmp_path / "home", files[0])
    assert not (tmp_path / "home").exists()


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="damaged, or no safetensors"):
        read_tensors(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.mid.block_1.conv1.bias": None}, "1 missing: encoder.mid.block_1.conv1.bias"),
        ({"encoder.extra": torch.ones(1)}, "1 not known: encoder.extra"),
        (
            {"decoder.conv_in.weight": torch.ones(128, 4, 1, 1)},
            r"of another shape: decoder.conv_in.weight \(128, 4, 1, 1\), wanted \(128, 4, 3, 3\)",
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


def test_a_var_that_does_not_fit_is_refused(files, tmp_path):
    home = tmp_path / "home"
    with pytest.raises(WeightsError, match="no VQVAE among them"):
        bring(home, files[1])
    with pytest.raises(WeightsError, match="each holds a VQVAE"):
        bring(home, files[0], files[0])
    with pytest.raises(WeightsError, match=r"sides \(1, 2\), --sides of \(1, 3\)"):
        bring(home, *files, sides=(1, 3))
    other = SMALL.model_copy(update={"codes": 8})
    torch.save(var_state(Model(depth=2, width_per_depth=8), t=other), files[1])
    with pytest.raises(WeightsError, match="predicts 8 codes of 4 channels; tokenizer it has 16"):
        bring(home, *files)
    bare = var_state(Model(depth=2, width_per_depth=8))
    del bare["lvl_1L"]
    torch.save(bare, files[1])
    with pytest.raises(WeightsError, match="does not tell its scales' sides; give --sides"):
        bring(home, *files)
    assert not home.exists()
    assert bring(home, *files, sides=(1, 2)).model.tokenizer.pyramid.sides == (1, 2)


def test_only_what_the_released_code_can_hold_goes_out(tmp_path):
    with pytest.raises(WeightsError, match="norm_groups = 1, channels = 8; the released"):
        released.released_tokenizer_state(tokenizer(), {})
    with pytest.raises(ValueError, match="nothing finished is here"):
        export_released(Home(tmp_path), "imported/x", tmp_path / "x.pth")
    with pytest.raises(ValueError, match="name it as SWEEP/TRIAL"):
        export_released(Home(tmp_path), "../x", tmp_path / "x.pth")


def test_a_zip_packed_again_gives_the_same_weights(files, tmp_path):
    """torch maps a file's bytes as they lie there: compressed ones would come in as rubbish."""
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(files[0]) as old, zipfile.ZipFile(packed, "w") as new:
        for one in old.infolist():
            how = zipfile.ZIP_DEFLATED if one.file_size < 2000 else zipfile.ZIP_STORED
            new.writestr(one.filename, old.read(one), compress_type=how)
    try:
        state = read_tensors(packed)
    except WeightsError:
        return  # torch may refuse it; it may not read it wrongly
    wanted = read_tensors(files[0])
    assert all(torch.equal(state[name], value) for name, value in wanted.items())


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
    torch.save({**var_state(Model(depth=2, width_per_depth=8)), **change}, files[1])
    with pytest.raises(WeightsError, match=r"not what follows|not known: foo|lvl_1L does"):
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
def test_odd_contents_are_weights_errors_not_tracebacks(content, files, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError):
        bring(tmp_path / "home", tmp_path / "odd.pth")
    with pytest.raises(WeightsError):
        bring(tmp_path / "home", files[0], tmp_path / "odd.pth")


def test_a_vqvae_that_counted_other_scales_comes_in_with_those_of_its_var(files, tmp_path):
    state = torch.load(files[0], weights_only=True)
    torch.save({**state, "quantize.ema_vocab_hit_SV": torch.zeros(10, 16)}, files[0])
    assert bring(tmp_path / "home", *files).tokenizer.pyramid.sides == (1, 2)


def test_tied_tensors_come_in_and_a_failed_import_leaves_its_name_free(files, tmp_path):
    state = var_state(Model(depth=2, width_per_depth=8))
    state["blocks.1.attn.q_bias"] = state["blocks.0.attn.q_bias"]
    torch.save(state, files[1])
    bring(tmp_path / "home", *files)
    folder = tmp_path / "home" / "imported" / "it"
    (folder / DONE).unlink()  # as if killed before the mark
    torch.save(var_state(Model(depth=3, width_per_depth=8)), files[1])
    assert bring(tmp_path / "home", *files).model.model.depth == 3
    assert read_generator(folder).model.depth == 3


def test_a_name_that_is_no_name_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"--as \.\./x: a name is of"):
        bring(tmp_path / "home", tmp_path / "absent.pth", name="../x")


# Used like a model of our own -------------------------------------------------------------------


def picture_folder(root: Path, side: int) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def test_imported_models_are_evaluated_and_become_points_of_a_law(files, tmp_path):
    """The whole way by the command line: import, evaluate, fit."""
    home, data = tmp_path / "home", tmp_path / "data"
    picture_folder(data / "pictures", SMALL.side + 4)
    assert var_scaling("evaluate", "imported/d1", home=home).returncode == 2
    for depth in (1, 2, 3):
        torch.save(var_state(Model(depth=depth, width_per_depth=8)), files[1])
        bring(home, *files, name=f"d{depth}")
    words = ("evaluate", "imported/d1", "--data", "pictures", "--json")
    done = var_scaling(*words, home=home, VAR_SCALING_DATA=str(data))
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["images_scored"] == 12
    assert scores["loss"] == pytest.approx(np.log(16), rel=0.05)
    assert "loss_no_label" in scores
    at = Home(home)
    for depth in (2, 3):  # as if evaluated too: the command above costs seconds
        line = {**scores, "loss": scores["loss"] - depth / 10, "error": 1 - depth / 10}
        line |= {"kind": "validation", "step": 0, "time_ms": 0, "commit": None}
        path = at.imported(f"d{depth}") / "metrics.jsonl"
        path.write_text(json.dumps(line) + "\n")
    rows = rows_of(at, imported_sweep(at))
    assert [row.trial for row in rows] == ["d1", "d2", "d3"]
    assert {row.status for row in rows} == {"imported"}
    assert {row.train_flops for row in rows} == {None}
    assert rows[0].params_blocks == 18 * 8**2
    done = var_scaling("fit", "imported", "--json", home=home)
    assert done.returncode == 0, done.stderr
    laws = json.loads(done.stdout)
    assert "val_loss" in {law["metric"] for law in laws["laws"]}
    assert {law["variable"] for law in laws["laws"]} == {"params_blocks", "params_total"}
    for words in (("plan", "imported"), ("status", "imported")):
        assert "d3" in var_scaling(*words, home=home).stdout

    # Nor another model under a known name, nor a law over unlike things.
    at_home = imported_sweep(at)
    other = at_home.imported[0].model_copy(update={"sha256": "f" * 64})
    with pytest.raises(Drift, match="sha256"):
        refuse_drift(at, at_home.model_copy(update={"imported": (other,)}))
    path = at.imported("d3") / "metrics.jsonl"
    path.write_text(path.read_text().replace('"data": "pictures"', '"data": "others"'))
    with pytest.raises(ValueError, match="d3 on others in tokens of d1; d1, d2 on pictures in"):
        write_results(at, at_home)
    tokenizer_record = at.tokenizer("d1") / "tokenizer.json"
    tokenizer_record.write_text(
        tokenizer_record.read_text().replace(other.tokenizer.sha256, "a" * 64)
    )
    done = var_scaling("evaluate", "imported/d1", "--data", "pictures", home=home)
    assert (done.returncode, "already the home of another tokenizer" in done.stderr) == (3, True)


def test_a_trial_of_our_own_is_scored_as_it_was_in_training(smoke):
    done = var_scaling("evaluate", "smoke/d2", "--json", home=smoke)
    assert done.returncode == 0, done.stderr
    lines = (smoke / "smoke" / "d2" / "metrics.jsonl").read_text().splitlines()
    last = [line for line in map(json.loads, lines) if line["kind"] == "validation"][-1]
    scores = json.loads(done.stdout)
    assert {name: last[name] for name in scores if name != "data"} == {
        name: value for name, value in scores.items() if name != "data"
    }


def test_a_record_with_newer_fields_at_their_defaults_is_no_drift(tmp_path):
    from pipelines.store import claim

    old = json.loads(trial().model_dump_json())
    del old["precision"], old["tokenizer"]["weight_average"]
    write_json(tmp_path / "trial.json", old)
    claim(tmp_path, "trial.json", trial())
    with pytest.raises(Drift, match="precision"):
        claim(tmp_path, "trial.json", trial(precision="bf16"))
    write_json(tmp_path / DONE, {"status": "done"})
    assert read_generator(tmp_path) == trial()


def test_a_trial_of_our_own_trains_on_an_imported_tokenizer(files, tmp_path):
    home = Home(tmp_path / "home")
    data = images(side=SMALL.side, train_images=40, validation_images=10)
    t = trial(tokenizer=bring(home.root, *files).tokenizer, data=data, steps=2)
    place = Place(home, Settings(), threads=1, stop_file=tmp_path / "stop")
    assert run_tokenizer(place, t.tokenizer) == "done"
    for split in ("train", "validation"):
        run_tokens(place, t.tokenizer, data, split)
    sweep = Sweep(name="s", question="?", trials=(t,))
    assert run_trial(place, sweep, t) == "done"
    absent = t.tokenizer.model_copy(update={"name": "absent"})
    with pytest.raises(ValueError, match=r"var-scaling import VQVAE.pth --as absent \(SHA-256"):
        run_tokenizer(place, absent)
