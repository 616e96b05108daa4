"""Images in Parquet files as the Hugging Face `datasets` library writes them."""

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

_CACHED_BYTES = 1 << 30  # decoded row groups kept by one reader


class ParquetListing:
    """Columns `image` (struct with `bytes`) and `label` (integer), as `datasets` writes them."""

    def __init__(self, root: Path, files: list[Path]):
        self.files = files
        self.names = []
        labels = []
        self._place: list[tuple[int, int, int]] = []  # first row, file, row group
        rows = 0
        _refuse_shards(root, files)
        self.classes = _class_names(files[0], _open_parquet(files[0]))
        for number, path in enumerate(files):
            file = _open_parquet(path)
            for group in range(file.num_row_groups):
                self._place.append((rows, number, group))
                rows += file.metadata.row_group(group).num_rows
            column = file.read(columns=["label"]).column("label")
            if column.null_count:
                raise DataError(f"{path}: {column.null_count} rows have no label")
            labels.append(column.to_numpy())
            shown = os.path.relpath(path, root)
            self.names += [f"{shown}:{row}" for row in range(len(labels[-1]))]
            refuse_other_names(files[0], self.classes, path, _class_names(path, file))
        self.labels = np.concatenate(labels).astype(np.int64)
        if not rows:
            raise DataError(f"{root}: the Parquet files hold no rows")
        if self.labels.min() < 0:
            raise DataError(f"{root}: negative labels; a test split without labels?")
        if self.classes is not None and self.labels.max() >= len(self.classes):
            raise DataError(
                f"{root}: label {self.labels.max()}, but the files name {len(self.classes)} classes"
            )
        self._starts = np.array([first for first, _, _ in self._place])
        self._groups: OrderedDict[int, pa.Array] = OrderedDict()

    def read(self, row: int) -> bytes:
        """Raises Undecodable where the row holds no bytes: `datasets` may write a path alone."""
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        content = self._group(place)[row - int(self._starts[place])].as_py()
        if content is None:
            raise Undecodable("the row holds no bytes, or only the path of a file elsewhere")
        return bytes(content)

    def _group(self, place: int) -> pa.Array:
        """The encoded images of one row group, the most recently used kept in memory."""
        if place not in self._groups:
            _, number, group = self._place[place]
            try:
                table = pq.ParquetFile(self.files[number]).read_row_group(
                    group, columns=["image.bytes"], use_threads=False
                )
            except (OSError, pa.ArrowException) as error:
                path = self.files[number]
                raise DataError(f"{path}: row group {group} is damaged ({error})") from error
            self._groups[place] = table.column("image").combine_chunks().field("bytes")
            while len(self._groups) > 1 and self._cached_bytes() > _CACHED_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(place)
        return self._groups[place]

    def _cached_bytes(self) -> int:
        return sum(group.nbytes for group in self._groups.values())


def refuse_copies(root: Path, files: list[Path]) -> None:
    """Raise DataError if two of `files` are equal byte for byte: their rows would count twice."""
    of_size: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        try:
            of_size[os.path.getsize(path)].append(path)
        except OSError as error:
            raise DataError(f"{path}: not readable ({error.strerror})") from error
    for size, same in of_size.items():
        for at, path in enumerate(same):
            for other in same[:at]:
                if size and filecmp.cmp(other, path, shallow=False):
                    one, two = (os.path.relpath(one, root) for one in (other, path))
                    raise DataError(
                        f"{root}: {one} and {two} are the same file, byte for byte: its rows would "
                        "be read twice. Remove one of them"
                    )


def _refuse_shards(root: Path, files: list[Path]) -> None:
    """Raise DataError where numbered shards are missing, or there twice."""
    shards: dict[str, dict[int, str]] = defaultdict(dict)
    totals: dict[str, int] = {}
    for path in files:
        shown = os.path.relpath(path, root)
        if found := re.fullmatch(r"(.*?)(\d+)-of-(\d+).*", path.stem):
            kind, number = found[1].casefold().rstrip("-_. "), int(found[2])
            if totals.setdefault(kind, int(found[3])) != int(found[3]):
                raise DataError(
                    f"{root}: {shown} is a shard of {int(found[3])}, others are shards of "
                    f"{totals[kind]}: two sets lie side by side. Remove one of them"
                )
        elif path.stem.isdecimal():
            kind, number = os.path.dirname(shown) + os.sep, int(path.stem)
        else:
            continue
        other = shards[kind].setdefault(number, shown)
        if other != shown:
            raise DataError(
                f"{root}: shard {number} is there twice, as {other} and as {shown}: two copies or "
                "two configurations. Give the folder of one of them as the root"
            )
    for path in files:
        if path.stem.casefold() in totals:
            raise DataError(
                f"{root}: {os.path.relpath(path, root)} lies beside shards of the same name "
                f"({shards[path.stem.casefold()].popitem()[1]}): its rows may be there twice. "
                "Remove one or the other"
            )
    for kind, named in shards.items():
        total = totals.get(kind, max(named) + (min(named) == 0))
        start = 1 if max(named) >= total else 0
        missing = sorted(set(range(start, start + total)) - named.keys())
        if missing and (kind in totals or min(named) <= 1):  # else no shards: years, for example
            raise DataError(
                f"{root}: of the {total} shards like {named[min(named)]} these are missing: "
                f"{', '.join(map(str, missing[:9]))}. Fetch them; or rename the files, if a part "
                "of the set is all that is wanted"
            )


def refuse_other_names(
    first: Path, expected: list[str] | None, path: Path, found: list[str] | None
) -> None:
    """Raise DataError unless both files name the same classes in the same order."""
    if found != expected:
        raise DataError(
            f"{path}: has {_shown(found)}, {first.name} has {_shown(expected)}: equal labels need "
            "not be the same class. Write both files with the same ClassLabel"
        )


def _shown(names: list[str] | None) -> str:
    if names is None:
        return "no names of classes"
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
    place = image.get_field_index("bytes")
    kind = image.field(place).type if place >= 0 else None
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(path: Path, file: pq.ParquetFile) -> list[str] | None:
    """The `ClassLabel` names that `datasets` leaves in the schema's metadata, if it did."""
    metadata = (file.schema_arrow.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    try:
        read: Any = json.loads(metadata)
    except ValueError as error:
        raise DataError(f"{path}: the metadata of `datasets` is no JSON ({error})") from error
    found: Any = read
    for key in ("info", "features", "label", "names"):
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{path}: the names of its classes are no list of words: {found!r:.80}")
    return found
