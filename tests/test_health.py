"""Obvious failures are reported on the terminal, in laws.json and in the report."""

import json
import math
import shutil
from pathlib import Path

import pytest
from conftest import bring
from typer.testing import CliRunner

from pipelines.cli import main as cli
from pipelines.results.health import PSNR_DB, failed_checks
from pipelines.stages.graph import sweep_stages
from pipelines.workspace.address import imported_sweep
from pipelines.workspace.damage import mark_done
from pipelines.workspace.store import Home
from pipelines.workspace.sweeps import find_sweep, known_sweeps
from var_scaling.config import TrainedTokenizer
from var_scaling.disk import DONE, read_json, write_json
from var_scaling.metrics import MetricsLog, read_metrics

SWEEP = find_sweep("smoke")
HEALTHY = {"codes_used_all": 0.9, "perplexity_per_scale": [1.0, 40.0, 50.0, 60.0], "psnr_db": 13.0}
UNIFORM = math.log(128)


@pytest.fixture
def home(smoke, tmp_path) -> Home:
    """A finished `smoke` with a healthy tokenizer."""
    shutil.copytree(smoke, tmp_path / "home", symlinks=True)
    at = Home(tmp_path / "home")
    change(at.tokenizer("tiny-smoke"), **HEALTHY)
    return at


def change(folder: Path, **values) -> None:
    """Change values of the last evaluation in `folder`, with consistent files."""
    lines = read_metrics(folder / "metrics.jsonl")
    [line for line in lines if line["kind"] == "validation"][-1].update(values)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    marker = read_json(folder / DONE)
    mark_done(folder, {k: v for k, v in marker.items() if k != "files"}, marker["files"])


def found(home: Home) -> list[str]:
    return list(failed_checks(sweep_stages(home, SWEEP)))


def test_a_healthy_sweep_has_no_warnings(home):
    assert found(home) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codes_used_all": 0.49}, "uses 49% of its 128 codes, fewer than 50%"),
        (
            {"perplexity_per_scale": [1.0, 3.9, 50.0, 2.0]},
            "below 4 at the scales 2 x 2 (3.9), 4 x 4 (2.0)",
        ),
        ({"psnr_db": 10.0}, "reconstructs with 10.0 dB PSNR; for its recipe 13.1 dB are recorded"),
    ],
)
def test_a_failed_tokenizer_is_reported(home, values, message):
    change(home.tokenizer("tiny-smoke"), **values)
    (failure,) = found(home)
    assert failure.startswith("tokenizer tiny-smoke ")
    assert message in failure


@pytest.mark.parametrize(
    "values",
    [
        {"codes_used_all": 0.5},
        {"perplexity_per_scale": [1.0, 4.0, 4.0, 4.0]},  # one token has a perplexity of 1
        {"psnr_db": 10.2},
    ],
)
def test_values_at_the_health_bounds_are_not_reported(home, values):
    change(home.tokenizer("tiny-smoke"), **values)
    assert found(home) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": UNIFORM, "loss_no_label": 9.0}, "not below the 4.852 of a uniform"),
        (
            {"loss": 1.5, "loss_no_label": 1.4999},
            "higher loss with the class (1.5000 nats per token)",
        ),
    ],
)
def test_a_failed_trial_is_reported(home, values, message):
    change(home.trial("smoke", "d2"), **values)
    (failure,) = found(home)
    assert failure.startswith("trial d2 ")
    assert message in failure


def test_a_trial_slightly_better_than_chance_is_not_reported(home):
    change(home.trial("smoke", "d2"), loss=UNIFORM - 1e-6, loss_no_label=UNIFORM - 1e-6)
    assert found(home) == []


def diverged(folder: Path) -> None:
    write_json(folder / DONE, {"status": "diverged", "reason": "loss = nan at step 6 of 120"})


def test_diverged_trials_are_reported(home):
    diverged(home.trial("smoke", "d1"))
    assert found(home) == [
        "trial d1 diverged (loss = nan at step 6 of 120): no law is fitted to it"
    ]


@pytest.mark.slow
def test_laws_are_fitted_and_every_failure_is_shown(home):
    diverged(home.trial("smoke", "d1"))
    change(home.trial("smoke", "d2"), loss=4.9, loss_no_label=4.8)
    change(home.tokenizer("tiny-smoke"), codes_used_all=0.2, psnr_db=5.0)
    words = ["fit", "smoke", "--json", "--home", str(home.root)]
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    laws = json.loads(done.stdout)
    assert laws["sizes"] == 3
    assert len(laws["failures"]) == 5
    page = (home.root / "smoke" / "report" / "index.html").read_text()
    for failure in laws["failures"]:
        assert failure in done.stderr
        assert f'<p class="note">{failure}</p>' in page


def test_an_imported_model_is_checked_too(files, tmp_path):
    bring(tmp_path, *files)
    home = Home(tmp_path)
    log = MetricsLog(home.imported("it") / "metrics.jsonl")
    log("validation", 0, {"loss": 2.0, "loss_no_label": 1.9})
    (failure,) = failed_checks(sweep_stages(home, imported_sweep(home)))
    assert failure.startswith("imported it has a higher loss with the class")


def test_recorded_values_belong_to_tokenizers_of_the_sweeps():
    shipped = {
        t.fingerprint()
        for sweep in known_sweeps()
        for t in sweep.tokenizers
        if isinstance(t, TrainedTokenizer)
    }
    assert set(PSNR_DB) <= shipped
    assert all(5 < value < 60 for value in PSNR_DB.values())
