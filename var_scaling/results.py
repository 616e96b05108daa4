"""The columns of the results table: the single definition for writing, reading and documentation.

A column is one entry of COLUMNS and the code that computes its value. Values of `score_column`
entries come from the validation lines of metrics.jsonl; pipelines.results.table computes all
others. No torch, no pandas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from var_scaling.accounting import COMPONENTS, FLOP_COMPONENTS

Status = Literal["done", "running", "diverged", "failed", "waiting", "imported", "damaged"]
Row = dict[str, Any]  # a value, or None, for each of COLUMNS
# whole: integer, but stored as float if a value is missing or not an integer
Kind = Literal["text", "whole", "number", "list"]
Sign = Literal["any", "not negative", "positive", "share"]


@dataclass(frozen=True)
class Column:
    """One column. `need`: a valid table has at least one score and one variable (N, D or C)."""

    name: str
    meaning: str
    unit: str = ""  # "": a name, or a plain count
    kind: Kind = "number"
    sign: Sign = "not negative"
    need: Literal["score", "variable", ""] = ""
    score: str = ""  # its key in the validation line; "": not from there


def _flops(name: str, meaning: str) -> Column:
    """FLOPs can exceed 64-bit integers, so they are floating-point numbers."""
    return Column(name, meaning, "FLOP")


def score_column(
    score: str, meaning: str, unit: str = "", kind: Kind = "number", sign: Sign = "not negative",
    need: Literal["score", ""] = "",
) -> Column:  # fmt: skip
    """The column val_`score`, from the key `score` of the validation lines of metrics.jsonl."""
    return Column(f"val_{score}", meaning, unit, kind, sign, need, score)


def _count(name: str, meaning: str, unit: str = "", sign: Sign = "not negative") -> Column:
    return Column(name, meaning, unit, "whole", sign)


def _text(name: str, meaning: str) -> Column:
    return Column(name, meaning, kind="text", sign="any")


COLUMNS: tuple[Column, ...] = (
    _text("sweep", "sweep of the run"),
    _text("trial", "the run's name"),
    _text("family", "kind of model: var, ar, dit, ..."),
    _count("depth", "blocks", "blocks", "positive"),
    _count("width", "model width", "channels", "positive"),
    _count("heads", "attention heads", "heads", "positive"),
    _count("seed", "seed of the run", "", "any"),
    _text("start", "TRIAL@STEP of the checkpoint it started from; not independent of that run"),
    _text("tokenizer", "tokenizer of the tokens that the scores are of"),
    _count("codebook_size", "codes of that tokenizer", "codes", "positive"),
    _text("data", "data set of the images that the scores are of"),
    _count("step", "updates done when this row was measured", "updates", "positive"),
    _count("steps", "updates of the whole training; a row is its end where step = steps", "updates",
           "positive"),
    _count("batch_size", "global batch", "images", "positive"),
    _text("precision", "precision of training"),
    Column("learning_rate", "peak learning rate", sign="positive"),
    _text("schedule", "class of schedule: runs of one class differ only in peak rate and length"),
    _count("images_seen", "training images so far, with repeats", "images"),
    Column("tokens_seen", "training tokens so far, with repeats: D", "tokens", "whole",
           "positive", "variable"),
    _count("unique_tokens", "distinct tokens of the training set: U", "tokens", "positive"),
    Column("epochs", "passes over the training set so far"),
    Column("params_total", "all parameters: N", "parameters", "whole", "positive", "variable"),
    Column("params_blocks", "weights of the blocks: N", "parameters", "whole", "positive",
           "variable"),
    *(_count(f"params_{part}", f"parameters of {part}", "parameters")
      for part in COMPONENTS),
    _flops("forward_flops", "forward pass over one image"),
    _flops("sampling_flops", "guided sampling of one image"),
    _flops("encoding_flops", "the tokenizer's encoding of one image"),
    _flops("decoding_flops", "the tokenizer's decoding of one image"),
    Column("train_flops", "training so far, forward and backward: C", "FLOP", "number",
           "positive", "variable"),
    *(_flops(f"train_flops_{part}", f"training so far, of {part.replace('_', ' ')}")
      for part in FLOP_COMPONENTS),
    _flops("train_flops_dense_mask", "training so far, if attention were not masked"),
    _flops("train_flops_6n_total", "6 x params_total x tokens_seen"),
    _flops("train_flops_6n_blocks", "6 x params_blocks x tokens_seen"),
    Column("train_loss", "training loss, last logged", "nats/token"),
    _text("loss_unit", "unit of the losses: only losses of one unit are compared"),
    score_column("loss", "held-out loss", "nats/token", "number", "positive", "score"),
    score_column("loss_last", "held-out loss, last scale", "nats/token", "number",
                 "positive", "score"),
    score_column("error", "held-out token error", "share", "number", "share", "score"),
    score_column("error_last", "held-out token error, last scale", "share", "number",
                 "share", "score"),
    score_column("loss_stderr", "standard error of val_loss, clustered by image", "nats/token"),
    score_column("error_stderr", "standard error of val_error, clustered by image", "share"),
    score_column("loss_parts", "held-out loss of each part (VAR: scale)", "nats/token", "list"),
    score_column("error_parts", "held-out token error of each part", "share", "list", "share"),
    score_column("loss_no_label", "unconditional val_loss", "nats/token"),
    score_column("loss_no_label_last", "unconditional val_loss_last", "nats/token"),
    score_column("error_no_label", "unconditional val_error", "share", sign="share"),
    score_column("error_no_label_last", "unconditional val_error_last", "share",
           sign="share"),
    score_column("loss_raw", "val_loss of the last weights, if weights are averaged",
                 "nats/token"),
    score_column("error_raw", "val_error of the last weights, if weights are averaged", "share",
                 sign="share"),
    _count("val_images", "held-out images scored", "images"),
    _flops("evaluation_flops", "this evaluation"),
    Column("fid", "Fréchet inception distance"),
    Column("inception_score", "inception score"),
    Column("kid", "kernel inception distance", sign="any"),
    Column("fidelity_precision", "share of samples among the real images", "share", sign="share"),
    Column("fidelity_recall", "share of real images among the samples", "share", sign="share"),
    Column("fd_seeded", "Fréchet distance with the small seeded extractor, not comparable to FID"),
    _count("fidelity_samples", "samples used for FID and related scores", "images", "positive"),
    _text("fidelity_set", "the set of samples used for FID and related scores"),
    _text("fidelity_reference", "what the samples were compared with"),
    _text("speed_machine", "machine on which the next five columns were measured"),
    Column("sampling_images_per_second",
           "sampling at the best batch size, guided if the model supports it", "images/s"),
    Column("sampling_latency_seconds", "the same sampling with a batch of one", "s"),
    _count("sampling_peak_memory_bytes", "peak GPU memory of that sampling", "bytes"),
    Column("training_tokens_per_second", "training speed in a separate benchmark", "tokens/s"),
    Column("training_mfu", "model FLOPs of training over the machine's measured peak", "share",
           sign="not negative"),
    Column("seconds", "wall time of training so far", "s"),
    Column("images_per_second", "speed of training", "images/s"),
    _count("attempts", "attempts of the training, with restarts"),
    Column("lost_seconds", "training lost after the last checkpoint of an attempt", "s"),
    _flops("lost_flops", "training lost after the last checkpoint of an attempt"),
    _text("status", "done, running, diverged, failed, waiting, imported or damaged"),
    _text("commit", "version of the code"),
    _text("damage", "which files of the run are damaged, and how to repair it"),
)  # fmt: skip


def make_row(values: Mapping[str, Any]) -> Row:
    """A row (one evaluation of one model) from `values` by column; missing values are None.

    Raises ValueError for a value without a column, or of a kind that its column does not allow.
    """
    unknown = sorted(values.keys() - {column.name for column in COLUMNS})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such columns in var_scaling.results.COLUMNS")
    row = {column.name: values.get(column.name) for column in COLUMNS}
    for column in COLUMNS:
        value = row[column.name]
        if value is not None and not _fits(value, column.kind):
            raise ValueError(f"{column.name} = {value!r}: expected kind {column.kind}")
    return row


def scores_in(line: Mapping[str, Any]) -> Row:
    """The values of the score columns in a validation line."""
    return {c.name: line[c.score] for c in COLUMNS if c.score and c.score in line}


def _fits(value: Any, kind: Kind) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "list":
        return isinstance(value, list | tuple) and all(_fits(item, "number") for item in value)
    if kind == "whole":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool)
