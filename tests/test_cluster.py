"""Cluster options of the command line without a cluster, and tokens encoded in parts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import COMMAND, images, submitting, tokenizer, trial

from pipelines.execution.backend import BackendUnavailable
from pipelines.execution.status import overview
from pipelines.stages.context import RunContext, StopFile
from pipelines.stages.graph import sweep_stages
from pipelines.stages.stages import run_tokenizer, run_tokens
from pipelines.workspace import job_log as jobs
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from var_scaling.experiment import Sweep


def test_status_of_a_hundred_trials_is_quick_and_does_not_import_torch(tmp_path):
    """Counted, not timed: one query of Slurm, and no heavy package is imported."""
    (tmp_path / "many.py").write_text(
        "from sweeps.smoke import sweep as smoke\n"
        "trials = tuple(smoke.trials[0].model_copy(update={'name': f't{k}'}) for k in range(100))\n"
        "sweep = smoke.model_copy(update={'name': 'many', 'trials': trials})\n"
    )
    home = tmp_path / "runs"
    for k in range(100):
        submitting(home / "many" / f"t{k}", index=k)
        jobs.note(home / "many" / f"t{k}", "submitted", submission="s", job=f"7_{k}")
    requested = tmp_path / "asked"
    (tmp_path / "squeue").write_text(
        f"#!/bin/sh\necho once >> {requested}\n"
        'for k in $(seq 0 98); do echo "7_$k|var-scaling-s|RUNNING|n$k|None"; done\n'
    )
    (tmp_path / "squeue").chmod(0o755)
    code = (
        "import sys\nfrom pipelines.cli import main as cli\n"
        f"sys.argv = ['v', 'status', {str(tmp_path / 'many.py')!r}, '--home', {str(home)!r},"
        " '--json']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'submitit', 'pandas') if m in sys.modules])\n"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    message, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    stages = {one["name"]: one for one in json.loads(message)["stages"] if one["kind"] == "trial"}
    assert stages["t5"]["state"] == "running"
    assert stages["t5"]["node"] == "n5"
    assert stages["t99"]["state"] == "stopped"  # Slurm no longer knows it
    assert requested.read_text() == "once\n"


def test_a_wrong_command_for_a_cluster_is_refused_with_the_reason(tmp_path):
    (tmp_path / "var-scaling.toml").write_text('[clusters.a]\npartition = "p"\n')
    for words, message in (
        (
            ["run", "smoke", "--on", "b"],
            "no [clusters.b] in var-scaling.toml; allowed are local, a",
        ),
        (["run", "smoke", "--only", "d9"], "smoke has no trial d9; its trials are d1, d2, d3, d4"),
        (["run", "smoke", "--detach"], "--detach needs a cluster"),
        (["logs", "smoke/d1"], "no cluster job has run in this folder"),
    ):
        done = subprocess.run(
            [*COMMAND, *words, "--home", str(tmp_path / "runs")],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert message in done.stderr.replace("\n", " ")


def test_missing_slurm_commands_raise_an_error(monkeypatch):
    from pipelines.execution.slurm import slurm

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackendUnavailable, match="squeue is not installed on this machine"):
        slurm.queue()
    assert slurm.queue_or_none() is None


def test_tokens_encoded_in_parts_equal_tokens_encoded_in_one_pass(tmp_path, monkeypatch):
    from var_scaling.tokenizer import cache_files, encode

    monkeypatch.setattr(encode, "SHARD", 64)
    monkeypatch.setattr(cache_files, "SHARD", 64)
    t, data = tokenizer(), images()
    homes = [Home(tmp_path / name) for name in ("whole", "parts")]
    context = [RunContext(home, Settings(), StopFile(tmp_path / "stop")) for home in homes]
    run_tokenizer(context[0], t)
    homes[1].tokenizer(t.name).parent.mkdir(parents=True)
    homes[1].tokenizer(t.name).symlink_to(homes[0].tokenizer(t.name))
    run_tokens(context[0], t, data, "train")
    whole = [home.tokens(t.name, data.name, "train") for home in homes]
    for number in (2, 0, 3):
        run_tokens(context[1], t, data, "train", (number, 4))
    view = next(
        v for v in overview(sweep_stages(homes[1], one_trial(t))) if v.name.endswith("leaves-train")
    )
    assert (view.state, view.note) == ("waiting", "3 of 4 parts")
    run_tokens(context[1], t, data, "train", (1, 4))
    for name in ("tokens.npy", "labels.npy", "done.json"):
        assert (whole[0] / name).read_bytes() == (whole[1] / name).read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in whole]
    assert manifests[0] == manifests[1]
    assert np.load(whole[1] / "tokens.npy").shape == (600, 21)


def one_trial(t):
    return Sweep(name="s", question="?", trials=(trial(tokenizer=t),))
