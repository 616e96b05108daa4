"""Families compared under every condition that was measured: network, weights, guidance, and how
FLOPs are counted. What holds under all of them may be said; what does not is shown.

Rows are those of images.parquet: one for each set of samples of each trial and feature network.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.comparison.families import (
    Curve,
    Multiplier,
    curves,
    multipliers,
    refuse_unequal,
    spread,
    with_arms,
)

# Column: what it is called. The first is the main one.
CURRENCIES = {
    "train_flops": "training FLOPs",
    "train_flops_dense_mask": "training FLOPs, masked pairs counted",
    "train_flops_6n_total": "6 x parameters x positions",
    "params_total": "parameters",
    "images_seen": "images seen",
    "sampling_flops": "FLOPs of one sample",
}
FLOPS = ("train_flops", "train_flops_dense_mask", "train_flops_6n_total")
_LEVEL = 0.95


@dataclass(frozen=True)
class Condition:
    """One way to sample and to look, with the rows of every arm that was so sampled."""

    set: str  # of samples, or "best of the grid"
    extractor: str
    weights: str  # "as published": averaged where a family averages; "last"
    rows: pd.DataFrame  # with a column `arm`

    @property
    def name(self) -> str:
        last = ", last weights" if self.weights == "last" else ""
        return f"{self.set}{last}, {self.extractor} network"

    @property
    def settings(self) -> dict[str, str]:
        """How each arm was sampled."""
        first = self.rows.drop_duplicates("arm")
        return dict(zip(first.arm, first.settings, strict=True))


@dataclass(frozen=True)
class Placed:
    """An arm at the largest budget that all arms reached, with an interval of 95 %."""

    arm: str
    distance: float
    low: float | None
    high: float | None
    ties_next: bool  # whether the next arm cannot be told from it


def conditions(images: pd.DataFrame) -> tuple[Condition, ...]:
    """Every condition under which at least two arms were scored, in the order of `images`."""
    rows = with_arms(images)
    found = [
        one
        for extractor, own in rows.groupby("extractor", sort=False)
        for one in _of_network(str(extractor), own)
    ]
    return tuple(one for one in found if one.rows.arm.nunique() > 1)


def _of_network(extractor: str, rows: pd.DataFrame) -> Iterator[Condition]:
    shown = rows[~rows.chooses]
    last = shown[shown.raw]
    for name, own in shown[~shown.raw].groupby("set", sort=False):
        yield Condition(str(name), extractor, "as published", own)
        beside = last.merge(own[["trial", "settings", "samples"]].drop_duplicates())
        if len(beside):
            kept = own[~own.trial.isin(beside.trial)]
            both = pd.concat([kept, beside]).reset_index(drop=True)
            order = pd.Categorical(both.arm, categories=list(dict.fromkeys(own.arm)), ordered=True)
            both = both.iloc[np.argsort(order.codes, kind="stable")]
            yield Condition(str(name), extractor, "last", both)
    chosen = best_of_grid(rows)
    if len(chosen):
        yield Condition("best of the grid", extractor, "as published", chosen)


def best_of_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each arm the sets with the settings that its choosing sets (column `chooses`) found best:
    least mean logarithm of the distance over its trials. Other sets, of other seeds, are returned:
    what chose is not what is reported.
    """
    parts = []
    for _, own in rows[~rows.raw].groupby("arm", sort=False):
        grid = own[own.chooses]
        if grid.empty:
            continue
        best = np.log(grid.distance).groupby(grid.settings).mean().idxmin()
        parts.append(own[~own.chooses & (own.settings == best)])
    return pd.concat(parts) if parts else rows.iloc[:0]


def places(condition: Condition, cost: str = "train_flops") -> tuple[Placed, ...]:
    """The arms by their distance at the largest `cost` that all of them reached, the best first.

    Between two sizes the logarithms are taken to be linear. The interval is that of the seeds, from
    their pooled spread and the runs of the nearest size; none where no size was run twice.
    """
    found = curves(condition.rows, "distance", cost)
    budget = min(float(one.cost.max()) for one in found.values())
    reached = [one for one in found.values() if one.cost.min() <= budget]
    try:
        deviation, free = spread(condition.rows, "distance", cost)
    except ValueError:
        deviation, free = float("nan"), 1
    factor = float(student.ppf((1 + _LEVEL) / 2, free))
    scored = sorted((_log_score(one, budget), one) for one in reached) if reached else []
    placed = []
    for number, (log_score, one) in enumerate(scored):
        error = deviation / np.sqrt(_runs_at(one, budget))
        half = factor * error
        ties = False
        if number + 1 < len(scored):
            after, other = scored[number + 1]
            apart = factor * np.hypot(error, deviation / np.sqrt(_runs_at(other, budget)))
            ties = not after - log_score > apart
        known = np.isfinite(half)
        low, high = (
            (float(np.exp(log_score - half)), float(np.exp(log_score + half)))
            if known
            else (None, None)
        )
        placed.append(Placed(one.arm, float(np.exp(log_score)), low, high, ties))
    return tuple(placed)


def order_in_words(placed: tuple[Placed, ...]) -> str:
    """The best first: "dit < ar ≈ var"; ≈ where two neighbours cannot be told apart."""
    words = []
    for one in placed:
        words += [one.arm, "≈" if one.ties_next else "<"]
    return " ".join(words[:-1])


def of_pairs(
    condition: Condition, cost: str = "train_flops", unequal: bool = False
) -> tuple[Multiplier, ...]:
    """The multiplier of each pair of arms, once, so that it is at least 1 where it is known.

    Raises UnequalGrounds where they were not measured on one ground, unless `unequal`; ValueError
    where nothing can be said.
    """
    if not unequal:
        refuse_unequal(condition.rows)
    found = {(one.arm, one.against): one for one in multipliers(condition.rows, "distance", cost)}
    shown = []
    for (arm, against), one in found.items():
        mirrored = found[against, arm]
        if one.value is None or mirrored.value is None:
            if arm < against:
                shown.append(one)
        elif one.value >= 1 and one not in shown:
            shown.append(one)
    return tuple(shown)


def robustness(found: tuple[Condition, ...]) -> pd.DataFrame:
    """One row for each condition and way to count FLOPs: the order, and whether it is the first's.

    Columns: condition, counted, order, as_first.
    """
    rows = []
    for condition in found:
        for cost in FLOPS:
            placed = places(condition, cost)
            rows.append({
                "condition": condition.name,
                "counted": CURRENCIES[cost],
                "order": order_in_words(placed),
                "arms": tuple(one.arm for one in placed),
            })  # fmt: skip
    table = pd.DataFrame(rows, columns=["condition", "counted", "order", "arms"])
    first = table.arms.iloc[0] if len(table) else ()
    same = [arms == tuple(one for one in first if one in arms) for arms in table.arms]
    return table.drop(columns="arms").assign(as_first=same)


def _log_score(curve: Curve, cost: float) -> float:
    return float(np.interp(np.log(cost), np.log(curve.cost), curve.log_score))


def _runs_at(curve: Curve, cost: float) -> int:
    return int(curve.runs[np.abs(np.log(curve.cost / cost)).argmin()])
