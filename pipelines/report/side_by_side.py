"""A grid of samples of the compared families, with equal classes, indices and seed."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.sampling.finalize import list_images, read_image
from pipelines.sampling.store import SAMPLES
from pipelines.workspace.store import Home
from var_scaling.disk import is_done

_CLASSES, _IMAGES = 8, 6  # most rows and images per row


def side_by_side(home: Home, images: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """Draw the grid into `folder`, and return {caption: PNG path}.

    It shows the first comparison condition, each arm with its largest training budget and its first
    seed. Empty if no two arms can be compared.
    """
    from analysis.comparison.conditions import conditions
    from analysis.plots.families import sample_grid
    from analysis.plots.style import save

    comparisons = conditions(images)
    if not comparisons:
        return {}
    samples = {}
    for arm, rows in comparisons[0].rows.groupby("arm", sort=False):
        row = rows.sort_values(["train_flops", "seed"], ascending=[False, True]).iloc[0]
        sample_folder = home.trial(row["sweep"], row["trial"]) / SAMPLES / row["set"]
        if is_done(sample_folder):
            samples[f"{arm}, depth {row.depth}"] = _images(sample_folder)
    if len(samples) < 2:
        return {}
    png = save(sample_grid(samples), folder, "families_samples")
    caption = (
        f"Samples “{comparisons[0].set}”, one row per class. Images at the same position in each "
        "column have the same class, index and seed, but the families use the random numbers "
        "differently."
    )
    return {caption: png}


def _images(folder: Path) -> np.ndarray:
    """uint8 (K, n, W, W, 3): the first n images of the first K classes of a set."""
    by_class: dict[int, list[Path]] = {}
    for image in sorted(list_images(folder), key=lambda image: (image["class"], image["index"])):
        by_class.setdefault(image["class"], []).append(folder / image["file"])
    classes = sorted(by_class)[:_CLASSES]
    count = min(_IMAGES, *(len(by_class[label]) for label in classes))
    return np.stack([
        np.stack([read_image(path) for path in by_class[label][:count]]) for label in classes
    ])  # fmt: skip
