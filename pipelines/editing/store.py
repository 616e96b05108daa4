"""The folder of an edit: whose home it is, and which of the results in it are whole.

results.json has the checksum of each result's files, and is written after them: what it does not
list, or what is not there as listed, is drawn again.
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
from pipelines.workspace.store import ConfigMismatchError, drift, read_record, refuse
from var_scaling.disk import DONE, is_done, read_json, whole, write_json

RECORD, RESULTS, MANIFEST, SHEET = "edit.json", "results.json", "manifest.json", "sheet.png"
_RESULT = re.compile(r"(generated|kept)-\d+\.png")

Sums = dict[str, int]  # CRC-32 by the name of a file


class EditFolder:
    """The pictures of `edit` below `folder`."""

    def __init__(self, folder: Path, edit: EditSet):
        self.folder, self.edit = folder, edit

    @property
    def shown(self) -> str:
        """What the model was given, as a picture for people."""
        return "enlarged.png" if self.edit.kind == "super-resolve" else "hole.png"

    def names(self, index: int) -> tuple[str, ...]:
        """The files of one result; the last is what it comes to."""
        kinds = ("generated",) if self.edit.kind == "super-resolve" else ("generated", "kept")
        return tuple(f"{kind}-{index}.png" for kind in kinds)

    def refuse_other(self) -> None:
        """Raise Drift if results of another edit lie here, or more of this; nothing is written.

        One that failed before its first result does not keep the name. A larger count that did
        not come to its end is no more than a wish.
        """
        path = self.folder / RECORD
        if not path.exists() or not self._results():
            return
        known = self._recorded()
        if known.model_copy(update={"count": self.edit.count}) != self.edit:
            refuse(path, drift(path, self.edit))
        if known.count > self.edit.count and is_done(self.folder):
            raise ConfigMismatchError(
                f"{self.folder} has {known.count} results already. Ask for --count {known.count} "
                "or more, or give the new edit a --name of its own"
            )

    def init_run_dir(self) -> None:
        """Be the home of `edit`; results that no record speaks for are removed. Raises Drift."""
        self.refuse_other()
        path = self.folder / RECORD
        (self.folder / DONE).unlink(missing_ok=True)
        if not path.exists():
            for stale in (self.folder / RESULTS, *self._results()):
                stale.unlink(missing_ok=True)
        with whole(path) as beside:
            beside.write_text(self.edit.model_dump_json(indent=1) + "\n")

    def missing(self) -> list[int]:
        """The results of which a file is not there as it was written."""
        noted = self._noted()
        return [
            index
            for index in range(self.edit.count)
            if {name: _crc32(self.folder / name) for name in self.names(index)}
            != noted.get(str(index))
        ]

    def is_whole(self) -> bool:
        """Whether the edit is done and all that belongs to it is there."""
        files = ("original.png", self.shown, SHEET, MANIFEST)
        return (
            is_done(self.folder)
            and (self.folder / RECORD).exists()
            and self._recorded() == self.edit
            and all((self.folder / name).is_file() for name in files)
            and not self.missing()
        )

    def keep_result(self, index: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Write the files of one result, by name, and then that they are whole."""
        sums = {name: self.keep(name, pixels_hw3) for name, pixels_hw3 in pictures.items()}
        write_json(self.folder / RESULTS, {**self._noted(), str(index): sums})

    def keep(self, name: str, pixels_hw3: np.ndarray) -> int:
        """Write a picture; its CRC-32."""
        kept = BytesIO()
        Image.fromarray(pixels_hw3).save(kept, format="PNG")
        with whole(self.folder / name) as beside:
            beside.write_bytes(kept.getvalue())
        return zlib.crc32(kept.getvalue())

    def read(self, name: str) -> np.ndarray:
        with Image.open(self.folder / name, formats=("PNG",)) as image:
            return np.asarray(image)

    def _recorded(self) -> EditSet:
        known = read_record(self.folder / RECORD, EditSet)
        return EditSet.model_validate_json(json.dumps(known))

    def _results(self) -> list[Path]:
        """Files that look like results of an edit."""
        found = self.folder.glob("*.png")
        return [path for path in found if _RESULT.fullmatch(path.name) and path.is_file()]

    def _noted(self) -> dict[str, Sums]:
        """What is noted of each result; a torn or foreign file notes nothing."""
        try:
            noted = read_json(self.folder / RESULTS)
        except (FileNotFoundError, IsADirectoryError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}


def _crc32(path: Path) -> int | None:
    try:
        return zlib.crc32(path.read_bytes())
    except FileNotFoundError:
        return None
