"""Statistics and samples as .npz, for later and for other people's programs; and theirs for us.

Statistics have `mu` and `sigma`, as pytorch-fid reads and writes them, and all else that they were
gathered with; samples are `arr_0`, as guided-diffusion's evaluator takes them. Nothing in a file is
unpickled.

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

from var_scaling.disk import file_sha256, whole
from var_scaling.evaluation.extractors import Extractor
from var_scaling.evaluation.statistics import Statistics, StatisticsError

_FORMAT = 1
_OURS = (
    "mu", "sigma", "images", "split_counts", "split_sums", "split_negentropies", "rows",
    "features", "keep", "format", "fingerprint",
)  # fmt: skip
_ASYMMETRY = 1e-5  # of the largest entry: what float32 leaves


class ExternalStatistics(NamedTuple):
    """Statistics of another program. Their data are unknown; the file's hash identifies them.

    How many images there were is not known, nor are there features for KID, precision or recall.
    """

    mean_D: Tensor
    covariance_DD: Tensor
    sha256: str  # of the file


def save_statistics(path: Path, statistics: Statistics, fingerprint: Mapping[str, Any]) -> None:
    """Write all that was gathered, whole or not at all, with what it was gathered of.

    `fingerprint`: JSON values by name; the extractor's hash is added to it.
    """
    s, (rows_N, features_ND) = statistics, statistics.kept.settled()
    enough = s.count > 1
    said = {"extractor": s.extractor, "extractor_sha256": s.extractor_sha256, **fingerprint}
    arrays: dict[str, Any] = {
        "mu": s.mean_D.cpu().numpy(),
        "sigma": (s.covariance_DD if enough else s.scatter_DD).cpu().numpy(),
        "images": s.count,
        "split_counts": s.split_counts_I.cpu().numpy(),
        "split_sums": s.split_sums_IK.cpu().numpy(),
        "split_negentropies": s.split_negentropies_I.cpu().numpy(),
        "rows": rows_N,
        "features": features_ND.numpy(),
        "keep": s.kept.most,
        "format": _FORMAT,
        "fingerprint": json.dumps(said, sort_keys=True, allow_nan=False),
    }
    with whole(path) as beside, open(beside, "wb") as file:
        np.savez(file, **arrays)


def load_statistics(
    path: Path,
    extractor: Extractor,
    fingerprint: Mapping[str, Any] | None,
    foreign: bool = False,
) -> Statistics | ExternalStatistics:
    """What was saved in `path`, if it was gathered by `extractor` of what `fingerprint` says.

    `fingerprint` None: of whatever images, as long as the extractor is the same.

    `foreign`: also take a file without a fingerprint, of which `mu` and `sigma` are read. It
    excuses no fingerprint that is there and says otherwise.

    Raises StatisticsError: no such file, damaged, no statistics, another fingerprint (both are
    shown), none at all, or moments that cannot be such.
    """
    arrays = _read(path)
    if "fingerprint" not in arrays:
        if not foreign:
            raise StatisticsError(
                f"{path}: mu and sigma, but no fingerprint: another program wrote them, and "
                "nothing says which network looked at which images. If you know that they fit, "
                "ask for them as foreign"
            )
        return ExternalStatistics(*_moments(path, arrays, extractor.width), file_sha256(path))
    if set(arrays) != set(_OURS) or arrays["format"] != _FORMAT:
        raise StatisticsError(f"{path}: statistics in another format; gather them anew")
    wanted = {"extractor": extractor.name, "extractor_sha256": extractor.sha256}
    found = _said(path, arrays["fingerprint"])
    if fingerprint is None:
        found = {name: found.get(name) for name in wanted}
    _refuse_other(path, found, json.loads(json.dumps({**wanted, **(fingerprint or {})})))
    mean_D, covariance_DD = _moments(path, arrays, extractor.width)
    s = Statistics(extractor, len(arrays["split_counts"]), int(arrays["keep"]))
    s.count = int(arrays["images"])
    s.mean_D = mean_D.to(s.mean_D)
    s.scatter_DD = covariance_DD.to(s.mean_D) * max(0, s.count - 1)
    s.split_counts_I = torch.from_numpy(arrays["split_counts"]).to(s.mean_D)
    s.split_sums_IK = torch.from_numpy(arrays["split_sums"]).to(s.mean_D)
    s.split_negentropies_I = torch.from_numpy(arrays["split_negentropies"]).to(s.mean_D)
    s.kept.add(arrays["rows"], torch.from_numpy(arrays["features"]))
    return s


def save_arr0(
    path: Path, images: np.ndarray | Iterable[np.ndarray], count: int | None = None
) -> None:
    """Write images as the one array `arr_0`, uint8 (N, H, H, 3), one batch in memory at a time.

    `images`: that array, or batches of it, `count` images together. guided-diffusion's evaluator
    takes the Inception Score over runs of 5,000 in this order: classes should be mixed. Raises
    ValueError for anything but uint8 (…, H, W, 3) of one size, or for another count.
    """
    batches = [images] if isinstance(images, np.ndarray) else images
    if count is None:
        if not isinstance(images, np.ndarray):
            raise ValueError("batches of images: the file begins with how many; say `count`")
        count = len(images)
    written, shape = 0, None
    with (
        whole(path) as beside,
        zipfile.ZipFile(beside, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        for batch in batches:
            if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
                raise ValueError(f"images {batch.dtype} {batch.shape}: wanted uint8 (N, H, W, 3)")
            if shape is None:
                shape = batch.shape[1:]
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(member, header)
            if batch.shape[1:] != shape:
                raise ValueError(f"images {batch.shape[1:]} after images {shape}: not one array")
            member.write(np.ascontiguousarray(batch).data)
            written += len(batch)
        if written != count or not count:
            raise ValueError(f"{written:,} images came, {count:,} were announced")


def _read(path: Path) -> dict[str, np.ndarray]:
    """What is there of our names. Others have more, as ten thousand images, which are not read."""
    if not path.is_file():
        raise StatisticsError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise StatisticsError(f"{path}: damaged, or no .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            arrays = {name: archive[name] for name in _OURS if name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StatisticsError(f"{path}: damaged ({error})") from error
    if not {"mu", "sigma"} <= set(arrays):
        raise StatisticsError(
            f"{path}: no statistics: it has {', '.join(names) or 'nothing'}, not mu and sigma"
        )
    return arrays


def _said(path: Path, fingerprint: np.ndarray) -> dict[str, Any]:
    try:
        found = json.loads(str(fingerprint))
    except ValueError as error:
        raise StatisticsError(f"{path}: damaged, its fingerprint is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise StatisticsError(f"{path}: damaged, its fingerprint has no names")
    return found


def _moments(path: Path, arrays: dict[str, np.ndarray], width: int) -> tuple[Tensor, Tensor]:
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise StatisticsError(
            f"{path}: mu {mu.shape} and sigma {sigma.shape}; this extractor has {width} features"
        )
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise StatisticsError(f"{path}: mu {mu.dtype} and sigma {sigma.dtype} are not numbers")
    mean_D, covariance_DD = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mean_D).all() and np.isfinite(covariance_DD).all()):
        raise StatisticsError(f"{path}: mu or sigma has numbers that are not finite")
    apart = np.abs(covariance_DD - covariance_DD.T).max()
    if apart > _ASYMMETRY * np.abs(covariance_DD).max():
        raise StatisticsError(f"{path}: sigma is not symmetric (by {apart:.3g}): no covariance")
    return torch.from_numpy(mean_D), torch.from_numpy((covariance_DD + covariance_DD.T) / 2)


def _refuse_other(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if names:
        lines = [f"  {n}: recorded {found.get(n)}, wanted {wanted.get(n)}" for n in names]
        raise StatisticsError(
            f"{path}: statistics of something else; gather them anew, or name another file\n"
            + "\n".join(lines)
        )
