"""Which points of a frontier only bound it from above, and why.

No more is known of the least compute than the sizes that were tried, from where their records begin
to where they end. At one compute the loss has a single minimum in size, which moves to larger sizes
as compute grows; so a point is the frontier's own if the next smaller size has been overtaken by
then and the next larger one has not yet come first.
"""

import numpy as np
from numpy.typing import NDArray

from analysis.compute_optimal.cost import size_groups

Array = NDArray[np.float64]


def bounds(flops: Array, loss: Array, size: Array, best: NDArray[np.bool_]) -> tuple[str, ...]:
    """Why each point (n,), by rising compute, would only bound C_min(L); "" if it would be it.

    `best`: the points on the frontier. A point is a bound if its size was still the best when it
    stopped (its last one), if it is of the smallest or largest size, or if a neighbouring size has
    no record at this compute and had been the best where its record ends, or begins.
    """
    group = size_groups(size)
    count = int(group.max()) + 1
    first = np.array([np.flatnonzero(group == g)[0] for g in range(count)])
    last = np.array([np.flatnonzero(group == g)[-1] for g in range(count)])
    overtaken, late = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    for g in range(count):
        own = loss[group == g].min()
        overtaken[g] = loss[: last[g] + 1][group[: last[g] + 1] > g].min(initial=np.inf) < own
        late[g] = loss[: first[g]][group[: first[g]] < g].min(initial=np.inf) < loss[first[g]]
    why = np.full(len(flops), "", dtype=object)
    for g in range(count):
        held = np.flatnonzero((group == g) & best)
        if len(held) and not best[held[-1] + 1 : last[g] + 1].any():
            why[held[-1]] = f"size {size[held[-1]]:.4g} was still the best when it stopped"
    names = [f"{size[at]:.4g}" for at in first]
    for at in np.flatnonzero(why == ""):
        g, C = group[at], flops[at]
        if g == 0:
            why[at] = "the smallest size: a smaller one might have come first"
        elif g == count - 1:
            why[at] = "the largest size: a larger one might have come first"
        elif flops[first[g - 1]] > C:
            why[at] = f"size {names[g - 1]}, the next smaller, has no record at so little compute"
        elif flops[last[g - 1]] < C and not overtaken[g - 1]:
            why[at] = f"size {names[g - 1]}, not overtaken when it stopped, might have come first"
        elif flops[last[g + 1]] < C:
            why[at] = f"size {names[g + 1]}, the next larger, has no record at so much compute"
        elif flops[first[g + 1]] > C and not late[g + 1]:
            why[at] = f"size {names[g + 1]}, first from its start, might have come first before"
    return tuple(why)
