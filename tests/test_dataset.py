"""A user-defined dataset in one module: every command supports it, also in other processes.

The module is this file. The images are stripes whose width depends on the class.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import pytest
from conftest import call_command, tokenizer, trial

from pipelines.workspace.modules import module_names
from pipelines.workspace.sweeps import SweepError, find_sweep
from var_scaling.data.dataset import open_images
from var_scaling.datasets import DataRecord, ReadOptions
from var_scaling.experiment import Sweep
from var_scaling.pyramid import Pyramid
from var_scaling.recipe import Codebook, Losses

READING = ReadOptions(None, Path("unused"), 0, lambda *words: None)


class Stripes(DataRecord):
    kind: Literal["test_dataset"] = "test_dataset"
    train_images: int = 256
    validation_images: int = 64
    classes_too_many: bool = False  # a deliberate fault, for its test

    def open(self, split: str, options: ReadOptions) -> "StripeImages":
        return StripeImages(self, split)


class StripeImages:
    classes: ClassVar[list[str]] = ["wide", "narrow"]

    def __init__(self, data: Stripes, split: str):
        self.data, self.first = data, 0 if split == "train" else data.train_images
        self.rows = data.train_images if split == "train" else data.validation_images
        self.labels = np.arange(self.rows, dtype=np.int64) % (2 + data.classes_too_many)

    def images(self, rows: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        side = self.data.side
        widths = np.where(self.labels[rows] == 0, 8, 4)
        phases = (self.first + rows) * 7 % side
        x = np.arange(side)[None, :] + phases[:, None]
        dark = x // widths[:, None] % 2 == 0
        pixels = np.where(dark[:, None, :, None], 40, 210).astype(np.uint8)
        return np.broadcast_to(pixels, (len(rows), side, side, 3)).copy()


DATASET = Stripes
DATA = Stripes(name="stripes", side=16, classes=2)
T = tokenizer(
    name="stripes", data=DATA, steps=8, losses=Losses(),
    codebook=Codebook(starts_at=2, k_means_images=64), pyramid=Pyramid(patch_nums=(1, 2, 4)),
)  # fmt: skip
SWEEP = Sweep(
    name="striped",
    question="Does any dataset fit?",
    trials=(trial(tokenizer=T, data=DATA, steps=6),),
)


def called(capsys, monkeypatch, *words: object) -> str:
    """Run a command in this process; returns its output."""
    code, out, err = call_command(monkeypatch, capsys, *words)
    assert not code, err
    return out


def command(folder: Path, *words: object) -> subprocess.CompletedProcess:
    """Run a command in a separate process."""
    code = "from pipelines.cli.main import main; main()"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True, text=True, timeout=300, env=env, cwd=folder,
    )  # fmt: skip


@pytest.mark.slow
def test_a_sweep_on_a_users_dataset_is_planned_run_and_scored(tmp_path, capsys, monkeypatch):
    (tmp_path / "striped.py").write_text("from test_dataset import SWEEP as sweep\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    plan = json.loads(called(capsys, monkeypatch, "plan", "striped.py", "--json"))
    assert plan["before"][1]["stage"] == "tokens stripes"
    done = command(tmp_path, "run", "striped.py", "--home", "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pd.read_parquet(tmp_path / "runs" / "striped" / "results.parquet")
    assert set(rows.data) == {"stripes"}
    assert rows.val_images.iloc[-1] == 64
    assert rows.unique_tokens.iloc[-1] == 256 * 21
    manifest = tmp_path / "runs" / "tokens" / "stripes" / "stripes-train" / "manifest.json"
    described = json.loads(manifest.read_text())
    assert described["data"]["kind"] == "test_dataset"
    assert described["classes"] == ["wide", "narrow"]
    model = ("striped/d2", "--home", "runs")
    scored = json.loads(called(capsys, monkeypatch, "evaluate", *model, "--json"))
    assert scored["loss"] == pytest.approx(rows.val_loss.iloc[-1], rel=1e-6)
    called(capsys, monkeypatch, "sample", *model, "--count", 16)
    near = called(capsys, monkeypatch, "fidelity", *model, "--images", 32, "--json")
    assert json.loads(near)["reference"].startswith("stripes")


def test_the_modules_of_a_sweep_include_that_of_its_dataset():
    assert module_names(SWEEP.trials) == ["var", "test_dataset"]


def test_labels_outside_the_classes_are_refused_when_the_images_are_opened():
    wrong = DATA.model_copy(update={"classes_too_many": True})
    with pytest.raises(
        ValueError, match="stripes: labels are 0 to 2; with 2 classes, 0 to 1 are allowed"
    ):
        open_images(wrong, "train", READING)
    assert open_images(DATA, "train", READING).rows == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "no_such_module"}, "No module named 'no_such_module'"),
        ({"kind": "json"}, "module json must define DATASET"),
        ({"colour": 1}, "data.colour = 1: no such field; allowed: classes, classes_too_many, kind"),
        ({"side": "16"}, "data.side = '16'"),
    ],
)
def test_a_data_record_of_unknown_kind_is_refused(tmp_path, changes, message):
    record = json.loads(SWEEP.model_dump_json())
    record["trials"][0]["data"] |= changes
    code = "from var_scaling.experiment import Sweep\n"
    code += f"sweep = Sweep.model_validate_json({json.dumps(record)!r})\n"
    (tmp_path / "wrong.py").write_text(code)
    with pytest.raises(SweepError, match=message):
        find_sweep(str(tmp_path / "wrong.py"))
