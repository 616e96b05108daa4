"""The MLflow mirror: replays are idempotent, and an outage only delays it."""

import json
import re
import signal
import socket
import subprocess
from urllib.parse import unquote
from urllib.request import urlopen

import pytest
from conftest import COMMAND, trial

from pipelines.tracking.mirror import Mirror
from pipelines.tracking.mlflow import MLflowTracker
from pipelines.tracking.sync import try_mirror
from pipelines.tracking.tracker import MetricValue
from pipelines.workspace import job_log as jobs
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
