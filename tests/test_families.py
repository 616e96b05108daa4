"""VAR, AR and DiT in all commands, with the same guarantees."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import call_command, in_processes, numbers, stops_after
from PIL import Image
from safetensors.torch import load_file
from three_families import MULTI_SCALE, ONE_SCALE, PLAIN, RESIDUAL, family_trial, trials

from analysis.caveats import caveats
from analysis.export import laws_of
from analysis.selection.rates import rate_sweeps
from analysis.study import studies, study
from analysis.table.table import Table, check
from pipelines.evaluation.throughput import sampling_columns
from pipelines.planning.targets import comparable_models
from var_scaling.disk import read_json, write_json
from var_scaling.experiment import Sweep, Trial
from var_scaling.experiment.scoring import Scoring
from var_scaling.metrics import MetricsLog, read_metrics
from var_scaling.models.ar.config import ArModel, ArSampling
from var_scaling.models.dit.config import DitModel, DitSampling, tiny_dit
from var_scaling.tokenizer.cache import LatentStatistics, TokenCache, latent_statistics
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.loop import Interrupted
from var_scaling.training.optim import precision_context
from var_scaling.training.trial import TrainedModel, batch_loss, train
from var_scaling.training.world import World

HERE = Path(__file__).parent
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

# Training -----------------------------------------------------------------------------------------


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
import test_families as tests
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


# Tokenizers ---------------------------------------------------------------------------------------


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


# The commands -------------------------------------------------------------------------------------


def command(*words: object) -> subprocess.CompletedProcess:
    """Run a command in a separate process."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", *map(str, words)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home in which `run` has trained the sweep."""
    home = tmp_path_factory.mktemp("three") / "runs"
    done = command("run", HERE / "three_families.py", "--home", home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def called(capsys, monkeypatch, *words: object) -> tuple[int, str]:
    """Run a command in this process."""
    code, out, err = call_command(monkeypatch, capsys, *words)
    return code, out + err


def test_run_writes_a_row_for_each_family_with_only_its_own_scores(home):
    rows = pd.read_parquet(home / "three" / "results.parquet")
    assert (rows.status == "done").all()
    ends = rows[rows.step == rows.steps].set_index("trial")
    assert set(ends.family) == {"var", "ar", "dit"}
    assert ends.val_loss.notna().all()
    assert ends.val_error.notna().tolist() == (ends.family != "dit").tolist()
    assert [name for name in ends.index if pd.notna(ends.val_loss_raw[name])] == [
        "dit-d1",
        "dit-d2",
    ]
    assert dict(ends.val_loss_parts.map(len)) == {
        name: {"var": 3, "ar": 1, "residual": 2, "dit": 8, "features": 8}[name.split("-")[0]]
        for name in ends.index
    }
    assert ends.loc["dit-d1"].val_images * 8 >= ends.loc["var-d1"].val_images


def test_separate_laws_are_fitted_for_each_family_and_loss(home):
    laws = read_json(home / "three" / "laws.json")
    dits = [f"dit, squared error of velocity{of}" for of in ("", " of features")]
    assert list(laws["groups"]) == ["var", "ar, one-scale", "ar, residual", *dits]
    page = (home / "three" / "report" / "index.html").read_text()
    for group in laws["groups"]:
        folder = group.replace(", ", "-").replace(" ", "-")
        assert f'href="{folder}/index.html"' in page
        own = (home / "three" / "report" / folder / "index.html").read_text()
        assert f"three: {group}" in own


@pytest.mark.parametrize("name", ["var-d2", "ar-d2", "residual-d2", "dit-d2", "features-d2"])
def test_evaluate_reproduces_the_final_score_of_training(name, home, capsys, monkeypatch):
    code, message = called(
        capsys, monkeypatch, "evaluate", f"three/{name}", "--home", home, "--json"
    )
    assert code == 0, message
    trained_to = read_metrics(home / "three" / name / "metrics.jsonl")[-1]
    found = json.loads(message.splitlines()[-1])
    assert found["loss"] == pytest.approx(trained_to["loss"], rel=1e-6)
    if name.startswith("dit"):
        code, message = called(
            capsys, monkeypatch, "evaluate", f"three/{name}", "--home", home, "--json",
            "--raw-weights",
        )  # fmt: skip
        raw = json.loads(message.splitlines()[-1])
        assert raw["loss"] == pytest.approx(trained_to["loss_raw"], rel=1e-6)


@pytest.mark.parametrize("name", ["ar-d2", "residual-d2", "dit-d2", "features-d2"])
def test_each_family_has_samples_strips_and_a_distance(name, home, capsys, monkeypatch):
    words = ("--home", home, "--classes", "0-3", "--count", 3)
    code, message = called(capsys, monkeypatch, "sample", f"three/{name}", *words, "--strips", 2)
    assert code == 0, message
    folder = home / "three" / name / "samples" / "default"
    assert len(list((folder / "images").glob("*/*.png"))) == 12
    assert (folder / "strips.png").exists()
    code, message = called(
        capsys, monkeypatch, "fidelity", f"three/{name}", "--home", home, "--extractor", "seeded"
    )
    assert code == 0, message


def test_sample_uses_the_settings_of_each_family(home, capsys, monkeypatch):
    words = ("--home", home, "--classes", "0", "--count", 1, "--name", "few")
    code, message = called(
        capsys, monkeypatch, "sample", "three/dit-d1", *words, "--set", "steps=3",
        "--set", "sampler=sde", "--set", "interval=0.2,0.8",
    )  # fmt: skip
    assert code == 0, message
    record = read_json(home / "three" / "dit-d1" / "samples" / "few" / "sampling.json")
    assert record["sampling"] == {
        "family": "dit", "guidance": 0.5, "precision": "fp32", "steps": 3, "sampler": "sde",
        "interval": [0.2, 0.8],
    }  # fmt: skip
    code, message = called(capsys, monkeypatch, "sample", "three/ar-d1", *words, "--set", "steps=3")
    assert code == 2
    assert (
        "--steps: the family ar has no such setting; its settings are guidance, precision, top_k"
        in message
    )


def test_raw_weights_are_sampled_too(home, capsys, monkeypatch):
    words = ("--home", home, "--classes", "0", "--count", 1, "--name", "raw", "--raw-weights")
    code, message = called(capsys, monkeypatch, "sample", "three/dit-d1", *words)
    assert code == 0, message
    folder = home / "three" / "dit-d1"
    record = read_json(folder / "samples" / "raw" / "sampling.json")
    assert record["weights_sha256"] == read_json(folder / "done.json")["raw_weights_sha256"]
    code, message = called(capsys, monkeypatch, "sample", "three/ar-d1", *words)
    assert code == 2
    assert "has no raw weights, because it was not trained with weight_average" in message


@pytest.mark.parametrize("name", ["ar-d1", "dit-d1"])
def test_speed_times_each_family(name, home, capsys, monkeypatch):
    words = ("--home", home, "--seconds", 0.01, "--batches", 1, "--micro-batches", 4)
    more = ("--set", "steps=2") if name.startswith("dit") else ()
    code, message = called(capsys, monkeypatch, "speed", f"three/{name}", *words, *more, "--json")
    assert code == 0, message
    (row, guided) = json.loads(message.splitlines()[-1])["sampling"]
    assert row["settings"] == ("steps 2" if more else "")
    assert guided["model_flops"] > row["model_flops"] > 0
    sampling = ArSampling() if name == "ar-d1" else DitSampling(steps=2)
    timed = sampling_columns(home / "three" / name, sampling)
    assert timed["latency_seconds"] > 0
    assert (
        sampling_columns(home / "three" / name, sampling.model_copy(update={"guidance": 9})) == {}
    )


def test_a_sweep_draws_and_scores_samples_of_its_trials(home):
    def scored(name: str) -> list[str]:
        found = (home / "three").glob(f"*/scores/{name}/done.json")
        return sorted(path.parents[2].name for path in found)

    everyone = sorted(trial.name for trial in (*trials(1), *trials(2)))
    assert scored("plain-seeded") == scored("plain-classifier") == everyone
    assert scored("plain-raw-seeded") == ["dit-d1", "dit-d2"]
    assert scored("few-seeded") == ["dit-d2"]
    done = read_json(home / "three" / "ar-d1" / "scores" / "plain-seeded" / "done.json")
    folder = home / "three" / "ar-d1" / "samples" / "plain"
    both = {one["extractor"]: one for one in read_json(folder / "fidelity.json")["measured"]}
    assert set(both) == {"seeded", "classifier"}
    found = both["seeded"]
    assert done["distance"] == found["scores"]["fd_seeded"] > 0
    assert both["classifier"]["scores"]["fd_classifier"] > 0
    network = read_json(home / "networks" / "leaves" / "done.json")
    assert both["classifier"]["extractor_sha256"] == network["weights_sha256"]
    assert network["accuracy"] > 0.25  # of 8 classes
    assert (found["reference"], found["samples"]) == ("leaves-validation", 16)
    assert len(list((folder / "images").glob("*/*.png"))) == 16
    rows = pd.read_parquet(home / "three" / "images.parquet")
    assert len(rows) == 23
    looked = rows[rows.extractor == "classifier"]
    assert set(looked.extractor_sha256) == {network["weights_sha256"]}
    assert looked.floor.notna().all()
    rows = rows[rows.extractor == "seeded"].set_index(["trial", "set"])
    assert rows.distance["ar-d1", "plain"] == done["distance"]
    assert rows.floor.notna().all()
    assert rows.bits_per_image["residual-d1", "plain"] == 32 * 5
    assert rows.raw["dit-d1", "plain-raw"]
    assert rows.averaged["dit-d1", "plain"]
    assert rows.settings["dit-d2", "few"] == "guidance 0.5, steps 2"
    steps = rows.sampling_flops["dit-d2", "plain"] / rows.sampling_flops["dit-d2", "few"]
    assert steps == pytest.approx(5 / (2 * 2))  # guided: two passes per step
    page = (home / "three" / "report" / "index.html").read_text()
    assert "Samples “plain, seeded network”" in page
    assert "Condition “plain, classifier network”" in page
    # Only the stage of the seeded network samples with the last weights.
    assert "plain, last weights, classifier network" not in page
    assert "plain, last weights, seeded network" in page
    assert "Samples “few" not in page  # one arm cannot be compared
    assert "No multiplier of compute: no size was run with several seeds" in page
    report = home / "three" / "report"
    assert (report / "families_plain-seeded-network.png").exists()
    with Image.open(report / "families_samples.png") as picture:
        assert picture.width > picture.height / 2
    floors = sorted((home / "tokenizers").glob("*/floors/leaves-seeded-16/done.json"))
    assert [path.parents[2].name for path in floors] == ["one-scale", "residual", "t"]
    features = home / "tokenizers" / "t" / "floors" / "leaves-seeded-16-features" / "done.json"
    assert rows.floor["features-d1", "plain"] == read_json(features)["distance"]
    assert rows.floor["features-d1", "plain"] != rows.floor["dit-d1", "plain"]
    for path in floors:
        floor = read_json(path)
        assert floor["distance"] > floor["distance_of_images"] > 0


@pytest.mark.thorough
@pytest.mark.slow
def test_an_interrupted_comparison_is_partial_and_resumes_to_the_same_result(home, tmp_path):
    """After an interruption some scores exist, one set is half drawn and one is missing."""
    again = tmp_path / "runs"
    shutil.copytree(home, again, ignore=shutil.ignore_patterns("speed.json"))  # of other tests
    trials_there = again / "three"
    for place in ("ar-d2/scores/plain-seeded", "ar-d2/scores/plain-classifier", "ar-d2/samples"):
        shutil.rmtree(trials_there / place)
    for place in ("dit-d2/scores/plain-seeded", "dit-d2/samples/plain"):
        (trials_there / place / "done.json").unlink()
    done = command("report", HERE / "three_families.py", "--home", again)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (trials_there / "report" / "index.html").read_text()
    assert "Not finished: 3 sets of samples are not scored yet (ar-d2/plain-seeded" in page
    partial = pd.read_parquet(trials_there / "images.parquet")
    whole = pd.read_parquet(home / "three" / "images.parquet")
    assert len(partial) == len(whole) - 3
    done = command("run", HERE / "three_families.py", "--home", again)
    assert done.returncode == 0, done.stdout + done.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(trials_there / "images.parquet"), whole)
    assert "Not finished" not in (trials_there / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("scorings", "words"),
    [
        ((Scoring(name="a", sampling=PLAIN, count=1),) * 2, "a, a: names must be unique"),
        (
            (Scoring(name="a", sampling=PLAIN, count=1, only=("d9",)),),
            "a: only: no trial is named d9",
        ),
    ],
)
def test_invalid_scorings_are_refused(scorings, words):
    with pytest.raises(ValueError, match=words):
        Sweep(name="s", question="?", trials=trials(1), scorings=scorings)


def test_a_scoring_has_one_record_for_each_family():
    with pytest.raises(ValueError, match="var, var: at most one for each family"):
        Scoring(name="a", sampling=(PLAIN[0], PLAIN[0]), count=1)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ar-d1", "dit-d1"])
def test_an_edit_with_ar_or_dit_is_refused(name, home, capsys, monkeypatch, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    code, message = called(
        capsys, monkeypatch, "edit", f"three/{name}", tmp_path / "a.png", "--in-paint", "2,2,8,8",
        "--home", home,
    )  # fmt: skip
    assert code == 2
    assert "edit" in message
    assert name.split("-")[0] in message


def test_guidance_of_a_model_without_class_dropout_is_refused(home, capsys, monkeypatch, tmp_path):
    runs = shutil.copytree(home, tmp_path / "runs")
    record = runs / "three" / "dit-d1" / "trial.json"
    write_json(record, {**read_json(record), "class_dropout_prob": 0.0})
    marker = runs / "three" / "dit-d1" / "done.json"
    files = read_json(marker)
    del files["files"]["trial.json"]
    write_json(marker, files)
    words = ("--home", runs, "--count", 1, "--classes", "0", "--name", "g", "--guidance", "1")
    code, message = called(capsys, monkeypatch, "sample", "three/dit-d1", *words)
    assert code == 2
    assert "class_dropout_prob = 0" in message


def test_a_dit_on_tokens_of_an_earlier_version_is_refused_with_advice(tmp_path):
    trial, cache = family_trial("dit", tiny_dit(1), MULTI_SCALE), cache_of(MULTI_SCALE, 16, 0)
    quantizer = MultiScaleVQVAE(MULTI_SCALE).quantize
    old = TokenCache(cache.tokens, cache.labels, 1, {})
    words = (tmp_path, lambda *words: None, 1e9, lambda done: 0, World())
    with pytest.raises(ValueError, match="Delete the folder of the tokens; the next run encodes"):
        train(trial, quantizer, old, old, *words)


def test_latent_statistics_equal_those_of_the_decoded_tokens(home):
    folder = home / "tokens" / MULTI_SCALE.name / "leaves-train"
    noted = latent_statistics(read_json(folder / "manifest.json"))
    assert isinstance(noted, LatentStatistics)
    from pipelines.workspace.store import weights_of
    from var_scaling.tokenizer.model import load_tokenizer

    vqvae = load_tokenizer(MULTI_SCALE, *weights_of(home / "tokenizers" / MULTI_SCALE.name))
    tokens = torch.from_numpy(np.load(folder / "tokens.npy").astype(np.int64))
    grid = vqvae.quantize.decode(tokens).double().movedim(1, 0).flatten(1)
    np.testing.assert_allclose(noted.mean, grid.mean(1).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(noted.deviation, grid.std(1, correction=0).numpy(), rtol=1e-4)
    weights = load_file(home / "three" / "dit-d1" / "weights.safetensors")
    features = home / "tokens" / MULTI_SCALE.name / "leaves-train-features"
    grids = np.load(features / "features.npy")
    assert grids.shape == (600, MULTI_SCALE.code_channels, 4, 4)
    assert grids.dtype == np.float16
    of_features = latent_statistics(read_json(features / "manifest.json"))
    spread = grids.astype(np.float64).std((0, 2, 3))
    np.testing.assert_allclose(of_features.deviation, spread, rtol=1e-4)
    np.testing.assert_allclose(weights["latent_deviation_Z"].numpy(), noted.deviation, rtol=1e-6)


# Laws ---------------------------------------------------------------------------------------------


def table_of(**columns) -> Table:
    rows = pd.DataFrame(
        {
            "trial": [f"t{number}" for number in range(8)],
            "params_blocks": 1000.0 * 2.0 ** np.arange(8),
            "val_loss": 5.0 * 0.9 ** np.arange(8),
            "step": 10,
            "steps": 10,
        }
    )
    return check(rows.assign(**columns))


def test_rows_are_grouped_by_family_tokenizer_and_data():
    assert list(table_of().groups) == [""]
    assert list(table_of(family="var", tokenizer="a").groups) == [""]
    halves = ["var"] * 4 + ["dit"] * 4
    assert list(table_of(family=halves, tokenizer="a").groups) == ["var", "dit"]
    found = table_of(family=halves, tokenizer=["a"] * 4 + ["b", "b", "c", "c"]).groups
    assert {label: len(part.rows) for label, part in found.items()} == {
        "var": 4, "dit, b": 2, "dit, c": 2,
    }  # fmt: skip
    # Another unit of the loss makes another group.
    units = ["nats/token"] * 4 + ["squared error"] * 4
    assert list(table_of(family="dit", loss_unit=units).groups) == [
        "dit, nats/token", "dit, squared error",
    ]  # fmt: skip


def test_no_law_is_fitted_to_several_families():
    mixed = table_of(family=["var"] * 4 + ["dit"] * 4)
    with pytest.raises(ValueError, match="2 groups whose losses do not follow one law: var; dit"):
        study(mixed)
    each = studies(mixed)
    assert list(each) == ["var", "dit"]
    assert [one.get("val_loss", "params_blocks", "pure").fit.points for one in each.values()] == [
        4, 4,
    ]  # fmt: skip


def test_a_forecast_uses_only_runs_of_the_family_of_its_target():
    things = [*trials(1), *trials(2)]
    target = family_trial("ar", ArModel(depth=5, width_per_depth=8), ONE_SCALE)
    assert [one.name for one in comparable_models(things, target)] == ["ar-d1", "ar-d2"]
    others = [one for one in things if one.model.family == "dit"]
    with pytest.raises(
        ValueError, match="ar-d5 is of the family ar, and the finished runs are dit"
    ):
        comparable_models(others, target)


def test_the_best_learning_rate_of_each_size_is_marked_if_at_the_edge():
    losses = {(1000.0, 0.1): 3.0, (1000.0, 0.2): 2.0, (1000.0, 0.4): 2.5, (8000.0, 0.1): 1.5,
              (8000.0, 0.2): 1.6, (8000.0, 0.4): 1.7}  # fmt: skip
    sizes, rates = zip(*losses, strict=True)
    table = check(
        pd.DataFrame(
            {
                "trial": [f"t{n}" for n in range(6)], "params_blocks": sizes, "width": 8,
                "learning_rate": rates, "val_loss": list(losses.values()), "step": 9, "steps": 9,
            }
        )
    )  # fmt: skip
    small, large = rate_sweeps(table.finals, "params_blocks")
    assert (small.best, small.at_edge, small.constant) == (0.2, False, 1.6)
    assert small.relative(0.4) == pytest.approx(0.25)
    assert (large.best, large.at_edge) == (0.1, True)
    message = [each.text for each in caveats(study(table))]
    assert any("edge of the tried range (0.1 of N = 8,000)" in one for one in message)
    assert [one["at_edge"] for one in laws_of(study(table))["rates"]] == [False, True]
