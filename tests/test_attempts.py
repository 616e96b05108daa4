"""Drivers and attempts: one driver per sweep, one newest attempt per stage, errors, signals."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from pipelines.stages.attempt import FAILED, HEARTBEAT, Attempt, Stopped, Superseded, at_work
from pipelines.stages.context import ProcessContext
from pipelines.workspace import driver_lock as driver
from pipelines.workspace.provenance import attempts, lost_work
from pipelines.workspace.store import FolderInUseError
from var_scaling.disk import write_json
from var_scaling.training.loop import Signal


def test_a_second_driver_gets_an_error_that_names_the_first(tmp_path):
    with (
        driver.hold_driver_lock(tmp_path, "box"),
        pytest.raises(
            FolderInUseError, match=f"pid {os.getpid()} on {socket.gethostname()}, on box"
        ),
        driver.hold_driver_lock(tmp_path, "box"),
    ):
        pass
    with driver.hold_driver_lock(tmp_path, "box"):  # the lock was released
        pass


def test_a_driver_whose_lock_was_taken_over_stops(tmp_path):
    with driver.hold_driver_lock(tmp_path, "box") as first:
        with driver.hold_driver_lock(tmp_path, "box", take_over=True) as second:
            with pytest.raises(FolderInUseError, match="this driver exits"):
                driver.check_driver(tmp_path, first)
            driver.check_driver(tmp_path, second)
        assert driver.read_driver(tmp_path) is None


def forged(folder: Path, **changes) -> None:
    with driver.hold_driver_lock(folder, "box") as me:
        record = {**vars(me), **changes}
    write_json(folder / driver.LOCK, record)


@pytest.mark.parametrize("changes", [{"pid": 2**22 - 1}, {"born": "1"}])
def test_the_lock_of_a_driver_that_died_on_this_machine_is_released(tmp_path, changes):
    forged(tmp_path, **changes)
    with driver.hold_driver_lock(tmp_path, "box"):
        assert driver.live_driver(tmp_path) is not None


@pytest.mark.parametrize("changes", [{"host": "login2"}, {"boot": "earlier"}, {"realm": "0 1"}])
def test_a_driver_on_another_machine_is_dead_after_two_minutes_without_heartbeat(tmp_path, changes):
    """Another machine, the same machine before a reboot, another user, another container."""
    forged(tmp_path, **changes)
    with (
        pytest.raises(FolderInUseError, match="is driven by"),
        driver.hold_driver_lock(tmp_path, "box"),
    ):
        pass
    past = time.time() - 200
    os.utime(tmp_path / driver.LOCK, (past, past))
    with driver.hold_driver_lock(tmp_path, "box"):
        pass


# Attempts --------------------------------------------------------------------------------------


def goes_on() -> Signal:
    return Signal.CONTINUE


def test_the_newest_attempt_counts_and_an_older_one_stops(tmp_path):
    old, new = (Attempt(tmp_path, ProcessContext(alone=False), goes_on) for _ in range(2))
    old.begin({})
    note = old.log()
    note("train", 1, {"loss": 1.0})
    new.begin({})
    for act in (lambda: old.poll_signal(2), lambda: note("train", 2, {}), lambda: old.finish({})):
        with pytest.raises(Superseded, match="superseded by attempt 2"):
            act()
    assert new.poll_signal(1) == Signal.CONTINUE
    assert not (tmp_path / "done.json").exists()


def test_the_lost_steps_of_a_killed_attempt_are_counted(tmp_path):
    first, second = (Attempt(tmp_path, ProcessContext(), goes_on) for _ in range(2))
    first.begin({"job": "1"})
    first.poll_signal(41)
    write_json(tmp_path / HEARTBEAT, {"step": 100, "seconds_per_step": 0.5, "time": 0.0})
    second.begin({"job": "2"})
    second.poll_signal(81)  # it resumed from step 80
    assert lost_work(attempts(tmp_path)) == (20, 10.0)
    assert attempts(tmp_path)[0]["reached"] == 100
    assert "lost_steps" not in attempts(tmp_path)[1]


def test_the_first_of_several_failed_processes_is_reported_as_the_cause(tmp_path):
    for rank, message in ((1, "the cause"), (0, "a connection was closed")):
        process = ProcessContext(rank=rank, world_size=2, alone=False, restart_id="7.0")
        with pytest.raises(ValueError, match=message), at_work(tmp_path, process, goes_on):
            raise ValueError(message)
    left = json.loads((tmp_path / FAILED).read_text())
    assert (left["error"], left["rank"]) == ("ValueError: the cause", 1)
    with at_work(
        tmp_path, ProcessContext(alone=False, restart_id="7.1"), goes_on
    ):  # the next attempt starts without the old error
        assert not (tmp_path / FAILED).exists()


def test_an_interrupted_process_is_not_marked_as_failed(tmp_path):
    from var_scaling.training.loop import Interrupted

    with pytest.raises(Stopped), at_work(tmp_path, ProcessContext(), goes_on):
        raise Interrupted("asked to")
    assert not (tmp_path / FAILED).exists()


def test_sigterm_requests_a_checkpoint_and_sigusr2_a_stop_that_persists():
    from pipelines.execution.slurm.worker import _Signals

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        signals = _Signals()
        os.kill(os.getpid(), signal.SIGTERM)
        assert [signals(), signals()] == [Signal.CHECKPOINT, Signal.CONTINUE]
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert [signals(), signals()] == [Signal.STOP, Signal.STOP]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
