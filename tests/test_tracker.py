"""A user-defined tracker, and a home that is moved.

The tracker is this module. It writes CSV files in the home: one folder per run.
"""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import trial

from pipelines.tracking.mirror import Mirror
from pipelines.tracking.mlflow import MLflowTracker
from pipelines.tracking.sync import mirror
from pipelines.tracking.tracker import MetricValue, open_tracker
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home, init_run_dir
from var_scaling.disk import write_json
from var_scaling.experiment import Sweep
from var_scaling.metrics import MetricsLog

SWEEP = Sweep(name="s", question="?", trials=(trial(),))


class CsvTracker:
    def __init__(self, root: Path):
        self.root, self.location, self.closed = root, str(root), False

    def run(self, experiment: str, name: str, address: str, kind: str) -> str:
        folder = self.root / address.replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def _kept(self, run: str, file: str) -> dict[str, Any]:
        path = Path(run) / file
        return json.loads(path.read_text()) if path.exists() else {}

    def _keep(self, run: str, file: str, new: Mapping[str, Any]) -> None:
        (Path(run) / file).write_text(json.dumps({**self._kept(run, file), **new}))

    def notes(self, run: str) -> dict[str, str]:
        return self._kept(run, "notes.json")

    def note(self, run: str, name: str, text: str) -> None:
        self._keep(run, "notes.json", {name: text})

    def params(self, run: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        self._keep(run, "params.json", {**params, **tags})

    def metrics(self, run: str, metrics: Sequence[MetricValue]) -> None:
        with open(Path(run) / "numbers.csv", "a", newline="") as file:
            csv.writer(file).writerows(metrics)

    def latest_metrics(self, run: str) -> dict[str, float]:
        with open(Path(run) / "numbers.csv", newline="") as file:
            return {name: float(value) for name, value, *_ in csv.reader(file)}

    def artifact(self, run: str, file: Path, folder: str = "") -> None:
        (Path(run) / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, Path(run) / folder)

    def table(self, run: str, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        self._keep(run, f"{name}.json", columns)

    def state(self, run: str, state: str) -> None:
        self._keep(run, "params.json", {"state": state})

    def close(self) -> None:
        self.closed = True


def open_csv(home: Home) -> CsvTracker:
    return CsvTracker(home.root / "csv")


open_tracker_of_this_module = open_csv


def trained(root: Path) -> Home:
    """A home with a trial that has logged a few lines and has a picture."""
    home, one = Home(root), SWEEP.trials[0]
    folder = home.trial("s", one.name)
    init_run_dir(folder, "trial.json", one)
    write_json(folder / "provenance.json", {"attempts": [{"commit": "abc"}]})
    log = MetricsLog(folder / "metrics.jsonl")
    for step in (1, 2):
        log("train", step, {"loss": 4.0 - step, "seconds": 1.0 * step, "images_per_second": 8.0})
    log.close()
    return home


@pytest.fixture
def settings(monkeypatch) -> Settings:
    monkeypatch.setitem(globals(), "open_tracker", open_csv)
    return Settings.model_validate({"tracking": {"module": "test_tracker"}})


def test_a_users_tracker_receives_what_mlflow_would(tmp_path, settings):
    home = trained(tmp_path)
    for _ in range(2):
        mirror(home, SWEEP, settings, follow=False, print_line=print)
    run = tmp_path / "csv" / "s-d2"
    rows = list(csv.reader((run / "numbers.csv").read_text().splitlines()))
    losses = [row for row in rows if row[0] == "train/loss"]
    assert [(float(value), int(step)) for _, value, _, step in losses] == [(3.0, 1), (2.0, 2)]
    params = json.loads((run / "params.json").read_text())
    assert params["state"] == "KILLED"  # no process works on it
    assert params["depth"] == 2
    assert not (tmp_path / "mlflow.db").exists()


def test_a_users_tracker_receives_laws_and_files(tmp_path, settings):
    home = trained(tmp_path)
    tracker = open_tracker_of_this_module(home)
    picture = tmp_path / "law.png"
    picture.write_bytes(b"picture")
    Mirror(home, SWEEP, tracker).publish_law({"law/a": 0.5}, {"alpha": [0.5]}, [picture])
    run = tmp_path / "csv" / "s-law"
    assert tracker.latest_metrics(str(run)) == {"law/a": 0.5}
    assert (run / "report" / "law.png").read_bytes() == b"picture"
    assert json.loads((run / "laws.json").read_text()) == {"alpha": [0.5]}


@pytest.mark.parametrize(
    ("module", "message"),
    [("no_such_module", "No module named"), ("json", "the module has no function open_tracker")],
)
def test_a_tracker_that_cannot_be_opened_is_reported(tmp_path, module, message):
    wrong = Settings.model_validate({"tracking": {"module": module}})
    with pytest.raises(ValueError, match=rf"\[tracking\] module = '{module}': {message}"):
        open_tracker(Home(tmp_path), wrong)


def test_a_moved_home_is_mirrored_at_its_new_path(tmp_path):
    """MLflow would write artifacts to the path at which the database was created."""
    first = trained(tmp_path / "first")
    picture = tmp_path / "law.png"
    picture.write_bytes(b"old")
    Mirror(first, SWEEP, MLflowTracker(first)).publish_law({}, {"alpha": [0.5]}, [picture])
    moved = Home(tmp_path / "second")
    shutil.move(first.root, moved.root)
    picture.write_bytes(b"new")
    mine = Mirror(moved, SWEEP, MLflowTracker(moved))
    mine.catch_up()
    mine.publish_law({}, {"alpha": [0.4]}, [picture])
    assert not first.root.exists()
    (kept,) = (moved.root / "mlartifacts").rglob("law.png")
    assert kept.read_bytes() == b"new"
    (table,) = (moved.root / "mlartifacts").rglob("laws.json")
    assert json.loads(table.read_text())["data"] == [[0.4]]
