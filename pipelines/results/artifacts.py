"""Read the samples, edits and measurements in a model's folder, for MLflow and the report.

The commands `sample`, `edit`, `fidelity` and `speed` write them. No torch.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.evaluation.scores import FIDELITY, Fidelity, comparable, fidelities
from pipelines.evaluation.throughput import SPEED, machine_name, read_benchmarks
from pipelines.workspace.store import natural_key
from var_scaling.disk import DONE, read_json

SAMPLES, EDITS = "samples", "edits"
_PICTURES = {SAMPLES: ("grid.png", "strips.png"), EDITS: ("sheet.png",)}
_RECORDS = {SAMPLES: "sampling.json", EDITS: "edit.json"}


class Artifact(NamedTuple):
    """A set of samples, an edit or a measurement. The mirror uploads its files together."""

    path: str  # samples/SET, edits/NAME, fidelity or speed; in the model's folder and in MLflow
    folder: Path
    pictures: tuple[Path, ...]
    measured: Path | None  # fidelity.json or speed.json

    @property
    def kind(self) -> str:
        return self.path.partition("/")[0]

    @property
    def name(self) -> str:
        return self.path.partition("/")[2]

    @property
    def metric_prefix(self) -> str:
        """The prefix of the names of its metrics."""
        if self.measured is not None and self.measured.name == SPEED:
            return "speed/"
        return f"fidelity/{self.name or 'reconstructions'}/"

    @property
    def files(self) -> tuple[Path, ...]:
        return self.pictures if self.measured is None else (*self.pictures, self.measured)

    @property
    def stamp(self) -> str:
        """Twelve hex digits of the files' sizes and modification times; they change with a file."""
        # Sizes and times instead of contents, so that the check reads no picture.
        stats = self._stats().items()
        return _hash(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)

    @property
    def written_ms(self) -> int:
        """The latest modification time of its files, in milliseconds since 1970."""
        # The mirror logs the metrics with this time: logging them again then adds no rows.
        return max(stat.st_mtime_ns for stat in self._stats().values()) // 1_000_000

    def record(self) -> dict[str, Any]:
        """The options that it was made with; {} if they are not recorded."""
        path = self.folder / _RECORDS[self.kind]
        options: dict[str, Any] = read_json(path) if path.exists() else {}
        return options

    def metrics(self) -> dict[str, float]:
        """The measured values as MLflow metrics. Raises ValueError for another file format."""
        if self.measured is None:
            return {}
        return _speeds(self) if self.measured.name == SPEED else _fidelity(self)

    def owns(self, name: str) -> bool:
        """Whether the metric `name` can only come from this artifact."""
        # The mirror sets owned metrics that are no longer measured to NaN.
        return self.measured is not None and name.startswith(self.metric_prefix)

    def _stats(self) -> dict[str, os.stat_result]:
        return {path.name: path.stat() for path in self.files}


def artifacts_in(folder: Path) -> list[Artifact]:
    """All artifacts of the model or tokenizer in `folder`; sets and edits are sorted by name.

    Unfinished sets and edits are left out.
    """
    artifacts = []
    for kind, names in _PICTURES.items():
        done = [path.parent for path in (folder / kind).glob(f"*/{DONE}")]
        for path in sorted(done, key=lambda path: natural_key(path.name)):
            pictures = tuple(path / name for name in names if (path / name).exists())
            scores = _if_exists(path / FIDELITY)
            artifacts.append(Artifact(f"{kind}/{path.name}", path, pictures, scores))
    # fidelity.json of a tokenizer's reconstructions, speed.json of a model.
    artifacts += [
        Artifact(Path(name).stem, folder, (), _if_exists(folder / name))
        for name in (FIDELITY, SPEED)
    ]
    return [artifact for artifact in artifacts if artifact.files]


def combined_stamp(folders: Iterable[Path]) -> str | None:
    """One stamp of all artifacts in these folders; None if there are none."""
    stamps = [
        f"{folder.name} {artifact.path} {artifact.stamp}"
        for folder in folders
        for artifact in artifacts_in(folder)
    ]
    return _hash(stamps) if stamps else None


def _fidelity(artifact: Artifact) -> dict[str, float]:
    """`fidelity/SET/fid`: the latest scores, all against one reference.

    With several references or sets of images, also the scores of each, with its name in the key.
    """
    fidelity = sorted(fidelities(artifact.folder), key=lambda one: one.time)
    several = len({one.images for one in fidelity}) > 1
    by_name: dict[str, list[Fidelity]] = {}
    for one in fidelity:
        name = f"{one.images} {one.reference}" if several else one.reference
        by_name.setdefault(_metric_name(name), []).append(one)
    metrics = _scores(artifact.metric_prefix, fidelity)
    if len(by_name) > 1:
        for name, group in by_name.items():
            metrics |= _scores(f"{artifact.metric_prefix}{name}/", group)
    return metrics


def _scores(prefix: str, fidelity: list[Fidelity]) -> dict[str, float]:
    """The scores of the last of `fidelity` and of those comparable with it."""
    metrics: dict[str, float] = {}
    for one in comparable(fidelity, fidelity[-1]) if fidelity else []:
        metrics |= {f"{prefix}{name}": value for name, value in one.scores.items()}
        metrics[f"{prefix}samples"] = one.samples
    return metrics


def _speeds(artifact: Artifact) -> dict[str, float]:
    """The speed on each machine, by precision, guidance and batch size."""
    metrics: dict[str, float] = {}
    for result in read_benchmarks(artifact.folder):
        base = f"{artifact.metric_prefix}{_metric_name(machine_name(result, ' '))}"
        rows: dict[str, dict[str, float | None]] = {}
        for row in result.sampling:
            settings = f"{row.precision}/guidance-{row.guidance:g}"
            settings += f"/{_metric_name(row.settings)}" if row.settings else ""
            rows[f"{base}/sampling/{settings}/batch-{row.batch}"] = {
                "images_per_second": row.images_per_second,
                "latency_seconds": row.whole.median_seconds if row.whole else None,
                "transformer_mfu": row.transformer_mfu,
                "gpu_peak_bytes": row.memory.gpu_peak_bytes,
            }
        for step in result.training:
            rows[f"{base}/training/{step.precision}/batch-{step.micro_batch}"] = {
                "tokens_per_second": step.tokens_per_second,
                "mfu": step.mfu,
                "gpu_peak_bytes": step.memory.gpu_peak_bytes,
            }
        for prefix, values in rows.items():
            known = {name: value for name, value in values.items() if value is not None}
            metrics |= {f"{prefix}/{name}": float(value) for name, value in known.items()}
    return metrics


def _metric_name(text: str) -> str:
    """`text` with only characters that MLflow allows in metric names."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)


def _if_exists(path: Path) -> Path | None:
    return path if path.exists() else None


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
