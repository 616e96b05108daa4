"""DiT: its paths and samplers against an exact denoiser, its network, its validation loss."""

import itertools
import math

import pytest
import torch
from conftest import images, tokenizer

from var_scaling.accounting import total
from var_scaling.experiment import Trial
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.sample import sample
from var_scaling.ladder import tiny_optimiser
from var_scaling.models.base import Batch, ModelSpec, StepDraws
from var_scaling.models.dit.config import (
    DitModel,
    DitSampling,
    published_dit,
    sampling_times,
    tiny_dit,
)
from var_scaling.models.dit.diffusion import (
    Schedule,
    clean_of_velocity,
    epsilon_of_velocity,
    on_path,
    posterior,
    velocity_of_epsilon,
)
from var_scaling.models.dit.model import DiT
from var_scaling.models.dit.objective import variance_bound
from var_scaling.models.dit.sampler import clean_estimates
from var_scaling.models.registry import family_named
from var_scaling.tokenizer.cache import LatentStatistics
from var_scaling.tokenizer.model import MultiScaleVQVAE

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 5
T = tokenizer()  # grid side 4, 4 channels
FAMILY = family_named("dit")

# An exact denoiser --------------------------------------------------------------------------------

# A mixture of two Gaussians in the plane, each with its weight, mean and covariance.
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
MEANS = torch.tensor([[2.0, -1.0], [-1.0, 0.5]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.6]]], dtype=torch.float64
)
MEAN = WEIGHTS @ MEANS
_CENTRED = MEANS - MEAN
COVARIANCE = (WEIGHTS[:, None, None] * COVARIANCES).sum(0) + _CENTRED.T @ (
    WEIGHTS[:, None] * _CENTRED
)
COUNT = 20_000


def exact_clean(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
    """E[x_0 | x] where x = alpha x_0 + sigma ε."""
    eye = torch.eye(2, dtype=torch.float64)
    logs, means = [], []
    for weight, mean, covariance in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
        noisy = alpha**2 * covariance + sigma**2 * eye
        gap = x - alpha * mean
        solved = torch.linalg.solve(noisy, gap.T).T
        logs.append(weight.log() - 0.5 * torch.logdet(noisy) - 0.5 * (gap * solved).sum(1))
        means.append(mean + alpha * solved @ covariance)
    shares = torch.stack(logs).softmax(0)
    return (shares[..., None] * torch.stack(means)).sum(0)


def exact(model: DitModel):
    """The exact denoiser in place of the network."""
    schedule = Schedule(model.schedule_steps)

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        if model.prediction == "velocity":
            clean = exact_clean(x, 1 - t, t)
            return (x - clean) / t  # (ε - x_0) on the straight path
        bar = schedule.alpha_bar(t)
        clean = exact_clean(x, math.sqrt(bar), math.sqrt(1 - bar))
        return (x - math.sqrt(bar) * clean) / math.sqrt(1 - bar)

    return predict


def drawn(
    model: DitModel, sampler: str, steps: int, predict=None, count: int = COUNT
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)

    def normal(step: int = 0) -> torch.Tensor:
        return torch.randn(count, 2, dtype=torch.float64, generator=generator)

    sampling = DitSampling(steps=steps, sampler=sampler)
    *_, last = clean_estimates(model, predict or exact(model), normal(), sampling, normal)
    return last


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.mean(0), torch.cov(x.T)


def frechet(x: torch.Tensor) -> float:
    """Fréchet distance of samples to the mixture's own Gaussian."""
    mean, covariance = moments(x)
    root = torch.linalg.eigvals(covariance @ COVARIANCE).sqrt().real.sum()
    return float((mean - MEAN).square().sum() + covariance.trace() + COVARIANCE.trace() - 2 * root)


VELOCITY, EPSILON = DitModel(depth=1), DitModel(depth=1, prediction="epsilon")
SAMPLERS = [(VELOCITY, "ode"), (VELOCITY, "sde"), (EPSILON, "ode"), (EPSILON, "sde")]


@pytest.mark.parametrize(("model", "sampler"), SAMPLERS)
def test_samples_of_an_exact_denoiser_have_the_exact_moments(model, sampler):
    mean, covariance = moments(drawn(model, sampler, 250))
    deviation = COVARIANCE.diagonal().sqrt()
    assert ((mean - MEAN).abs() < 0.03 * deviation).all()
    assert ((covariance - COVARIANCE).abs() < 0.03 * deviation[:, None] * deviation).all()


@pytest.mark.parametrize("model", [VELOCITY, EPSILON])
def test_the_error_falls_in_proportion_to_the_step(model):
    """Relative to 1,000 steps with the same noise: half the steps give twice the error."""
    finest = drawn(model, "ode", 1000, count=2_000)
    errors = [
        float((drawn(model, "ode", steps, count=2_000) - finest).square().mean().sqrt())
        for steps in (25, 50, 100)
    ]
    # The reference with 1,000 steps has an error too, so the ratio is a little above 2.
    assert all(1.8 < coarse / fine < 2.5 for coarse, fine in itertools.pairwise(errors))


def test_velocity_and_noise_convert_into_each_other():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1000, 3, dtype=torch.float64, generator=generator)
    for t in (0.01, 0.3, 0.9, 0.99):
        x = on_path(clean, noise, torch.full((1000,), t, dtype=torch.float64))
        velocity = noise - clean
        epsilon = epsilon_of_velocity(velocity, x, t)
        torch.testing.assert_close(epsilon, noise, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(clean_of_velocity(velocity, x, t), clean, atol=1e-5, rtol=1e-5)
        back = velocity_of_epsilon(epsilon, x, t)
        torch.testing.assert_close(back, velocity, atol=1e-5, rtol=1e-5)


def test_the_sampling_steps_span_the_whole_schedule():
    assert sampling_times(EPSILON, 1000) == tuple((1000 - n) / 1000 for n in range(1000))
    assert sampling_times(EPSILON, 4) == (1.0, 0.667, 0.334, 0.001)
    assert sampling_times(VELOCITY, 4) == (1.0, 0.75, 0.5, 0.25)
    schedule = Schedule(1000)
    assert [schedule.number(t) for t in sampling_times(EPSILON, 4)] == [999, 666, 333, 0]
    assert schedule.alpha_bar(1.0) == pytest.approx(4.0e-5, rel=0.05)  # arXiv 2006.11239


def test_the_variational_bound_is_smallest_at_the_true_variance():
    """For a known x_0 the variance of the posterior has divergence 0."""
    schedule = Schedule(1000)
    clean = torch.zeros(1, 2, 1, 1)
    numbers = torch.tensor([500])
    x = schedule.noised(clean, torch.ones_like(clean), numbers)
    bounds = {
        value: float(
            variance_bound(
                clean, x, torch.ones_like(clean), torch.full_like(clean, value), numbers, schedule
            )
        )
        for value in (-2.0, -1.0, 1.0)
    }
    assert bounds[-1.0] == pytest.approx(0, abs=1e-6)  # -1 stands for β̃
    assert bounds[-1.0] < bounds[-2.0]
    assert bounds[-1.0] < bounds[1.0]
    here, there = float(schedule.alpha_bars_N[500]), float(schedule.alpha_bars_N[499])
    assert posterior(clean, x, here, there)[2] == pytest.approx(float(schedule.betas_N[500]))


# The network --------------------------------------------------------------------------------------


def model_of(**changes) -> DitModel:
    return tiny_dit(2).model_copy(update=changes)


MODELS = {
    "patch 1": model_of(),
    "patch 2": model_of(patch=2),
    "patch 4": model_of(patch=4),
    "epsilon": model_of(prediction="epsilon"),
    "learned variance": model_of(prediction="epsilon", learned_variance=True),
}


@pytest.fixture(scope="module")
def vqvae():
    return MultiScaleVQVAE(T).eval().requires_grad_(False)


def network_of(model: DitModel, loud: bool = True) -> DiT:
    network = DiT(model, T, CLASSES, seed=0)
    torch.manual_seed(0)
    if loud:
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    FAMILY.normalize(network, LatentStatistics((0.1, 0, -0.2, 0), (0.5, 1, 2, 1)))
    return network.eval().requires_grad_(False)


def batch_of(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(T.codebook_size, (count, T.pyramid.length), generator=generator)
    return Batch(ids, torch.arange(count) % CLASSES)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_prediction_is_exactly_zero(name):
    network = network_of(MODELS[name], loud=False)
    out = network(torch.randn(3, 4, 4, 4), torch.rand(3), torch.arange(3))
    assert out.shape == (3, 8 if MODELS[name].learned_variance else 4, 4, 4)
    assert not out.any()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patchify_and_unpatchify_are_inverse(patch):
    network = network_of(model_of(patch=patch))
    x = torch.arange(2 * 4 * 4 * 4.0).view(2, 4, 4, 4)
    values = network.patches(x)
    assert values.shape == (2, (4 // patch) ** 2, 4 * patch**2)
    channels_last = values.unflatten(2, (4, patch, patch)).permute(0, 1, 3, 4, 2).flatten(2)
    assert torch.equal(network.grid(channels_last), x)


@pytest.mark.parametrize("name", MODELS)
def test_counted_parameters_equal_those_of_the_module(name):
    spec = ModelSpec(MODELS[name], T, CLASSES)
    numel = sum(parameter.numel() for parameter in network_of(MODELS[name]).parameters())
    assert total(FAMILY.parameters(spec)) == numel


def test_denormalisation_inverts_normalisation_of_the_grid():
    network, grid = network_of(model_of()), torch.randn(2, 4, 4, 4)
    x = network.normalized(grid)
    torch.testing.assert_close(x[:, 2], (grid[:, 2] + 0.2) / 2)
    torch.testing.assert_close(network.denormalized(x), grid)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampler", ["ode", "sde"])
def test_a_sample_does_not_depend_on_the_batch_size(name, sampler, vqvae):
    spec, network = ModelSpec(MODELS[name], T, CLASSES), network_of(MODELS[name])
    requested = [Request(number % (CLASSES + 1), number) for number in range(7)]
    sampling = DitSampling(guidance=0.7, steps=5, sampler=sampler, interval=(0.1, 0.9))
    (together,) = sample(spec, network, vqvae, requested, sampling, seed=3, batch=7, strips=True)
    alone = list(sample(spec, network, vqvae, requested, sampling, seed=3, batch=1))
    assert together.ids_BL is None
    assert torch.equal(together.images_BWW3, torch.cat([one.images_BWW3 for one in alone]))
    assert together.strips_BKWW3.shape[1] == len(FAMILY.frames(spec, sampling)) == 5


def test_guidance_applies_only_within_its_interval(vqvae):
    spec, network = ModelSpec(model_of(), T, CLASSES), network_of(model_of())

    def images_with(**settings):
        sampling = DitSampling(steps=4, **settings)
        (found,) = sample(spec, network, vqvae, [Request(1, 0)], sampling, seed=0, batch=1)
        return found.images_BWW3

    none = images_with(guidance=0.0)
    assert torch.equal(images_with(guidance=5.0, interval=(0.1, 0.2)), none)  # between two times
    assert not torch.equal(images_with(guidance=5.0, interval=(0.2, 0.3)), none)
    never, always = ({"guidance": 5.0, "interval": span} for span in ((0.1, 0.2), (0.0, 1.0)))
    flops = [
        FAMILY.batch_flops(spec, DitSampling(steps=4, **words), 3) for words in (never, always)
    ]
    assert flops[1] == 2 * flops[0] == 2 * 4 * 3 * total(FAMILY.forward_flops(spec))


@pytest.mark.parametrize("name", MODELS)
def test_validation_is_a_function_of_weights_and_image(name, vqvae):
    spec, network = ModelSpec(MODELS[name], T, CLASSES), network_of(MODELS[name])
    batch = batch_of(6)
    rows = [0, 8, 16, 24, 32, 40]
    (together,) = FAMILY.validate(spec, network, vqvae.quantize, batch, rows)
    assert together.shape == (6, 8)
    for place, row in enumerate(rows):
        one = Batch(*(part[place : place + 1] for part in batch))
        (alone,) = FAMILY.validate(spec, network, vqvae.quantize, one, [row])
        torch.testing.assert_close(alone[0], together[place], rtol=1e-5, atol=0)
    (other,) = FAMILY.validate(spec, network, vqvae.quantize, batch, [row + 1 for row in rows])
    assert not torch.allclose(together, other)


@pytest.mark.parametrize("name", MODELS)
def test_a_slice_of_the_batch_gets_the_random_numbers_of_the_whole_batch(name, vqvae):
    spec, network, batch = (
        ModelSpec(MODELS[name], T, CLASSES),
        network_of(MODELS[name]),
        batch_of(8),
    )

    def loss_of(share: slice, step: int = 5) -> torch.Tensor:
        part, draws = batch.each(lambda rows: rows[share]), StepDraws(0, step, 8, share)
        part = part._replace(numbers=FAMILY.random_numbers(spec, draws))
        return FAMILY.loss(spec, network, vqvae.quantize, part, draws)

    halves = (loss_of(slice(0, 4)) + loss_of(slice(4, 8))) / 2
    torch.testing.assert_close(loss_of(slice(0, 8)), halves, rtol=1e-5, atol=1e-6)
    other = loss_of(slice(0, 8), step=6)
    assert not torch.allclose(loss_of(slice(0, 8)), other)


@pytest.mark.slow
def test_a_network_trained_on_the_mixture_is_near_the_exact_denoiser():
    """Points of the plane as grids of two channels and side 1."""
    one = tokenizer(pyramid={"patch_nums": (1,)}, code_channels=2, data=images(side=4))
    model = DitModel(depth=2, width_per_depth=16, time_channels=32)
    network = DiT(model, one, classes=1, seed=0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    cholesky = torch.linalg.cholesky(COVARIANCES)
    steps, labels_B = 600, torch.zeros(256, dtype=torch.long)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, (steps - step) / 300)
        which = torch.multinomial(WEIGHTS, 256, replacement=True, generator=generator)
        clean = torch.randn(256, 2, dtype=torch.float64, generator=generator)
        clean = MEANS[which] + torch.einsum("bij,bj->bi", cholesky[which], clean)
        clean = clean.float()[..., None, None]
        noise = torch.randn(clean.shape, generator=generator)
        t_B = torch.rand(256, generator=generator)
        out = network(on_path(clean, noise, t_B), t_B, labels_B)
        loss = (out - (noise - clean)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        grid, many = x.float()[..., None, None], torch.zeros(len(x), dtype=torch.long)
        return network(grid, torch.full((len(x),), t), many)[..., 0, 0].double()

    exactly, trained = (frechet(drawn(model, "ode", 20, way, 5_000)) for way in (None, predict))
    assert trained < 2 * exactly


# Bad input ----------------------------------------------------------------------------------------


def test_a_patch_that_does_not_divide_the_grid_is_refused():
    with pytest.raises(
        ValueError, match=r"model.patch = 3: does not divide the grid side 4; use 1, 2 or 4"
    ):
        Trial(
            name="a", tokenizer=T, data=images(), model=model_of(patch=3),
            optimiser=tiny_optimiser(8), batch_size=8, steps=4,
        )  # fmt: skip


def test_more_steps_than_the_schedule_are_refused():
    spec = ModelSpec(model_of(prediction="epsilon"), T, CLASSES)
    with pytest.raises(
        ValueError, match="steps = 1001: the model was trained on a schedule of 1000"
    ):
        FAMILY.frames(spec, DitSampling(steps=1001))
    assert len(FAMILY.frames(ModelSpec(model_of(), T, CLASSES), DitSampling(steps=1001))) == 8


def test_a_cache_without_statistics_is_refused():
    with pytest.raises(ValueError, match=r"manifest.json has none"):
        FAMILY.normalize(DiT(model_of(), T, CLASSES, seed=0), None)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DitModel(depth=3, width_per_depth=2, fixed_heads=1), "multiple of 4"),
        (lambda: DitModel(depth=2, learned_variance=True), "only with prediction = epsilon"),
        (lambda: DitSampling(interval=(0.9, 0.1)), "the first must not exceed the second"),
        (lambda: DitSampling(guidance=-1), "greater than or equal to 0"),
        (lambda: published_dit("XXL", 2), "unknown size; use S, B, L, XL"),
        (lambda: published_dit("XL", 2).at_depth(3), "depth cannot be varied"),
    ],
)
def test_wrong_settings_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_channel_that_never_changes_is_refused():
    statistics = LatentStatistics((0.0,) * 4, (1.0, 0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="channels 1 of the grid are the same in all images"):
        FAMILY.normalize(DiT(model_of(), T, CLASSES, seed=0), statistics)


def test_the_lowest_learned_variance_is_that_of_the_posterior():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, dtype=torch.float64, generator=generator)
    steps = [torch.randn(100, 2, dtype=torch.float64, generator=generator) for _ in range(10)]
    learned = DitModel(depth=1, prediction="epsilon", learned_variance=True)
    predict = exact(EPSILON)

    def both(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.cat([predict(x, t), torch.full_like(x, -1.0)], dim=1)

    sampling = DitSampling(steps=10, sampler="sde")
    *_, fixed = clean_estimates(EPSILON, predict, x, sampling, steps.__getitem__)
    *_, least = clean_estimates(learned, both, x, sampling, steps.__getitem__)
    torch.testing.assert_close(fixed, least, rtol=1e-6, atol=1e-8)
