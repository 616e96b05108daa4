"""A home and a Slurm as on a login node, and an uninterrupted run for comparison."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import COMMAND, numbers

from pipelines.workspace import job_log as jobs
from pipelines.workspace.store import file_lock

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
    """A home and a cluster as on a login node."""

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
        """Start `run` on the box in the background."""
        return subprocess.Popen(
            self.type("run", "--on", "box", "--dirty", *words),
            env=self.environment, cwd=self.root, start_new_session=True,
            stdout=open(self.root / "said", "a"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def begin(self, name: str) -> tuple[subprocess.Popen, str]:
        """Start `run` of one trial and wait for its first checkpoint: the driver, the job."""
        driver = self.start("--only", name)
        self.saved(name)
        return driver, self.job(name)

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
            message = (self.root / "said").read_text()[-3000:]
            pytest.fail(f"the driver did not end:\n{message}\n{self.box.jobs()}")

    def trial(self, name: str) -> Path:
        return self.home / "grid" / name

    def saved(self, name: str, after: int = 0) -> int:
        """Wait for a checkpoint after step `after`; return its step."""

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
        """Number of our jobs that Slurm has received in total."""
        return sum(job["name"].startswith("var-scaling") for job in self.box.jobs())

    def state(self, job: str) -> dict[str, str]:
        return next(one for one in self.box.jobs() if one["id"] == job)


@pytest.fixture(scope="session")
def undisturbed(slurm, tmp_path_factory) -> Site:
    """The sweep, run once without interruption; test workers share it."""
    common = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    (common / "undisturbed").mkdir(exist_ok=True)
    site = Site(slurm, common / "undisturbed")
    with file_lock(common, wait=400, file="undisturbed.lock"):
        if not (site.root / "ready").exists():
            done = site.run()
            assert done.returncode == 0, done.stdout + done.stderr
            (site.root / "ready").touch()
    return site


def copy_of(undisturbed: Site, box, root: Path, *trials: str, settings: str = SETTINGS) -> Site:
    """A site with finished tokenizer and tokens, and these trials."""
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
    """Assert that losses and weights of `name` equal those of the undisturbed run, bitwise."""
    mine, theirs = site.trial(name), undisturbed.trial(name)
    assert numbers(mine / "metrics.jsonl") == numbers(theirs / "metrics.jsonl")
    weights = "weights.safetensors"
    assert (mine / weights).read_bytes() == (theirs / weights).read_bytes()


def row_of(site: Site, name: str) -> pd.Series:
    frame = pd.read_parquet(site.home / "grid" / "results.parquet")
    return frame[(frame.trial == name) & (frame.step == frame.steps)].iloc[0]
