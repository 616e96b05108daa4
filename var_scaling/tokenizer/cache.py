"""Every image encoded once: arrays on disk, memory-mapped, checked whenever they are opened.

`tokens.npy` holds one row per (image, crop): uint16 (rows × crops, L), row r's crops together. For
models that are not trained on tokens `features.npy` holds the grid before it is quantised instead:
float16 (rows × crops, Z, H, H). Written by encode.py in shards, each noted with its checksum.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from var_scaling.config import CacheKind, Tokenizer
from var_scaling.datasets import DataRecord
from var_scaling.disk import is_done, read_json
from var_scaling.record import difference

SHARD = 4096  # rows between two notes on disk
_MAKE_ANEW = "delete the folder to have it made again"


class CacheError(ValueError):
    """A token cache is not what it should be; the message says how."""


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each channel of the grid that the tokens stand for, (Z,)."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class TokenCache:
    """The tokens of one split, memory-mapped, and the label of each image."""

    tokens: np.ndarray  # (images × crops, L) uint16; features: (images × crops, Z, H, H) float16
    labels: np.ndarray  # (images,) int64
    crops: int
    manifest: dict[str, Any]

    @property
    def images(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray, epochs: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids (n, L), labels (n,)), int64: each image under the crop that its epoch picks.

        Of features, the grids (n, Z, H, H) in float32.
        """
        places = rows * self.crops + epochs % self.crops
        kind = np.float32 if self.tokens.dtype == np.float16 else np.int64
        return torch.from_numpy(self.tokens[places].astype(kind)), torch.from_numpy(
            self.labels[rows]
        )


def describe(
    tokenizer: Tokenizer, weights: str, data: DataRecord, split: str, kind: CacheKind = "tokens"
) -> dict[str, Any]:
    """What the tokens are of; `weights` is the SHA-256 of the tokenizer's. Compared on opening."""
    content = {
        "format": 1,
        "tokenizer": tokenizer.name,
        "tokenizer_weights_sha256": weights,
        "data": data.as_seen(split).model_dump(mode="json"),
        "split": split,
        "crops": data.views(split),
        "tokens_per_image": tokenizer.pyramid.length,
        "codebook_size": tokenizer.codebook_size,
    }
    if kind == "features":
        side = tokenizer.pyramid.side
        content |= {"kind": kind, "features_per_image": [tokenizer.code_channels, side, side]}
    return content


def array_file(content: dict[str, Any]) -> str:
    """The file with the rows of a cache that is described so."""
    return f"{content.get('kind', 'tokens')}.npy"


def row_of(content: dict[str, Any]) -> tuple[tuple[int, ...], type[np.generic]]:
    """Shape and type of a row."""
    if content.get("kind") == "features":
        return tuple(content["features_per_image"]), np.float16
    return (content["tokens_per_image"],), np.uint16


def open_cache(folder: Path, expected: dict[str, Any], check: bool = True) -> TokenCache:
    """The finished cache in `folder`. Raises CacheError if unfinished, damaged or of others.

    Without `check` no checksum is computed: for all processes of a job but the first.
    """
    if not is_done(folder):
        raise CacheError(f"{folder}: the tokens are not all there yet")
    try:
        manifest = read_json(folder / "manifest.json")
        refuse_other(folder, manifest, expected)
        file = folder / array_file(expected)
        tokens, labels = np.load(file, "r"), np.load(folder / "labels.npy")
    except CacheError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(f"{folder}: missing or damaged: {error}; {_MAKE_ANEW}") from error
    rows, shards = manifest["images"] * manifest["crops"], manifest["shards_crc32"]
    shapes = (tokens.shape, labels.shape, len(shards))
    if shapes != ((rows, *row_of(manifest)[0]), (manifest["images"],), -(-rows // SHARD)):
        raise CacheError(f"{folder}: damaged: {rows} rows recorded, found {shapes}; {_MAKE_ANEW}")
    for number, noted in enumerate(shards if check else ()):
        where = f" in shard {number} (rows from {number * SHARD})"
        _refuse_damaged(file, checksum(tokens, number), noted, where)
    if check:
        labels_crc32 = zlib.crc32(labels.tobytes())
        _refuse_damaged(folder / "labels.npy", labels_crc32, manifest["labels_crc32"])
    return TokenCache(tokens, labels, manifest["crops"], manifest)


def latent_statistics(manifest: dict[str, Any]) -> LatentStatistics | None:
    """What the manifest has of the grid's channels; None where it is of an earlier version."""
    noted = manifest.get("latents")
    if noted is None:
        return None
    return LatentStatistics(tuple(noted["mean"]), tuple(noted["deviation"]))


def _refuse_damaged(path: Path, found: int, noted: int, where: str = "") -> None:
    if found != noted:
        crcs = f"its CRC-32 is {found:08x}, manifest.json records {noted:08x}"
        raise CacheError(f"{path} is damaged{where}: {crcs}; {_MAKE_ANEW}")


def refuse_other(folder: Path, manifest: dict[str, Any], expected: dict[str, Any]) -> None:
    recorded = {key: manifest.get(key) for key in expected}
    lines = difference(recorded, expected)
    if lines:
        raise CacheError(f"{folder} holds the tokens of something else:\n  " + "\n  ".join(lines))


def checksum(tokens: np.ndarray, shard: int) -> int:
    return zlib.crc32(np.ascontiguousarray(tokens[shard * SHARD : (shard + 1) * SHARD]).tobytes())
