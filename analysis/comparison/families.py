"""Compute multipliers of families by image score: how much more compute one needs than another.

A curve is one family's score (a distance, smaller is better) against its cost, over its sizes.
Between two sizes the log cost is interpolated linearly in the log score; there is no extrapolation.
The multiplier of B against A is C_B / C_A at equal score: 2 means that B needs twice the compute of
A.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from analysis.format import significant

_LEVELS = 9  # scores at which a multiplier is computed, evenly spaced in their logarithm
_RESAMPLES = 2000
_TIE = 1e-9  # step in log score that makes a curve strictly decreasing
_NARROW = 2  # standard deviations between seeds
_SIZE = ("depth", "width", "train_flops")  # equal in runs that differ only in their seed

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One family's sizes: the cost of each, and the mean log score of its runs."""

    arm: str
    cost: Floats  # increasing, one for each size
    log_score: Floats
    runs: NDArray[np.int64]  # number of runs of each size

    @property
    def best(self) -> float:
        return float(np.exp(self.log_score.min()))

    @property
    def worst(self) -> float:
        """The score of the smallest size, even if a larger size has a worse one."""
        return float(np.exp(self.log_score[0]))

    def log_cost_at(self, log_scores: Floats) -> Floats:
        """Log cost of each score on the curve; NaN outside the range of its scores.

        A larger size that is not better than a smaller one gets the smaller one's score.
        """
        # Noise between seeds can make a larger size worse; the curve then stays level.
        falling = np.minimum.accumulate(self.log_score)
        falling = falling - _TIE * np.arange(len(falling))  # np.interp needs distinct scores
        # np.interp needs increasing arguments, and scores fall with cost: hence the signs.
        return np.interp(-log_scores, -falling, np.log(self.cost), left=np.nan, right=np.nan)

    def resampled(self, deviation: float, generator: np.random.Generator) -> "Curve":
        """A random curve: each mean plus normal noise of its standard error, `deviation` being the
        standard deviation of one run.
        """
        # The mean of r runs has 1 / sqrt(r) of the deviation of one run.
        noise = generator.standard_normal(len(self.runs)) / np.sqrt(self.runs)
        return replace(self, log_score=self.log_score + deviation * noise)


@dataclass(frozen=True)
class Multiplier:
    """Compute of `arm` over compute of `against` at equal score; None if they share no score."""

    arm: str
    against: str
    value: float | None
    low: float | None
    high: float | None
    level: float
    scores: tuple[float, float] | None  # worst and best of the scores that both reached
    sentence: str
    narrow: bool = False  # the common range of scores is so narrow that `value` is biased to 1

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


class ComparisonError(ValueError):
    """The rows do not determine what was asked for; the message says why."""


class IncomparableArms(ComparisonError):
    """The distances of the arms cannot be compared; the message says in what they differ."""


def with_arms(rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` of images.parquet with a column `arm`: the family, with its tokenizer or loss unit if
    the family has several of them.
    """
    arm = rows.family
    for column in ("tokenizer", "loss_unit"):
        # One family with two tokenizers is two arms.
        several = rows.groupby("family")[column].transform("nunique") > 1
        arm = arm.where(~several, arm + ", " + rows[column])
    return rows.assign(arm=arm)


def curves(rows: pd.DataFrame, score: str, cost: str, arm: str = "arm") -> dict[str, Curve]:
    """The curve of each arm. Runs of one size have equal depth, width and training FLOPs.

    Raises ComparisonError if a score or cost is not positive, or a cost does not grow with size.
    """
    not_positive = rows[~(rows[score] > 0) | ~(rows[cost] > 0)]
    if len(not_positive):
        row = not_positive.iloc[0]
        raise ComparisonError(
            f"{row['trial']}: {score} = {row[score]:g}, {cost} = {row[cost]:g}: both must be "
            "positive for a curve"
        )
    by_arm = {}
    for name, runs in rows.groupby(arm, sort=False):
        # Means of logs: distances differ by factors between seeds and sizes.
        sizes = runs.assign(log=np.log(runs[score])).groupby(list(_SIZE))
        means = sizes.agg(cost=(cost, "mean"), log=("log", "mean"), runs=("log", "size"))
        means = means.sort_index(level="train_flops", kind="stable")
        costs = means["cost"].to_numpy(dtype=float)
        if not (np.diff(costs) > 0).all():
            raise ComparisonError(f"{name}: {cost} does not grow with the size of the model")
        by_arm[str(name)] = Curve(
            str(name),
            costs,
            means["log"].to_numpy(dtype=float),
            means["runs"].to_numpy(dtype=np.int64),
        )
    return by_arm


def spread(rows: pd.DataFrame, score: str, arm: str = "arm") -> tuple[float, int]:
    """Standard deviation of log scores between runs of one arm and size, pooled over all sizes, and
    its degrees of freedom. Raises ComparisonError if no size was run twice.
    """
    logs = np.log(rows[score])
    groups = logs.groupby([rows[name] for name in (arm, *_SIZE)])
    free = int((groups.size() - 1).sum())
    if free < 1:
        raise ComparisonError("no size was run with several seeds: the spread of seeds is unknown")
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

    The interval is Student's t with `free` degrees of freedom; its standard error is that of
    resampled curves, whose means vary by the spread between runs. Its coverage is simulated in the
    tests. If the common scores span less than two standard deviations, the curves may overlap only
    by chance, and the multiplier is biased towards 1: `narrow` is then set.
    """
    point = _log_ratio(of, against)
    if point is None:
        ahead, behind = (of, against) if of.best < against.best else (against, of)
        sentence = (
            f"not reached: the best score of {behind.arm} is {behind.best:.3g}, and the smallest "
            f"{ahead.arm} has {ahead.worst:.3g}"
        )
        # At the score of the smallest size of `ahead`, which no size of `behind` reached; by the
        # means, so there is no interval.
        least = float(behind.cost[-1] / ahead.cost[0])
        if least > 1 and behind.best > ahead.worst:
            sentence += (
                f"; so by these means {behind.arm} needs more than {significant(least, 3)} x the "
                f"compute of {ahead.arm}"
            )
        return Multiplier(of.arm, against.arm, None, None, None, level, None, sentence)
    # Quantiles of the resampled ratios hold the true factor too seldom (81 % at a factor of 6.5),
    # Student's interval with their standard deviation in 93 to 95 % (LOG.md). Each pair of
    # resampled curves has its own common range, because the range is random too.
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        ratio = _log_ratio(
            of.resampled(deviation, generator), against.resampled(deviation, generator)
        )
        if ratio is not None:
            drawn.append(ratio)
    half = float(student.ppf((1 + level) / 2, free)) * float(np.std(drawn))
    low, value, high = (float(np.exp(point + times * half)) for times in (-1, 0, 1))
    worst, best = _common(of, against)
    sentence = (
        f"{of.arm} needs {significant(value, 3)} x the compute of {against.arm} "
        f"({significant(low, 3)} to {significant(high, 3)})"
    )
    # Arms that overlap only by chance are selected for being close: their factor is too near 1.
    narrow = bool(np.log(worst / best) < _NARROW * deviation)
    if narrow:
        sentence += (
            "; the range of distances that both reached is narrow: the true factor may be larger"
        )
    return Multiplier(of.arm, against.arm, value, low, high, level, (worst, best), sentence, narrow)


def _common(of: Curve, against: Curve) -> tuple[float, float]:
    """Worst and best of the scores that both reached; if there are none, the best is the larger."""
    return min(of.worst, against.worst), max(of.best, against.best)


def _log_ratio(of: Curve, against: Curve) -> float | None:
    """Mean log of C_of / C_against over the scores that both reached; None if there are none."""
    worst, best = _common(of, against)
    if not best < worst:
        return None
    # Without the two ends: rounding decides whether these are inside the range of a curve.
    inner = np.linspace(np.log(worst), np.log(best), _LEVELS)[1:-1]
    ratio = float(np.mean(of.log_cost_at(inner) - against.log_cost_at(inner)))
    return ratio if np.isfinite(ratio) else None


def multipliers(
    rows: pd.DataFrame, score: str, cost: str, arm: str = "arm", level: float = 0.95
) -> tuple[Multiplier, ...]:
    """The multiplier of every arm against every other, in the order of `rows`.

    Raises ComparisonError as `curves` and `spread` do.
    """
    by_arm = curves(rows, score, cost, arm)
    deviation, free = spread(rows, score, arm)
    return tuple(
        multiplier(by_arm[of], by_arm[against], deviation, free, level)
        for of, against in permutations(by_arm, 2)
    )


# Columns that must be equal for distances to be comparable, and columns whose differences are only
# reported.
_MUST_MATCH = (
    ("data", "images"),
    ("samples", "numbers of samples"),
    ("reference", "references"),
    ("extractor", "feature networks"),
    ("extractor_sha256", "weights of the feature network"),
)
_REPORTED = (("guidance", "guidance weights"), ("tokenizer_recipe", "tokenizer recipes"))


def refuse_incomparable(rows: pd.DataFrame, arm: str = "arm") -> None:
    """Raise IncomparableArms if the distances of the arms were not measured in the same way."""
    if sentences := _differences(rows, arm, _MUST_MATCH):
        raise IncomparableArms("; ".join(sentences))


def arm_differences(rows: pd.DataFrame, arm: str = "arm") -> tuple[str, ...]:
    """A sentence for each difference between the arms other than the model."""
    sentences = _differences(rows, arm, _MUST_MATCH + _REPORTED)
    budgets = _budgets(rows, arm)
    if len(budgets) > 1:
        sentences.append(f"the largest budgets differ: {'; '.join(budgets)}")
    return tuple(sentences)


def _differences(rows: pd.DataFrame, arm: str, columns: Sequence[tuple[str, str]]) -> list[str]:
    sentences = []
    for column, what in columns:
        values = rows.groupby(arm, sort=False)[column].unique()
        distinct = sorted({str(value) for arm_values in values for value in arm_values})
        if len(distinct) > 1:
            sentences.append(f"{what} differ: {', '.join(value[:40] for value in distinct)}")
    return sentences


def _budgets(rows: pd.DataFrame, arm: str) -> Sequence[str]:
    """The range of training FLOPs of each arm, where the largest differ by more than 10 %."""
    # Steps are whole numbers, so the budgets of two arms are never exactly equal.
    largest = rows.groupby(arm, sort=False).train_flops.max()
    if largest.max() <= 1.1 * largest.min():
        return []
    return [f"{name} up to {flops:.2g} FLOPs" for name, flops in largest.items()]
