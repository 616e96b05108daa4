"""The MLflow tracker, which is used unless the settings name another one."""

import json
import logging
import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from pipelines.tracking.tracker import MetricValue
from pipelines.workspace.store import Home, file_lock
from var_scaling.disk import atomic_write

_PAGE = 100  # runs per answer of a search: 1,000 at once take 100 MB
_INSERT = """INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)
    VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (key, value, timestamp, run_uuid, step, is_nan) DO NOTHING"""
_COMPARED = 200  # runs on a page of comparisons, which lists their ids in its URL
_HELD_OUT = "val/loss"
_NOTE = "var_scaling.mirrored"  # tag of a note; followed by /NAME if the note has a name
_ADDRESS = "var_scaling.address"
_ARTIFACTS = "mlflow-artifacts:"  # relative to the server's --artifacts-destination


def quiet_environment() -> dict[str, str]:
    """Environment variables that turn off telemetry and job workers, in clients and server."""
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the mirror itself tries again
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def _query(**values: Any) -> str:
    """The part of a URL that gives each value as JSON."""
    return "&".join(f"{name}={quote(json.dumps(value))}" for name, value in values.items())


def _file(home: Home) -> Path:
    return home.root / "mlflow.db"


def database(home: Home) -> str:
    return f"sqlite:///{_file(home)}"


def client(home: Home, uri: str | None = None) -> Any:
    """An MLflow client of the server at `uri`, or of the home's database."""
    os.environ.update(quiet_environment())
    for noisy in ("mlflow", "alembic", "mlflow.store", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    with file_lock(home.root, wait=60, file="mlflow.lock"):
        if uri is None and not _file(home).exists():
            # MLflow creates its tables one by one, and rejects an incomplete database. So create
            # it under a temporary name, in case this process is killed.
            with atomic_write(_file(home)) as temporary_path:
                MlflowClient(f"sqlite:///{temporary_path}").search_experiments()
    return MlflowClient(uri or database(home))


def _table_url(base: str, experiments: Sequence[str], condition: str) -> str:
    """The URL of MLflow's table of the runs that match `condition`, smallest N first."""
    # This page takes plain values, except the list of experiments.
    look = f"searchFilter={quote(condition)}&orderByKey={quote('params.`log10_N`')}&orderByAsc=true"
    if len(experiments) == 1:
        return f"{base}/#/experiments/{experiments[0]}/runs?{look}"
    return f"{base}/#/compare-experiments/s?{_query(experiments=experiments)}&{look}"


class _Run(NamedTuple):
    """What the tracker needs to know of a run."""

    id: str
    artifact_uri: str
    tags: dict[str, str]

    @classmethod
    def of(cls, run: Any) -> "_Run":
        return cls(run.info.run_id, run.info.artifact_uri, run.data.tags)


class MLflowTracker:
    """A tracking server, or the database of a home. See `Tracker`."""

    def __init__(self, home: Home, uri: str | None = None):
        self.home, self.uri = home, uri
        self.location = uri or database(home)
        self.client = client(home, uri)
        self._experiments: dict[str, str] = {}
        # By id of an experiment: its runs by address; None: asked about one run only.
        self._known_runs: dict[str, dict[str, _Run] | None] = {}
        self._found_runs: dict[str, _Run] = {}  # by id, as they were when they were looked up
        # By run: params and tags, which are sent together with the next note.
        self._unsent: dict[str, tuple[list[Any], list[Any]]] = {}

    def run(self, experiment: str, name: str, address: str, kind: str) -> str:
        experiment_id = self.experiment(experiment)
        run = self._look_up(experiment_id, address)
        if run is None:
            # Two commands may finish at the same time, and must not create the run twice.
            with file_lock(self.home.root, wait=60, file="mlflow.lock"):
                tags = {_ADDRESS: address, "kind": kind, "sweep": experiment}
                run = self._find_run(experiment_id, address) or _Run.of(
                    self.client.create_run(experiment_id, run_name=name, tags=tags)
                )
        self._found_runs[run.id] = run
        return run.id

    def notes(self, run: str) -> dict[str, str]:
        tags = self._found_runs[run].tags
        return {
            name.removeprefix(_NOTE).removeprefix("/"): text
            for name, text in tags.items()
            if name == _NOTE or name.startswith(f"{_NOTE}/")
        }

    def note(self, run: str, name: str, text: str) -> None:
        from mlflow.entities import RunTag

        tag = RunTag(f"{_NOTE}/{name}" if name else _NOTE, text)
        params, tags = self._unsent.pop(run, ([], []))
        # MLflow stores tags after params, so a note is there only if the rest is.
        self.client.log_batch(run, params=params, tags=[*tags, tag])

    def params(self, run: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        unsent_params, unsent_tags = self._unsent.setdefault(run, ([], []))
        unsent_params += [Param(name, str(value)) for name, value in params.items()]
        unsent_tags += [RunTag(name, value) for name, value in tags.items()]

    def metrics(self, run: str, metrics: Sequence[MetricValue]) -> None:
        from mlflow.entities import Metric

        latest: dict[str, MetricValue] = {}
        for metric in sorted(metrics, key=lambda metric: (metric.step, metric.time_ms)):
            latest[metric.name] = metric
        older = [metric for metric in metrics if latest[metric.name] is not metric]
        # MLflow takes 0.1 ms for each value, mostly to find out which one is the latest. So only
        # the latest go through it; the rest of a curve goes to the home's database directly.
        if older and self.uri is None and self._insert(run, older):
            metrics = list(latest.values())
        self.client.log_batch(run, metrics=[Metric(*metric) for metric in metrics])

    def _insert(self, run: str, metrics: Sequence[MetricValue]) -> bool:
        """Insert values that are not the latest of their metric into the home's database. False if
        it cannot: another version of MLflow may have other tables.
        """
        rows = [
            # As MLflow stores it: NaN as a flag, because SQL has no NaN.
            (m.name, 0.0 if math.isnan(m.value) else m.value, m.time_ms, run, m.step,
             math.isnan(m.value))
            for m in metrics
        ]  # fmt: skip
        try:
            with closing(sqlite3.connect(_file(self.home), timeout=20)) as database, database:
                database.executemany(_INSERT, rows)
        except sqlite3.Error:
            return False
        return True

    def latest_metrics(self, run: str) -> dict[str, float]:
        metrics: dict[str, float] = self.client.get_run(run).data.metrics
        return metrics

    def artifact(self, run: str, file: Path, folder: str = "") -> None:
        uri = self._found_runs[run].artifact_uri
        if not uri.startswith(_ARTIFACTS) or self.uri is not None:
            self.client.log_artifact(run, str(file), folder or None)
            return
        target = self.home.root / "mlartifacts" / uri.removeprefix(f"{_ARTIFACTS}/") / folder
        with atomic_write(target / file.name) as temporary_path:
            shutil.copyfile(file, temporary_path)

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

    def comparison_urls(
        self, sweeps: Sequence[str], base: str, family: str | None = None, condition: str = ""
    ) -> dict[str, str]:
        """The URLs of the pages for the trials of one or more sweeps: of one family, and those that
        match `condition`, in MLflow's search syntax, if given.

        Up to 200 trials, smallest N first: the curves of the held-out loss, and all parameters and
        metrics. For more, a table that MLflow loads page by page. Raises ValueError if nothing of a
        sweep has been logged, or no trial matches.
        """
        experiments = [self._logged_experiment(sweep) for sweep in sweeps]
        conditions = ["tags.kind = 'trial'", f"params.family = '{family}'" if family else ""]
        search = " and ".join(filter(None, [*conditions, condition]))
        runs = self._search(experiments, search)
        if not runs:
            raise ValueError(f"{', '.join(sweeps)}: no trial matches {search}")
        if len(runs) > _COMPARED:
            title = f"table of more than {_COMPARED} trials"
            return {title: _table_url(base, experiments, search)}
        runs = sorted(runs, key=lambda run: float(run.data.params.get("log10_N", 0)))
        query = _query(runs=[run.info.run_id for run in runs], experiments=experiments)
        # MLflow's page of a metric is an error unless all of these are given.
        plot = _query(
            metric=_HELD_OUT, plot_metric_keys=[_HELD_OUT], plot_layout={"autosize": True},
            deselected_curves=[], last_linear_y_axis_range=[],
        )  # fmt: skip
        look = "x_axis=step&y_axis_scale=linear&line_smoothness=1&show_point=true"
        return {
            "held-out loss": f"{base}/#/metric?{query}&{plot}&{look}",
            "compare": f"{base}/#/compare-runs?{query}",
        }

    def _logged_experiment(self, sweep: str) -> str:
        """The id of the experiment of `sweep`. Raises ValueError if it does not exist."""
        experiment = self.client.get_experiment_by_name(sweep)
        if experiment is None:
            logged = ", ".join(sorted(each.name for each in self.client.search_experiments()))
            raise ValueError(
                f"{sweep}: nothing has been logged to MLflow yet; start `var-scaling run "
                f"{sweep}` or `var-scaling mirror {sweep}` first. Logged are: {logged}"
            )
        return str(experiment.experiment_id)

    def _search(self, experiments: Sequence[str], condition: str) -> list[Any]:
        """The runs that match, at most one more than a page of comparisons holds."""
        from mlflow.exceptions import MlflowException

        try:
            return list(self.client.search_runs(experiments, condition, max_results=_COMPARED + 1))
        except MlflowException as error:
            raise ValueError(f"MLflow cannot search for {condition}: {error.message}") from error

    def _look_up(self, experiment: str, address: str) -> "_Run | None":
        """The run of `address`. The second call for an experiment reads all of its runs at once,
        because more calls will follow.
        """
        if experiment not in self._known_runs:
            self._known_runs[experiment] = None
            return self._find_run(experiment, address)
        known = self._known_runs[experiment]
        if known is None:
            found = map(_Run.of, self._all_runs([experiment], ""))
            known = self._known_runs[experiment] = {
                run.tags.get(_ADDRESS, ""): run for run in found
            }
        return known.get(address)

    def _find_run(self, experiment: str, address: str) -> "_Run | None":
        condition = f"tags.`{_ADDRESS}` = '{address}'"
        found = self.client.search_runs([experiment], condition, max_results=1)
        return _Run.of(found[0]) if found else None

    def _all_runs(self, experiments: Sequence[str], condition: str) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                experiments, condition, max_results=_PAGE, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, which is created if needed."""
        if name not in self._experiments:
            existing = self.client.get_experiment_by_name(name)
            # A server has its own location for files. Without a server they are in the home. The
            # database must not hold the home's path, so that a home can be moved (see `artifact`).
            artifact_location = None if self.uri else f"{_ARTIFACTS}/{name}"
            self._experiments[name] = (
                existing.experiment_id
                if existing
                else self.client.create_experiment(name, artifact_location=artifact_location)
            )
        return self._experiments[name]
