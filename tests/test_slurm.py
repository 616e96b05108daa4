"""A sweep on a real Slurm (one host, virtual nodes, fake GPUs) with faults.

After every fault the numbers equal those of an undisturbed run bitwise.
"""

import json
import os
import signal
import subprocess
import time

import pandas as pd
import pytest
from conftest import COMMAND
from slurm_site import row_of, unharmed

from pipelines.workspace.provenance import attempts

pytestmark = pytest.mark.slurm

# Undisturbed ----------------------------------------------------------------------------------


def test_a_sweep_runs_on_two_nodes_in_arrays_with_gpus(undisturbed):
    frame = pd.read_parquet(undisturbed.home / "grid" / "results.parquet")
    ends = frame[frame.step == frame.steps].set_index("trial")
    assert (ends.status == "done").all()
    assert (ends.attempts == 1).all()
    assert (ends.lost_flops == 0).all()
    lives = {name: attempts(undisturbed.trial(name))[0] for name in ("d1", "d2", "d3")}
    array = {life["job"].partition("_")[0] for life in lives.values()}
    assert len(array) == 1  # equal resources, one array
    assert {life["job"].partition("_")[2] for life in lives.values()} == {"0", "1", "2"}
    assert {life["node"] for life in lives.values()} == {"n1", "n2"}
    assert {life["gpus"] for life in lives.values()} <= {"0", "1"}
    parts = undisturbed.home / "tokens" / "tiny" / "leaves-train" / "parts"
    assert sorted(path.name for path in parts.iterdir()) == ["000-of-002", "001-of-002"]
    assert (undisturbed.home / "grid" / "report" / "index.html").exists()
    code = undisturbed.home / "code" / lives["d1"]["commit"].replace("+", "-")
    assert (code / "var_scaling" / "training" / "trial.py").exists()


def test_a_finished_sweep_run_again_submits_nothing(undisturbed):
    before = undisturbed.submissions()
    again = undisturbed.run()
    assert again.returncode == 0, again.stderr
    assert undisturbed.submissions() == before


def test_status_and_logs_show_a_finished_sweep(undisturbed):
    status = json.loads(undisturbed.call("status", "--json").stdout)
    d3 = next(stage for stage in status["stages"] if stage["name"] == "d3")
    assert d3["state"] == "done"
    assert d3["attempt"] == 1
    assert d3["job"] == undisturbed.job("d3")
    words = [*COMMAND, "logs", "grid/d3", "--lines", "5", "--home", str(undisturbed.home)]
    message = subprocess.run(words, capture_output=True, text=True, env=undisturbed.environment)
    assert "validation step 4,500" in message.stdout
    dry = undisturbed.run("--dry-run")
    assert "nothing: everything is done" in dry.stdout


# What clusters do -----------------------------------------------------------------------------


def test_a_job_preempted_by_a_higher_partition_is_requeued_by_slurm(site, undisturbed):
    driver, job = site.begin("d2")
    high = ["-p", "high", "-N2", "-n2", "--exclusive", "--output=/dev/null"]
    site.box.run("sbatch", *high, "--wrap", "srun sleep 2")
    site.box.wait(lambda: site.state(job)["state"] == "PENDING", "d2 made way")
    assert site.ends(driver) == 0
    assert site.state(job)["restarts"] == "1"
    assert site.job("d2") == job  # requeued by Slurm, not submitted again
    unharmed(site, undisturbed, "d2")
    assert row_of(site, "d2").attempts == 2


def test_a_job_near_its_time_limit_saves_and_is_requeued(site, undisturbed):
    driver, job = site.begin("d3")
    # Less than signal_seconds, so the signal comes when Slurm next looks.
    site.box.run("scontrol", "update", f"jobid={job}", "endtime=now+80seconds")
    site.box.wait(lambda: site.state(job)["restarts"] == "1", "d3 queued up again", 60)
    site.box.run("scontrol", "update", f"jobid={job}", "timelimit=60")
    assert site.ends(driver) == 0
    assert site.job("d3") == job
    unharmed(site, undisturbed, "d3")
    assert row_of(site, "d3").lost_flops == 0  # it received the signal and saved


@pytest.mark.thorough
def test_a_job_that_times_out_without_a_warning_is_submitted_again(site, undisturbed):
    driver, job = site.begin("d3")
    site.box.run("scontrol", "update", f"jobid={job}", "endtime=now+2seconds")
    assert site.ends(driver) == 0
    unharmed(site, undisturbed, "d3")
    assert row_of(site, "d3").attempts >= 2


def test_a_job_on_a_node_that_goes_down_ends_in_the_same_numbers(site, undisturbed):
    driver, job = site.begin("d2")
    node = site.state(job)["node"]
    site.box.set_node(node, "down")
    try:
        assert site.ends(driver) == 0
    finally:
        site.box.set_node(node, "resume")
    assert site.job("d2") == job
    unharmed(site, undisturbed, "d2")


def test_a_job_of_a_killed_slurmd_does_not_disturb_its_restarted_copy(site, undisturbed):
    """Slurm considers the node dead and starts the job elsewhere; the first one still writes."""
    driver, job = site.begin("d3")
    node = site.state(job)["node"]
    site.box.kill_node(node)
    try:
        assert site.ends(driver) == 0
    finally:
        site.box.start_node(node)
    unharmed(site, undisturbed, "d3")


def test_a_killed_trial_resumes_to_the_same_numbers(site, undisturbed):
    driver = site.start("--only", "d2")
    at = site.saved("d2")
    first = site.job("d2")
    os.kill(attempts(site.trial("d2"))[-1]["pid"], signal.SIGKILL)
    assert site.ends(driver) == 0
    assert site.job("d2") != first
    unharmed(site, undisturbed, "d2")
    row = row_of(site, "d2")
    assert row.attempts == 2
    assert (
        row.train_flops == row_of(undisturbed, "d2").train_flops
    )  # lost steps are counted separately
    assert at > 0


def test_a_job_cancelled_with_scancel_waits_for_retry(site, undisturbed):
    driver = site.start("--only", "d2")
    site.saved("d2")
    site.box.run("scancel", site.job("d2"))
    assert site.ends(driver) == 1
    assert "was cancelled" in (site.root / "said").read_text()
    again = site.run("--only", "d2")
    assert again.returncode == 1  # `run` alone does not submit it again; `retry` does
    assert "var-scaling retry" in again.stderr
    retried = site.call("retry", "--only", "d2", "--dirty")
    assert retried.returncode == 0, retried.stdout + retried.stderr
    unharmed(site, undisturbed, "d2")


def test_a_temporary_failure_of_slurmctld_does_not_disturb_a_run(site, undisturbed):
    driver, before = site.begin("d2")
    site.box.stop_controller()
    try:
        time.sleep(4)  # several polls
        status = json.loads(site.call("status", "--json").stdout)
        states = {stage["name"]: stage["state"] for stage in status["stages"]}
        assert states["d2"] in ("running", "done")  # known from its heartbeats
    finally:
        site.box.start_controller()
    assert site.ends(driver) == 0
    assert site.job("d2") == before
    unharmed(site, undisturbed, "d2")


@pytest.mark.thorough
def test_jobs_are_submitted_after_a_temporary_failure_of_slurmctld(site, undisturbed):
    site.box.stop_controller()
    try:
        driver = site.start("--only", "d1")
        note = site.home / "grid" / "driver.note"
        site.box.wait(lambda: note.exists() and note.read_text(), "the driver says so", 60)
    finally:
        site.box.start_controller()
    assert site.ends(driver) == 0
    unharmed(site, undisturbed, "d1")


def test_a_truncated_last_checkpoint_does_not_change_the_numbers(site, undisturbed):
    driver = site.start("--only", "d2")
    site.saved("d2", after=site.saved("d2"))
    os.kill(attempts(site.trial("d2"))[-1]["pid"], signal.SIGKILL)
    last = max(site.trial("d2").glob("checkpoint/step-*.pt"))
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    assert site.ends(driver) == 0
    unharmed(site, undisturbed, "d2")


def test_an_error_of_a_trial_is_reported_and_not_submitted_again(site):
    """Its tokens are damaged: the job fails at once, and no driver submits it again."""
    tokens = site.home / "tokens" / "tiny" / "leaves-train" / "tokens.npy"
    content = bytearray(tokens.read_bytes())
    content[-1] ^= 1
    tokens.write_bytes(content)
    failed = site.run("--only", "d1")
    assert failed.returncode == 1
    assert "tokens.npy is damaged in shard 2" in failed.stderr
    before = site.submissions()
    assert site.run("--only", "d1").returncode == 1
    assert site.submissions() == before
    stages = json.loads(site.call("status", "--json").stdout)["stages"]
    states = {stage["name"]: (stage["state"], stage["note"]) for stage in stages}
    assert states["d1"][0] == "failed"
    state, why = states["tiny/leaves-train"]
    assert state == "damaged"
    assert f"{tokens} is damaged: its SHA-256 is " in why
