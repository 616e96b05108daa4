"""Images in Parquet files, in the format of the Hugging Face `datasets` library."""

import filecmp
import json
import os
import re
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from var_scaling.data.decode import Undecodable
from var_scaling.data.tree import DataError
from var_scaling.text import counted

_CACHED_BYTES = 1 << 30  # row groups that one reader keeps in memory


class ParquetListing:
    """Columns `image` (struct with `bytes`) and `label` (integer), as `datasets` writes them."""

    def __init__(self, root: Path, files: list[Path]):
        self.files = files
        self.names = []
        labels = []
        self._row_groups: list[tuple[int, int, int]] = []  # first row, file number, group number
        rows = 0
        _refuse_shards(root, files)
        self.classes = _class_names(files[0], _open_parquet(files[0]))
        for number, path in enumerate(files):
            file = _open_parquet(path)
            for group in range(file.num_row_groups):
                self._row_groups.append((rows, number, group))
                rows += file.metadata.row_group(group).num_rows
            # Labels only. The images, nearly all of the file, are read by row group in `read`.
            column = file.read(columns=["label"]).column("label")
            if column.null_count:
                raise DataError(f"{path}: no label in {counted(column.null_count, 'row')}")
            labels.append(column.to_numpy())
            relative = os.path.relpath(path, root)
            # The row within the file: the name of an image does not depend on the other files.
            self.names += [f"{relative}:{row}" for row in range(len(labels[-1]))]
            refuse_other_names(files[0], self.classes, path, _class_names(path, file))
        self.labels = np.concatenate(labels).astype(np.int64)
        if not rows:
            raise DataError(f"{root}: the Parquet files hold no rows")
        if self.labels.min() < 0:
            raise DataError(
                f"{root}: label {self.labels.min()} is negative, as in test splits without labels; "
                "labels count from 0"
            )
        if self.classes is not None and self.labels.max() >= len(self.classes):
            raise DataError(
                f"{root}: label {self.labels.max()}, but the files name {len(self.classes)} classes"
            )
        self._starts = np.array([first for first, _, _ in self._row_groups])
        self._cache: OrderedDict[int, pa.Array] = OrderedDict()

    def read(self, row: int) -> bytes:
        """Raises Undecodable if the row holds no bytes: `datasets` may write only a path."""
        # The last row group that starts at or before `row`.
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        content = self._group(index)[row - int(self._starts[index])].as_py()
        if content is None:
            raise Undecodable("the row holds no image bytes (perhaps only the path of a file)")
        return bytes(content)

    def _group(self, index: int) -> pa.Array:
        """The encoded images of one row group. A cache keeps the most recently used groups."""
        if index not in self._cache:
            _, number, group = self._row_groups[index]
            try:
                table = pq.ParquetFile(self.files[number]).read_row_group(
                    group, columns=["image.bytes"], use_threads=False
                )
            except (OSError, pa.ArrowException) as error:
                path = self.files[number]
                raise DataError(f"{path}: row group {group} is damaged ({error})") from error
            self._cache[index] = table.column("image").combine_chunks().field("bytes")
            # The group just read is kept even if it alone exceeds the limit.
            while len(self._cache) > 1 and self._cached_bytes() > _CACHED_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(index)
        return self._cache[index]

    def _cached_bytes(self) -> int:
        return sum(group.nbytes for group in self._cache.values())


def refuse_copies(root: Path, files: list[Path]) -> None:
    """Raise DataError if two of `files` are identical: their rows would count twice."""
    # Only files of one size can be identical; other files are not read.
    of_size: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        try:
            of_size[os.path.getsize(path)].append(path)
        except OSError as error:
            raise DataError(f"{path}: not readable ({error.strerror})") from error
    for size, same_size in of_size.items():
        for position, path in enumerate(same_size):
            for other in same_size[:position]:
                if size and filecmp.cmp(other, path, shallow=False):
                    first, second = (os.path.relpath(file, root) for file in (other, path))
                    raise DataError(
                        f"{root}: {first} and {second} have identical content: their rows would "
                        "be read twice. Remove one of them"
                    )


def _refuse_shards(root: Path, files: list[Path]) -> None:
    """Raise DataError if numbered shards are missing or present twice."""
    shards: dict[str, dict[int, str]] = defaultdict(dict)
    totals: dict[str, int] = {}
    for path in files:
        relative = os.path.relpath(path, root)
        # `datasets` writes train-00000-of-00009.parquet; some sets have 0.parquet, 1.parquet, ...
        if match := re.fullmatch(r"(.*?)(\d+)-of-(\d+).*", path.stem):
            prefix, number = match[1].casefold().rstrip("-_. "), int(match[2])
            if totals.setdefault(prefix, int(match[3])) != int(match[3]):
                raise DataError(
                    f"{root}: {relative} is one of {int(match[3])} shards, others are of "
                    f"{totals[prefix]}: the folder has two sets of shards. Remove one of them"
                )
        elif path.stem.isdecimal():
            prefix, number = os.path.dirname(relative) + os.sep, int(path.stem)
        else:
            continue
        other = shards[prefix].setdefault(number, relative)
        if other != relative:
            raise DataError(
                f"{root}: shard {number} exists twice, as {other} and as {relative}: two copies or "
                "two configurations. Give the folder of one of them as the root"
            )
    for path in files:
        if path.stem.casefold() in totals:
            raise DataError(
                f"{root}: {os.path.relpath(path, root)} is next to shards of the same name "
                f"({shards[path.stem.casefold()].popitem()[1]}): its rows may be read twice. "
                "Remove one or the other"
            )
    for prefix, paths in shards.items():
        # Without "-of-": n shards are numbered 0 to n - 1, or 1 to n.
        total = totals.get(prefix, max(paths) + (min(paths) == 0))
        start = 1 if max(paths) >= total else 0
        missing = sorted(set(range(start, start + total)) - paths.keys())
        # Numbers without "-of-" that start above 1 are not shards but years, for example.
        if missing and (prefix in totals or min(paths) <= 1):
            raise DataError(
                f"{root}: of the {total} shards like {paths[min(paths)]} these are missing: "
                f"{', '.join(map(str, missing[:9]))}. Download them; or rename the files, to use "
                "only a part of the data"
            )


def refuse_other_names(
    first: Path, expected: list[str] | None, path: Path, names: list[str] | None
) -> None:
    """Raise DataError unless both files name the same classes in the same order."""
    if names != expected:
        raise DataError(
            f"{path}: has {_summary(names)}, {first.name} has {_summary(expected)}: equal labels "
            "may be different classes. Write both files with the same ClassLabel"
        )


def _summary(names: list[str] | None) -> str:
    if names is None:
        return "no class names"
    return f"{len(names)} classes ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not readable as Parquet ({error})") from error
    schema = file.schema_arrow
    image = schema.field("image").type if "image" in schema.names else None
    label = schema.field("label").type if "label" in schema.names else None
    if image is None or label is None or not pa.types.is_struct(image):
        raise DataError(
            f"{path}: columns are {', '.join(schema.names)}; needed: image (a struct with the "
            "field bytes) and label (integer)"
        )
    if not _is_bytes(image) or not pa.types.is_integer(label):
        raise DataError(
            f"{path}: image is {image} and label is {label}; needed: image a struct with the field "
            "bytes (encoded image), label integer"
        )
    return file


def _is_bytes(image: pa.StructType) -> bool:
    index = image.get_field_index("bytes")
    dtype = image.field(index).type if index >= 0 else None
    return dtype is not None and (pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype))


def _class_names(path: Path, file: pq.ParquetFile) -> list[str] | None:
    """The `ClassLabel` names that `datasets` writes to the schema's metadata; None if absent."""
    metadata = (file.schema_arrow.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        names: Any = json.loads(metadata)
    except ValueError as error:
        raise DataError(f"{path}: the metadata of `datasets` is not JSON ({error})") from error
    # {"info": {"features": {"label": {"names": [...]}}}}
    for key in ("info", "features", "label", "names"):
        names = names.get(key) if isinstance(names, dict) else None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: the class names are not a list of strings: {names!r:.80}")
    return names
