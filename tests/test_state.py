"""The state of a sweep over polls: the end of each log; finished stages are read once."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import trial
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli.terminal import console as screen
from pipelines.execution.status import SweepState, View, overview
from pipelines.stages.graph import sweep_stages
from pipelines.workspace import log_end
from pipelines.workspace.log_end import latest_line, latest_lines
from pipelines.workspace.store import Home
from var_scaling.disk import write_json
from var_scaling.experiment import Sweep
from var_scaling.metrics import MetricsLog, read_metrics

KINDS = ("train", "validation")


@given(
    lines=st.lists(st.tuples(st.sampled_from((*KINDS, "other")), st.integers(0, 40)), max_size=30),
    block=st.integers(1, 200),
    torn=st.sampled_from(["", '{"kind": "train", "st', '{"kind": "validation", "step": 9}']),
)
def test_the_latest_line_of_each_kind_is_found_at_the_end_of_a_log(
    tmp_path_factory, lines, block, torn
):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    written = [
        {"kind": kind, "step": k, "said": "é" * size} for k, (kind, size) in enumerate(lines)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in written) + torn)
    expected = {line["kind"]: line for line in written if line["kind"] in KINDS}
    with patch.object(log_end, "_BLOCK", block):
        assert latest_lines(path, KINDS) == expected


def test_interleaved_writes_of_two_machines_hide_no_valid_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra{"kind"\n[1]\n7\n')
    assert latest_line(path, "train") == {"kind": "train", "step": 1}
    assert latest_line(path, "validation") is None
    assert latest_line(tmp_path / "none.jsonl", "train") is None


def test_of_a_long_log_only_the_end_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 2000):
        log("train", step, {"loss": 1.0})
    log("validation", 1999, {"loss": 2.0})
    with patch.object(log_end.json, "loads", wraps=json.loads) as parsed:
        found = latest_lines(path, KINDS)
    assert parsed.call_count == 2
    assert [found[kind]["step"] for kind in KINDS] == [1999, 1999]
    assert found["validation"] == read_metrics(path)[-1]


@pytest.fixture
def home(tmp_path) -> Home:
    return Home(tmp_path)


def logged(folder: Path, step: int, loss: float) -> None:
    rate = {"images_per_second": 5.0, "seconds": float(step)}
    MetricsLog(folder / "metrics.jsonl")("train", step, {"loss": loss, **rate})


def test_finished_stages_are_read_once_and_running_ones_at_every_poll(home):
    stages = sweep_stages(
        home, Sweep(name="s", question="?", trials=(trial(name="d1"), trial(name="d10")))
    )
    one, two = (stage.directory for stage in stages[-2:])
    state = SweepState(stages)
    logged(one, 12, 3.0)
    write_json(one / "done.json", {"status": "done"})
    logged(two, 3, 4.0)
    first = state.poll()
    assert [(view.name, view.state) for view in first[-2:]] == [("d1", "done"), ("d10", "waiting")]
    logged(two, 6, 3.5)
    (one / "metrics.jsonl").unlink()
    second = state.poll()
    assert second[-2] is first[-2]
    assert (second[-1].done, second[-1].loss) == (6, 3.5)
    assert overview(stages)[-2].loss is None  # a new SweepState reads the disk again


def test_after_a_resume_the_current_step_is_shown(home):
    stages = sweep_stages(home, Sweep(name="s", question="?", trials=(trial(),)))
    folder = stages[-1].directory
    for step in (3, 6, 9, 4):  # the run resumed from a checkpoint of step 3
        logged(folder, step, 1.0)
    assert overview(stages)[-1].done == 4


def shown(views: list[View]) -> str:
    sweep = Sweep(name="s", question="?", trials=(trial(),))
    with screen.console.capture() as message:
        screen.console.print(screen.status_table(sweep, views), width=120)
    return message.get()


def test_many_finished_trials_are_summarised_but_problems_are_listed():
    def view(number: int, state: str = "done", note: str = "") -> View:
        loss = 3 + number / 1000 if state == "done" else None
        return View("trial", f"d{number}", state, 12, 12, "steps", loss, note=note)

    few = shown([view(number) for number in range(50)])
    assert "d49" in few
    others = [view(900, "failed", "out of memory"), view(901, "running"), view(902, note="look")]
    many = shown([*(view(number) for number in range(500)), *others])
    assert "500 stages" in many
    assert "details: --json" in many
    assert "6,000/6,000" in many
    assert "3.0000–3.4990" in many
    assert "d499" not in many
    for name in ("d900", "out of memory", "d901", "d902", "look"):
        assert name in many
    assert many.count("trial ") == 4
