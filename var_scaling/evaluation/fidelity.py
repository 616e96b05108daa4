"""How far one set of images is from another: FID, IS, KID, precision and recall, from statistics.

Everything in float64. Shapes: N images, M images, D features, K outputs, I splits.
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

_SUBSETS, _SUBSET_SIZE = 100, 1000  # of KID: its own code's defaults
_ENOUGH = 4  # images for each feature, of which the error of a distance can be told
_NEIGHBOURS = 3  # Kynkäänniemi et al., section 3
_INDEFINITE = 1e-4  # of the largest eigenvalue: more below 0 than float32 makes of a covariance
_AT_ONCE = 1 << 23  # distances held at a time: 64 MB
_SAME = 1e-12  # of the squared lengths: nearer than this is rounding of the same point


class Moments(Protocol):
    @property
    def mean_D(self) -> Tensor: ...
    @property
    def covariance_DD(self) -> Tensor: ...


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μa - μb|² + Tr(Σa + Σb - 2 (Σa Σb)^½), at least 0 (arXiv 1706.08500, eq. 6).

    The root's trace is the sum of the singular values of Σa^½ Σb^½, each root by a symmetric
    eigen-decomposition, less its null space: nothing to invert, so fewer images than features are
    no trouble. Raises StatisticsError for other widths, or a Σ with eigenvalues below 0.
    """
    if a.mean_D.shape != b.mean_D.shape:
        raise StatisticsError(
            f"statistics of {len(a.mean_D)} and of {len(b.mean_D)} features: two extractors"
        )
    apart = float((a.mean_D.cpu() - b.mean_D.cpu()).square().sum())
    (values_A, vectors_DA), (values_B, vectors_DB) = (
        _spectrum(side.covariance_DD.cpu().numpy()) for side in (a, b)
    )
    overlap_AB = (vectors_DA * np.sqrt(values_A)).T @ (vectors_DB * np.sqrt(values_B))
    shared = np.linalg.svd(overlap_AB, compute_uv=False).sum()
    return max(0.0, float(apart + values_A.sum() + values_B.sum() - 2 * shared))


def frechet_error(fake: Statistics, real: Moments, strata_N: Tensor | None = None) -> float | None:
    """Standard error of `frechet_distance(fake, real)`, as images of `fake` are drawn anew.

    It is that of the expected distance of as many images, not of infinitely many: the bias upwards
    that few images have is in both. `real` is taken as given. The distance is linearised: an image
    with features x moves it by 2 (μ - μr)·c + c'(1 - T)c, where c = x - μ and T is the map that
    takes Σ to Σr (the derivative of eq. 6). `strata_N`: the class of each image, where every class
    has a fixed number of images: what differs between classes is then no chance. None where there
    are fewer than 4 images for each feature: the linear part is then not enough (tests). Coverage
    is simulated in the tests.
    """
    rows_N, features_ND = fake.kept.settled()
    if len(rows_N) < _ENOUGH * len(fake.mean_D):
        return None
    centred_ND = features_ND.double().numpy() - fake.mean_D.cpu().numpy()
    shift_D = (fake.mean_D.cpu() - real.mean_D.cpu()).numpy()
    values_A, vectors_DA = _spectrum(fake.covariance_DD.cpu().numpy())
    values_B, vectors_DB = _spectrum(real.covariance_DD.cpu().numpy())
    # T = Σ^-½ (Σ^½ Σr Σ^½)^½ Σ^-½, on what Σ spans.
    root_DA, inverse_DA = vectors_DA * np.sqrt(values_A), vectors_DA / np.sqrt(values_A)
    across_AB = root_DA.T @ (vectors_DB * np.sqrt(values_B))
    left_AR, singular_R, _ = np.linalg.svd(across_AB, full_matrices=False)
    half_DR = inverse_DA @ left_AR
    moved_N = (
        2 * centred_ND @ shift_D
        + np.square(centred_ND).sum(1)
        - (np.square(centred_ND @ half_DR) * singular_R).sum(1)
    )
    labels_N = np.zeros(len(moved_N)) if strata_N is None else strata_N.numpy()[rows_N]
    _, which_N, counts_S = np.unique(labels_N, return_inverse=True, return_counts=True)
    sums_S = np.bincount(which_N, moved_N)
    within_N = moved_N - (sums_S / counts_S)[which_N]
    freedom = len(moved_N) - len(counts_S)
    return float(np.sqrt(np.square(within_N).sum() / freedom / fake.count)) if freedom else None


def _spectrum(covariance_DD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors, less those that rounding cannot tell from 0.

    Of a null space, rounding would leave eigenvalues of 1e-16 of the largest, and their roots, 1e-8
    each, would add up.
    """
    values, vectors = np.linalg.eigh(covariance_DD)
    largest = values[-1]
    if values[0] < -_INDEFINITE * largest:
        raise StatisticsError(f"sigma has an eigenvalue of {values[0]:.3g}: it is no covariance")
    here = values > largest * len(values) * np.finfo(np.float64).eps
    return values[here], vectors[:, here]


def inception_score(statistics: Statistics) -> tuple[float, float | None]:
    """exp of the mean divergence of p(y|x) from p(y): mean and spread over the splits.

    arXiv 1606.03498, section 4. Splits without an image do not count; of one split there is no
    spread. A split's score is at most its number of images. Raises StatisticsError if there is no
    image.
    """
    s = statistics
    if not s.count:
        raise StatisticsError("no images, no score")
    here = s.split_counts_I > 0
    counts_I = s.split_counts_I[here]
    marginal_IK = s.split_sums_IK[here] / counts_I[:, None]
    negentropy_I = s.split_negentropies_I[here] / counts_I
    scores_I = (negentropy_I - torch.xlogy(marginal_IK, marginal_IK).sum(1)).exp()
    spread = float(scores_I.std(correction=0)) if len(scores_I) > 1 else None
    return float(scores_I.mean()), spread


def kernel_distance(
    features_a: Tensor,
    features_b: Tensor,
    subsets: int = _SUBSETS,
    size: int = _SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float | None]:
    """Squared maximum mean discrepancy, unbiased, of the kernel (x·y / D + 1)³.

    Binkowski et al. 2018 (arXiv 1801.01401), section 4: mean and spread over `subsets` draws of
    `size` images a side without repetition, at most as many as there are. Where that is all of both
    sides there is one subset, and no spread. It may come out below 0. Raises StatisticsError for
    other widths or fewer than two images.
    """
    _refuse_unlike(features_a, features_b, at_least=2)
    size = subset_size(features_a, features_b, size)
    if size == len(features_a) == len(features_b):
        subsets = 1  # all the same
    found = []
    for number in range(subsets):
        draw = np.random.default_rng(seed_for(seed, "kernel distance", number))
        a_ND, b_ND = (
            side[torch.from_numpy(draw.choice(len(side), size, replace=False)).to(side.device)]
            for side in (features_a, features_b)
        )
        found.append(_discrepancy(a_ND.double(), b_ND.double()))
    return float(np.mean(found)), float(np.std(found)) if subsets > 1 else None


def subset_size(features_a: Tensor, features_b: Tensor, size: int = _SUBSET_SIZE) -> int:
    """How many images a side `kernel_distance` draws at a time."""
    return min(size, len(features_a), len(features_b))


def _discrepancy(a_ND: Tensor, b_ND: Tensor) -> float:
    count = len(a_ND)
    within = 0.0
    for side in (a_ND, b_ND):
        kernel_NN = _kernel(side, side)
        within += float(kernel_NN.sum() - kernel_NN.diagonal().sum()) / (count * (count - 1))
    return within - 2 * float(_kernel(a_ND, b_ND).mean())


def _kernel(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    return (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3


def precision_recall(
    real: Tensor, fake: Tensor, neighbours: int = _NEIGHBOURS
) -> tuple[float, float]:
    """Share of fake features within the real manifold, and of real ones within the fake one.

    A manifold is a ball around each feature, as far as its `neighbours`-th nearest of the same set
    (arXiv 1904.06991, eqs. 1 and 2). Both depend on how many there are of each. Raises
    StatisticsError for other widths, or sets that are not larger than `neighbours`.
    """
    _refuse_unlike(real, fake, at_least=neighbours + 1)
    # About their common mean, so that distances lose no digits to where the features lie.
    middle_D = (real.double().mean(0) + fake.double().mean(0)) / 2
    real_ND, fake_MD = real.double() - middle_D, fake.double() - middle_D
    precision = _share_within(fake_MD, real_ND, _reach(real_ND, neighbours))
    recall = _share_within(real_ND, fake_MD, _reach(fake_MD, neighbours))
    return precision, recall


def _reach(features_ND: Tensor, neighbours: int) -> Tensor:
    """(N,): squared distance from each to its `neighbours`-th nearest other."""
    nearest = [
        # The nearest is itself, or its like: both are 0 away.
        _squared_distances(part, features_ND).kthvalue(neighbours + 1, dim=1).values
        for part in features_ND.split(_rows_at_once(features_ND))
    ]
    return torch.cat(nearest)


def _share_within(features_ND: Tensor, centres_MD: Tensor, reach_M: Tensor) -> float:
    inside = [
        (_squared_distances(part, centres_MD) <= reach_M).any(1)
        for part in features_ND.split(_rows_at_once(centres_MD))
    ]
    return float(torch.cat(inside).double().mean())


def _rows_at_once(columns_MD: Tensor) -> int:
    return max(1, _AT_ONCE // len(columns_MD))


def _squared_distances(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """(N, M); exactly 0 between a point and its like, whatever was rounded on the way."""
    lengths_NM = a_ND.square().sum(1)[:, None] + b_MD.square().sum(1)
    squared_NM = torch.addmm(lengths_NM, a_ND, b_MD.T, alpha=-2)
    return squared_NM.masked_fill_(squared_NM < _SAME * lengths_NM, 0.0)


def _refuse_unlike(a_ND: Tensor, b_MD: Tensor, at_least: int) -> None:
    if a_ND.shape[1] != b_MD.shape[1]:
        raise StatisticsError(
            f"features of width {a_ND.shape[1]} and {b_MD.shape[1]}: two extractors"
        )
    if min(len(a_ND), len(b_MD)) < at_least:
        raise StatisticsError(
            f"features of {len(a_ND)} and {len(b_MD)} images: this takes {at_least} of each"
        )


def compare(
    fake: Statistics,
    real: Statistics | ExternalStatistics,
    extractor: Extractor,
    strata_N: Tensor | None = None,
) -> Line:
    """Every number that the two allow, under its right name, and of how many images it is.

    `strata_N`: the class of each image of `fake`, where each class has a fixed number of them.

    Of foreign statistics only the Fréchet distance and the score are known: the rest is absent,
    and so are KID, precision and recall where too few features were kept, and a spread that would
    be over one split or subset. Raises StatisticsError if `extractor` did not gather them.
    """
    for side in (fake, real):
        if isinstance(side, Statistics) and side.extractor_sha256 != extractor.sha256:
            raise StatisticsError(
                f"statistics gathered with {side.extractor} {side.extractor_sha256}, "
                f"to be named after {extractor.name} {extractor.sha256}"
            )

    def named(kind: str) -> str:
        return metric_name(kind, extractor)

    score, spread = inception_score(fake)
    error = frechet_error(fake, real, strata_N)
    line: Line = {
        named("fid"): frechet_distance(fake, real),
        **({} if error is None else {f"{named('fid')}_stderr": error}),
        named("inception_score"): score,
        **_spread(named("inception_score"), spread),
        "fake_images": fake.count,
    }
    if isinstance(real, ExternalStatistics):
        return {**line, "real_statistics_sha256": real.sha256}
    line["real_images"] = real.count
    fake_ND, real_ND = (side.features_ND.to(extractor.device) for side in (fake, real))
    fewest = min(len(fake_ND), len(real_ND))
    if fewest >= 2:
        distance, spread = kernel_distance(fake_ND, real_ND)
        line |= {
            named("kid"): distance,
            **_spread(named("kid"), spread),
            "kid_subset_size": subset_size(fake_ND, real_ND),
        }
    if fewest > _NEIGHBOURS:
        precision, recall = precision_recall(real_ND, fake_ND)
        line |= {named("precision"): precision, named("recall"): recall}
    return {**line, "fake_features": len(fake_ND), "real_features": len(real_ND)}


def _spread(name: str, spread: float | None) -> Line:
    return {} if spread is None else {f"{name}_std": spread}
