"""The scored samples of a sweep as a table: one row for each set of each trial. No torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluation.throughput import sampling_columns
from pipelines.stages.graph import Stages, of_kind
from pipelines.stages.registry import FLOOR, SCORE
from pipelines.workspace.damage import status_of
from var_scaling.accounting.tokenizer import decoding_flops, encoding_flops
from var_scaling.config import ImportedTokenizer, SomeTokenizer, Tokenizer
from var_scaling.disk import DONE, is_done, read_json, whole
from var_scaling.experiment.ledger import trial_ledger
from var_scaling.experiment.scoring import ScoredSet
from var_scaling.models.base import SamplingRecord

# Column: its Arrow type and what it is.
IMAGE_COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "sweep": (pa.string(), "the sweep"),
    "trial": (pa.string(), "the model that drew them"),
    "family": (pa.string(), "kind of model"),
    "loss_unit": (pa.string(), "what its loss is of: it tells arms of a family apart"),
    "tokenizer": (pa.string(), "what it is trained on"),
    "tokenizer_recipe": (pa.string(), "how it was trained, codes and scales apart: equal or not"),
    "data": (pa.string(), "images that it is trained on; those held out are the reference"),
    "depth": (pa.int64(), "blocks"),
    "width": (pa.int64(), "channels"),
    "seed": (pa.int64(), "of the training"),
    "set": (pa.string(), "the set of samples"),
    "chooses": (pa.bool_(), "whether the set serves to choose settings, and is not reported"),
    "sampling_seed": (pa.int64(), "of the samples"),
    "raw": (pa.bool_(), "whether of the last weights of a model that averages its own"),
    "averaged": (pa.bool_(), "whether of averaged weights"),
    "guidance": (pa.float64(), "g of c + g (c - u); 0: none"),
    "settings": (pa.string(), "of the sampler, in words"),
    "samples": (pa.int64(), "images compared"),
    "extractor": (pa.string(), "network whose features are compared"),
    "extractor_sha256": (pa.string(), "of its weights"),
    "reference": (pa.string(), "what they are compared with"),
    "distance": (pa.float64(), "Fréchet distance of the samples"),
    "distance_stderr": (pa.float64(), "its standard error, as samples of the model are redrawn"),
    "floor": (pa.float64(), "the same of as many reconstructions by the tokenizer"),
    "floor_stderr": (pa.float64(), "its standard error, as images are redrawn"),
    "floor_of_images": (pa.float64(), "the same of as many training images themselves"),
    "bits_per_image": (pa.float64(), "that the tokens of an image can hold"),
    "params_total": (pa.int64(), "all parameters"),
    "params_blocks": (pa.int64(), "weights of the blocks"),
    "images_seen": (pa.int64(), "training images, repeats counted"),
    "epochs": (pa.float64(), "passes over the training images"),
    "train_flops": (pa.float64(), "of training, masked attention pairs left out"),
    "train_flops_dense_mask": (pa.float64(), "the same, every pair counted"),
    "train_flops_6n_total": (pa.float64(), "6 x params_total x positions"),
    "encoding_flops": (pa.float64(), "of encoding every training image that was seen, apart"),
    "sampling_flops": (pa.float64(), "of one sample, so drawn, without the decoder"),
    "decoding_flops": (pa.float64(), "of decoding one sample"),
    "latency_seconds": (pa.float64(), "of one image so drawn, where `speed` timed it"),
    "images_per_second": (pa.float64(), "the same of the best batch"),
    "speed_machine": (pa.string(), "where that was timed"),
}

_RULER = ("reference", "extractor_sha256")


def image_rows(stages: Stages) -> list[dict[str, Any]]:
    """A row for each set that has been scored; sets that have not are left out."""
    floors = {
        (
            stage.config.tokenizer.name,
            stage.config.extractor,
            stage.config.images,
            stage.config.cache,
        ): read_json(stage.directory / DONE)
        for stage in of_kind(stages, FLOOR)
        if is_done(stage.directory)
    }
    rows = []
    for stage in of_kind(stages, SCORE):
        if not is_done(stage.directory) or status_of(stage.directory) != "done":
            continue
        config, found = stage.config, read_json(stage.directory / DONE)
        trial = config.trial
        reads = trial.family.reads(trial.model)
        key = (trial.tokenizer.name, config.extractor, found["samples"], reads)
        timed = sampling_columns(stage.directory.parents[1], config.sampling)
        floor = floors.get(key, {})
        if any(floor.get(name) != found[name] for name in _RULER):
            floor = {}  # measured by another network, or against other images
        rows.append({**_row(stage.sweep, config, found, floor), **timed})
    return rows


def write_images(folder: Path, stages: Stages) -> Path | None:
    """Write images.parquet of a sweep into its folder; None, and no file, where nothing has been
    scored.
    """
    rows, path = image_rows(stages), folder / "images.parquet"
    if not rows:
        path.unlink(missing_ok=True)
        return None
    schema = pa.schema({name: kind for name, (kind, _) in IMAGE_COLUMNS.items()})
    with whole(path) as beside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), beside)
    return path


def bits_per_image(t: Tokenizer) -> float:
    """What the tokens of one image can tell apart, in bits."""
    return t.pyramid.length * (t.codebook_size - 1).bit_length()


def _row(
    sweep: str, config: ScoredSet, found: dict[str, Any], floor: dict[str, Any]
) -> dict[str, Any]:
    trial, scoring, sampling = config.trial, config.scoring, config.sampling
    ledger = trial_ledger(trial)
    images = trial.data.train_images
    drawing = trial.family.batch_flops(trial.spec, sampling, found["samples"])
    return {
        "sweep": sweep,
        "trial": trial.name,
        "family": trial.family.name,
        "loss_unit": trial.family.validation(trial.spec).loss_unit,
        "tokenizer": trial.tokenizer.name,
        "tokenizer_recipe": _recipe(trial.tokenizer),
        "data": trial.data.name,
        "depth": trial.model.depth,
        "width": trial.model.width,
        "seed": trial.seed,
        "set": scoring.name,
        "chooses": scoring.chooses,
        "sampling_seed": scoring.seed,
        "raw": scoring.raw,
        "averaged": trial.weight_average > 0 and not scoring.raw,
        "guidance": _guidance(sampling),
        "settings": sampling.describe(),
        "samples": found["samples"],
        "extractor": config.extractor,
        "extractor_sha256": found["extractor_sha256"],
        "reference": found["reference"],
        "distance": found["distance"],
        "distance_stderr": found["distance_stderr"],
        "floor": floor.get("distance"),
        "floor_stderr": floor.get("distance_stderr"),
        "floor_of_images": floor.get("distance_of_images"),
        "bits_per_image": bits_per_image(trial.tokenizer),
        "params_total": ledger["params_total"],
        "params_blocks": ledger["params_blocks"],
        "images_seen": ledger["images_seen"],
        "epochs": ledger["images_seen"] / images if images else None,
        "train_flops": float(ledger["train_flops"]),
        "train_flops_dense_mask": float(ledger["train_flops_dense_mask"]),
        "train_flops_6n_total": float(ledger["train_flops_6n_total"]),
        "encoding_flops": float(ledger["images_seen"] * encoding_flops(trial.tokenizer)),
        "sampling_flops": drawing / found["samples"],
        "decoding_flops": float(decoding_flops(trial.tokenizer)),
    }


def _recipe(t: SomeTokenizer) -> str:
    """A hash of all that a tokenizer was trained by, but for what tells the families' apart."""
    if isinstance(t, ImportedTokenizer):
        return t.sha256[:12]
    own = t.model_dump(mode="json", exclude={"name", "pyramid", "codebook_size", "codebook"})
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:12]


def _guidance(sampling: SamplingRecord) -> float:
    """The largest, where it has several."""
    given = sampling.guidance
    return max(given) if isinstance(given, tuple) else float(given)
