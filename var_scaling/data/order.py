"""The rows of each batch, a pure function of the step: a resume needs only the step."""

from functools import lru_cache

import numpy as np

from var_scaling.randomness import seed_for


def batch_rows(count: int, batch: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, epochs), each (batch,): the global batch of step `step` (from 0) over `count` rows.

    Each epoch is a new permutation with every row once; a batch may contain rows of two epochs.
    """
    if count < 1:
        raise ValueError(f"count = {count}: a batch needs at least one row to draw from")
    # Image number step x batch + i of the training is position `positions` of epoch `epochs`.
    epochs, positions = np.divmod(np.arange(step * batch, (step + 1) * batch), count)
    rows = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = _permutation(count, seed, int(epoch))[positions[chosen]]
    return rows, epochs


def spread_rows(count: int, limit: int) -> np.ndarray:
    """At most `limit` rows, evenly spaced: the first rows of sorted data have only one class."""
    # unique: rounded positions may be equal.
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64))


# Two, since a batch at the end of an epoch needs the permutations of both.
@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(seed_for(seed, "order", epoch)).permutation(count)
