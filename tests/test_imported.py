"""Imported models are used like trained ones: evaluated, fitted, trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, SMALL, bring, images, trial, var_scaling, var_state
from PIL import Image

from pipelines.checkpoints.load import load_model
from pipelines.results.table import rows_of, write_results
from pipelines.stages.context import RunContext, StopFile
from pipelines.stages.graph import refuse_mismatch, sweep_stages
from pipelines.stages.stages import run_tokenizer, run_tokens, run_trial
from pipelines.workspace.address import imported_sweep
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import ConfigMismatchError, Home
from var_scaling.models.var.config import VarModel


def picture_folder(root: Path, side: int) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(CLASSES):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.thorough
def test_imported_models_are_evaluated_and_become_points_of_a_law(files, tmp_path):
    """The whole sequence on the command line: import, evaluate, fit."""
    home, data = tmp_path / "home", tmp_path / "data"
    picture_folder(data / "pictures", SMALL.side + 4)
    assert var_scaling("evaluate", "imported/d1", home=home).returncode == 2
    for depth in (1, 2, 3):
        torch.save(var_state(VarModel(depth=depth, width_per_depth=8)), files[1])
        bring(home, *files, name=f"d{depth}")
    words = ("evaluate", "imported/d1", "--data", "pictures", "--json")
    done = var_scaling(*words, home=home, VAR_SCALING_DATA=str(data))
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["images_scored"] == 12
    assert scores["loss"] == pytest.approx(np.log(16), rel=0.05)
    assert "loss_no_label" in scores
    at = Home(home)
    for depth in (2, 3):  # as if evaluated too, since the command takes seconds
        line = {**scores, "loss": scores["loss"] - depth / 10, "error": 1 - depth / 10}
        line |= {"kind": "validation", "step": 0, "time_ms": 0, "commit": None}
        path = at.imported(f"d{depth}") / "metrics.jsonl"
        path.write_text(json.dumps(line) + "\n")
    rows = rows_of(at, imported_sweep(at))
    assert [row["trial"] for row in rows] == ["d1", "d2", "d3"]
    assert {row["status"] for row in rows} == {"imported"}
    assert {row["train_flops"] for row in rows} == {None}
    assert rows[0]["params_blocks"] == 18 * 8**2
    done = var_scaling("fit", "imported", "--json", home=home)
    assert done.returncode == 0, done.stderr
    laws = json.loads(done.stdout)
    assert "val_loss" in {law["metric"] for law in laws["laws"]}
    assert {law["variable"] for law in laws["laws"]} == {"params_blocks", "params_total"}
    for words in (("plan", "imported"), ("status", "imported")):
        assert "d3" in var_scaling(*words, home=home).stdout

    # Another model with a known name is refused, and a law over incomparable models too.
    at_home = imported_sweep(at)
    other = at_home.imported[0].model_copy(update={"sha256": "f" * 64})
    with pytest.raises(ConfigMismatchError, match="sha256"):
        refuse_mismatch(sweep_stages(at, at_home.model_copy(update={"imported": (other,)})))
    path = at.imported("d3") / "metrics.jsonl"
    path.write_text(path.read_text().replace('"data": "pictures"', '"data": "others"'))
    with pytest.raises(ValueError, match="d3 on others in tokens of d1; d1, d2 on pictures in"):
        write_results(at, at_home)
    tokenizer_record = at.tokenizer("d1") / "tokenizer.json"
    tokenizer_record.write_text(
        tokenizer_record.read_text().replace(other.tokenizer.sha256, "a" * 64)
    )
    done = var_scaling("evaluate", "imported/d1", "--data", "pictures", home=home)
    assert (done.returncode, "already belongs to a different tokenizer" in done.stderr) == (3, True)


def test_evaluate_gives_a_trial_the_scores_of_its_training(smoke):
    done = var_scaling("evaluate", "smoke/d2", "--json", home=smoke)
    assert done.returncode == 0, done.stderr
    lines = (smoke / "smoke" / "d2" / "metrics.jsonl").read_text().splitlines()
    last = [line for line in map(json.loads, lines) if line["kind"] == "validation"][-1]
    scores = json.loads(done.stdout)
    assert {name: last[name] for name in scores if name != "data"} == {
        name: value for name, value in scores.items() if name != "data"
    }


def test_load_model_loads_a_model_in_one_line(smoke):
    loaded = load_model("smoke/d2", home=smoke)
    ids = loaded.tokenizer.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert ids.dtype == torch.int64
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())


def test_a_trial_can_train_on_an_imported_tokenizer(files, tmp_path):
    home = Home(tmp_path / "home")
    data = images(side=SMALL.side, train_images=40, validation_images=10)
    t = trial(tokenizer=bring(home.root, *files).tokenizer, data=data, steps=2)
    context = RunContext(home, Settings(), StopFile(tmp_path / "stop"))
    assert run_tokenizer(context, t.tokenizer) == "done"
    for split in ("train", "validation"):
        run_tokens(context, t.tokenizer, data, split)
    assert run_trial(context, "s", t) == "done"
    absent = t.tokenizer.model_copy(update={"name": "absent"})
    with pytest.raises(ValueError, match=r"var-scaling import VQVAE.pth --as absent \(SHA-256"):
        run_tokenizer(context, absent)
