"""What is wanted against what is there: ledgers, and what is made of every word of Slurm."""

import time
from pathlib import Path

import pytest
from conftest import submitting, trial

from pipelines.execution.backend import Delayed, Queue, Refused, Seen, TooMany
from pipelines.execution.reconcile import Reconciler
from pipelines.execution.slurm import submit as launch
from pipelines.execution.slurm.backend import SlurmBackend
from pipelines.execution.slurm.resources import trial_resources
from pipelines.execution.slurm.slurm import seen_of
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


def test_half_a_line_of_a_killed_writer_counts_for_nothing(tmp_path):
    submitting(tmp_path)
    with open(tmp_path / "jobs.jsonl", "a") as file:
        file.write('{"event": "submit')
    assert jobs.latest(tmp_path).job is None
    jobs.note(tmp_path, "submitted", submission="s", job="7")
    assert jobs.latest(tmp_path).job == "7"


class Scripted(Reconciler):
    """A reconciler whose Slurm says what the test says, and takes every job."""

    def __init__(self, tmp_path: Path, queue: dict[str, Seen] | None = None):
        home = Home(tmp_path)
        folder = home.sweep("s")
        with driver.driving(folder, "box") as me:
            pass
        write_json(folder / driver.LOCK, vars(me))
        backend = SlurmBackend(home, Settings(), "box", Snapshot(tmp_path, "c"), {})
        super().__init__(folder, backend, "box", "c", 1e-6, me)
        self.says, self.taken, self.later = queue, [], 1

    def _look(self) -> None:
        self.queue = None if self.says is None else Queue(self.says, time.time() + self.later)

    def _accounted(self, record):
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


def seen(job: str, state: str, name: str = "var-scaling-s") -> dict[str, Seen]:
    return {job: seen_of(job, name, state, "n1", "")}


def twice(reconciler: Reconciler, task: Task) -> dict[str, str]:
    """Two looks: the first that finds a job over waits for the disk to settle."""
    reconciler.step([task])
    return reconciler.step([task])


def test_what_is_done_is_never_submitted(tmp_path, task):
    write_json(task.folder / "done.json", {"status": "done"})
    reconciler = Scripted(tmp_path, {})
    assert reconciler.step([task]) == {}
    assert reconciler.taken == []


def test_silence_of_slurm_concludes_nothing(tmp_path, task):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, None)
    assert twice(reconciler, task) == {}
    assert reconciler.taken == []


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"])
def test_a_job_that_lives_is_attached_to(tmp_path, task, state):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", state))
    assert twice(reconciler, task) == {}
    assert reconciler.taken == []


def test_a_driver_killed_between_asking_and_hearing_finds_its_job_by_name(tmp_path, task):
    submitting(task.folder, index=1)
    reconciler = Scripted(tmp_path, {**seen("9_1", "RUNNING"), **seen("9_0", "RUNNING")})
    reconciler.later = 100
    assert reconciler.step([task]) == {}
    assert reconciler.taken == []
    assert jobs.latest(task.folder).job == "9_1"


def test_a_job_that_slurm_never_got_is_submitted_once_sbatch_must_have_returned(tmp_path, task):
    submitting(task.folder)
    reconciler = Scripted(tmp_path, {})
    reconciler.step([task])
    assert reconciler.taken == []  # another driver may be asking just now
    reconciler.later = 100
    reconciler.step([task])
    assert reconciler.taken == ["trial d1"]


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "TIMEOUT", "FAILED", "BOOT_FAIL"])
def test_a_job_that_died_without_a_word_is_submitted_again(tmp_path, task, state):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", state))
    twice(reconciler, task)
    assert reconciler.taken == ["trial d1"]


def test_it_is_given_up_after_three_deaths_without_progress_and_not_with_it(tmp_path, task):
    reconciler = Scripted(tmp_path, {})
    failed: dict[str, str] = {}
    reconciler.step([task])
    for step in (10, 20, 30, 40):  # it gets further each time
        checkpoint = task.folder / "checkpoint" / f"step-{step:09d}.pt"
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()
        assert twice(reconciler, task) == {}
    assert len(reconciler.taken) == 5
    for _ in range(6):
        failed |= reconciler.step([task])
    assert len(reconciler.taken) == 7
    assert "ended 3 times (GONE at last) without a word" in failed["trial d1"]


@pytest.mark.parametrize(
    ("state", "expected"), [("CANCELLED", "was cancelled"), ("OUT_OF_MEMORY", "memory_gb_per_gpu")]
)
def test_some_ends_wait_for_retry(tmp_path, task, state, expected):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", state))
    assert expected in twice(reconciler, task)["trial d1"]
    assert reconciler.taken == []
    jobs.note(task.folder, "retry")
    reconciler.step([task])
    assert reconciler.taken == ["trial d1"]


def test_an_error_is_reported_if_it_is_of_this_job(tmp_path, task):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    failure = {"error": "ValueError: no", "restart_id": "7.2", "rank": 3}
    write_json(task.folder / FAILED, failure)
    reconciler = Scripted(tmp_path, seen("7", "FAILED"))
    assert twice(reconciler, task) == {"trial d1": "ValueError: no (rank 3)"}
    assert state_of(task.folder)[0] == "failed"


def test_an_error_of_an_earlier_job_is_not(tmp_path, task):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    write_json(task.folder / FAILED, {"error": "ValueError: no", "restart_id": "6.0", "rank": 0})
    reconciler = Scripted(tmp_path, seen("7", "NODE_FAIL"))
    assert twice(reconciler, task) == {}
    assert reconciler.taken == ["trial d1"]


def test_an_id_under_another_name_is_not_our_job(tmp_path, task):
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", "RUNNING", name="of-another-user"))
    twice(reconciler, task)
    assert reconciler.taken == ["trial d1"]


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL", "BOOT_FAIL"])
def test_what_is_no_fault_of_the_stage_is_never_held_against_a_stage(tmp_path, task, state):
    """However often it is preempted before its first save."""
    reconciler = Scripted(tmp_path, {})
    reconciler.step([task])
    for number in range(5):
        reconciler.says = seen(f"n{number}", state, name=f"var-scaling-n{number}")
        assert twice(reconciler, task) == {}
    assert len(reconciler.taken) == 6


def test_active_by_accounts_alone_is_a_runaway_and_not_waited_for(tmp_path, task, monkeypatch):
    from pipelines.execution.slurm import slurm

    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job="7")
    monkeypatch.setattr(slurm, "accounts", lambda names: seen("7", "RUNNING"))
    monkeypatch.setattr(Scripted, "_accounted", Reconciler._accounted)
    reconciler = Scripted(tmp_path, {})
    twice(reconciler, task)
    assert reconciler.taken == ["trial d1"]


def test_cancelled_before_it_was_submitted_it_is_not(tmp_path, task):
    jobs.note(task.folder, "cancelled", reason="it was cancelled")
    reconciler = Scripted(tmp_path, {})
    assert reconciler.step([task]) == {"trial d1": "it was cancelled"}
    assert state_of(task.folder) == ("cancelled", "it was cancelled")
    jobs.note(task.folder, "retry")
    reconciler.step([task])
    assert reconciler.taken == ["trial d1"]


def test_a_stage_that_this_machine_is_at_is_not_submitted(tmp_path, task):
    reconciler = Scripted(tmp_path, {})
    with file_lock(task.folder):
        assert reconciler.step([task]) == {}
    assert reconciler.taken == []


def test_parts_left_unjoined_are_joined_by_one_more_job(tmp_path):
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
    """Slurm's answers to sbatch, one after the other; an exception is raised."""

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


def test_more_than_may_be_submitted_goes_in_smaller_arrays(tmp_path, monkeypatch):
    sbatch = Sbatch(TooMany("MaxSubmitJob"), TooMany("MaxSubmitJob"))
    monkeypatch.setattr(launch, "submit", sbatch)
    monkeypatch.setattr(Scripted, "_submit", Reconciler._submit)
    reconciler, tasks = Scripted(tmp_path, {}), array(tmp_path, 8)
    for _ in range(4):
        reconciler.not_before = 0.0
        assert reconciler.step(tasks) == {}
    assert sbatch.sizes[:3] == [8, 4, 2]


def test_what_slurm_refuses_for_good_is_a_failure_in_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "submit", Sbatch(Refused("Invalid account")))
    monkeypatch.setattr(Scripted, "_submit", Reconciler._submit)
    reconciler, tasks = Scripted(tmp_path, {}), array(tmp_path, 2)
    assert reconciler.step(tasks) == {task.name: "Invalid account" for task in tasks}
    assert reconciler.step(tasks) == {task.name: "Invalid account" for task in tasks}


def test_a_silent_slurmctld_is_asked_again_less_and_less_often(tmp_path, monkeypatch):
    sbatch = Sbatch(*[Delayed("Unable to contact")] * 3)
    monkeypatch.setattr(launch, "submit", sbatch)
    monkeypatch.setattr(Scripted, "_submit", Reconciler._submit)
    reconciler, tasks = Scripted(tmp_path, {}), array(tmp_path, 1)
    waits = []
    for _ in range(3):
        reconciler.not_before = 0.0
        reconciler.step(tasks)
        waits.append(reconciler.patience)
    assert waits[1:] == [2 * waits[0], 4 * waits[0]]
    assert "Unable to contact" in (tmp_path / "s" / "driver.note").read_text()
    reconciler.not_before = time.time() + 60
    reconciler.step(tasks)
    assert len(sbatch.sizes) == 3  # not before its time
