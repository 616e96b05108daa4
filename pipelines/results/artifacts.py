"""What was made with a model and measured on it, as its folder has it: for MLflow and the report.

Sets of samples, edits, fidelity, speed. Their verbs write them; here they are only read. No torch.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.evaluation.scores import FIDELITY, Fidelity, alike, fidelities
from pipelines.evaluation.throughput import SPEED, machine_of, measurements
from pipelines.workspace.store import natural
from var_scaling.disk import DONE, read_json

SAMPLES, EDITS = "samples", "edits"
_PICTURES = {SAMPLES: ("grid.png", "strips.png"), EDITS: ("sheet.png",)}
_RECORDS = {SAMPLES: "sampling.json", EDITS: "edit.json"}


class Artifact(NamedTuple):
    """A set of samples, an edit or a measurement: what is brought as one."""

    place: str  # below the model's folder and below its run's artifacts: samples/SET, edits/NAME
    folder: Path
    pictures: tuple[Path, ...]
    measured: Path | None  # a fidelity.json or speed.json

    @property
    def kind(self) -> str:
        return self.place.partition("/")[0]

    @property
    def name(self) -> str:
        return self.place.partition("/")[2]

    @property
    def room(self) -> str:
        """What the names of its numbers begin with."""
        if self.measured is not None and self.measured.name == SPEED:
            return "speed/"
        return f"fidelity/{self.name or 'reconstructions'}/"

    @property
    def files(self) -> tuple[Path, ...]:
        return self.pictures if self.measured is None else (*self.pictures, self.measured)

    @property
    def stamp(self) -> str:
        """Twelve hex digits that change when a file does, by size and time of writing."""
        stats = self._stats().items()
        return _hashed(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)

    @property
    def written_ms(self) -> int:
        """When the last of it was written, in milliseconds since 1970."""
        return max(stat.st_mtime_ns for stat in self._stats().values()) // 1_000_000

    def record(self) -> dict[str, Any]:
        """What was asked for, as the verb claimed the folder with it; {} if that is not there."""
        path = self.folder / _RECORDS[self.kind]
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        return found

    def numbers(self) -> dict[str, float]:
        """What was measured, by name, as MLflow metrics. Raises ValueError for another format."""
        if self.measured is None:
            return {}
        return _speeds(self) if self.measured.name == SPEED else _fidelity(self)

    def owns(self, name: str) -> bool:
        """Whether a metric of that name can be from here and from nowhere else."""
        return self.measured is not None and name.startswith(self.room)

    def _stats(self) -> dict[str, os.stat_result]:
        return {path.name: path.stat() for path in self.files}


def made_in(folder: Path) -> list[Artifact]:
    """All that was made with the model or tokenizer in `folder`; sets and edits by name.

    A set or an edit that is not finished, or grows, is not there yet.
    """
    found = []
    for kind, names in _PICTURES.items():
        done = [path.parent for path in (folder / kind).glob(f"*/{DONE}")]
        for one in sorted(done, key=lambda path: natural(path.name)):
            pictures = tuple(one / name for name in names if (one / name).exists())
            found.append(Artifact(f"{kind}/{one.name}", one, pictures, _there(one / FIDELITY)))
    alone = [
        Artifact(Path(name).stem, folder, (), _there(folder / name)) for name in (FIDELITY, SPEED)
    ]
    return [one for one in (*found, *alone) if one.files]


def stamp_of(folders: Iterable[Path]) -> str | None:
    """One stamp of all that was made in these folders; None where nothing was."""
    stamps = [
        f"{folder.name} {one.place} {one.stamp}" for folder in folders for one in made_in(folder)
    ]
    return _hashed(stamps) if stamps else None


def _fidelity(made: Artifact) -> dict[str, float]:
    """`fidelity/SET/fid`: what was measured last, with what goes with it, so of one reference.

    Of several references, or images, each under its name as well.
    """
    found = sorted(fidelities(made.folder), key=lambda one: one.time)
    several = len({one.images for one in found}) > 1
    named: dict[str, list[Fidelity]] = {}
    for one in found:
        name = f"{one.images} {one.reference}" if several else one.reference
        named.setdefault(_key(name), []).append(one)
    numbers = _scores(made.room, found)
    if len(named) > 1:
        for name, some in named.items():
            numbers |= _scores(f"{made.room}{name}/", some)
    return numbers


def _scores(room: str, found: list[Fidelity]) -> dict[str, float]:
    """Of the last of `found` and of those that may stand beside it."""
    numbers: dict[str, float] = {}
    for one in alike(found, found[-1]) if found else []:
        numbers |= {f"{room}{name}": value for name, value in one.scores.items()}
        numbers[f"{room}samples"] = one.samples
    return numbers


def _speeds(made: Artifact) -> dict[str, float]:
    """Of each machine by precision, guidance and batch."""
    numbers: dict[str, float] = {}
    for one in measurements(made.folder):
        base = f"{made.room}{_key(machine_of(one, ' '))}"
        rows: dict[str, dict[str, float | None]] = {}
        for row in one.sampling:
            way = f"{row.precision}/guidance-{row.guidance:g}"
            way += f"/{_key(row.settings)}" if row.settings else ""
            rows[f"{base}/sampling/{way}/batch-{row.batch}"] = {
                "images_per_second": row.images_per_second,
                "latency_seconds": row.whole.median_seconds if row.whole else None,
                "transformer_mfu": row.transformer_mfu,
                "gpu_peak_bytes": row.memory.gpu_peak_bytes,
            }
        for step in one.training:
            rows[f"{base}/training/{step.precision}/batch-{step.micro_batch}"] = {
                "tokens_per_second": step.tokens_per_second,
                "mfu": step.mfu,
                "gpu_peak_bytes": step.memory.gpu_peak_bytes,
            }
        for place, found in rows.items():
            known = {name: value for name, value in found.items() if value is not None}
            numbers |= {f"{place}/{name}": float(value) for name, value in known.items()}
    return numbers


def _key(text: str) -> str:
    """`text` in the characters that MLflow allows in the name of a metric."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)


def _there(path: Path) -> Path | None:
    return path if path.exists() else None


def _hashed(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
