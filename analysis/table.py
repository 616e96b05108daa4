"""The run table that every law is fitted to: checked, rows dropped only with a reason."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

NEEDED = (
    "sweep", "trial", "family", "depth", "width", "seed", "step", "steps", "learning_rate",
    "tokens_seen", "params_total", "params_blocks", "train_flops", "val_loss", "val_loss_last",
    "val_error", "val_error_last", "status",
)  # fmt: skip
_POSITIVE = ("step", "steps", "tokens_seen", "params_total", "params_blocks", "train_flops")
_UNKNOWN_ELSEWHERE = ("step", "steps", "tokens_seen", "train_flops")  # how it was trained
_SCORES = ("val_loss", "val_loss_last", "val_error", "val_error_last")


class TableError(ValueError):
    """The table cannot be used; the message says which column or row, and why."""


@dataclass(frozen=True)
class Table:
    """One row for each evaluation of each trial, and what was left out."""

    rows: pd.DataFrame
    dropped: tuple[str, ...]

    @property
    def finals(self) -> pd.DataFrame:
        """The end of each finished trial, smallest first: the points that a law is fitted to.

        A model from elsewhere is a point too, of the laws in what is known of it.
        """
        finished = (self.rows.status == "done") & (self.rows.step == self.rows.steps)
        ended = self.rows[finished | (self.rows.status == "imported")]
        return ended.sort_values(["params_blocks", "seed"]).reset_index(drop=True)


def load_results(path: Path | str) -> Table:
    """Read a results table (Parquet or CSV). Raises TableError."""
    path = Path(path)
    if not path.exists():
        raise TableError(f"{path}: no results yet; `var-scaling run` writes them")
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    return check(frame, str(path))


def check(frame: pd.DataFrame, where: str = "table") -> Table:
    """The usable rows of `frame`. Raises TableError if a column is missing or nothing is left."""
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise TableError(f"{where}: columns missing: {', '.join(missing)}")
    if frame.empty:
        raise TableError(f"{where}: the table is empty")
    reasons = pd.Series("", index=frame.index)
    for name in _POSITIVE + _SCORES:
        values = pd.to_numeric(frame[name], errors="coerce").astype(float)
        bad = ~np.isfinite(values) | (values <= 0)
        if name in _UNKNOWN_ELSEWHERE:
            bad &= ~(values.isna() & (frame.status == "imported"))
        reasons[bad & (reasons == "")] = f"{name} is not a positive number"
    reasons[frame.status == "diverged"] = "diverged"
    twice = frame.duplicated(["sweep", "trial", "step"], keep="last") & (reasons == "")
    reasons[twice] = "the same trial and step stands again below"
    dropped = tuple(
        f"{trial} at step {step}: {reason}"
        for trial, step, reason in zip(frame.trial, frame.step, reasons, strict=True)
        if reason
    )
    kept = frame[reasons == ""].copy()
    for name in ("val_loss_per_scale", "val_error_per_scale"):
        if name not in kept:
            kept[name] = None
    if kept.empty:
        raise TableError(f"{where}: no usable row: " + "; ".join(dropped[:5]))
    return Table(kept.reset_index(drop=True), dropped)
