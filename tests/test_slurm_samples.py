"""A set of samples drawn by jobs of a real Slurm equals that of one process, also after faults."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import COMMAND
from slurm_site import Site
from small_home import ADDRESS, context_in, small_home

from pipelines.sampling.draw import DrawOptions, sample_set
from pipelines.sampling.request import SampleOptions, plan_set
from pipelines.workspace import job_log as jobs
from pipelines.workspace.provenance import attempts
from var_scaling.disk import is_done, read_json

pytestmark = pytest.mark.slurm


class Samples(Site):
    """A site whose home has a model, and the command `sample` for it."""

    def __init__(self, box, root: Path, count: int):
        """`count` images of each of eight classes."""
        super().__init__(box, root)
        self.count = count
        self.model = small_home(self.home)
        self.set = self.home / ADDRESS / "samples" / "default"

    def type(self, *words: str) -> list[str]:
        requested = ["--count", str(self.count), *words[1:], "--home", str(self.home)]
        return [*COMMAND, "sample", ADDRESS, "--on", "box", "--dirty", *requested]

    def begin_jobs(self) -> subprocess.Popen:
        """Start two jobs and wait until each has drawn chunks."""
        with open(self.root / "said", "a") as message:
            driver = subprocess.Popen(
                self.type("sample", "--jobs", "2"),
                env=self.environment, cwd=self.root, start_new_session=True,
                stdout=message, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.box.wait(lambda: all(self.chunks(part) for part in (0, 1)), "chunks of both", 120)
        return driver

    def part(self, number: int) -> Path:
        return self.set / f"jobs-{self.count}" / "parts" / f"{number:03d}-of-002"

    def chunks(self, part: int) -> list[int]:
        found = [int(path.stem) for path in self.set.glob("chunks/*.json")]
        return [chunk for chunk in found if chunk % 2 == part]

    def job_of(self, part: int) -> str | None:
        record = jobs.latest(self.part(part))
        return record.job if record else None


@pytest.fixture
def samples(slurm, tmp_path) -> Samples:
    return Samples(slurm, tmp_path, 120)


def pictures(folder: Path) -> dict[str, bytes]:
    root = folder / "images"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


def unharmed(samples: Samples) -> None:
    """Assert that the set is done and its files equal those of one process."""
    assert is_done(samples.set)
    place = context_in(samples.model)
    plan = plan_set(place, ADDRESS, SampleOptions(count=samples.count, name="alone"))
    assert sample_set(place, plan, DrawOptions(), lambda done: False, lambda *message: None) == []
    assert pictures(samples.set) == pictures(plan.folder)
    assert len(pictures(samples.set)) == 8 * samples.count


def test_a_set_with_a_killed_job_equals_that_of_one_process(samples):
    driver = samples.begin_jobs()
    first = [samples.job_of(part) for part in (0, 1)]
    assert {job.partition("_")[2] for job in first} == {"0", "1"}  # one array
    os.kill(attempts(samples.part(1))[-1]["pid"], signal.SIGKILL)
    assert samples.ends(driver) == 0, (samples.root / "said").read_text()
    assert samples.job_of(0) == first[0]
    assert samples.job_of(1) != first[1]
    unharmed(samples)
    assert len(read_json(samples.set / "manifest.json")["images"]) == 8 * samples.count
    before = samples.submissions()
    assert samples.call("sample", "--jobs", "2").returncode == 0
    assert samples.submissions() == before


@pytest.mark.thorough
def test_a_restarted_driver_of_samples_attaches_to_its_jobs(samples):
    driver = samples.begin_jobs()
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    first = [samples.job_of(part) for part in (0, 1)]
    other = samples.call("sample", "--jobs", "3")
    assert other.returncode == 2
    assert "attach to it with --on box --jobs 2" in other.stderr
    again = samples.call("sample", "--jobs", "2")
    assert again.returncode == 0, again.stderr
    assert [samples.job_of(part) for part in (0, 1)] == first
    unharmed(samples)


@pytest.mark.thorough
def test_a_cancelled_sample_job_waits_for_retry_and_then_finishes_the_set(slurm, tmp_path):
    samples = Samples(slurm, tmp_path, 400)  # scancel gives a job five seconds
    driver = samples.begin_jobs()
    samples.box.run("scancel", samples.job_of(0))
    assert samples.ends(driver) == 1
    message = (samples.root / "said").read_text()
    assert "was cancelled" in message
    assert "--retry" in message
    logs = [*COMMAND, "logs", str(samples.part(1).relative_to(samples.home))]
    words = [*logs, "--home", str(samples.home)]
    heard = subprocess.run(words, capture_output=True, text=True, env=samples.environment)
    assert heard.returncode == 0, heard.stderr
    left = samples.call("sample", "--jobs", "2", "--retry", "--detach")
    assert left.returncode == 0, left.stdout + left.stderr
    samples.box.wait(lambda: is_done(samples.set), "the jobs ended the set", 120)
    assert len(pictures(samples.set)) == 8 * samples.count
