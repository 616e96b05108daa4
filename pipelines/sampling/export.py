"""A set of samples as one .npz, for OpenAI's evaluator: images as arr_0, their classes as arr_1."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.sampling.finalize import images_of, read_image
from var_scaling.disk import whole

_BATCH = 256  # images read at a time


def export_npz(folder: Path, out: Path) -> None:
    """Write the finished set in `folder`, in the order of drawing, by which classes are mixed.

    uint8 (N, W, W, 3) and int64 (N,), as guided-diffusion's samplers write them. Raises OSError.
    """
    from var_scaling.evaluation.archives import save_arr0

    listed = images_of(folder)

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(listed), _BATCH):
            rows = listed[start : start + _BATCH]
            yield np.stack([read_image(folder / row["file"]) for row in rows])

    with whole(out) as beside:
        save_arr0(beside, batches(), len(listed))
        labels = np.array([row["class"] for row in listed], np.int64)
        with zipfile.ZipFile(beside, "a") as archive, archive.open("arr_1.npy", "w") as member:
            np.lib.format.write_array(member, labels, allow_pickle=False)
