"""Copy the results on disk to a tracker, one experiment per sweep. Repeating it changes nothing.

The disk is the source of truth. The mirror notes in each run how far it has copied, so after an
outage it continues, and it fills a new tracker from the beginning. Samples and measurements that
are made after a run has finished are added to that run. The tracker is asked only about stages
whose files have changed.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.evaluation import scores as measured
from pipelines.execution.status import SweepState, View
from pipelines.results.artifacts import EDITS, SAMPLES, Artifact, artifacts_in
from pipelines.results.params import (
    attempt_tags,
    imported_params,
    run_name,
    tokenizer_params,
    trial_params,
)
from pipelines.stages.graph import Stage, sweep_stages
from pipelines.tracking.curves import Curve, Points
from pipelines.tracking.tracker import MetricValue, Tracker
from pipelines.workspace.damage import LOG
from pipelines.workspace.log_end import GrowingLog
from pipelines.workspace.settings import POINTS
from pipelines.workspace.store import IMPORTED, Home
from var_scaling.experiment import Sweep
from var_scaling.metrics import Line, sorted_lines

_PREFIX = {"train": "train", "validation": "val"}
_PROGRESS = ""  # name of the note with a run's progress; other notes are named by artifact
# State of a stage -> final status of its run in the tracker. Other states are RUNNING.
ENDS = {
    "done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "stopped": "KILLED",
    "cancelled": "KILLED", "damaged": "FINISHED", "to repair": "FINISHED",
}  # fmt: skip


class Mirror:
    """Copies the stages of one sweep to a tracker, and remembers what it has copied.

    `points`: how many points of a training curve are copied (see `Curve`).
    """

    def __init__(self, home: Home, sweep: Sweep, tracker: Tracker, points: Points = POINTS):
        self.sweep, self.tracker, self.points = sweep, tracker, points
        self.stages = sweep_stages(home, sweep)
        self._state = SweepState(self.stages)
        self._copied: dict[str, tuple[Any, ...]] = {}  # by address: state and files when copied
        self._runs: dict[str, str] = {}
        self._progress: dict[str, dict[str, Any]] = {}  # by run: last steps and state copied
        self._logs: dict[str, tuple[GrowingLog, Curve]] = {}  # by run
        self._stamps: dict[str, dict[str, str]] = {}  # by run and artifact path, of what was copied

    def catch_up(self, views: list[View] | None = None) -> None:
        """Update every run of the sweep to the state on disk, or to `views` of it."""
        current = self._state.poll() if views is None else views
        states = {(view.kind, view.name): view.state for view in current}
        update = {
            "tokenizer": self._update_tokenizer, "trial": self._update_trial,
            "imported": self._update_imported,
        }  # fmt: skip
        for stage in self.stages:
            state = states[stage.kind.name, stage.name]
            if state == "waiting" or stage.kind.name not in update:
                continue
            # Before the files are read, so that a later change is copied next time.
            now = (state, *_times(stage.directory))
            if self._copied.get(stage.address) != now:
                update[stage.kind.name](stage, state)
                self._copied[stage.address] = now

    def _update_tokenizer(self, stage: Stage, state: str) -> None:
        run = self._run("tokenizers", stage.name, stage.address, "tokenizer")
        params = tokenizer_params(stage.config)
        self._copy_metrics(run, stage, state, params, ["reconstructions.png"])
        self._copy_artifacts(run, artifacts_in(stage.directory))

    def _update_trial(self, stage: Stage, state: str) -> None:
        run = self._run(stage.sweep, run_name(stage.config), stage.address, "trial")
        params = trial_params(self.sweep, stage.config)
        self._copy_metrics(run, stage, state, params, [])
        self._copy_artifacts(run, artifacts_in(stage.directory))
        if state == "done":  # samples and speed are measured with the final weights only
            self._copy_columns(run, stage.directory, stage.config.steps)

    def _update_imported(self, stage: Stage, state: str) -> None:
        """An imported model has a run once it has an artifact."""
        if not (artifacts := artifacts_in(stage.directory)):
            return
        run = self._run(IMPORTED, stage.name, stage.address, "imported")
        if not self._progress[run]:
            self.tracker.params(run, imported_params(stage.config), {})
            self.tracker.state(run, "FINISHED")
            self._save_progress(run, {"state": "FINISHED"})
        self._copy_artifacts(run, artifacts)
        self._copy_columns(run, stage.directory, 0)

    def publish_law(
        self, scalars: dict[str, float], table: dict[str, list[Any]], files: list[Path]
    ) -> None:
        """Write the run `law` of the sweep: its coefficients, table, plots and report."""
        run = self._run(self.sweep.name, "law", f"{self.sweep.name}/law", "law")
        # A constant time, so that logging the same value again adds no row.
        self.tracker.metrics(
            run, [MetricValue(name, value, 0, 0) for name, value in scalars.items()]
        )
        self.tracker.table(run, "laws", table)
        for path in files:
            self.tracker.artifact(run, path, "report")
        self.tracker.state(run, "FINISHED")

    def _copy_metrics(
        self, run: str, stage: Stage, state: str, params: dict[str, Any], pictures: list[str]
    ) -> None:
        folder, progress = stage.directory, self._progress[run]
        status = ENDS.get(state, "RUNNING")
        # Before the log is read, so that a later line is copied next time.
        now = {"state": status, "log": _size_and_time(folder / LOG), "points": self.points}
        if all(progress.get(key) == value for key, value in now.items()):
            return
        log, curve = self._log_of(run, stage)
        new = curve.choose(sorted_lines(log.new_lines()), ended=status != "RUNNING")
        if progress.get("state") != status:
            self.tracker.params(run, params, attempt_tags(folder))
        elif not new and status == "RUNNING":
            return
        if new:
            self.tracker.metrics(run, [value for line in new for value in _metric_values(line)])
            for picture in pictures:
                if (folder / picture).exists():
                    self.tracker.artifact(run, folder / picture)
        if progress.get("state") != status:
            self.tracker.state(run, status)
        self._save_progress(run, {**progress, **curve.copied, **now})

    def _log_of(self, run: str, stage: Stage) -> tuple[GrowingLog, Curve]:
        """The log of `stage` from where it has been copied, and the choice of its lines."""
        if run not in self._logs:
            progress = self._progress[run]
            copied = {kind: progress[kind] for kind in _PREFIX if kind in progress}
            # With another setting, the curve is copied again: copying a point twice adds nothing.
            # Earlier versions copied all points and did not note the number.
            if progress.get("points", "all") not in ("all", self.points):
                copied.pop("train", None)
            steps = getattr(stage.config, "steps", 0)  # an imported tokenizer has none
            curve = Curve(steps, self.points, copied)
            self._logs[run] = GrowingLog(stage.directory / LOG), curve
        return self._logs[run]

    def _copy_artifacts(self, run: str, artifacts: list[Artifact]) -> None:
        """Copy the images and metrics of artifacts that are new or have changed."""
        for artifact in artifacts:
            # Taken before the files are read, so that a later change is copied next time.
            stamp = artifact.stamp
            if self._stamps[run].get(artifact.path) == stamp:
                continue
            for file in artifact.files:
                self.tracker.artifact(run, file, artifact.path)
            # With the time of writing, logging the same values again adds no rows.
            self._log(run, artifact.metrics(), artifact.owns, artifact.written_ms, 0)
            self._save_stamp(run, artifact.path, stamp)

    def _copy_columns(self, run: str, folder: Path, step: int) -> None:
        """Copy the measured columns of the results row, under the same names."""
        columns = measured.columns(folder)
        copied = json.loads(self._stamps[run].get("row", "{}"))
        if columns != copied:
            metrics = {name: columns[name] for name in measured.NUMBER_COLUMNS if name in columns}
            now = time.time_ns() // 1_000_000
            self._log(run, metrics, measured.NUMBER_COLUMNS.__contains__, now, step)
            changed = [n for n in measured.TEXT_COLUMNS if columns.get(n) != copied.get(n)]
            self.tracker.params(run, {}, {name: columns.get(name, "") for name in changed})
            self._save_stamp(run, "row", json.dumps(columns))

    def _log(
        self,
        run: str,
        metrics: dict[str, float],
        owns: Callable[[str], bool],
        time_ms: int,
        step: int,
    ) -> None:
        """Log `metrics`, and NaN for other metrics of the same owner, which no longer exist."""
        latest = self.tracker.latest_metrics(run)
        removed = {
            name: math.nan for name, old in latest.items() if owns(name) and not math.isnan(old)
        }
        values = (removed | metrics).items()
        self.tracker.metrics(
            run, [MetricValue(name, float(value), time_ms, step) for name, value in values]
        )

    def _save_stamp(self, run: str, path: str, stamp: str) -> None:
        self.tracker.note(run, path, stamp)
        self._stamps[run][path] = stamp

    def _save_progress(self, run: str, progress: dict[str, Any]) -> None:
        self.tracker.note(run, _PROGRESS, json.dumps(progress))
        self._progress[run] = progress

    def _run(self, experiment: str, name: str, address: str, kind: str) -> str:
        """The id of the run of `address`; loads its notes at the first call."""
        if address not in self._runs:
            run = self._runs[address] = self.tracker.run(experiment, name, address, kind)
            notes = self.tracker.notes(run)
            self._progress[run] = json.loads(notes.pop(_PROGRESS, "{}"))
            self._stamps[run] = notes
        return self._runs[address]


def _times(folder: Path) -> list[int | None]:
    """Changes when a line is added to the log in `folder`, or when a file is written or removed in
    the folder, its samples or its edits: files that the mirror reads are replaced, not rewritten.
    """
    folders = [str(folder)]
    for kind in (SAMPLES, EDITS):
        parent = f"{folder}/{kind}"
        if os.path.isdir(parent):
            folders += [parent, *(entry.path for entry in os.scandir(parent) if entry.is_dir())]
    size, time_ns = _size_and_time(folder / LOG) or (None, None)
    return [size, time_ns, *sorted(os.stat(path).st_mtime_ns for path in folders)]


def _size_and_time(path: Path) -> list[int] | None:
    """The size and the time of change of a file; None if it does not exist."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _metric_values(line: Line) -> list[MetricValue]:
    """A metrics line as metrics `train/…` and `val/…`; a list becomes `…/k1`, `…/k2`, …."""
    prefix = _PREFIX[line["kind"]]
    metrics: list[MetricValue] = []
    for name, value in line.items():
        if name in ("kind", "step", "time_ms") or value is None:
            continue
        values = value if isinstance(value, list) else [value]
        for k, element in enumerate(values, 1):
            key = f"{prefix}/{name}/k{k}" if isinstance(value, list) else f"{prefix}/{name}"
            metrics.append(MetricValue(key, float(element), line["time_ms"], line["step"]))
    return metrics
