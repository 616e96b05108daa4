"""F test whether two sets of points have one common law, against a separate law for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.fitting.fit import fit_law
from analysis.fitting.laws import LAWS
from analysis.fitting.points import FitError

_EXACT = 1e-12  # log residual below which points count as exactly on the law


@dataclass(frozen=True)
class CommonLawTest:
    """`p`: the p-value of the test, None if there is no test; `why` then gives the reason."""

    p: float | None
    why: str
    values: dict[str, float] | None  # the common law's parameters


def one_law_for_both(a: Mapping[str, Any], b: Mapping[str, Any]) -> CommonLawTest:
    """Test two laws of laws.json with the same form on the points that they were fitted to.

    All fits are least squares of log residuals, even if the two laws had another objective: the F
    test needs nested sums of squares. If a point is in both sets, the sets are not independent and
    there is no test.
    """
    law, floor = LAWS[a["fit"]["law"]], a["fit"]["floor_fixed_at"]
    points = [np.array([*_variables(fitted), fitted["y"]], dtype=float) for fitted in (a, b)]
    shared = len({tuple(point) for point in points[0].T} & {tuple(point) for point in points[1].T})
    together = np.concatenate(points, axis=1)
    try:
        fits = [
            fit_law(law, x[0] if len(x) == 1 else tuple(x), y, "squares", floor=floor)
            for *x, y in (*points, together)
        ]
    except FitError as error:
        return CommonLawTest(None, f"no test: {error}", None)
    values = dict(fits[2].values)
    if shared:
        count = "1 point is" if shared == 1 else f"{shared} points are"
        return CommonLawTest(
            None, f"no test: {count} in both, so the two are not independent", values
        )
    first, second, joint = (float(fit.residuals @ fit.residuals) for fit in fits)
    separate, count_all = first + second, together.shape[1]
    if separate < _EXACT**2 * count_all:  # no scatter: F would divide by 0
        return CommonLawTest(float(joint < _EXACT**2 * count_all), "", values)
    free = fits[0].free
    # Two laws have 2 · free parameters, the common one has free: the difference is free.
    degrees_of_freedom = count_all - 2 * free
    statistic = max(joint - separate, 0.0) / free / (separate / degrees_of_freedom)
    return CommonLawTest(float(stats.f.sf(statistic, free, degrees_of_freedom)), "", values)


def _variables(law: Mapping[str, Any]) -> list[Any]:
    """The values of the variables of a law or a surface of laws.json, a list for each variable."""
    return [law["x"]] if "x" in law else [law["N"], law["D"]]
