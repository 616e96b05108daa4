"""What one job of a cluster does: a stage of a sweep or a part of one, and what it asks for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.execution.slurm.resources import (
    Resources,
    encoding_parts,
    encoding_resources,
    tokenizer_resources,
    trial_resources,
)
from pipelines.execution.status import parts_of
from pipelines.stages.graph import Need, Stage, Stages, of_kind
from pipelines.stages.registry import (
    FLOOR,
    IMPORTED,
    NETWORK,
    SCORE,
    TOKENIZER,
    TOKENS,
    TRIAL,
    TokenSet,
    how_to_import,
)
from pipelines.workspace import job_log as jobs
from pipelines.workspace.damage import Damage, damage_in, ended
from pipelines.workspace.settings import Cluster
from pipelines.workspace.store import part_folders
from var_scaling.accounting.tokenizer import encoding_flops, tokenizer_train_flops
from var_scaling.disk import is_done
from var_scaling.experiment.ledger import scoring_flops, trial_ledger


@dataclass(frozen=True)
class Task:
    """A job to be: it works in `folder`, and is not needed once `whole`, or that, is done."""

    name: str  # "tokenizer ch160", "tokens imagenet-train 3 of 16", "trial d16"
    folder: Path
    output_dir: Path
    resources: Resources
    payload: dict[str, Any]  # what to do, as JSON: see words_of
    # All those of which this is the first. Who makes the last part joins them; where that one did
    # not live to do it, the first is not done either.
    parts: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        if ended(self.output_dir):
            return True
        unjoined = bool(self.parts) and all(is_done(part) for part in self.parts)
        return ended(self.folder) and not unjoined


def payload_of(stage: Stage) -> dict[str, Any]:
    """What to do for `stage`, as JSON: for `run` of the module that it names."""
    payload = {"module": stage.kind.module, "kind": stage.kind.name}
    if stage.kind in (NETWORK, FLOOR, SCORE):
        return {**payload, "sweep": stage.sweep, "config": stage.config.model_dump_json()}
    config = stage.config.model_dump(mode="json")
    if stage.kind == TOKENIZER:
        return {**payload, "tokenizer": config}
    if stage.kind == TOKENS:
        return {**payload, **config}
    return {**payload, "sweep": stage.sweep, "trial": config}


def tasks_of(stage: Stage, cluster: Cluster) -> list[Task]:
    """The jobs of `stage`: of tokens as many as were begun with, or as the rule says."""
    if stage.provided:
        return []
    if stage.kind == TOKENS:
        return _token_tasks(stage, cluster)
    if stage.kind in (NETWORK, FLOOR, SCORE):
        resources = encoding_resources(scoring_flops(stage.config), cluster)
        return [Task(stage.title, stage.directory, stage.directory, resources, payload_of(stage))]
    ask = tokenizer_resources if stage.kind == TOKENIZER else trial_resources
    resources = ask(stage.config, cluster)
    return [Task(stage.title, stage.directory, stage.directory, resources, payload_of(stage))]


def _token_tasks(stage: Stage, cluster: Cluster) -> list[Task]:
    tokens, output_dir = stage.config, stage.directory
    assert isinstance(tokens, TokenSet)
    t, data = tokens.tokenizer, tokens.data
    images = data.train_images if tokens.split == "train" else None
    begun = parts_of(output_dir)
    parts = len(begun) or 1
    if tokens.split == "train" and not begun and not is_done(output_dir):
        parts = encoding_parts(t, data, images, cluster)
    crops = data.views("train")
    flops = (images or 50_000) * crops * encoding_flops(t) / parts
    resources, payload = encoding_resources(flops, cluster), payload_of(stage)
    if parts == 1:
        return [Task(stage.title, output_dir, output_dir, resources, {**payload, "part": None})]
    folders = part_folders(output_dir, parts)
    return [
        Task(
            _part_title(stage, number, parts),
            folder,
            output_dir,
            resources,
            {**payload, "part": [number, parts]},
            tuple(folders) if number == 0 else (),
        )
        for number, folder in enumerate(folders)
    ]


def _part_title(stage: Stage, number: int, of: int) -> str:
    return f"{stage.title} {number + 1} of {of}"


@dataclass(frozen=True)
class Array:
    """Units that one submission may hold: they ask Slurm for the same and wait for the same."""

    tasks: list[Task]
    stages: list[Stage]
    needs: tuple[Need, ...]


def arrays_of(stages: Stages, cluster: Cluster) -> list[Array]:
    """Every unit of `stages`, in the order of need; of trials the largest first."""
    arrays: dict[tuple[Any, ...], Array] = {}
    for stage in largest_first(stages):
        for task in tasks_of(stage, cluster):
            asks = replace(task.resources, micro_batch_size=None)  # of no matter to Slurm
            key = (asks, *stage.needs) if stage.kind == TRIAL else (stage.address,)
            array = arrays.setdefault(key, Array([], [], stage.needs))
            array.tasks.append(task)
            if not array.stages or array.stages[-1] is not stage:
                array.stages.append(stage)
    return list(arrays.values())


def largest_first(stages: Stages) -> list[Stage]:
    """Each stage behind all that it needs; at one depth the largest first, so that a grid ends with
    small ones.
    """
    depth: dict[str, int] = {}
    for stage in stages:
        below = [depth.get(need.address, 0) for need in stage.needs]
        depth[stage.address] = 1 + max(below, default=0)

    def place(stage: Stage) -> tuple[int, int]:
        return depth[stage.address], -_flops(stage)

    return sorted(stages, key=place)


def _flops(stage: Stage) -> int:
    """What it takes; of tokens and what is imported 0."""
    if stage.kind == TRIAL:
        return int(trial_ledger(stage.config)["train_flops"])
    if stage.kind == TOKENIZER and not stage.provided:
        return tokenizer_train_flops(stage.config, stage.config.steps)
    return scoring_flops(stage.config) if stage.kind in (NETWORK, FLOOR, SCORE) else 0


def work_folders(stages: Stages) -> dict[str, tuple[Stage, Path]]:
    """Every folder in which a job may work, by the name of its unit."""
    folders: dict[str, tuple[Stage, Path]] = {}
    for stage in stages:
        if stage.kind == IMPORTED:
            continue
        folders[stage.title] = (stage, stage.directory)
        parts = parts_of(stage.directory) if stage.kind == TOKENS else []
        for number, part in enumerate(parts):
            folders[_part_title(stage, number, len(parts))] = (stage, part)
    return folders


def damaged_stages(stages: Stages) -> dict[str, Damage]:
    """All finished stages that are damaged, by name; every changed file is read."""
    folders = {name: folder for name, (_, folder) in work_folders(stages).items()}
    folders |= {stage.title: stage.directory for stage in of_kind(stages, IMPORTED)}
    found = {name: damage_in(folder, thorough=True) for name, folder in folders.items()}
    return {name: one for name, one in found.items() if one is not None}


def to_be_retried(task: Task) -> bool:
    """Whether a user asked to have it tried again."""
    record = jobs.latest(task.folder)
    return record is not None and record.again


def refuse_unready(stages: Stages, where: str) -> None:
    """Raise ValueError if an imported tokenizer that is needed is not here, or if a job of another
    cluster than `where` has one of `stages` in hand.
    """
    needed = {need.address for stage in stages if not stage.provided for need in stage.needs}
    for stage in stages:
        if stage.provided and stage.address in needed and not is_done(stage.directory):
            raise ValueError(how_to_import(stage.config))
    for name, (_, folder) in work_folders(stages).items():
        record = jobs.latest(folder)
        if record is not None and record.live and record.cluster != where and not is_done(folder):
            raise ValueError(
                f"{name} is in the hands of job {record.job} on {record.cluster}: run with "
                f"--on {record.cluster}, or `var-scaling cancel` it first "
                "(with --forget where that cluster is no more)"
            )
