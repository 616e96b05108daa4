"""One driver of a sweep, one newest attempt at a stage: locks, heartbeats, errors, signals."""

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
from pipelines.workspace.provenance import attempts, lost
from pipelines.workspace.store import Busy
from var_scaling.disk import write_json
from var_scaling.training.loop import Signal


def test_of_two_drivers_the_second_is_told_of_the_first(tmp_path):
    with (
        driver.driving(tmp_path, "box"),
        pytest.raises(Busy, match=f"pid {os.getpid()} on {socket.gethostname()}, on box"),
        driver.driving(tmp_path, "box"),
    ):
        pass
    with driver.driving(tmp_path, "box"):  # it let go
        pass


def test_a_driver_whose_place_was_taken_notices(tmp_path):
    with driver.driving(tmp_path, "box") as first:
        with driver.driving(tmp_path, "box", take_over=True) as second:
            with pytest.raises(Busy, match="this driver exits"):
                driver.still_driving(tmp_path, first)
            driver.still_driving(tmp_path, second)
        assert driver.owner(tmp_path) is None


def forged(folder: Path, **changes) -> None:
    with driver.driving(folder, "box") as me:
        record = {**vars(me), **changes}
    write_json(folder / driver.LOCK, record)


@pytest.mark.parametrize("changes", [{"pid": 2**22 - 1}, {"born": "1"}])
def test_a_driver_that_died_here_holds_nothing(tmp_path, changes):
    forged(tmp_path, **changes)
    with driver.driving(tmp_path, "box"):
        assert driver.alive(tmp_path) is not None


@pytest.mark.parametrize("changes", [{"host": "login2"}, {"boot": "earlier"}, {"realm": "0 1"}])
def test_a_driver_elsewhere_is_dead_after_two_minutes_of_silence(tmp_path, changes):
    """Elsewhere is another machine, its life before, another user, another container."""
    forged(tmp_path, **changes)
    with pytest.raises(Busy, match="is driven by"), driver.driving(tmp_path, "box"):
        pass
    past = time.time() - 200
    os.utime(tmp_path / driver.LOCK, (past, past))
    with driver.driving(tmp_path, "box"):
        pass


# Attempts --------------------------------------------------------------------------------------


def goes_on() -> Signal:
    return Signal.CONTINUE


def test_the_newest_attempt_counts_and_the_older_notices(tmp_path):
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


def test_what_a_killed_attempt_did_in_vain_is_counted(tmp_path):
    first, second = (Attempt(tmp_path, ProcessContext(), goes_on) for _ in range(2))
    first.begin({"job": "1"})
    first.poll_signal(41)
    write_json(tmp_path / HEARTBEAT, {"step": 100, "seconds_per_step": 0.5, "time": 0.0})
    second.begin({"job": "2"})
    second.poll_signal(81)  # it went on from step 80
    assert lost(tmp_path) == (20, 10.0)
    assert attempts(tmp_path)[0]["reached"] == 100
    assert "lost_steps" not in attempts(tmp_path)[1]


def test_of_several_processes_the_first_to_fail_is_the_cause(tmp_path):
    for rank, said in ((1, "the cause"), (0, "a connection was closed")):
        process = ProcessContext(rank=rank, world_size=2, alone=False, restart_id="7.0")
        with pytest.raises(ValueError, match=said), at_work(tmp_path, process, goes_on):
            raise ValueError(said)
    left = json.loads((tmp_path / FAILED).read_text())
    assert (left["error"], left["rank"]) == ("ValueError: the cause", 1)
    with at_work(
        tmp_path, ProcessContext(alone=False, restart_id="7.1"), goes_on
    ):  # its next life starts afresh
        assert not (tmp_path / FAILED).exists()


def test_who_was_interrupted_has_not_failed(tmp_path):
    from var_scaling.training.loop import Interrupted

    with pytest.raises(Stopped), at_work(tmp_path, ProcessContext(), goes_on):
        raise Interrupted("asked to")
    assert not (tmp_path / FAILED).exists()


def test_a_signal_asks_and_a_second_word_is_not_lost():
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
