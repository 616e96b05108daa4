"""The disk mirrored into a tracker, one experiment a sweep. Replayed twice, it is there once.

The disk is the truth. The mirror notes at each run how far it got, so an outage of any length
costs nothing but the view, and a tracker made anew is filled again from the beginning. What is made
with a model later, samples and their numbers, goes to its run, though that is at its end.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.evaluation import scores as measured
from pipelines.execution.status import View, overview
from pipelines.results.artifacts import Artifact, made_in
from pipelines.results.params import (
    attempt_tags,
    imported_params,
    run_name,
    tokenizer_params,
    trial_params,
)
from pipelines.stages.graph import Stage, sweep_stages
from pipelines.tracking.tracker import Number, Tracker
from pipelines.workspace.store import IMPORTED, Home
from var_scaling.experiment import Sweep
from var_scaling.metrics import Line, read_metrics

_PREFIX = {"train": "train", "validation": "val"}
_REACHED = ""  # the note of how far a run has come; the others are named by what was made there
# The state of a stage as a tracker has it: a stopped run goes on later, so it is not at an end.
ENDS = {
    "done": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "stopped": "KILLED",
    "cancelled": "KILLED", "damaged": "FINISHED", "to repair": "FINISHED",
}  # fmt: skip


class Mirror:
    """What of a sweep is at a tracker, and what has to be brought there."""

    def __init__(self, home: Home, sweep: Sweep, tracker: Tracker):
        self.sweep, self.tracker = sweep, tracker
        self.stages = sweep_stages(home, sweep)
        self._runs: dict[str, str] = {}
        self._seen: dict[str, dict[str, Any]] = {}  # how far a run has come
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
            self.tracker.params(run, imported_params(stage.config), {})
            self.tracker.state(run, "FINISHED")
            self._reach(run, {"state": "FINISHED"})
        self._bring(run, made)
        self._tell_columns(run, stage.directory, 0)

    def publish_law(
        self, scalars: dict[str, float], table: dict[str, list[Any]], files: list[Path]
    ) -> None:
        """The run that holds the law: its numbers, its table, figures and report."""
        run = self._run(self.sweep.name, "law", f"{self.sweep.name}/law", "law")
        # One time for all, so that the same number again is the same row.
        self.tracker.numbers(run, [Number(name, value, 0, 0) for name, value in scalars.items()])
        self.tracker.table(run, "laws", table)
        for path in files:
            self.tracker.artifact(run, path, "report")
        self.tracker.state(run, "FINISHED")

    def _follow(
        self, run: str, folder: Path, state: str, params: dict[str, Any], pictures: list[str]
    ) -> None:
        lines = read_metrics(folder / "metrics.jsonl")
        seen = self._seen[run]
        new = [line for line in lines if line["step"] > seen.get(line["kind"], 0)]
        status = ENDS.get(state, "RUNNING")
        if not new and seen.get("state") == status:
            return
        self.tracker.numbers(run, [number for line in new for number in _numbers(line)])
        self.tracker.params(run, params, attempt_tags(folder))
        for picture in pictures:
            if (folder / picture).exists():
                self.tracker.artifact(run, folder / picture)
        self.tracker.state(run, status)
        steps = {line["kind"]: line["step"] for line in new}
        self._reach(run, {**seen, **steps, "state": status})

    def _bring(self, run: str, found: list[Artifact]) -> None:
        """Pictures and numbers of what was made, where the run has not these very ones."""
        for made in found:
            stamp = made.stamp  # before the files are read: what changes meanwhile comes next time
            if self._stamps[run].get(made.place) == stamp:
                continue
            for file in made.files:
                self.tracker.artifact(run, file, made.place)
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
            words = [name for name in measured.WORDS if found.get(name) != known.get(name)]
            self.tracker.params(run, {}, {name: found.get(name, "") for name in words})
            self._stamp(run, "row", json.dumps(found))

    def _tell(
        self, run: str, numbers: dict[str, float], mine: Callable[[str], bool], at: int, step: int
    ) -> None:
        """Log `numbers`; what else of `mine` the run shows is no more, and becomes NaN."""
        shown = self.tracker.shown(run)
        gone = {name: math.nan for name, was in shown.items() if mine(name) and not math.isnan(was)}
        told = (gone | numbers).items()
        self.tracker.numbers(run, [Number(name, float(value), at, step) for name, value in told])

    def _stamp(self, run: str, place: str, stamp: str) -> None:
        self.tracker.note(run, place, stamp)
        self._stamps[run][place] = stamp

    def _reach(self, run: str, reached: dict[str, Any]) -> None:
        self.tracker.note(run, _REACHED, json.dumps(reached))
        self._seen[run] = reached

    def _run(self, experiment: str, name: str, address: str, kind: str) -> str:
        """The run of `address`, and what is noted of it."""
        if address not in self._runs:
            run = self._runs[address] = self.tracker.run(experiment, name, address, kind)
            notes = self.tracker.notes(run)
            self._seen[run] = json.loads(notes.pop(_REACHED, "{}"))
            self._stamps[run] = notes
        return self._runs[address]


def _numbers(line: Line) -> list[Number]:
    """A metrics line as numbers: `train/…` and `val/…`, lists spread over `…/k1`, `…/k2`."""
    prefix = _PREFIX[line["kind"]]
    numbers: list[Number] = []
    for name, value in line.items():
        if name in ("kind", "step", "time_ms") or value is None:
            continue
        values = value if isinstance(value, list) else [value]
        for k, one in enumerate(values, 1):
            key = f"{prefix}/{name}/k{k}" if isinstance(value, list) else f"{prefix}/{name}"
            numbers.append(Number(key, float(one), line["time_ms"], line["step"]))
    return numbers
