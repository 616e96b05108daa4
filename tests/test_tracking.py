"""The MLflow mirror: replays are idempotent, and an outage only delays it."""

import json
import math
import re
import signal
import socket
import sqlite3
import subprocess
from collections import Counter
from contextlib import closing
from unittest.mock import patch
from urllib.parse import unquote
from urllib.request import urlopen

import pytest
from conftest import COMMAND, trial
from typer.testing import CliRunner

from pipelines.cli import main as cli
from pipelines.tracking import mlflow
from pipelines.tracking.mirror import Mirror
from pipelines.tracking.mlflow import MLflowTracker
from pipelines.tracking.sync import try_mirror
from pipelines.tracking.tracker import MetricValue
from pipelines.workspace import job_log as jobs
from pipelines.workspace.log_end import GrowingLog
from pipelines.workspace.store import Home, init_run_dir
from var_scaling.disk import write_json
from var_scaling.experiment import Sweep
from var_scaling.metrics import MetricsLog

SWEEP = Sweep(name="s", question="?", trials=(trial(),))


@pytest.fixture
def home(tmp_path) -> Home:
    """A home in which one trial has logged three lines and saved its attempt."""
    home = Home(tmp_path)
    folder = home.trial("s", "d2")
    init_run_dir(folder, "trial.json", trial())
    write_json(folder / "provenance.json", {"attempts": [{"commit": "abc"}]})
    log_lines(home, range(1, 4))
    return home


def log_lines(home: Home, steps) -> None:
    log = MetricsLog(home.trial("s", "d2") / "metrics.jsonl")
    for step in steps:
        log("train", step, {"loss": 1.0 / step, "seconds": 1.0, "images_per_second": 8.0})
        log("validation", step, {"loss": 2.0 / step, "loss_parts": [1.0, 2.0, 3.0]})
    log.close()


def logged(mirror: Mirror, name: str) -> list[tuple[int, float]]:
    (run,) = mirror.tracker.client.search_runs([mirror.tracker.experiment("s")])
    return [
        (m.step, m.value) for m in mirror.tracker.client.get_metric_history(run.info.run_id, name)
    ]


def test_a_log_replayed_twice_is_mirrored_once(home):
    for _ in range(2):
        mirror = Mirror(home, SWEEP, MLflowTracker(home))
        mirror.catch_up()
        mirror.catch_up()
    assert logged(mirror, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert logged(mirror, "val/loss_parts/k3") == [(1, 3.0), (2, 3.0), (3, 3.0)]


def test_lines_written_again_after_a_resume_count_once(home):
    Mirror(home, SWEEP, MLflowTracker(home)).catch_up()
    log_lines(home, range(2, 6))
    mirror = Mirror(home, SWEEP, MLflowTracker(home))
    mirror.catch_up()
    assert [step for step, _ in logged(mirror, "train/loss")] == [1, 2, 3, 4, 5]


def test_a_run_has_its_final_status_and_parameters(home):
    mirror = Mirror(home, SWEEP, MLflowTracker(home))
    mirror.catch_up()

    def run():
        (found,) = mirror.tracker.client.search_runs([mirror.tracker.experiment("s")])
        return found

    assert run().info.status == "KILLED"  # it is not finished and no process works on it
    write_json(home.trial("s", "d2") / "done.json", {"status": "done"})
    mirror.catch_up()
    assert run().info.status == "FINISHED"
    assert run().data.params["log10_N"] == "3.965"  # 18 x 2 x 16² weights in blocks
    assert run().data.tags["commit"] == "abc"
    assert run().info.run_name == "d2 N=9.2e+03"


def grid(home: Home, trials: int = 5, steps: int = 400) -> Sweep:
    """A sweep of trials that are done, each with a training line for every second step."""
    named = tuple(trial(name=f"d{k}", seed=k, steps=steps) for k in range(trials))
    sweep = Sweep(name="g", question="?", trials=named)
    for one in named:
        folder = home.trial("g", one.name)
        init_run_dir(folder, "trial.json", one)
        write_json(folder / "provenance.json", {"attempts": [{"commit": "abc"}]})
        lines = [
            {
                "kind": kind,
                "step": step,
                "time_ms": step,
                "loss": 1 / step,
                "seconds": 1.0,
                "images_per_second": 8.0,
            }
            for step in range(2, steps + 1, 2)
            for kind in ("train", "validation")
            if kind == "train" or step in one.evaluation_steps
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        write_json(folder / "done.json", {"status": "done"})
    return sweep


def history(tracker: MLflowTracker, name: str) -> dict[str, list[int]]:
    """The logged steps of a metric by trial."""
    client = tracker.client
    return {
        run.data.tags["var_scaling.address"]: sorted(
            metric.step for metric in client.get_metric_history(run.info.run_id, name)
        )
        for run in client.search_runs([tracker.experiment("g")])
    }


def rows(home: Home, table: str) -> set[tuple]:
    """The rows of a table of MLflow's database, with addresses instead of the ids of runs."""
    with closing(sqlite3.connect(home.root / "mlflow.db")) as database:
        query = f"""SELECT {table}.key, {table}.value, timestamp, step, is_nan, tags.value
            FROM {table} JOIN tags ON tags.run_uuid = {table}.run_uuid
            WHERE tags.key = 'var_scaling.address'"""
        return set(database.execute(query))


def test_a_thinned_curve_is_the_same_in_mlflow_however_often_it_is_copied(home):
    sweep = grid(home, trials=2)
    for _ in range(2):
        tracker = MLflowTracker(home)
        Mirror(home, sweep, tracker, points=10).catch_up()
    expected = [2, *range(40, 401, 40)]  # the lines before the evaluations are among them
    assert history(tracker, "train/loss") == {"g/d0": expected, "g/d1": expected}
    assert history(tracker, "val/loss")["g/d0"] == [200, 400]


def test_more_points_are_added_to_a_run_that_was_copied_with_fewer(home):
    sweep = grid(home, trials=1)
    for points in (4, "all", 4):
        Mirror(home, sweep, MLflowTracker(home), points).catch_up()
    assert history(MLflowTracker(home), "train/loss")["g/d0"] == list(range(2, 401, 2))


def test_values_inserted_directly_are_those_that_mlflow_stores(home, tmp_path, monkeypatch):
    """After an update of MLflow, this test shows whether its tables are still the same."""
    elsewhere = Home(tmp_path / "elsewhere")
    for place in (home, elsewhere):
        sweep = grid(place, trials=2)
        tracker = MLflowTracker(place)
        Mirror(place, sweep, tracker, "all").catch_up()
        run = tracker.run("g", "odd", "g/odd", "trial")
        values = [MetricValue("m", value, 7, 1) for value in (1.0, math.nan, 1e300)]
        for _ in range(2):
            tracker.metrics(run, [*values, MetricValue("m", 2.0, 8, 2)])
        monkeypatch.setattr(MLflowTracker, "_insert", lambda *_: False)  # of the second home
    for table in ("metrics", "latest_metrics"):
        assert rows(home, table) == rows(elsewhere, table)
    assert len(rows(home, "metrics")) > 800


def test_unknown_tables_are_left_to_mlflow(home, monkeypatch):
    monkeypatch.setattr(mlflow, "_INSERT", mlflow._INSERT.replace("metrics", "renamed"))
    sweep = grid(home, trials=1)
    Mirror(home, sweep, MLflowTracker(home), "all").catch_up()
    assert len(history(MLflowTracker(home), "train/loss")["g/d0"]) == 200


class Counted:
    """A client of MLflow that counts its calls."""

    def __init__(self, client):
        self.client, self.calls = client, Counter()

    def __getattr__(self, name):
        self.calls[name] += 1
        return getattr(self.client, name)


def test_the_mirror_asks_mlflow_a_few_times_for_each_run_and_only_for_those_that_changed(home):
    sweep = grid(home, trials=5)
    tracker = MLflowTracker(home)
    tracker.client = counted = Counted(tracker.client)
    mirror = Mirror(home, sweep, tracker)
    mirror.catch_up()
    # For each run: a search before it is created, its metrics, its final state, and the rest with
    # the note. One more search reads all runs.
    assert counted.calls["create_run"] == 5
    assert counted.calls["log_batch"] == 2 * 5
    assert counted.calls["set_terminated"] == 5
    assert counted.calls["search_runs"] <= 5 + 2
    counted.calls.clear()
    mirror.catch_up()
    assert not counted.calls
    with open(home.trial("g", "d3") / "metrics.jsonl", "a") as log:
        log.write('{"kind": "validation", "step": 401, "time_ms": 1, "loss": 0.5}\n')
    mirror.catch_up()
    assert counted.calls == {"log_batch": 2}  # its metrics and its note
    assert history(tracker, "val/loss")["g/d3"] == [200, 400, 401]


def test_a_new_mirror_reads_no_log_that_has_not_changed(home):
    sweep = grid(home, trials=5)
    Mirror(home, sweep, MLflowTracker(home)).catch_up()
    tracker = MLflowTracker(home)
    tracker.client = counted = Counted(tracker.client)
    with patch.object(GrowingLog, "new_lines", side_effect=AssertionError("a log was read")):
        Mirror(home, sweep, tracker).catch_up()
    # The first run is asked for alone, then all at once.
    assert counted.calls["search_runs"] == 2
    assert not counted.calls["log_batch"]


def test_samples_that_are_made_later_are_noticed(home):
    sweep = grid(home, trials=2)
    mirror = Mirror(home, sweep, MLflowTracker(home))
    mirror.catch_up()
    folder = home.trial("g", "d1") / "samples" / "default"
    for name in ("grid.png", "strips.png"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"picture")
        write_json(folder / "done.json", {"status": "done"})
        mirror.catch_up()
        assert list((home.root / "mlartifacts").rglob(name)), name


def test_the_status_of_a_run_follows_the_state_of_its_job(home):
    """RUNNING if preempted, queued or retried, FAILED if crashed, KILLED if cancelled."""
    folder = home.trial("s", "d2")
    mirror = Mirror(home, SWEEP, MLflowTracker(home))

    def status(note: str = "", **facts) -> str:
        if note:
            jobs.note(folder, note, **facts)
        mirror.catch_up()
        (found,) = mirror.tracker.client.search_runs([mirror.tracker.experiment("s")])
        return str(found.info.status)

    requested = {"cluster": "box", "index": None, "code": "c", "resources": {}}
    ended = {"submission": "a", "fruitless": 0, "progress": 0}
    assert status("submitting", submission="a", **requested) == "RUNNING"
    assert status("submitted", submission="a", job="7") == "RUNNING"
    assert status("ended", how="failed", reason="ValueError: no", **ended) == "FAILED"
    assert status("retry") == "KILLED"  # until it is submitted
    assert status("submitting", submission="b", **requested) == "RUNNING"
    assert status("cancelled", reason="it was cancelled") == "KILLED"


def test_a_law_published_repeatedly_is_stored_once(home):
    mirror = Mirror(home, SWEEP, MLflowTracker(home))
    for _ in range(2):
        mirror.publish_law({"law/x/alpha": 0.1}, {"law": ["x"], "alpha": [0.1]}, [])
    (run,) = mirror.tracker.client.search_runs(
        [mirror.tracker.experiment("s")], "tags.kind = 'law'"
    )
    history = mirror.tracker.client.get_metric_history(run.info.run_id, "law/x/alpha")
    assert [m.value for m in history] == [0.1]


def test_a_dead_server_gives_a_warning_and_does_not_stop_the_run(home):
    elsewhere = Home(home.root / "elsewhere")  # MLflow keeps a broken connection for its process
    elsewhere.root.mkdir()
    (elsewhere.root / "mlflow.db").write_text("no database")
    message: list[str] = []
    assert not try_mirror(
        lambda: Mirror(elsewhere, SWEEP, MLflowTracker(elsewhere)).catch_up(), message.append
    )
    assert "MLflow mirror: DatabaseError" in message[0]
    assert try_mirror(lambda: Mirror(home, SWEEP, MLflowTracker(home)).catch_up(), message.append)
    assert len(message) == 1


def test_the_comparison_page_takes_several_sweeps_and_shows_the_held_out_loss_first(home):
    tracker = MLflowTracker(home)
    for sweep in ("a", "b"):
        run = tracker.run(sweep, f"{sweep}-d2", f"{sweep}/d2", "trial")
        tracker.metrics(run, [MetricValue(n, 1.5, 0, 1) for n in ("train/loss", "val/loss")])
    held_out, compare = map(unquote, tracker.comparison_urls(["a", "b"], "http://x").values())
    pattern = r"http://x/#/{}\?runs=(.*?)&experiments=([^&]*)(.*)"
    runs, experiments, _ = re.fullmatch(pattern.format("compare-runs"), compare).groups()
    assert [len(set(json.loads(each))) for each in (runs, experiments)] == [2, 2]
    assert re.fullmatch(pattern.format("metric"), held_out).groups()[:2] == (runs, experiments)
    assert 'metric="val/loss"&plot_metric_keys=["val/loss"]' in held_out
    with pytest.raises(
        ValueError, match=r"c: nothing has been logged to MLflow yet.*: Default, a, b"
    ):
        tracker.comparison_urls(["a", "c"], "http://x")


def pages(tracker: MLflowTracker, *sweeps: str, **choice: str) -> dict[str, str]:
    urls = tracker.comparison_urls(sweeps, "http://x", **choice)
    return {title: unquote(url) for title, url in urls.items()}


def compared(tracker: MLflowTracker, *sweeps: str, **choice: str) -> list[str]:
    """The names of the runs on the comparison page."""
    (ids,) = re.findall(r"\?runs=(\[.*?\])", pages(tracker, *sweeps, **choice)["compare"])
    return [tracker.client.get_run(run).info.run_name for run in json.loads(ids)]


@pytest.fixture
def logged_families(home) -> MLflowTracker:
    """Four trials of two families in the sweeps a and b."""
    tracker = MLflowTracker(home)
    for sweep in ("a", "b"):
        for family, depth in (("var", 2), ("ar", 1)):
            run = tracker.run(sweep, f"{sweep}-{family}", f"{sweep}/{family}", "trial")
            params = {"family": family, "depth": depth, "log10_N": depth}
            tracker.params(run, params, {})
            tracker.note(run, "", "")
            tracker.metrics(run, [MetricValue("val/loss", float(depth), 0, 1)])
    return tracker


def test_the_user_chooses_the_trials_to_compare_by_sweep_family_or_filter(logged_families):
    tracker = logged_families
    assert compared(tracker, "a") == ["a-ar", "a-var"]
    assert sorted(compared(tracker, "a", "b", family="var")) == ["a-var", "b-var"]
    assert compared(tracker, "b", condition="metrics.`val/loss` < 1.5") == ["b-ar"]
    with pytest.raises(ValueError, match=r"a: no trial matches .* params.family = 'dit'"):
        pages(tracker, "a", family="dit")
    with pytest.raises(ValueError, match=r"MLflow cannot search for .*depth >"):
        pages(tracker, "a", condition="depth >")


def test_more_trials_than_a_page_compares_are_a_table_with_the_same_filter(
    logged_families, monkeypatch
):
    monkeypatch.setattr(mlflow, "_COMPARED", 1)
    tracker = logged_families
    (one,) = pages(tracker, "a").items()
    number = tracker.experiment("a")
    assert one == (
        "table of more than 1 trials",
        f"http://x/#/experiments/{number}/runs?searchFilter=tags.kind = 'trial'"
        "&orderByKey=params.`log10_N`&orderByAsc=true",
    )
    (several,) = pages(tracker, "a", "b", family="var").values()
    assert several.startswith("http://x/#/compare-experiments/s?experiments=[")
    assert "searchFilter=tags.kind = 'trial' and params.family = 'var'&" in several


def test_a_choice_of_trials_needs_a_sweep(home):
    tracker = MLflowTracker(home)
    assert tracker.location.endswith("mlflow.db")
    words = ["ui", "--family", "var", "--home", str(home.root)]
    refused = CliRunner().invoke(cli.app, words)
    assert "--family: name the sweeps" in str(refused.exception)


@pytest.mark.slow
def test_the_page_is_served_on_loopback_and_compares_the_trials(smoke):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = subprocess.Popen(
        [*COMMAND, "ui", "smoke", "--home", str(smoke), "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert page.stdout is not None
        assert page.stdout.readline().startswith(f"held-out loss: http://127.0.0.1:{port}/#/metric")
        compare = page.stdout.readline()
        assert compare.startswith(f"compare: http://127.0.0.1:{port}/#/compare-runs?runs=")
        assert compare.count("%22") == 2 * 5  # four trials and their experiment, each in quotes
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            assert answer.read() == b"OK"
    finally:
        page.send_signal(signal.SIGINT)
        assert page.wait(30) == 130
