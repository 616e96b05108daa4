"""The classifier used as feature extractor; the standard error of a Fréchet distance."""

import numpy as np
import pytest
import torch
from conftest import images
from test_fidelity import gathered

from pipelines.evaluation.scoring import run
from pipelines.stages.context import RunContext, StopFile, local_process
from pipelines.stages.registry import NETWORK
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from var_scaling.accounting.tokenizer import classifier_flops
from var_scaling.data.dataset import open_images
from var_scaling.datasets import ReadOptions
from var_scaling.disk import read_json
from var_scaling.evaluation.classifier import SmallResNet, classifier_extractor, train_classifier
from var_scaling.evaluation.fidelity import frechet_distance, frechet_error
from var_scaling.experiment.scoring import FeatureNetwork
from var_scaling.weights import WeightsError, save_weights


def sources(data):
    reading = ReadOptions(None, None, 0, lambda *_: None)
    return [open_images(data, split, reading) for split in ("train", "validation")]


def learnt(**changes):
    config = FeatureNetwork(data=images(), **changes)
    reported = []
    network, right = train_classifier(
        config,
        *sources(config.data),
        torch.device("cpu"),
        lambda *message: reported.append(message),
    )
    assert reported[-1] == ("network leaves", config.steps, config.steps)
    return network, right


@pytest.mark.slow
def test_the_classifier_learns_the_classes_deterministically(tmp_path):
    torch.set_num_threads(1)
    assert learnt(most_steps=60)[1] > 0.4  # 8 classes, each with its own colours
    (one, _), (other, _) = learnt(most_steps=5), learnt(most_steps=5)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    save_weights(one, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError):
        classifier_extractor(tmp_path / "w.safetensors", "0" * 64)


def test_the_classifier_trains_for_at_most_twenty_epochs():
    assert FeatureNetwork(data=images()).steps == 20 * 600 // 64
    assert FeatureNetwork(data=images(train_images=80_000)).steps == 1_000
    with pytest.raises(ValueError, match="at least 2 are needed"):
        FeatureNetwork(data=images(classes=1))


def test_the_classifier_flops_equal_those_of_torchs_counter():
    from torch.utils.flop_counter import FlopCounterMode

    network = SmallResNet(8)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 16, 16))
    linear = 2 * 128 * 8
    assert classifier_flops(16) == counter.get_total_flops() - linear


def test_the_classifier_is_trained_once_by_a_stage(tmp_path):
    home = Home(tmp_path)
    config = FeatureNetwork(data=images(), most_steps=20)
    words = {"kind": NETWORK.name, "config": config.model_dump_json()}
    settings = Settings()
    context = RunContext(
        home, settings, StopFile(tmp_path / "stop"), local_process(settings.local), None
    )
    assert run(context, words) == "done"
    done = read_json(home.network("leaves") / "done.json")
    before = (home.network("leaves") / "weights.safetensors").stat().st_mtime_ns
    assert run(context, words) == "done"
    assert (home.network("leaves") / "weights.safetensors").stat().st_mtime_ns == before
    extractor = classifier_extractor(
        home.network("leaves") / "weights.safetensors", done["weights_sha256"]
    )
    looks = extractor(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    assert looks.features_BD.shape == (2, 224)
    assert looks.logits_BK.shape == (2, 8)


# The standard error -------------------------------------------------------------------------------


def drawn(count: int, shift: float, scale: float, seed: int, width: int = 16):
    """Non-Gaussian features of 8 classes with different means, in turn."""
    own, always = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    size = torch.arange(1, width + 1).double() ** -0.5
    means_8D = torch.randn(8, width, generator=always).double() * size
    turn_DD = torch.linalg.qr(torch.randn(width, width, generator=always).double())[0]
    labels_N = torch.arange(count) % 8
    z_ND = torch.randn(count, width, generator=own).double()
    z_ND = z_ND + 0.2 * (z_ND[:, :1] ** 2 - 1)
    x_ND = (means_8D[labels_N] + scale * z_ND * size + shift * size) @ turn_DD
    return torch.relu(x_ND + 0.2).float(), labels_N


def distances(count: int, shift: float, scale: float, stratified: bool, repeats: int):
    real = gathered(drawn(8_000, 0.0, 1.0, seed=10**6)[0])
    found = []
    for seed in range(repeats):
        features_ND, labels_N = drawn(count, shift, scale, seed)
        fake = gathered(features_ND)
        error = frechet_error(fake, real, labels_N if stratified else None)
        found.append((frechet_distance(fake, real), error))
    return np.array(found, dtype=float).T


def test_the_standard_error_equals_the_spread_of_distances_of_redrawn_samples():
    values, errors = distances(512, 0.3, 0.9, stratified=True, repeats=120)
    assert np.mean(errors) == pytest.approx(values.std(ddof=1), rel=0.2)
    _, loose = distances(512, 0.3, 0.9, stratified=False, repeats=3)
    assert loose.mean() > errors[:3].mean()  # without strata the classes add variance


def test_too_few_images_have_no_standard_error():
    real = gathered(drawn(8_000, 0.0, 1.0, seed=10**6)[0])
    assert frechet_error(gathered(drawn(63, 0.3, 1.0, seed=0)[0]), real) is None
    assert frechet_error(gathered(drawn(64, 0.3, 1.0, seed=0)[0]), real) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "scale"), [(0.3, 0.9), (0.0, 0.8), (0.6, 1.1)])
@pytest.mark.parametrize("count", [256, 1024])
def test_the_interval_of_the_distance_has_nominal_coverage(count, shift, scale):
    values, errors = distances(count, shift, scale, stratified=True, repeats=400)
    inside = np.abs(values - values.mean()) <= 1.96 * errors
    assert 0.92 <= inside.mean() <= 0.98
