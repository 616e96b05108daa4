"""Every image encoded once: token ids on disk, memory-mapped, checked whenever they are opened.

`tokens.npy` holds one row per (image, crop): uint16 (rows × crops, L), row r's crops together.
Written by encode.py in shards, each noted with its checksum.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from var_scaling.config import Tokenizer
from var_scaling.datasets import DeadLeaves, ImageFiles, as_seen
from var_scaling.disk import is_done, read_json
from var_scaling.record import difference

SHARD = 4096  # rows between two notes on disk


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
        "data": as_seen(data, split).model_dump(mode="json"),
        "split": split,
        "crops": crops_of(data, split),
        "tokens_per_image": tokenizer.pyramid.length,
        "codes": tokenizer.codes,
    }


def crops_of(data: DeadLeaves | ImageFiles, split: str) -> int:
    return max(1, data.crops) if isinstance(data, ImageFiles) and split == "train" else 1


def open_cache(folder: Path, expected: dict[str, Any]) -> TokenCache:
    """The finished cache in `folder`. Raises CacheError if unfinished, damaged or of others."""
    if not is_done(folder):
        raise CacheError(f"{folder}: the tokens are not all there yet")
    manifest = read_json(folder / "manifest.json")
    refuse_other(folder, manifest, expected)
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    rows = manifest["images"] * manifest["crops"]
    if tokens.shape != (rows, manifest["tokens_per_image"]) or len(labels) != manifest["images"]:
        raise CacheError(
            f"{folder}: tokens {tokens.shape}, labels {labels.shape}; {rows} rows noted"
        )
    for number, noted in enumerate(manifest["shards_crc32"]):
        if checksum(tokens, number) != noted:
            raise CacheError(
                f"{folder}: tokens.npy is damaged in shard {number} (rows from {number * SHARD}); "
                "delete the folder to have it made again"
            )
    if zlib.crc32(labels.tobytes()) != manifest["labels_crc32"]:
        raise CacheError(
            f"{folder}: labels.npy is damaged; delete the folder to have it made again"
        )
    return TokenCache(tokens, labels, manifest["crops"], manifest)


def refuse_other(folder: Path, manifest: dict[str, Any], expected: dict[str, Any]) -> None:
    recorded = {key: manifest.get(key) for key in expected}
    lines = difference(recorded, expected)
    if lines:
        raise CacheError(f"{folder} holds the tokens of something else:\n  " + "\n  ".join(lines))


def checksum(tokens: np.ndarray, shard: int) -> int:
    return zlib.crc32(np.ascontiguousarray(tokens[shard * SHARD : (shard + 1) * SHARD]).tobytes())
