"""Whether one law serves two sets of points: an F test of one common fit against one for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.fitting.fit import fit_law
from analysis.fitting.laws import LAWS
from analysis.fitting.points import FitError

_EXACT = 1e-12  # log residual: below it nothing scatters


@dataclass(frozen=True)
class Common:
    """`p` of points that scatter so about one common law; None with `why` there is none."""

    p: float | None
    why: str
    values: dict[str, float] | None  # the common law's parameters


def one_law_for_both(a: Mapping[str, Any], b: Mapping[str, Any]) -> Common:
    """Test two laws of laws.json, of one form, on the points that they stand on.

    Least squares of log residuals, whatever the two were fitted by: F needs nested sums of squares.
    Points that are in both make the two dependent, so there is no test then.
    """
    law, floor = LAWS[a["fit"]["law"]], a["fit"]["floor_fixed_at"]
    points = [np.array([one["x"], one["y"]], dtype=float) for one in (a, b)]
    shared = len({tuple(at) for at in points[0].T} & {tuple(at) for at in points[1].T})
    together = np.concatenate(points, axis=1)
    try:
        fits = [fit_law(law, x, y, "squares", floor=floor) for x, y in (*points, together)]
    except FitError as error:
        return Common(None, f"no test: {error}", None)
    values = dict(fits[2].values)
    if shared:
        count = "1 point is" if shared == 1 else f"{shared} points are"
        return Common(None, f"no test: {count} in both, so the two are not independent", values)
    first, second, joint = (float(fit.residuals @ fit.residuals) for fit in fits)
    apart, count_all = first + second, together.shape[1]
    if apart < _EXACT**2 * count_all:
        return Common(float(joint < _EXACT**2 * count_all), "", values)
    free = fits[0].free
    spare = count_all - 2 * free
    statistic = max(joint - apart, 0.0) / free / (apart / spare)
    return Common(float(stats.f.sf(statistic, free, spare)), "", values)
