"""The cost of training N weights on D tokens, C(N, D) = f(N) D, with f in FLOPs per token.

f is a power law, as in C = 6 N D, or interpolates the counts of a run table. Counts are no power of
N: heads, embeddings, attention and layers that act once per image make the FLOPs per token grow
slower than N.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from analysis.fitting.points import FitError
from analysis.format import percent

Array = NDArray[np.float64]

_TOLERANCE = 0.01  # relative: largest difference of f between two runs of one size
_SAME_SIZE = 1e-3  # relative: sizes that differ by less count as one size


class CostError(FitError):
    """There is no C(N, D) for these arguments or rows; the message says why."""


@dataclass(frozen=True)
class Cost:
    """C(N, D) = f(N) D, where f interpolates `flops_per_token` at `sizes`, both increasing.

    f is a monotone cubic (PCHIP) in logs between the sizes, and outside them a power law with the
    exponents `end_exponents` (below, above). With one size, f is a single power law.
    """

    name: str
    sizes: tuple[float, ...]
    flops_per_token: tuple[float, ...]
    end_exponents: tuple[float, float]

    def __call__(self, N: ArrayLike, D: ArrayLike) -> Array:
        """FLOPs of training N weights on D tokens; arrays broadcast."""
        return np.asarray(self.per_token(N) * np.asarray(D, dtype=float))

    def tokens(self, N: ArrayLike, C: ArrayLike) -> Array:
        """The D that `C` FLOPs pay for at size N; arrays broadcast."""
        return np.asarray(np.asarray(C, dtype=float) / self.per_token(N))

    def per_token(self, N: ArrayLike) -> Array:
        """f(N), FLOPs per token."""
        return np.asarray(np.exp(self.logs(np.log(np.asarray(N, dtype=float)))[0]))

    def exponent(self, N: ArrayLike) -> Array:
        """d log f / d log N: 1 where C = 6 N D."""
        return self.logs(np.log(np.asarray(N, dtype=float)))[1]

    @property
    def is_power_law(self) -> bool:
        """Whether f is one power law everywhere, so that an optimum has a closed form."""
        return len(self.sizes) == 1

    def is_extrapolated(self, N: float) -> bool:
        """Whether N is outside the sizes at which f was counted."""
        # Within 1e-4: the end sizes come from exp(log N) and differ from the table's by rounding.
        return not self.is_power_law and not self.sizes[0] <= N * 1.0001 <= self.sizes[-1] * 1.0002

    def logs(self, u: Array) -> tuple[Array, Array]:
        """log f and d log f / d log N at u = log N."""
        low, high = np.log(self.sizes[0]), np.log(self.sizes[-1])
        # Beyond the counted sizes the value at the end is continued as a straight line in logs.
        inside = np.clip(u, low, high)
        if self.is_power_law:
            middle, slope = np.full_like(u, np.log(self.flops_per_token[0])), np.zeros_like(u)
        else:
            middle, slope = self._spline(inside), self._spline(inside, 1)
        below, above = np.minimum(u - low, 0), np.maximum(u - high, 0)
        value = middle + self.end_exponents[0] * below + self.end_exponents[1] * above
        return value, np.select([u <= low, u >= high], self.end_exponents, slope)

    @cached_property
    def _spline(self) -> PchipInterpolator:
        """log f over log N."""
        return PchipInterpolator(np.log(self.sizes), np.log(self.flops_per_token))


def six_nd(factor: float = 6.0) -> Cost:
    """C = factor · N D: 6 for forward and backward, 2 for forward (Kaplan et al. 2020, §2.1)."""
    if not factor > 0:
        raise CostError(f"C = {factor:g} N D: the factor must be positive")
    scope = {6.0: " (forward and backward)", 2.0: " (forward)"}.get(factor, "")
    # One size N = 1 with f = `factor` and exponent 1 on both sides is f = factor · N.
    return Cost(f"C = {factor:g} N D{scope}", (1.0,), (float(factor),), (1.0, 1.0))


def cost_of(rows: pd.DataFrame, params: str = "params_blocks") -> Cost:
    """The cost counted in a run table: train_flops / tokens_seen as a function of column `params`.

    Rows without these numbers are left out. Raises CostError where the FLOPs per token are not an
    increasing function of N: two runs of one size differ by more than 1 %, f decreases, or there is
    only one size.
    """
    needed = [params, "tokens_seen", "train_flops"]
    missing = [name for name in needed if name not in rows.columns]
    if missing:
        raise CostError(f"the counted C(N, D) needs the columns {', '.join(missing)}")
    numbers = rows[needed].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    numbers = numbers[(np.isfinite(numbers) & (numbers > 0)).all(axis=1)]
    if not len(numbers):
        raise CostError(f"no row has {params}, tokens_seen and train_flops")
    # A fixed order of rows, so that the order of the table does not change the means by rounding.
    # lexsort takes its first key last.
    sizes, tokens, flops = numbers[np.lexsort(numbers.T[::-1])].T
    group = size_groups(sizes)
    log_f = np.log(flops / tokens)
    grouped = pd.DataFrame({"u": np.log(sizes), "f": log_f}).groupby(group)
    # If runs of one size differ in FLOPs per token, f is no function of N.
    spread = grouped.f.max() - grouped.f.min()
    middle = grouped.mean()
    worst = int(spread.to_numpy().argmax())
    if spread.iloc[worst] > np.log1p(_TOLERANCE):
        raise CostError(
            f"FLOPs per token are not a function of {params}: runs of size "
            f"{np.exp(middle.u.iloc[worst]):.4g} differ by "
            f"{percent(np.expm1(spread.iloc[worst]), 1)}; "
            "select runs of one family and one counting"
        )
    return _interpolated_cost(middle.u.to_numpy(), middle.f.to_numpy(), params)


def size_groups(sizes: ArrayLike) -> NDArray[np.intp]:
    """(n,) index of each size, in increasing order; sizes within 0.1 % of the next lower are equal.

    Sizes that were read from a figure or counted by two programs agree only approximately.
    """
    log_N = np.log(np.asarray(sizes, dtype=float))
    order = np.argsort(log_N, kind="stable")
    groups = np.empty(len(log_N), dtype=np.intp)
    groups[order] = np.cumsum(np.diff(log_N[order], prepend=log_N[order][:1]) > _SAME_SIZE)
    return groups


def count_sizes(sizes: ArrayLike) -> int:
    """The number of different sizes."""
    return len(np.unique(size_groups(sizes)))


def _interpolated_cost(u: Array, log_f: Array, params: str) -> Cost:
    """The cost through the points (log N, log f). Raises CostError where f does not increase."""
    if len(u) < 2:
        raise CostError(f"only one {params}, {np.exp(u[0]):.4g}: C(N, D) needs at least two")
    falls = np.flatnonzero(np.diff(log_f) <= 0)
    if len(falls):
        a, b = np.exp(u[falls[0]]), np.exp(u[falls[0] + 1])
        raise CostError(f"FLOPs per token do not rise from {params} = {a:.4g} to {b:.4g}")
    # PCHIP is monotone between increasing points; a cubic spline could overshoot and make f fall.
    spline = PchipInterpolator(u, log_f)
    ends = (float(spline(u[0], 1)), float(spline(u[-1], 1)))
    # A slope of 0 at an end would make the optimum unbounded there, so the secant replaces it.
    secants = np.diff(log_f) / np.diff(u)
    ends = (ends[0] or float(secants[0]), ends[1] or float(secants[-1]))
    name = (
        f"FLOPs counted by {params} ({len(u)} sizes, {np.exp(u[0]):.3g} to {np.exp(u[-1]):.3g}; "
        f"outside them a power law of exponent {ends[0]:.3f} below, {ends[1]:.3f} above)"
    )
    sizes, flops = (tuple(float(each) for each in np.exp(values)) for values in (u, log_f))
    return Cost(name, sizes, flops, ends)
