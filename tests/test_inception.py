"""Inception equals the network of FID numerically, and other weights are refused."""

import hashlib

import pytest
import torch

from var_scaling.evaluation import extractors
from var_scaling.evaluation.extractors import (
    Extractor,
    hashed_weights,
    inception_extractor,
    metric_name,
    seeded_extractor,
)
from var_scaling.evaluation.inception import Inception, resize_as_tensorflow_1
from var_scaling.weights import WeightsError

# Of names and shapes without num_batches_tracked, and of the numbers below: from torch-fidelity
# 0.4.0's FeatureExtractorInceptionV3 with the same drawn weights, in float64.
NAMES_SHA256 = "bd04e829988dd22dd0bbf9e499a87af311ed57c1b4309a9d20a907d8ed4123d4"
SOME_FEATURES = [0, 500, 1000, 1500, 2047]
FEATURES = [3.6298019886016846, 12.213912010192871, 0.0, 4.510537147521973, 7.732882976531982]
MEAN_FEATURE = 2.5513150691986084
SOME_LOGITS = [0, 500, 1007]
LOGITS = [1.330612301826477, -1.521449327468872, -1.7002822160720825]
SEEDED_SHA256 = "6a41379bad72d587567ee9d8082c2b70babdec795991e08fd38784495c328514"
SEEDED_FEATURES = [0.44859478, 1.39003801, 0.22277945]


def drawn_state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Reproducible weights; norms near 1, variances above 0."""
    state = {name: hashed_weights(name, value.shape) for name, value in net.state_dict().items()}
    for name, value in state.items():
        if name.endswith("running_var"):
            value.mul_(2).add_(1)
        if name.endswith("bn.weight"):
            value.add_(1)
    return state


@pytest.fixture(scope="module")
def net() -> Inception:
    net = Inception()
    net.load_state_dict(drawn_state(net))
    return net.eval()


def pixels(name: str, *shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return ((hashed_weights(name, (count,)) * 4 + 1) * 127.5).round().to(torch.uint8).reshape(shape)


def test_names_and_shapes_equal_those_of_the_released_file(net):
    message = "\n".join(f"{name} {list(v.shape)}" for name, v in sorted(net.state_dict().items()))
    assert hashlib.sha256(message.encode()).hexdigest() == NAMES_SHA256
    # With the two running statistics of each norm: the released 95,628,359 bytes minus the pickle.
    assert sum(v.numel() for v in net.state_dict().values()) * 4 == 95_541_568


def test_features_and_logits_equal_those_of_torch_fidelity(net):
    images = pixels("images 64", 2, 3, 64, 64)[:1].movedim(1, 3)
    looks = Extractor("drawn", "", 2048, 1008, 1, net)(images)
    assert looks.features_BD[0, SOME_FEATURES].tolist() == pytest.approx(FEATURES, rel=1e-5)
    assert float(looks.features_BD.mean()) == pytest.approx(MEAN_FEATURE, rel=1e-5)
    assert looks.logits_BK[0, SOME_LOGITS].tolist() == pytest.approx(LOGITS, rel=1e-4)


@pytest.mark.parametrize(("height", "side"), [(5, 11), (8, 3), (7, 7), (2, 30)])
def test_the_resize_equals_that_of_tensorflow_1(height, side):
    pixel_HH = pixels("resize", height, height).double()
    image = pixel_HH.numpy()
    expected = torch.empty(side, side, dtype=torch.float64)
    for i in range(side):
        for j in range(side):
            y, x = i * height / side, j * height / side
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, height - 1)
            top = image[y0, x0] + (image[y0, x1] - image[y0, x0]) * (x - x0)
            bottom = image[y1, x0] + (image[y1, x1] - image[y1, x0]) * (x - x0)
            expected[i, j] = top + (bottom - top) * (y - y0)
    found = resize_as_tensorflow_1(pixel_HH[None, None], side)[0, 0]
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-10)


def released(tmp_path, monkeypatch, state) -> object:
    """Write `state` to a file that this test takes for the released one."""
    path = tmp_path / "inception.pth"
    torch.save(state, path)
    monkeypatch.setattr(extractors, "INCEPTION_BYTES", path.stat().st_size)
    monkeypatch.setattr(
        extractors, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()
    )
    return path


@pytest.mark.thorough  # it writes and reads 95 MB
def test_the_released_file_is_read_with_its_batch_counters(net, tmp_path, monkeypatch):
    tracked = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(0)
        for name in net.state_dict()
        if name.endswith("running_var")
    }
    path = released(tmp_path, monkeypatch, {**net.state_dict(), **tracked})
    extractor = inception_extractor(path)
    assert (extractor.name, extractor.sha256) == ("inception", extractors.INCEPTION_SHA256)
    assert all(
        torch.equal(value, net.state_dict()[name])
        for name, value in extractor.net.state_dict().items()
    )
    assert not any(p.requires_grad for p in extractor.parameters())


def test_a_file_that_lacks_a_tensor_is_refused_by_name(tmp_path, monkeypatch):
    path = released(tmp_path, monkeypatch, {"fc.bias": torch.zeros(1008)})
    with pytest.raises(WeightsError, match=r"missing: Conv2d_1a_3x3.conv.weight"):
        inception_extractor(path)


def test_without_the_file_the_error_has_its_name_size_and_hash(tmp_path):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(b"PK")
    facts = "pt_inception-2015-12-05-6726825d.pth", "95,628,359 bytes", "6726825d0af5f729"
    for path, message in (
        (None, "var-scaling.toml"),
        (tmp_path / "x", "no such"),
        (cut, "truncated"),
    ):
        with pytest.raises(WeightsError, match=message) as refused:
            inception_extractor(path)
        assert all(fact in str(refused.value) for fact in facts)


def test_another_file_of_the_same_size_is_refused_with_both_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(extractors, "INCEPTION_BYTES", 2)
    path = tmp_path / "other.pth"
    path.write_bytes(b"PK")
    with pytest.raises(WeightsError, match="6726825d0af5f729") as refused:
        inception_extractor(path)
    assert hashlib.sha256(b"PK").hexdigest() in str(refused.value)


def test_only_scores_with_inception_are_called_fid():
    kinds = ("fid", "inception_score", "kid", "precision", "recall")
    assert tuple(metric_name(kind, "inception") for kind in kinds) == kinds
    assert [metric_name(kind, seeded_extractor()) for kind in kinds] == [
        "fd_seeded", "score_seeded", "kd_seeded", "precision_seeded", "recall_seeded",
    ]  # fmt: skip


def test_the_seeded_extractor_is_the_same_on_every_machine():
    seeded = seeded_extractor()
    assert seeded.sha256 == SEEDED_SHA256
    looks = seeded(pixels("seeded", 3, 16, 16, 3))
    assert looks.features_BD.shape == (3, seeded.width)
    assert looks.logits_BK.shape == (3, 16)
    assert looks.features_BD[0, [0, 15, 40]].tolist() == pytest.approx(SEEDED_FEATURES, rel=1e-5)


def test_features_do_not_depend_on_the_batch_or_on_autocast():
    seeded, images = seeded_extractor(), pixels("seeded", 5, 16, 16, 3)
    whole = seeded(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = seeded(images[3:4])
    assert torch.allclose(whole.features_BD[3:4], alone.features_BD, rtol=1e-5)
    assert alone.features_BD.dtype == alone.logits_BK.dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 16, 16, 3), "torch.float32"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"\(1, 3, 16, 16\)"),
        (torch.zeros(1, 16, 24, 3, dtype=torch.uint8), "distort"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.uint8), "at least 8"),
    ],
)
def test_arrays_that_are_not_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        seeded_extractor()(images)
