"""Write the token cache: shards in order, each noted when whole, so a killed run goes on."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from var_scaling.data.loader import in_order
from var_scaling.data.sources import Progress, Source
from var_scaling.disk import read_json, whole, write_json
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.cache import SHARD, checksum, refuse_other
from var_scaling.tokenizer.model import MultiScaleVQVAE

_BATCH = 256


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
    starts = range(len(shards) * SHARD, rows, SHARD)
    batch = min(_BATCH, model.images_at_once)
    batches = [
        np.arange(at, min(at + batch, start + SHARD, rows))
        for start in starts
        for at in range(start, min(start + SHARD, rows), batch)
    ]
    device = model.quantize.embedding.weight.device
    images = in_order(lambda r: source.images(r // crops, r % crops), batches, workers)
    for chosen, pixels in zip(batches, images, strict=True):
        with torch.inference_mode():
            ids = model.encode(to_unit(torch.from_numpy(pixels)).to(device)).cpu()
        tokens[chosen] = ids.numpy().astype(np.uint16)
        end = int(chosen[-1]) + 1
        progress(f"encoding {folder.name}", end, rows)
        if end % SHARD == 0 or end == rows:
            tokens.flush()
            shards.append(checksum(tokens, len(shards)))
            write_json(folder / "manifest.json", manifest)
            if stop() and end < rows:
                return False
    with whole(folder / "labels.npy") as beside, open(beside, "wb") as file:
        np.save(file, source.labels)
    return True


def _begin(folder: Path, description: dict[str, Any], rows: int) -> dict[str, Any]:
    """The manifest of an earlier attempt, shards checked, or a new one by an empty array."""
    path = folder / "manifest.json"
    if path.exists():
        manifest: dict[str, Any] = read_json(path)
        refuse_other(folder, manifest, description)
        tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        noted = manifest["shards_crc32"]
        good = [crc for number, crc in enumerate(noted) if checksum(tokens, number) == crc]
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
