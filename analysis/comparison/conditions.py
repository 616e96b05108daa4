"""Families compared under every measured condition: feature network, weights, guidance, and way of
counting FLOPs. A ranking that holds under all of them is robust; the others are shown as reversed.

Rows are those of images.parquet: one for each set of samples of each trial and feature network.
An arm is one family (with its tokenizer, if the family has several) in the comparison.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.comparison.families import (
    ComparisonError,
    Curve,
    Multiplier,
    curves,
    multipliers,
    refuse_incomparable,
    spread,
    with_arms,
)
from analysis.format import significant

# Cost column: its name in the report. The first is the main one.
COST_NAMES = {
    "train_flops": "training FLOPs",
    "train_flops_dense_mask": "training FLOPs, masked pairs counted",
    "train_flops_6n_total": "6 x parameters x positions",
    "params_total": "parameters",
    "images_seen": "images seen",
    "sampling_flops": "FLOPs of one sample",
}
# Ways of counting and measuring under which arms are ranked: cost, measure, column.
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
_EQUAL = 1.05  # costs within this ratio count as equal: whole steps cannot match a cost exactly


@dataclass(frozen=True)
class Condition:
    """One way to sample and to measure, with the rows of every arm that was sampled in this way."""

    set: str  # name of the set of samples, or "best of the grid"
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
class RankedArm:
    """The score of an arm at the largest budget that all arms reached."""

    arm: str
    distance: float
    spread: float  # standard error of log distance between seeds; NaN: not known
    times: float  # t quantile: half-width of a 95 % interval / spread
    budget: float  # the cost at which the arms are compared

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %; None if no size was run with two seeds."""
        if not np.isfinite(self.spread):
            return None
        width = float(np.exp(self.times * self.spread))
        return self.distance / width, self.distance * width

    def ratio_to(self, other: "RankedArm") -> tuple[float, float, float]:
        """This distance over the other, and the ends of its 95 % interval; NaN as in `spread`."""
        ratio = self.distance / other.distance
        width = float(np.exp(self.times * np.hypot(self.spread, other.spread)))
        return ratio, ratio / width, ratio * width

    def distinguishable_from(self, other: "RankedArm") -> bool:
        """Whether the difference is significant (95 %, for this pair alone)."""
        _, low, high = self.ratio_to(other)
        return bool(low > 1 or high < 1)  # False if they are NaN


def conditions(images: pd.DataFrame) -> tuple[Condition, ...]:
    """Every condition under which at least two arms were scored, in the order of `images`.

    Raises ValueError if `images` lacks a column.
    """
    if missing := [name for name in _NEEDED if name not in images]:
        raise ValueError(
            f"images.parquet has no {', '.join(missing)}: it was written by an earlier version or "
            "is another table; `var-scaling run` scores the images again and rewrites it"
        )
    rows = with_arms(images).assign(above=images.distance - images.floor)
    measured = [
        condition
        for extractor, network_rows in rows.groupby("extractor", sort=False)
        for condition in _conditions_of_network(str(extractor), network_rows)
    ]
    return tuple(each for each in measured if each.rows.arm.nunique() > 1)


def _conditions_of_network(extractor: str, rows: pd.DataFrame) -> Iterator[Condition]:
    # Sets that choose settings are not reported: the least of many scores is biased downwards.
    reported = rows[~rows.chooses]
    last = reported[reported.raw]
    for name, set_rows in reported[~reported.raw].groupby("set", sort=False):
        yield Condition(str(name), extractor, "as published", set_rows)
        swapped = _last_weights(set_rows, last)
        if len(swapped):
            yield Condition(str(name), extractor, "last", swapped)
    chosen = best_of_grid(rows)
    if len(chosen):
        yield Condition("best of the grid", extractor, "as published", chosen)


def _last_weights(rows: pd.DataFrame, last: pd.DataFrame) -> pd.DataFrame:
    """`rows` with samples from the last weights (rows of `last`) instead of averaged weights.

    An arm is left out if one of its runs has no such samples. Empty if no arm has any.
    """
    settings = rows[["trial", "settings", "samples"]].drop_duplicates()
    # Equal settings and number of samples, so that only the weights differ.
    matching = last.merge(settings).drop_duplicates("trial")  # one set of each run
    parts = []
    for _, runs in rows.groupby("arm", sort=False):
        # A family that does not average has only last weights: its rows stay as they are.
        if not runs.averaged.any():
            parts.append(runs)
        elif runs.trial.isin(matching.trial).all():
            parts.append(matching[matching.trial.isin(runs.trial)])
    return pd.concat(parts) if len(matching) and parts else rows.iloc[:0]


def best_of_grid(rows: pd.DataFrame) -> pd.DataFrame:
    """For each arm, the sets of samples with its best settings: one set of each run.

    The best settings have the least mean log distance among the selection sets (column `chooses`),
    over the trials that were sampled with all settings. The returned sets have other sampling
    seeds than the selection sets: to report the selection sets would bias the score downwards.
    """
    parts = []
    for _, arm_rows in rows[~rows.raw].groupby("arm", sort=False):
        grid = arm_rows[arm_rows.chooses]
        # All settings are compared over the same trials. Otherwise differences between trials would
        # enter the choice.
        settings = grid.groupby("trial").settings.nunique()
        common = settings.index[settings == grid.settings.nunique()]
        grid = grid[grid.trial.isin(common)]
        if grid.empty:
            continue
        best = np.log(grid.distance).groupby(grid.settings).mean().idxmin()
        independent = ~arm_rows.chooses & ~arm_rows.sampling_seed.isin(grid.sampling_seed)
        # Sets of equal settings of one trial are no runs of their own: one set per trial.
        parts.append(arm_rows[independent & (arm_rows.settings == best)].drop_duplicates("trial"))
    return pd.concat(parts) if parts else rows.iloc[:0]


def rank_arms(
    condition: Condition,
    cost: str = "train_flops",
    score: str = "distance",
    allow_incomparable: bool = False,
) -> tuple[RankedArm, ...]:
    """The arms by their `score` at the largest `cost` that all of them reached, the best first.

    The log score is interpolated linearly in the log cost. The interval is that between seeds, from
    their pooled standard deviation and the number of runs of the nearest size; there is none if no
    size was run with two seeds. The score "above" includes the error of the reconstruction floor.
    Raises IncomparableArms if arms were measured differently, unless `allow_incomparable`;
    ComparisonError if a score is not positive.
    """
    if not allow_incomparable:
        refuse_incomparable(condition.rows)
    arm_curves = curves(condition.rows, score, cost)
    # The largest cost that all arms reached: no arm is extrapolated upwards.
    budget = min(float(curve.cost.max()) for curve in arm_curves.values())
    try:
        deviation, free = spread(condition.rows, score)
    except ComparisonError:
        # With NaN no difference is significant, since every comparison with NaN is False.
        deviation, free = float("nan"), 1
    times = float(student.ppf((1 + _LEVEL) / 2, free))
    # The floor is subtracted from the distance, so its error adds. An unknown error counts as 0.
    errors = condition.rows.groupby("arm").floor_stderr.max()
    floors = {str(arm): float(error) for arm, error in errors.items() if score == "above"}
    ranking = []
    for curve in arm_curves.values():
        if curve.cost.min() > _EQUAL * budget:
            continue
        distance = float(np.exp(_log_score(curve, budget)))
        # An error of the distance divided by the distance is one of its logarithm.
        floor_error = float(np.nan_to_num(floors.get(curve.arm, 0.0))) / distance
        seed_error = deviation / float(np.sqrt(_runs_at(curve, budget)))
        error = float(np.hypot(seed_error, floor_error))
        ranking.append(RankedArm(curve.arm, distance, error, times, budget))
    return tuple(sorted(ranking, key=lambda each: each.distance))


def curves_cross(multiplier: Multiplier, ranking: tuple[RankedArm, ...]) -> bool:
    """Whether the arm that needs more compute over the common scores has the smaller distance at
    the largest budget, both significantly.
    """
    arms = {each.arm: each for each in ranking}
    pair = (multiplier.arm, multiplier.against)
    if multiplier.value is None or not multiplier.distinguishable or not set(pair) <= set(arms):
        return False
    more, less = pair if multiplier.value > 1 else pair[::-1]
    nearer = arms[more].distance < arms[less].distance
    return nearer and arms[more].distinguishable_from(arms[less])


def ranking_text(ranking: tuple[RankedArm, ...]) -> str:
    """The best first: "dit < ar ≈ var"; ≈ where two neighbours do not differ significantly."""
    words = []
    for arm, following in pairwise(ranking):
        words += [arm.arm, "<" if arm.distinguishable_from(following) else "≈"]
    return " ".join([*words, *(arm.arm for arm in ranking[-1:])])


def ranking_sentence(condition: Condition) -> str:
    """Which arm is nearest to real images at the largest common budget of training FLOPs, and how
    much farther the others are; "" for fewer than two arms. Raises ComparisonError as `rank_arms`.
    """
    ranking = rank_arms(condition)
    if len(ranking) < 2:
        return ""
    first, *others = ranking
    farther = "; ".join(f"{each.arm} {_ratio_text(each, first)}" for each in others)
    ranked = {each.arm for each in ranking}
    absent = [arm for arm in dict.fromkeys(condition.rows.arm) if arm not in ranked]
    return (
        f"By the {condition.extractor} network {first.arm} has the smallest distance at "
        f"{significant(first.budget, 3)} training FLOPs, {significant(first.distance, 3)}. "
        f"Distances of the others divided by it: {farther}."
        + (f" Not at this budget: {', '.join(absent)}." if absent else "")
    )


def _ratio_text(arm: RankedArm, first: RankedArm) -> str:
    ratio, low, high = (significant(value, 3) for value in arm.ratio_to(first))
    if not np.isfinite(arm.spread):
        return f"{ratio} (no interval: no size was run with two seeds)"
    tie = "" if arm.distinguishable_from(first) else ", not significant"
    return f"{ratio} ({low} to {high}{tie})"


def reversals(
    first: tuple[RankedArm, ...], other: tuple[RankedArm, ...]
) -> tuple[tuple[str, str], ...]:
    """Pairs of arms (nearer in `first`, nearer in `other`) that differ significantly in both
    rankings, in opposite order.
    """
    arms = {each.arm: each for each in other}
    return tuple(
        (arm, against)
        for arm, against in _distinguishable_pairs(first, other)
        if arms[against].distance < arms[arm].distance
    )


def _distinguishable_pairs(
    first: tuple[RankedArm, ...], other: tuple[RankedArm, ...]
) -> list[tuple[str, str]]:
    """Pairs of arms that differ significantly in both rankings, the nearer in `first` first."""
    arms = {each.arm: each for each in other}
    return [
        (arm.arm, against.arm)
        for arm, against in combinations(first, 2)
        if arm.arm in arms and against.arm in arms and arm.distinguishable_from(against)
        if arms[arm.arm].distinguishable_from(arms[against.arm])
    ]


def pairwise_multipliers(
    condition: Condition, cost: str = "train_flops", allow_incomparable: bool = False
) -> tuple[Multiplier, ...]:
    """One multiplier for each pair of arms, in the direction in which it is at least 1.

    Raises IncomparableArms if arms were measured differently, unless `allow_incomparable`;
    ComparisonError if no multiplier can be computed.
    """
    if not allow_incomparable:
        refuse_incomparable(condition.rows)
    every = {
        (each.arm, each.against): each for each in multipliers(condition.rows, "distance", cost)
    }
    selected = []
    for (arm, against), multiplier in every.items():
        # If the arms share no score, neither direction has a value, and one of the two is kept.
        mirrored = every[against, arm]
        if multiplier.value is None or mirrored.value is None:
            if arm < against:
                selected.append(multiplier)
        elif multiplier.value >= 1 and multiplier not in selected:
            selected.append(multiplier)
    return tuple(selected)


def robustness(measured: tuple[Condition, ...]) -> pd.DataFrame:
    """The ranking under each condition, way to count FLOPs and measure, compared with the first.

    Columns: condition, counted, measure, order, significant_pairs (number of pairs that differ
    significantly in this row and in the first), reversed (those of them in opposite order, as:
    nearer in the first row, nearer in this row). "Above reconstructions" is the distance minus the
    reconstruction floor of the arm's tokenizer; it is left out if an arm is not above its floor or
    the floor is unknown.
    """
    rows = []
    first: tuple[RankedArm, ...] = ()
    for condition in measured:
        for cost, measure, score in _MEASURES:
            try:
                ranking = rank_arms(condition, cost, score)
            except ComparisonError:
                continue
            if len(ranking) < 2:  # arms of one size each, at different costs
                continue
            # The first ranking that could be computed is the one that all others are compared with.
            first = first or ranking
            rows.append({
                "condition": condition.name,
                "counted": COST_NAMES[cost],
                "measure": measure,
                "order": ranking_text(ranking),
                "significant_pairs": len(_distinguishable_pairs(first, ranking)),
                "reversed": reversals(first, ranking),
            })  # fmt: skip
    columns = ["condition", "counted", "measure", "order", "significant_pairs", "reversed"]
    return pd.DataFrame(rows, columns=columns)


def _log_score(curve: Curve, cost: float) -> float:
    return float(np.interp(np.log(cost), np.log(curve.cost), curve.log_score))


def _runs_at(curve: Curve, cost: float) -> int:
    return int(curve.runs[np.abs(np.log(curve.cost / cost)).argmin()])
