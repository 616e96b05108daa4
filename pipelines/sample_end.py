"""The end of a set of samples: the accepted ones, the pictures for people, the manifest."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipelines.pictures import grid, strips
from pipelines.sample_folder import Made, SampleFolder, put_in_images
from var_scaling.disk import read_json, whole, write_json
from var_scaling.generation.sets import NONE, SampleSet
from var_scaling.generation.settings import Request

if TYPE_CHECKING:
    from pipelines.loaded import Loaded

MANIFEST, GRID, STRIPS = "manifest.json", "grid.png", "strips.png"
_FORMAT = 1  # of manifest.json
_ROWS, _COLUMNS = 16, 12  # of the grid


def end_set(at: SampleFolder, address: str) -> list[int]:
    """Write all but the marker that it is done; or the chunks of which an image is missing."""
    found, lacking = at.look_at_all()
    if lacking:
        return lacking
    wanted = at.wanted
    kept, rejection = list(found), None
    if wanted.rejection is not None:
        from var_scaling.generation.reject import accept

        scores = {request: made.score for request, made in found.items() if made.score is not None}
        kept, thresholds = accept(scores, wanted.count)
        rejected: dict[str, dict[str, float]] = {}
        for request in scores.keys() - set(kept):
            of_class = rejected.setdefault(wanted.folder(request.label), {})
            of_class[str(request.index)] = scores[request]
        rejection = {
            **wanted.rejection.model_dump(mode="json"),
            "candidates": wanted.candidates,
            "rate_real": wanted.count / wanted.candidates,
            "thresholds": {wanted.folder(label): least for label, least in thresholds.items()},
            "rejected": rejected,
        }
        put_in_images(at, kept)
    _save(at.folder / GRID, _grid(at.folder, wanted, kept, address))
    write_json(at.folder / MANIFEST, _manifest(at, kept, found, address, rejection))
    return []


def images_of(folder: Path) -> list[dict[str, Any]]:
    """Every image of a set that is done, in the order of drawing: file, class, index."""
    return list(read_json(folder / MANIFEST)["images"])


def write_strips(at: SampleFolder, loaded: "Loaded", count: int) -> None:
    """The first `count` images, each drawn once more, to be shown scale by scale."""
    from var_scaling.generation.sample import sample

    wanted = at.wanted
    requests = [Request(one["class"], one["index"]) for one in images_of(at.folder)[:count]]
    drawn = sample(
        loaded.model, loaded.tokenizer, requests, wanted.sampling, wanted.seed, 1, strips=True
    )
    rows = []
    for part in drawn:
        assert part.strips_BKWW3 is not None
        name = f"{_class_name(wanted, part.requests[0].label)} #{part.requests[0].index}"
        rows.append((name, list(part.strips_BKWW3[0].numpy())))
    sides = loaded.record.tokenizer.pyramid.sides
    _save(at.folder / STRIPS, strips(rows, sides, _title(wanted, loaded.address)))


def _grid(folder: Path, wanted: SampleSet, kept: list[Request], address: str) -> np.ndarray:
    of_class: dict[int, list[Request]] = {label: [] for label in _spread(wanted.classes, _ROWS)}
    for request in kept:
        row = of_class.get(request.label)
        if row is not None and len(row) < _COLUMNS:
            row.append(request)
    rows = [
        (_class_name(wanted, label), [_read(folder / "images" / wanted.file(one)) for one in row])
        for label, row in of_class.items()
    ]
    return grid(rows, _title(wanted, address))


def _manifest(
    at: SampleFolder,
    kept: list[Request],
    found: dict[Request, Made],
    address: str,
    rejection: dict[str, Any] | None,
) -> dict[str, Any]:
    lives = list(at.lives())
    images = []
    for request in kept:
        made = found[request]
        row = {
            "file": f"images/{at.wanted.file(request)}",
            "class": request.label,
            "index": request.index,
            "crc32": made.crc32,
        }
        images.append(row if made.score is None else {**row, "score": made.score})
    return {
        "format": _FORMAT,
        "address": address,
        "set": at.wanted.model_dump(mode="json"),
        "rejection": rejection,
        "commits": sorted({life.commit or "unknown" for life in lives}),
        "devices": sorted({life.device for life in lives}),
        "hosts": sorted({life.host for life in lives}),
        "seconds": sum(life.seconds for life in lives),  # of all processes together
        "ended": time.strftime("%F %T %z"),
        "images": images,
    }


def _title(wanted: SampleSet, address: str) -> str:
    """What a picture says of itself."""
    sampling = wanted.sampling
    weights = sampling.guidance if isinstance(sampling.guidance, tuple) else (sampling.guidance,)
    said = ",".join(f"{weight:g}" for weight in weights)
    if sampling.rising and not isinstance(sampling.guidance, tuple) and sampling.guidance:
        said = f"0 to {said}"
    smooth = ", smooth" if sampling.smooth else ""
    kept = f", best {wanted.rejection.rate:.0%}" if wanted.rejection else ""
    return f"{address}  guidance {said}, seed {wanted.seed}{smooth}{kept}"


def _class_name(wanted: SampleSet, label: int) -> str:
    return NONE if label == wanted.model_classes else str(label)


def _spread(labels: tuple[int, ...], most: int) -> list[int]:
    """At most so many of them, evenly from the first to the last."""
    if len(labels) <= most:
        return list(labels)
    return [labels[round(place)] for place in np.linspace(0, len(labels) - 1, most)]


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def _save(path: Path, pixels: np.ndarray) -> None:
    with whole(path) as beside:
        Image.fromarray(pixels).save(beside, format="PNG")
