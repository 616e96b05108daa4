"""What one job of a cluster does: a stage of a sweep or a part of one, and what it asks for."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import jobs
from pipelines.collect import parts_of
from pipelines.damage import Damage, damage_in, ended
from pipelines.resources import (
    Resources,
    encoding_parts,
    encoding_resources,
    tokenizer_resources,
    trial_resources,
)
from pipelines.settings import Cluster
from pipelines.store import Home, part_folders
from var_scaling.accounting.ledger import trial_ledger
from var_scaling.accounting.tokenizer import encoding_flops
from var_scaling.config import SomeTokenizer, Sweep, Trial
from var_scaling.datasets import DeadLeaves, ImageFiles
from var_scaling.disk import is_done

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Unit:
    """A job to be: it works in `folder`, and is not needed once `whole`, or that, is done."""

    name: str  # "tokenizer ch160", "tokens imagenet-train 3 of 16", "trial d16"
    folder: Path
    whole: Path
    resources: Resources
    words: dict[str, Any]  # what to do, as JSON: see job.py
    # All those of which this is the first. Who makes the last part joins them; where that one did
    # not live to do it, the first is not done either.
    parts: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        if ended(self.whole):
            return True
        unjoined = bool(self.parts) and all(is_done(part) for part in self.parts)
        return ended(self.folder) and not unjoined


def tokenizer_unit(home: Home, t: SomeTokenizer, cluster: Cluster) -> Unit:
    folder = home.tokenizer(t.name)
    resources = tokenizer_resources(t, cluster)
    return Unit(f"tokenizer {t.name}", folder, folder, resources, tokenizer_words(t))


def tokenizer_words(t: SomeTokenizer) -> dict[str, Any]:
    return {"kind": "tokenizer", "tokenizer": t.model_dump(mode="json")}


def token_units(
    home: Home, t: SomeTokenizer, data: DeadLeaves | ImageFiles, split: str, cluster: Cluster
) -> list[Unit]:
    """One unit, or as many as parts were begun with, or as many as the rule says."""
    whole = home.tokens(t.name, data.name, split)
    images = data.train_images if split == "train" else None
    parts = len(parts_of(whole)) or 1
    if split == "train" and not parts_of(whole) and not is_done(whole):
        parts = encoding_parts(t, data, images, cluster)
    crops = max(1, data.crops) if isinstance(data, ImageFiles) else 1
    flops = (images or 50_000) * crops * encoding_flops(t) / parts
    resources = encoding_resources(flops, cluster)
    words = {
        "kind": "tokens",
        "tokenizer": t.model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        "split": split,
    }
    name = f"tokens {t.name}/{data.name}-{split}"
    if parts == 1:
        return [Unit(name, whole, whole, resources, {**words, "part": None})]
    folders = part_folders(whole, parts)
    return [
        Unit(
            f"{name} {number + 1} of {parts}",
            folder,
            whole,
            resources,
            {**words, "part": [number, parts]},
            tuple(folders) if number == 0 else (),
        )
        for number, folder in enumerate(folders)
    ]


def trial_unit(home: Home, sweep: Sweep, trial: Trial, cluster: Cluster) -> Unit:
    folder = home.trial(sweep.name, trial.name)
    resources = trial_resources(trial, cluster)
    return Unit(f"trial {trial.name}", folder, folder, resources, trial_words(sweep.name, trial))


def trial_words(sweep: str, trial: Trial) -> dict[str, Any]:
    return {"kind": "trial", "sweep": sweep, "trial": trial.model_dump(mode="json")}


def trial_arrays(
    home: Home, sweep: Sweep, cluster: Cluster
) -> dict[tuple[Resources, str, str], list[Unit]]:
    """The trials that may share an array: they ask Slurm for the same and wait for the same tokens.

    Largest first.
    """
    by_size = sorted(sweep.trials, key=lambda trial: -trial_ledger(trial)["train_flops"])
    arrays: dict[tuple[Resources, str, str], list[Unit]] = {}
    for trial in by_size:
        unit = trial_unit(home, sweep, trial, cluster)
        asks = replace(unit.resources, at_once=None)  # of no matter to Slurm
        key = (asks, trial.tokenizer.name, trial.data.name)
        arrays.setdefault(key, []).append(unit)
    return arrays


def stage_folders(home: Home, sweep: Sweep) -> dict[str, Path]:
    """Every folder in which a job of `sweep` may work, by the name of its unit."""
    folders = {f"tokenizer {t.name}": home.tokenizer(t.name) for t in sweep.tokenizers}
    for t, data in sweep.token_sets:
        for split in SPLITS:
            whole = home.tokens(t.name, data.name, split)
            name, parts = f"tokens {t.name}/{data.name}-{split}", parts_of(whole)
            folders[name] = whole
            for number, part in enumerate(parts):
                folders[f"{name} {number + 1} of {len(parts)}"] = part
    for trial in sweep.trials:
        folders[f"trial {trial.name}"] = home.trial(sweep.name, trial.name)
    return folders


def damaged_stages(home: Home, sweep: Sweep) -> dict[str, Damage]:
    """All finished stages of `sweep` that are damaged, by name; every changed file is read."""
    folders = stage_folders(home, sweep)
    for model in sweep.imported:
        folders[f"imported {model.name}"] = home.imported(model.name)
        folders[f"tokenizer {model.tokenizer.name}"] = home.tokenizer(model.tokenizer.name)
    found = {name: damage_in(folder, thorough=True) for name, folder in folders.items()}
    return {name: one for name, one in found.items() if one is not None}


def to_be_retried(unit: Unit) -> bool:
    """Whether somebody asked to have it tried again."""
    record = jobs.latest(unit.folder)
    return record is not None and record.again


def refuse_held_elsewhere(home: Home, sweep: Sweep, where: str) -> None:
    """Raise ValueError if a job of another cluster than `where` has a stage of `sweep` in hand."""
    for name, folder in stage_folders(home, sweep).items():
        record = jobs.latest(folder)
        if record is not None and record.live and record.cluster != where and not is_done(folder):
            raise ValueError(
                f"{name} is in the hands of job {record.job} on {record.cluster}: run with "
                f"--on {record.cluster}, or `var-scaling cancel` it first "
                "(with --forget where that cluster is no more)"
            )


def sweep_units(home: Home, sweep: Sweep, cluster: Cluster) -> list[Unit]:
    """Every unit of `sweep`, in the order of need."""
    units = [tokenizer_unit(home, t, cluster) for t in sweep.tokenizers]
    for t, data in sweep.token_sets:
        units += [unit for split in SPLITS for unit in token_units(home, t, data, split, cluster)]
    return units + [unit for array in trial_arrays(home, sweep, cluster).values() for unit in array]
