"""A sweep on a real Slurm (one host, virtual nodes, fake GPUs): whatever happens, nothing is lost.

Every fault ends in the numbers of an undisturbed run, bit for bit.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pandas as pd
import pytest
from conftest import COMMAND, numbers

from pipelines import jobs
from pipelines.provenance import attempts
from pipelines.store import held
from pipelines.tracking import quiet_environment

pytestmark = pytest.mark.slurm

SWEEP = str(Path(__file__).parent / "slurm_grid.py")
SETTINGS = """
[clusters.box]
partition = "main"
nodes = 2
gpus_per_node = 2
cpus_per_gpu = 1
memory_gb_per_gpu = 1
wall_hours = 1
signal_seconds = 90
save_every_seconds = 1
poll_seconds = 1
encoding_jobs = 2
device = "cpu"
setup = ["export OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo"]
"""


class Site:
    """A home and a cluster, as a user at a login node has them."""

    def __init__(self, box, root: Path, settings: str = SETTINGS):
        self.box, self.root, self.home = box, root, root / "runs"
        (root / "var-scaling.toml").write_text(settings)
        self.environment = {
            **box.environment,
            "VAR_SCALING_SETTINGS": str(root / "var-scaling.toml"),
            "OMP_NUM_THREADS": "1",
        }

    def type(self, *words: str) -> list[str]:
        return [*COMMAND, words[0], SWEEP, *words[1:], "--home", str(self.home)]

    def start(self, *words: str) -> subprocess.Popen:
        """`run` on the box, in the background."""
        return subprocess.Popen(
            self.type("run", "--on", "box", "--dirty", *words),
            env=self.environment, cwd=self.root, start_new_session=True,
            stdout=open(self.root / "said", "a"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def call(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.type(*words), env=self.environment, cwd=self.root, capture_output=True,
            text=True, timeout=300,
        )  # fmt: skip

    def run(self, *words: str) -> subprocess.CompletedProcess:
        return self.call("run", "--on", "box", "--dirty", *words)

    def ends(self, driver: subprocess.Popen, seconds: float = 240) -> int:
        try:
            return driver.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGKILL)
            said = (self.root / "said").read_text()[-3000:]
            pytest.fail(f"the driver did not end:\n{said}\n{self.box.jobs()}")

    def trial(self, name: str) -> Path:
        return self.home / "grid" / name

    def saved(self, name: str, after: int = 0) -> int:
        """The last step that was saved, later than step `after`; waits for it."""

        def last() -> int | None:
            steps = [int(p.stem[5:]) for p in self.trial(name).glob("checkpoint/step-*.pt")]
            return max((step for step in steps if step > after), default=None)

        return self.box.wait(last, f"{name} saved after step {after}", 90)

    def job(self, name: str) -> str:
        record = jobs.latest(self.trial(name))
        assert record is not None
        assert record.job is not None
        return record.job

    def submissions(self) -> int:
        """How many jobs of ours Slurm has ever been given."""
        return sum(job["name"].startswith("var-scaling") for job in self.box.jobs())

    def state(self, job: str) -> dict[str, str]:
        return next(one for one in self.box.jobs() if one["id"] == job)


@pytest.fixture(scope="session")
def undisturbed(slurm, tmp_path_factory) -> Site:
    """All of the sweep, run once from nothing, left alone; test workers share it."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    (common / "undisturbed").mkdir(exist_ok=True)
    site = Site(slurm, common / "undisturbed")
    with held(common, wait=400, file="undisturbed.lock"):
        if not (site.root / "ready").exists():
            done = site.run()
            assert done.returncode == 0, done.stdout + done.stderr
            (site.root / "ready").touch()
    return site


def copy_of(undisturbed: Site, box, root: Path, *trials: str, settings: str = SETTINGS) -> Site:
    """A site with tokenizer and tokens done, and these trials."""
    site = Site(box, root, settings)
    for part in ("tokenizers", "tokens"):
        shutil.copytree(undisturbed.home / part, site.home / part)
    for name in trials:
        shutil.copytree(undisturbed.trial(name), site.trial(name))
    return site


@pytest.fixture
def site(undisturbed, slurm, tmp_path) -> Site:
    return copy_of(undisturbed, slurm, tmp_path)


def unharmed(site: Site, undisturbed: Site, name: str) -> None:
    """Losses and weights of `name` are those of the undisturbed run, bit for bit."""
    mine, theirs = site.trial(name), undisturbed.trial(name)
    assert numbers(mine / "metrics.jsonl") == numbers(theirs / "metrics.jsonl")
    weights = "weights.safetensors"
    assert (mine / weights).read_bytes() == (theirs / weights).read_bytes()


def row_of(site: Site, name: str) -> pd.Series:
    frame = pd.read_parquet(site.home / "grid" / "results.parquet")
    return frame[(frame.trial == name) & (frame.step == frame.steps)].iloc[0]


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


def test_what_is_seen_of_it(undisturbed):
    status = json.loads(undisturbed.call("status", "--json").stdout)
    d3 = next(stage for stage in status["stages"] if stage["name"] == "d3")
    assert d3["state"] == "done"
    assert d3["attempt"] == 1
    assert d3["job"] == undisturbed.job("d3")
    words = [*COMMAND, "logs", "grid/d3", "--lines", "5", "--home", str(undisturbed.home)]
    said = subprocess.run(words, capture_output=True, text=True, env=undisturbed.environment)
    assert "validation step 2,000" in said.stdout
    dry = undisturbed.run("--dry-run")
    assert "nothing: all is done" in dry.stdout


# What clusters do -----------------------------------------------------------------------------


def test_preempted_by_a_higher_partition(site, undisturbed):
    driver = site.start("--only", "d2")
    site.saved("d2")
    job = site.job("d2")
    high = ["-p", "high", "-N2", "-n2", "--exclusive", "--output=/dev/null"]
    site.box.run("sbatch", *high, "--wrap", "srun sleep 2")
    site.box.wait(lambda: site.state(job)["state"] == "PENDING", "d2 made way")
    assert site.ends(driver) == 0
    assert site.state(job)["restarts"] == "1"
    assert site.job("d2") == job  # Slurm requeued it: nobody submitted it again
    unharmed(site, undisturbed, "d2")
    assert row_of(site, "d2").attempts == 2


def test_out_of_time_it_saves_and_queues_up_again(site, undisturbed):
    driver = site.start("--only", "d3")
    site.saved("d3")
    job = site.job("d3")
    site.box.run("scontrol", "update", f"jobid={job}", "endtime=now+100seconds")
    site.box.wait(lambda: site.state(job)["restarts"] == "1", "d3 queued up again", 60)
    site.box.run("scontrol", "update", f"jobid={job}", "timelimit=60")
    assert site.ends(driver) == 0
    assert site.job("d3") == job
    unharmed(site, undisturbed, "d3")
    assert row_of(site, "d3").lost_flops == 0  # it was told, and saved


def test_a_time_out_without_a_warning_is_submitted_again(site, undisturbed):
    driver = site.start("--only", "d3")
    site.saved("d3")
    job = site.job("d3")
    site.box.run("scontrol", "update", f"jobid={job}", "endtime=now+2seconds")
    assert site.ends(driver) == 0
    unharmed(site, undisturbed, "d3")
    assert row_of(site, "d3").attempts >= 2


def test_a_node_goes_down(site, undisturbed):
    driver = site.start("--only", "d2")
    site.saved("d2")
    job = site.job("d2")
    node = site.state(job)["node"]
    site.box.set_node(node, "down")
    try:
        assert site.ends(driver) == 0
    finally:
        site.box.set_node(node, "resume")
    assert site.job("d2") == job
    unharmed(site, undisturbed, "d2")


def test_slurmd_is_killed_and_its_job_computes_on_beside_its_copy(site, undisturbed):
    """Slurm takes the node for dead and starts the job elsewhere; the first one still writes."""
    driver = site.start("--only", "d3")
    site.saved("d3")
    job = site.job("d3")
    node = site.state(job)["node"]
    site.box.kill_node(node)
    try:
        assert site.ends(driver) == 0
    finally:
        site.box.start_node(node)
    unharmed(site, undisturbed, "d3")


def test_a_trial_is_killed(site, undisturbed):
    driver = site.start("--only", "d2")
    at = site.saved("d2")
    first = site.job("d2")
    os.kill(attempts(site.trial("d2"))[-1]["pid"], signal.SIGKILL)
    assert site.ends(driver) == 0
    assert site.job("d2") != first
    unharmed(site, undisturbed, "d2")
    row = row_of(site, "d2")
    assert row.attempts == 2
    assert row.train_flops == row_of(undisturbed, "d2").train_flops  # the lost ones stand apart
    assert at > 0


def test_cancelled_by_hand_it_waits_for_retry(site, undisturbed):
    driver = site.start("--only", "d2")
    site.saved("d2")
    site.box.run("scancel", site.job("d2"))
    assert site.ends(driver) == 1
    assert "was cancelled" in (site.root / "said").read_text()
    again = site.run("--only", "d2")
    assert again.returncode == 1  # to run it again takes more than to run again
    assert "var-scaling retry" in again.stderr
    retried = site.call("retry", "--only", "d2", "--dirty")
    assert retried.returncode == 0, retried.stdout + retried.stderr
    unharmed(site, undisturbed, "d2")


def test_slurmctld_is_away_for_a_while(site, undisturbed):
    driver = site.start("--only", "d2")
    site.saved("d2")
    before = site.job("d2")
    site.box.stop_controller()
    try:
        time.sleep(4)  # several polls
        status = json.loads(site.call("status", "--json").stdout)
        states = {stage["name"]: stage["state"] for stage in status["stages"]}
        assert states["d2"] in ("running", "done")  # by its signs of life
    finally:
        site.box.start_controller()
    assert site.ends(driver) == 0
    assert site.job("d2") == before
    unharmed(site, undisturbed, "d2")


def test_slurmctld_is_away_when_jobs_are_to_be_submitted(site, undisturbed):
    site.box.stop_controller()
    try:
        driver = site.start("--only", "d1")
        note = site.home / "grid" / "driver.note"
        site.box.wait(lambda: note.exists() and note.read_text(), "the driver says so", 60)
    finally:
        site.box.start_controller()
    assert site.ends(driver) == 0
    unharmed(site, undisturbed, "d1")


def test_the_last_checkpoint_is_torn(site, undisturbed):
    driver = site.start("--only", "d2")
    site.saved("d2", after=site.saved("d2"))
    os.kill(attempts(site.trial("d2"))[-1]["pid"], signal.SIGKILL)
    last = max(site.trial("d2").glob("checkpoint/step-*.pt"))
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    assert site.ends(driver) == 0
    unharmed(site, undisturbed, "d2")


def test_an_error_of_the_trial_is_reported_and_not_paid_for_again(site):
    """Its tokens are damaged: the job fails at once, and no driver submits it again by itself."""
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
    status = site.call("status").stdout
    assert "tokens.npy is damaged" in status


# What happens to drivers ----------------------------------------------------------------------


def test_a_killed_driver_started_again_attaches_to_what_runs(site, undisturbed):
    before = site.submissions()
    driver = site.start("--only", "d1", "--only", "d2")
    site.saved("d2")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    job = site.job("d2")
    assert site.run("--only", "d1", "--only", "d2").returncode == 0
    assert site.job("d2") == job
    assert site.submissions() == before + 2
    for name in ("d1", "d2"):
        unharmed(site, undisturbed, name)
        assert row_of(site, name).attempts == 1


def test_of_two_drivers_one_is_turned_away_or_takes_over(site, undisturbed):
    driver = site.start("--only", "d2")
    site.saved("d2")
    job = site.job("d2")
    second = site.run("--only", "d2")
    assert second.returncode == 4
    assert f"pid {driver.pid}" in second.stderr
    third = site.run("--only", "d2", "--take-over")
    assert third.returncode == 0, third.stderr
    assert site.ends(driver) == 4  # the first noticed, and left
    assert site.job("d2") == job
    unharmed(site, undisturbed, "d2")


def test_detached_it_submits_and_leaves(site, undisturbed):
    left = site.run("--only", "d1", "--detach")
    assert left.returncode == 0, left.stderr
    job = site.job("d1")
    site.box.wait(lambda: site.state(job)["state"] == "COMPLETED", "d1 done", 60)
    assert site.run("--only", "d1").returncode == 0
    assert site.job("d1") == job
    unharmed(site, undisturbed, "d1")


def test_cancel_ends_the_jobs_and_retry_goes_on(site, undisturbed):
    driver = site.start("--only", "d2")
    site.saved("d2")
    job = site.job("d2")
    ended = site.call("cancel")
    assert f"job {job} cancelled" in ended.stdout
    assert site.ends(driver) == 1
    site.box.wait(lambda: site.state(job)["state"] == "CANCELLED", "Slurm ended d2")
    assert site.call("retry", "--only", "d2", "--dirty").returncode == 0
    unharmed(site, undisturbed, "d2")


def test_a_driver_at_work_takes_up_a_retry(site, undisturbed):
    driver = site.start("--only", "d2", "--only", "d3")
    site.saved("d2")
    site.box.run("scancel", site.job("d2"))
    site.box.wait(lambda: jobs.latest(site.trial("d2")).ended == "cancelled", "the driver saw it")
    retried = site.call("retry", "--only", "d2")
    assert "the driver at work takes it up" in retried.stdout
    assert site.ends(driver) == 0
    for name in ("d2", "d3"):
        unharmed(site, undisturbed, name)


def test_a_folder_that_another_cluster_has_in_hand_is_refused(site):
    """Cluster `old` is gone; its job ids mean nothing here."""
    jobs.note(
        site.trial("d1"), "submitting", submission="abc", cluster="old", index=None, code="c",
        resources={},
    )  # fmt: skip
    jobs.note(site.trial("d1"), "submitted", submission="abc", job="1")
    refused = site.run("--only", "d1")
    assert refused.returncode == 2
    assert "in the hands of job 1 on old" in refused.stderr
    assert site.call("cancel", "--forget").returncode == 0
    assert site.call("retry", "--on", "box", "--only", "d1", "--dirty").returncode == 0


def test_a_job_id_of_an_earlier_cluster_is_not_believed(site, undisturbed):
    """Same name, made anew: ids begin at 1 again, and job 1 is somebody else's."""
    jobs.note(
        site.trial("d1"), "submitting", submission="abc", cluster="box", index=None, code="c",
        resources={},
    )  # fmt: skip
    jobs.note(site.trial("d1"), "submitted", submission="abc", job="1")
    assert site.run("--only", "d1").returncode == 0
    assert site.job("d1") != "1"
    unharmed(site, undisturbed, "d1")


# Several processes ----------------------------------------------------------------------------


FOUR = SETTINGS + "trial_gpus = {d1 = 4}\n"


@pytest.fixture(scope="session")
def two_by_two(undisturbed, slurm, tmp_path_factory) -> Site:
    """d1 by four processes on two nodes."""
    site = copy_of(undisturbed, slurm, tmp_path_factory.mktemp("four"), settings=FOUR)
    done = site.run("--only", "d1")
    assert done.returncode == 0, done.stderr + done.stdout
    return site


def test_two_by_two_processes_train_what_one_does(undisturbed, two_by_two):
    life = attempts(two_by_two.trial("d1"))[0]
    assert (life["processes"], life["gpus"]) == (4, "0,1")
    mine = numbers(two_by_two.trial("d1") / "metrics.jsonl")
    theirs = numbers(undisturbed.trial("d1") / "metrics.jsonl")
    assert [line["images_seen"] for line in mine] == [line["images_seen"] for line in theirs]
    # The same images in the same order: another order would be seen at once.
    assert mine[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-6)
    for one, other in zip(mine, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-3)


def test_one_of_four_processes_is_killed(undisturbed, two_by_two, slurm, tmp_path):
    """The others only see that it is gone, which is nobody's error: the job is submitted again."""
    site = copy_of(undisturbed, slurm, tmp_path, settings=FOUR)
    driver = site.start("--only", "d1")
    site.saved("d1")
    first = site.job("d1")
    os.kill(process_of(site, rank=2), signal.SIGKILL)
    assert site.ends(driver) == 0
    assert site.job("d1") != first
    unharmed(site, two_by_two, "d1")


def test_the_error_of_one_of_four_processes_is_the_one_reported(undisturbed, slurm, tmp_path):
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
    """The process of that rank of a job of this site."""
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


# Accounts and MLflow --------------------------------------------------------------------------


@pytest.mark.parametrize("event", ["node down", "killed"])
def test_with_sacct(undisturbed, slurm_with_accounts, tmp_path, event):
    """Accounts call a requeued job NODE_FAIL for a while: that is no reason to submit it again."""
    site = copy_of(undisturbed, slurm_with_accounts, tmp_path)
    driver = site.start("--only", "d2")
    site.saved("d2")
    job = site.job("d2")
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


def test_without_sacct_a_job_that_slurm_forgot_is_judged_by_the_disk(undisturbed, slurm, tmp_path):
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


def test_mlflow_is_down_throughout_and_mirrored_afterwards(undisturbed, slurm, tmp_path):
    from mlflow.tracking import MlflowClient

    uri = f"http://127.0.0.1:{free_port()}"
    site = copy_of(undisturbed, slurm, tmp_path, settings=f'[mlflow]\nuri = "{uri}"\n{SETTINGS}')
    driver = site.start("--only", "d1")
    assert site.ends(driver) == 0  # a dead server costs nothing but the view
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
