"""Files and ports are closed to other users of the machine; ports listen only on loopback."""

import json
import os
import stat
import sys

import psutil
import pytest
from conftest import trial

from pipelines.cli import main as cli
from pipelines.execution.backend import SubmissionRejected
from pipelines.execution.slurm import submit as launch
from pipelines.execution.slurm.resources import trial_resources
from pipelines.execution.tasks import Task
from pipelines.workspace.settings import Cluster, Settings
from pipelines.workspace.snapshot import Snapshot
from pipelines.workspace.store import Home
from var_scaling.training import distributed

BOX = Cluster(partition="main", device="cpu", poll_seconds=1)


def listening() -> set[tuple[str, int]]:
    """Address and port of every TCP socket on which this process listens."""
    found = psutil.Process().net_connections(kind="tcp")
    return {tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN}


def test_processes_of_one_machine_communicate_over_loopback(tmp_path):
    before = listening()
    rendezvous_file = tmp_path / "meeting.json"
    store, address = distributed._meet(0, 1, rendezvous_file, "127.0.0.1", 10)
    (new,) = listening() - before
    message = json.loads(rendezvous_file.read_text())
    assert new == ("127.0.0.1", store.port) == (message["address"], message["port"])
    assert address == "127.0.0.1"


def test_pickles_are_in_folders_that_only_the_user_can_write(tmp_path, monkeypatch):
    """Also if an older version created the folder with open permissions."""
    import submitit

    seen = []

    def executor(self, folder, *words, **options):
        seen.append(stat.S_IMODE(folder.parent.stat().st_mode))
        raise RuntimeError("sbatch: error: no")

    monkeypatch.setattr(submitit.AutoExecutor, "__init__", executor)
    home = Home(tmp_path)
    task = Task("trial d1", tmp_path / "d1", tmp_path / "d1", trial_resources(trial(), BOX), {})
    settings = Settings(clusters={"box": BOX})
    mask = os.umask(0)
    try:
        for mode in (None, 0o777):
            if mode is not None:
                (tmp_path / "jobs").chmod(mode)
            with pytest.raises(SubmissionRejected):
                launch.submit([task], "s", home, settings, "box", Snapshot(tmp_path, "c"), {})
    finally:
        os.umask(mask)
    assert seen == [0o700, 0o700]


@pytest.mark.parametrize(("mode", "warned"), [(0o777, True), (0o755, False)])
def test_run_warns_of_a_world_writable_home(smoke, monkeypatch, capsys, mode, warned):
    monkeypatch.setattr("pipelines.cli.main.publish_and_show", lambda *words, **options: None)
    monkeypatch.setattr(sys, "argv", ["var-scaling", "run", "smoke", "--home", str(smoke)])
    before = stat.S_IMODE(smoke.stat().st_mode)
    smoke.chmod(mode)
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        smoke.chmod(before)
    assert not end.value.code
    assert ("is writable by all users" in capsys.readouterr().err) is warned
