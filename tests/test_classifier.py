"""The classifier is the ResNet in its file; preprocessing equals that of torchvision."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from var_scaling.evaluation.extractors import hashed_weights
from var_scaling.evaluation.resnet import ResNet, load_classifier, preprocess
from var_scaling.weights import WeightsError


def pixels(name: str, *shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return ((hashed_weights(name, (count,)) * 4 + 1) * 127.5).round().to(torch.uint8).reshape(shape)


def drawn_state(net: ResNet) -> dict[str, torch.Tensor]:
    state = {name: hashed_weights(name, value.shape) for name, value in net.state_dict().items()}
    for name, value in state.items():
        if name.endswith("running_var"):
            value.mul_(2).add_(1)
        elif value.ndim == 1 and name.endswith("weight"):
            value.add_(0.5)
    return state


@pytest.mark.parametrize(
    ("name", "parameters", "entries"),  # entries without num_batches_tracked
    [
        ("resnet18", 11_689_512, 102),
        ("resnet34", 21_797_672, 182),
        ("resnet50", 25_557_032, 267),
        ("resnet101", 44_549_160, 522),
        ("resnet152", 60_192_808, 777),
    ],
)
def test_each_resnet_has_the_parameters_of_torchvisions(name, parameters, entries):
    with torch.device("meta"):
        state = ResNet(name, 1000).state_dict()
    learnt = [one for one in state if "running" not in one]
    assert sum(state[one].numel() for one in learnt) == parameters
    assert len(state) == entries


@pytest.mark.parametrize(
    ("name", "expected"),  # from torchvision 0.29.2's own code with the same weights, in float64
    [
        ("resnet18", [-0.1040799934, 0.5501923482, -1.3397903157]),
        ("resnet50", [-0.3219439599, -0.6215819167, 0.5378836886]),
    ],
)
def test_logits_equal_those_of_torchvision(name, expected):
    net = ResNet(name, 1000)
    net.load_state_dict(drawn_state(net))
    with torch.no_grad():
        logits_BK = net.eval()(preprocess(pixels("images 300", 1, 300, 300, 3)))
    assert logits_BK[0, [0, 500, 999]].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("side", [16, 100, 256, 300])
def test_preprocessing_equals_pillows_within_one_level(side):
    images = pixels(f"{side}", 2, side, side, 3)
    resized = Image.fromarray(images[1].numpy()).resize((256, 256), Image.Resampling.BILINEAR)
    middle = np.asarray(resized)[16:-16, 16:-16].astype(np.float64)
    found = preprocess(images)[1].double().movedim(0, 2).numpy()
    levels = (found * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255
    assert np.abs(levels - middle).max() < (1e-3 if side == 256 else 1.001)


def test_the_network_and_its_classes_are_read_from_the_file(tmp_path):
    net, path = ResNet("resnet18", 7), tmp_path / "some.pth"
    state = drawn_state(net)
    torch.save({**state, "bn1.num_batches_tracked": torch.tensor(5)}, path)
    classifier = load_classifier(path)
    assert (classifier.name, classifier.classes) == ("resnet18", 7)
    assert classifier.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    images = pixels("images", 2, 32, 32, 3)
    shares_BK = classifier.probabilities(images)
    assert shares_BK.shape == (2, 7)
    assert torch.allclose(shares_BK.sum(1), torch.ones(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(classifier.probabilities(images[1:])[0], shares_BK[1], rtol=1e-4)
    with pytest.raises(ValueError, match="distort"):
        classifier.probabilities(torch.zeros(1, 8, 9, 3, dtype=torch.uint8))


def without(name: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        state = ResNet("resnet18", 2).state_dict()
    return {n: torch.zeros(v.shape) for n, v in state.items() if not n.startswith(name)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"features.0.weight": torch.zeros(2)}, "not a ResNet with torchvision's names"),
        (without("fc"), "fc.weight"),
        (
            without("layer3.1"),
            r"a ResNet with \(2, 2, 1, 2\) blocks per stage; supported are resnet18",
        ),
        (without("layer3.0.conv1"), "1 missing: layer3.0.conv1.weight"),
    ],
)
def test_other_files_are_refused(state, message, tmp_path):
    torch.save(state, tmp_path / "some.pth")
    with pytest.raises(WeightsError, match=message):
        load_classifier(tmp_path / "some.pth")
