"""The section of a report that sets families beside each other, a part for each set of samples."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.comparison.families import multipliers, unequal_grounds, with_arms
from analysis.plots.families import families
from analysis.plots.style import save
from analysis.report.format import significant
from analysis.report.html import figure_of

_CAPTION = (
    "Fréchet distance of each run's samples to images held out, against its training FLOPs and the "
    "FLOPs of one sample. Lines: geometric means over seeds of one size. Dotted: as many "
    "reconstructions by the arm's tokenizer."
)


@dataclass(frozen=True)
class SetCompared:
    """What is shown of one set of samples."""

    name: str
    sentences: tuple[str, ...]  # one for each pair of arms, the better one first
    cautions: tuple[str, ...]  # in what the arms differ besides the model
    table: list[dict[str, str]]
    figure: dict[str, Any]


def sets_compared(images: pd.DataFrame, folder: Path, kinds: tuple[str, ...]) -> list[SetCompared]:
    """Each set of samples that several arms have, drawn into `folder`."""
    return list(_sets(with_arms(images), folder, kinds))


def _sets(rows: pd.DataFrame, folder: Path, kinds: tuple[str, ...]) -> Iterator[SetCompared]:
    for name, own in rows.groupby("set", sort=False):
        if own.arm.nunique() < 2:
            continue
        drawn = f"families_{name}"
        save(families(own), folder, drawn, kinds)
        yield SetCompared(
            str(name),
            _sentences(own),
            unequal_grounds(own),
            _table(own),
            figure_of(drawn, folder / f"{drawn}.svg") | {"caption": _CAPTION},
        )


def _sentences(rows: pd.DataFrame) -> tuple[str, ...]:
    """Of each pair the multiplier that is at least 1, or why there is none."""
    try:
        found = multipliers(rows, "distance", "train_flops")
    except ValueError as error:
        return (f"No multiplier of compute: {error}.",)
    said = []
    for one in found:
        mirrored = (one.value or 0.0) < 1 if one.value is not None else one.arm > one.against
        if mirrored:
            continue
        apart = "" if one.told_apart or one.value is None else "; these runs cannot tell them apart"
        said.append(f"{one.said}{apart}.")
    return tuple(said)


def _table(rows: pd.DataFrame) -> list[dict[str, str]]:
    """A row for each arm and size: its means over seeds."""
    shown = []
    for _, runs in rows.groupby(["arm", "train_flops"], sort=False):
        first, distance = runs.iloc[0], float(runs.distance.mean())
        floor = None if pd.isna(first.floor) else float(first.floor)
        shown.append({
            "arm": str(first.arm),
            "depth": str(first.depth),
            "runs": str(len(runs)),
            "parameters": f"{first.params_total:,}",
            "images seen": f"{first.images_seen:,}",
            "training FLOPs": significant(float(first.train_flops), 3),
            "FLOPs of a sample": significant(float(first.sampling_flops), 3),
            "bits an image": f"{first.bits_per_image:.0f}",
            "distance": significant(distance, 4),
            "reconstructions": significant(floor, 4),
            "above them": significant(None if floor is None else distance - floor, 3),
        })  # fmt: skip
    return shown
