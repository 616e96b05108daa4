"""Write the token cache: shards in order, each noted when whole; in parts, if many jobs share."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from var_scaling.data.dataset import ImageDataset
from var_scaling.data.loader import in_order
from var_scaling.data.order import spread_rows
from var_scaling.datasets import Progress
from var_scaling.disk import read_json, whole, write_json
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.cache import SHARD, array_file, checksum, refuse_other, row_of
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.quantizer import Quantizer

_BATCH = 256
_STATISTICS_ROWS = 16_384  # a channel's deviation is then known to a fraction of a percent
Part = tuple[int, int]  # which of how many


def write_cache(
    folder: Path,
    model: MultiScaleVQVAE,
    source: ImageDataset,
    description: dict[str, Any],
    workers: int,
    progress: Progress,
    stop: Callable[[int], bool],
    part: Part | None = None,
) -> bool:
    """Encode `source`, or a part of it, into `folder`; False if `stop` (told how many rows are
    done) asked to leave. Goes on from what is there.
    """
    crops = description["crops"]
    mine = rows_of_part(source.rows * crops, part)
    manifest = _begin(folder, _content(description, source, part), source.classes, len(mine))
    tokens = np.lib.format.open_memmap(folder / array_file(description), mode="r+")
    encoded = model.features if description.get("kind") == "features" else model.encode
    shards: list[int] = manifest["shards_crc32"]
    starts = mine[len(shards) * SHARD :: SHARD]
    batch = min(_BATCH, model.max_batch_size)
    batches = [
        np.arange(at, min(at + batch, start + SHARD, mine.stop))
        for start in starts
        for at in range(start, min(start + SHARD, mine.stop), batch)
    ]
    device = model.quantize.embedding.weight.device
    images = in_order(lambda r: source.images(r // crops, r % crops), batches, workers)
    for chosen, pixels in zip(batches, images, strict=True):
        with torch.inference_mode():
            found = encoded(to_unit(torch.from_numpy(pixels)).to(device)).cpu()
        tokens[chosen - mine.start] = found.numpy().astype(tokens.dtype)
        done = int(chosen[-1]) + 1 - mine.start
        progress(f"encoding {folder.name}", done, len(mine))
        if done % SHARD == 0 or done == len(mine):
            tokens.flush()
            shards.append(checksum(tokens, len(shards)))
            write_json(folder / "manifest.json", manifest)
            if stop(done) and done < len(mine):
                return False
    _write_labels(folder, source)
    return True


@torch.inference_mode()
def note_latents(folder: Path, quantizer: Quantizer) -> None:
    """Note in the manifest the mean and deviation of each channel of what the tokens stand for.

    Over _STATISTICS_ROWS rows, evenly spread, all of them where there are no more. Summed in
    float64 in a fixed order, so that they are a function of the tokens.
    """
    manifest = read_json(folder / "manifest.json")
    tokens = np.load(folder / array_file(manifest), mmap_mode="r")
    device = quantizer.embedding.weight.device
    sums_2Z = torch.zeros(2, quantizer.embedding.weight.shape[1], dtype=torch.float64)
    rows = spread_rows(len(tokens), _STATISTICS_ROWS)
    for part in np.array_split(rows, -(-len(rows) // _BATCH)):
        if tokens.dtype == np.float16:
            grid_BZHH = torch.from_numpy(tokens[part].astype(np.float64))
        else:
            ids_BL = torch.from_numpy(tokens[part].astype(np.int64)).to(device)
            grid_BZHH = quantizer.decode(ids_BL).double().cpu()
        sums_2Z += torch.stack([grid_BZHH.sum((0, 2, 3)), grid_BZHH.square().sum((0, 2, 3))])
    mean_Z, square_Z = sums_2Z / (len(rows) * quantizer.pyramid.side**2)
    deviation_Z = (square_Z - mean_Z.square()).clamp_min(0).sqrt()
    noted = {"mean": mean_Z.tolist(), "deviation": deviation_Z.tolist(), "rows": len(rows)}
    write_json(folder / "manifest.json", {**manifest, "latents": noted})


def rows_of_part(rows: int, part: Part | None) -> range:
    """The rows that a part encodes: whole shards, so that the parts' checksums are the whole's."""
    if part is None:
        return range(rows)
    number, of = part
    shards = -(-rows // SHARD)
    first, last = shards * number // of, shards * (number + 1) // of
    return range(min(rows, first * SHARD), min(rows, last * SHARD))


def join_parts(folder: Path, parts: list[Path], source: ImageDataset, description: dict) -> None:
    """Make one cache in `folder` of the finished `parts`, in order. Doing it twice is no harm."""
    manifests = [read_json(path / "manifest.json") for path in parts]
    for number, (path, manifest) in enumerate(zip(parts, manifests, strict=True)):
        refuse_other(path, manifest, _content(description, source, (number, len(parts))))
    rows = source.rows * description["crops"]
    shape, kind = row_of(description)
    file = array_file(description)
    with whole(folder / file) as beside:
        tokens = np.lib.format.open_memmap(beside, mode="w+", dtype=kind, shape=(rows, *shape))
        for number, path in enumerate(parts):
            mine = rows_of_part(rows, (number, len(parts)))
            tokens[mine.start : mine.stop] = np.load(path / file, mmap_mode="r")
        tokens.flush()
    shards = [crc for manifest in manifests for crc in manifest["shards_crc32"]]
    content = {**_content(description, source, None), "classes": source.classes}
    write_json(folder / "manifest.json", {**content, "shards_crc32": shards})
    _write_labels(folder, source)


def _content(
    description: dict[str, Any], source: ImageDataset, part: Part | None
) -> dict[str, Any]:
    content = {"images": source.rows, "labels_crc32": zlib.crc32(source.labels.tobytes())}
    return {**description, **content, **({} if part is None else {"part": list(part)})}


def _write_labels(folder: Path, source: ImageDataset) -> None:
    with whole(folder / "labels.npy") as beside, open(beside, "wb") as file:
        np.save(file, source.labels)


def _begin(
    folder: Path, description: dict[str, Any], classes: list[str] | None, rows: int
) -> dict[str, Any]:
    """The manifest of an earlier attempt, shards checked, or a new one by an empty array.

    The names of the classes are noted, and not compared: older caches have none.
    """
    path = folder / "manifest.json"
    manifest: dict[str, Any] = read_json(path) if path.exists() else {}
    if manifest.get("shards_crc32"):  # else another attempt failed before its first shard
        refuse_other(folder, manifest, description)
        tokens = np.load(folder / array_file(description), mmap_mode="r")
        noted = manifest["shards_crc32"]
        good = [crc for number, crc in enumerate(noted) if checksum(tokens, number) == crc]
        manifest["shards_crc32"] = noted if good == noted else []
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    shape, kind = row_of(description)
    np.lib.format.open_memmap(
        folder / array_file(description), mode="w+", dtype=kind, shape=(rows, *shape)
    ).flush()
    manifest = {**description, "classes": classes, "shards_crc32": []}
    write_json(path, manifest)
    return manifest
