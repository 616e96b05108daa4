"""The folder of an edit: its record, and the results that are complete on disk.

results.json has the checksums of each result's files and is written after them. A result that it
does not list, or whose files differ from it, is drawn again.
"""

import json
import re
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.editing.request import EditSet
from pipelines.workspace.store import (
    ConfigMismatchError,
    raise_if_mismatch,
    read_record,
    record_differences,
)
from var_scaling.disk import DONE, atomic_write, is_done, read_json, write_json
from var_scaling.text import counted

RECORD, RESULTS, MANIFEST, SHEET = "edit.json", "results.json", "manifest.json", "sheet.png"
_RESULT = re.compile(r"(generated|kept)-\d+\.png")

Checksums = dict[str, int]  # CRC-32 by file name


class EditFolder:
    """The folder of the edit `edit`."""

    def __init__(self, folder: Path, edit: EditSet):
        self.folder, self.edit = folder, edit

    @property
    def preview(self) -> str:
        """The file that shows the input of the model."""
        return "enlarged.png" if self.edit.kind == "super-resolve" else "hole.png"

    def files(self, index: int) -> tuple[str, ...]:
        """The file names of one result; the last is the final image."""
        kinds = ("generated",) if self.edit.kind == "super-resolve" else ("generated", "kept")
        return tuple(f"{kind}-{index}.png" for kind in kinds)

    def refuse_other(self) -> None:
        """Raise ConfigMismatchError if the folder has results of another edit, or more of this one.

        An edit that failed before its first result does not block the name, and a larger count that
        was not completed does not count. Writes nothing.
        """
        path = self.folder / RECORD
        if not path.exists() or not self._results():
            return
        existing = self._recorded()
        # A result depends on its own index and not on the count, so only the count may differ.
        if existing.model_copy(update={"count": self.edit.count}) != self.edit:
            raise_if_mismatch(path, record_differences(path, self.edit))
        if existing.count > self.edit.count and is_done(self.folder):
            raise ConfigMismatchError(
                f"{self.folder} has {counted(existing.count, 'result')} already. Ask for --count "
                f"{existing.count} or more, or give the new edit a --name of its own"
            )

    def init_run_dir(self) -> None:
        """Write the record, and remove results without a record. Raises ConfigMismatchError."""
        self.refuse_other()
        path = self.folder / RECORD
        # Before the record changes: if the process is killed in between, the edit is unfinished,
        # not done with too few results.
        (self.folder / DONE).unlink(missing_ok=True)
        # Without a record it is unknown which edit made the results.
        if not path.exists():
            for stale in (self.folder / RESULTS, *self._results()):
                stale.unlink(missing_ok=True)
        with atomic_write(path) as temporary_path:
            temporary_path.write_text(self.edit.model_dump_json(indent=1) + "\n")

    def missing(self) -> list[int]:
        """The results with a file that is missing or differs from its checksum."""
        # Reads every file, unlike `SampleFolder.stored_images`, which compares sizes.
        checksums = self._checksums()
        return [
            index
            for index in range(self.edit.count)
            if {name: _crc32(self.folder / name) for name in self.files(index)}
            != checksums.get(str(index))
        ]

    def is_complete(self) -> bool:
        """Whether the edit is done and all its files exist."""
        files = ("original.png", self.preview, SHEET, MANIFEST)
        return (
            is_done(self.folder)
            and (self.folder / RECORD).exists()
            and self._recorded() == self.edit
            and all((self.folder / name).is_file() for name in files)
            and not self.missing()
        )

    def write_result(self, index: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write the images of one result, by file name, then record their checksums."""
        checksums = {
            name: self.write_image(name, pixels_hw3) for name, pixels_hw3 in pictures.items()
        }
        write_json(self.folder / RESULTS, {**self._checksums(), str(index): checksums})

    def write_image(self, name: str, pixels_hw3: np.ndarray) -> int:
        """Write an image as PNG and return the CRC-32 of the file."""
        buffer = BytesIO()
        Image.fromarray(pixels_hw3).save(buffer, format="PNG")
        with atomic_write(self.folder / name) as temporary_path:
            temporary_path.write_bytes(buffer.getvalue())
        # Of the intended bytes: read from the file, the checksum would agree with whatever a faulty
        # disk returns.
        return zlib.crc32(buffer.getvalue())

    def read(self, name: str) -> np.ndarray:
        with Image.open(self.folder / name, formats=("PNG",)) as image:
            return np.asarray(image)

    def _recorded(self) -> EditSet:
        # Through JSON text: records are strict, and pydantic accepts a list as a tuple only from
        # JSON.
        fields = read_record(self.folder / RECORD, EditSet)
        return EditSet.model_validate_json(json.dumps(fields))

    def _results(self) -> list[Path]:
        """Files that have the name of a result."""
        paths = self.folder.glob("*.png")
        return [path for path in paths if _RESULT.fullmatch(path.name) and path.is_file()]

    def _checksums(self) -> dict[str, Checksums]:
        """Checksums of each result, by index; empty if results.json is missing or unreadable."""
        try:
            results = read_json(self.folder / RESULTS)
        # No error: without checksums the results are drawn again.
        except (FileNotFoundError, IsADirectoryError, ValueError):
            return {}
        return results if isinstance(results, dict) else {}


def _crc32(path: Path) -> int | None:
    try:
        return zlib.crc32(path.read_bytes())
    except FileNotFoundError:
        return None
