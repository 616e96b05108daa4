"""The reconciler: job records, and its reaction to every answer of Slurm."""

import time
from pathlib import Path

import pytest
from conftest import submitting, trial

from pipelines.execution.backend import (
    JobLimitReached,
    JobStatus,
    Queue,
    SubmissionRejected,
    SubmissionUnconfirmed,
)
from pipelines.execution.reconcile import Reconciler
from pipelines.execution.slurm import submit as launch
from pipelines.execution.slurm.backend import SlurmBackend
from pipelines.execution.slurm.resources import trial_resources
from pipelines.execution.slurm.slurm import job_status
from pipelines.execution.status import state_of
from pipelines.execution.tasks import Task
from pipelines.stages.attempt import FAILED
from pipelines.workspace import driver_lock as driver
from pipelines.workspace import job_log as jobs
from pipelines.workspace.settings import Cluster, Settings
from pipelines.workspace.snapshot import Snapshot
from pipelines.workspace.store import Home, file_lock
from var_scaling.disk import write_json

BOX = Cluster(partition="main", device="cpu", poll_seconds=1)


def test_a_partial_line_of_a_killed_writer_is_ignored(tmp_path):
    submitting(tmp_path)
    with open(tmp_path / "jobs.jsonl", "a") as file:
        file.write('{"event": "submit')
    assert jobs.latest(tmp_path).job is None
    jobs.note(tmp_path, "submitted", submission="s", job="7")
    assert jobs.latest(tmp_path).job == "7"


class Scripted(Reconciler):
    """A reconciler with a fake Slurm that gives the answers of the test and accepts every job."""

    def __init__(self, tmp_path: Path, queue: dict[str, JobStatus] | None = None):
        home = Home(tmp_path)
        folder = home.sweep("s")
        with driver.hold_driver_lock(folder, "box") as me:
            pass
        write_json(folder / driver.LOCK, vars(me))
        backend = SlurmBackend(home, Settings(), "box", Snapshot(tmp_path, "c"), {})
        super().__init__(folder, backend, "box", "c", 1e-6, me)
        self.says, self.taken, self.later = queue, [], 1

    def _poll_queue(self) -> None:
        self.queue = None if self.says is None else Queue(self.says, time.time() + self.later)

    def _find_in_accounts(self, record):
        return None

    def _submit(self, tasks):
        for task in tasks:
            name = f"n{len(self.taken)}"
            submitting(task.folder, name)
            jobs.note(task.folder, "submitted", submission=name, job=name)
            self.taken.append(task.name)
        return {}


@pytest.fixture
def task(tmp_path) -> Task:
    folder = tmp_path / "s" / "d1"
    folder.mkdir(parents=True)
    return Task("trial d1", folder, folder, trial_resources(trial(), BOX), {})


def seen(job: str, state: str, name: str = "var-scaling-s") -> dict[str, JobStatus]:
    return {job: job_status(job, name, state, "n1", "")}


def twice(reconciler: Reconciler, task: Task) -> dict[str, str]:
    """Two polls: after a job has ended, the first one waits for the file system."""
    reconciler.step([task])
    return reconciler.step([task])


def test_finished_stages_are_never_submitted(tmp_path, task):
    write_json(task.folder / "done.json", {"status": "done"})
    reconciler = Scripted(tmp_path, {})
    assert reconciler.step([task]) == {}
    assert reconciler.taken == []


def test_no_answer_from_slurm_changes_nothing(tmp_path, task):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, None)
    assert twice(reconciler, task) == {}
    assert reconciler.taken == []


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"])
def test_the_driver_attaches_to_a_running_job(tmp_path, task, state):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", state))
    assert twice(reconciler, task) == {}
    assert reconciler.taken == []


def test_a_driver_killed_during_submission_finds_its_job_by_name(tmp_path, task):
    submitting(task.folder, index=1)
    reconciler = Scripted(tmp_path, {**seen("9_1", "RUNNING"), **seen("9_0", "RUNNING")})
    reconciler.later = 100
    assert reconciler.step([task]) == {}
    assert reconciler.taken == []
    assert jobs.latest(task.folder).job == "9_1"


def test_a_job_unknown_to_slurm_is_submitted_again_after_the_timeout_of_sbatch(tmp_path, task):
    submitting(task.folder)
    reconciler = Scripted(tmp_path, {})
    reconciler.step([task])
    assert reconciler.taken == []  # another driver may be submitting now
    reconciler.later = 100
    reconciler.step([task])
    assert reconciler.taken == ["trial d1"]


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "TIMEOUT", "FAILED", "BOOT_FAIL"])
def test_a_job_that_died_without_a_recorded_error_is_submitted_again(tmp_path, task, state):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", state))
    twice(reconciler, task)
    assert reconciler.taken == ["trial d1"]


def test_a_stage_fails_after_three_deaths_without_progress(tmp_path, task):
    reconciler = Scripted(tmp_path, {})
    failed: dict[str, str] = {}
    reconciler.step([task])
    for step in (10, 20, 30, 40):  # each attempt makes progress
        checkpoint = task.folder / "checkpoint" / f"step-{step:09d}.pt"
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()
        assert twice(reconciler, task) == {}
    assert len(reconciler.taken) == 5
    for _ in range(6):
        failed |= reconciler.step([task])
    assert len(reconciler.taken) == 7
    assert "ended 3 times (last state: GONE) without an error message" in failed["trial d1"]


@pytest.mark.parametrize(
    ("state", "expected"), [("CANCELLED", "was cancelled"), ("OUT_OF_MEMORY", "memory_gb_per_gpu")]
)
def test_cancelled_and_failed_jobs_wait_for_retry(tmp_path, task, state, expected):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", state))
    assert expected in twice(reconciler, task)["trial d1"]
    assert reconciler.taken == []
    jobs.note(task.folder, "retry")
    reconciler.step([task])
    assert reconciler.taken == ["trial d1"]


def test_an_error_of_the_current_job_is_reported(tmp_path, task):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    failure = {"error": "ValueError: no", "restart_id": "7.2", "rank": 3}
    write_json(task.folder / FAILED, failure)
    reconciler = Scripted(tmp_path, seen("7", "FAILED"))
    assert twice(reconciler, task) == {"trial d1": "ValueError: no (rank 3)"}
    assert state_of(task.folder)[0] == "failed"


def test_an_error_of_an_earlier_job_is_not_reported(tmp_path, task):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    write_json(task.folder / FAILED, {"error": "ValueError: no", "restart_id": "6.0", "rank": 0})
    reconciler = Scripted(tmp_path, seen("7", "NODE_FAIL"))
    assert twice(reconciler, task) == {}
    assert reconciler.taken == ["trial d1"]


def test_a_job_id_with_another_name_is_not_our_job(tmp_path, task):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", "RUNNING", name="of-another-user"))
    twice(reconciler, task)
    assert reconciler.taken == ["trial d1"]


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL", "BOOT_FAIL"])
def test_preemption_and_node_failure_never_count_as_deaths(tmp_path, task, state):
    """Even if it is preempted repeatedly before its first checkpoint."""
    reconciler = Scripted(tmp_path, {})
    reconciler.step([task])
    for number in range(5):
        reconciler.says = seen(f"n{number}", state, name=f"var-scaling-n{number}")
        assert twice(reconciler, task) == {}
    assert len(reconciler.taken) == 6


def test_a_job_active_only_in_the_accounts_is_submitted_again(tmp_path, task, monkeypatch):
    from pipelines.execution.slurm import slurm

    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    monkeypatch.setattr(slurm, "accounts", lambda names: seen("7", "RUNNING"))
    monkeypatch.setattr(Scripted, "_find_in_accounts", Reconciler._find_in_accounts)
    reconciler = Scripted(tmp_path, {})
    twice(reconciler, task)
    assert reconciler.taken == ["trial d1"]


def test_a_stage_cancelled_before_submission_is_not_submitted(tmp_path, task):
    jobs.note(task.folder, "cancelled", reason="it was cancelled")
    reconciler = Scripted(tmp_path, {})
    assert reconciler.step([task]) == {"trial d1": "it was cancelled"}
    assert state_of(task.folder) == ("cancelled", "it was cancelled")
    jobs.note(task.folder, "retry")
    reconciler.step([task])
    assert reconciler.taken == ["trial d1"]


def test_a_stage_that_runs_on_this_machine_is_not_submitted(tmp_path, task):
    reconciler = Scripted(tmp_path, {})
    with file_lock(task.folder):
        assert reconciler.step([task]) == {}
    assert reconciler.taken == []


def test_unjoined_parts_are_joined_by_one_more_job(tmp_path):
    output_dir = tmp_path / "tokens"
    parts = tuple(output_dir / "parts" / f"00{k}-of-002" for k in range(2))
    for part in parts:
        part.mkdir(parents=True)
        write_json(part / "done.json", {"status": "done"})
    asks = trial_resources(trial(), BOX)
    tasks = [
        Task("tokens 1 of 2", parts[0], output_dir, asks, {}, parts),
        Task("tokens 2 of 2", parts[1], output_dir, asks, {}),
    ]
    assert [task.done for task in tasks] == [False, True]
    reconciler = Scripted(tmp_path, {})
    reconciler.step(tasks)
    reconciler.step(tasks)
    assert reconciler.taken == ["tokens 1 of 2"]
    write_json(output_dir / "done.json", {"status": "done"})
    assert all(task.done for task in tasks)


class Sbatch:
    """Successive answers of sbatch; an exception is raised."""

    def __init__(self, *answers):
        self.answers, self.sizes = list(answers), []

    def __call__(self, tasks, *rest):
        self.sizes.append(len(tasks))
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        return [f"{len(self.sizes)}_{k}" for k in range(len(tasks))]


def array(tmp_path: Path, size: int) -> list[Task]:
    asks = trial_resources(trial(), BOX)
    folders = [tmp_path / "s" / f"d{k}" for k in range(size)]
    return [Task(f"trial {f.name}", f, f, asks, {}) for f in folders]


def test_arrays_above_the_submission_limit_are_split(tmp_path, monkeypatch):
    sbatch = Sbatch(JobLimitReached("MaxSubmitJob"), JobLimitReached("MaxSubmitJob"))
    monkeypatch.setattr(launch, "submit", sbatch)
    monkeypatch.setattr(Scripted, "_submit", Reconciler._submit)
    reconciler, tasks = Scripted(tmp_path, {}), array(tmp_path, 8)
    for _ in range(4):
        reconciler.not_before = 0.0
        assert reconciler.step(tasks) == {}
    assert sbatch.sizes[:3] == [8, 4, 2]


def test_a_permanent_refusal_of_slurm_is_a_failure_with_its_message(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "submit", Sbatch(SubmissionRejected("Invalid account")))
    monkeypatch.setattr(Scripted, "_submit", Reconciler._submit)
    reconciler, tasks = Scripted(tmp_path, {}), array(tmp_path, 2)
    assert reconciler.step(tasks) == {task.name: "Invalid account" for task in tasks}
    assert reconciler.step(tasks) == {task.name: "Invalid account" for task in tasks}


def test_an_unresponsive_slurmctld_is_polled_with_growing_intervals(tmp_path, monkeypatch):
    sbatch = Sbatch(*[SubmissionUnconfirmed("Unable to contact")] * 3)
    monkeypatch.setattr(launch, "submit", sbatch)
    monkeypatch.setattr(Scripted, "_submit", Reconciler._submit)
    reconciler, tasks = Scripted(tmp_path, {}), array(tmp_path, 1)
    waits = []
    for _ in range(3):
        reconciler.not_before = 0.0
        reconciler.step(tasks)
        waits.append(reconciler.backoff)
    assert waits[1:] == [2 * waits[0], 4 * waits[0]]
    assert "Unable to contact" in (tmp_path / "s" / "driver.note").read_text()
    reconciler.not_before = time.time() + 60
    reconciler.step(tasks)
    assert len(sbatch.sizes) == 3  # not before the interval has passed
