"""MLflow's door: mirror the disk into one experiment a sweep. Replayed twice, it is there once.

The disk is the truth. The mirror remembers on each run how far it got, so an outage of any length
costs nothing but the view, and a deleted database is filled again from the beginning. What is made
with a model later, samples and their numbers, goes to its run, though that is at its end.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipelines.evaluation import scores as measured
from pipelines.execution.status import View, overview
from pipelines.results.artifacts import Made, made_in
from pipelines.results.params import (
    attempt_tags,
    imported_params,
    run_name,
    tokenizer_params,
    trial_params,
)
from pipelines.stages.graph import Stage, sweep_stages
from pipelines.workspace.store import IMPORTED, Home, held
from var_scaling.disk import whole
from var_scaling.experiment import Sweep
from var_scaling.metrics import Line, read_metrics

_BATCH = 900  # MLflow takes at most 1,000 metrics a call
_PREFIX = {"train": "train", "validation": "val"}
_MIRRORED = "var_scaling.mirrored"  # how far a run has come; with /PLACE: what was made there
_ADDRESS = "var_scaling.address"
# The state of a stage as MLflow has it: a stopped run goes on later, so it is not at an end.
ENDS = {
    "done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "stopped": "KILLED",
    "cancelled": "KILLED", "damaged": "FINISHED", "to repair": "FINISHED",
}  # fmt: skip


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

    with held(home.root, wait=60, file="mlflow.lock"):
        if uri is None and not _file(home).exists():
            # MLflow makes its tables one by one: killed half-way, it would refuse them.
            with whole(_file(home)) as beside:
                MlflowClient(f"sqlite:///{beside}").search_experiments()
    return MlflowClient(uri or database(home))


class Mirror:
    """A connection to the tracking server of a home, and the runs it has found there."""

    def __init__(self, home: Home, sweep: Sweep, uri: str | None = None):
        self.home, self.sweep, self.uri = home, sweep, uri
        self.stages = sweep_stages(home, sweep)
        self.client = client(home, uri)
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, str] = {}
        self._seen: dict[str, dict[str, Any]] = {}
        self._stamps: dict[str, dict[str, str]] = {}  # by run and place, of what was brought

    def catch_up(self, views: list[View] | None = None) -> None:
        """Bring every run of the sweep to what the disk, or `views` of it, says now."""
        known = overview(self.stages) if views is None else views
        states = {(view.kind, view.name): view.state for view in known}
        bring = {
            "tokenizer": self._bring_tokenizer, "trial": self._bring_trial,
            "imported": self._bring_imported,
        }  # fmt: skip
        for stage in self.stages:
            state = states[stage.kind.name, stage.name]
            if state != "waiting" and stage.kind.name in bring:
                bring[stage.kind.name](stage, state)

    def _bring_tokenizer(self, stage: Stage, state: str) -> None:
        run = self._run("tokenizers", stage.name, stage.address, "tokenizer")
        params = tokenizer_params(stage.config)
        self._follow(run, stage.directory, state, params, ["reconstructions.png"])
        self._bring(run, made_in(stage.directory))

    def _bring_trial(self, stage: Stage, state: str) -> None:
        run = self._run(stage.sweep, run_name(stage.config), stage.address, "trial")
        self._follow(run, stage.directory, state, trial_params(self.sweep, stage.config), [])
        self._bring(run, made_in(stage.directory))
        if state == "done":  # what is measured later is of the weights at the end
            self._tell_columns(run, stage.directory, stage.config.steps)

    def _bring_imported(self, stage: Stage, state: str) -> None:
        """A model trained elsewhere has a run once something was made with it."""
        if not (made := made_in(stage.directory)):
            return
        run = self._run(IMPORTED, stage.name, stage.address, "imported")
        if not self._seen[run]:
            self._seen[run] = {"state": "FINISHED"}
            self._log_facts(run, imported_params(stage.config), {}, self._seen[run])
            self.client.set_terminated(run, "FINISHED")
        self._bring(run, made)
        self._tell_columns(run, stage.directory, 0)

    def publish_law(
        self, scalars: dict[str, float], table: dict[str, list[Any]], files: list[Path]
    ) -> None:
        """The run that holds the law: its numbers, its table, figures and report."""
        run = self._run(self.sweep.name, "law", f"{self.sweep.name}/law", "law")
        # One time for all, so that the same number again is the same row.
        self._log(run, [_metric(name, value, 0, 0) for name, value in scalars.items()])
        rows = [list(row) for row in zip(*table.values(), strict=True)]
        self.client.log_dict(run, {"columns": list(table), "data": rows}, "laws.json")
        for path in files:
            self.client.log_artifact(run, str(path), "report")
        self.client.set_terminated(run, "FINISHED")

    def url(self, base: str) -> str:
        """The comparison page of the sweep's trials."""
        experiment = self._experiment(self.sweep.name)
        found = self.client.search_runs([experiment], "tags.kind = 'trial'", max_results=200)
        found = sorted(found, key=lambda run: float(run.data.params.get("log10_N", 0)))
        runs = quote(json.dumps([run.info.run_id for run in found]))
        return f"{base}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([experiment]))}"

    def _follow(
        self, run: str, folder: Path, state: str, params: dict[str, Any], pictures: list[str]
    ) -> None:
        lines = read_metrics(folder / "metrics.jsonl")
        seen = self._seen[run]
        new = [line for line in lines if line["step"] > seen.get(line["kind"], 0)]
        status = ENDS.get(state, "RUNNING")
        if not new and seen.get("state") == status:
            return
        self._log(run, [metric for line in new for metric in _metrics(line)])
        reached = {**seen, **{line["kind"]: line["step"] for line in new}, "state": status}
        self._log_facts(run, params, attempt_tags(folder), reached)
        for picture in pictures:
            if (folder / picture).exists():
                self.client.log_artifact(run, str(folder / picture))
        if status == "RUNNING":
            self.client.update_run(run, status)
        else:
            self.client.set_terminated(run, status)
        self._seen[run] = reached

    def _bring(self, run: str, found: list[Made]) -> None:
        """Pictures and numbers of what was made, where the run has not these very ones."""
        for made in found:
            stamp = made.stamp  # before the files are read: what changes meanwhile comes next time
            if self._stamps[run].get(made.place) == stamp:
                continue
            for file in made.files:
                self.client.log_artifact(run, str(file), made.place)
            # At the time they were written: told again they are the same row, measured anew later.
            self._tell(run, made.numbers(), made.owns, made.written_ms, 0)
            self._stamp(run, made.place, stamp)

    def _tell_columns(self, run: str, folder: Path, step: int) -> None:
        """What the results row has of what was made, by its names: so a reader finds it here."""
        found, known = measured.columns(folder), json.loads(self._stamps[run].get("row", "{}"))
        if found != known:
            numbers = {name: found[name] for name in measured.NUMBERS if name in found}
            now = time.time_ns() // 1_000_000
            self._tell(run, numbers, measured.NUMBERS.__contains__, now, step)
            for name in measured.WORDS:
                if found.get(name) != known.get(name):
                    self.client.set_tag(run, name, found.get(name, ""))
            self._stamp(run, "row", json.dumps(found))

    def _tell(
        self, run: str, numbers: dict[str, float], mine: Callable[[str], bool], at: int, step: int
    ) -> None:
        """Log `numbers`; what else of `mine` the run shows is no more, and becomes NaN."""
        shown = self.client.get_run(run).data.metrics
        gone = {name: math.nan for name, was in shown.items() if mine(name) and not math.isnan(was)}
        self._log(run, [_metric(name, value, at, step) for name, value in (gone | numbers).items()])

    def _stamp(self, run: str, place: str, stamp: str) -> None:
        self.client.set_tag(run, f"{_MIRRORED}/{place}", stamp)
        self._stamps[run][place] = stamp

    def _log(self, run: str, metrics: list[Any]) -> None:
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + _BATCH])

    def _log_facts(
        self, run: str, params: dict[str, Any], tags: dict[str, str], reached: dict[str, Any]
    ) -> None:
        from mlflow.entities import Param, RunTag

        facts = [Param(name, str(value)) for name, value in params.items()]
        labels = [RunTag(name, value) for name, value in tags.items()]
        labels.append(RunTag(_MIRRORED, json.dumps(reached)))
        self.client.log_batch(run, params=facts, tags=labels)

    def _run(self, experiment: str, name: str, address: str, kind: str) -> str:
        """The run of `address`, found by its tag or made."""
        if address in self._runs:
            return self._runs[address]
        place = self._experiment(experiment)
        run = self._found(place, address)
        if run is None:
            with held(self.home.root, wait=60, file="mlflow.lock"):  # two verbs may end at once
                tags = {_ADDRESS: address, "kind": kind, "sweep": experiment}
                run = self._found(place, address) or self.client.create_run(
                    place, run_name=name, tags=tags
                )
        number, tags = str(run.info.run_id), run.data.tags
        self._runs[address] = number
        self._seen[number] = json.loads(tags.get(_MIRRORED, "{}"))
        places = [name for name in tags if name.startswith(f"{_MIRRORED}/")]
        self._stamps[number] = {name.removeprefix(f"{_MIRRORED}/"): tags[name] for name in places}
        return number

    def _found(self, experiment: str, address: str) -> Any:
        wanted = f"tags.`{_ADDRESS}` = '{address}'"
        return next(iter(self.client.search_runs([experiment], wanted, max_results=1)), None)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            known = self.client.get_experiment_by_name(name)
            # A server keeps files where it was told to; without one they lie in the home.
            place = None if self.uri else (self.home.root / "mlartifacts").as_uri() + f"/{name}"
            self._experiments[name] = (
                known.experiment_id
                if known
                else self.client.create_experiment(name, artifact_location=place)
            )
        return self._experiments[name]


def _metrics(line: Line) -> list[Any]:
    """A metrics line as MLflow metrics: `train/…` and `val/…`, lists spread over `…/k1`, `…/k2`."""
    prefix, metrics = _PREFIX[line["kind"]], []
    for name, value in line.items():
        if name in ("kind", "step", "time_ms") or value is None:
            continue
        values = value if isinstance(value, list) else [value]
        for k, one in enumerate(values, 1):
            key = f"{prefix}/{name}/k{k}" if isinstance(value, list) else f"{prefix}/{name}"
            metrics.append(_metric(key, one, line["time_ms"], line["step"]))
    return metrics


def _metric(name: str, value: float, time_ms: int, step: int) -> Any:
    from mlflow.entities import Metric

    return Metric(name, float(value), time_ms, step)
