"""Saved FID and related scores, and the columns of the results table that they fill. No torch.

`fidelity.json` is in the folder of a set of samples or of a tokenizer. `speed.json` is in the
folder of a model (see throughput.py).
"""

from pathlib import Path
from typing import Any

from pipelines.evaluation.throughput import SPEED as SPEED
from pipelines.evaluation.throughput import benchmark_columns
from pipelines.workspace.log_end import latest_line
from pipelines.workspace.store import file_lock, read_measurements, write_measurements
from var_scaling.record import Record

FIDELITY = "fidelity.json"
_SPREADS = ("_std", "_stderr")  # suffixes of the names of spreads
_WAIT = 30.0  # seconds to wait while another process writes the file
# Results column -> name of the score in `Fidelity.scores`.
_SCORES = {
    "fid": "fid",
    "inception_score": "inception_score",
    "kid": "kid",
    "fidelity_precision": "precision",
    "fidelity_recall": "recall",
    "fd_seeded": "fd_seeded",
}
NUMBER_COLUMNS = (
    *_SCORES, "fidelity_samples", "sampling_images_per_second", "sampling_latency_seconds",
    "sampling_peak_memory_bytes", "training_tokens_per_second", "training_mfu",
)  # fmt: skip
TEXT_COLUMNS = ("fidelity_set", "fidelity_reference", "speed_machine")


class Fidelity(Record):
    """The scores of one set of images against one reference, with one extractor."""

    images: str  # description of the scored images
    set: str | None  # set of samples; None: reconstructions, or a folder
    scores: dict[str, float]  # "fid" only with Inception features
    samples: int
    references: int | None  # reference images; None: external statistics do not record it
    counts: dict[str, int]  # subset size of KID, features for precision and recall
    extractor: str
    extractor_sha256: str
    reference: str  # data-split, or a file name with the head of its hash
    reference_sha256: str  # of the statistics file
    commit: str | None
    time: str  # UTC
    seconds: float
    device: str

    @property
    def with_spreads(self) -> dict[str, tuple[float, float | None]]:
        """Each score with its standard error or its spread over splits or subsets; None without."""
        spreads = {
            name.removesuffix(end): value
            for name, value in self.scores.items()
            for end in _SPREADS
            if name.endswith(end)
        }
        return {
            name: (value, spreads.get(name))
            for name, value in self.scores.items()
            if not name.endswith(_SPREADS)
        }


def fidelities(folder: Path) -> list[Fidelity]:
    """The saved scores of the images in `folder`, oldest first.

    Raises ValueError if the file cannot be read.
    """
    return read_measurements(folder / FIDELITY, Fidelity)


def save_fidelity(folder: Path, fidelity: Fidelity) -> None:
    """Save `fidelity`, replacing the scores of the same images, extractor and reference."""
    with file_lock(folder, wait=_WAIT, file="fidelity.lock"):
        # Read while the lock is held: two networks may score the same images at once.
        others = [one for one in fidelities(folder) if _identity(one) != _identity(fidelity)]
        write_measurements(folder / FIDELITY, (*others, fidelity))


def comparable(candidates: list[Fidelity], fidelity: Fidelity) -> list[Fidelity]:
    """Those with the same images, sample count and reference: they may share a table row."""
    return [one for one in candidates if _basis(one) == _basis(fidelity)]


def has_row(folder: Path) -> bool:
    """Whether results tables have a row of the model in `folder`: only evaluated models do."""
    return latest_line(folder / "metrics.jsonl", "validation") is not None


def columns(folder: Path) -> dict[str, Any]:
    """The columns of the results row that later measurements of a finished model fill.

    A value that was not measured is absent. All names are in NUMBER_COLUMNS or TEXT_COLUMNS.
    """
    return {**_fidelity_columns(folder), **benchmark_columns(folder)}


def _fidelity_columns(folder: Path) -> dict[str, Any]:
    """Scores of the set with the most samples; among equals, `default`, then the latest.

    Within the set, Inception is preferred. All scores are of the same samples and reference.
    """
    found = [one for path in sorted(folder.glob(f"samples/*/{FIDELITY}"))
             for one in fidelities(path.parent)]  # fmt: skip
    if not found:
        return {}
    # `time` is ISO 8601 in UTC, so its text sorts by time.
    chosen = max(found, key=lambda one: (one.samples, one.set == "default", one.time)).set
    rest = [one for one in found if one.set == chosen]
    best = max(rest, key=lambda one: ("fid" in one.scores, one.samples, one.time))
    scores = {name: x for one in comparable(rest, best) for name, x in one.scores.items()}
    values = {column: scores[name] for column, name in _SCORES.items() if name in scores}
    return {
        **values,
        "fidelity_samples": best.samples,
        "fidelity_set": best.set,
        "fidelity_reference": best.reference,
    }


def _identity(fidelity: Fidelity) -> tuple[str, str, str]:
    return fidelity.images, fidelity.extractor, fidelity.reference


def _basis(fidelity: Fidelity) -> tuple[str, str, int]:
    return fidelity.images, fidelity.reference, fidelity.samples
