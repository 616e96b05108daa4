"""Edit one image: fill a hole in it, or add detail to it. The code calls the input the picture.

The files are in edits/<name>/ below the model's folder: edit.json, the record; original.png;
hole.png (the hole is striped) or enlarged.png; generated-<i>.png, the output of the decoder;
kept-<i>.png, the picture with the hole filled; results.json; sheet.png; manifest.json; done.json,
which is written last.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.checkpoints.load import LoadedModel, load_generator
from pipelines.editing.request import EditOptions, EditSet, Plan, plan_edit
from pipelines.editing.sheet import Tile, sheet
from pipelines.editing.store import MANIFEST, SHEET, EditFolder
from pipelines.sampling.settings import with_default_precision
from pipelines.stages.context import RunContext
from pipelines.workspace.address import finished_folder, read_generator
from pipelines.workspace.provenance import code_version
from pipelines.workspace.store import file_lock
from var_scaling.class_names import Names, class_fields, load_names, short_class_label
from var_scaling.disk import DONE, read_json, write_json
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.blend import fade_in, overlay, paste_with_weights
from var_scaling.generation.edit import encode_square, generate_edits
from var_scaling.process import prepare_process
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.autoencoder import to_pixels

_BATCH = 4  # images per forward pass: enough to use a GPU well, and fits into the memory of any
_SHOWN = 8  # results on the sheet, at most
_FORMAT = 1  # of manifest.json

ReportProgress = Callable[[str, int, int], None]  # (task, done, total)


@dataclass(frozen=True)
class Outcome:
    """A finished edit and its folder."""

    folder: Path
    edit: EditSet
    kept: int  # number of tokens taken from the picture
    drawn: int  # number of sampled tokens of each result
    unseen_share: float  # share of the hole (or small picture) outside the window
    newly_made: bool  # False if the edit was complete already
    names: Names | None = None  # of the model's classes


def edit_image(
    context: RunContext, address: str, options: EditOptions, report_progress: ReportProgress
) -> Outcome:
    """Make the edit `options` with the model at `address`; an edit that was begun is completed.

    Raises ValueError for invalid options, before anything is written; ConfigMismatchError if
    another edit has the name; FolderInUseError if another process works on it; OSError.
    """
    folder = finished_folder(context.home, address)
    record = read_generator(folder)
    tokenizer = finished_folder(context.home, f"tokenizers/{record.tokenizer.name}")
    hashes = [read_json(model / DONE)["weights_sha256"] for model in (folder, tokenizer)]
    names = load_names(folder, record.classes)
    given = with_default_precision(options.sampling, record, context.process.device)
    plan = plan_edit(replace(options, sampling=given), record, names, *hashes)
    edits = folder / "edits" / plan.edit.name
    with file_lock(edits):
        store = EditFolder(edits, plan.edit)
        store.refuse_other()
        newly_made = not store.is_complete()
        if newly_made:
            # As for samples: one thread on a CPU, so that a result does not depend on its batch.
            prepare_process(context.drawing_threads())
            loaded = load_generator(context, address)
            store.init_run_dir()
            _generate(store, loaded, plan, options, context, report_progress)
    kept = int(plan.scene.keep_L.sum())
    drawn = record.tokenizer.pyramid.length - kept
    return Outcome(edits, plan.edit, kept, drawn, plan.unseen_share, newly_made, names)


def _generate(
    store: EditFolder,
    loaded: LoadedModel,
    plan: Plan,
    options: EditOptions,
    context: RunContext,
    report_progress: ReportProgress,
) -> None:
    edit, hole_hw, began = plan.edit, plan.hole_hw, time.time()
    store.write_image("original.png", plan.picture_hw3)
    shown_hw3 = plan.scene.square_HH3 if hole_hw is None else overlay(plan.picture_hw3, hole_hw)
    store.write_image(store.preview, shown_hw3)
    # A result depends only on its own index, so the results of a stopped attempt can be kept.
    missing, fade_SS = store.missing(), None
    if hole_hw is not None and missing:
        fade_SS = fade_in(hole_hw, plan.scene.window, edit.feather_px)
    requests = [Request(edit.label, index) for index in missing]
    batch = min(_BATCH, context.process.micro_batch_size or _BATCH)
    done = edit.count - len(missing)
    report_progress(f"editing {edit.name}", done, edit.count)
    for part in generate_edits(
        loaded.record.spec,
        loaded.model,
        loaded.tokenizer,
        plan.scene,
        requests,
        edit.sampling,
        edit.seed,
        batch,
        context.static_calls(store.folder),
    ):
        for request, image_HH3 in zip(part.requests, part.images_BWW3.numpy(), strict=True):
            pictures = [image_HH3]
            if fade_SS is not None:
                pictures += [
                    paste_with_weights(plan.picture_hw3, image_HH3, plan.scene.window, fade_SS)
                ]
            files = store.files(request.index)
            store.write_result(request.index, dict(zip(files, pictures, strict=True)))
        done += len(part.requests)
        report_progress(f"editing {edit.name}", done, edit.count)
    store.write_image(SHEET, sheet(_rows(store, loaded, plan, shown_hw3)))
    write_json(store.folder / MANIFEST, _manifest(store, loaded, plan, options, context, began))
    write_json(store.folder / DONE, {"images": edit.count})


def _rows(
    store: EditFolder, loaded: LoadedModel, plan: Plan, shown_hw3: np.ndarray
) -> list[list[Tile]]:
    """The rows of the sheet: input and results; below them the input and output of the model."""
    edit, scene, tokenizer = plan.edit, plan.scene, loaded.tokenizer
    indices = range(min(edit.count, _SHOWN))
    of = f" of {edit.count}" if edit.count > _SHOWN else ""
    # Read from disk, because results of an earlier attempt are shown too. The first file of a
    # result is the output of the decoder, the last one the final picture.
    drawn = [(f"drawn {i}{of}", store.read(store.files(i)[0])) for i in indices]
    with torch.no_grad():
        # The input after encoding and decoding: detail that is missing here is lost by the
        # tokenizer, not by the model.
        decoded_1HH3 = to_pixels(tokenizer.decode(encode_square(tokenizer, scene.square_HH3)).cpu())
    model_input = [("the model sees", scene.square_HH3), ("its tokens", decoded_1HH3[0].numpy())]
    original = ("original", plan.picture_hw3)
    if plan.hole_hw is None:
        return [[original, *model_input, *drawn]]
    condition = "no class"
    if edit.label != loaded.record.classes:
        condition = f"class {short_class_label(edit.label, loaded.names)}"
    hole = (f"{edit.kind}, {condition}", shown_hw3)
    results = [(f"result {i}{of}", store.read(store.files(i)[-1])) for i in indices]
    return [[original, hole, *results], [*model_input, *drawn]]


def _manifest(
    store: EditFolder,
    loaded: LoadedModel,
    plan: Plan,
    options: EditOptions,
    context: RunContext,
    began: float,
) -> dict[str, Any]:
    height, width = plan.picture_hw3.shape[:2]
    of_class: dict[str, Any] = {"class": None}
    if plan.edit.label != loaded.record.classes:
        of_class = class_fields(plan.edit.label, loaded.names)
    hole = None
    if plan.hole_hw is not None:
        hole = {
            "share_of_picture": float(plan.hole_hw.mean()),
            "share_outside_window": plan.unseen_share,
            # If true, coarse tokens and kept tokens near the hole depend on its old content.
            "shown_to_encoder": not plan.edit.blank,
        }
    return {
        "format": _FORMAT,
        "address": loaded.address,
        "edit": plan.edit.model_dump(mode="json"),
        "image": {"file": options.image.name, "width": width, "height": height},
        "mask": None if options.mask is None else options.mask.name,
        "hole": hole,
        "scales": _scales(plan, loaded.record.tokenizer.pyramid),
        "images": [
            {"index": i, **of_class, "files": list(store.files(i))} for i in range(plan.edit.count)
        ],
        "commit": code_version(),
        "device": str(context.device()),
        "started": time.strftime("%F %T %z", time.localtime(began)),
        "seconds": time.time() - began,
    }


def _scales(plan: Plan, pyramid: Pyramid) -> list[dict[str, int]]:
    """Number of tokens kept and drawn, by scale."""
    # keep_L has the scales one after the other, coarse to fine, with side * side tokens each.
    parts = plan.scene.keep_L.split(pyramid.lengths)
    kept = [int(part.sum()) for part in parts]
    return [
        {"side": side, "kept": count, "drawn": side * side - count}
        for side, count in zip(pyramid.patch_nums, kept, strict=True)
    ]
