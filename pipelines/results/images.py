"""images.parquet: the table of scored samples, one row per set of samples and trial. No torch."""

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
from var_scaling.disk import DONE, atomic_write, is_done, read_json
from var_scaling.experiment.ledger import trial_ledger
from var_scaling.experiment.scoring import ScoredSet
from var_scaling.models.base import SamplingRecord

# Column -> (Arrow type, description).
IMAGE_COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "sweep": (pa.string(), "the sweep"),
    "trial": (pa.string(), "the model that generated the samples"),
    "family": (pa.string(), "family of the model"),
    "loss_unit": (pa.string(), "unit of its loss; distinguishes variants of a family"),
    "tokenizer": (pa.string(), "tokenizer of the model"),
    "tokenizer_recipe": (
        pa.string(),
        "hash of the tokenizer's training recipe, without codebook and scales",
    ),
    "data": (pa.string(), "training images; their held-out split is the reference"),
    "depth": (pa.int64(), "blocks"),
    "width": (pa.int64(), "channels"),
    "seed": (pa.int64(), "seed of the training"),
    "set": (pa.string(), "the set of samples"),
    "chooses": (pa.bool_(), "whether the set is used to choose settings and not reported"),
    "sampling_seed": (pa.int64(), "seed of the samples"),
    "raw": (pa.bool_(), "whether sampled from the last weights of a model with averaged weights"),
    "averaged": (pa.bool_(), "whether sampled from averaged weights"),
    "guidance": (pa.float64(), "g in c + g (c - u); 0: no guidance"),
    "settings": (pa.string(), "description of the sampler's settings"),
    "samples": (pa.int64(), "number of samples"),
    "extractor": (pa.string(), "feature network"),
    "extractor_sha256": (pa.string(), "SHA-256 of its weights"),
    "reference": (pa.string(), "name of the reference images"),
    "distance": (pa.float64(), "Fréchet distance of the samples"),
    "distance_stderr": (pa.float64(), "its standard error over sets of samples of the model"),
    "floor": (pa.float64(), "the same distance of as many reconstructions by the tokenizer"),
    "floor_stderr": (pa.float64(), "its standard error over sets of images"),
    "floor_of_images": (pa.float64(), "the same distance of as many training images"),
    "bits_per_image": (pa.float64(), "capacity of the tokens of an image"),
    "params_total": (pa.int64(), "all parameters"),
    "params_blocks": (pa.int64(), "weights of the blocks"),
    "images_seen": (pa.int64(), "training images, with repetitions"),
    "epochs": (pa.float64(), "passes over the training images"),
    "train_flops": (pa.float64(), "of training, without masked attention pairs"),
    "train_flops_dense_mask": (pa.float64(), "the same, with masked attention pairs"),
    "train_flops_6n_total": (pa.float64(), "6 x params_total x positions"),
    "encoding_flops": (pa.float64(), "of encoding the training images, not in train_flops"),
    "sampling_flops": (pa.float64(), "of one sample with these settings, without the decoder"),
    "decoding_flops": (pa.float64(), "of decoding one sample"),
    "latency_seconds": (pa.float64(), "of one image with these settings, if `speed` measured it"),
    "images_per_second": (pa.float64(), "of the best batch size, if `speed` measured it"),
    "speed_machine": (pa.string(), "machine of that measurement"),
}

# Must be the same for a distance and its floor.
_COMPARED_WITH = ("reference", "extractor_sha256")


def image_rows(stages: Stages) -> list[dict[str, Any]]:
    """One row for each set that has been scored; other sets are left out."""
    # By tokenizer, network, number of images and kind of latents. The number must be that of the
    # samples, because the bias of a Fréchet distance depends on it.
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
        config, scores = stage.config, read_json(stage.directory / DONE)
        trial = config.trial
        cache = trial.family.cache_kind(trial.model)
        key = (trial.tokenizer.name, config.extractor, scores["samples"], cache)
        # The folder of a score is TRIAL/scores/NAME, and speed.json is in that of the trial.
        speed = sampling_columns(stage.directory.parents[1], config.sampling)
        floor = floors.get(key, {})
        if any(floor.get(name) != scores[name] for name in _COMPARED_WITH):
            floor = {}  # measured by another network, or against other images
        rows.append({**_row(stage.sweep, config, scores, floor), **speed})
    return rows


def write_images(folder: Path, stages: Stages) -> Path | None:
    """Write images.parquet into the folder of a sweep. Without scored samples, delete the file and
    return None.
    """
    rows, path = image_rows(stages), folder / "images.parquet"
    if not rows:
        # The report reads the file if it exists, so an old table must not remain.
        path.unlink(missing_ok=True)
        return None
    schema = pa.schema({name: kind for name, (kind, _) in IMAGE_COLUMNS.items()})
    with atomic_write(path) as temporary_path:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary_path)
    return path


def bits_per_image(t: Tokenizer) -> float:
    """The capacity of the tokens of one image, in bits."""
    # (V - 1).bit_length() is log2 V rounded up, without floating point.
    return t.pyramid.length * (t.codebook_size - 1).bit_length()


def _row(
    sweep: str, config: ScoredSet, scores: dict[str, Any], floor: dict[str, Any]
) -> dict[str, Any]:
    trial, scoring, sampling = config.trial, config.scoring, config.sampling
    ledger = trial_ledger(trial)
    images = trial.data.train_images
    sampling_flops = trial.family.batch_flops(trial.spec, sampling, scores["samples"])
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
        "samples": scores["samples"],
        "extractor": config.extractor,
        "extractor_sha256": scores["extractor_sha256"],
        "reference": scores["reference"],
        "distance": scores["distance"],
        "distance_stderr": scores["distance_stderr"],
        "floor": floor.get("distance"),
        "floor_stderr": floor.get("distance_stderr"),
        "floor_of_images": floor.get("distance_of_images"),
        "bits_per_image": bits_per_image(trial.tokenizer),
        "params_total": ledger["params_total"],
        "params_blocks": ledger["params_blocks"],
        "images_seen": ledger["images_seen"],
        "epochs": ledger["images_seen"] / images if images else None,
        # float64, because the FLOPs of large models exceed int64.
        "train_flops": float(ledger["train_flops"]),
        "train_flops_dense_mask": float(ledger["train_flops_dense_mask"]),
        "train_flops_6n_total": float(ledger["train_flops_6n_total"]),
        "encoding_flops": float(ledger["images_seen"] * encoding_flops(trial.tokenizer)),
        "sampling_flops": sampling_flops / scores["samples"],
        "decoding_flops": float(decoding_flops(trial.tokenizer)),
    }


def _recipe(t: SomeTokenizer) -> str:
    """A hash of a tokenizer's training recipe, without what may differ between families."""
    if isinstance(t, ImportedTokenizer):
        return t.sha256[:12]
    # VAR needs several scales, AR and DiT do not, so scales and codebook differ by design.
    recipe = t.model_dump(mode="json", exclude={"name", "pyramid", "codebook_size", "codebook"})
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def _guidance(sampling: SamplingRecord) -> float:
    """The guidance scale; the largest if it varies."""
    guidance = sampling.guidance
    return max(guidance) if isinstance(guidance, tuple) else float(guidance)
