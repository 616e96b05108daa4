"""Files of a training run: each step is logged once, damaged checkpoints are skipped."""

import pytest
import torch

from var_scaling.metrics import MetricsLog, read_metrics
from var_scaling.training import checkpoint


def test_a_step_logged_twice_counts_once_and_a_torn_line_not_at_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log("train", 1, {"loss": 3.0})
    log("train", 2, {"loss": 2.0})
    log.close()
    with open(path, "a") as file:
        file.write('{"kind": "train", "st')
    assert [line["loss"] for line in read_metrics(path)] == [3.0, 2.0]
    log = MetricsLog(path)
    log("train", 2, {"loss": 1.5})
    assert [line["loss"] for line in read_metrics(path)] == [3.0, 1.5]


def flipped(whole: bytes) -> bytes:
    """Flip one bit of the tensor's data: the length is the same, and torch still loads it."""
    place = whole.index(torch.arange(100.0).numpy().tobytes()) + 200
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


def marked_as_folder(whole: bytes) -> bytes:
    """Flip one bit in the zip directory: torch reads no data and returns uninitialised memory."""
    place = whole.rindex(b".step-", 0, whole.rindex(b"/data/0")) - 8
    return whole[:place] + b"\x10" + whole[place + 1 :]


DAMAGES = {
    "flipped": flipped,
    "torn": lambda whole: whole[:200],
    "half": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "nothing but zeros": lambda whole: bytes(len(whole)),
    "a part that says it is a folder": marked_as_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_previous_checkpoint_replaces_a_damaged_one(damage, tmp_path, capsys):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"x": torch.arange(100.0)})
    names = ["step-000000002.pt", "step-000000003.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    before, last = (tmp_path / name for name in names)
    assert checkpoint.latest(tmp_path)["step"] == 3
    assert capsys.readouterr().out == ""
    last.write_bytes(damage(last.read_bytes()))
    assert checkpoint.latest(tmp_path)["step"] == 2
    assert "step-000000003.pt: unreadable" in capsys.readouterr().out
    before.write_bytes(damage(before.read_bytes()))
    assert checkpoint.latest(tmp_path) is None


def test_a_damaged_checkpoint_never_replaces_a_good_one(tmp_path):
    for step in (4, 8):
        checkpoint.save(tmp_path, step, {})
    (tmp_path / "step-000000008.pt").write_bytes(b"")
    assert checkpoint.latest(tmp_path)["step"] == 4
    for step in (6, 9):
        checkpoint.save(tmp_path, step, {})
    assert sorted(path.name[-4:] for path in tmp_path.glob("step-*.pt")) == ["6.pt", "9.pt"]


def test_a_late_save_of_an_older_attempt_does_not_overwrite_a_newer_one(tmp_path):
    for step in (200, 300, 110):
        checkpoint.save(tmp_path, step, {})
    assert checkpoint.latest(tmp_path)["step"] == 300


def test_partial_files_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".step-000000003.pt.host.1").write_bytes(b"half")
    checkpoint.save(tmp_path, 4, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000004.pt"]


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"format": 1, "step": 5, "x": Evil()}, tmp_path / "step-000000005.pt")
    assert checkpoint.latest(tmp_path) is None
