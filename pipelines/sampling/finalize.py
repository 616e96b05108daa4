"""Complete a sample set: link the accepted images, write the grid and the manifest."""

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
from var_scaling.class_names import Names, class_fields, short_class_label
from var_scaling.disk import DONE, atomic_write, is_done, read_json, write_json
from var_scaling.experiment.sample_set import NONE, Request, SampleSet

if TYPE_CHECKING:
    from pipelines.checkpoints.load import LoadedModel

MANIFEST, GRID = "manifest.json", "grid.png"
_FORMAT = 1  # of manifest.json
_ROWS, _COLUMNS = 16, 12  # at most, of the grid
_ABANDONED = 3600.0  # seconds after which a temporary file belongs to a process that has died
# The file is an image or a mark (digits), or grid, strips, manifest or another file of the set. The
# hidden files of a user do not match.
_TEMPORARY = re.compile(r"\.(\d+|[a-z]+)\.(png|json)\..+\.\d+")  # names given by `atomic_write`


def is_finished(store: SampleFolder) -> bool:
    """Whether the set is done and every file of its manifest exists.

    If a file was lost, this removes the done marker, so that the file is made again.
    """
    if not (is_done(store.folder) and store.is_current()):
        return False
    if not _has_all_files(store.folder):
        (store.folder / DONE).unlink(missing_ok=True)
    return is_done(store.folder)


def finalize_set(store: SampleFolder, address: str, names: Names | None = None) -> list[int]:
    """Write everything except the done marker; if images are missing, return their chunks instead.

    `names`: class names, for grid and manifest. An image whose checksum differs from its mark is
    removed and counts as missing.
    """
    stored, incomplete = store.all_stored_images()
    if incomplete:
        return incomplete
    config = store.config
    kept, rejection = list(stored), None
    if config.rejection is not None:
        from var_scaling.generation.reject import accept

        scores = {
            request: image.score for request, image in stored.items() if image.score is not None
        }
        # Rejection: keep the `count` candidates of each class with the highest scores. The scores
        # of the others go into the manifest.
        kept, thresholds = accept(scores, config.count)
        rejected: dict[str, dict[str, float]] = {}
        for request in scores.keys() - set(kept):
            of_class = rejected.setdefault(config.folder(request.label), {})
            of_class[str(request.index)] = scores[request]
        rejection = {
            **config.rejection.model_dump(mode="json"),
            "candidates": config.candidates,
            # The number of candidates is rounded up, so this can be below `rate`.
            "rate_real": config.count / config.candidates,
            "thresholds": {config.folder(label): score for label, score in thresholds.items()},
            "rejected": rejected,
        }
    # Rejected candidates are not read: only their score is used, and the mark has it.
    damaged = set(store.damaged({request: stored[request] for request in kept}))
    if damaged:
        for request in damaged:
            # `stored_images` compares sizes only, so it would count this file as complete.
            store.path(request).unlink(missing_ok=True)
        chunks = range(config.chunks)
        return [chunk for chunk in chunks if not damaged.isdisjoint(config.chunk(chunk))]
    if config.rejection is not None:
        _link_accepted_images(store, kept)
    _save(store.folder / GRID, _grid(store.folder, config, kept, address, names))
    _remove_abandoned_files(store.folder)
    write_json(store.folder / MANIFEST, _manifest(store, kept, stored, address, rejection, names))
    return []


def list_images(folder: Path) -> list[dict[str, Any]]:
    """The images of a finished set in drawing order: a dict each, with file, class, index."""
    return list(read_json(folder / MANIFEST)["images"])


def read_image(path: Path) -> np.ndarray:
    """uint8 (W, W, 3). Raises OSError, naming the file."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise OSError(f"{path}: {error}") from error


def write_strips(store: SampleFolder, loaded: "LoadedModel", count: int) -> None:
    """Draw the first `count` images again, and show their intermediate steps as strips."""
    from var_scaling.generation.sample import sample
    from var_scaling.models.static_calls import StaticCalls

    config = store.config
    requests = [Request(row["class"], row["index"]) for row in list_images(store.folder)[:count]]
    spec = loaded.record.spec
    # Without CUDA graphs: recording them takes as long as drawing a few images.
    drawn = sample(
        spec, loaded.model, loaded.tokenizer, requests, config.sampling, config.seed, 1,
        strips=True, calls=StaticCalls(),
    )  # fmt: skip
    rows = []
    for part in drawn:
        # K frames of one image: the batch size is 1.
        assert part.strips_BKWW3 is not None
        name = (
            f"{_class_name(config, part.requests[0].label, loaded.names)} #{part.requests[0].index}"
        )
        rows.append((name, list(part.strips_BKWW3[0].numpy())))
    frames = loaded.record.family.frames(spec, config.sampling)
    _save(store.folder / STRIPS, strips(rows, frames, _title(config, loaded.address)))


def _link_accepted_images(store: SampleFolder, accepted: Iterable[Request]) -> None:
    """Link (or copy) the accepted candidates into images/, and remove other samples from it.

    Files that do not have the name of a sample are kept: a user may have put them there, or
    another process that completes the set is writing them.
    """
    # Links, because the candidates must stay where they are: with a larger --count, which images
    # are accepted may change, and a hard link takes no space.
    accepted_files = {store.config.file(request) for request in accepted}
    images = store.folder / "images"
    existing_files = {
        str(path.relative_to(images))
        for path in images.glob("*/*.png")
        if path.stem.isdecimal() and path.is_file()
    }
    for name in existing_files - accepted_files:
        (images / name).unlink(missing_ok=True)
    for name in sorted(accepted_files):
        source, target = store.drawn / name, images / name
        # `os.link` fails if its target exists, and two processes may complete the set at once. So
        # the link gets a temporary name and then replaces the target.
        with atomic_write(target) as temporary_path:
            temporary_path.unlink(missing_ok=True)  # may exist from a process that was killed
            try:
                os.link(source, temporary_path)
            except OSError:  # a file system without hard links
                temporary_path.write_bytes(source.read_bytes())


def _remove_abandoned_files(folder: Path) -> None:
    """Remove the temporary files that killed processes left in the folder of the set."""
    oldest_kept = time.time() - _ABANDONED
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(FileNotFoundError):  # its process renamed it meanwhile
                if path.stat().st_mtime < oldest_kept:
                    path.unlink()


def _has_all_files(folder: Path) -> bool:
    """Whether grid, manifest and all its images exist, each image with its recorded size."""
    try:
        sizes = {row["file"]: row["bytes"] for row in list_images(folder)}
        return (folder / GRID).is_file() and all(
            (folder / file).stat().st_size == size for file, size in sizes.items()
        )
    # A manifest that cannot be read counts as lost: it is written again from the marks.
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return False


def _grid(
    folder: Path, config: SampleSet, kept: list[Request], address: str, names: Names | None
) -> np.ndarray:
    of_class: dict[int, list[Request]] = {
        label: [] for label in _evenly_spaced(config.classes, _ROWS)
    }
    for request in kept:
        row = of_class.get(request.label)
        if row is not None and len(row) < _COLUMNS:
            row.append(request)
    rows = [
        (
            _class_name(config, label, names),
            [read_image(folder / "images" / config.file(request)) for request in row],
        )
        for label, row in of_class.items()
    ]
    return grid(rows, _title(config, address))


def _manifest(
    store: SampleFolder,
    kept: list[Request],
    stored: dict[Request, StoredImage],
    address: str,
    rejection: dict[str, Any] | None,
    names: Names | None,
) -> dict[str, Any]:
    shares = list(store.process_shares())
    images = []
    for request in kept:
        image = stored[request]
        # The null class has no name.
        unnamed = names is None or request.label == store.config.model_classes
        row = {
            "file": f"images/{store.config.file(request)}",
            **class_fields(request.label, None if unnamed else names),
            "index": request.index,
            "bytes": image.bytes,
            "crc32": image.crc32,
        }
        images.append(row if image.score is None else {**row, "score": image.score})
    return {
        "format": _FORMAT,
        "address": address,
        "set": store.config.model_dump(mode="json"),
        "rejection": rejection,
        "commits": sorted({share.commit or "unknown" for share in shares}),
        "devices": sorted({share.device for share in shares}),
        "hosts": sorted({share.host for share in shares}),
        "seconds": sum(share.seconds for share in shares),  # sum over all processes
        "ended": time.strftime("%F %T %z"),
        "images": images,
    }


def _title(config: SampleSet, address: str) -> str:
    """The title of grid and strips: address, sampling settings, seed, share kept."""
    kept = f", best {config.rejection.rate:.0%}" if config.rejection else ""
    return f"{address}  {config.sampling.describe()}, seed {config.seed}{kept}"


def _class_name(config: SampleSet, label: int, names: Names | None) -> str:
    return NONE if label == config.model_classes else short_class_label(label, names)


def _evenly_spaced(labels: tuple[int, ...], maximum: int) -> list[int]:
    """At most `maximum` labels, evenly spaced from the first to the last."""
    if len(labels) <= maximum:
        return list(labels)
    return [labels[round(index)] for index in np.linspace(0, len(labels) - 1, maximum)]


def _save(path: Path, pixels: np.ndarray) -> None:
    with atomic_write(path) as temporary_path:
        Image.fromarray(pixels).save(temporary_path, format="PNG")
