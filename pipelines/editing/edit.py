"""One edit made: a person's picture in, pictures with the hole filled, or with detail, out.

Below the model's folder in edits/<name>/: edit.json, the record; original.png; hole.png (the hole
under stripes) or enlarged.png; generated-<i>.png, what the decoder makes of it; kept-<i>.png, the
picture itself with the hole filled; results.json; sheet.png; manifest.json; done.json last.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.checkpoints.load import Loaded, load_generator
from pipelines.editing.request import EditOptions, EditSet, Plan, plan_edit
from pipelines.editing.sheet import Tile, sheet
from pipelines.editing.store import MANIFEST, SHEET, EditFolder
from pipelines.stages.context import RunContext
from pipelines.workspace.address import finished, read_generator
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import file_lock
from var_scaling.class_names import Names, brief, named, names_of
from var_scaling.disk import DONE, read_json, write_json
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.blend import fade_in, faded, overlay
from var_scaling.generation.edit import edited, encoded
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.autoencoder import to_pixels

_BATCH = 4  # images at a time: enough to fill a GPU, few enough for one of any size
_SHOWN = 8  # results on the sheet
_FORMAT = 1  # of manifest.json

ReportProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """An edit and where it is."""

    folder: Path
    edit: EditSet
    kept: int  # tokens of the picture itself
    drawn: int  # tokens of each result that are new
    missed: float  # share of the hole, or of the small picture, that the model did not see
    anew: bool  # whether anything was left to be done
    names: Names | None = None  # of the model's classes


def edit_picture(
    context: RunContext, address: str, asked: EditOptions, report_progress: ReportProgress
) -> Outcome:
    """Make the edit that is `asked` for with the model at `address`, or what is missing of it.

    Raises ValueError for what cannot be, before anything is written; Drift if the name is taken
    by another edit; Busy if another process is at it; OSError for files.
    """
    folder = finished(context.home, address)
    record = read_generator(folder)
    tokenizer = finished(context.home, f"tokenizers/{record.tokenizer.name}")
    hashes = [read_json(home / DONE)["weights_sha256"] for home in (folder, tokenizer)]
    names = names_of(folder, record.classes)
    plan = plan_edit(asked, record, names, *hashes)
    edits = folder / "edits" / plan.edit.name
    with file_lock(edits):
        at = EditFolder(edits, plan.edit)
        at.refuse_other()
        anew = not at.is_whole()
        if anew:
            torch.set_num_threads(context.drawing_threads())
            loaded = load_generator(context, address)
            at.init_run_dir()
            _make(at, loaded, plan, asked, context, report_progress)
    kept = int(plan.scene.keep_L.sum())
    drawn = record.tokenizer.pyramid.length - kept
    return Outcome(edits, plan.edit, kept, drawn, plan.missed, anew, names)


def _make(
    at: EditFolder,
    loaded: Loaded,
    plan: Plan,
    asked: EditOptions,
    context: RunContext,
    report_progress: ReportProgress,
) -> None:
    edit, hole_hw, began = plan.edit, plan.hole_hw, time.time()
    at.keep("original.png", plan.picture_hw3)
    shown_hw3 = plan.scene.square_HH3 if hole_hw is None else overlay(plan.picture_hw3, hole_hw)
    at.keep(at.shown, shown_hw3)
    # A result depends on its own number only: those that a stopped attempt left are as good.
    missing, fade_SS = at.missing(), None
    if hole_hw is not None and missing:
        fade_SS = fade_in(hole_hw, plan.scene.window, edit.feather_px)
    requests = [Request(edit.label, index) for index in missing]
    batch = min(_BATCH, context.process.micro_batch_size or _BATCH)
    done = edit.count - len(missing)
    report_progress(f"editing {edit.name}", done, edit.count)
    for part in edited(
        loaded.record.spec,
        loaded.model,
        loaded.tokenizer,
        plan.scene,
        requests,
        edit.sampling,
        edit.seed,
        batch,
    ):
        for request, image_HH3 in zip(part.requests, part.images_BWW3.numpy(), strict=True):
            pictures = [image_HH3]
            if fade_SS is not None:
                pictures += [faded(plan.picture_hw3, image_HH3, plan.scene.window, fade_SS)]
            names = at.names(request.index)
            at.keep_result(request.index, dict(zip(names, pictures, strict=True)))
        done += len(part.requests)
        report_progress(f"editing {edit.name}", done, edit.count)
    at.keep(SHEET, sheet(_rows(at, loaded, plan, shown_hw3)))
    write_json(at.folder / MANIFEST, _manifest(at, loaded, plan, asked, context, began))
    write_json(at.folder / DONE, {"images": edit.count})


def _rows(at: EditFolder, loaded: Loaded, plan: Plan, shown_hw3: np.ndarray) -> list[list[Tile]]:
    """The sheet: above what a person sees, below what the model saw and made."""
    edit, scene, tokenizer = plan.edit, plan.scene, loaded.tokenizer
    indices = range(min(edit.count, _SHOWN))
    of = f" of {edit.count}" if edit.count > _SHOWN else ""
    drawn = [(f"drawn {i}{of}", at.read(at.names(i)[0])) for i in indices]
    with torch.no_grad():
        back_1HH3 = to_pixels(tokenizer.decode(encoded(tokenizer, scene.square_HH3)).cpu())
    seen = [("the model sees", scene.square_HH3), ("its tokens", back_1HH3[0].numpy())]
    small = ("original", plan.picture_hw3)
    if plan.hole_hw is None:
        return [[small, *seen, *drawn]]
    told = "no class"
    if edit.label != loaded.record.classes:
        told = f"class {brief(edit.label, loaded.names)}"
    hole = (f"{edit.kind}, {told}", shown_hw3)
    results = [(f"result {i}{of}", at.read(at.names(i)[-1])) for i in indices]
    return [[small, hole, *results], [*seen, *drawn]]


def _manifest(
    at: EditFolder,
    loaded: Loaded,
    plan: Plan,
    asked: EditOptions,
    context: RunContext,
    began: float,
) -> dict[str, Any]:
    height, width = plan.picture_hw3.shape[:2]
    of_class: dict[str, Any] = {"class": None}
    if plan.edit.label != loaded.record.classes:
        of_class = named(plan.edit.label, loaded.names)
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
            {"index": i, **of_class, "files": list(at.names(i))} for i in range(plan.edit.count)
        ],
        "commit": code_version(),
        "device": str(context.device()),
        "started": time.strftime("%F %T %z", time.localtime(began)),
        "seconds": time.time() - began,
    }


def _scales(plan: Plan, pyramid: Pyramid) -> list[dict[str, int]]:
    """Tokens kept and drawn, by scale."""
    parts = plan.scene.keep_L.split(pyramid.lengths)
    kept = [int(part.sum()) for part in parts]
    return [
        {"side": side, "kept": count, "drawn": side * side - count}
        for side, count in zip(pyramid.patch_nums, kept, strict=True)
    ]
