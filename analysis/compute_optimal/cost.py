"""What a run of N weights over D tokens costs, C(N, D) = f(N) D, as data: f in FLOPs a token.

f is a power law, as in C = 6 N D, or the counts of a run table, which are no power of N: heads,
embeddings, attention and layers that act once an image make FLOPs a token rise slower than N.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator

from analysis.fitting.points import FitError

Array = NDArray[np.float64]

_TOLERANCE = 0.01  # relative: two runs of one size that differ by more are not one f(N)
_SAME_SIZE = 1e-3  # relative: sizes closer than this are one size


class CostError(FitError):
    """No C(N, D) can be made of this; the message says why."""


@dataclass(frozen=True)
class Cost:
    """C(N, D) = f(N) D: f through `flops_per_token` at `sizes`, both rising.

    Between the sizes monotone cubic (PCHIP) in logs, beyond them a power law of exponent `ends`
    (below, above). One size: the power law itself.
    """

    name: str
    sizes: tuple[float, ...]
    flops_per_token: tuple[float, ...]
    ends: tuple[float, float]

    def __call__(self, N: ArrayLike, D: ArrayLike) -> Array:
        """FLOPs of training N weights over D tokens; arrays broadcast."""
        return np.asarray(self.per_token(N) * np.asarray(D, dtype=float))

    def tokens(self, N: ArrayLike, C: ArrayLike) -> Array:
        """The D that `C` FLOPs pay for at size N; arrays broadcast."""
        return np.asarray(np.asarray(C, dtype=float) / self.per_token(N))

    def per_token(self, N: ArrayLike) -> Array:
        """f(N), FLOPs a token."""
        return np.asarray(np.exp(self.logs(np.log(np.asarray(N, dtype=float)))[0]))

    def exponent(self, N: ArrayLike) -> Array:
        """d log f / d log N: 1 where C = 6 N D."""
        return self.logs(np.log(np.asarray(N, dtype=float)))[1]

    @property
    def power(self) -> bool:
        """f is one power law everywhere, so an optimum has a closed form."""
        return len(self.sizes) == 1

    def beyond(self, N: float) -> bool:
        """f was not counted there but continued."""
        return not self.power and not self.sizes[0] <= N * 1.0001 <= self.sizes[-1] * 1.0002

    def logs(self, u: Array) -> tuple[Array, Array]:
        """log f at u = log N, and its slope."""
        low, high = np.log(self.sizes[0]), np.log(self.sizes[-1])
        inside = np.clip(u, low, high)
        if self.power:
            middle, slope = np.full_like(u, np.log(self.flops_per_token[0])), np.zeros_like(u)
        else:
            middle, slope = self._spline(inside), self._spline(inside, 1)
        below, above = np.minimum(u - low, 0), np.maximum(u - high, 0)
        value = middle + self.ends[0] * below + self.ends[1] * above
        return value, np.select([u <= low, u >= high], self.ends, slope)

    @cached_property
    def _spline(self) -> PchipInterpolator:
        return PchipInterpolator(np.log(self.sizes), np.log(self.flops_per_token))


def six_nd(factor: float = 6.0) -> Cost:
    """C = factor · N D: 6 forward and backward, 2 forward alone (Kaplan et al. 2020, §2.1)."""
    if not factor > 0:
        raise CostError(f"C = {factor:g} N D: the factor must be positive")
    scope = {6.0: " (forward and backward)", 2.0: " (forward)"}.get(factor, "")
    return Cost(f"C = {factor:g} N D{scope}", (1.0,), (float(factor),), (1.0, 1.0))


def cost_of(rows: pd.DataFrame, params: str = "params_blocks") -> Cost:
    """f(N) as a run table counts it: train_flops / tokens_seen against the column `params`.

    Rows without these numbers are left out. Raises CostError where FLOPs a token are no rising
    function of N: two runs of one size differ by over 1 %, f falls, or there is one size only.
    """
    needed = [params, "tokens_seen", "train_flops"]
    missing = [name for name in needed if name not in rows.columns]
    if missing:
        raise CostError(f"the true C(N, D) needs the columns {', '.join(missing)}")
    numbers = rows[needed].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    numbers = numbers[(np.isfinite(numbers) & (numbers > 0)).all(axis=1)]
    if not len(numbers):
        raise CostError(f"no row has {params}, tokens_seen and train_flops")
    sizes, tokens, flops = numbers[np.lexsort(numbers.T[::-1])].T
    group = size_groups(sizes)
    log_f = np.log(flops / tokens)
    grouped = pd.DataFrame({"u": np.log(sizes), "f": log_f}).groupby(group)
    spread = grouped.f.max() - grouped.f.min()
    middle = grouped.mean()
    worst = int(spread.to_numpy().argmax())
    if spread.iloc[worst] > np.log1p(_TOLERANCE):
        raise CostError(
            f"FLOPs a token are no function of {params}: runs of size "
            f"{np.exp(middle.u.iloc[worst]):.4g} differ by {np.expm1(spread.iloc[worst]):.1%}; "
            "take runs of one family and one counting"
        )
    return _through(middle.u.to_numpy(), middle.f.to_numpy(), params)


def size_groups(sizes: ArrayLike) -> NDArray[np.intp]:
    """(n,) which size each is, by rising size; within 0.1 % of the next lower one it is the same.

    Sizes read off a figure, or counted by two programs, agree only so far.
    """
    log_N = np.log(np.asarray(sizes, dtype=float))
    order = np.argsort(log_N, kind="stable")
    groups = np.empty(len(log_N), dtype=np.intp)
    groups[order] = np.cumsum(np.diff(log_N[order], prepend=log_N[order][:1]) > _SAME_SIZE)
    return groups


def different(sizes: ArrayLike) -> int:
    """How many sizes there are."""
    return len(np.unique(size_groups(sizes)))


def _through(u: Array, log_f: Array, params: str) -> Cost:
    if len(u) < 2:
        raise CostError(f"one {params} only, {np.exp(u[0]):.4g}: no C(N, D) can be told from it")
    falls = np.flatnonzero(np.diff(log_f) <= 0)
    if len(falls):
        a, b = np.exp(u[falls[0]]), np.exp(u[falls[0] + 1])
        raise CostError(f"FLOPs a token do not rise from {params} = {a:.4g} to {b:.4g}")
    spline = PchipInterpolator(u, log_f)
    ends = (float(spline(u[0], 1)), float(spline(u[-1], 1)))
    secants = np.diff(log_f) / np.diff(u)
    ends = (ends[0] or float(secants[0]), ends[1] or float(secants[-1]))
    name = (
        f"FLOPs counted by {params} ({len(u)} sizes, {np.exp(u[0]):.3g} to {np.exp(u[-1]):.3g}; "
        f"beyond them a power law of exponent {ends[0]:.3f} below, {ends[1]:.3f} above)"
    )
    sizes, flops = (tuple(float(each) for each in np.exp(values)) for values in (u, log_f))
    return Cost(name, sizes, flops, ends)
