"""What FID, IS, KID, precision and recall need to know of a set of images, gathered in passing.

Batches come in any order, in any number of processes: what is merged is what one would have found,
but for the last bits. Which images play which part depends on their numbers in the whole set alone.

Shapes: B images of a batch, N of those kept, D features, K outputs, I splits.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from var_scaling.evaluation.extractors import Extractor, ExtractorOutput

SPLITS = 10  # of the Inception Score (arXiv 1606.03498)
KEEP = 10_000  # images whose features are kept for KID, precision and recall: 80 MB of Inception


class StatisticsError(ValueError):
    """Statistics do not belong together, or too little is known; the message says which."""


class Kept:
    """The features of at most `most` images: those whose numbers are hashed lowest.

    A random choice without knowing how many will come, and the same in any order and division.
    """

    def __init__(self, most: int, width: int) -> None:
        self.most = most
        self._below = np.uint64(2**64 - 1)  # nothing hashed higher can be among the lowest
        self._rows = [np.empty(0, dtype=np.int64)]
        self._features = [torch.empty(0, width)]
        self._held = 0

    def add(self, rows_B: np.ndarray, features_BD: Tensor) -> None:
        """Features go to the processor's memory, as float32."""
        chosen = np.flatnonzero(_hashed(rows_B) <= self._below)
        if len(chosen) and self.most:
            self._rows.append(rows_B[chosen])
            at = torch.from_numpy(chosen).to(features_BD.device)
            self._features.append(features_BD[at].float().cpu())
            self._held += len(chosen)
        if self._held > 2 * self.most:  # seldom, for it copies all
            self.settled()

    def settled(self) -> tuple[np.ndarray, Tensor]:
        """(rows (N,) in rising order, features (N, D)).

        Raises StatisticsError if an image came twice.
        """
        rows_N, features_ND = np.concatenate(self._rows), torch.cat(self._features)
        order = np.argsort(rows_N)
        twice = rows_N[order][1:][np.diff(rows_N[order]) == 0]
        if len(twice):
            raise StatisticsError(f"image {twice[0]} came twice: the parts of the set overlap")
        if len(rows_N) > self.most:
            hashed = _hashed(rows_N)
            self._below = np.partition(hashed, self.most - 1)[self.most - 1]
            order = order[hashed[order] <= self._below]
        rows_N, features_ND = rows_N[order], features_ND[torch.from_numpy(order)]
        self._rows, self._features, self._held = [rows_N], [features_ND], len(rows_N)
        return rows_N, features_ND


class Statistics:
    """Moments, the score's sums and some features of a set of images, as one extractor sees them.

    Moments and sums are float64 on the extractor's device: 32 MB of Inception. They are gathered
    about the running mean (Chan, Golub and LeVeque 1983), so a large mean costs no digits.
    """

    def __init__(self, extractor: Extractor, splits: int = SPLITS, keep: int = KEEP) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=extractor.device)

        self.extractor, self.extractor_sha256 = extractor.name, extractor.sha256
        self.count = 0
        self.mean_D = zeros(extractor.width)
        self.scatter_DD = zeros(extractor.width, extractor.width)  # products of deviations, summed
        self.split_counts_I = zeros(splits)
        self.split_sums_IK = zeros(splits, extractor.outputs)  # of the probabilities p
        self.split_negentropies_I = zeros(splits)  # of Σ p log p, nats
        self.kept = Kept(keep, extractor.width)

    @property
    def covariance_DD(self) -> Tensor:
        """Unbiased, exactly symmetric. Raises StatisticsError for fewer than two images."""
        if self.count < 2:
            raise StatisticsError(f"{self.count} images: a covariance takes at least 2")
        return (self.scatter_DD + self.scatter_DD.T) / (2 * (self.count - 1))

    @property
    def features_ND(self) -> Tensor:
        """The features kept, in the order of the images' numbers; on the processor."""
        return self.kept.settled()[1]

    def add(self, looks: ExtractorOutput, rows: np.ndarray) -> None:
        """Take in a batch. `rows` (B,): each image's number in the whole set, from 0.

        Raises ValueError for another width or number of rows, or features that are not finite.
        """
        rows_B = np.asarray(rows, dtype=np.int64)
        found = tuple(looks.features_BD.shape), tuple(looks.logits_BK.shape)
        wanted = (len(rows_B), len(self.mean_D)), (len(rows_B), self.split_sums_IK.shape[1])
        if found != wanted:
            raise ValueError(f"features and logits {found}, wanted {wanted}")
        if not len(rows_B):
            return
        features_BD = looks.features_BD.to(self.mean_D)
        mean_D = features_BD.mean(0)
        if not bool(mean_D.isfinite().all()):
            raise ValueError(f"images {rows_B.min()} to {rows_B.max()}: features are not finite")
        deviations_BD = features_BD - mean_D
        self._join(len(rows_B), mean_D, deviations_BD.T @ deviations_BD)
        self._score(looks.logits_BK.to(self.mean_D), rows_B)
        self.kept.add(rows_B, looks.features_BD)

    def merge(self, other: "Statistics") -> None:
        """Take in what another process gathered of other images of the same set.

        Raises StatisticsError for another extractor, other splits, or an image seen by both.
        """
        mine, theirs = ((s.extractor_sha256, *s.split_sums_IK.shape, s.kept.most)
                        for s in (self, other))  # fmt: skip
        if mine != theirs:
            raise StatisticsError(
                "extractor, splits, outputs, kept: other statistics were gathered with "
                f"{theirs}, these with {mine}"
            )
        if not other.count:
            return
        self._join(other.count, other.mean_D.to(self.mean_D), other.scatter_DD.to(self.mean_D))
        self.split_counts_I += other.split_counts_I.to(self.mean_D)
        self.split_sums_IK += other.split_sums_IK.to(self.mean_D)
        self.split_negentropies_I += other.split_negentropies_I.to(self.mean_D)
        self.kept.add(*other.kept.settled())
        self.kept.settled()

    def _join(self, count: int, mean_D: Tensor, scatter_DD: Tensor) -> None:
        total = self.count + count
        shift_D = mean_D - self.mean_D
        self.scatter_DD += scatter_DD
        self.scatter_DD.addr_(shift_D, shift_D, alpha=self.count * count / total)
        self.mean_D += shift_D * (count / total)
        self.count = total

    def _score(self, logits_BK: Tensor, rows_B: np.ndarray) -> None:
        shares_BK = logits_BK.softmax(1)
        splits = len(self.split_counts_I)
        # A product, not a scatter: that adds in no certain order on a GPU.
        split_B = torch.from_numpy(split_of(rows_B, splits)).to(logits_BK.device)
        member_IB = F.one_hot(split_B, splits).T.to(logits_BK)
        self.split_counts_I += member_IB.sum(1)
        self.split_sums_IK += member_IB @ shares_BK
        self.split_negentropies_I += member_IB @ torch.xlogy(shares_BK, shares_BK).sum(1)


def split_of(rows_B: np.ndarray, splits: int) -> np.ndarray:
    """Which split of the score each image belongs to: int64 (B,).

    Of `splits` images in a row one goes to each, from a place that is hashed: by the remainder
    alone, images whose class is their number's remainder would make splits of few classes.
    """
    group, place = np.divmod(rows_B, splits)
    turn = _hashed(group) % np.uint64(splits)
    return (place + turn.astype(np.int64)) % splits


def _hashed(numbers: np.ndarray) -> np.ndarray:
    """uint64, no two alike: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
