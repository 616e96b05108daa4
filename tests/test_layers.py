"""Attention, linear layers and the training loss against torch's plain operations."""

import pytest
import torch
import torch.nn.functional as F

from var_scaling.linear import Linear, linear
from var_scaling.models import attention
from var_scaling.models.attention import Attention, AttentionMask, attend, attend_in_parts
from var_scaling.models.cross_entropy import mean_cross_entropy
from var_scaling.pyramid import PAPER_256

# Short; with long groups after a short part; longer than a part with groups of one position; long
# on a GPU too.
GROUPS = [(1, 4, 9, 16), (1, 4, 9, 16, 36, 64), (1,) * 100, (30, 70), (1, 4, 16, 64, 100, 120)]
DEVICES = ["cpu", "cuda"]  # whose choice of parts is tested; all tests run on the CPU


def vectors(positions: int, heads: int = 3, channels: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(positions)
    drawn = torch.randn(3, 2, heads, positions, channels, generator=generator)
    return [part.clone().requires_grad_() for part in drawn]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", GROUPS, ids=str)
def test_attention_in_parts_is_attention_under_the_mask(lengths, device):
    mask, (q, k, v) = AttentionMask(lengths), vectors(sum(lengths))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.allowed_LL, scale=0.5)
    expected_grads = torch.autograd.grad(expected.square().sum(), (q, k, v))
    result = attend_in_parts(q, k, v, 0.5, mask, mask.parts[device])
    torch.testing.assert_close(result, expected)
    grads = torch.autograd.grad(result.square().sum(), (q, k, v))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-5)


def test_a_gpu_masks_only_the_short_first_scales_and_needs_no_mask_for_causal_attention():
    parts = AttentionMask([side**2 for side in PAPER_256]).parts["cuda"]
    assert parts == (
        (0, 155, "masked"), (155, 255, "all"), (255, 424, "all"), (424, 680, "all"),
    )  # fmt: skip
    assert AttentionMask([1] * 256).parts["cuda"] == ((0, 256, "causal"),)


@pytest.mark.parametrize("positions", [16, 100])
def test_attention_without_a_mask_sees_all_positions(positions):
    q, k, v = vectors(positions)
    expected = F.scaled_dot_product_attention(q, k, v, scale=0.5)
    torch.testing.assert_close(attend(q, k, v, 0.5, None), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", GROUPS, ids=str)
def test_the_parts_of_a_mask_cover_all_positions_once(lengths, device):
    mask = AttentionMask(lengths)
    edges = [part[:2] for part in mask.parts[device]]
    assert [start for start, _ in edges] == [0, *(stop for _, stop in edges[:-1])]
    assert edges[-1][1] == sum(lengths)
    # A part that needs no mask is one group, which ends where the part ends.
    for start, stop, kind in mask.parts[device]:
        assert mask.allowed_LL[start:stop, :stop].all() == (kind == "all")


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("rotated", [True, False])
def test_heads_that_are_read_in_place_give_the_attention_of_copied_heads(
    normalised, rotated, monkeypatch
):
    """A GPU reads them in place, a CPU copies them first."""
    torch.manual_seed(0)
    module, x_BLC = Attention(24, 3, normalised), torch.randn(2, 30, 24, requires_grad=True)
    mask, angles = AttentionMask((1, 4, 9, 16)), torch.rand(30, 4)
    rotary = (angles.cos(), angles.sin()) if rotated else None

    def output_and_gradients() -> list[torch.Tensor]:
        output = module(x_BLC, mask, rotary=rotary)
        return [output, *torch.autograd.grad(output.sum(), (x_BLC, *module.parameters()))]

    copied = output_and_gradients()
    in_place = attention._CHOICES["cpu"]._replace(copy_heads=False)
    monkeypatch.setitem(attention._CHOICES, "cpu", in_place)
    torch.testing.assert_close(output_and_gradients(), copied, rtol=1e-5, atol=1e-6)


def test_half_precision_keeps_the_scores_in_float32():
    # Scores up to 100: rounded to bf16 they would be wrong by up to .25.
    q, k, v = ((10 * part).detach().bfloat16() for part in vectors(16))
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=0.1)
    error = (attend(q, k, v, 0.1, None).float() - expected).abs().max() / expected.abs().max()
    assert error < 0.01


def test_normalised_attention_has_unit_queries_and_keys():
    torch.manual_seed(0)
    module, x_BLC = Attention(24, 3, normalised=True), torch.randn(2, 5, 24)
    module.scale_mul_1H11.data = torch.tensor([1.0, 2.0, 9.0]).view(1, 3, 1, 1)
    q, k, v = module.mat_qkv(x_BLC).unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4)
    temperature = module.scale_mul_1H11.exp().clamp_max(100)  # the third head is at the limit
    q, k = F.normalize(q, dim=-1) * temperature, F.normalize(k, dim=-1)
    h = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    expected = module.proj(h.transpose(1, 2).flatten(2))
    torch.testing.assert_close(module(x_BLC, None), expected)
    assert module(torch.zeros(2, 5, 24), None).isfinite().all()  # vectors of length 0


# Below and above the size from which oneDNN multiplies; more and fewer outputs than inputs.
SIZES = [(8, 24), (48, 192), (192, 48), (64, 64)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_linear_and_its_gradients_are_those_of_torch(inputs, outputs, bias):
    torch.manual_seed(0)
    ours, theirs = Linear(inputs, outputs, bias=bias), torch.nn.Linear(inputs, outputs, bias=bias)
    theirs.load_state_dict(ours.state_dict())  # the same names
    results = []
    for module in (ours, theirs):
        x = torch.linspace(-1, 1, 2 * 7 * inputs).view(2, 7, inputs).requires_grad_()
        module(x).sin().sum().backward()
        results.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_linear_computes_only_the_gradients_that_are_needed():
    weight, x = torch.ones(64, 64, requires_grad=True), torch.ones(4, 64)
    linear(x, weight).sum().backward()
    assert weight.grad is not None
    assert x.grad is None
    with torch.no_grad():
        assert linear(x, weight).grad_fn is None


def test_linear_follows_autocast_and_accepts_no_rows():
    weight = torch.ones(64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.ones(4, 64), weight).dtype == torch.bfloat16
    assert linear(torch.ones(2, 0, 64), weight).shape == (2, 0, 64)


@pytest.mark.parametrize(("inputs", "outputs"), [*SIZES, (128, 512), (384, 100)])
def test_a_row_of_a_linear_layer_does_not_depend_on_the_other_rows(inputs, outputs, one_thread):
    x = torch.randn(200, inputs, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1))
    together = linear(x, weight)
    for rows in (4, 5, 8, 30, 64, 99):
        for start in (0, 37):
            assert torch.equal(linear(x[start : start + rows], weight), together[start:][:rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_training_loss_is_cross_entropy(dtype):
    logits = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.arange(15).view(3, 5) % 11
    results = []
    for function in (
        lambda x: mean_cross_entropy(x, ids),
        lambda x: F.cross_entropy(x.flatten(0, 1).float(), ids.flatten()),
    ):
        x = logits.clone().requires_grad_()
        loss = function(x)
        (3 * loss).backward()
        results.append((loss.detach(), x.grad))
    (ours, our_grad), (theirs, their_grad) = results
    assert torch.equal(ours, theirs)  # the same value, bit for bit
    assert our_grad.dtype == dtype
    torch.testing.assert_close(our_grad, their_grad)


def test_the_training_loss_of_a_certain_mistake_is_finite():
    logits = torch.tensor([[[200.0, 0.0]]], requires_grad=True)
    loss = mean_cross_entropy(logits, torch.tensor([[1]]))
    loss.backward()
    assert loss == 200
    assert logits.grad.tolist() == [[[1.0, -1.0]]]


def test_short_sequences_are_multiplied_plainly(monkeypatch):
    calls, fused = [], F.scaled_dot_product_attention

    def count(*args, **options):
        calls.append(args)
        return fused(*args, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", count)
    attend(*vectors(30), 1.0, AttentionMask((1, 4, 9, 16)))
    assert not calls  # the fused kernel is slower here
    attend(*vectors(130), 1.0, AttentionMask((1, 4, 9, 16, 36, 64)))
    assert len(calls) == 2  # one for each long group
