"""Several processes on a real Slurm, with and without accounting, and without MLflow."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from conftest import numbers
from slurm_site import SETTINGS, Site, copy_of, unharmed

from pipelines.tracking.mlflow import quiet_environment
from pipelines.workspace.provenance import attempts

pytestmark = pytest.mark.slurm

FOUR = SETTINGS + "trial_gpus = {d1 = 4}\n"


@pytest.fixture(scope="session")
def two_by_two(undisturbed, slurm, tmp_path_factory) -> Site:
    """d1 by four processes on two nodes."""
    site = copy_of(undisturbed, slurm, tmp_path_factory.mktemp("four"), settings=FOUR)
    done = site.run("--only", "d1")
    assert done.returncode == 0, done.stderr + done.stdout
    return site


def test_four_processes_on_two_nodes_equal_one_process(undisturbed, two_by_two):
    life = attempts(two_by_two.trial("d1"))[0]
    assert (life["processes"], life["gpus"]) == (4, "0,1")
    mine = numbers(two_by_two.trial("d1") / "metrics.jsonl")
    theirs = numbers(undisturbed.trial("d1") / "metrics.jsonl")
    assert [line["images_seen"] for line in mine] == [line["images_seen"] for line in theirs]
    # The same images in the same order, but sums in another order. The rounding differences grow
    # with the steps, depending on the CPU: 5e-7 up to step 60, at most 7e-3.
    for one, other in zip(mine, theirs, strict=True):
        rounding = 1e-5 if one["step"] <= 60 else 3e-2
        assert one["loss"] == pytest.approx(other["loss"], rel=rounding)


@pytest.mark.thorough
def test_a_job_with_a_killed_process_is_submitted_again(undisturbed, two_by_two, slurm, tmp_path):
    """The others only lose a connection, which is not an error: the job is resubmitted."""
    site = copy_of(undisturbed, slurm, tmp_path, settings=FOUR)
    driver, first = site.begin("d1")
    os.kill(process_of(site, rank=2), signal.SIGKILL)
    assert site.ends(driver) == 0
    assert site.job("d1") != first
    unharmed(site, two_by_two, "d1")


@pytest.mark.thorough
def test_the_error_of_the_failed_process_is_reported(undisturbed, slurm, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "def burst(number, frame):\n    raise ValueError('rank 3 has burst')\n"
        "if os.environ.get('SLURM_PROCID') == '3':\n"
        "    signal.signal(signal.SIGALRM, burst)\n    signal.alarm(15)\n"
    )
    settings = FOUR.replace('setup = ["', f'setup = ["export PYTHONPATH={tmp_path}", "')
    site = copy_of(undisturbed, slurm, tmp_path, settings=settings)
    failed = site.run("--only", "d1")
    assert failed.returncode == 1
    assert "ValueError: rank 3 has burst (rank 3)" in failed.stderr


def process_of(site: Site, rank: int) -> int:
    """The process of that rank in a job of this site."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        ours = str(site.home).encode() in command and b"submitit" in command
        if ours and b"SLURM_PROCID=%d" % rank in words:
            return int(folder.name)
    raise AssertionError(f"rank {rank} runs nowhere")


@pytest.mark.parametrize("event", [pytest.param("node down", marks=pytest.mark.thorough), "killed"])
def test_a_requeued_job_is_not_submitted_again_with_sacct(
    undisturbed, slurm_with_accounts, tmp_path, event
):
    """sacct reports a requeued job as NODE_FAIL for a while; it must not be submitted again."""
    site = copy_of(undisturbed, slurm_with_accounts, tmp_path)
    driver, job = site.begin("d2")
    node = site.state(job)["node"]
    if event == "killed":
        os.kill(attempts(site.trial("d2"))[-1]["pid"], signal.SIGKILL)
        assert site.ends(driver) == 0
        assert site.job("d2") != job
    else:
        site.box.set_node(node, "down")
        assert site.ends(driver) == 0
        site.box.set_node(node, "resume")
        assert site.job("d2") == job
    unharmed(site, undisturbed, "d2")


def test_without_sacct_the_disk_decides_about_a_job_that_slurm_forgot(undisturbed, slurm, tmp_path):
    site = copy_of(undisturbed, slurm, tmp_path)
    assert site.run("--only", "d1", "--detach").returncode == 0
    job = site.job("d1")
    site.box.wait(lambda: (site.trial("d1") / "done.json").exists(), "d1 done", 60)
    note = (site.trial("d1") / "jobs.jsonl").read_text()
    (site.trial("d1") / "jobs.jsonl").write_text(note.replace(f'"{job}"', '"987654"'))
    before = site.submissions()
    assert site.run("--only", "d1").returncode == 0
    assert site.submissions() == before
    unharmed(site, undisturbed, "d1")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_run_is_mirrored_after_an_outage_of_mlflow(undisturbed, slurm, tmp_path):
    from mlflow.tracking import MlflowClient

    uri = f"http://127.0.0.1:{free_port()}"
    site = copy_of(undisturbed, slurm, tmp_path, settings=f'[mlflow]\nuri = "{uri}"\n{SETTINGS}')
    driver = site.start("--only", "d1")
    assert site.ends(driver) == 0  # a dead server only delays the mirror
    assert "MLflow mirror" in (site.root / "said").read_text()
    dead = site.call("mirror")
    assert dead.returncode == 2
    assert "nothing is lost" in dead.stderr
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
         "--port", uri.rpartition(":")[2], "--workers", "1",
         "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
         "--artifacts-destination", str(tmp_path / "artifacts")],
        env={**os.environ, **quiet_environment()}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        site.box.wait(lambda: answers(f"{uri}/health"), "MLflow answers", 90)
        mirrored = site.call("mirror")
        assert mirrored.returncode == 0, mirrored.stderr
        client = MlflowClient(uri)
        place = client.get_experiment_by_name("grid").experiment_id
        run = next(r for r in client.search_runs([place]) if r.info.run_name.startswith("d1"))
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "val/loss")
        lines = numbers(undisturbed.trial("d1") / "metrics.jsonl")
        assert [point.value for point in history] == [
            line["loss"] for line in lines if line["kind"] == "validation"
        ]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):
            return True
    except OSError:
        return False
