"""Write the token cache shard by shard, so that it can resume; in parts if jobs share the work."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from var_scaling.data.dataset import ImageDataset
from var_scaling.data.loader import for_device, in_order
from var_scaling.data.order import spread_rows
from var_scaling.datasets import Progress
from var_scaling.disk import atomic_write, read_json, write_json
from var_scaling.tokenizer.autoencoder import to_unit
from var_scaling.tokenizer.cache_files import (
    SHARD,
    array_file,
    check_description,
    checksum,
    row_layout,
)
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.tokenizer.quantizer import Quantizer

_BATCH = 256
_STATISTICS_ROWS = 16_384  # gives a channel's deviation to a fraction of a percent
Part = tuple[int, int]  # index of the part, number of parts


def write_cache(
    folder: Path,
    model: MultiScaleVQVAE,
    source: ImageDataset,
    description: dict[str, Any],
    workers: int,
    progress: Progress,
    stop: Callable[[int], bool],
    part: Part | None = None,
    threads: int = 1,
) -> bool:
    """Encode `source`, or a part of it, into `folder`. Continues after the shards already written.

    The encoder runs in the caller's precision. `workers` processes read images; without them,
    `threads` share the work. A batch is encoded by one of them, so its tokens are the same.

    Returns False if `stop`, called with the number of rows done, ended it before the last row.
    """
    crops = description["crops"]
    part_rows = rows_of_part(source.rows * crops, part)
    content = _content(description, source, part)
    manifest = _open_or_create(folder, content, source.classes, len(part_rows))
    tokens = np.lib.format.open_memmap(folder / array_file(description), mode="r+")
    shards: list[int] = manifest["shards_crc32"]
    # After the shards that an earlier attempt finished. Rows of an unfinished shard are encoded
    # again: without a checksum they may be half-written.
    starts = part_rows[len(shards) * SHARD :: SHARD]
    encoder = _Encoder(model, description.get("kind") == "features")
    batch = min(_BATCH, model.max_batch_size)
    if not encoder.on_cpu and crops < batch:
        # All crops of an image in one batch, so that its file is decoded once. Not on a CPU, where
        # the size of a batch changes the rounding: caches would differ from those of before.
        batch -= batch % crops
    # No batch crosses the border of a shard, so each checksum is of complete batches.
    batches = [
        np.arange(first, min(first + batch, start + SHARD, part_rows.stop))
        for start in starts
        for first in range(start, min(start + SHARD, part_rows.stop), batch)
    ]
    encodings = _encodings(encoder, source, crops, batches, workers, threads)
    for rows, values in zip(batches, encodings, strict=True):
        # The file of a part starts with the part's first row.
        tokens[rows - part_rows.start] = values.astype(tokens.dtype)
        done = int(rows[-1]) + 1 - part_rows.start
        progress(f"encoding {folder.name}", done, len(part_rows))
        if done % SHARD == 0 or done == len(part_rows):
            # Rows first, then the manifest that counts them: a process killed between the two loses
            # a shard, but the manifest never lists a shard that is not on disk.
            tokens.flush()
            shards.append(checksum(tokens, len(shards)))
            write_json(folder / "manifest.json", manifest)
            # Stop only here, after a complete shard.
            if stop(done) and done < len(part_rows):
                return False
    _write_labels(folder, source)
    return True


def _encodings(
    encoder: "_Encoder", source: ImageDataset, crops: int, batches: list[np.ndarray],
    workers: int, threads: int,
) -> Iterator[np.ndarray]:  # fmt: skip
    """The encoding of each batch of rows, in order."""

    def read(rows: np.ndarray) -> np.ndarray:
        # Row r of the array is crop r % crops of image r // crops.
        return source.images(rows // crops, rows % crops)

    if workers > 0 or not encoder.on_cpu:
        # A GPU is given work by one thread; the others read images.
        pixels = for_device(in_order(read, batches, workers, threads), encoder.device)
        return _one_ahead(map(encoder.start, pixels))

    def encode(rows: np.ndarray) -> np.ndarray:
        return encoder.start(torch.from_numpy(read(rows))).array()

    return in_order(encode, batches, 0, threads)


class _Fetched:
    """Values on their way from the device to the CPU; a GPU continues meanwhile."""

    def __init__(self, values: Tensor):
        # From a GPU into pinned memory, without waiting.
        self.values, self.event = values.to("cpu", non_blocking=True), None
        if values.device.type == "cuda":
            self.event = torch.cuda.current_stream(values.device).record_event()

    def array(self) -> np.ndarray:
        """The values, once they have arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.values.numpy()


class _Encoder:
    """Encodes batches of pixels in the precision of the thread that makes it."""

    def __init__(self, model: MultiScaleVQVAE, features: bool):
        self.encode = model.features if features else model.encode
        self.device = model.quantize.embedding.weight.device
        self.on_cpu = self.device.type == "cpu"
        kind = self.device.type
        self.autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    @torch.inference_mode()
    def start(self, pixels_BHH3: Tensor) -> _Fetched:
        """Begin to encode uint8 images: ids (B, L), or feature grids in float32."""
        enabled, dtype = self.autocast
        # Bytes, a quarter of the floats; from pinned memory the copy does not wait.
        pixels = pixels_BHH3.to(self.device, non_blocking=True)
        # Autocast is a state of the thread, and this one may be a thread of a pool.
        with torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
            values = self.encode(to_unit(pixels))
        return _Fetched(values.float() if values.is_floating_point() else values)


def _one_ahead(fetched: Iterator[_Fetched]) -> Iterator[np.ndarray]:
    """The arrays of `fetched`, each returned when the next batch was given to the device."""
    previous = None
    for current in fetched:
        if previous is not None:
            yield previous.array()
        previous = current
    if previous is not None:
        yield previous.array()


@torch.inference_mode()
def record_latent_statistics(folder: Path, quantizer: Quantizer) -> None:
    """Write to the manifest the mean and deviation of each channel of the decoded token grids, or
    of the features if the cache holds these.

    Computed over _STATISTICS_ROWS evenly spaced rows, or all if there are fewer. Sums are in
    float64 and in a fixed order, so that the result depends only on the tokens.
    """
    manifest = read_json(folder / "manifest.json")
    tokens = np.load(folder / array_file(manifest), mmap_mode="r")
    device = quantizer.embedding.weight.device
    sums_2Z = torch.zeros(2, quantizer.embedding.weight.shape[1], dtype=torch.float64)
    rows = spread_rows(len(tokens), _STATISTICS_ROWS)
    for part in np.array_split(rows, -(-len(rows) // _BATCH)):
        # A cache of features already has grids; token ids are decoded to grids.
        if tokens.dtype == np.float16:
            grid_BZHH = torch.from_numpy(tokens[part].astype(np.float64))
        else:
            ids_BL = torch.from_numpy(tokens[part].astype(np.int64)).to(device)
            grid_BZHH = quantizer.decode(ids_BL).double().cpu()
        # Sums and sums of squares over images and positions, (2, Z).
        sums_2Z += torch.stack([grid_BZHH.sum((0, 2, 3)), grid_BZHH.square().sum((0, 2, 3))])
    mean_Z, square_Z = sums_2Z / (len(rows) * quantizer.pyramid.side**2)
    # E[x^2] - E[x]^2 can round to just below 0 in a constant channel.
    deviation_Z = (square_Z - mean_Z.square()).clamp_min(0).sqrt()
    statistics = {"mean": mean_Z.tolist(), "deviation": deviation_Z.tolist(), "rows": len(rows)}
    write_json(folder / "manifest.json", {**manifest, "latents": statistics})


def rows_of_part(rows: int, part: Part | None) -> range:
    """The rows of a part: complete shards, so that the joined cache has the parts' checksums."""
    if part is None:
        return range(rows)
    number, parts = part
    shards = -(-rows // SHARD)
    first, last = shards * number // parts, shards * (number + 1) // parts
    return range(min(rows, first * SHARD), min(rows, last * SHARD))


def join_parts(folder: Path, parts: list[Path], source: ImageDataset, description: dict) -> None:
    """Join the finished `parts`, in order, to one cache in `folder`. Safe to repeat."""
    manifests = [read_json(path / "manifest.json") for path in parts]
    for number, (path, manifest) in enumerate(zip(parts, manifests, strict=True)):
        # A part of an earlier config must not get into the joined cache.
        check_description(path, manifest, _content(description, source, (number, len(parts))))
    rows = source.rows * description["crops"]
    shape, dtype = row_layout(description)
    file = array_file(description)
    # Atomic: a job killed while it joins leaves no half-written array; the next one
    # joins again.
    with atomic_write(folder / file) as temporary:
        tokens = np.lib.format.open_memmap(temporary, "w+", dtype=dtype, shape=(rows, *shape))
        for number, path in enumerate(parts):
            part_rows = rows_of_part(rows, (number, len(parts)))
            tokens[part_rows.start : part_rows.stop] = np.load(path / file, mmap_mode="r")
        tokens.flush()
    # Parts are complete shards, so the checksums of the parts are those of the whole.
    shards = [crc for manifest in manifests for crc in manifest["shards_crc32"]]
    content = {**_content(description, source, None), "classes": source.classes}
    write_json(folder / "manifest.json", {**content, "shards_crc32": shards})
    _write_labels(folder, source)


def _content(
    description: dict[str, Any], source: ImageDataset, part: Part | None
) -> dict[str, Any]:
    # The labels' checksum is in the content: a resume over images with other labels is refused.
    content = {"images": source.rows, "labels_crc32": zlib.crc32(source.labels.tobytes())}
    return {**description, **content, **({} if part is None else {"part": list(part)})}


def _write_labels(folder: Path, source: ImageDataset) -> None:
    with atomic_write(folder / "labels.npy") as temporary_path, open(temporary_path, "wb") as file:
        np.save(file, source.labels)


def _open_or_create(
    folder: Path, description: dict[str, Any], classes: list[str] | None, rows: int
) -> dict[str, Any]:
    """The manifest of an earlier attempt, its shards checked; else a new one, with an empty array.

    The class names are recorded but not compared: older caches have none.
    """
    path = folder / "manifest.json"
    manifest: dict[str, Any] = read_json(path) if path.exists() else {}
    if manifest.get("shards_crc32"):  # else an attempt stopped before its first shard
        check_description(folder, manifest, description)
        tokens = np.load(folder / array_file(description), mmap_mode="r")
        recorded = manifest["shards_crc32"]
        good = [crc for number, crc in enumerate(recorded) if checksum(tokens, number) == crc]
        manifest["shards_crc32"] = recorded if good == recorded else []  # encode all again
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    shape, dtype = row_layout(description)
    # The array before the manifest: an attempt killed between the two leaves no manifest, and the
    # next attempt starts here again.
    np.lib.format.open_memmap(
        folder / array_file(description), mode="w+", dtype=dtype, shape=(rows, *shape)
    ).flush()
    manifest = {**description, "classes": classes, "shards_crc32": []}
    write_json(path, manifest)
    return manifest
