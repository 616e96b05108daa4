"""Export a sample set as one .npz for OpenAI's evaluator: images in arr_0, classes in arr_1."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipelines.sampling.finalize import list_images, read_image
from var_scaling.disk import atomic_write

_BATCH = 256  # images read at a time


def export_npz(folder: Path, out: Path) -> None:
    """Write the finished set in `folder` to `out`. In drawing order the classes alternate.

    uint8 (N, W, W, 3) and int64 (N,), as guided-diffusion's samplers write them. Raises OSError.
    """
    from var_scaling.evaluation.archives import save_arr0

    images = list_images(folder)

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(images), _BATCH):
            rows = images[start : start + _BATCH]
            yield np.stack([read_image(folder / row["file"]) for row in rows])

    with atomic_write(out) as temporary_path:
        save_arr0(temporary_path, batches(), len(images))
        labels = np.array([row["class"] for row in images], np.int64)
        # The archive is complete with arr_0 alone, so arr_1 is appended to it.
        with (
            zipfile.ZipFile(temporary_path, "a") as archive,
            archive.open("arr_1.npy", "w") as member,
        ):
            np.lib.format.write_array(member, labels, allow_pickle=False)
