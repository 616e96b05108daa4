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
from conftest import call_command
from PIL import Image
from safetensors.torch import load_file
from three_families import MULTI_SCALE, PLAIN, trials

from pipelines.evaluation.throughput import sampling_columns
from var_scaling.disk import read_json, write_json
from var_scaling.experiment import Sweep
from var_scaling.experiment.scoring import Scoring
from var_scaling.metrics import read_metrics
from var_scaling.models.ar.config import ArSampling
from var_scaling.models.dit.config import DitSampling
from var_scaling.tokenizer.cache import LatentStatistics, latent_statistics

HERE = Path(__file__).parent


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
    orders = read_json(home / "three" / "laws.json")["families_order"]
    assert [text.split(" network ")[0] for text in orders] == ["By the seeded", "By the classifier"]
    for text in orders:
        assert text in page
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
    assert "Not finished: 3 sets of samples not scored yet (ar-d2/plain-seeded" in page
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
