"""Checks of a run table for data that contradict a law, or that look like mistakes of the source.

Each check is a function of the points of the laws and of all rows; `CHECKS` lists them. A check
names the runs concerned and what is suspicious. It never removes a row: the fit goes on.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.table.runs import run_names
from analysis.table.schema import SCORES
from analysis.table.table import Table

Array = NDArray[np.float64]

_NAMED = 5  # runs that a text names; the others are counted
# A law is withheld from this share of the runs on: one bad run among many is only reported.
_MANY = 0.1
_CONVENTION = (0.2, 5.0)  # plausible range of train_flops / (6 N D)
_EXCESS = 0.01  # relative rise of a held-out loss that counts as over-fitting
_SAME_TOKENS = 0.01  # relative difference
_LARGE_RESIDUAL = 4.0
_RARE = 0.001  # probability of such a residual in a table without a mistake
# Ratios of scores in two units, and their relative tolerance.
_UNITS = {
    1 / np.log(2): "the ratio of bits to nats, 1 / ln 2",
    np.log(10): "the ratio of nats to decimal digits, ln 10",
    100.0: "the ratio of per cent to a share",
}
_UNIT_TOLERANCE = 0.03
_NO_RANGE = 0.1  # standard deviation of the log of a variable below which it is constant
_RISING = 0.05  # level of the one-sided t test of a slope
_MIN_RUNS = 8  # for two groups of residuals: with fewer runs, noise often looks like two groups


@dataclass(frozen=True)
class Caveat:
    """A fact that a reader must know before the numbers.

    `runs`: the names of the runs concerned. `metrics`: the columns of the scores whose laws are
    contradicted, so that no law is announced for them; empty where the laws are announced.
    """

    check: str
    text: str
    runs: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """The text without its details, which follow a colon, as a part of a sentence."""
        reason = self.text.partition(":")[0]
        return reason[:1].lower() + reason[1:]


# (final rows, all rows of the same runs), both with the name of the run as index.
Check = Callable[[pd.DataFrame, pd.DataFrame], list[Caveat]]


def implausible(table: Table) -> tuple[Caveat, ...]:
    """The caveats of all checks, those that contradict a law first."""
    finals = table.finals
    rows = table.rows[table.rows.status.isin(["done", "imported"])]
    if finals.empty:
        return ()
    finals, rows = (each.set_axis(run_names(each), axis=0) for each in (finals, rows))
    caveats = [caveat for check in CHECKS for caveat in check(finals, rows)]
    return tuple(sorted(caveats, key=lambda caveat: not caveat.metrics))


def size_column(rows: pd.DataFrame) -> str:
    """The column of N: weights of the blocks where they are known, else all parameters."""
    return "params_total" if rows.params_blocks.isna().all() else "params_blocks"


# Data that contradict a law -----------------------------------------------------------------------


def loss_rises_with_size(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """The held-out loss does not fall with N, at equal D where the table has several D."""
    return [caveat for name in SCORES[:2] for caveat in _rising(finals, name)]


def error_rises_with_size(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """The held-out error rate does not fall with N, at equal D where the table has several D."""
    return [caveat for name in SCORES[2:] for caveat in _rising(finals, name)]


def over_fitted(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """The held-out loss of a run ends above its minimum, and the training loss falls after it."""
    known = rows.dropna(subset=["step", "val_loss", "train_loss"])
    runs = []
    for name, run in known.sort_values("step", kind="stable").groupby(level=0, sort=False):
        held_out, training = run.val_loss.to_numpy(), run.train_loss.to_numpy()
        best = int(np.argmin(held_out))
        if held_out[-1] > (1 + _EXCESS) * held_out[best] and training[-1] < training[best]:
            runs.append(str(name))
    if not runs:
        return []
    text = (
        f"Over-fitting: the held-out loss of {_listed(runs)} rises while the training loss falls. "
        "Train on more images, or for fewer steps."
    )
    return [Caveat("over_fitted", text, tuple(runs), _blocked(finals, runs, SCORES))]


def worse_than_uniform(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """The loss is above that of a uniform guess: the logarithm of the codebook's size."""
    if "codebook_size" not in finals:
        return []
    unit = finals.loss_unit.astype(object).where(finals.loss_unit.notna(), "nats")
    per_nat = unit.map(lambda name: {"nat": 1.0, "bit": 1 / np.log(2)}.get(str(name)[:3], np.nan))
    uniform = finals.codebook_size.astype(float).map(np.log) * per_nat.astype(float)
    caveats = []
    for metric in SCORES[:2]:
        wrong = finals[finals[metric] > uniform]
        if len(wrong):
            runs = tuple(wrong.index.unique())
            guess = float(uniform[finals[metric] > uniform].iloc[0])
            text = (
                f"{metric} is worse than a uniform guess: that of {_listed(runs)} is above "
                f"{guess:.4g}, the logarithm of the codebook's size. Nothing was learned, or the "
                "loss has another unit."
            )
            blocked = _blocked(finals, runs, (metric,))
            caveats.append(Caveat("worse_than_uniform", text, runs, blocked))
    return caveats


def too_short(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """A run has less than one token a parameter, or a warm-up of less than one step."""
    ratio = finals.tokens_seen / finals[size_column(finals)]
    pattern = re.compile(r"warm-up ([\d.e-]+)")
    found = [pattern.search(str(schedule)) for schedule in finals.schedule]
    share = np.array([float(each[1]) if each else np.nan for each in found])
    reasons = {
        "less than one token a parameter": ratio < 1,
        "a warm-up of less than one step": share * finals.steps < 1,
    }
    caveats = []
    for reason, wrong in reasons.items():
        runs = tuple(finals.index[wrong].unique())
        if runs:
            # Tables on purpose have a few such runs, for example wide grids at equal compute.
            most = 2 * len(runs) > finals.index.nunique()
            text = f"Too few steps or images: {_listed(runs)} had {reason}."
            caveats.append(Caveat("too_short", text, runs, SCORES if most else ()))
    return caveats


# Likely mistakes of the source --------------------------------------------------------------------


def wrong_compute(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """train_flops is far from 6 N D, with N of all parameters where they are known."""
    size = finals.params_total.where(finals.params_total.notna(), finals.params_blocks)
    ratio = finals.train_flops / (6.0 * size * finals.tokens_seen)
    wrong = ratio[(ratio < _CONVENTION[0]) | (ratio > _CONVENTION[1])]
    if wrong.empty:
        return []
    runs = tuple(wrong.index.unique())
    text = (
        f"train_flops of {_listed(runs)} is {_range(wrong)} times 6 N D, outside "
        f"{_CONVENTION[0]:g} to {_CONVENTION[1]:g}: check the units of N, D and FLOPs."
    )
    return [Caveat("wrong_compute", text, runs)]


def unit_jump(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """Two groups of runs have scores whose ratio is that of two units, such as bits and nats."""
    caveats = []
    for metric in SCORES:
        found = _two_groups(finals, metric)
        if found is None or (unit := _unit_of(found[0])) is None:
            continue
        text = (
            f"{metric} of {_listed(found[1])} is {found[0]:.4g} times that of the other runs of "
            f"like size, which is {unit}: two units may be mixed."
        )
        caveats.append(Caveat("unit_jump", text, found[1]))
    return caveats


def two_groups(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """The residuals of a smooth curve form two groups, which one law cannot describe."""
    caveats = []
    for metric in SCORES:
        found = _two_groups(finals, metric)
        if found is None or _unit_of(found[0]) is not None or not found[2]:
            continue
        text = (
            f"{metric} forms two groups: that of {_listed(found[1])} is {found[0]:.4g} times that "
            "of the other runs of like size. One law may not describe both."
        )
        caveats.append(Caveat("two_groups", text, found[1]))
    return caveats


def outlier(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """A run lies more than 4 standard deviations from a smooth curve through the others."""
    caveats = []
    for metric in SCORES:
        known = _points(finals, metric)
        design = _design(known, curved=len(known) >= _MIN_RUNS)
        spare = len(known) - design.shape[1] - 1
        if spare < 2:
            continue
        z = _standardised(design, np.log(known[metric].to_numpy(dtype=float)))
        # Of n residuals the largest is often large: its probability counts, too.
        rare = 2 * len(known) * stats.t.sf(np.abs(z), spare) < _RARE
        wrong = np.flatnonzero((np.abs(z) > _LARGE_RESIDUAL) & rare)
        if len(wrong):
            order = wrong[np.argsort(-np.abs(z[wrong]))]
            runs = tuple(known.index[order])
            text = (
                f"{metric} of {_listed(runs)} is far from a smooth curve through the other runs: "
                f"the largest standardised residual is {z[order[0]]:+.3g}."
            )
            caveats.append(Caveat("outlier", text, runs))
    return caveats


def several_rates(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """A size was run with several learning rates."""
    size = size_column(finals)
    known = finals.dropna(subset=[size, "learning_rate"])
    count = known.groupby(size).learning_rate.transform("nunique")
    runs = tuple(known.index[count > 1].unique())
    if not runs:
        return []
    sizes = known[size][count > 1].nunique()
    text = (
        f"Sizes have several learning rates ({sizes} sizes: {_listed(runs)}): the laws pool good "
        "and bad ones."
    )
    return [Caveat("several_rates", text, runs)]


def repeated_runs(finals: pd.DataFrame, rows: pd.DataFrame) -> list[Caveat]:
    """Runs of one size, seed and learning rate have numbers of tokens within 1 %."""
    size = size_column(finals)
    known = finals.dropna(subset=[size, "tokens_seen"])
    keys = [size, "seed", "learning_rate", "schedule"]
    if known.empty:
        return []
    known = known.sort_values([*keys, "tokens_seen"], kind="stable")
    group = known.groupby(keys, dropna=False, sort=False).ngroup().to_numpy()
    tokens = known.tokens_seen.to_numpy(dtype=float)
    near = (np.diff(group) == 0) & (tokens[1:] < tokens[:-1] * (1 + _SAME_TOKENS))
    # Runs of equal length without a seed are probably of several seeds, unless their scores agree.
    scores = known[list(SCORES)].fillna(0.0).to_numpy(dtype=float)
    equal_scores = (scores[1:] == scores[:-1]).all(1)
    near &= known.seed.notna().to_numpy()[1:] | (tokens[1:] != tokens[:-1]) | equal_scores
    concerned = np.append(near, False) | np.append(False, near)
    runs = tuple(known.index[concerned])
    if not runs:
        return []
    text = (
        f"{_listed(runs)} have the size and, within 1 %, the tokens of another run, and no other "
        "seed or learning rate: one run may be listed twice."
    )
    return [Caveat("repeated_runs", text, runs)]


CHECKS: tuple[Check, ...] = (
    loss_rises_with_size, error_rises_with_size, over_fitted, worse_than_uniform, too_short,
    wrong_compute, unit_jump, two_groups, outlier, several_rates, repeated_runs,
)  # fmt: skip


# Parts --------------------------------------------------------------------------------------------


def _rising(finals: pd.DataFrame, metric: str) -> list[Caveat]:
    """A caveat where the score rises with N, or its fitted rise is within the noise of the runs.

    A fall within the noise is no caveat of the table: the interval of each law's exponent, which
    then contains 0, says so.
    """
    known = _points(finals, metric)
    design = _design(known, curved=False)
    sizes = known[size_column(known)]
    # Without a range of N, the first column of the design would be another variable.
    if len(known) <= design.shape[1] or np.log(sizes).std() < 2 * _NO_RANGE:
        return []
    y = known[metric].to_numpy(dtype=float)
    slope, error = _slope(design, np.log(y))
    if slope < 1e-9:  # a flat line with rounding errors does not rise
        return []
    at_equal = " at equal tokens" if design.shape[1] > 2 else ""
    freedom = len(known) - design.shape[1]
    if slope <= stats.t.isf(_RISING, freedom) * error:
        half = stats.t.isf(0.025, freedom) * error
        text = (
            f"{metric} does not change with size{at_equal} by more than the noise: the slope of "
            f"log {metric} in log N is {slope:.2g}, with a 95 % interval of {slope - half:.2g} to "
            f"{slope + half:.2g}."
        )
        return [Caveat("no_change_with_size", text, metrics=(metric,))]
    ends = known[metric].groupby(sizes).mean()
    before = sizes.map(ends.shift())  # the mean of the next smaller size
    runs = tuple(known.index[(known[metric] > before).to_numpy()].unique())
    text = (
        f"{metric} rises with size{at_equal}: it is {ends.iloc[0]:.4g} at N = "
        f"{ends.index[0]:,.6g} and {ends.iloc[-1]:.4g} at N = {ends.index[-1]:,.6g}"
        + (f"; larger models that are worse than smaller ones: {_listed(runs)}." if runs else ".")
    )
    name = "loss_rises_with_size" if metric in SCORES[:2] else "error_rises_with_size"
    return [Caveat(name, text, runs, (metric,))]


def _slope(design: Array, y: Array) -> tuple[float, float]:
    """The coefficient of log N, the second column, and its standard error. Runs of equal size count
    as repeats with independent noise.
    """
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    residuals = y - design @ coefficients
    variance = residuals @ residuals / (len(y) - design.shape[1])
    return float(coefficients[1]), float(np.sqrt(variance * np.linalg.inv(design.T @ design)[1, 1]))


def _points(finals: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows with `metric` and a size; only those with D or C, if most have it."""
    if metric not in finals:
        return finals[:0]
    known = finals.dropna(subset=[size_column(finals), metric])
    for name in ("tokens_seen", "train_flops"):
        if 2 * known[name].notna().sum() > len(known):
            return known.dropna(subset=[name])
    return known


def _design(known: pd.DataFrame, curved: bool) -> Array:
    """(n, p): 1, log N, and log D if it does not follow from N; with squares if `curved`."""
    columns = [np.ones(len(known))]
    size = known[size_column(known)]
    # Where D is unknown, C / N replaces it: what matters is only how it varies.
    tokens = known.tokens_seen.where(known.tokens_seen.notna(), known.train_flops / (6.0 * size))
    for values in (size.to_numpy(dtype=float), tokens.to_numpy(dtype=float)):
        if not len(values) or not (values > 0).all():
            continue
        log = np.log(values) - np.log(values).mean()
        basis = np.column_stack(columns)
        apart = log - basis @ np.linalg.lstsq(basis, log, rcond=None)[0]
        if np.std(apart) > max(_NO_RANGE, 0.1 * np.std(log)):
            columns.append(log)
    linear = columns[1:]
    if curved and len(known) >= 2 * (1 + 2 * len(linear)):
        columns += [a * b for i, a in enumerate(linear) for b in linear[i:]]
    return np.column_stack(columns)


def _standardised(design: Array, y: Array) -> Array:
    """(n,) residuals over their standard deviation, each estimated without its own point."""
    q, _ = np.linalg.qr(design)
    residuals, leverage = y - q @ (q.T @ y), np.sum(q**2, 1)
    free = np.maximum(1 - leverage, 1e-12)
    spare = len(y) - design.shape[1] - 1
    # Residuals at the level of rounding are no outliers.
    total = np.maximum(np.sum(residuals**2) - residuals**2 / free, len(y) * 1e-16)
    return np.asarray(residuals / np.sqrt(total / spare * free))


def _two_groups(finals: pd.DataFrame, metric: str) -> tuple[float, tuple[str, ...], bool] | None:
    """The ratio of the smaller group to the other and its runs, and whether it is more than a
    curve or a few outliers; None if there are no two groups.
    """
    known = _points(finals, metric)
    if len(known) < _MIN_RUNS:
        return None
    y = np.log(known[metric].to_numpy(dtype=float))
    # A more flexible curve may absorb a true jump between sizes, so the stiffest is tried first.
    found = (_best_split(design, y) for design in _bases(known))
    high = next((each for each in found if each is not None), None)
    if high is None:
        return None
    # The curvature of the law would bias the jump between groups of different sizes.
    full = np.column_stack([_design(known, curved=True), high])
    jump = float(np.linalg.lstsq(full, y, rcond=None)[0][-1])
    fewer = high if 2 * high.sum() <= len(y) else ~high
    ratio = float(np.exp(jump if fewer is high else -jump))
    in_order = fewer[np.argsort(known[size_column(known)].to_numpy(), kind="stable")]
    # A curve in N leaves the line at most on both ends: two changes of sign.
    mixed = int(np.sum(in_order[1:] != in_order[:-1])) > 2
    return ratio, tuple(known.index[fewer]), bool(mixed and fewer.sum() >= _MANY * len(y))


def _best_split(design: Array, y: Array) -> NDArray[np.bool_] | None:
    """The higher of two groups around curves of `design`; None if they are not far apart."""
    splits = (_separated(design, y, start) for start in _first_splits(design, y))
    best = max(
        (each for each in splits if each is not None), key=lambda each: each[0], default=None
    )
    return None if best is None or best[0] < _needed_separation(len(y)) else best[2]


def _bases(known: pd.DataFrame) -> Iterator[Array]:
    """Smooth curves that the runs of one group may follow: a line, a parabola or a cubic in log N,
    and, where sizes have several runs, a level for each size.
    """
    line = _design(known, curved=False)
    yield line
    if len(known) >= 2 * (line.shape[1] + 2):
        log = line[:, 1] / np.abs(line[:, 1]).max() if line.shape[1] > 1 else line[:, 0]
        yield np.column_stack([_design(known, curved=True), log**3])
    sizes = known[size_column(known)].to_numpy()
    levels = np.unique(sizes)
    if len(known) - len(levels) >= _MIN_RUNS // 2 and line.shape[1] <= 2:
        yield (sizes[:, None] == levels).astype(float)


def _needed_separation(count: int) -> float:
    """Distance of the groups over their scatter that noise alone does not reach (simulated)."""
    return 7.0 + 60.0 / count


def _first_splits(design: Array, y: Array) -> Iterator[NDArray[np.bool_]]:
    """Guesses of the higher group: by residual, and by position in the table."""
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    yield residuals > np.median(residuals)
    yield residuals > (residuals.max() + residuals.min()) / 2
    # The residuals of a line through the smaller group alone.
    yield y > (y.max() + y.min()) / 2
    for cut in np.unique(np.linspace(2, len(y) - 2, 15).astype(int)):
        yield np.arange(len(y)) >= cut
    yield np.arange(len(y)) % 2 == 0


def _separated(
    design: Array, y: Array, high: NDArray[np.bool_]
) -> tuple[float, float, NDArray[np.bool_]] | None:
    """Distance over scatter, the jump of log score and the higher group, improved from a guess."""
    for _ in range(8):
        if min(high.sum(), (~high).sum()) < 2:
            return None
        full = np.column_stack([design, high])
        coefficients = np.linalg.lstsq(full, y, rcond=None)[0]
        base, jump = y - design @ coefficients[:-1], float(coefficients[-1])
        nearer = np.abs(base - jump) < np.abs(base)
        if (nearer == high).all():
            break
        high = nearer
    else:
        return None
    spare = len(y) - full.shape[1] - 1
    scatter = max(float(np.sqrt(np.sum((y - full @ coefficients) ** 2) / spare)), 1e-6)
    return (abs(jump) / scatter, abs(jump), high if jump > 0 else ~high)


def _unit_of(ratio: float) -> str | None:
    """The units whose ratio this is, in words; None where it is none of `_UNITS`."""
    for unit, text in _UNITS.items():
        if abs(max(ratio, 1 / ratio) / unit - 1) < _UNIT_TOLERANCE:
            return text
    return None


def _blocked(
    finals: pd.DataFrame, runs: tuple[str, ...] | list[str], metrics: tuple[str, ...]
) -> tuple[str, ...]:
    """`metrics` if so many runs are concerned that they decide the law, else none."""
    return metrics if len(runs) >= _MANY * finals.index.nunique() else ()


def _listed(runs: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
    return ", ".join(map(str, runs[:_NAMED])) + more


def _range(values: pd.Series) -> str:
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"
