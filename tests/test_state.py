"""The state of a sweep over polls: the end of each log; finished stages are read once."""

import io
import json
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import trial
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli.terminal import console as screen
from pipelines.execution.status import SweepState, View, overview, state_of
from pipelines.stages.graph import sweep_stages
from pipelines.workspace import log_end
from pipelines.workspace.log_end import GrowingLog, latest_line, latest_lines
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


def test_two_broken_lines_that_would_be_one_valid_line_are_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = {"kind": "train", "step": 2}
    path.write_text('{"kind": "train", "step": 1\n"loss": 1}\n' + json.dumps(whole) + "\n")
    assert read_metrics(path) == [whole]
    path.write_bytes(b'{"kind": "train", "step": 1, "x": "\xff"}\n\n7\n[]\n{"step": 3}\n')
    assert read_metrics(path) == []


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


@given(
    lines=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), max_size=20),
    cuts=st.lists(st.integers(0, 900), max_size=8),
)
def test_a_log_read_in_parts_is_the_log_read_whole(tmp_path_factory, lines, cuts):
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    written = [{"kind": kind, "step": step, "at": k} for k, (kind, step) in enumerate(lines)]
    text = "".join(json.dumps(line) + "\n" for line in written).encode()
    log, found = GrowingLog(path), []
    for cut in sorted(cuts):  # a writer may be between any two bytes
        path.write_bytes(text[:cut])
        found += log.new_lines()
    path.write_bytes(text)
    found += log.new_lines()
    assert found == written
    assert log.latest == {line["kind"]: line for line in written}
    assert log.new_lines() == []


def test_a_log_that_was_replaced_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = GrowingLog(path)
    assert log.new_lines() == []  # there is no file yet
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "validation", "step": 1}\n')
    assert len(log.new_lines()) == 2
    (tmp_path / "new").write_text('{"kind": "train", "step": 7}\n' + " " * 100 + "\n")
    (tmp_path / "new").rename(path)
    assert log.new_lines() == [{"kind": "train", "step": 7}]
    assert log.latest == {"train": {"kind": "train", "step": 7}}


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


def test_a_poll_reads_only_the_new_lines_of_the_logs_that_have_grown(home):
    names = [f"d{k}" for k in range(1, 6)]
    trials = tuple(trial(name=name) for name in names)
    stages = sweep_stages(home, Sweep(name="s", question="?", trials=trials))
    growing, still, done, *absent = (stage.directory for stage in stages[-5:])
    for folder in (growing, still, done):
        for step in range(1, 9):
            logged(folder, step, 1.0)
    write_json(done / "done.json", {"status": "done"})
    state = SweepState(stages)
    state.poll()
    state.poll()  # from now on, the logs are read from where they ended
    logged(growing, 9, 0.5)
    with (
        patch.object(log_end, "parse_lines", wraps=log_end.parse_lines) as parsed,
        patch("pipelines.execution.status.state_of", wraps=state_of) as looked_at,
    ):
        views = state.poll()
        assert state.poll() == views
    assert [len(call.args[0]) for call in parsed.call_args_list] == [1]
    assert views[-5].loss == 0.5
    folders = {call.args[0] for call in looked_at.call_args_list}
    assert {growing, still} <= folders
    assert not folders & {done, *absent}


def test_a_stage_that_begins_between_two_polls_is_seen(home):
    stages = sweep_stages(home, Sweep(name="s", question="?", trials=(trial(),)))
    state = SweepState(stages)
    assert state.poll()[-1].state == "waiting"
    logged(stages[-1].directory, 3, 1.0)
    write_json(stages[-1].directory / "provenance.json", {"attempts": [{}]})
    assert (state.poll()[-1].state, state.poll()[-1].done) == ("stopped", 3)


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


def test_on_a_terminal_many_finished_stages_share_a_bar():
    def view(number: int, state: str) -> View:
        return View("trial", f"d{number}", state, 6 if state == "running" else 12, 12, "steps")

    output = io.StringIO()
    console = screen.LiteralConsole(file=output, force_terminal=True, width=120, height=200)
    with screen.progress(console) as observe:
        observe([view(number, "done") for number in range(50)])
        assert "d49" in output.getvalue()
        before = len(output.getvalue())
        observe([*(view(number, "done") for number in range(60)), view(60, "running")])
        drawn = output.getvalue()[before:]
    last = drawn[drawn.rindex("stages that are done") :]
    assert "60/61" in last
    assert "trial d60" in last
    assert "trial d59" not in drawn
    assert "trial d49" not in last
