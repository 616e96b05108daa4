"""Read and write feature statistics and samples as .npz files, also those of other programs.

A file of statistics has `mu` and `sigma`, as pytorch-fid reads and writes them, and the other
fields of `Statistics`. A file of samples has one array `arr_0`, as guided-diffusion's evaluator
reads it. Nothing in a file is unpickled, because unpickling can run code.

Shapes: N images, H side, D features.
"""

import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from var_scaling.disk import atomic_write, file_sha256
from var_scaling.evaluation.extractors import Extractor
from var_scaling.evaluation.statistics import Statistics, StatisticsError

_FORMAT = 1
_FIELDS = (
    "mu", "sigma", "images", "split_counts", "split_sums", "split_negentropies", "rows",
    "features", "keep", "format", "fingerprint",
)  # fmt: skip
_ASYMMETRY = 1e-5  # tolerance relative to the largest entry: the rounding error of float32


class ExternalStatistics(NamedTuple):
    """Mean and covariance that another program computed; the file's hash identifies them.

    The images and their number are unknown. There are no features for KID, precision or recall.
    """

    mean_D: Tensor
    covariance_DD: Tensor
    sha256: str  # of the file


def save_statistics(path: Path, statistics: Statistics, fingerprint: Mapping[str, Any]) -> None:
    """Write all fields of `statistics` and a fingerprint of their origin, atomically.

    `fingerprint`: JSON values by name that identify the images. The extractor's name and hash are
    added to it.
    """
    s, (rows_N, features_ND) = statistics, statistics.feature_sample.select()
    enough = s.count > 1  # the covariance of one image is undefined
    origin = {"extractor": s.extractor, "extractor_sha256": s.extractor_sha256, **fingerprint}
    arrays: dict[str, Any] = {
        "mu": s.mean_D.cpu().numpy(),
        "sigma": (s.covariance_DD if enough else s.scatter_DD).cpu().numpy(),
        "images": s.count,
        "split_counts": s.split_counts_I.cpu().numpy(),
        "split_sums": s.split_sums_IK.cpu().numpy(),
        "split_negentropies": s.split_negentropies_I.cpu().numpy(),
        "rows": rows_N,
        "features": features_ND.numpy(),
        "keep": s.feature_sample.capacity,
        "format": _FORMAT,
        "fingerprint": json.dumps(origin, sort_keys=True, allow_nan=False),
    }
    # An open file, because np.savez adds .npz to a path without this suffix.
    with atomic_write(path) as temporary_path, open(temporary_path, "wb") as file:
        np.savez(file, **arrays)


def load_statistics(
    path: Path,
    extractor: Extractor,
    fingerprint: Mapping[str, Any] | None,
    allow_external: bool = False,
) -> Statistics | ExternalStatistics:
    """Read the statistics in `path`, if its fingerprint equals `extractor` and `fingerprint`.

    `fingerprint` None: accept any images; only the extractor must be the same.

    `allow_external`: also accept a file without a fingerprint, which another program wrote; only
    `mu` and `sigma` are read. A fingerprint that differs is an error all the same.

    Raises StatisticsError: the file is missing, damaged, or has no statistics; the fingerprint
    differs (both are shown) or is missing; or `mu` and `sigma` are not a mean and a covariance.
    """
    arrays = _read(path)
    if "fingerprint" not in arrays:
        if not allow_external:
            raise StatisticsError(
                f"{path}: has mu and sigma but no fingerprint: another program wrote it, and the "
                "network and the images behind it are unknown. If you know that they fit, load it "
                "with allow_external=True"
            )
        return ExternalStatistics(*_moments(path, arrays, extractor.width), file_sha256(path))
    if set(arrays) != set(_FIELDS) or arrays["format"] != _FORMAT:
        raise StatisticsError(
            f"{path}: not format {_FORMAT} of this version; compute the statistics again"
        )
    expected = {"extractor": extractor.name, "extractor_sha256": extractor.sha256}
    recorded = _fingerprint(path, arrays["fingerprint"])
    if fingerprint is None:
        recorded = {name: recorded.get(name) for name in expected}
    # Through JSON, which makes lists of tuples: `recorded` was read from JSON.
    expected = json.loads(json.dumps({**expected, **(fingerprint or {})}))
    _refuse_mismatch(path, recorded, expected)
    mean_D, covariance_DD = _moments(path, arrays, extractor.width)
    s = Statistics(extractor, len(arrays["split_counts"]), int(arrays["keep"]))
    s.count = int(arrays["images"])
    s.mean_D = mean_D.to(s.mean_D)
    # The inverse of `save_statistics`. For fewer than two images both are 0.
    s.scatter_DD = covariance_DD.to(s.mean_D) * max(0, s.count - 1)
    s.split_counts_I = torch.from_numpy(arrays["split_counts"]).to(s.mean_D)
    s.split_sums_IK = torch.from_numpy(arrays["split_sums"]).to(s.mean_D)
    s.split_negentropies_I = torch.from_numpy(arrays["split_negentropies"]).to(s.mean_D)
    s.feature_sample.add(arrays["rows"], torch.from_numpy(arrays["features"]))
    return s


def save_arr0(
    path: Path, images: np.ndarray | Iterable[np.ndarray], count: int | None = None
) -> None:
    """Write images as the array `arr_0`, uint8 (N, H, H, 3), one batch in memory at a time.

    `images`: the array, or batches of it with `count` images in total. guided-diffusion's evaluator
    computes the Inception Score over consecutive groups of 5,000 images, so the order should mix
    the classes. Raises ValueError unless all images are uint8 (…, H, W, 3) of one size and their
    number is `count`.
    """
    batches = [images] if isinstance(images, np.ndarray) else images
    if count is None:
        if not isinstance(images, np.ndarray):
            raise ValueError("batches of images: the file header holds their number; give `count`")
        count = len(images)
    written, shape = 0, None
    with (
        atomic_write(path) as temporary_path,
        zipfile.ZipFile(temporary_path, "w") as archive,
        # zip64: the size can exceed 4 GiB (50,000 images of 256 pixels are 9.8 GB).
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        for batch in batches:
            if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
                raise ValueError(f"images {batch.dtype} {batch.shape}: expected uint8 (N, H, W, 3)")
            if shape is None:
                shape = batch.shape[1:]
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(member, header)
            if batch.shape[1:] != shape:
                raise ValueError(
                    f"images {batch.shape[1:]} after images {shape}: expected one shape"
                )
            member.write(np.ascontiguousarray(batch).data)
            written += len(batch)
        # Inside of atomic_write, so that an error leaves no file.
        if written != count or not count:
            raise ValueError(f"{written:,} images were given, but count = {count:,}")


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays in `path` whose names are in _FIELDS.

    Other programs' files may have more, such as 10,000 images; those are not read.
    """
    if not path.is_file():
        raise StatisticsError(f"{path}: no such file")
    # np.load would report a file that is no zip as pickled data.
    if not zipfile.is_zipfile(path):
        raise StatisticsError(f"{path}: damaged, or not an .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            arrays = {name: archive[name] for name in _FIELDS if name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StatisticsError(f"{path}: damaged ({error})") from error
    if not {"mu", "sigma"} <= set(arrays):
        raise StatisticsError(
            f"{path}: not statistics: it has {', '.join(names) or 'nothing'}, not mu and sigma"
        )
    return arrays


def _fingerprint(path: Path, array: np.ndarray) -> dict[str, Any]:
    try:
        fingerprint = json.loads(str(array))
    except ValueError as error:
        raise StatisticsError(f"{path}: damaged, its fingerprint is not JSON ({error})") from error
    if not isinstance(fingerprint, dict):
        raise StatisticsError(f"{path}: damaged, its fingerprint is not a JSON object")
    return fingerprint


def _moments(path: Path, arrays: dict[str, np.ndarray], width: int) -> tuple[Tensor, Tensor]:
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise StatisticsError(
            f"{path}: mu {mu.shape} and sigma {sigma.shape}; expected ({width},) and "
            f"({width}, {width}), the width of this extractor"
        )
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise StatisticsError(
            f"{path}: mu {mu.dtype} and sigma {sigma.dtype}; expected floating-point numbers"
        )
    mean_D, covariance_DD = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mean_D).all() and np.isfinite(covariance_DD).all()):
        raise StatisticsError(f"{path}: mu or sigma has values that are not finite")
    asymmetry = np.abs(covariance_DD - covariance_DD.T).max()
    if asymmetry > _ASYMMETRY * np.abs(covariance_DD).max():
        raise StatisticsError(
            f"{path}: sigma is not symmetric (by up to {asymmetry:.3g}), so not a covariance"
        )
    # Exactly symmetric, because eigh reads only one triangle.
    return torch.from_numpy(mean_D), torch.from_numpy((covariance_DD + covariance_DD.T) / 2)


def _refuse_mismatch(path: Path, recorded: dict[str, Any], expected: dict[str, Any]) -> None:
    names = [n for n in {**expected, **recorded} if recorded.get(n) != expected.get(n)]
    if names:
        lines = [f"  {n}: recorded {recorded.get(n)}, expected {expected.get(n)}" for n in names]
        raise StatisticsError(
            f"{path}: its fingerprint differs; compute the statistics again, or give another file\n"
            + "\n".join(lines)
        )
