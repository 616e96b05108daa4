"""Samples of the compared families beside each other: equal classes, equal indices, equal seed."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.sampling.finalize import images_of, read_image
from pipelines.sampling.store import SAMPLES
from pipelines.workspace.store import Home
from var_scaling.disk import is_done

_CLASSES, _IMAGES = 8, 6  # shown, at most


def side_by_side(home: Home, images: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """Caption and PNG, drawn into `folder`: of the first condition compared, each arm at its
    largest training budget, its first seed. Empty where no two arms were scored alike.
    """
    from analysis.comparison.conditions import conditions
    from analysis.plots.families import beside
    from analysis.plots.style import save

    found = conditions(images)
    if not found:
        return {}
    shown = {}
    for arm, own in found[0].rows.groupby("arm", sort=False):
        row = own.sort_values(["train_flops", "seed"], ascending=[False, True]).iloc[0]
        drawn = home.trial(row["sweep"], row["trial"]) / SAMPLES / row["set"]
        if is_done(drawn):
            shown[f"{arm}, depth {row.depth}"] = _images(drawn)
    if len(shown) < 2:
        return {}
    save(beside(shown), folder, "families_samples", ("png",))
    caption = (
        f"Samples “{found[0].set}”, a row for each class. At the same place in each column: the "
        "same class, index and seed, though the families make different use of the random numbers."
    )
    return {caption: folder / "families_samples.png"}


def _images(drawn: Path) -> np.ndarray:
    """uint8 (K, n, W, W, 3): the first images of the first classes of a set."""
    by_class: dict[int, list[Path]] = {}
    for one in sorted(images_of(drawn), key=lambda one: (one["class"], one["index"])):
        by_class.setdefault(one["class"], []).append(drawn / one["file"])
    classes = sorted(by_class)[:_CLASSES]
    count = min(_IMAGES, *(len(by_class[label]) for label in classes))
    return np.stack([
        np.stack([read_image(path) for path in by_class[label][:count]]) for label in classes
    ])  # fmt: skip
