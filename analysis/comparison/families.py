"""How much more compute one family needs than another for images as good: compute multipliers.

A curve is one family's score (a distance, smaller is better) against what it costs, over its sizes.
Between two sizes the logarithm of the cost is taken to be linear in that of the score; beyond what
was measured nothing is said. The multiplier of B against A is C_B / C_A at equal score: 2 means
that B needs twice the compute of A.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

_LEVELS = 9  # scores at which a multiplier is taken, evenly spread in their logarithm
_RESAMPLES = 2000
_ALMOST = 1e-9
_NARROW = 2  # spreads of seeds
_SIZE = ("depth", "width", "train_flops")  # equal in runs that differ by their seed alone

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One family's sizes: cost of each, and the mean logarithm of its runs' scores."""

    arm: str
    cost: Floats  # rising, one for each size
    log_score: Floats
    runs: NDArray[np.int64]  # of each size

    @property
    def best(self) -> float:
        return float(np.exp(self.log_score.min()))

    @property
    def worst(self) -> float:
        """Of the smallest size: where a larger one is worse still, the smallest stands."""
        return float(np.exp(self.log_score[0]))

    def log_cost_at(self, log_scores: Floats) -> Floats:
        """Log cost of each score on the curve; NaN beyond the scores that it has.

        Where a larger size is no better than a smaller one, the smaller stands.
        """
        falling = np.minimum.accumulate(self.log_score)
        falling = falling - _ALMOST * np.arange(len(falling))  # each strictly better than before
        return np.interp(-log_scores, -falling, np.log(self.cost), left=np.nan, right=np.nan)

    def moved(self, deviation: float, generator: np.random.Generator) -> "Curve":
        """The curve of other runs: each mean moves as means of runs that spread so far do."""
        noise = generator.standard_normal(len(self.runs)) / np.sqrt(self.runs)
        return replace(self, log_score=self.log_score + deviation * noise)


@dataclass(frozen=True)
class Multiplier:
    """Compute of `arm` over that of `against` at equal score; None where it cannot be told."""

    arm: str
    against: str
    value: float | None
    low: float | None
    high: float | None
    level: float
    scores: tuple[float, float] | None  # worst and best of the scores that both reached
    said: str
    narrow: bool = False  # they have so little in common that the value is drawn towards 1

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def with_arms(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` of images.parquet with a column `arm`: the family, and where it has several, its
    tokenizer and what its loss is of.
    """
    arm = rows.family
    for column in ("tokenizer", "loss_unit"):
        several = rows.groupby("family")[column].transform("nunique") > 1
        arm = arm.where(~several, arm + ", " + rows[column])
    return rows.assign(arm=arm)


def curves(rows: pd.DataFrame, score: str, cost: str, arm: str = "arm") -> dict[str, Curve]:
    """The curve of each arm. Runs of one size have equal depth, width and training FLOPs.

    Raises ValueError where a score or cost is no positive number, or a cost does not grow with
    size: then it buys nothing.
    """
    wrong = rows[~(rows[score] > 0) | ~(rows[cost] > 0)]
    if len(wrong):
        row = wrong.iloc[0]
        raise ValueError(
            f"{row['trial']}: {score} = {row[score]:g}, {cost} = {row[cost]:g}: a curve needs "
            "positive numbers"
        )
    found = {}
    for name, runs in rows.groupby(arm, sort=False):
        sizes = runs.assign(log=np.log(runs[score])).groupby(list(_SIZE))
        means = sizes.agg(cost=(cost, "mean"), log=("log", "mean"), runs=("log", "size"))
        means = means.sort_index(level="train_flops", kind="stable")
        costs = means["cost"].to_numpy(dtype=float)
        if not (np.diff(costs) > 0).all():
            raise ValueError(f"{name}: {cost} does not grow with the size of the model")
        found[str(name)] = Curve(
            str(name),
            costs,
            means["log"].to_numpy(dtype=float),
            means["runs"].to_numpy(dtype=np.int64),
        )
    return found


def spread(rows: pd.DataFrame, score: str, arm: str = "arm") -> tuple[float, int]:
    """Standard deviation of log scores between runs of one arm and size, pooled over all, and its
    degrees of freedom. Raises ValueError where no size was run twice.
    """
    logs = np.log(rows[score])
    groups = logs.groupby([rows[name] for name in (arm, *_SIZE)])
    free = int((groups.size() - 1).sum())
    if free < 1:
        raise ValueError("no size was run with several seeds: nothing is known of their spread")
    return float(np.sqrt(((logs - groups.transform("mean")) ** 2).sum() / free)), free


def multiplier(
    of: Curve,
    against: Curve,
    deviation: float,
    free: int,
    level: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> Multiplier:
    """The geometric mean of C_of / C_against over the scores that both reached, with an interval.

    The interval is Student's of `free` degrees of freedom, with the standard deviation of resampled
    curves: each size's mean moves by the spread of runs. Its coverage is simulated in the tests.
    Where the distances in common span less than two such spreads, runs overlap by chance, and then
    their multiplier is too near 1: `narrow`.
    """
    point = _log_ratio(of, against)
    if point is None:
        ahead, behind = (of, against) if of.best < against.best else (against, of)
        said = (
            f"not reached: {behind.arm} comes to {behind.best:.3g} at best, and {ahead.arm} is "
            f"never worse than {ahead.worst:.3g}"
        )
        return Multiplier(of.arm, against.arm, None, None, None, level, None, said)
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        ratio = _log_ratio(of.moved(deviation, generator), against.moved(deviation, generator))
        if ratio is not None:
            drawn.append(ratio)
    half = float(student.ppf((1 + level) / 2, free)) * float(np.std(drawn))
    low, value, high = (float(np.exp(point + times * half)) for times in (-1, 0, 1))
    worst, best = _common(of, against)
    said = f"{of.arm} needs {value:.2f} x the compute of {against.arm} ({low:.2f} to {high:.2f})"
    narrow = bool(np.log(worst / best) < _NARROW * deviation)
    if narrow:
        said += "; the distances that both reached hardly differ: the true factor may be larger"
    return Multiplier(of.arm, against.arm, value, low, high, level, (worst, best), said, narrow)


def _common(of: Curve, against: Curve) -> tuple[float, float]:
    """Worst and best of the scores that both reached; the best is worse where they share none."""
    return min(of.worst, against.worst), max(of.best, against.best)


def _log_ratio(of: Curve, against: Curve) -> float | None:
    """Mean log of C_of / C_against over the scores that both reached; None where there are none."""
    worst, best = _common(of, against)
    if not best < worst:
        return None
    inner = np.linspace(np.log(worst), np.log(best), _LEVELS)[1:-1]  # at the ends rounding decides
    ratio = float(np.mean(of.log_cost_at(inner) - against.log_cost_at(inner)))
    return ratio if np.isfinite(ratio) else None


def multipliers(
    rows: pd.DataFrame, score: str, cost: str, arm: str = "arm", level: float = 0.95
) -> tuple[Multiplier, ...]:
    """Of every arm against every other, in the order of `rows`."""
    found = curves(rows, score, cost, arm)
    deviation, free = spread(rows, score, arm)
    return tuple(
        multiplier(found[one], found[other], deviation, free, level)
        for one, other in permutations(found, 2)
    )


# What must be equal for a distance to mean the same, and what may differ if it is said.
_SAME = (
    ("data", "images"),
    ("samples", "counts of samples"),
    ("reference", "references"),
    ("extractor", "feature networks"),
    ("extractor_sha256", "weights of the feature network"),
)
_SAID = (("guidance", "strengths of guidance"), ("tokenizer_recipe", "recipes of tokenizers"))


class IncomparableArms(ValueError):
    """The arms were measured by different rulers; the message says in what they differ."""


def refuse_incomparable(rows: pd.DataFrame, arm: str = "arm") -> None:
    """Raise UnequalGrounds where distances of the arms do not mean the same."""
    if said := _differences(rows, arm, _SAME):
        raise IncomparableArms("; ".join(said))


def unequal_grounds(rows: pd.DataFrame, arm: str = "arm") -> tuple[str, ...]:
    """In what the arms differ besides the model, a sentence each; none: they are on one ground."""
    said = _differences(rows, arm, _SAME + _SAID)
    budgets = _budgets(rows, arm)
    if len(budgets) > 1:
        said.append(f"sizes have other budgets: {'; '.join(budgets)}")
    return tuple(said)


def _differences(rows: pd.DataFrame, arm: str, columns: Sequence[tuple[str, str]]) -> list[str]:
    said = []
    for column, what in columns:
        values = rows.groupby(arm, sort=False)[column].unique()
        flat = sorted({str(one) for each in values for one in each})
        if len(flat) > 1:
            said.append(f"{what} differ: {', '.join(one[:40] for one in flat)}")
    return said


def _budgets(rows: pd.DataFrame, arm: str) -> Sequence[str]:
    """The range of training FLOPs of each arm, where the largest differ by more than 10 %."""
    most = rows.groupby(arm, sort=False).train_flops.max()
    if most.max() <= 1.1 * most.min():
        return []
    return [f"{name} up to {flops:.2g} FLOPs" for name, flops in most.items()]
