"""The recorded results of the released code, for weights made by a formula; on any clone."""

from types import SimpleNamespace

import pytest
import reference_numbers
import torch
import torch.nn.functional as F
from reference_numbers import formula_state, images, numbers, some, uniform

from var_scaling.config import Tokenizer
from var_scaling.models.logits import filter_logits
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.models.var.model import VAR
from var_scaling.models.var.sampler import sample_tokens
from var_scaling.pyramid import Pyramid
from var_scaling.recipe import Optimiser
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training.optim import ScheduledOptimizer, learning_rate_at, weight_decay_at

WANTED = numbers()
T = Tokenizer(
    name="formula", pyramid=Pyramid(patch_nums=(1, 2, 3, 4)), codebook_size=64, code_channels=8,
    channels=32, multipliers=(1, 1, 2, 2, 4), residual_blocks=2, phi_convolutions=4,
    phi_strength=0.5,
)  # fmt: skip
LABELS = torch.tensor([3, 7])
CLASSES = 10
KINDS = {"var": False, "var_saln": True}


def by_formula(module: torch.nn.Module, salt: str) -> None:
    """Load the weights of the formula; names are those of the released state dicts."""
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    module.load_state_dict(formula_state(shapes, salt), strict=True)


def check_close(ours: torch.Tensor | float, theirs: list[float] | float, bar: float = 2e-4) -> None:
    ours, theirs = torch.as_tensor(ours, dtype=torch.float64), torch.tensor(theirs).double()
    assert ours.shape == theirs.shape
    worst = (ours - theirs).abs().max()
    assert worst <= bar * (1 + theirs.abs().max()), f"off by {worst:.2e}"


def check_gradient_norms(module: torch.nn.Module, expected: dict) -> None:
    found = dict(module.named_parameters())
    for name, norm in expected["gradient_norms"].items():
        check_close(found[name].grad.norm().item(), norm, 1e-3)
    every = [one.grad for one in found.values() if one.grad is not None]
    check_close(torch.nn.utils.get_total_norm(every).item(), expected["gradient_norm"], 1e-3)


@pytest.fixture(scope="module")
def model() -> MultiScaleVQVAE:
    module = MultiScaleVQVAE(T)
    by_formula(module, "vqvae")
    return module.eval()


@pytest.fixture(scope="module", params=KINDS)
def transformer(request) -> tuple[VAR, dict]:
    config = VarModel(depth=2, width_per_depth=64, shared_adaln=KINDS[request.param])
    assert config.heads == 2
    module = VAR(config, T, CLASSES, seed=0)
    by_formula(module, request.param)
    return module.eval(), WANTED[request.param]


def test_the_formula_of_weights_and_images_has_not_changed():
    """The first weights and pixels equal those recorded in the file."""
    assert (32768 * uniform("vqvae:encoder.conv_in.weight", (4,))).tolist() == [
        -25737.5, 8345.5, 28032.5, 140.5,
    ]  # fmt: skip
    assert reference_numbers.FILE.stat().st_size < 100_000
    assert "78b9539" in WANTED["origin"]
    assert images().abs().max() <= 1


@torch.no_grad()
def test_tokens_of_images_equal_those_of_the_released_code(model):
    expected = WANTED["vqvae"]
    check_close(torch.tensor(some(model.features(images()))), expected["features"])
    ids = model.encode(images())
    assert ids.tolist() == expected["ids"]
    assert len(ids.unique()) > 16  # more than one token is used
    check_close(torch.tensor(some(model.quantize.decode(ids))), expected["f_hat"])
    rebuilt = model.render(model.quantize.decode(ids))
    check_close(torch.tensor(some(rebuilt)), expected["reconstruction"])
    assert torch.equal(model.decode(ids), rebuilt.clamp(-1, 1))
    check_close(torch.tensor(some(model.quantize.teacher_input(ids))), expected["teacher_input"])


def test_the_training_step_of_the_tokenizer_equals_the_reference(model):
    expected = WANTED["vqvae"]["training"]
    model.zero_grad()
    rebuilt, quantized = model(images(), 0.25, quantised=True)
    error = F.mse_loss(rebuilt, images())
    (error + quantized.loss).backward()
    check_close(error.item(), expected["mse"])
    check_close(quantized.loss.item(), expected["quantisation"])
    check_gradient_norms(model, expected)


def test_logits_losses_and_gradients_equal_the_reference(model, transformer):
    module, expected = transformer
    ids = torch.tensor(WANTED["vqvae"]["ids"])
    with torch.no_grad():
        shown = model.quantize.teacher_input(ids)
        without = module(torch.full_like(LABELS, CLASSES), shown)
    check_close(torch.tensor(some(without)), expected["logits_uncond"])
    module.zero_grad()
    logits = module(LABELS, shown)
    check_close(torch.tensor(some(logits)), expected["logits"])
    losses = F.cross_entropy(logits.movedim(-1, 1), ids, reduction="none")
    check_close(losses.mean().item(), expected["loss"])
    parts = losses.split(list(T.pyramid.lengths), dim=1)
    check_close(torch.stack([part.mean() for part in parts]).detach(), expected["loss_parts"])
    losses.mean().backward()
    check_gradient_norms(module, expected)


@torch.no_grad()
def test_greedy_guided_sampling_equals_the_released_code(model, transformer):
    module, expected = transformer
    greedy = VarSampling(guidance=1.5, top_k=1, top_p=0)
    halves = SimpleNamespace(
        uniforms=lambda purpose, shapes: [torch.full((2, *shape), 0.5) for shape in shapes]
    )
    drawn = list(sample_tokens(module, model.quantize, LABELS, greedy, halves))
    assert torch.cat([step.ids_BS for step in drawn], 1).tolist() == expected["greedy_ids"]
    image = (model.render(drawn[-1].f_BZHH).clamp(-1, 1) + 1) / 2
    check_close(torch.tensor(some(image)), expected["greedy_image"])


def test_weights_without_decay_are_those_of_the_released_code(transformer):
    module, expected = transformer
    optimizer = ScheduledOptimizer(module, Optimiser(learning_rate=1e-4), 10, "fp32")
    plain = {
        id(parameter)
        for group in optimizer.adamw.param_groups
        if not group["decayed"]
        for parameter in group["params"]
    }
    found = sorted(name for name, one in module.named_parameters() if id(one) in plain)
    assert found == expected["undecayed"]


DECAYS = {  # schedule: (decay, share of the steps after warm-up where it bends)
    "lin0": ("linear", 0.05),
    "lin": ("linear", 0.15),
    "lin00": ("linear", 0.0),
    "lin0.8": ("two_slopes", 0.8),
    "cos": ("cosine", 0.0),
    "exp": ("exponential", 0.15),
}


@pytest.mark.parametrize("name", DECAYS)
def test_schedules_equal_those_of_the_released_code(name):
    expected = WANTED["schedules"][name]
    s, (decay, bend) = expected["settings"], DECAYS[name]
    config = Optimiser(
        learning_rate=s["peak_lr"], weight_decay=s["wd"], final_weight_decay=s["wd_end"],
        warm_up=s["wp_it"] / s["max_it"], warm_up_from=s["wp0"], decay=decay, plateau=bend,
        final=s["wpe"],
    )  # fmt: skip
    assert len(expected["points"]) == 11
    for step, rate, weight_decay in expected["points"]:
        assert learning_rate_at(config, step, s["max_it"]) == pytest.approx(rate, rel=1e-9)
        assert weight_decay_at(config, step, s["max_it"]) == pytest.approx(weight_decay, rel=1e-9)


@pytest.mark.parametrize(
    "expected", WANTED["filters"], ids=lambda w: f"k{w['top_k']} p{w['top_p']}"
)
def test_top_k_and_top_p_keep_the_same_codes(expected):
    logits = torch.from_numpy(4 * uniform("filter", (3, 2, 24))).float()
    kept = filter_logits(logits, expected["top_k"], expected["top_p"]).isfinite()
    assert [[row.nonzero().flatten().tolist() for row in one] for one in kept] == expected["kept"]
