"""MLflow's door: the tracker that is used if no other is named."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.tracking.tracker import Number
from pipelines.workspace.store import Home, file_lock
from var_scaling.disk import whole

_BATCH = 900  # MLflow takes at most 1,000 metrics a call
_NOTE = "var_scaling.mirrored"  # the tag of a note; with /NAME if it has one
_ADDRESS = "var_scaling.address"
_ARTIFACTS = "mlflow-artifacts:"  # below the --artifacts-destination of the server


def quiet_environment() -> dict[str, str]:
    """No telemetry, no job workers: for our own calls and for the server."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the mirror tries again by itself
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def _file(home: Home) -> Path:
    return home.root / "mlflow.db"


def database(home: Home) -> str:
    return f"sqlite:///{_file(home)}"


def client(home: Home, uri: str | None = None) -> Any:
    """MLflow's client, for those who read: of a server, or of the home's own database."""
    os.environ.update(quiet_environment())
    for noisy in ("mlflow", "alembic", "mlflow.store", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    with file_lock(home.root, wait=60, file="mlflow.lock"):
        if uri is None and not _file(home).exists():
            # MLflow makes its tables one by one: killed half-way, it would refuse them.
            with whole(_file(home)) as beside:
                MlflowClient(f"sqlite:///{beside}").search_experiments()
    return MlflowClient(uri or database(home))


class MLflowTracker:
    """A tracking server, or the database of a home. See `Tracker`."""

    def __init__(self, home: Home, uri: str | None = None):
        self.home, self.uri = home, uri
        self.where = uri or database(home)
        self.client = client(home, uri)
        self._experiments: dict[str, str] = {}
        self._found_runs: dict[str, Any] = {}  # as they were when `run` found or made them

    def run(self, experiment: str, name: str, address: str, kind: str) -> str:
        place = self.experiment(experiment)
        run = self._found(place, address)
        if run is None:
            with file_lock(
                self.home.root, wait=60, file="mlflow.lock"
            ):  # two verbs may end at once
                tags = {_ADDRESS: address, "kind": kind, "sweep": experiment}
                run = self._found(place, address) or self.client.create_run(
                    place, run_name=name, tags=tags
                )
        self._found_runs[run.info.run_id] = run
        return str(run.info.run_id)

    def notes(self, run: str) -> dict[str, str]:
        tags = self._found_runs[run].data.tags
        return {
            name.removeprefix(_NOTE).removeprefix("/"): text
            for name, text in tags.items()
            if name == _NOTE or name.startswith(f"{_NOTE}/")
        }

    def note(self, run: str, name: str, text: str) -> None:
        self.client.set_tag(run, f"{_NOTE}/{name}" if name else _NOTE, text)

    def params(self, run: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        self.client.log_batch(
            run,
            params=[Param(name, str(value)) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )

    def numbers(self, run: str, numbers: Sequence[Number]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(*number) for number in numbers]
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + _BATCH])

    def shown(self, run: str) -> dict[str, float]:
        found: dict[str, float] = self.client.get_run(run).data.metrics
        return found

    def artifact(self, run: str, file: Path, place: str = "") -> None:
        uri = self._found_runs[run].info.artifact_uri
        if not uri.startswith(_ARTIFACTS) or self.uri is not None:
            self.client.log_artifact(run, str(file), place or None)
            return
        target = self.home.root / "mlartifacts" / uri.removeprefix(f"{_ARTIFACTS}/") / place
        with whole(target / file.name) as beside:
            shutil.copyfile(file, beside)

    def table(self, run: str, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps({"columns": list(columns), "data": rows}, indent=2))
            self.artifact(run, path)

    def state(self, run: str, state: str) -> None:
        if state == "RUNNING":
            self.client.update_run(run, state)
        else:
            self.client.set_terminated(run, state)

    def close(self) -> None:
        pass

    def url(self, sweep: str, base: str) -> str:
        """The comparison page of the trials of a sweep."""
        experiment = self.experiment(sweep)
        found = self.client.search_runs([experiment], "tags.kind = 'trial'", max_results=200)
        found = sorted(found, key=lambda run: float(run.data.params.get("log10_N", 0)))
        runs = quote(json.dumps([run.info.run_id for run in found]))
        return f"{base}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment]))}"

    def _found(self, experiment: str, address: str) -> Any:
        wanted = f"tags.`{_ADDRESS}` = '{address}'"
        return next(iter(self.client.search_runs([experiment], wanted, max_results=1)), None)

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, found or made."""
        if name not in self._experiments:
            known = self.client.get_experiment_by_name(name)
            # A server keeps files where it was told to. Without one they lie in the home, wherever
            # that is moved to: the database holds no path (see `artifact`).
            place = None if self.uri else f"{_ARTIFACTS}/{name}"
            self._experiments[name] = (
                known.experiment_id
                if known
                else self.client.create_experiment(name, artifact_location=place)
            )
        return self._experiments[name]
