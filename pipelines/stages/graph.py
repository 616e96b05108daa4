"""A sweep expanded into its stages. Planning, status, run and cancel all use this one list."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.stages.registry import (
    FLOOR,
    KINDS,
    NETWORK,
    SCORE,
    TOKENIZER,
    TRIAL,
    StageKind,
    is_damaged,
    kind_of,
)
from pipelines.workspace import job_log as jobs
from pipelines.workspace.store import (
    Home,
    has_results,
    in_use,
    init_run_dir,
    is_recorded,
    raise_if_mismatch,
)
from var_scaling.config import ImportedTokenizer
from var_scaling.experiment import Sweep
from var_scaling.record import Record, difference


class Need(NamedTuple):
    """A stage that must come first: finished, or with the checkpoint of `step` on disk."""

    address: str
    step: int | None = None  # None: the stage must be finished


@dataclass(frozen=True)
class Stage:
    """One directory and the config of what is computed into it."""

    kind: StageKind
    address: str  # its identity: the path below the home
    name: str  # for display and for --only
    directory: Path
    config: Any  # a record of `kind.configs`
    sweep: str
    needs: tuple[Need, ...] = ()
    provided: bool = False  # imported: it must exist already and is never run

    @property
    def title(self) -> str:
        """Unique within a sweep: "trial d16"."""
        return f"{self.kind.name} {self.name}"

    @property
    def config_path(self) -> Path:
        return self.directory / self.kind.config_file


Stages = tuple[Stage, ...]


def sweep_stages(home: Home, sweep: Sweep) -> Stages:
    """Every stage of `sweep`, each after the stages it needs, trials in the order of the sweep.

    Raises ValueError if two configs have the same directory, or if a name is not allowed.
    """
    stages: dict[str, Stage] = {}  # by address
    added: dict[int, Stage] = {}  # by id of its config, which many trials may share

    def add(config: Record, provided: bool) -> str:
        known = added.get(id(config))
        if known is not None and (provided or not known.provided):
            return known.address
        kind = kind_of(config)
        directory = kind.directory(home, sweep.name, config)
        address = directory.relative_to(home.root).as_posix()
        provided = provided or isinstance(config, ImportedTokenizer)
        # Recursive: a stage is added after all that it needs, so the dict is in a valid order. What
        # an imported model needs is not run either.
        needs = tuple(
            Need(add(required, provided), step) for required, step in kind.requires(config)
        )
        existing = stages.get(address)
        # Several trials share a tokenizer and its tokens: one stage, as long as the configs are
        # equal.
        if existing is not None:
            _refuse_conflict(existing, config)
            # Needed by a trial of this sweep too, it is run and need not exist already.
            provided = provided and existing.provided
        name = kind.display(config)
        stage = Stage(kind, address, name, directory, config, sweep.name, needs, provided)
        stages[address] = added[id(config)] = stage
        return address

    for trial in sweep.trials:
        add(trial, provided=False)
    for model in sweep.imported:
        add(model, provided=True)
    for floor in sweep.floors:
        add(floor, provided=False)
    samplers: dict[tuple[str, str], str] = {}  # the address of the stage that draws each sample set
    for score in sweep.scored_sets:
        address = add(score, provided=False)
        first = samplers.setdefault((score.trial.name, score.scoring.name), address)
        if first != address:  # it scores the samples of `first`, and must not wait for its lock
            stage = stages[address]
            stages[address] = replace(stage, needs=(*stage.needs, Need(first)))
    # `sorted` is stable, so within a kind the order of insertion remains.
    return tuple(sorted(stages.values(), key=lambda stage: KINDS.index(stage.kind)))


def _refuse_conflict(existing: Stage, config: Record) -> None:
    if existing.config != config:
        lines = difference(existing.config.model_dump(mode="json"), config.model_dump(mode="json"))
        raise ValueError(
            f"two configs have the same directory {existing.address}: {'; '.join(lines)}"
        )


def of_kind(stages: Stages, *kinds: StageKind) -> Stages:
    return tuple(stage for stage in stages if stage.kind in kinds)


def refuse_mismatch(stages: Stages) -> None:
    """Raise ConfigMismatchError if a directory belongs to another config; nothing is written.

    A stage that failed before its first step left no results: its directory accepts any config.
    """
    for stage in stages:
        path = stage.config_path
        if is_recorded(path, stage.config):
            continue
        if _is_bound(stage.directory) and not is_damaged(path):
            raise_if_mismatch(path, stage.kind.mismatch(path, stage.config))


def _is_bound(directory: Path) -> bool:
    # A running stage may not have written results yet.
    record = jobs.latest(directory)
    live = record is not None and record.live
    return has_results(directory) or in_use(directory) or live


def init_run_dirs(stages: Stages) -> None:
    """Write the config of each stage into its directory, so that the whole plan is on disk.

    Token caches are left out: their manifest also lists the shards, so it is written with them.
    """
    for stage in of_kind(stages, TOKENIZER, TRIAL, NETWORK, FLOOR, SCORE):
        if not stage.provided:
            init_run_dir(stage.directory, stage.kind.config_file, stage.config)
