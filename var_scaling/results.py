"""The columns of the results table, once: what is made, understood, logged and documented of a run.

A column is one entry of COLUMNS, and the code that computes its value: an entry by `score_column`
is taken from the validation lines of metrics.jsonl, all others by name from what
pipelines.results.table knows. No torch, no pandas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from var_scaling.accounting import COMPONENTS, FLOP_COMPONENTS

Status = Literal["done", "running", "diverged", "failed", "waiting", "imported", "damaged"]
Row = dict[str, Any]  # a value, or None, for each of COLUMNS
Kind = Literal["text", "whole", "number", "list"]  # whole: integers where all are known and integer
Sign = Literal["any", "not negative", "positive", "share"]


@dataclass(frozen=True)
class Column:
    """One column. `need`: a table has at least one of the scores and one of the variables."""

    name: str
    meaning: str
    unit: str = ""  # "": a name, or a plain count
    kind: Kind = "number"
    sign: Sign = "not negative"
    need: Literal["score", "variable", ""] = ""
    score: str = ""  # what the validation line calls it; "": it comes from elsewhere


def _flops(name: str, meaning: str) -> Column:
    """FLOPs outgrow 64-bit integers, so they are floating-point numbers."""
    return Column(name, meaning, "FLOP")


def score_column(
    score: str, meaning: str, unit: str = "", kind: Kind = "number", sign: Sign = "not negative",
    need: Literal["score", ""] = "",
) -> Column:  # fmt: skip
    """What the validation line of metrics.jsonl calls `score` is the column val_`score`."""
    return Column(f"val_{score}", meaning, unit, kind, sign, need, score)


def _count(name: str, meaning: str, unit: str = "", sign: Sign = "not negative") -> Column:
    return Column(name, meaning, unit, "whole", sign)


def _text(name: str, meaning: str) -> Column:
    return Column(name, meaning, kind="text", sign="any")


COLUMNS: tuple[Column, ...] = (
    _text("sweep", "the question that the run belongs to"),
    _text("trial", "the run's name"),
    _text("family", "kind of model: var, ar, dit, ..."),
    _count("depth", "blocks", "blocks", "positive"),
    _count("width", "model width", "channels", "positive"),
    _count("heads", "attention heads", "heads", "positive"),
    _count("seed", "seed of the run", "", "any"),
    _text("start", "TRIAL@STEP whose checkpoint it started from: no run independent of that one"),
    _text("tokenizer", "whose tokens the scores are of"),
    _text("data", "whose images the scores are of"),
    _count("step", "updates done when this row was measured", "updates", "positive"),
    _count("steps", "updates of the whole training; a row is its end where step = steps", "updates",
           "positive"),
    _count("batch_size", "global batch", "images", "positive"),
    _text("precision", "arithmetic of training"),
    Column("learning_rate", "peak learning rate", sign="positive"),
    _text("schedule", "runs of one class differ in peak rate and length alone"),
    _count("images_seen", "training images so far, repeats counted", "images"),
    Column("tokens_seen", "training tokens so far, repeats counted: D", "tokens", "whole",
           "positive", "variable"),
    _count("unique_tokens", "different tokens of the training set: U", "tokens", "positive"),
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
    _flops("train_flops_dense_mask", "training so far, were no pair of tokens masked"),
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
    score_column("loss_no_label", "val_loss where no label is given", "nats/token"),
    score_column("loss_no_label_last", "val_loss_last where no label is given", "nats/token"),
    score_column("error_no_label", "val_error where no label is given", "share", sign="share"),
    score_column("error_no_label_last", "val_error_last where no label is given", "share",
           sign="share"),
    score_column("loss_raw", "val_loss of the last weights, where val_loss is of their average",
                 "nats/token"),
    score_column("error_raw", "the same of val_error", "share", sign="share"),
    _count("val_images", "held-out images scored", "images"),
    _flops("evaluation_flops", "this evaluation"),
    Column("fid", "Fréchet inception distance"),
    Column("inception_score", "inception score"),
    Column("kid", "kernel inception distance", sign="any"),
    Column("fidelity_precision", "share of samples among the real images", "share", sign="share"),
    Column("fidelity_recall", "share of real images among the samples", "share", sign="share"),
    Column("fd_seeded", "Fréchet distance by the small seeded extractor: compares with its like"),
    _count("fidelity_samples", "samples used for FID and related scores", "images", "positive"),
    _text("fidelity_set", "the set of samples used for FID and related scores"),
    _text("fidelity_reference", "what the samples were compared with"),
    _text("speed_machine", "where the next five were measured"),
    Column("sampling_images_per_second", "guided if the model can be, at the best batch",
           "images/s"),
    Column("sampling_latency_seconds", "of one such sample alone", "s"),
    _count("sampling_peak_memory_bytes", "most GPU memory then", "bytes"),
    Column("training_tokens_per_second", "training, measured apart from any run", "tokens/s"),
    Column("training_mfu", "model FLOPs of training over the machine's measured peak", "share",
           sign="not negative"),
    Column("seconds", "wall time of training so far", "s"),
    Column("images_per_second", "speed of training", "images/s"),
    _count("attempts", "lives of the training"),
    Column("lost_seconds", "training after a last checkpoint", "s"),
    _flops("lost_flops", "training after a last checkpoint"),
    _text("status", "done, running, diverged, failed, waiting, imported or damaged"),
    _text("commit", "version of the code"),
    _text("damage", "which files of the run are damaged, and how to repair it"),
)  # fmt: skip


def make_row(values: Mapping[str, Any]) -> Row:
    """One evaluation of one model: `values` by column; None where nothing is known.

    Raises ValueError for a value without a column, or of another kind than its column's.
    """
    unknown = sorted(values.keys() - {column.name for column in COLUMNS})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such columns in var_scaling.results.COLUMNS")
    row = {column.name: values.get(column.name) for column in COLUMNS}
    for column in COLUMNS:
        value = row[column.name]
        if value is not None and not _fits(value, column.kind):
            raise ValueError(f"{column.name} = {value!r}: wanted {column.kind}")
    return row


def scores_in(line: Mapping[str, Any]) -> Row:
    """The columns that a validation line has values for."""
    return {c.name: line[c.score] for c in COLUMNS if c.score and c.score in line}


def _fits(value: Any, kind: Kind) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "list":
        return isinstance(value, list | tuple) and all(_fits(one, "number") for one in value)
    if kind == "whole":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool)
