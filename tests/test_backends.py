"""The reconciler over a backend: one of plain processes, written here, and Slurm itself.

What a task does is the module's `run`, which jobs of both import.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import trial

from pipelines.execution.backend import Backend, Queue, Seen
from pipelines.execution.reconcile import Reconciler
from pipelines.execution.slurm.backend import SlurmBackend
from pipelines.execution.slurm.resources import trial_resources
from pipelines.execution.tasks import Task
from pipelines.stages.attempt import at_work
from pipelines.stages.context import ProcessContext, RunContext, StopFile
from pipelines.workspace import driver_lock
from pipelines.workspace import job_log as jobs
from pipelines.workspace.settings import Settings
from pipelines.workspace.snapshot import ROOT, Snapshot
from pipelines.workspace.store import Home
from var_scaling.disk import is_done, write_json

HERE = Path(__file__).parent
SETTINGS = Settings.model_validate(
    {
        "clusters": {
            "box": {
                "partition": "main", "device": "cpu", "cpus_per_gpu": 1, "memory_gb_per_gpu": 1,
                "gpus_per_node": 1, "wall_hours": 1, "poll_seconds": 0.5,
            }
        }
    }
)  # fmt: skip


def run(context: RunContext, payload: dict[str, Any]) -> str:
    """What a task does: it succeeds, fails, waits, or dies the first time without a word."""
    folder = Path(payload["folder"])
    with at_work(folder, context.process, context.requested_signal):
        lives = len(list(folder.glob("life-*")))
        (folder / f"life-{lives}").touch()
        if payload["does"] == "dies once" and lives == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if payload["does"] == "fails" and not (folder / "mended").exists():
            raise ValueError("no such thing")
        while payload["does"] == "waits" and not (folder / "go").exists():
            time.sleep(0.05)
        write_json(folder / "done.json", {"status": "done"})
    return "done"


class Processes:
    """A backend of processes of this machine; it remembers them in this process alone."""

    name, submits_with = "the machine", "fork"

    def __init__(self, home: Home):
        self.home, self.started = home, {}
        self.count = 0

    def queue(self) -> Queue:
        return Queue({job: self._seen(job, *one) for job, one in self.started.items()}, time.time())

    def _seen(self, job: str, name: str, process: subprocess.Popen) -> Seen:
        code = process.poll()
        if code is None:
            return Seen(job, name, "alive", "here", "running")
        cancelled = code == -signal.SIGTERM
        return Seen(
            job, name, f"ended with {code}", "here", "ended", "cancelled" if cancelled else "other"
        )

    def accounts(self, names: Iterable[str]) -> dict[str, Seen]:
        return {}

    def submit(self, tasks: list[Task], submission: str) -> list[str]:
        ids = []
        for index, task in enumerate(tasks):
            self.count += 1
            job = f"p{self.count}_{index}"
            code = "import sys, test_backends; test_backends.as_job(*sys.argv[1:])"
            payload = [
                sys.executable,
                "-c",
                code,
                str(self.home.root),
                job,
                json.dumps(task.payload),
            ]
            environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
            process = subprocess.Popen(
                payload, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            self.started[job] = (f"var-scaling-{submission}", process)
            ids.append(job)
        return ids

    def cancel(self, jobs: list[str]) -> None:
        for job in jobs:
            self.started[job][1].terminate()

    def last_words(self, record: jobs.JobRecord) -> str:
        return "(no output)"

    def end(self) -> None:
        for _, process in self.started.values():
            process.kill()
            process.wait()


def as_job(root: str, job: str, text: str) -> None:
    """In a process of `Processes`."""
    process = ProcessContext(alone=False, restart_id=f"{job}.0", facts={"job": job})
    run(
        RunContext(Home(Path(root)), Settings(), StopFile(Path(root) / "stop"), process),
        json.loads(text),
    )


@pytest.fixture(params=["processes", pytest.param("slurm", marks=pytest.mark.slurm)])
def backend(request, tmp_path, monkeypatch) -> Iterator[Backend]:
    home = Home(tmp_path)
    if request.param == "processes":
        found = Processes(home)
        yield found
        found.end()
        return
    box = request.getfixturevalue("slurm")
    for name, value in box.environment.items():
        monkeypatch.setenv(name, value)
    environment = {**box.environment, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    yield SlurmBackend(home, SETTINGS, "box", Snapshot(ROOT, "test"), environment)


@pytest.fixture
def reconciler(backend, tmp_path) -> Iterator[Reconciler]:
    folder = Home(tmp_path).sweep("s")
    with driver_lock.driving(folder, "box") as me:
        yield Reconciler(folder, backend, "box", "test", 0.5, me)


def task(tmp_path: Path, does: str, name: str = "d1") -> Task:
    folder = tmp_path / "s" / name
    folder.mkdir(parents=True, exist_ok=True)
    payload = {"module": "test_backends", "kind": "test", "folder": str(folder), "does": does}
    asks = trial_resources(trial(), SETTINGS.clusters["box"])
    return Task(f"trial {name}", folder, folder, asks, payload)


def seen_through(reconciler: Reconciler, *tasks: Task) -> dict[str, str]:
    return asyncio.run(asyncio.wait_for(reconciler.run_until_done(list(tasks)), 120))


def until(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)


def lives(one: Task) -> int:
    return len(list(one.folder.glob("life-*")))


def test_an_array_is_seen_through_and_its_ledgers_say_so(reconciler, tmp_path):
    tasks = [task(tmp_path, "succeeds", f"d{k}") for k in (1, 2)]
    assert seen_through(reconciler, *tasks) == {}
    assert all(is_done(one.folder) for one in tasks)
    records = [jobs.latest(one.folder) for one in tasks]
    assert [record.ended for record in records] == ["done", "done"]
    assert records[0].submission == records[1].submission
    assert seen_through(reconciler, *tasks) == {}
    assert [lives(one) for one in tasks] == [1, 1]


def test_what_dies_without_a_word_is_submitted_again(reconciler, tmp_path):
    one = task(tmp_path, "dies once")
    assert seen_through(reconciler, one) == {}
    assert lives(one) == 2


def test_an_error_is_reported_once_and_waits_for_retry(reconciler, tmp_path):
    one = task(tmp_path, "fails")
    assert seen_through(reconciler, one) == {"trial d1": "ValueError: no such thing"}
    assert seen_through(reconciler, one) == {"trial d1": "ValueError: no such thing"}
    assert lives(one) == 1
    jobs.note(one.folder, "retry")
    (one.folder / "mended").touch()
    assert seen_through(reconciler, one) == {}
    assert lives(one) == 2


def test_a_driver_that_comes_later_attaches_to_what_runs(reconciler, tmp_path):
    one = task(tmp_path, "waits")
    assert reconciler.step([one]) == {}
    until(lambda: lives(one))
    later = Reconciler(reconciler.sweep, reconciler.backend, "box", "test", 0.5, reconciler.driver)
    assert later.step([one]) == {}
    (one.folder / "go").touch()
    assert seen_through(later, one) == {}
    assert lives(one) == 1


def test_a_job_that_a_person_ends_is_not_submitted_again(reconciler, tmp_path):
    one = task(tmp_path, "waits")
    reconciler.step([one])
    until(lambda: lives(one))
    reconciler.backend.cancel([jobs.latest(one.folder).job])
    failed = seen_through(reconciler, one)
    assert "was cancelled" in failed["trial d1"]
    assert not is_done(one.folder)
    assert lives(one) == 1
