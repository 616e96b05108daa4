"""FID and related scores: equal to closed forms and to other code, in any order or split."""

import pickle

import numpy as np
import pytest
import scipy.linalg
import torch

from var_scaling.evaluation import fidelity
from var_scaling.evaluation.archives import (
    ExternalStatistics,
)
from var_scaling.evaluation.extractors import Extractor, ExtractorOutput, seeded_extractor
from var_scaling.evaluation.fidelity import (
    compare,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from var_scaling.evaluation.statistics import Statistics, StatisticsError, split_of


def moments(mean, covariance) -> ExternalStatistics:
    return ExternalStatistics(torch.tensor(mean).double(), torch.tensor(covariance).double(), "")


def looking(width: int, outputs: int = 4) -> Extractor:
    """An extractor of that width; its network is never called."""
    return Extractor("made", f"{width}", width, outputs, 1, torch.nn.Linear(1, 1))


def normal(count: int, width: int, seed: int = 0, mean: float = 0.0) -> torch.Tensor:
    draws = np.random.default_rng(seed).normal(mean, 1, (count, width))
    return torch.from_numpy(draws.astype(np.float32))


def gathered(features_ND, rows=None, logits_NK=None, batch=64, **settings) -> Statistics:
    rows = np.arange(len(features_ND)) if rows is None else rows
    logits_NK = features_ND[:, :4] if logits_NK is None else logits_NK
    found = Statistics(looking(features_ND.shape[1], logits_NK.shape[1]), **settings)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        found.add(ExtractorOutput(features_ND[part], logits_NK[part]), part)
    return found


# The Fréchet distance ----------------------------------------------------------------------------


def test_the_distance_of_commuting_gaussians_is_the_closed_form():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    a, b = np.array([1.0, 4, 9, 0, 2]), np.array([4.0, 4, 1, 3, 0])
    at_0, at_half = (moments([m] * 5, turn @ np.diag(v) @ turn.T) for m, v in ((0.0, a), (0.5, b)))
    distance = frechet_distance(at_0, at_half)
    assert distance == pytest.approx(5 * 0.25 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-12)


def test_the_distance_equals_that_by_the_matrix_root_and_is_symmetric():
    a, b = gathered(normal(300, 40)), gathered(normal(200, 40, seed=1, mean=0.3) * 1.5)
    root = scipy.linalg.sqrtm(a.covariance_DD.numpy() @ b.covariance_DD.numpy())
    expected = float((a.mean_D - b.mean_D).square().sum()) + float(
        a.covariance_DD.trace() + b.covariance_DD.trace() - 2 * np.trace(root.real)
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-11)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize("count", [2, 30, 100])
def test_the_distance_is_exact_with_fewer_images_than_features(count):
    x, y = normal(count, 100).double(), normal(50, 100, seed=1, mean=0.1).double()
    a, b = gathered(x), gathered(y)
    # Tr (Σa Σb)^½ without any root: the nuclear norm of the product of the centred features.
    centred = [(z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y)]
    shared = torch.linalg.matrix_norm(centred[0] @ centred[1].T, ord="nuc")
    expected = (x.mean(0) - y.mean(0)).square().sum() - 2 * shared
    expected += sum(z.square().sum() for z in centred)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)
    assert 0 <= frechet_distance(a, a) < 1e-10


def test_the_distance_of_identical_images_is_finite():
    same = gathered(torch.ones(5, 3), logits_NK=torch.ones(5, 2))
    assert frechet_distance(same, same) == 0
    assert inception_score(same) == (1, 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scores_equal_those_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import poly_mmd

    seeded = seeded_extractor()

    class Features(torch.nn.Module):
        num_features = seeded.width

        def forward(self, images_B3HH):
            return seeded(images_B3HH.movedim(1, 3)).features_BD

    class Logits(torch.nn.Module):
        def forward(self, images_B3HH):
            return seeded(images_B3HH.movedim(1, 3)).logits_BK

    draws = np.random.default_rng(0)
    dark, light = (
        torch.from_numpy(draws.integers(low, low + 128, (200, 8, 8, 3), dtype=np.uint8))
        for low in (0, 100)
    )
    theirs = FrechetInceptionDistance(Features())
    score = InceptionScore(Logits(), splits=1)
    theirs.update(dark.movedim(3, 1), real=True)
    theirs.update(light.movedim(3, 1), real=False)
    score.update(light.movedim(3, 1))
    real, fake = Statistics(seeded), Statistics(seeded, splits=1)
    real.add(seeded(dark), np.arange(200))
    fake.add(seeded(light), np.arange(200))
    found = compare(fake, real, seeded)
    assert found["fd_seeded"] == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert found["score_seeded"] == pytest.approx(float(score.compute()[0]), rel=1e-5)
    mmd = poly_mmd(real.features_ND.double(), fake.features_ND.double())
    assert found["kd_seeded"] == pytest.approx(float(mmd), rel=1e-9)


# Gathering ---------------------------------------------------------------------------------------


def all_of(s: Statistics) -> list[torch.Tensor]:
    sums = s.split_counts_I, s.split_sums_IK, s.split_negentropies_I
    return [s.mean_D, s.covariance_DD, *sums, s.features_ND, torch.tensor(s.count)]


def same(a: Statistics, b: Statistics, rtol: float = 1e-12) -> bool:
    return all(
        torch.allclose(x.double(), y.double(), rtol=rtol, atol=rtol)
        for x, y in zip(all_of(a), all_of(b), strict=True)
    )


@pytest.mark.parametrize("keep", [0, 37, 1000])
def test_statistics_do_not_depend_on_batches_order_or_processes(keep):
    features = normal(500, 12, mean=5)
    whole = gathered(features, batch=500, keep=keep)
    assert torch.allclose(whole.mean_D, features.double().mean(0), rtol=1e-12)
    assert torch.allclose(whole.covariance_DD, features.double().T.cov(), rtol=1e-11)
    assert len(whole.features_ND) == min(keep, 500)
    shuffled = np.random.default_rng(1).permutation(500)
    assert same(gathered(features, shuffled, batch=7, keep=keep), whole)
    for order in ((0, 1, 2), (2, 0, 1)):
        shards = [gathered(features, np.arange(k, 500, 3), batch=16, keep=keep) for k in order]
        merged = Statistics(looking(12), keep=keep)
        for shard in shards:
            merged.merge(pickle.loads(pickle.dumps(shard)))  # noqa: S301 - our own, just made
        assert same(merged, whole)


def test_a_large_mean_costs_no_digits():
    features = normal(50_000, 6, mean=1000)
    exact = features.double() - 1000  # float32 to the last bit
    found = gathered(features, batch=500, keep=0).covariance_DD
    assert torch.allclose(found, exact.T.cov(), rtol=1e-10, atol=1e-10)


def test_the_kept_features_are_a_uniform_sample():
    rows = np.arange(20_000)
    kept = gathered(torch.from_numpy(rows)[:, None].float().expand(-1, 4), keep=2000).features_ND
    assert abs(kept[:, 0].mean() - 10_000) < 4 * 20_000 / np.sqrt(12 * 2000)
    assert torch.equal(kept, kept.sort(0).values)  # in the order of the images' indices


def test_splits_have_equal_sizes_and_mix_classes_in_any_order():
    rows = np.arange(50_000)
    splits = split_of(rows, 10)
    assert np.bincount(splits).tolist() == [5000] * 10
    for labels in (rows % 1000, rows // 50):
        classes = [len(np.unique(labels[splits == k])) for k in range(10)]
        assert min(classes) > 980


def test_overlapping_parts_of_a_set_are_refused():
    a, b = (gathered(normal(20, 4), rows) for rows in (np.arange(12), np.arange(11, 20)))
    with pytest.raises(StatisticsError, match="image 11 was added twice"):
        a.merge(b)


def test_statistics_of_two_extractors_cannot_be_merged():
    four, five = gathered(normal(9, 4)), gathered(normal(9, 5))
    with pytest.raises(StatisticsError, match="extractor"):
        four.merge(five)
    with pytest.raises(StatisticsError, match="4 and of 5 features"):
        frechet_distance(four, five)
    with pytest.raises(StatisticsError, match="not of seeded"):
        compare(four, four, seeded_extractor())


def test_invalid_features_are_refused():
    s = Statistics(looking(4))
    with pytest.raises(ValueError, match="not finite"):
        s.add(
            ExtractorOutput(torch.tensor([[1.0, 2, 3, torch.nan]]), torch.zeros(1, 4)),
            np.array([7]),
        )
    with pytest.raises(ValueError, match=r"expected \(\(2, 4\), \(2, 4\)\)"):
        s.add(ExtractorOutput(torch.zeros(1, 4), torch.zeros(1, 4)), np.array([7, 8]))
    with pytest.raises(StatisticsError, match="at least 2"):
        frechet_distance(s, s)
    with pytest.raises(StatisticsError, match="no images"):
        inception_score(s)


# The score ---------------------------------------------------------------------------------------


def test_the_inception_score_equals_its_definition_for_each_split():
    logits = normal(103, 7) * 3
    found = inception_score(gathered(normal(103, 4), logits_NK=logits, splits=5))
    scores = []
    for k in range(5):
        shares = logits[split_of(np.arange(103), 5) == k].double().softmax(1)
        scores.append((shares * (shares / shares.mean(0)).log()).sum(1).mean().exp().item())
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)


def test_the_inception_score_is_between_1_and_the_number_of_classes():
    sure = 1e3 * torch.eye(4)[torch.arange(40) % 4]
    alone = inception_score(gathered(normal(40, 4), logits_NK=sure, splits=1))
    assert alone == (pytest.approx(4), None)
    unsure = gathered(normal(40, 4), logits_NK=torch.zeros(40, 4))
    assert inception_score(unsure) == pytest.approx((1, 0))


# The kernel distance -----------------------------------------------------------------------------


def test_the_kernel_distance_equals_its_definition():
    a, b = normal(6, 3).double(), normal(6, 3, seed=1, mean=0.5).double()

    def kernel(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(kernel(z[i], z[j]) for z in (a, b) for i, j in pairs if i != j) / 30
    expected = within - 2 * sum(kernel(a[i], b[j]) for i, j in pairs) / 36
    distance, spread = kernel_distance(a, b)
    assert distance == pytest.approx(expected, rel=1e-12)
    assert spread is None  # of one subset, that is of all


def test_the_kernel_distance_of_one_population_is_0_on_average():
    a, b = normal(3000, 8), normal(3000, 8, seed=1)
    mean, spread = kernel_distance(a, b, size=100)
    assert spread is not None
    assert abs(mean) < 4 * spread / 10  # of 100 subsets
    assert kernel_distance(a, b, size=100) == (mean, spread)  # seeded
    assert kernel_distance(a, b + 0.5, size=100)[0] > 10 * spread


# Precision and recall ----------------------------------------------------------------------------


def test_precision_detects_bad_images_and_recall_missing_ones():
    real = torch.cat([normal(200, 4), normal(200, 4, seed=1, mean=50)])
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 1000) == (0, 0)
    half = normal(200, 4, seed=2)  # one mode of two
    precision, recall = precision_recall(real, half)
    assert precision > 0.8
    assert 0.4 < recall < 0.5


def test_precision_and_recall_equal_their_definitions_for_any_chunk_size(monkeypatch):
    real, fake = normal(60, 3, mean=100), normal(45, 3, seed=1, mean=100.8) * 1.003

    def within(points, centres):
        reach = np.sort(np.linalg.norm(centres[:, None] - centres, axis=2), axis=1)[:, 3]
        return (np.linalg.norm(points[:, None] - centres, axis=2) <= reach).any(1).mean()

    real_, fake_ = real.double().numpy(), fake.double().numpy()
    expected = within(fake_, real_), within(real_, fake_)
    assert all(0.2 < share < 0.95 for share in expected)
    assert precision_recall(real, fake) == pytest.approx(expected)
    monkeypatch.setattr(fidelity, "_CHUNK_DISTANCES", 100)
    assert precision_recall(real, fake) == pytest.approx(expected)


def test_copies_of_one_image_lie_in_its_ball_of_radius_0():
    copies = normal(1, 64).repeat(5, 1)
    assert precision_recall(copies, copies[:4]) == (1, 1)


def test_too_few_features_are_refused():
    with pytest.raises(StatisticsError, match="at least 4 of each"):
        precision_recall(normal(3, 2), normal(9, 2))
    with pytest.raises(StatisticsError, match="width 2 and 3"):
        kernel_distance(normal(9, 2), normal(9, 3))


def test_unknown_scores_are_absent():
    real, fake = gathered(normal(30, 4)), gathered(normal(20, 4, seed=1))
    few = gathered(normal(20, 4, seed=1), keep=3)
    names = {"fd_made", "fd_made_stderr", "score_made", "score_made_std", "fake_images"}
    known = compare(fake, real, looking(4))
    assert set(known) == names | {
        "real_images", "kd_made", "kd_made_std", "kid_subset_size", "precision_made",
        "recall_made", "fake_features", "real_features",
    }  # fmt: skip
    assert (known["fake_images"], known["real_images"], known["kid_subset_size"]) == (20, 30, 20)
    assert not {"fd_made_stderr", "precision_made", "recall_made"} & set(
        compare(few, real, looking(4))
    )
    equal = compare(fake, gathered(normal(20, 4)), looking(4))  # KID of one subset has no spread
    assert "kd_made" in equal
    assert "kd_made_std" not in equal
    one = gathered(normal(20, 4, seed=1), splits=1)
    assert "score_made_std" not in compare(one, real, looking(4))
    foreign = ExternalStatistics(real.mean_D, real.covariance_DD, "its hash")
    alone = compare(fake, foreign, looking(4))
    assert set(alone) == names | {"real_statistics_sha256"}
    assert alone["fd_made"] == pytest.approx(known["fd_made"], rel=1e-12)
