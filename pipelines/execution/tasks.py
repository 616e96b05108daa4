"""Tasks: what one cluster job does (a stage of a sweep or a part of one), and its resources."""

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
from pipelines.execution.speeds.throughput import Throughput
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
from pipelines.workspace.damage import Damage, damage_in, is_complete
from pipelines.workspace.settings import Cluster
from pipelines.workspace.store import part_folders
from var_scaling.accounting.tokenizer import encoding_flops, tokenizer_train_flops
from var_scaling.disk import is_done
from var_scaling.experiment.ledger import scoring_flops, scoring_precision, trial_ledger


@dataclass(frozen=True)
class Task:
    """The work of one job. It writes `folder`, and is done once `folder` or `output_dir` is."""

    name: str  # "tokenizer ch160", "tokens imagenet-train 3 of 16", "trial d16"
    folder: Path
    output_dir: Path  # the folder of the stage; differs from `folder` for a part of a stage
    resources: Resources
    payload: dict[str, Any]  # what to do, as JSON: see payload_of
    # Only in the task of the first part: the folders of all parts. The job that finishes the last
    # part joins them. If it was killed before that, the task of the first part is not done either,
    # so that it runs again and joins them.
    parts: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        if is_complete(self.output_dir):
            return True
        unjoined = bool(self.parts) and all(is_done(part) for part in self.parts)
        return is_complete(self.folder) and not unjoined


def payload_of(stage: Stage) -> dict[str, Any]:
    """The work of `stage` as JSON: the argument of `run` of the module that it names."""
    payload = {"module": stage.kind.module, "kind": stage.kind.name}
    if stage.kind in (NETWORK, FLOOR, SCORE):
        return {**payload, "sweep": stage.sweep, "config": stage.config.model_dump_json()}
    config = stage.config.model_dump(mode="json")
    if stage.kind == TOKENIZER:
        return {**payload, "tokenizer": config}
    if stage.kind == TOKENS:
        return {**payload, **config}
    return {**payload, "sweep": stage.sweep, "trial": config}


def tasks_of(stage: Stage, cluster: Cluster, throughput: Throughput | None = None) -> list[Task]:
    """The tasks of `stage`. An encoding that has begun keeps its number of parts; for a new one
    `encoding_parts` gives the number.
    """
    if stage.provided:
        return []
    if stage.kind == TOKENS:
        return _token_tasks(stage, cluster)
    if stage.kind in (NETWORK, FLOOR, SCORE):
        precision = scoring_precision(stage.config)
        resources = encoding_resources(scoring_flops(stage.config), cluster, precision)
        return [Task(stage.title, stage.directory, stage.directory, resources, payload_of(stage))]
    if stage.kind == TOKENIZER:
        resources = tokenizer_resources(stage.config, cluster)
    else:
        resources = trial_resources(stage.config, cluster, throughput)
    return [Task(stage.title, stage.directory, stage.directory, resources, payload_of(stage))]


def _token_tasks(stage: Stage, cluster: Cluster) -> list[Task]:
    tokens, output_dir = stage.config, stage.directory
    assert isinstance(tokens, TokenSet)
    t, data = tokens.tokenizer, tokens.data
    images = data.train_images if tokens.split == "train" else None
    # The number of parts is in the names of their folders: with another number, finished parts
    # would be encoded again.
    begun = parts_of(output_dir)
    parts = len(begun) or 1
    if tokens.split == "train" and not begun and not is_done(output_dir):
        parts = encoding_parts(t, data, images, cluster)
    crops = data.views("train")
    # Only for the wall time. The number of validation images is not in the config: take that of
    # ImageNet.
    flops = (images or 50_000) * crops * encoding_flops(t) / parts
    resources = encoding_resources(flops, cluster, t.encode_precision)
    payload = payload_of(stage)
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
    """Tasks for one submission: they need equal resources and wait for the same stages."""

    tasks: list[Task]
    stages: list[Stage]
    needs: tuple[Need, ...]


def arrays_of(
    stages: Stages, cluster: Cluster, throughput: Throughput | None = None
) -> list[Array]:
    """Every task of `stages`, each array after those it needs; among trials the largest first."""
    arrays: dict[tuple[Any, ...], Array] = {}
    for stage in largest_first(stages):
        for task in tasks_of(stage, cluster, throughput):
            resources = replace(task.resources, micro_batch_size=None)  # Slurm does not use it
            # Any other stage has an array of its own, whose tasks are the parts of the stage.
            key = (resources, *stage.needs) if stage.kind == TRIAL else (stage.address,)
            array = arrays.setdefault(key, Array([], [], stage.needs))
            array.tasks.append(task)
            if not array.stages or array.stages[-1] is not stage:
                array.stages.append(stage)
    return list(arrays.values())


def largest_first(stages: Stages) -> list[Stage]:
    """Order `stages`: each after all it needs; at equal depth the largest first, so that no large
    stage runs alone at the end.
    """
    depth: dict[str, int] = {}
    for stage in stages:
        # 0: with --only, a need may not be among `stages`.
        need_depths = [depth.get(need.address, 0) for need in stage.needs]
        depth[stage.address] = 1 + max(need_depths, default=0)

    def sort_key(stage: Stage) -> tuple[int, int]:
        return depth[stage.address], -_flops(stage)

    return sorted(stages, key=sort_key)


def _flops(stage: Stage) -> int:
    """The FLOPs of `stage`; 0 for tokens and for what is imported."""
    if stage.kind == TRIAL:
        return int(trial_ledger(stage.config)["train_flops"])
    if stage.kind == TOKENIZER and not stage.provided:
        return tokenizer_train_flops(stage.config, stage.config.steps)
    return scoring_flops(stage.config) if stage.kind in (NETWORK, FLOOR, SCORE) else 0


def work_folders(stages: Stages) -> dict[str, tuple[Stage, Path]]:
    """Every folder in which a job may work: task name -> (stage, folder)."""
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
    """All finished stages that are damaged, by task name; every changed file is read."""
    folders = {name: folder for name, (_, folder) in work_folders(stages).items()}
    folders |= {stage.title: stage.directory for stage in of_kind(stages, IMPORTED)}
    damages = {name: damage_in(folder, thorough=True) for name, folder in folders.items()}
    return {name: damage for name, damage in damages.items() if damage is not None}


def retry_requested(task: Task) -> bool:
    """Whether the user requested a retry of `task`."""
    record = jobs.latest(task.folder)
    return record is not None and record.again


def refuse_unready(stages: Stages, location: str) -> None:
    """Raise ValueError if a needed tokenizer has not been imported, or if a job on a cluster other
    than `location` ("local" or the name of a cluster) works on one of `stages`.
    """
    needed = {need.address for stage in stages if not stage.provided for need in stage.needs}
    for stage in stages:
        if stage.provided and stage.address in needed and not is_done(stage.directory):
            raise ValueError(how_to_import(stage.config))
    for name, (_, folder) in work_folders(stages).items():
        record = jobs.latest(folder)
        if record is None or not record.live or record.cluster == location:
            continue
        if not is_done(folder):
            raise ValueError(
                f"job {record.job} on {record.cluster} works on {name}: run with "
                f"--on {record.cluster}, or `var-scaling cancel` it first "
                "(with --forget if that cluster no longer exists)"
            )
