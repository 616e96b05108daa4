"""The laws in both size and data of a run table, such as L(N, D) = E + A N^-α + B D^-β, with
intervals.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.compute_optimal.cost import size_groups
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import LAWS, SURFACE
from analysis.fitting.points import FitError
from analysis.format import SYMBOLS
from analysis.selection.holdout import HeldOut, leave_largest_out
from analysis.selection.select import aicc
from analysis.table.runs import run_names
from analysis.uncertainty.bootstrap import bootstrap
from analysis.uncertainty.intervals import Interval, interval

RESAMPLES = 1000
MIN_SEEDS = 5  # as clusters of a bootstrap
# Up to this number of points, critical values of an objective other than least squares are
# simulated; beyond it the simulations take too long, and a bootstrap over runs has enough of them.
_SIMULATED = 100
_SAME_DATA = 0.01  # relative: numbers of tokens that differ by less count as equal
_JUMP, _JUMPING = 1.5, 0.2  # factor of D that is a jump; share of the sizes that must have one


@dataclass(frozen=True)
class SurfaceLaw:
    """The surface of one metric, or another law in N and D, fitted to the ends of the runs."""

    metric: str
    size: str  # the column of N
    fit: Fit
    intervals: dict[str, Interval]  # 95 %, of each fitted parameter
    held_out: HeldOut | None  # the mean of the runs of the largest size, from the smaller ones
    mixed_data: str | None  # in words, which sizes have runs of different D; None: no size
    trials: tuple[str, ...]
    contradictions: tuple[str, ...] = ()  # of the table: why no law of this metric is announced

    @property
    def own_contradictions(self) -> tuple[str, ...]:
        """Why this fit is no law in both N and D; empty if it is one."""
        reasons = []
        bounds = {bound.split()[0] for bound in self.fit.certificate.bounds}
        # Not strict: a law that repeats data has a third variable without a power of its own.
        for (_, name), variable in zip(self.fit.law.powers, self.fit.law.variables, strict=False):
            symbol = SYMBOLS.get(name, name)
            value, span = self.fit[name], self.intervals.get(name)
            its = f"its exponent of {variable}"
            if name in bounds:
                reasons.append(f"{its} is at its bound, {symbol} = {value:.4g}")
            if value <= 0:
                reasons.append(f"{its} is not positive, {symbol} = {value:.4g}")
            elif span is not None and not span.low > 0:
                ends = f"{span.low:.3g} to {span.high:.3g}"
                reasons.append(f"the interval of {its[4:]}, {symbol} of {ends}, contains 0")
        return tuple(reasons)

    @property
    def no_law(self) -> str:
        """Why this surface must not be announced, in words; "" if it may be."""
        return "; ".join((*self.contradictions, *self.own_contradictions))

    @property
    def flags(self) -> tuple[str, ...]:
        """Warnings: those of the fit, and of a design that hardly separates N from D."""
        if self.mixed_data is not None:
            return self.fit.flags
        weak = "D nearly follows from N, so their effects are separated only weakly"
        return (*self.fit.flags, weak)

    @property
    def aicc(self) -> float | None:
        """Only differences between laws of the same runs have a meaning."""
        return aicc(self.fit)

    @property
    def method(self) -> str:
        """How the intervals were found, in words."""
        return next(iter(self.intervals.values())).method


def fit_surface(
    finals: pd.DataFrame,
    metric: str,
    size: str,
    objective: str = "squares",
    floor: float | None = None,
    weights: str | None = None,
    law: str = SURFACE.name,
    unique: str | None = None,
) -> SurfaceLaw:
    """Fit the surface of `metric` to the final rows of runs; `size` is the column of N.

    `floor` fixes E; `weights` is the column of the runs' weights. Rows without N, D or `metric` are
    left out. `law` names another law in N and D; one that repeats data needs `unique`, the column
    of the different tokens U. Raises FitError where the runs cannot determine the law.
    """
    form = LAWS[law]
    if form.repeats and unique is None:
        raise FitError("--unique-column must name the column of the different tokens U of a run")
    if finals.tokens_seen.isna().all():
        known = finals.train_flops.notna().any()
        advice = "; --complete tokens_seen computes it by C = 6 N D" if known else ""
        raise FitError(f"the column tokens_seen (D) is unknown{advice}")
    rows = finals.dropna(subset=[size, "tokens_seen", metric])
    N, D, L = (rows[name].to_numpy(dtype=float) for name in (size, "tokens_seen", metric))
    w = None if weights is None else rows[weights].to_numpy(dtype=float)
    x = (N, D, rows[unique].to_numpy(dtype=float)) if form.repeats else (N, D)
    fit = fit_law(form, x, L, objective, floor=floor, weights=w)
    return SurfaceLaw(
        metric, size, fit, intervals_of(fit, rows),
        leave_largest_out(form, x, L, objective, floor=floor, weights=w),
        mixed_data(rows, size), tuple(run_names(rows)),
    )  # fmt: skip


def mixed_data(runs: pd.DataFrame, size: str) -> str | None:
    """In words, how many sizes have runs of different D; None where D follows from N.

    A law in N alone does not describe such `runs`: its curve mixes the effect of N with that of D.
    Where no D is known, runs of one size that differ in FLOPs count. If no size has several runs,
    those of neighbouring sizes count, as in a grid of budgets.
    """
    column, symbol = (
        ("tokens_seen", "D") if runs.tokens_seen.notna().any() else ("train_flops", "C")
    )
    known = runs.dropna(subset=[size, column])
    if known.empty:
        return None
    by_size = known[column].astype(float).groupby(size_groups(known[size]))
    ratios = by_size.max() / by_size.min()
    several = int((ratios > 1 + _SAME_DATA).sum())
    if not several:
        return _mixed_neighbours(known, size, column, symbol)
    return (
        f"runs of one size have different {symbol} at {several} of {len(ratios)} sizes, by up to "
        f"{ratios.max():.3g} times"
    )


def _mixed_neighbours(known: pd.DataFrame, size: str, column: str, symbol: str) -> str | None:
    """In words, at how many sizes D jumps against the next smaller size; None if at few."""
    means = known[[size, column]].astype(float).groupby(size_groups(known[size])).mean()
    log_N, log_D = np.log(means.to_numpy()).T  # in order of size
    # A rule that sets D by N, such as D = 20 N, is at most quadratic.
    jumps = np.abs(np.diff(log_D)) > 2 * np.diff(log_N) + np.log(_JUMP)
    if jumps.sum() < max(2, _JUMPING * len(jumps)):
        return None
    largest = np.exp(np.abs(np.diff(log_D))[jumps].max())
    return (
        f"{symbol} does not follow from size: it differs between neighbouring sizes at "
        f"{jumps.sum()} of {len(jumps)}, by up to {largest:.3g} times"
    )


def seed_clusters(runs: pd.DataFrame) -> ArrayLike | None:
    """The seeds as cluster labels of a bootstrap; None where there are fewer than MIN_SEEDS."""
    if "seed" not in runs or runs.seed.isna().any() or runs.seed.nunique() < MIN_SEEDS:
        return None
    return runs.seed.to_numpy(dtype=float)


def intervals_of(fit: Fit, runs: pd.DataFrame) -> dict[str, Interval]:
    """The 95 % interval of each fitted parameter: by profile, or by a bootstrap over many `runs`
    where the critical values of a profile must be simulated.
    """
    names = [name for name in fit.law.names if name != "E" or fit.floor is None]
    if fit.objective.is_gaussian or fit.points <= _SIMULATED:
        return {name: interval(fit, name) for name in names}
    draws = bootstrap(fit, RESAMPLES, clusters=seed_clusters(runs))
    return {name: draws.interval(name) for name in names}
