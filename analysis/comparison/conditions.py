"""Families compared under every condition that was measured: network, weights, guidance, and how
FLOPs are counted. What holds under all of them may be said; what does not is shown.

Rows are those of images.parquet: one for each set of samples of each trial and feature network.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.comparison.families import (
    Curve,
    Multiplier,
    curves,
    multipliers,
    refuse_incomparable,
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
# Ways to count and to measure under which an order is looked at: cost, measure, column.
_MEASURES = (
    ("train_flops", "distance", "distance"),
    ("train_flops_dense_mask", "distance", "distance"),
    ("train_flops_6n_total", "distance", "distance"),
    ("train_flops", "above reconstructions", "above"),
)
_NEEDED = (
    "family", "tokenizer", "tokenizer_recipe", "loss_unit", "set", "chooses", "raw", "averaged",
    "settings", "extractor", "extractor_sha256", "sampling_seed", "distance", "floor",
    "floor_stderr",
)  # fmt: skip
_LEVEL = 0.95
_EQUAL = 1.05  # costs that differ by less are equal: steps are whole


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
    """An arm at the largest budget that all arms reached."""

    arm: str
    distance: float
    spread: float  # of the logarithm of the distance, as seeds differ; NaN: not known
    times: float  # the spread that a half interval of 95 % is wide

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %; None where no size was run twice."""
        if not np.isfinite(self.spread):
            return None
        width = float(np.exp(self.times * self.spread))
        return self.distance / width, self.distance * width

    def distinguishable_from(self, other: "Placed") -> bool:
        """Whether the difference is larger than chance allows (95 %, this pair alone)."""
        apart = abs(np.log(self.distance / other.distance))
        return bool(apart > self.times * np.hypot(self.spread, other.spread))


def conditions(images: pd.DataFrame) -> tuple[Condition, ...]:
    """Every condition under which at least two arms were scored, in the order of `images`.

    Raises ValueError where `images` lacks a column.
    """
    if missing := [name for name in _NEEDED if name not in images]:
        raise ValueError(
            f"images.parquet has no {', '.join(missing)}: it is of an earlier version, or no such "
            "table; `var-scaling run` scores and writes it anew"
        )
    rows = with_arms(images).assign(above=images.distance - images.floor)
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
        swapped = _last_weights(own, last)
        if len(swapped):
            yield Condition(str(name), extractor, "last", swapped)
    chosen = best_of_grid(rows)
    if len(chosen):
        yield Condition("best of the grid", extractor, "as published", chosen)


def _last_weights(own: pd.DataFrame, last: pd.DataFrame) -> pd.DataFrame:
    """`own` with the last weights in place of averaged ones; an arm of which some run has none is
    left out. Empty where no arm has any.
    """
    same = own[["trial", "settings", "samples"]].drop_duplicates()
    beside = last.merge(same).drop_duplicates("trial")  # one set of each run
    parts = []
    for _, runs in own.groupby("arm", sort=False):
        if not runs.averaged.any():
            parts.append(runs)
        elif runs.trial.isin(beside.trial).all():
            parts.append(beside[beside.trial.isin(runs.trial)])
    return pd.concat(parts) if len(beside) and parts else own.iloc[:0]


def best_of_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each arm the sets with the settings that its choosing sets (column `chooses`) found best:
    least mean logarithm of the distance over the trials that all settings have. Sets of other seeds
    are returned, one of each run: what chose is not what is reported.
    """
    parts = []
    for _, own in rows[~rows.raw].groupby("arm", sort=False):
        grid = own[own.chooses]
        settings = grid.groupby("trial").settings.nunique()
        common = settings.index[settings == grid.settings.nunique()]
        grid = grid[grid.trial.isin(common)]
        if grid.empty:
            continue
        best = np.log(grid.distance).groupby(grid.settings).mean().idxmin()
        fresh = ~own.chooses & ~own.sampling_seed.isin(grid.sampling_seed)
        parts.append(own[fresh & (own.settings == best)].drop_duplicates("trial"))
    return pd.concat(parts) if parts else rows.iloc[:0]


def places(
    condition: Condition,
    cost: str = "train_flops",
    score: str = "distance",
    unequal: bool = False,
) -> tuple[Placed, ...]:
    """The arms by their `score` at the largest `cost` that all of them reached, the best first.

    Between two sizes the logarithms are taken to be linear. The interval is that of the seeds, from
    their pooled spread and the runs of the nearest size; none where no size was run twice. "above"
    has the error of the floor besides. Raises UnequalGrounds where arms were not measured on one
    ground, unless `unequal`; ValueError where a score is no positive number.
    """
    if not unequal:
        refuse_incomparable(condition.rows)
    found = curves(condition.rows, score, cost)
    budget = min(float(one.cost.max()) for one in found.values())
    try:
        deviation, free = spread(condition.rows, score)
    except ValueError:
        deviation, free = float("nan"), 1
    times = float(student.ppf((1 + _LEVEL) / 2, free))
    errors = condition.rows.groupby("arm").floor_stderr.max()
    floors = {str(arm): float(error) for arm, error in errors.items() if score == "above"}
    placed = []
    for one in found.values():
        if one.cost.min() > _EQUAL * budget:
            continue
        distance = float(np.exp(_log_score(one, budget)))
        of_floor = float(np.nan_to_num(floors.get(one.arm, 0.0))) / distance
        of_runs = deviation / float(np.sqrt(_runs_at(one, budget)))
        placed.append(Placed(one.arm, distance, float(np.hypot(of_runs, of_floor)), times))
    return tuple(sorted(placed, key=lambda one: one.distance))


def crossed(one: Multiplier, placed: tuple[Placed, ...]) -> bool:
    """Whether the arm that needs more compute is the nearer one at the largest budget of `places`,
    and both can be told: their curves cross.
    """
    there = {each.arm: each for each in placed}
    if one.value is None or not one.distinguishable or not {one.arm, one.against} <= set(there):
        return False
    more, less = (one.arm, one.against) if one.value > 1 else (one.against, one.arm)
    nearer = there[more].distance < there[less].distance
    return nearer and there[more].distinguishable_from(there[less])


def order_in_words(placed: tuple[Placed, ...]) -> str:
    """The best first: "dit < ar ≈ var"; ≈ where two neighbours cannot be told apart."""
    words = []
    for one, after in pairwise(placed):
        words += [one.arm, "<" if one.distinguishable_from(after) else "≈"]
    return " ".join([*words, *(one.arm for one in placed[-1:])])


def reversals(first: tuple[Placed, ...], other: tuple[Placed, ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of arms (nearer in `first`, nearer in `other`) that both tell apart, in opposite
    order.
    """
    there = {one.arm: one for one in other}
    return tuple(
        (one, against)
        for one, against in _told_pairs(first, other)
        if there[against].distance < there[one].distance
    )


def _told_pairs(first: tuple[Placed, ...], other: tuple[Placed, ...]) -> list[tuple[str, str]]:
    there = {one.arm: one for one in other}
    return [
        (one.arm, against.arm)
        for one, against in combinations(first, 2)
        if one.arm in there and against.arm in there and one.distinguishable_from(against)
        if there[one.arm].distinguishable_from(there[against.arm])
    ]


def of_pairs(
    condition: Condition, cost: str = "train_flops", unequal: bool = False
) -> tuple[Multiplier, ...]:
    """The multiplier of each pair of arms, once, so that it is at least 1 where it is known.

    Raises UnequalGrounds where they were not measured on one ground, unless `unequal`; ValueError
    where nothing can be said.
    """
    if not unequal:
        refuse_incomparable(condition.rows)
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
    """One row for each condition, way to count FLOPs and measure, against the first.

    Columns: condition, counted, measure, order, told (how many pairs both rows tell apart),
    reversed (those in opposite order: nearer in the first row, nearer in this). "Above
    reconstructions" is the distance less that of the arm's tokenizer; left out where one is not
    above it, or not known.
    """
    rows = []
    first: tuple[Placed, ...] = ()
    for condition in found:
        for cost, measure, score in _MEASURES:
            try:
                placed = places(condition, cost, score)
            except ValueError:
                continue
            if len(placed) < 2:  # one size each, of other cost
                continue
            first = first or placed
            rows.append({
                "condition": condition.name,
                "counted": CURRENCIES[cost],
                "measure": measure,
                "order": order_in_words(placed),
                "told": len(_told_pairs(first, placed)),
                "reversed": reversals(first, placed),
            })  # fmt: skip
    columns = ["condition", "counted", "measure", "order", "told", "reversed"]
    return pd.DataFrame(rows, columns=columns)


def _log_score(curve: Curve, cost: float) -> float:
    return float(np.interp(np.log(cost), np.log(curve.cost), curve.log_score))


def _runs_at(curve: Curve, cost: float) -> int:
    return int(curve.runs[np.abs(np.log(curve.cost / cost)).argmin()])
