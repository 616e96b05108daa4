"""The files of a token cache: description, checksums, opening.

`tokens.npy` has one row per (image, crop): uint16 (images × crops, L), the crops of an image in
consecutive rows. For models that are not trained on tokens, `features.npy` has the grid before
quantisation instead: float16 (images × crops, Z, H, H). encode.py writes the rows in shards and
records the CRC-32 of each shard.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from var_scaling.config import CacheKind, Tokenizer
from var_scaling.datasets import DataRecord
from var_scaling.disk import is_done, read_json
from var_scaling.record import difference
from var_scaling.tokenizer.cache import TokenCache

# Also the unit of a resume and of the parts of several jobs: both begin at a multiple of it.
SHARD = 4096  # rows per checksum
# Caches of earlier versions do not record the precision: it was always fp32.
_DEFAULTS = {"encode_precision": "fp32"}
_DELETE_FOLDER = "delete the folder, and it will be encoded again"


class CacheError(ValueError):
    """A token cache is missing, damaged or of another config; the message says which."""


def describe(
    tokenizer: Tokenizer, weights: str, data: DataRecord, split: str, kind: CacheKind = "tokens"
) -> dict[str, Any]:
    """The content of a cache, compared when it is opened. `weights`: their SHA-256."""
    content = {
        "format": 1,
        "tokenizer": tokenizer.name,
        "tokenizer_weights_sha256": weights,
        # Only what affects this split: validation tokens stay valid if the training crops change.
        "data": data.for_split(split).model_dump(mode="json"),
        "split": split,
        "crops": data.views(split),
        "tokens_per_image": tokenizer.pyramid.length,
        "codebook_size": tokenizer.codebook_size,
        "encode_precision": tokenizer.encode_precision,
    }
    if kind == "features":
        side = tokenizer.pyramid.side
        # Caches of tokens have no field `kind`: those written before features existed stay valid.
        content |= {"kind": kind, "features_per_image": [tokenizer.code_channels, side, side]}
    return content


def array_file(content: dict[str, Any]) -> str:
    """Name of the array file of a cache with the description `content`."""
    return f"{content.get('kind', 'tokens')}.npy"


def row_layout(content: dict[str, Any]) -> tuple[tuple[int, ...], type[np.generic]]:
    """Shape and dtype of one row of the array."""
    if content.get("kind") == "features":
        return tuple(content["features_per_image"]), np.float16
    return (content["tokens_per_image"],), np.uint16


def open_cache(folder: Path, expected: dict[str, Any], check: bool = True) -> TokenCache:
    """The finished cache in `folder`. Raises CacheError if unfinished, damaged or of other content.

    With `check=False` no checksum is computed: process 0 of a job has done so for all others.
    """
    if not is_done(folder):
        raise CacheError(f"{folder}: the token cache is not finished")
    try:
        manifest = read_json(folder / "manifest.json")
        check_description(folder, manifest, expected)
        file = folder / array_file(expected)
        # "r" is mmap_mode: the tokens stay on disk, and the processes of a machine share the pages.
        tokens, labels = np.load(file, "r"), np.load(folder / "labels.npy")
    # A CacheError is a ValueError: the next clause would wrap it in a second message.
    except CacheError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise CacheError(f"{folder}: missing or damaged: {error}; {_DELETE_FOLDER}") from error
    rows, shards = manifest["images"] * manifest["crops"], manifest["shards_crc32"]
    # Shapes before checksums: with too few checksums in the list, the loop below would leave rows
    # unchecked.
    shapes = (tokens.shape, labels.shape, len(shards))
    if shapes != ((rows, *row_layout(manifest)[0]), (manifest["images"],), -(-rows // SHARD)):
        raise CacheError(f"{folder}: damaged: {rows} rows, shapes {shapes}; {_DELETE_FOLDER}")
    for number, recorded in enumerate(shards if check else ()):
        position = f" in shard {number} (rows from {number * SHARD})"
        _refuse_damaged(file, checksum(tokens, number), recorded, position)
    if check:
        labels_crc32 = zlib.crc32(labels.tobytes())
        _refuse_damaged(folder / "labels.npy", labels_crc32, manifest["labels_crc32"])
    return TokenCache(tokens, labels, manifest["crops"], manifest)


def _refuse_damaged(path: Path, crc32: int, recorded: int, position: str = "") -> None:
    if crc32 != recorded:
        crcs = f"its CRC-32 is {crc32:08x}, manifest.json records {recorded:08x}"
        raise CacheError(f"{path} is damaged{position}: {crcs}; {_DELETE_FOLDER}")


def check_description(folder: Path, manifest: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise CacheError with each field of the manifest that differs from `expected`."""
    recorded = {key: manifest.get(key, _DEFAULTS.get(key)) for key in expected}
    lines = difference(recorded, expected)
    if lines:
        raise CacheError(f"{folder} has tokens of a different config:\n  " + "\n  ".join(lines))


def checksum(tokens: np.ndarray, shard: int) -> int:
    return zlib.crc32(np.ascontiguousarray(tokens[shard * SHARD : (shard + 1) * SHARD]).tobytes())
