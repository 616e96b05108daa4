"""Statistics and samples on disk: round trips, external files if allowed, and refusals."""

import numpy as np
import pytest
import torch
from test_fidelity import gathered, looking, moments, normal, same

from var_scaling.evaluation.archives import (
    ExternalStatistics,
    load_statistics,
    save_arr0,
    save_statistics,
)
from var_scaling.evaluation.extractors import Extractor
from var_scaling.evaluation.fidelity import (
    frechet_distance,
)
from var_scaling.evaluation.statistics import Statistics, StatisticsError

# On disk -----------------------------------------------------------------------------------------


SAID = {"data": "leaves", "side": 16}


@pytest.mark.parametrize("count", [0, 1, 50])
def test_loaded_statistics_equal_the_saved_ones_and_can_be_merged(count, tmp_path):
    features, path = normal(90, 4), tmp_path / "s.npz"
    begun = gathered(features, np.arange(count), keep=20, splits=3)
    save_statistics(path, begun, SAID)
    again = load_statistics(path, looking(4), SAID)
    assert isinstance(again, Statistics)
    again.merge(gathered(features, np.arange(count, 90), keep=20, splits=3))
    assert same(again, gathered(features, keep=20, splits=3))


def test_a_fingerprint_that_differs_is_refused_with_both_values(tmp_path):
    path = tmp_path / "s.npz"
    save_statistics(path, gathered(normal(9, 4)), SAID)
    for foreign in (False, True):
        with pytest.raises(StatisticsError, match="side: recorded 16, expected 32"):
            load_statistics(path, looking(4), {**SAID, "side": 32}, allow_external=foreign)
    with pytest.raises(StatisticsError, match="crop: recorded None, expected centre"):
        load_statistics(path, looking(4), {**SAID, "crop": "centre"})
    other = Extractor("other", "its hash", 5, 4, 1, torch.nn.Linear(1, 1))
    for message in (SAID, None):
        with pytest.raises(
            StatisticsError, match="extractor_sha256: recorded 4, expected its hash"
        ):
            load_statistics(path, other, message)
    whatever = load_statistics(path, looking(4), None)
    assert isinstance(whatever, Statistics)
    assert whatever.count == 9


def test_external_statistics_are_loaded_only_if_allowed(tmp_path):
    ours, theirs = tmp_path / "ours.npz", tmp_path / "theirs.npz"
    s = gathered(normal(40, 4))
    save_statistics(ours, s, SAID)
    with np.load(ours) as archive:
        np.savez(theirs, mu=archive["mu"].astype(np.float32), sigma=archive["sigma"], arr_0=[1])
    with pytest.raises(StatisticsError, match="no fingerprint"):
        load_statistics(theirs, looking(4), SAID)
    foreign = load_statistics(theirs, looking(4), SAID, allow_external=True)
    assert isinstance(foreign, ExternalStatistics)
    assert len(foreign.sha256) == 64
    assert frechet_distance(foreign, s) == pytest.approx(0, abs=1e-10)


SIGMA = np.eye(4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": SIGMA}, "it has arr_0, not mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "the width of this extractor"),
        ({"mu": np.zeros(4), "sigma": SIGMA + np.diag([1.0] * 3, 1)}, "not symmetric"),
        ({"mu": np.full(4, np.nan), "sigma": SIGMA}, "not finite"),
        ({"mu": np.array([{}] * 4), "sigma": SIGMA}, "damaged"),  # pickled
        ({"mu": np.array(["a"] * 4), "sigma": SIGMA}, "expected floating-point numbers"),
    ],
)
def test_invalid_moments_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(StatisticsError, match=message):
        load_statistics(tmp_path / "s.npz", looking(4), {}, allow_external=True)


def test_a_sigma_with_a_negative_eigenvalue_is_refused():
    with pytest.raises(StatisticsError, match="eigenvalue of -1"):
        frechet_distance(moments([0.0, 0], [[1.0, 2], [2, 1]]), moments([0.0, 0], np.eye(2)))


def test_damaged_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "s.npz"
    with pytest.raises(StatisticsError, match="no such file"):
        load_statistics(path, looking(4), {})
    save_statistics(path, gathered(normal(9, 4)), {})
    whole = path.read_bytes()
    for broken in (b"", whole[:100], whole[:-100], whole.replace(b"NUMPY", b"numpy")):
        path.write_bytes(broken)
        with pytest.raises(StatisticsError, match="damaged"):
            load_statistics(path, looking(4), {})


@pytest.mark.parametrize(
    ("written", "message"),
    [("{", "is not JSON"), ("[]", "is not a JSON object"), ("", "is not JSON")],
)
def test_a_damaged_fingerprint_is_refused(written, message, tmp_path):
    path = tmp_path / "s.npz"
    save_statistics(path, gathered(normal(9, 4)), SAID)
    with np.load(path) as archive:
        np.savez(path, **{**archive, "fingerprint": written})
    for fingerprint in (SAID, None):
        with pytest.raises(StatisticsError, match=rf"s\.npz: damaged, its fingerprint {message}"):
            load_statistics(path, looking(4), fingerprint, allow_external=True)


def test_samples_are_written_as_one_uint8_array_arr_0(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(7, 8, 8, 3), dtype=np.uint8)
    save_arr0(tmp_path / "whole.npz", images)
    save_arr0(tmp_path / "parts.npz", iter([images[:3], images[3:]]), count=7)
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "parts.npz").read_bytes()
    with np.load(tmp_path / "parts.npz") as archive:
        assert archive.files == ["arr_0"]
        assert archive["arr_0"].dtype == np.uint8
        assert (archive["arr_0"] == images).all()


@pytest.mark.parametrize(
    ("images", "count", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), None, "float32"),
        (np.zeros((2, 3, 4, 4), np.uint8), None, r"\(2, 3, 4, 4\)"),
        ([np.zeros((2, 4, 4, 3), np.uint8)], None, "give `count`"),
        ([np.zeros((2, 4, 4, 3), np.uint8)], 3, "2 images were given, but count = 3"),
        ([], 0, "0 images were given"),
        ([np.zeros((1, s, s, 3), np.uint8) for s in (4, 8)], 2, "expected one shape"),
    ],
)
def test_arrays_that_are_not_images_of_one_size_are_refused_and_no_file_remains(
    images, count, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        save_arr0(tmp_path / "samples.npz", images, count)
    assert list(tmp_path.iterdir()) == []
