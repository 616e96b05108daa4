"""The whole pipeline on `smoke`: first run, second run, kills, a moved home, wrong commands."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import COMMAND, tokenizer, trial, var_scaling

from pipelines.execution.local import _work_and_cpus
from pipelines.execution.slurm import submit as launch
from pipelines.execution.status import overview
from pipelines.results.table import rows_of
from pipelines.stages.context import RunContext, StopFile, local_process
from pipelines.stages.graph import sweep_stages
from pipelines.workspace.address import read_generator
from pipelines.workspace.provenance import attempts, code_version
from pipelines.workspace.settings import Local, Settings, SettingsError, load_settings
from pipelines.workspace.store import (
    ConfigMismatchError,
    FolderInUseError,
    Home,
    file_lock,
    in_use,
    init_run_dir,
)
from pipelines.workspace.sweeps import find_sweep
from var_scaling.disk import atomic_write, write_json
from var_scaling.metrics import MetricsLog, read_metrics

TIMES = ["seconds", "images_per_second", "attempts", "lost_seconds", "lost_flops", "commit"]
TRIALS = ("d1", "d2", "d3", "d4")


def numbers(home: Path) -> dict:
    """All results without times."""
    frame = pd.read_parquet(home / "smoke" / "results.parquet").drop(columns=TIMES)
    lines = [
        {k: v for k, v in line.items() if k not in {*TIMES, "time_ms", "flops_per_second"}}
        for folder in [home / "tokenizers/tiny-smoke", *(home / "smoke" / t for t in TRIALS)]
        for line in read_metrics(folder / "metrics.jsonl")
    ]
    laws = json.loads((home / "smoke" / "laws.json").read_text())
    files = [
        *sorted(home.rglob("weights.safetensors")),
        *sorted((home / "tokens").rglob("tokens.npy")),
    ]
    return {
        "rows": frame.to_json(),
        "lines": lines,
        "laws": laws["laws"],
        "files": {str(path.relative_to(home)): path.read_bytes() for path in files},
    }


def test_the_results_of_a_run_have_the_planned_costs_and_falling_losses(smoke):
    frame = pd.read_parquet(smoke / "smoke" / "results.parquet")
    ends = frame[frame.step == frame.steps].set_index("trial")
    assert ends.index.tolist() == list(TRIALS)
    assert (ends.status == "done").all()
    assert ends.val_loss.is_monotonic_decreasing
    assert ends.images_seen.tolist() == [120 * 32] * 4
    assert ends.loc["d2", "params_blocks"] == 1152 * 2**3
    assert (ends.train_flops_dense_mask > ends.train_flops).all()
    assert (smoke / "tokenizers" / "tiny-smoke" / "reconstructions.png").stat().st_size > 1000
    attempts = json.loads((smoke / "smoke" / "d1" / "provenance.json").read_text())["attempts"]
    assert attempts[0]["commit"] == code_version()
    assert not list(smoke.rglob("step-*.pt"))  # a finished run has no checkpoint


def test_a_finished_sweep_run_again_recomputes_nothing(smoke):
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()}
    again = var_scaling("run", "smoke", home=smoke)
    assert again.returncode == 0, again.stderr
    assert "L_mean(N)" in again.stdout
    after = {path: path.stat().st_mtime_ns for path in smoke.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"results.parquet", "lock"}


def test_status_plan_and_fit_print_json(smoke):
    status = json.loads(var_scaling("status", "smoke", "--json", home=smoke).stdout)
    assert {stage["state"] for stage in status["stages"]} == {"done"}
    plan = json.loads(var_scaling("plan", "smoke", "--json", home=smoke).stdout)
    assert [row["trial"] for row in plan["trials"]] == list(TRIALS)
    laws = json.loads(var_scaling("fit", "smoke", "--json", home=smoke).stdout)
    assert laws["sizes"] == 4
    assert {law["symbol"] for law in laws["laws"]} == {"L_mean", "L_last", "Err_mean", "Err_last"}


def starts(home: Path) -> subprocess.Popen:
    """Start `run smoke` in its own process group; it saves after every step."""
    settings = home.parent / "often.toml"
    settings.write_text("[local]\nsave_every_seconds = 0.05\n")
    return subprocess.Popen(
        [*COMMAND, "run", "smoke", "--home", str(home)],
        stdout=open(home.parent / "said", "w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "VAR_SCALING_SETTINGS": str(settings)},
    )


def waits_for(folder: Path, file: str, run: subprocess.Popen) -> None:
    """Wait until the stage in `folder` writes `file`; it must not have ended before."""
    deadline = time.monotonic() + 120
    while not list(folder.glob(file)):
        if run.poll() is not None:
            message = Path(run.args[-1]).parent / "said"
            pytest.fail(f"the run ended before {folder.name} began: {message.read_text()[-2000:]}")
        assert time.monotonic() < deadline, f"{folder.name} never began"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_killed_at_any_stage_resumes_to_the_same_result(smoke, tmp_path):
    """SIGKILL of driver, process group and worker during the tokenizer, the cache and a trial."""
    home = tmp_path / "torn"
    dice = random.Random(os.urandom(8))
    places = [
        (home / "tokenizers/tiny-smoke", "checkpoint/*.pt", "driver"),
        (home / "tokens/tiny-smoke/dead-leaves-smoke-train", "tokens.npy", "group"),
        (home / "smoke/d4", "checkpoint/*.pt", "driver"),
        (home / "smoke/d3", "checkpoint/*.pt", "worker"),
    ]
    for folder, file, whom in places:
        run = starts(home)
        waits_for(folder, file, run)
        time.sleep(dice.uniform(0, 0.4))
        if whom == "worker":
            worker = int((folder / "lock").read_text().split()[1])
            os.kill(worker, signal.SIGKILL)
            assert run.wait(180) == 0  # the driver starts the stage again
            continue
        (os.killpg if whom == "group" else os.kill)(run.pid, signal.SIGKILL)
        run.wait()
    assert var_scaling("run", "smoke", home=home).returncode == 0
    torn, undisturbed = numbers(home), numbers(smoke)
    assert torn["files"].keys() == undisturbed["files"].keys()
    for part in ("files", "lines", "rows", "laws"):
        assert torn[part] == undisturbed[part], part


@pytest.mark.thorough
def test_ctrl_c_stops_cleanly_and_prints_how_to_resume(tmp_path):
    home = tmp_path / "home"
    run = subprocess.Popen(
        [*COMMAND, "run", "smoke", "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    waits_for(home / "tokenizers/tiny-smoke", "metrics.jsonl", run)
    os.kill(run.pid, signal.SIGINT)
    message, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "To resume: var-scaling run smoke" in message
    assert "Traceback" not in message
    assert list((home / "tokenizers/tiny-smoke/checkpoint").glob("step-*.pt"))
    stages = overview(sweep_stages(Home(home), find_sweep("smoke")))
    assert {stage.state for stage in stages} <= {"stopped", "waiting", "done"}


def trained_here(smoke: Path, home: Path, name: str, **local) -> str:
    """A trial of `smoke` over its tokens, by several processes of this machine."""
    for part in ("tokenizers", "tokens"):
        shutil.copytree(smoke / part, home / part)
    settings = Settings(local=Local(**local))
    stop = home / "stop"
    context = RunContext(Home(home), settings, StopFile(stop), local_process(settings.local))
    stages = sweep_stages(Home(home), find_sweep("smoke"))
    (one,) = (stage for stage in stages if stage.title == f"trial {name}")
    return launch.run_local_processes(one, stop, context)


@pytest.mark.slow
def test_two_local_processes_equal_one(smoke, tmp_path):
    assert trained_here(smoke, tmp_path, "d2", processes=2, micro_batch_size=8) == "done"
    both = [read_metrics(root / "smoke" / "d2" / "metrics.jsonl") for root in (tmp_path, smoke)]
    for mine, theirs in zip(*both, strict=True):
        assert mine["images_seen"] == theirs["images_seen"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert attempts(tmp_path / "smoke" / "d2")[0]["processes"] == 2


def test_only_trainings_use_several_local_processes(tmp_path):
    settings = Settings(local=Local(processes=2))
    context = RunContext(
        Home(tmp_path), settings, StopFile(tmp_path / "stop"), local_process(settings.local)
    )
    several = {
        stage.kind.name
        for stage in sweep_stages(Home(tmp_path), find_sweep("families"))
        if _work_and_cpus(stage, context, tmp_path / "stop")[0].func is launch.run_local_processes
    }
    assert several == {"tokenizer", "trial"}


@pytest.mark.slow
def test_an_error_in_one_of_several_local_processes_is_reported(smoke, tmp_path):
    with pytest.raises(RuntimeError, match="batch_size = 32: not divisible by 3 processes"):
        trained_here(smoke, tmp_path, "d1", processes=3)


# Folders --------------------------------------------------------------------------------------


def test_a_folder_of_another_record_is_refused_with_the_difference(tmp_path):
    init_run_dir(tmp_path / "d2", "trial.json", trial(batch_size=4))
    init_run_dir(tmp_path / "d2", "trial.json", trial())  # no steps were lost
    (tmp_path / "d2" / "metrics.jsonl").write_text("{}\n")
    init_run_dir(tmp_path / "d2", "trial.json", trial())
    with pytest.raises(
        ConfigMismatchError, match=r"batch_size: recorded 8, expected 16\n.*another name"
    ):
        init_run_dir(tmp_path / "d2", "trial.json", trial(batch_size=16))


def test_a_config_mismatch_is_refused_before_a_stage_runs(smoke, tmp_path):
    path = tmp_path / "other.py"
    path.write_text(
        "from sweeps.smoke import sweep as s\n"
        "t = s.trials[0].model_copy(update={'seed': 99})\n"
        "sweep = s.model_copy(update={'trials': (t, *s.trials[1:])})\n"
    )
    for verb in ("run", "fit", "status"):
        refused = var_scaling(verb, str(path), home=smoke)
        assert refused.returncode == 3
        assert "seed: recorded 2, expected 99" in refused.stderr


def test_one_folder_has_one_writer_at_a_time(tmp_path):
    with file_lock(tmp_path):
        assert in_use(tmp_path)
        with (
            pytest.raises(FolderInUseError, match=f"in use by pid {os.getpid()} on"),
            file_lock(tmp_path),
        ):
            raise AssertionError("two writers")
    assert not in_use(tmp_path)


def test_files_are_written_atomically(tmp_path):
    def half_way():
        with atomic_write(tmp_path / "x.json") as beside:
            beside.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        half_way()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "nosuch"], 2, "no sweep is called 'nosuch'"),
        (["run", "smoke", "--on", "mars"], 2, "--on mars"),
        (["fit", "smoke"], 2, "no trial has been evaluated yet"),
        (["ui"], 2, "nothing has been logged to MLflow yet"),
    ],
)
def test_a_wrong_command_gets_an_error_of_one_line(tmp_path, words, code, message):
    done = var_scaling(*words, home=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
def test_a_failed_stage_is_reported_with_its_reason(tmp_path):
    done = var_scaling("run", "cifar10", home=tmp_path)
    assert done.returncode == 1
    assert (
        "failed tokenizer cifar10-ch16: DataError: data 'cifar10' has no path: put [data]"
        in done.stderr
    )
    assert "then resume with: var-scaling run cifar10" in done.stderr
    status = json.loads(var_scaling("status", "cifar10", "--json", home=tmp_path).stdout)
    assert status["stages"][0]["state"] == "failed"
    assert "no path" in status["stages"][0]["note"]


def test_a_diverged_trial_has_a_row_marked_as_diverged(tmp_path):
    home, sweep = Home(tmp_path), find_sweep("smoke")
    t = sweep.trials[0]
    folder = home.trial("smoke", t.name)
    log = MetricsLog(folder / "metrics.jsonl")
    log("train", 5, {"loss": 9.0, "seconds": 1.0, "images_per_second": 5.0})
    write_json(
        folder / "done.json", {"status": "diverged", "reason": "loss = nan at step 6 of 120"}
    )
    write_json(home.tokens("tiny-smoke", t.data.name, "train") / "manifest.json", {"images": 4000})
    (row,) = rows_of(home, sweep)
    assert (row["status"], row["step"], row["val_loss"], row["train_loss"]) == (
        "diverged",
        5,
        None,
        9.0,
    )
    assert "loss = nan at step 6" in overview(sweep_stages(home, sweep))[3].note
    (folder / "metrics.jsonl").unlink()  # diverged before its first line
    (row,) = rows_of(home, sweep)
    assert (row["status"], row["step"]) == ("diverged", 0)


def test_reserved_names_of_trials_and_sweeps_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be named 'stop'"):
        Home(tmp_path).trial("smoke", "stop")
    with pytest.raises(ValueError, match="cannot be named 'tokens'"):
        Home(tmp_path).sweep("tokens")


# Settings -------------------------------------------------------------------------------------


def test_data_is_found_by_settings_then_by_environment(tmp_path, monkeypatch):
    (tmp_path / "pets").mkdir()
    file = tmp_path / "var-scaling.toml"
    file.write_text('[data]\ncifar10 = "photos"\n')
    assert load_settings(file).data_root("cifar10") == tmp_path / "photos"
    monkeypatch.setenv("VAR_SCALING_DATA", str(tmp_path))
    assert load_settings(file).data_root("pets") == tmp_path / "pets"
    assert load_settings(file).data_root("birds") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[locl]\n", "locl: no such field; allowed: clusters, data, local, mlflow, tracking"),
        ("[local]\ncpus = 0\n", "local.cpus = 0: Input should be greater than or equal to 1"),
        ("cpus = ", "not valid TOML"),
    ],
)
def test_errors_in_settings_name_file_and_key(tmp_path, content, message):
    file = tmp_path / "var-scaling.toml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_settings(file)


def test_different_tokenizer_records_have_different_fingerprints():
    assert tokenizer().fingerprint() != tokenizer(seed=1).fingerprint()


def test_new_fields_at_their_defaults_are_not_a_config_mismatch(tmp_path):
    from pipelines.workspace.store import init_run_dir

    old = json.loads(trial().model_dump_json())
    del old["precision"], old["tokenizer"]["weight_average"]
    write_json(tmp_path / "trial.json", old)
    write_json(tmp_path / "done.json", {"status": "done"})
    init_run_dir(tmp_path, "trial.json", trial())
    with pytest.raises(ConfigMismatchError, match="precision"):
        init_run_dir(tmp_path, "trial.json", trial(precision="bf16"))
    assert read_generator(tmp_path) == trial()
