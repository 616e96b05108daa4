"""A sweep expanded into its stages, once: all that plans, shows, runs or ends them walks these."""

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
from pipelines.workspace.store import Home, has_results, in_use, init_run_dir, refuse
from var_scaling.config import ImportedTokenizer
from var_scaling.experiment import Sweep
from var_scaling.record import Record, difference


class Need(NamedTuple):
    """Another stage: finished, or with its checkpoint of a step on disk."""

    address: str
    step: int | None = None


@dataclass(frozen=True)
class Stage:
    """One directory and what is to lie in it."""

    kind: StageKind
    address: str  # its identity: the path below the home
    name: str  # for people and --only
    directory: Path
    config: Any  # a record of `kind.configs`
    sweep: str
    needs: tuple[Need, ...] = ()
    provided: bool = False  # imported: must be there, is never run

    @property
    def title(self) -> str:
        """Unique within a sweep: "trial d16"."""
        return f"{self.kind.name} {self.name}"

    @property
    def config_path(self) -> Path:
        return self.directory / self.kind.config_file


Stages = tuple[Stage, ...]


def sweep_stages(home: Home, sweep: Sweep) -> Stages:
    """Every stage of `sweep`, each behind what it needs, trials in the order of the sweep.

    Raises ValueError where two configs want one directory, or a name is not to be had.
    """
    found: dict[str, Stage] = {}

    def add(config: Record, provided: bool) -> str:
        kind = kind_of(config)
        directory = kind.directory(home, sweep.name, config)
        address = directory.relative_to(home.root).as_posix()
        provided = provided or isinstance(config, ImportedTokenizer)
        needs = tuple(Need(add(one, provided), step) for one, step in kind.requires(config))
        known = found.get(address)
        if known is not None:
            _refuse_another(known, config)
            provided = provided and known.provided
        name = kind.display(config)
        stage = Stage(kind, address, name, directory, config, sweep.name, needs, provided)
        found[address] = stage
        return address

    for trial in sweep.trials:
        add(trial, provided=False)
    for model in sweep.imported:
        add(model, provided=True)
    for floor in sweep.floors:
        add(floor, provided=False)
    drawn: dict[tuple[str, str], str] = {}  # which stage draws each set of samples
    for score in sweep.scored_sets:
        address = add(score, provided=False)
        first = drawn.setdefault((score.trial.name, score.scoring.name), address)
        if first != address:  # it looks at what that one draws, instead of waiting for a lock
            stage = found[address]
            found[address] = replace(stage, needs=(*stage.needs, Need(first)))
    return tuple(sorted(found.values(), key=lambda stage: KINDS.index(stage.kind)))


def _refuse_another(known: Stage, config: Record) -> None:
    if known.config != config:
        lines = difference(known.config.model_dump(mode="json"), config.model_dump(mode="json"))
        raise ValueError(f"two configs want {known.address}: {'; '.join(lines)}")


def of_kind(stages: Stages, *kinds: StageKind) -> Stages:
    return tuple(stage for stage in stages if stage.kind in kinds)


def refuse_mismatch(stages: Stages) -> None:
    """Raise Drift if a directory belongs to another config; nothing is written.

    What failed before its first step left nothing to lose: its directory is free for any config.
    """
    for stage in stages:
        if _is_bound(stage.directory) and not is_damaged(stage.config_path):
            refuse(stage.config_path, stage.kind.mismatch(stage.config_path, stage.config))


def _is_bound(directory: Path) -> bool:
    record = jobs.latest(directory)
    live = record is not None and record.live
    return has_results(directory) or in_use(directory) or live


def init_run_dirs(stages: Stages) -> None:
    """Every directory gets its config now: who looks sees what is to come.

    Tokens get theirs as they are encoded: their manifest lists shards.
    """
    for stage in of_kind(stages, TOKENIZER, TRIAL, NETWORK, FLOOR, SCORE):
        if not stage.provided:
            init_run_dir(stage.directory, stage.kind.config_file, stage.config)
