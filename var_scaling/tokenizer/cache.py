"""Every image encoded once: token ids on disk, memory-mapped, checked whenever they are opened.

`tokens.npy` holds one row per (image, crop): uint16 (rows × crops, L), row r's crops together.
Shards are written in order and noted with their checksum, so a killed run goes on where it stopped.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from var_scaling.config import DeadLeaves, ImageFiles, Tokenizer
from var_scaling.data.loader import in_order
from var_scaling.data.sources import Progress, Source
from var_scaling.disk import is_done, read_json, whole, write_json
from var_scaling.record import difference
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.model import MultiScaleVQVAE

_SHARD = 4096  # rows between two notes on disk
_BATCH = 256


class CacheError(ValueError):
    """A token cache is not what it should be; the message says how."""


@dataclass(frozen=True)
class TokenCache:
    """The tokens of one split, memory-mapped, and the label of each image."""

    tokens: np.ndarray  # (images × crops, L) uint16
    labels: np.ndarray  # (images,) int64
    crops: int
    manifest: dict[str, Any]

    @property
    def images(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray, epochs: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids (n, L), labels (n,)), int64: each image under the crop that its epoch picks."""
        places = rows * self.crops + epochs % self.crops
        ids = torch.from_numpy(self.tokens[places].astype(np.int64))
        return ids, torch.from_numpy(self.labels[rows])


def describe(
    tokenizer: Tokenizer, weights: str, data: DeadLeaves | ImageFiles, split: str
) -> dict[str, Any]:
    """What the tokens are of; `weights` is the SHA-256 of the tokenizer's. Compared on opening."""
    return {
        "format": 1,
        "tokenizer": tokenizer.name,
        "tokenizer_weights_sha256": weights,
        "data": data.model_dump(mode="json"),
        "split": split,
        "crops": crops_of(data, split),
        "tokens_per_image": tokenizer.pyramid.length,
        "codes": tokenizer.codes,
    }


def crops_of(data: DeadLeaves | ImageFiles, split: str) -> int:
    return max(1, data.crops) if isinstance(data, ImageFiles) and split == "train" else 1


def write_cache(
    folder: Path,
    model: MultiScaleVQVAE,
    source: Source,
    description: dict[str, Any],
    workers: int,
    progress: Progress,
    stop: Callable[[], bool],
) -> bool:
    """Encode `source` into `folder`; False if `stop` asked to leave. Goes on from what is there."""
    crops = description["crops"]
    rows = source.rows * crops
    content = {"images": source.rows, "labels_crc32": zlib.crc32(source.labels.tobytes())}
    manifest = _begin(folder, {**description, **content}, rows)
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", mode="r+")
    shards: list[int] = manifest["shards_crc32"]
    starts = range(len(shards) * _SHARD, rows, _SHARD)
    batches = [
        np.arange(at, min(at + _BATCH, rows))
        for start in starts
        for at in range(start, min(start + _SHARD, rows), _BATCH)
    ]
    images = in_order(lambda r: source.images(r // crops, r % crops), batches, workers)
    for chosen, pixels in zip(batches, images, strict=True):
        with torch.inference_mode():
            ids = model.encode(to_unit(torch.from_numpy(pixels)))
        tokens[chosen] = ids.numpy().astype(np.uint16)
        end = int(chosen[-1]) + 1
        progress(f"encoding {folder.name}", end, rows)
        if end % _SHARD == 0 or end == rows:
            tokens.flush()
            shards.append(_checksum(tokens, len(shards)))
            write_json(folder / "manifest.json", manifest)
            if stop() and end < rows:
                return False
    with whole(folder / "labels.npy") as beside, open(beside, "wb") as file:
        np.save(file, source.labels)
    return True


def open_cache(folder: Path, expected: dict[str, Any]) -> TokenCache:
    """The finished cache in `folder`. Raises CacheError if unfinished, damaged or of others."""
    if not is_done(folder):
        raise CacheError(f"{folder}: the tokens are not all there yet")
    manifest = read_json(folder / "manifest.json")
    _refuse_other(folder, manifest, expected)
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    rows = manifest["images"] * manifest["crops"]
    if tokens.shape != (rows, manifest["tokens_per_image"]) or len(labels) != manifest["images"]:
        raise CacheError(
            f"{folder}: tokens {tokens.shape}, labels {labels.shape}; {rows} rows noted"
        )
    for number, noted in enumerate(manifest["shards_crc32"]):
        if _checksum(tokens, number) != noted:
            raise CacheError(
                f"{folder}: tokens.npy is damaged in shard {number} (rows from {number * _SHARD}); "
                "delete the folder to have it made again"
            )
    if zlib.crc32(labels.tobytes()) != manifest["labels_crc32"]:
        raise CacheError(
            f"{folder}: labels.npy is damaged; delete the folder to have it made again"
        )
    return TokenCache(tokens, labels, manifest["crops"], manifest)


def _begin(folder: Path, description: dict[str, Any], rows: int) -> dict[str, Any]:
    """The manifest of an earlier attempt, shards checked, or a new one by an empty array."""
    path = folder / "manifest.json"
    if path.exists():
        manifest: dict[str, Any] = read_json(path)
        _refuse_other(folder, manifest, description)
        tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        noted = manifest["shards_crc32"]
        good = [crc for number, crc in enumerate(noted) if _checksum(tokens, number) == crc]
        manifest["shards_crc32"] = noted if good == noted else []
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    shape = (rows, description["tokens_per_image"])
    np.lib.format.open_memmap(
        folder / "tokens.npy", mode="w+", dtype=np.uint16, shape=shape
    ).flush()
    manifest = {**description, "shards_crc32": []}
    write_json(path, manifest)
    return manifest


def _refuse_other(folder: Path, manifest: dict[str, Any], expected: dict[str, Any]) -> None:
    recorded = {key: manifest.get(key) for key in expected}
    lines = difference(recorded, expected)
    if lines:
        raise CacheError(f"{folder} holds the tokens of something else:\n  " + "\n  ".join(lines))


def _checksum(tokens: np.ndarray, shard: int) -> int:
    return zlib.crc32(np.ascontiguousarray(tokens[shard * _SHARD : (shard + 1) * _SHARD]).tobytes())
