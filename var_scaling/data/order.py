"""Which rows make up batch `step`: a pure function, so a resume needs one integer."""

from functools import lru_cache

import numpy as np

from var_scaling.randomness import seed_for


def batch_rows(count: int, batch: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, epochs), each (batch,): the global batch of step `step` (from 0) over `count` rows.

    Each epoch is a permutation of its own; a batch may straddle two. Every row comes once an epoch.
    """
    if count < 1:
        raise ValueError("there are no rows to draw from")
    epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), count)
    rows = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = _permutation(count, seed, int(epoch))[places[chosen]]
    return rows, epochs


def spread_rows(count: int, wanted: int) -> np.ndarray:
    """At most `wanted` rows, evenly over all: a file sorted by class begins with one class."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64))


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(seed_for(seed, "order", epoch)).permutation(count)
