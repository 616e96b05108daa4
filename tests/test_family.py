"""A user-defined family in one module: every command supports it, also in other processes.

The module is this file. The model is a unigram: at each position a table of logits over the codes,
for each class. It has neither attention nor scales, and draws all tokens at once.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import call_command, images, tokenizer
from torch import nn

from pipelines.workspace.modules import copy_modules, fingerprint, user_modules
from pipelines.workspace.sweeps import SweepError, find_sweep
from var_scaling.experiment import Sweep, Trial
from var_scaling.models.base import Frame, ModelFamily, ModelRecord, SamplingRecord, Validation
from var_scaling.models.logits import sample_ids
from var_scaling.models.registry import family_named
from var_scaling.recipe import Optimiser

# The family ---------------------------------------------------------------------------------------


class UnigramModel(ModelRecord):
    family: Literal["test_family"] = "test_family"
    rank: int = 4  # rank of the logits: channels of the class and position vectors

    @property
    def width(self) -> int:
        return self.rank * self.depth


class UnigramSampling(SamplingRecord):
    family: Literal["test_family"] = "test_family"
    temperature: float = 1.0


class Unigram(nn.Module):
    def __init__(self, spec):
        super().__init__()
        t, width = spec.tokenizer, spec.config.width
        self.classes = nn.Embedding(spec.classes + 1, width)
        self.places = nn.Parameter(torch.zeros(t.pyramid.length, width))
        self.head = nn.Linear(width, t.codebook_size)

    def forward(self, labels_B):
        return self.head(torch.tanh(self.classes(labels_B)[:, None] + self.places))


class UnigramFamily(ModelFamily[UnigramModel, UnigramSampling]):
    name = "unigram"
    config = UnigramModel
    sampling = UnigramSampling

    def check(self, spec):
        if spec.tokenizer.codebook_size > 4096:
            raise ValueError(f"{spec.tokenizer.codebook_size} codes are too many for a table")

    def sequence_length(self, spec):
        return spec.tokenizer.pyramid.length

    def parameters(self, spec):
        width, codes = spec.config.width, spec.tokenizer.codebook_size
        rows = spec.classes + 1 + self.sequence_length(spec)
        return {"embedding": rows * width, "head": (width + 1) * codes}

    def block_parameters(self, spec):
        return spec.config.width * spec.tokenizer.codebook_size

    def forward_flops(self, spec, dense=False):
        return {"head": 2 * self.sequence_length(spec) * self.block_parameters(spec)}

    def training_flops(self, spec, dense=False):
        return {"head": 3 * self.forward_flops(spec)["head"]}

    def sampling_flops(self, spec, guided=True):
        return self.forward_flops(spec)

    def batch_flops(self, spec, sampling, images, computed=False):
        return images * self.forward_flops(spec)["head"]

    def training_bytes(self, spec, precision):
        return 12.0 * self.sequence_length(spec) * spec.tokenizer.codebook_size

    def sampling_bytes(self, spec, sampling, images):
        return 4 * images * self.sequence_length(spec) * spec.tokenizer.codebook_size

    def validation(self, spec):
        scores = ("loss", "error", "top5")  # the last one has no column in the results table
        return Validation("nats/token", ("all",), (self.sequence_length(spec),), scores)

    def frames(self, spec, sampling):
        return ("whole",)

    def build(self, spec, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Unigram(spec)

    def loss(self, spec, network, quantizer, batch, draws):
        logits_BLV = network(batch.labels_B)
        return F.cross_entropy(logits_BLV.flatten(0, 1).float(), batch.ids_BL.flatten())

    def validate(self, spec, network, quantizer, batch, rows):
        logits_BVL = network(batch.labels_B).movedim(-1, 1).float()
        loss_BL = F.cross_entropy(logits_BVL, batch.ids_BL, reduction="none")
        error_BL = logits_BVL.argmax(1) != batch.ids_BL
        missed_BL = ~(logits_BVL.topk(5, dim=1).indices == batch.ids_BL[:, None]).any(1)
        return [each.double().sum(1, keepdim=True) for each in (loss_BL, error_BL, missed_BL)]

    def sample(self, spec, network, quantizer, labels_B, sampling, draws, kept=None, calls=None):
        logits_BLV = network(labels_B).float() / sampling.temperature
        ids_BL = sample_ids(logits_BLV, draws.uniform("token", 0, logits_BLV.shape[1:2]))
        grids = [quantizer.decode(ids_1L) for ids_1L in ids_BL.split(1)]
        yield Frame(torch.cat(grids), ids_BL)

    def network_passes(self, spec, network, quantizer, labels_B, sampling, calls=None):
        network(labels_B)


FAMILY = UnigramFamily()


def unigram(depth: int) -> Trial:
    return Trial(
        name=f"u{depth}",
        tokenizer=tokenizer(steps=20),
        data=images(),
        model=UnigramModel(depth=depth),
        optimiser=Optimiser(learning_rate=0.05),
        batch_size=8,
        steps=12,
        evaluations=2,
    )


SWEEP = Sweep(name="toy", question="Does any family fit?", trials=(unigram(1), unigram(2)))

# The tests ----------------------------------------------------------------------------------------

MINE = "from test_family import SWEEP as sweep\n"


def command(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a command in a separate process."""
    code = "from pipelines.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True, text=True, timeout=300, env={**os.environ, **(env or {})},
    )  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A home in which the sweep was trained by Ray workers, which import this file."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(MINE)
    here = str(Path(__file__).parent)
    done = command("run", folder / "toy.py", "--home", folder / "runs", env={"PYTHONPATH": here})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def called(capsys, monkeypatch, *words: object) -> tuple[int, str]:
    """Run a command in this process."""
    code, out, err = call_command(monkeypatch, capsys, *words)
    return code, out + err


def test_plan_counts_the_flops_of_a_users_family(toy):
    code = f"""
import sys
sys.argv = ["var-scaling", "plan", "{toy}/toy.py", "--json"]
from pipelines.cli.main import main
main()
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    rows = {row["trial"]: row for row in json.loads(done.stdout)["trials"]}
    # 8 classes and the null class, 21 positions; 32 codes: width 4 and 8.
    assert rows["u1"]["params_total"] == (9 + 21) * 4 + 5 * 32
    assert rows["u2"]["params_total"] == (9 + 21) * 8 + 9 * 32


def test_run_writes_results_of_a_users_family_and_its_losses_fall(toy):
    rows = pd.read_parquet(toy / "runs" / "toy" / "results.parquet")
    assert set(rows.family) == {"unigram"}
    assert set(rows.status) == {"done"}
    ends = rows[rows.step == rows.steps].set_index("trial")
    starts = rows[rows.step < rows.steps].set_index("trial")
    assert (ends.val_loss < starts.val_loss).all()
    assert "val_loss_last" not in ends  # no row has a last part
    assert ends.heads.isna().all()
    assert ends.params_attention.eq(0).all()


@pytest.mark.slow
def test_a_new_results_column_needs_one_entry(toy, tmp_path):
    runs = shutil.copytree(toy / "runs", tmp_path / "runs")
    code = f"""
import sys
from var_scaling import results
column = results.score_column("top5", "share of tokens not among the likeliest 5", sign="share")
results.COLUMNS += (column,)
sys.argv = ["var-scaling", "fit", "{toy}/toy.py", "--home", "{runs}"]
from pipelines.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
from analysis.table.table import load_table
from pathlib import Path
rows = load_table(Path("{runs}/toy/results.parquet")).rows
print("found", rows.val_top5.dtype, bool((rows.val_top5 < rows.val_error).all()))
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "found float64 True" in done.stdout, done.stderr
    assert "val_top5" not in pd.read_parquet(toy / "runs" / "toy" / "results.parquet")


def test_evaluate_reproduces_the_scores_of_a_users_family(toy, capsys, monkeypatch):
    rows = pd.read_parquet(toy / "runs" / "toy" / "results.parquet")
    expected = rows[(rows.step == rows.steps) & (rows.trial == "u2")].iloc[0]
    code, message = called(
        capsys, monkeypatch, "evaluate", "toy/u2", "--home", toy / "runs", "--json"
    )
    assert code == 0, message
    scores = json.loads(message[message.index("{") : message.rindex("}") + 1])
    assert scores["loss"] == pytest.approx(expected.val_loss, rel=1e-6)


def test_sample_uses_the_settings_of_the_family_and_refuses_others(toy, capsys, monkeypatch):
    words = ("sample", "toy/u1", "--home", toy / "runs", "--count", 2, "--strips", 1)
    code, message = called(capsys, monkeypatch, *words, "--temperature", "0.5")
    assert code == 0, message
    folder = toy / "runs" / "toy" / "u1" / "samples" / "default"
    assert len(list((folder / "images").rglob("*.png"))) == 16
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["set"]["sampling"] == {
        "family": "test_family", "guidance": 0.0, "precision": "fp32", "temperature": 0.5,
    }  # fmt: skip
    code, message = called(capsys, monkeypatch, *words, "--name", "other", "--top-k", "5")
    assert code == 2
    assert (
        "--top-k: the family unigram has no such setting; its settings are guidance, precision"
        in message
    )


def test_speed_times_the_family(toy, capsys, monkeypatch):
    words = ("speed", "toy/u1", "--home", toy / "runs", "--batches", "1", "--seconds", "0.05")
    code, message = called(capsys, monkeypatch, *words)
    assert code == 0, message
    (found,) = json.loads((toy / "runs" / "toy" / "u1" / "speed.json").read_text())["measured"]
    assert found["sampling"][0]["images_per_second"] > 0
    assert found["training"][0]["tokens_per_second"] > 0


def test_commands_that_a_family_does_not_support_are_refused(toy, capsys, monkeypatch):
    picture = next((toy / "runs" / "toy").rglob("*.png"))
    words = ("edit", "toy/u1", picture, "--in-paint", "25%,25%,75%,75%", "--home", toy / "runs")
    code, message = called(capsys, monkeypatch, *words)
    assert code == 2
    assert "u1 is a unigram model, which cannot keep some tokens" in message
    out = toy / "out.pth"
    code, message = called(capsys, monkeypatch, "export", "toy/u1", out, "--home", toy / "runs")
    assert code == 2
    assert "toy/u1 is a unigram model: there are no published weights of this" in message
    assert not out.exists()


@pytest.mark.slow
def test_report_and_a_second_process_find_the_family(toy):
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    done = command("report", toy / "toy.py", "--home", toy / "runs", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (toy / "runs" / "toy" / "report" / "index.html").read_text()
    assert "unigram" in page
    again = command("run", toy / "toy.py", "--home", toy / "runs", env=env)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_process_that_cannot_import_the_family_fails_with_advice(toy):
    done = command("sample", "toy/u1", "--home", toy / "runs", env={"PYTHONPATH": ""})
    assert done.returncode == 2
    assert "No module named 'test_family': a family is one of var" in done.stderr
    assert "put its folder on PYTHONPATH" in done.stderr


def test_a_module_in_the_folder_of_the_sweep_is_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside.py").write_text(
        "from test_family import FAMILY, UnigramModel as Other, SWEEP\n"
        "class Model(Other):\n    family: str = 'beside'\n"
    )
    (tmp_path / "mine.py").write_text(
        "from beside import Model, SWEEP\n"
        "trial = SWEEP.trials[0].model_copy(update={'model': Model(depth=1)})\n"
        "sweep = SWEEP.model_copy(update={'trials': (trial,)})\n"
    )
    sweep = find_sweep(str(tmp_path / "mine.py"))
    assert os.environ["PYTHONPATH"] == str(tmp_path)
    assert user_modules(["var", sweep.trials[0].model.family]) == (tmp_path / "beside.py",)
    before = fingerprint([tmp_path / "beside.py"])
    (tmp_path / "code").mkdir()
    copy_modules(tmp_path / "code", [tmp_path / "beside.py"])
    assert (tmp_path / "code" / "beside.py").exists()
    (tmp_path / "beside.py").write_text("# changed\n")
    assert fingerprint([tmp_path / "beside.py"]) != before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"family": "no_such_module", "depth": 1}, "No module named 'no_such_module'"),
        ({"family": "json", "depth": 1}, "module json has no FAMILY"),
        ({"depth": 1}, "`family` is missing"),
        ({"family": "test_family", "depth": 1, "width": 3}, "model.width = 3: no such field; al"),
        ({"family": "test_family", "depth": 0}, "model.depth = 0: Input should be greater than 0"),
    ],
)
def test_a_model_of_unknown_family_is_refused(tmp_path, model, message):
    record = json.loads(SWEEP.model_dump_json())
    record["trials"][0]["model"] = model
    code = "from var_scaling.experiment import Sweep\n"
    code += f"sweep = Sweep.model_validate_json({json.dumps(record)!r})\n"
    (tmp_path / "wrong.py").write_text(code)
    with pytest.raises(SweepError, match=message.replace("(", r"\(")):
        find_sweep(str(tmp_path / "wrong.py"))


def test_a_tokenizer_that_the_family_does_not_support_is_refused():
    many = unigram(1).tokenizer.model_copy(update={"codebook_size": 8192})
    with pytest.raises(ValueError, match="8192 codes are too many for a table"):
        unigram(1).model_copy(update={"tokenizer": many})


def test_a_family_is_looked_up_once():
    assert family_named("var") is family_named("var")
    assert family_named("var").name == "var"
