"""FID, Inception Score, KID, precision and recall of two sets of images, from their statistics.

All scores are computed in float64. Shapes: N images, M images, D features, K outputs, I splits.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from var_scaling.evaluation.archives import ExternalStatistics
from var_scaling.evaluation.extractors import Extractor, metric_name
from var_scaling.evaluation.statistics import Statistics, StatisticsError
from var_scaling.metrics import Line
from var_scaling.randomness import seed_for

_SUBSETS, _SUBSET_SIZE = 100, 1000  # of KID: the defaults of its published code
_MIN_IMAGES_PER_FEATURE = 4  # for the standard error of a Fréchet distance
_NEIGHBOURS = 3  # Kynkäänniemi et al., section 3
# Relative to the largest eigenvalue: rounding to float32 makes no eigenvalue more negative.
_NEGATIVE_TOLERANCE = 1e-4
_CHUNK_DISTANCES = 1 << 23  # distances in memory at a time: 64 MB
_ZERO_TOLERANCE = 1e-12  # relative to the squared lengths: below it, two points are the same


class Moments(Protocol):
    @property
    def mean_D(self) -> Tensor: ...
    @property
    def covariance_DD(self) -> Tensor: ...


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μa - μb|² + Tr(Σa + Σb - 2 (Σa Σb)^½), at least 0 (arXiv 1706.08500, eq. 6).

    The trace of the root is the sum of the singular values of Σa^½ Σb^½. Each root comes from a
    symmetric eigendecomposition without its null space. Nothing is inverted, so there may be fewer
    images than features. Raises StatisticsError for different widths or a Σ with an eigenvalue
    below 0.
    """
    if a.mean_D.shape != b.mean_D.shape:
        raise StatisticsError(
            f"statistics of {len(a.mean_D)} and of {len(b.mean_D)} features: different extractors"
        )
    mean_distance = float((a.mean_D.cpu() - b.mean_D.cpu()).square().sum())
    (values_A, vectors_DA), (values_B, vectors_DB) = (
        _spectrum(side.covariance_DD.cpu().numpy()) for side in (a, b)
    )
    # Σa^½ Σb^½, each in its own eigenbasis: rotations do not change singular values.
    overlap_AB = (vectors_DA * np.sqrt(values_A)).T @ (vectors_DB * np.sqrt(values_B))
    root_trace = np.linalg.svd(overlap_AB, compute_uv=False).sum()
    return max(0.0, float(mean_distance + values_A.sum() + values_B.sum() - 2 * root_trace))


def frechet_error(fake: Statistics, real: Moments, strata_N: Tensor | None = None) -> float | None:
    """Standard error of `frechet_distance(fake, real)` under resampling of the images of `fake`.

    It is the error of the expected distance at this number of images, not at infinitely many: both
    have the upward bias of a finite number. `real` is treated as fixed. The distance is linearised:
    an image with features x changes it by 2 (μ - μr)·c + c'(1 - T)c, where c = x - μ and T is the
    optimal transport map from Σ to Σr (the derivative of eq. 6). `strata_N`: the class of each
    image, if every class has a fixed number of images: differences between classes then add no
    variance. None for fewer than 4 images per feature, where the linear term is not accurate. The
    tests check the coverage by simulation.
    """
    rows_N, features_ND = fake.feature_sample.select()
    if len(rows_N) < _MIN_IMAGES_PER_FEATURE * len(fake.mean_D):
        return None
    # Around the mean of all images, not only of those whose features were kept: that mean is in
    # the distance.
    centred_ND = features_ND.double().numpy() - fake.mean_D.cpu().numpy()
    shift_D = (fake.mean_D.cpu() - real.mean_D.cpu()).numpy()
    values_A, vectors_DA = _spectrum(fake.covariance_DD.cpu().numpy())
    values_B, vectors_DB = _spectrum(real.covariance_DD.cpu().numpy())
    # T = Σ^-½ (Σ^½ Σr Σ^½)^½ Σ^-½, on the range of Σ.
    root_DA, inverse_DA = vectors_DA * np.sqrt(values_A), vectors_DA / np.sqrt(values_A)
    across_AB = root_DA.T @ (vectors_DB * np.sqrt(values_B))
    # With the SVD Σ^½ Σr^½ = U S V', T = Σ^-½ U S U' Σ^-½. So c'T c = Σ s (c'Σ^-½ u)² over R terms,
    # without a D × D matrix for each image.
    left_AR, singular_R, _ = np.linalg.svd(across_AB, full_matrices=False)
    half_DR = inverse_DA @ left_AR
    # The change of the distance by each image, up to a constant that the means below remove.
    influence_N = (
        2 * centred_ND @ shift_D
        + np.square(centred_ND).sum(1)
        - (np.square(centred_ND @ half_DR) * singular_R).sum(1)
    )
    # `strata_N` has the order of the set; `rows_N` are the indices of the kept images in it.
    labels_N = np.zeros(len(influence_N)) if strata_N is None else strata_N.numpy()[rows_N]
    _, stratum_N, counts_S = np.unique(labels_N, return_inverse=True, return_counts=True)
    sums_S = np.bincount(stratum_N, influence_N)
    within_N = influence_N - (sums_S / counts_S)[stratum_N]
    degrees = len(influence_N) - len(counts_S)  # of freedom
    # The kept images estimate the variance of one image; the distance is of all `fake.count`.
    return float(np.sqrt(np.square(within_N).sum() / degrees / fake.count)) if degrees else None


def _spectrum(covariance_DD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors, without the eigenvalues that are 0 up to rounding.

    Rounding leaves eigenvalues of about 1e-16 of the largest in a null space. Their square roots,
    1e-8 each, would add up.
    """
    values, vectors = np.linalg.eigh(covariance_DD)
    largest = values[-1]
    if values[0] < -_NEGATIVE_TOLERANCE * largest:
        raise StatisticsError(
            f"sigma has an eigenvalue of {values[0]:.3g}, so it is not a covariance matrix"
        )
    nonzero = values > largest * len(values) * np.finfo(np.float64).eps
    return values[nonzero], vectors[:, nonzero]


def inception_score(statistics: Statistics) -> tuple[float, float | None]:
    """exp of the mean KL divergence of p(y|x) from p(y): mean and std over the splits.

    arXiv 1606.03498, section 4. Empty splits are left out; the std is None for one split. The score
    of a split is at most its number of images. Raises StatisticsError if there are no images.
    """
    s = statistics
    if not s.count:
        raise StatisticsError("no images: the Inception Score needs at least 1")
    nonempty = s.split_counts_I > 0
    counts_I = s.split_counts_I[nonempty]
    marginal_IK = s.split_sums_IK[nonempty] / counts_I[:, None]
    negentropy_I = s.split_negentropies_I[nonempty] / counts_I
    # The mean KL divergence is the mean of Σ p log p minus Σ m log m of the marginal m.
    scores_I = (negentropy_I - torch.xlogy(marginal_IK, marginal_IK).sum(1)).exp()
    # correction=0: the published code uses np.std.
    std = float(scores_I.std(correction=0)) if len(scores_I) > 1 else None
    return float(scores_I.mean()), std


def kernel_distance(
    features_a: Tensor,
    features_b: Tensor,
    subsets: int = _SUBSETS,
    size: int = _SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float | None]:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³: mean and std.

    Binkowski et al. 2018 (arXiv 1801.01401), section 4: over `subsets` draws of `size` images of
    each set without replacement, or of all images if there are fewer. If a subset is all of both
    sets, there is one subset and the std is None. The estimate may be negative. Raises
    StatisticsError for different widths or fewer than two images.
    """
    _check_features(features_a, features_b, at_least=2)
    size = subset_size(features_a, features_b, size)
    if size == len(features_a) == len(features_b):
        subsets = 1  # every draw would be the same set
    distances = []
    for number in range(subsets):
        # A seed for each subset, so that a subset does not depend on how many there are.
        generator = np.random.default_rng(seed_for(seed, "kernel distance", number))
        a_ND, b_ND = (
            side[torch.from_numpy(generator.choice(len(side), size, replace=False)).to(side.device)]
            for side in (features_a, features_b)
        )
        distances.append(_squared_mmd(a_ND.double(), b_ND.double()))
    return float(np.mean(distances)), float(np.std(distances)) if subsets > 1 else None


def subset_size(features_a: Tensor, features_b: Tensor, size: int = _SUBSET_SIZE) -> int:
    """Number of images of each set in one subset of `kernel_distance`."""
    return min(size, len(features_a), len(features_b))


def _squared_mmd(a_ND: Tensor, b_ND: Tensor) -> float:
    count = len(a_ND)
    within = 0.0
    for side in (a_ND, b_ND):
        kernel_NN = _kernel(side, side)
        # Without the diagonal: a kernel of an image with itself would bias the estimate upwards.
        within += float(kernel_NN.sum() - kernel_NN.diagonal().sum()) / (count * (count - 1))
    return within - 2 * float(_kernel(a_ND, b_ND).mean())


def _kernel(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    return (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3


def precision_recall(
    real: Tensor, fake: Tensor, neighbours: int = _NEIGHBOURS
) -> tuple[float, float]:
    """Share of fake features within the real manifold, and of real ones within the fake manifold.

    A manifold is the union of balls around the features of a set; the radius of each is the
    distance to its `neighbours`-th nearest neighbour in the set (arXiv 1904.06991, eqs. 1 and 2).
    Both shares depend on the sizes of the sets. Raises StatisticsError for different widths, or
    sets that are not larger than `neighbours`.
    """
    _check_features(real, fake, at_least=neighbours + 1)
    # Subtract the common mean, so that a large mean costs no digits of the distances.
    centre_D = (real.double().mean(0) + fake.double().mean(0)) / 2
    real_ND, fake_MD = real.double() - centre_D, fake.double() - centre_D
    precision = _share_inside(fake_MD, real_ND, _squared_radii(real_ND, neighbours))
    recall = _share_inside(real_ND, fake_MD, _squared_radii(fake_MD, neighbours))
    return precision, recall


def _squared_radii(features_ND: Tensor, neighbours: int) -> Tensor:
    """(N,): squared distance from each feature to its `neighbours`-th nearest neighbour."""
    nearest = [
        # + 1: the nearest is the feature itself, or an equal one, at distance 0.
        _squared_distances(part, features_ND).kthvalue(neighbours + 1, dim=1).values
        for part in features_ND.split(_chunk_rows(features_ND))
    ]
    return torch.cat(nearest)


def _share_inside(features_ND: Tensor, centres_MD: Tensor, radii_M: Tensor) -> float:
    inside = [
        (_squared_distances(part, centres_MD) <= radii_M).any(1)
        for part in features_ND.split(_chunk_rows(centres_MD))
    ]
    return float(torch.cat(inside).double().mean())


def _chunk_rows(columns_MD: Tensor) -> int:
    return max(1, _CHUNK_DISTANCES // len(columns_MD))


def _squared_distances(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """(N, M); exactly 0 between equal points, despite rounding."""
    lengths_NM = a_ND.square().sum(1)[:, None] + b_MD.square().sum(1)
    # |a|² + |b|² - 2 a·b by one matrix product, without an (N, M, D) array of differences.
    squared_NM = torch.addmm(lengths_NM, a_ND, b_MD.T, alpha=-2)
    # A copy of an image must lie in a ball of radius 0 around it.
    return squared_NM.masked_fill_(squared_NM < _ZERO_TOLERANCE * lengths_NM, 0.0)


def _check_features(a_ND: Tensor, b_MD: Tensor, at_least: int) -> None:
    if a_ND.shape[1] != b_MD.shape[1]:
        raise StatisticsError(
            f"features of width {a_ND.shape[1]} and {b_MD.shape[1]}: different extractors"
        )
    if min(len(a_ND), len(b_MD)) < at_least:
        raise StatisticsError(
            f"features of {len(a_ND)} and {len(b_MD)} images: at least {at_least} of each needed"
        )


def compare(
    fake: Statistics,
    real: Statistics | ExternalStatistics,
    extractor: Extractor,
    strata_N: Tensor | None = None,
) -> Line:
    """All scores that the two sets of statistics allow, by column name, with numbers of images.

    `strata_N`: the class of each image of `fake`, if each class has a fixed number of images.

    With ExternalStatistics only the Fréchet distance and the Inception Score are known; the other
    columns are absent. KID, precision and recall are absent if too few features were kept, and a
    standard deviation is absent if there is only one split or subset. Raises StatisticsError if
    other extractors than `extractor` computed the statistics.
    """
    for side in (fake, real):
        if isinstance(side, Statistics) and side.extractor_sha256 != extractor.sha256:
            raise StatisticsError(
                f"the statistics are of extractor {side.extractor} {side.extractor_sha256}, "
                f"not of {extractor.name} {extractor.sha256}"
            )

    def column(kind: str) -> str:
        return metric_name(kind, extractor)

    score, std = inception_score(fake)
    error = frechet_error(fake, real, strata_N)
    line: Line = {
        column("fid"): frechet_distance(fake, real),
        **({} if error is None else {f"{column('fid')}_stderr": error}),
        column("inception_score"): score,
        **_std(column("inception_score"), std),
        "fake_images": fake.count,
    }
    if isinstance(real, ExternalStatistics):
        return {**line, "real_statistics_sha256": real.sha256}
    line["real_images"] = real.count
    fake_ND, real_ND = (side.features_ND.to(extractor.device) for side in (fake, real))
    features = min(len(fake_ND), len(real_ND))
    if features >= 2:
        distance, std = kernel_distance(fake_ND, real_ND)
        line |= {
            column("kid"): distance,
            **_std(column("kid"), std),
            "kid_subset_size": subset_size(fake_ND, real_ND),
        }
    if features > _NEIGHBOURS:
        precision, recall = precision_recall(real_ND, fake_ND)
        line |= {column("precision"): precision, column("recall"): recall}
    return {**line, "fake_features": len(fake_ND), "real_features": len(real_ND)}


def _std(name: str, std: float | None) -> Line:
    return {} if std is None else {f"{name}_std": std}
