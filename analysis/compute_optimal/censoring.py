"""Which points of a frontier are only upper bounds of the least compute (censored), and why.

Only the recorded part of each run is known, and only the sizes that were tried. At a given compute,
the loss has a single minimum in size, which moves to larger sizes as compute grows. A point is
therefore uncensored if, at its compute, the next smaller size is no longer the best and the next
larger size is not yet the best.
"""

import numpy as np
from numpy.typing import NDArray

from analysis.compute_optimal.cost import size_groups

Array = NDArray[np.float64]


def censoring_reasons(
    flops: Array, loss: Array, size: Array, best: NDArray[np.bool_]
) -> tuple[str, ...]:
    """The reason why each point (n,) is only an upper bound of C_min(L); "" if it is uncensored.

    Points are in order of compute; `best` marks those on the frontier. A point is censored if it is
    the last one of a size that was still the best when its record ended, if it has the smallest or
    largest size, or if a neighbouring size has no record at this compute and was the best at the
    end (next smaller size) or at the start (next larger size) of its record.
    """
    # Groups are numbered by size, so g - 1 and g + 1 are the neighbouring sizes.
    group = size_groups(size)
    count = int(group.max()) + 1
    first = np.array([np.flatnonzero(group == g)[0] for g in range(count)])
    last = np.array([np.flatnonzero(group == g)[-1] for g in range(count)])
    # Of each size: a larger one was better before its record ended; a smaller one was better before
    # its record began.
    overtaken, late = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    for g in range(count):
        least = loss[group == g].min()
        overtaken[g] = loss[: last[g] + 1][group[: last[g] + 1] > g].min(initial=np.inf) < least
        late[g] = loss[: first[g]][group[: first[g]] < g].min(initial=np.inf) < loss[first[g]]
    reasons = np.full(len(flops), "", dtype=object)
    for g in range(count):
        # Still the best at its end: no other frontier point lies between its last one and the end
        # of its record.
        on_frontier = np.flatnonzero((group == g) & best)
        if len(on_frontier) and not best[on_frontier[-1] + 1 : last[g] + 1].any():
            reasons[on_frontier[-1]] = (
                f"size {size[on_frontier[-1]]:.4g} was still the best when its record ended"
            )
    names = [f"{size[index]:.4g}" for index in first]
    # The loss has a single minimum in size, so it is enough that both neighbours are known to be
    # worse at this compute.
    for at in np.flatnonzero(reasons == ""):
        g, C = group[at], flops[at]
        if g == 0:
            reasons[at] = "the smallest size: a smaller one may be better here"
        elif g == count - 1:
            reasons[at] = "the largest size: a larger one may be better here"
        elif flops[first[g - 1]] > C:
            reasons[at] = (
                f"size {names[g - 1]}, the next smaller, has no record at such low compute"
            )
        elif flops[last[g - 1]] < C and not overtaken[g - 1]:
            reasons[at] = (
                f"size {names[g - 1]}, still the best when its record ended, may be better here"
            )
        elif flops[last[g + 1]] < C:
            reasons[at] = (
                f"size {names[g + 1]}, the next larger, has no record at such high compute"
            )
        elif flops[first[g + 1]] > C and not late[g + 1]:
            reasons[at] = (
                f"size {names[g + 1]}, the best from the start of its record, may be better here"
            )
    return tuple(reasons)
