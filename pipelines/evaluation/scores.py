"""What was measured of finished models: beside their images and weights, and in the results row.

`fidelity.json` lies in a set of samples or with a tokenizer; `speed.json` with a model (speed.py).
No torch.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.evaluation.throughput import SPEED as SPEED
from pipelines.evaluation.throughput import speed_columns
from pipelines.workspace.log_end import latest_line
from pipelines.workspace.store import file_lock
from var_scaling.disk import read_json, write_json
from var_scaling.record import Record, explain

FIDELITY = "fidelity.json"
_SPREADS = ("_std", "_stderr")  # how the names of spreads end
_FORMAT = 1  # of fidelity.json
_WAIT = 30.0  # seconds, while another process writes its lines
# Column of the results row: what an extractor calls it.
_SCORES = {
    "fid": "fid",
    "inception_score": "inception_score",
    "kid": "kid",
    "fidelity_precision": "precision",
    "fidelity_recall": "recall",
    "fd_seeded": "fd_seeded",
}
NUMBERS = (
    *_SCORES, "fidelity_samples", "sampling_images_per_second", "sampling_latency_seconds",
    "sampling_peak_memory_bytes", "training_tokens_per_second", "training_mfu",
)  # fmt: skip
WORDS = ("fidelity_set", "fidelity_reference", "speed_machine")


class Fidelity(Record):
    """What one extractor found in one set of images, compared with one reference."""

    images: str  # what was judged, in words
    set: str | None  # of samples; None: a tokenizer's reconstructions, or a folder
    scores: dict[str, float]  # by their right names: FID only where Inception looked
    samples: int
    references: int | None  # images; None: external statistics, which do not record it
    counts: dict[str, int]  # what KID, precision and recall were drawn from
    extractor: str
    extractor_sha256: str
    reference: str  # data-split, or a file's name with the head of its hash
    reference_sha256: str  # of the statistics
    commit: str | None
    time: str  # UTC
    seconds: float
    device: str

    @property
    def with_spreads(self) -> dict[str, tuple[float, float | None]]:
        """Each score, and its standard error, or its spread over splits or subsets."""
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
    """What was found so far in the images of `folder`, oldest first. Raises ValueError."""
    path = folder / FIDELITY
    if not path.exists():
        return []
    file_lock = read_json(path)
    if file_lock.get("format") != _FORMAT:
        raise ValueError(f"{path}: format {file_lock.get('format')}, this version reads {_FORMAT}")
    try:
        return [Fidelity.model_validate(one) for one in file_lock["measured"]]
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, Fidelity)}; move it away") from error


def note_fidelity(folder: Path, found: Fidelity) -> None:
    """Add `found`, in place of what the same extractor found against the same reference before."""
    with file_lock(folder, wait=_WAIT, file="fidelity.lock"):
        kept = [one for one in fidelities(folder) if _told_apart(one) != _told_apart(found)]
        entries = [one.model_dump(mode="json") for one in (*kept, found)]
        write_json(folder / FIDELITY, {"format": _FORMAT, "measured": entries})


def alike(found: list[Fidelity], one: Fidelity) -> list[Fidelity]:
    """Those of as many of the same images and the same reference: what may stand in a row."""
    return [other for other in found if _basis(other) == _basis(one)]


def has_row(folder: Path) -> bool:
    """Whether results tables have a row of the model in `folder`: one that was evaluated."""
    return latest_line(folder / "metrics.jsonl", "validation") is not None


def columns(folder: Path) -> dict[str, Any]:
    """What the results row of the finished model in `folder` has of all this; absent is absent.

    NUMBERS and WORDS are the names that may be there.
    """
    return {**_fidelity_columns(folder), **speed_columns(folder)}


def _fidelity_columns(folder: Path) -> dict[str, Any]:
    """Of the set with the most samples; of equals that named `default`, then the last measured.

    There Inception comes first. All numbers are of the same samples against the same reference.
    """
    found = [one for path in sorted(folder.glob(f"samples/*/{FIDELITY}"))
             for one in fidelities(path.parent)]  # fmt: skip
    if not found:
        return {}
    chosen = max(found, key=lambda one: (one.samples, one.set == "default", one.time)).set
    rest = [one for one in found if one.set == chosen]
    best = max(rest, key=lambda one: ("fid" in one.scores, one.samples, one.time))
    scores = {name: x for one in alike(rest, best) for name, x in one.scores.items()}
    values = {column: scores[name] for column, name in _SCORES.items() if name in scores}
    return {
        **values,
        "fidelity_samples": best.samples,
        "fidelity_set": best.set,
        "fidelity_reference": best.reference,
    }


def _told_apart(found: Fidelity) -> tuple[str, str, str]:
    return found.images, found.extractor, found.reference


def _basis(found: Fidelity) -> tuple[str, str, int]:
    return found.images, found.reference, found.samples
