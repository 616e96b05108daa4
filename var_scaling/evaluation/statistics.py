"""Statistics of a set of images for FID, IS, KID, precision and recall, accumulated in one pass.

Batches may come in any order and in any number of processes: merged statistics equal those of a
single process up to rounding. The split of an image, and whether its features are kept, depend
only on its index in the set.

Shapes: B images of a batch, N images whose features are kept, D features, K outputs, I splits.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from var_scaling.evaluation.extractors import Extractor, ExtractorOutput

SPLITS = 10  # of the Inception Score (arXiv 1606.03498)
KEEP = 10_000  # images whose features are kept for KID, precision and recall: 80 MB of Inception


class StatisticsError(ValueError):
    """Statistics are damaged, do not match, or are of too few images."""


class FeatureSample:
    """The features of at most `capacity` images: those whose indices have the lowest hashes.

    This is a random sample of a stream of unknown length, and the same for every order of the
    stream and every division among processes.
    """

    def __init__(self, capacity: int, width: int) -> None:
        self.capacity = capacity
        self._threshold = np.uint64(2**64 - 1)  # an image with a higher hash is not in the sample
        self._rows = [np.empty(0, dtype=np.int64)]
        self._features = [torch.empty(0, width)]
        self._stored = 0

    def add(self, rows_B: np.ndarray, features_BD: Tensor) -> None:
        """Add a batch; the features are stored in CPU memory as float32."""
        chosen = np.flatnonzero(_hashed(rows_B) <= self._threshold)
        if len(chosen) and self.capacity:
            self._rows.append(rows_B[chosen])
            # Select before the copy, so that only the chosen rows leave the GPU.
            indices = torch.from_numpy(chosen).to(features_BD.device)
            self._features.append(features_BD[indices].float().cpu())
            self._stored += len(chosen)
        if self._stored > 2 * self.capacity:  # not at every batch: it copies all stored features
            self.select()

    def select(self) -> tuple[np.ndarray, Tensor]:
        """The sample: rows (N,) in rising order and features (N, D).

        It drops the stored images that are not in the sample. Raises StatisticsError if an image
        was added twice.
        """
        rows_N, features_ND = np.concatenate(self._rows), torch.cat(self._features)
        order = np.argsort(rows_N)
        repeated = rows_N[order][1:][np.diff(rows_N[order]) == 0]
        if len(repeated):
            raise StatisticsError(
                f"image {repeated[0]} was added twice: the parts of the set overlap"
            )
        if len(rows_N) > self.capacity:
            # The hash is a bijection, so there are no ties and exactly `capacity` rows remain.
            hashed = _hashed(rows_N)
            self._threshold = np.partition(hashed, self.capacity - 1)[self.capacity - 1]
            order = order[hashed[order] <= self._threshold]
        rows_N, features_ND = rows_N[order], features_ND[torch.from_numpy(order)]
        self._rows, self._features, self._stored = [rows_N], [features_ND], len(rows_N)
        return rows_N, features_ND


class Statistics:
    """Moments, sums of the Inception Score and a sample of features of a set, with one extractor.

    Moments and sums are float64 on the extractor's device: 32 MB with Inception. They are
    accumulated around the running mean (Chan, Golub and LeVeque 1983), so a large mean costs no
    digits.
    """

    def __init__(self, extractor: Extractor, splits: int = SPLITS, keep: int = KEEP) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=extractor.device)

        self.extractor, self.extractor_sha256 = extractor.name, extractor.sha256
        self.count = 0
        self.mean_D = zeros(extractor.width)
        self.scatter_DD = zeros(
            extractor.width, extractor.width
        )  # sum of outer products of deviations
        self.split_counts_I = zeros(splits)
        self.split_sums_IK = zeros(splits, extractor.outputs)  # of the probabilities p
        self.split_negentropies_I = zeros(splits)  # of Σ p log p, nats
        self.feature_sample = FeatureSample(keep, extractor.width)

    @property
    def covariance_DD(self) -> Tensor:
        """Unbiased, exactly symmetric. Raises StatisticsError for fewer than two images."""
        if self.count < 2:
            raise StatisticsError(f"{self.count} images: a covariance needs at least 2")
        return (self.scatter_DD + self.scatter_DD.T) / (2 * (self.count - 1))

    @property
    def features_ND(self) -> Tensor:
        """The features that are kept, in the order of the images' indices; on the CPU."""
        return self.feature_sample.select()[1]

    def add(self, output: ExtractorOutput, rows: np.ndarray) -> None:
        """Accumulate a batch. `rows` (B,): each image's index in the whole set, from 0.

        Raises ValueError for a wrong width or number of rows, or features that are not finite.
        """
        rows_B = np.asarray(rows, dtype=np.int64)
        shapes = tuple(output.features_BD.shape), tuple(output.logits_BK.shape)
        expected = (len(rows_B), len(self.mean_D)), (len(rows_B), self.split_sums_IK.shape[1])
        if shapes != expected:
            raise ValueError(f"features and logits have shapes {shapes}, expected {expected}")
        if not len(rows_B):
            return
        features_BD = output.features_BD.to(self.mean_D)
        # One value that is not finite makes the mean of its feature not finite: (D,) numbers
        # to test instead of (B, D).
        mean_D = features_BD.mean(0)
        if not bool(mean_D.isfinite().all()):
            raise ValueError(f"images {rows_B.min()} to {rows_B.max()}: features are not finite")
        # The scatter of the batch around its own mean; `_add_moments` corrects for the other mean.
        deviations_BD = features_BD - mean_D
        self._add_moments(len(rows_B), mean_D, deviations_BD.T @ deviations_BD)
        self._add_scores(output.logits_BK.to(self.mean_D), rows_B)
        self.feature_sample.add(rows_B, output.features_BD)

    def merge(self, other: "Statistics") -> None:
        """Add the statistics that another process computed from other images of the same set.

        Raises StatisticsError for another extractor, other splits, or an image that both have.
        """
        settings, others = ((s.extractor_sha256, *s.split_sums_IK.shape, s.feature_sample.capacity)
                            for s in (self, other))  # fmt: skip
        if settings != others:
            raise StatisticsError(
                "cannot merge statistics of different (extractor, splits, outputs, keep): "
                f"{settings} and {others}"
            )
        if not other.count:
            return
        self._add_moments(
            other.count, other.mean_D.to(self.mean_D), other.scatter_DD.to(self.mean_D)
        )
        self.split_counts_I += other.split_counts_I.to(self.mean_D)
        self.split_sums_IK += other.split_sums_IK.to(self.mean_D)
        self.split_negentropies_I += other.split_negentropies_I.to(self.mean_D)
        self.feature_sample.add(*other.feature_sample.select())
        self.feature_sample.select()  # raises if an image is in both

    def _add_moments(self, count: int, mean_D: Tensor, scatter_DD: Tensor) -> None:
        # Chan, Golub and LeVeque 1983: the scatter of a union of n and m images is the sum of both
        # scatters plus n m / (n + m) times the outer product of the difference of the means.
        total = self.count + count
        shift_D = mean_D - self.mean_D
        self.scatter_DD += scatter_DD
        self.scatter_DD.addr_(shift_D, shift_D, alpha=self.count * count / total)
        self.mean_D += shift_D * (count / total)
        self.count = total

    def _add_scores(self, logits_BK: Tensor, rows_B: np.ndarray) -> None:
        probs_BK = logits_BK.softmax(1)
        splits = len(self.split_counts_I)
        # A matrix product, not a scatter: on a GPU a scatter adds in an undefined order.
        split_B = torch.from_numpy(split_of(rows_B, splits)).to(logits_BK.device)
        member_IB = F.one_hot(split_B, splits).T.to(logits_BK)
        self.split_counts_I += member_IB.sum(1)
        self.split_sums_IK += member_IB @ probs_BK
        # xlogy: 0 log 0 is 0. A probability can underflow to 0.
        self.split_negentropies_I += member_IB @ torch.xlogy(probs_BK, probs_BK).sum(1)


def split_of(rows_B: np.ndarray, splits: int) -> np.ndarray:
    """The split of the Inception Score that each image belongs to: int64 (B,).

    Of every `splits` consecutive images one goes to each split, in an order rotated by a hash.
    Without the hash, the split would be the remainder of the index; if the class is the remainder
    of the index too, each split would have only a few classes.
    """
    # `group` numbers the blocks of `splits` consecutive images; its hash rotates the block.
    group, position = np.divmod(rows_B, splits)
    shift = _hashed(group) % np.uint64(splits)
    return (position + shift.astype(np.int64)) % splits


def _hashed(numbers: np.ndarray) -> np.ndarray:
    """uint64, a bijection: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    # The state of the generator after n + 1 steps from 0. Products wrap around at 2^64.
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
