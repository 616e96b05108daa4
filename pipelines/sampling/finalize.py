"""The end of a set of samples: the accepted ones, the pictures for people, the manifest."""

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipelines.sampling.image_grid import grid, strips
from pipelines.sampling.store import STRIPS, SampleFolder, StoredImage
from var_scaling.class_names import Names, brief, named
from var_scaling.disk import DONE, is_done, read_json, whole, write_json
from var_scaling.experiment.sample_set import NONE, Request, SampleSet

if TYPE_CHECKING:
    from pipelines.checkpoints.load import Loaded

MANIFEST, GRID = "manifest.json", "grid.png"
_FORMAT = 1  # of manifest.json
_ROWS, _COLUMNS = 16, 12  # of the grid
_ABANDONED = 3600.0  # seconds after which a file written beside its place is a dead process's
_BESIDE = re.compile(r"\.(\d+|[a-z]+)\.(png|json)\..+\.\d+")  # as `whole` names it


def ended(at: SampleFolder) -> bool:
    """Whether the set is done and all that it lists is there.

    Where something was lost it is done no more: the marker goes, so that it is made again.
    """
    if not (is_done(at.folder) and at.is_current()):
        return False
    if not _all_there(at.folder):
        (at.folder / DONE).unlink(missing_ok=True)
    return is_done(at.folder)


def end_set(at: SampleFolder, address: str, names: Names | None = None) -> list[int]:
    """Write all but the marker that it is done; or the chunks of which an image is missing.

    `names`: of the classes, for grid and manifest.

    An image whose bytes are not those that were written is removed, and so is missing.
    """
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
    damaged = set(at.damaged({request: found[request] for request in kept}))
    if damaged:
        for request in damaged:
            at.path(request).unlink(missing_ok=True)
        chunks = range(wanted.chunks)
        return [chunk for chunk in chunks if not damaged.isdisjoint(wanted.chunk(chunk))]
    if wanted.rejection is not None:
        _put_in_images(at, kept)
    _save(at.folder / GRID, _grid(at.folder, wanted, kept, address, names))
    _sweep(at.folder)
    write_json(at.folder / MANIFEST, _manifest(at, kept, found, address, rejection, names))
    return []


def images_of(folder: Path) -> list[dict[str, Any]]:
    """Every image of a set that is done, in the order of drawing: file, class, index."""
    return list(read_json(folder / MANIFEST)["images"])


def read_image(path: Path) -> np.ndarray:
    """uint8 (W, W, 3). Raises OSError, which names the file."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise OSError(f"{path}: {error}") from error


def write_strips(at: SampleFolder, loaded: "Loaded", count: int) -> None:
    """The first `count` images, each drawn once more, to be shown as it comes about."""
    from var_scaling.generation.sample import sample

    wanted = at.wanted
    requests = [Request(one["class"], one["index"]) for one in images_of(at.folder)[:count]]
    spec = loaded.record.spec
    drawn = sample(
        spec, loaded.model, loaded.tokenizer, requests, wanted.sampling, wanted.seed, 1, strips=True
    )
    rows = []
    for part in drawn:
        assert part.strips_BKWW3 is not None
        name = (
            f"{_class_name(wanted, part.requests[0].label, loaded.names)} #{part.requests[0].index}"
        )
        rows.append((name, list(part.strips_BKWW3[0].numpy())))
    frames = loaded.record.family.frames(spec, wanted.sampling)
    _save(at.folder / STRIPS, strips(rows, frames, _title(wanted, loaded.address)))


def _put_in_images(at: SampleFolder, accepted: Iterable[Request]) -> None:
    """Make images/ hold the accepted candidates and no others: linked, or copied.

    What is not a sample by its name is left alone: a person's file, or what another process that
    ends the set writes at this moment.
    """
    wanted = {at.wanted.file(request) for request in accepted}
    images = at.folder / "images"
    there = {
        str(path.relative_to(images))
        for path in images.glob("*/*.png")
        if path.stem.isdecimal() and path.is_file()
    }
    for name in there - wanted:
        (images / name).unlink(missing_ok=True)
    for name in sorted(wanted):
        source, target = at.drawn / name, images / name
        with whole(target) as beside:
            beside.unlink(missing_ok=True)  # a dead process's
            try:
                os.link(source, beside)
            except OSError:  # a disk without hard links
                beside.write_bytes(source.read_bytes())


def _sweep(folder: Path) -> None:
    """Remove what killed processes left beside the places of the set's files."""
    long_ago = time.time() - _ABANDONED
    for path in folder.rglob(".*"):
        if _BESIDE.fullmatch(path.name):
            with suppress(FileNotFoundError):  # a living process's, which came to its place
                if path.stat().st_mtime < long_ago:
                    path.unlink()


def _all_there(folder: Path) -> bool:
    """Whether grid, manifest and every image that it lists are there, each as long as it was."""
    try:
        sizes = {row["file"]: row["bytes"] for row in images_of(folder)}
        return (folder / GRID).is_file() and all(
            (folder / file).stat().st_size == size for file, size in sizes.items()
        )
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return False


def _grid(
    folder: Path, wanted: SampleSet, kept: list[Request], address: str, names: Names | None
) -> np.ndarray:
    of_class: dict[int, list[Request]] = {label: [] for label in _spread(wanted.classes, _ROWS)}
    for request in kept:
        row = of_class.get(request.label)
        if row is not None and len(row) < _COLUMNS:
            row.append(request)
    rows = [
        (
            _class_name(wanted, label, names),
            [read_image(folder / "images" / wanted.file(one)) for one in row],
        )
        for label, row in of_class.items()
    ]
    return grid(rows, _title(wanted, address))


def _manifest(
    at: SampleFolder,
    kept: list[Request],
    found: dict[Request, StoredImage],
    address: str,
    rejection: dict[str, Any] | None,
    names: Names | None,
) -> dict[str, Any]:
    shares = list(at.shares())
    images = []
    for request in kept:
        made = found[request]
        unnamed = names is None or request.label == at.wanted.model_classes
        row = {
            "file": f"images/{at.wanted.file(request)}",
            **named(request.label, None if unnamed else names),
            "index": request.index,
            "bytes": made.bytes,
            "crc32": made.crc32,
        }
        images.append(row if made.score is None else {**row, "score": made.score})
    return {
        "format": _FORMAT,
        "address": address,
        "set": at.wanted.model_dump(mode="json"),
        "rejection": rejection,
        "commits": sorted({share.commit or "unknown" for share in shares}),
        "devices": sorted({share.device for share in shares}),
        "hosts": sorted({share.host for share in shares}),
        "seconds": sum(share.seconds for share in shares),  # of all processes together
        "ended": time.strftime("%F %T %z"),
        "images": images,
    }


def _title(wanted: SampleSet, address: str) -> str:
    """What a picture says of itself."""
    kept = f", best {wanted.rejection.rate:.0%}" if wanted.rejection else ""
    return f"{address}  {wanted.sampling.describe()}, seed {wanted.seed}{kept}"


def _class_name(wanted: SampleSet, label: int, names: Names | None) -> str:
    return NONE if label == wanted.model_classes else brief(label, names)


def _spread(labels: tuple[int, ...], most: int) -> list[int]:
    """At most so many of them, evenly from the first to the last."""
    if len(labels) <= most:
        return list(labels)
    return [labels[round(place)] for place in np.linspace(0, len(labels) - 1, most)]


def _save(path: Path, pixels: np.ndarray) -> None:
    with whole(path) as beside:
        Image.fromarray(pixels).save(beside, format="PNG")
