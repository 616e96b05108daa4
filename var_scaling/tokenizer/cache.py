"""What a training reads of a token cache: each image encoded once, in memory-mapped arrays.

cache_files.py describes, opens and checks the files.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each channel of the grid that the tokens decode to, (Z,)."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@dataclass(frozen=True)
class TokenCache:
    """The tokens (or features) of one split, memory-mapped, and the label of each image."""

    tokens: np.ndarray  # (images × crops, L) uint16; features: (images × crops, Z, H, H) float16
    labels: np.ndarray  # (images,) int64
    crops: int
    manifest: dict[str, Any]

    @property
    def images(self) -> int:
        return len(self.labels)

    def batch(self, rows: np.ndarray, epochs: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids (n, L), labels (n,)), int64, of the images `rows`, each with crop epoch % crops.

        A cache of features returns grids (n, Z, H, H) in float32 instead of ids.
        """
        # Indexing with an array copies only these rows out of the memory map.
        crop_rows = rows * self.crops + epochs % self.crops
        # uint16 saves disk and page cache; torch's embedding and cross entropy need int64.
        dtype = np.float32 if self.tokens.dtype == np.float16 else np.int64
        inputs = torch.from_numpy(self.tokens[crop_rows].astype(dtype))
        return inputs, torch.from_numpy(self.labels[rows])


def latent_statistics(manifest: dict[str, Any]) -> LatentStatistics | None:
    """The statistics in a manifest; None if an earlier version wrote it without them."""
    recorded = manifest.get("latents")
    if recorded is None:
        return None
    return LatentStatistics(tuple(recorded["mean"]), tuple(recorded["deviation"]))
