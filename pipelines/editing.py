"""One edit made: a person's picture in, pictures with the hole filled, or with detail, out.

Below the model's folder in edits/<name>/: edit.json, the record; original.png; hole.png (the hole
under stripes) or enlarged.png; generated-<i>.png, what the decoder makes of it; kept-<i>.png, the
picture itself with the hole filled; sheet.png; manifest.json; done.json last.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.address import finished, read_generator
from pipelines.edit_request import Asked, EditSet, Plan, plan_edit
from pipelines.edit_sheet import Tile, sheet
from pipelines.loaded import Loaded, load_generator
from pipelines.place import Place
from pipelines.provenance import code_version
from pipelines.store import claim, held
from var_scaling.disk import DONE, is_done, read_json, whole, write_json
from var_scaling.generation.blend import overlay, paste
from var_scaling.generation.edit import edited, encoded
from var_scaling.generation.settings import Request
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.autoencoder import to_pixels

_BATCH = 4  # images at a time: enough to fill a GPU, few enough for one of any size
_SHOWN = 8  # results on the sheet
_FORMAT = 1  # of manifest.json

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """An edit and where it is."""

    folder: Path
    edit: EditSet
    kept: int  # tokens of the picture itself
    drawn: int  # tokens of each result that are new
    missed: float  # share of the hole that the model did not see, and that stayed as it is
    anew: bool  # whether anything was left to be done


def edit_picture(place: Place, address: str, asked: Asked, tell: Tell) -> Outcome:
    """Make the edit that is `asked` for with the model at `address`, or what is missing of it.

    Raises ValueError for what cannot be, before anything is written; Drift if the name is taken
    by another edit; Busy if another process is at it; OSError for files.
    """
    folder = finished(place.home, address)
    record = read_generator(folder)
    tokenizer = finished(place.home, f"tokenizers/{record.tokenizer.name}")
    hashes = [read_json(home / DONE)["weights_sha256"] for home in (folder, tokenizer)]
    plan = plan_edit(asked, record, *hashes)
    edits = folder / "edits" / plan.edit.name
    with held(edits):
        claim(edits, "edit.json", plan.edit)
        anew = not is_done(edits)
        if anew:
            torch.set_num_threads(place.drawing_threads())
            _make(edits, load_generator(place, address), plan, asked, place, tell)
    kept = int(plan.scene.keep_L.sum())
    drawn = record.tokenizer.pyramid.length - kept
    return Outcome(edits, plan.edit, kept, drawn, plan.missed, anew)


def _make(folder: Path, loaded: Loaded, plan: Plan, asked: Asked, place: Place, tell: Tell) -> None:
    edit, began = plan.edit, time.time()
    _keep(folder / "original.png", plan.picture_hw3)
    if plan.hole_hw is None:
        _keep(folder / "enlarged.png", plan.scene.square_HH3)
    else:
        _keep(folder / "hole.png", overlay(plan.picture_hw3, plan.hole_hw))
    # A result hangs on its own number only: those that a stopped attempt left are as good.
    missing = [
        i for i in range(edit.count) if not all(p.exists() for p in _results(folder, i, plan))
    ]
    requests = [Request(edit.label, i) for i in missing]
    batch = min(_BATCH, place.seat.at_once or _BATCH)
    tell(f"editing {edit.name}", edit.count - len(missing), edit.count)
    for part in edited(
        loaded.model, loaded.tokenizer, plan.scene, requests, edit.sampling, edit.seed, batch
    ):
        for request, image_HH3 in zip(part.requests, part.images_BWW3.numpy(), strict=True):
            files = _results(folder, request.index, plan)
            _keep(files[0], image_HH3)
            if plan.hole_hw is not None:
                _keep(files[1], _pasted(plan, image_HH3))
        tell(f"editing {edit.name}", part.requests[-1].index + 1, edit.count)
    _keep(folder / "sheet.png", sheet(_rows(folder, loaded, plan)))
    write_json(folder / "manifest.json", _manifest(folder, loaded, plan, asked, place, began))
    write_json(folder / DONE, {"images": edit.count})


def _results(folder: Path, index: int, plan: Plan) -> list[Path]:
    names = ("generated",) if plan.hole_hw is None else ("generated", "kept")
    return [folder / f"{name}-{index}.png" for name in names]


def _pasted(plan: Plan, image_HH3: np.ndarray) -> np.ndarray:
    assert plan.hole_hw is not None
    window, feather = plan.scene.window, plan.edit.feather_px
    return paste(plan.picture_hw3, image_HH3, plan.hole_hw, window, feather)


def _rows(folder: Path, loaded: Loaded, plan: Plan) -> list[list[Tile]]:
    """The sheet: above what a person sees, below what the model saw and made."""
    edit, scene, tokenizer = plan.edit, plan.scene, loaded.tokenizer
    indices = range(min(edit.count, _SHOWN))
    of = f" of {edit.count}" if edit.count > _SHOWN else ""
    drawn = [(f"drawn {i}{of}", _read(folder / f"generated-{i}.png")) for i in indices]
    with torch.no_grad():
        back_1HH3 = to_pixels(tokenizer.decode(encoded(tokenizer, scene.square_HH3)).cpu())
    seen = [("the model sees", scene.square_HH3), ("its tokens", back_1HH3[0].numpy())]
    small = ("original", plan.picture_hw3)
    if plan.hole_hw is None:
        return [[small, *seen, *drawn]]
    told = "no class" if edit.label == loaded.record.classes else f"class {edit.label}"
    hole = (f"{edit.kind}, {told}", overlay(plan.picture_hw3, plan.hole_hw))
    results = [(f"result {i}{of}", _read(folder / f"kept-{i}.png")) for i in indices]
    return [[small, hole, *results], [*seen, *drawn]]


def _manifest(
    folder: Path, loaded: Loaded, plan: Plan, asked: Asked, place: Place, began: float
) -> dict[str, Any]:
    height, width = plan.picture_hw3.shape[:2]
    hole = None
    if plan.hole_hw is not None:
        hole = {
            "share_of_picture": float(plan.hole_hw.mean()),
            "share_outside_window": plan.missed,
            # If so, kept tokens beside it, and the coarse ones, know what was there.
            "shown_to_encoder": not plan.edit.blank,
        }
    return {
        "format": _FORMAT,
        "address": loaded.address,
        "edit": plan.edit.model_dump(mode="json"),
        "image": {"file": asked.image.name, "width": width, "height": height},
        "mask": None if asked.mask is None else asked.mask.name,
        "hole": hole,
        "scales": _scales(plan, loaded.record.tokenizer.pyramid),
        "images": [
            {
                "index": i,
                "class": None if plan.edit.label == loaded.record.classes else plan.edit.label,
                "files": [path.name for path in _results(folder, i, plan)],
            }
            for i in range(plan.edit.count)
        ],
        "commit": code_version(),
        "device": str(place.device()),
        "started": time.strftime("%F %T %z", time.localtime(began)),
        "seconds": time.time() - began,
    }


def _scales(plan: Plan, pyramid: Pyramid) -> list[dict[str, int]]:
    """Tokens kept and drawn, by scale."""
    parts = plan.scene.keep_L.split(pyramid.lengths)
    kept = [int(part.sum()) for part in parts]
    return [
        {"side": side, "kept": count, "drawn": side * side - count}
        for side, count in zip(pyramid.sides, kept, strict=True)
    ]


def _keep(path: Path, pixels: np.ndarray) -> None:
    with whole(path) as beside:
        Image.fromarray(pixels).save(beside, format="PNG")


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)
