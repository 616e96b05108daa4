"""The least loss reached for the compute spent."""

import numpy as np
import pandas as pd


def frontier(points: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of `points` that no other beats in both train_flops and `metric`, by rising compute.

    Give it ends of trials of one schedule: a loss before the learning rate has decayed is not what
    that compute can reach. A model still improving when it stopped only bounds the frontier from
    above, so with one length for all sizes the whole frontier is such a bound. Where the compute is
    not known, as of a model trained elsewhere, there is no point.
    """
    ordered = points.dropna(subset="train_flops").sort_values(["train_flops", metric])
    best_before = ordered[metric].cummin().shift(fill_value=np.inf)
    return ordered[ordered[metric] < best_before]
