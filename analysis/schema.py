"""The columns of a run table as data: name, meaning, unit, type, sign, and what a table needs."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

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


def _flops(name: str, meaning: str) -> Column:
    """FLOPs outgrow 64-bit integers, so they are floating-point numbers."""
    return Column(name, meaning, "FLOP")


def _count(name: str, meaning: str, unit: str = "", sign: Sign = "not negative") -> Column:
    return Column(name, meaning, unit, "whole", sign)


def _text(name: str, meaning: str) -> Column:
    return Column(name, meaning, kind="text", sign="any")


SCHEMA = (
    _text("sweep", "the question that the run belongs to"),
    _text("trial", "the run's name"),
    _text("family", "kind of model: var, ar, dit, ..."),
    _count("depth", "blocks", "blocks", "positive"),
    _count("width", "model width", "channels", "positive"),
    _count("heads", "attention heads", "heads", "positive"),
    _count("seed", "seed of the run", "", "any"),
    _text("tokenizer", "whose tokens the scores are of"),
    _text("data", "whose images the scores are of"),
    _count("step", "updates done when this row was measured", "updates", "positive"),
    _count("steps", "updates of the whole training; a row is its end where step = steps", "updates",
           "positive"),
    _count("batch", "global batch", "images", "positive"),
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
      for part in ("embedding", "attention", "mlp", "adaln", "head")),
    _flops("forward_flops", "forward pass over one image"),
    _flops("sampling_flops", "guided sampling of one image"),
    _flops("encoding_flops", "the tokenizer's encoding of one image"),
    _flops("decoding_flops", "the tokenizer's decoding of one image"),
    Column("train_flops", "training so far, forward and backward: C", "FLOP", "number",
           "positive", "variable"),
    *(_flops(f"train_flops_{part}", f"training so far, of {part.replace('_', ' ')}")
      for part in ("embedding", "attention_projections", "attention_scores", "mlp", "adaln",
                   "head")),
    _flops("train_flops_dense_mask", "training so far, were no pair of tokens masked"),
    _flops("train_flops_6n_total", "6 x params_total x tokens_seen"),
    _flops("train_flops_6n_blocks", "6 x params_blocks x tokens_seen"),
    Column("train_loss", "training loss, last logged", "nats/token"),
    Column("val_loss", "held-out loss, all scales", "nats/token", "number", "positive", "score"),
    Column("val_loss_last", "held-out loss, last scale", "nats/token", "number", "positive",
           "score"),
    Column("val_error", "held-out token error, all scales", "share", "number", "share", "score"),
    Column("val_error_last", "held-out token error, last scale", "share", "number", "share",
           "score"),
    Column("val_loss_stderr", "standard error of val_loss, clustered by image", "nats/token"),
    Column("val_error_stderr", "standard error of val_error, clustered by image", "share"),
    Column("val_loss_per_scale", "held-out loss of each scale", "nats/token", "list"),
    Column("val_error_per_scale", "held-out token error of each scale", "share", "list", "share"),
    Column("val_loss_no_label", "val_loss where no label is given", "nats/token"),
    Column("val_loss_no_label_last", "val_loss_last where no label is given", "nats/token"),
    Column("val_error_no_label", "val_error where no label is given", "share", sign="share"),
    Column("val_error_no_label_last", "val_error_last where no label is given", "share",
           sign="share"),
    _count("val_images", "held-out images scored", "images"),
    _flops("evaluation_flops", "this evaluation"),
    Column("fid", "Fréchet inception distance"),
    Column("inception_score", "inception score"),
    Column("kid", "kernel inception distance", sign="any"),
    Column("fidelity_precision", "share of samples among the real images", "share", sign="share"),
    Column("fidelity_recall", "share of real images among the samples", "share", sign="share"),
    Column("fd_seeded", "Fréchet distance by the small seeded extractor: compares with its like"),
    _count("fidelity_samples", "samples that FID and its kin are of", "images", "positive"),
    _text("fidelity_set", "the samples that FID and its kin are of"),
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
BY_NAME = {column.name: column for column in SCHEMA}
SCORES = tuple(column.name for column in SCHEMA if column.need == "score")
VARIABLES = tuple(column.name for column in SCHEMA if column.need == "variable")
STATUSES = ("done", "running", "diverged", "failed", "waiting", "imported", "damaged")
# A table with all of these is one of ours: there, a row that lacks a number is no row.
OURS = (
    "sweep", "trial", "family", "depth", "width", "seed", "step", "steps", "learning_rate",
    "tokens_seen", "params_total", "params_blocks", "train_flops", "val_loss", "val_loss_last",
    "val_error", "val_error_last", "status",
)  # fmt: skip
UNKNOWN_ELSEWHERE = ("step", "steps", "tokens_seen", "train_flops")  # how it was trained


def absent(values: pd.Series) -> pd.Series:
    """Where nothing is given: no value, or a blank."""
    blank = [isinstance(value, str) and not value.strip() for value in values]
    return values.isna() | pd.Series(blank, index=values.index, dtype=bool)


def numbers(values: pd.Series) -> pd.Series:
    """`values` as float64; NaN for what is absent or no number."""
    if pd.api.types.is_any_real_numeric_dtype(values.dtype):
        return pd.Series(values.to_numpy(dtype=float, na_value=np.nan), index=values.index)
    return pd.Series([_number(value) for value in values], index=values.index, dtype=float)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def texts(values: pd.Series) -> pd.Series:
    """`values` as text; None for what is absent."""
    shown = [
        None if gone else str(value) for value, gone in zip(values, absent(values), strict=True)
    ]
    return pd.Series(shown, index=values.index, dtype=object)


def lists(values: pd.Series) -> pd.Series:
    """`values` as lists of float, also from "[1.5, 2]" or "[1.5 2]"; None for any other."""
    return pd.Series([_list(value) for value in values], index=values.index, dtype=object)


def _list(value: Any) -> list[float] | None:
    if isinstance(value, str):
        value = value.strip().strip("[]()").replace(",", " ").split()
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    found = [_number(one) for one in value]
    return found if found and not np.isnan(found).any() else None


def tight(values: pd.Series) -> pd.Series:
    """Integers where every value is known and whole; `values` otherwise."""
    found = values.to_numpy(dtype=float)
    whole = np.isfinite(found) & (np.abs(found) < 2**53) & (found == np.round(found))
    return values.astype("int64") if len(values) and whole.all() else values


def breaks(values: pd.Series, sign: Sign) -> pd.Series:
    """Where a number is not what its column's sign allows; never where it is NaN.

    A share above 1 is no matter of the row: its whole column is in another unit.
    """
    infinite = values.abs() == np.inf
    least = {"any": -np.inf, "positive": np.nextafter(0, 1)}.get(sign, 0.0)
    return infinite | (values < least)
