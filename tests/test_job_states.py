"""Output of Slurm: names in any encoding, states of any version."""

import json
import os
import time
from pathlib import Path

import pytest
from conftest import submitting
from test_reconcile import BOX, Scripted, seen, twice
from test_reconcile import task as task  # a fixture
from typer.testing import CliRunner

from pipelines.cli import main as cli
from pipelines.execution.backend import BackendUnavailable, Queue, SubmissionUnconfirmed
from pipelines.execution.slurm import slurm
from pipelines.execution.slurm import submit as launch
from pipelines.execution.status import state_of
from pipelines.workspace import job_log as jobs
from pipelines.workspace.settings import Settings
from pipelines.workspace.snapshot import Snapshot
from pipelines.workspace.store import Home
from var_scaling.disk import write_json

# As squeue's and sacct's manuals list them, up to Slurm 24.11.
ACTIVE = (
    "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_FED",
    "REQUEUE_HOLD", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SPECIAL_EXIT",
    "RESV_DEL_HOLD", "EXPEDITING", "LAUNCH_FAILED", "POWER_UP_NODE", "RECONFIG_FAIL",
)  # fmt: skip
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
)  # fmt: skip
UNKNOWN = "HIBERNATING"


def submitted(task, job: str = "7") -> None:
    submitting(task.folder)
    jobs.note(task.folder, "submitted", submission="s", job=job)


@pytest.mark.parametrize("state", [*ACTIVE, UNKNOWN])
def test_an_active_job_is_never_submitted_again(tmp_path, task, state):
    submitted(task)
    reconciler = Scripted(tmp_path, seen("7", state))
    assert twice(reconciler, task) == {}
    assert reconciler.taken == []
    assert jobs.latest(task.folder).live
    assert ("unknown state" in seen("7", state)["7"].problem) is (state == UNKNOWN)
    there = state_of(task.folder, Queue(seen("7", state), time.time()))[0]
    assert there == ("running" if state in ("RUNNING", "COMPLETING") else "queued")


@pytest.mark.parametrize("state", ENDED)
def test_an_ended_job_is_concluded(tmp_path, task, state):
    submitted(task)
    reconciler = Scripted(tmp_path, seen("7", state))
    failed = twice(reconciler, task)
    if state in ("CANCELLED", "OUT_OF_MEMORY"):
        assert list(failed) == ["trial d1"]
        assert reconciler.taken == []
    else:
        assert failed == {}
        assert reconciler.taken == ["trial d1"]
    there = state_of(task.folder, Queue(seen("n0", state), time.time()))[0]
    assert there in ("stopped", "cancelled", "failed")


def test_an_unknown_state_is_reported(tmp_path, task):
    submitted(task)
    reconciler = Scripted(tmp_path, seen("7", UNKNOWN))
    reconciler.step([task])
    message = f"job 7 is in the unknown state {UNKNOWN}: treated as active"
    assert (tmp_path / "s" / "driver.note").read_text() == f"trial d1: {message}"
    assert state_of(task.folder, Queue(seen("7", UNKNOWN), time.time())) == ("queued", message)
    reconciler.says = seen("7", "RUNNING")
    reconciler.step([task])
    assert (tmp_path / "s" / "driver.note").read_text() == ""


def program(folder: Path, name: str, output: bytes) -> None:
    """A program of that name, first in PATH, that prints `output`."""
    (folder / f"{name}.out").write_bytes(output)
    (folder / name).write_text(f'#!/bin/sh\ncat "{folder / name}.out"\n')
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


# A name in Latin-1, in no encoding at all, with the separator, with line breaks, and an empty one.
NAMES = (b"caf\xe9", b"\xff\xfe\x80", b"a|b||RUNNING|n9|None", b"two\nlines|x", b"", b"a\x1b[31mb")


def test_squeue_is_parsed_with_any_names_of_other_jobs(programs):
    others = b"".join(b"%d|%b|PENDING||Priority\n" % (10 + k, n) for k, n in enumerate(NAMES))
    program(programs, "squeue", others + b"7_3|var-scaling-s|RUNNING|n1|None\n" + others)
    found = slurm.queue()
    assert found.find("7_3", "var-scaling-s", 3) == slurm.job_status(
        "7_3", "var-scaling-s", "RUNNING", "n1", ""
    )
    for job in ("10", "11", "12", "14", "15"):
        assert found.jobs[job].state == "PENDING", job
        assert found.jobs[job].note == "Priority"
    assert found.jobs["12"].name == "a|b||RUNNING|n9|None"


def test_sacct_is_parsed_with_any_names_of_other_jobs(programs):
    others = b"".join(b"%d|%b|COMPLETED|n1\n" % (10 + k, n) for k, n in enumerate(NAMES))
    program(programs, "sacct", others + b"7_3|var-scaling-s|CANCELLED by 1000|n1\n8|x||\n")
    found = slurm.accounts(["var-scaling-s"])
    assert found["7_3"] == slurm.job_status("7_3", "var-scaling-s", "CANCELLED", "n1", "")
    assert found["10"].state == "COMPLETED"
    assert "8" not in found  # no state at all


def test_status_works_if_another_job_has_a_latin_1_name(programs, tmp_path):
    """The whole command; such a name used to stop the driver and every `status`."""
    home = Home(tmp_path / "runs")
    submitting(home.trial("smoke", "d1"))
    jobs.note(home.trial("smoke", "d1"), "submitted", submission="s", job="7")
    program(programs, "squeue", b"6|caf\xe9|RUNNING|n2|None\n7|var-scaling-s|RUNNING|n1|None\n")
    words = ["status", "smoke", "--json", "--home", str(home.root)]
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    stages = {one["name"]: one for one in json.loads(done.stdout)["stages"]}
    assert (stages["d1"]["state"], stages["d1"]["node"]) == ("running", "n1")


@pytest.mark.parametrize("message", [b"slurmctld: caf\xe9\n", b"\xff"])
def test_error_messages_of_slurm_may_have_any_encoding(programs, message):
    program(programs, "scontrol", message)
    with open(programs / "scontrol", "a") as file:
        file.write("exit 1\n")
    with pytest.raises(BackendUnavailable, match="scontrol"):
        slurm.partition("main")


def test_a_partition_with_any_text_is_parsed(programs):
    program(programs, "scontrol", b"PartitionName=main Comment=caf\xe9 MaxTime=1:00\n")
    assert slurm.partition("main")["MaxTime"] == "1:00"


def test_latin_1_output_of_sbatch_is_not_an_error(tmp_path, task, monkeypatch):
    """submitit fails to decode the output after the submission; the next poll finds the jobs."""
    import submitit

    def submit(self, *words, **options):
        b"caf\xe9".decode()

    monkeypatch.setattr(submitit.AutoExecutor, "__init__", submit)
    home = Home(tmp_path)
    settings = Settings(clusters={"box": BOX})
    with pytest.raises(SubmissionUnconfirmed):
        launch.submit([task], "s", home, settings, "box", Snapshot(tmp_path, "c"), {})


def test_output_of_git_may_have_any_encoding(programs):
    from pipelines.workspace import provenance

    program(programs, "git", b"caf\xe9\n")
    assert provenance._git(Path("/"), "log") == "caf�"


# A job of an older submission ---------------------------------------------------------------------


def test_a_job_of_an_older_submission_exits_without_work(tmp_path, task, capsys):
    from pipelines.execution.slurm.worker import Work

    submitting(task.folder, submission="old")
    submitting(task.folder, submission="new")
    older, newer = (
        Work(str(tmp_path), str(task.folder), "{}", "box", submission, {})
        for submission in ("old", "new")
    )
    assert older() == "superseded"  # no stage was started: `words` names none
    assert "a later one" in capsys.readouterr().out
    assert (older._is_current(), newer._is_current()) == (False, True)
    jobs.note(task.folder, "cancelled", reason="by a person")
    assert newer._is_current() is False


def test_a_job_without_a_job_record_works(tmp_path):
    from pipelines.execution.slurm.worker import Work

    write_json(tmp_path / "trial.json", {})
    assert Work(str(tmp_path), str(tmp_path), "{}", "box", "s", {})._is_current() is True
