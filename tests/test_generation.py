"""Samples: cached equals uncached, independent of the batch, kept tokens unchanged."""

import pytest
import torch
from conftest import tokenizer
from hypothesis import given
from hypothesis import strategies as st

from var_scaling.experiment.sample_set import Request
from var_scaling.generation.sample import RequestDraws, sample
from var_scaling.models.base import KeptTokens, ModelSpec
from var_scaling.models.logits import apply_guidance, filter_logits, mix_codes, sample_ids
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.models.var.model import VAR
from var_scaling.models.var.sampler import VARSampler, sample_tokens
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE

CLASSES = 8
CPU = torch.device("cpu")
VARIANTS = [
    VarModel(depth=2, width_per_depth=8),
    VarModel(depth=2, width_per_depth=8, shared_adaln=True),
    VarModel(depth=3, width_per_depth=16, normalised_attention=False),
]


def restless(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights for all parts: at initialisation gammas, head and codes are near zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval().requires_grad_(False)


def pair(model: VarModel = VARIANTS[0], patch_nums=(1, 2, 4)):
    t = tokenizer(pyramid=Pyramid(patch_nums=patch_nums))
    return restless(VAR(model, t, CLASSES, seed=0)), restless(MultiScaleVQVAE(t))


def spec_of(module: VAR, vqvae: MultiScaleVQVAE) -> ModelSpec:
    return ModelSpec(module.config, tokenizer(pyramid=vqvae.quantize.pyramid), module.classes)


def drawn_from(module: VAR, vqvae: MultiScaleVQVAE, *words, **more):
    return sample(spec_of(module, vqvae), module, vqvae, *words, **more)


def requests(count: int) -> list[Request]:
    return [Request(number % (CLASSES + 1), number // 3) for number in range(count)]


def drawn_by(module, vqvae, requested, sampling, kept=None):
    labels = torch.tensor([request.label for request in requested])
    return list(
        sample_tokens(
            module, vqvae.quantize, labels, sampling, RequestDraws(0, requested, CPU), kept
        )
    )


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("guidance", [0.0, 1.5, (2.0, 0.0, 1.0), (1.0, 0.5, 0.0), (3.0, 0.0, 0.0)])
def test_cached_logits_are_those_of_the_full_forward(model, guidance):
    """Logits do not depend on which scales are guided, and so on which rows run."""
    module, vqvae = pair(model)
    requested = requests(5)
    sampling = VarSampling(guidance=guidance)
    steps = drawn_by(module, vqvae, requested, sampling)
    ids_BL = torch.cat([step.ids_BS for step in steps], 1)
    shown = vqvae.quantize.teacher_input(ids_BL)
    labels = torch.tensor([request.label for request in requested])
    conditional_logits = vqvae.quantize.scales_of(module(labels, shown))
    unconditional_logits = vqvae.quantize.scales_of(module(torch.full_like(labels, CLASSES), shown))
    for step, cond_BSV, uncond_BSV in zip(
        steps, conditional_logits, unconditional_logits, strict=True
    ):
        weight = sampling.at_scale(step.k, 3).guidance
        expected = apply_guidance(cond_BSV, uncond_BSV, weight)
        torch.testing.assert_close(step.logits_BSV, expected, rtol=1e-4, atol=1e-4)


def test_no_unconditional_row_is_computed_at_weight_0():
    """The number of rows that run at each scale; the first scale has one unconditional row.

    It occurs three times, so that a batch of one rounds as any other batch.
    """
    module, vqvae = pair()
    seen: list[int] = []
    module.blocks[0].register_forward_hook(lambda block, given, out: seen.append(len(out)))
    for guidance, rows in (
        (0.0, [8, 5, 5]),
        ((1.0, 0.0, 0.0), [8, 5, 5]),
        ((0.0, 1.0, 0.0), [8, 10, 5]),
        (1.5, [8, 10, 10]),
    ):
        seen.clear()
        drawn_by(module, vqvae, requests(5), VarSampling(guidance=guidance))
        assert seen == rows, guidance


def test_adaln_is_computed_once_per_image():
    module, vqvae = pair()
    calls: list[int] = []
    module.blocks[1].ada_lin.register_forward_hook(lambda *ignored: calls.append(1))
    drawn_by(module, vqvae, requests(5), VarSampling())
    assert len(calls) == 1


@pytest.mark.parametrize(
    "sampling", [VarSampling(), VarSampling(guidance=0), VarSampling(smooth=True)]
)
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(sampling):
    """Tokens and images are bitwise equal in batches of 1, 3 and 16, and in reverse order."""
    module, vqvae = pair(patch_nums=(1, 2, 3, 4))
    requested = requests(16)
    alone = list(drawn_from(module, vqvae, requested, sampling, 7, batch=1, strips=True))
    for order, batch in ((requested, 3), (requested, 16), (requested[::-1], 5)):
        found = {}
        for part in sample(
            spec_of(module, vqvae), module, vqvae, order, sampling, 7, batch=batch, strips=True
        ):
            rows = zip(part.ids_BL, part.images_BWW3, part.strips_BKWW3, strict=True)
            found |= dict(zip(part.requests, rows, strict=True))
        for part in alone:
            ids, image, strip = found[part.requests[0]]
            assert torch.equal(ids, part.ids_BL[0])
            assert torch.equal(image, part.images_BWW3[0])
            assert torch.equal(strip, part.strips_BKWW3[0])
            assert torch.equal(strip[-1], image)


def test_another_seed_class_or_index_gives_another_sample():
    module, vqvae = pair(patch_nums=(1, 2, 3, 4))

    def ids(seed: int, label: int, index: int):
        (found,) = sample(
            spec_of(module, vqvae),
            module,
            vqvae,
            [Request(label, index)],
            VarSampling(),
            seed,
            batch=1,
        )
        return found.ids_BL

    first = ids(0, 1, 0)
    assert torch.equal(first, ids(0, 1, 0))
    assert not any(torch.equal(first, ids(*other)) for other in ((1, 1, 0), (0, 2, 0), (0, 1, 1)))


def test_sampling_does_not_depend_on_training_mode():
    """The released sampler applies drop path if the model is in training mode."""
    module, vqvae = pair()
    requested = requests(3)
    quiet = drawn_by(module, vqvae, requested, VarSampling())
    module.train()
    loud = drawn_by(module, vqvae, requested, VarSampling())
    assert module.training
    assert all(torch.equal(a.logits_BSV, b.logits_BSV) for a, b in zip(quiet, loud, strict=True))


@pytest.mark.parametrize("smooth", [False, True])
def test_kept_tokens_do_not_change(smooth):
    module, vqvae = pair(patch_nums=(1, 2, 4))
    requested = requests(4)
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(32, (4, 21), generator=generator)
    mask = torch.rand(4, 21, generator=generator) < 0.5
    steps = drawn_by(module, vqvae, requested, VarSampling(smooth=smooth), KeptTokens(given, mask))
    ids = torch.cat([step.ids_BS for step in steps], 1)
    chose = torch.cat([step.sampled_BS for step in steps], 1)
    assert torch.equal(ids[mask], given[mask])
    assert torch.equal(ids[~mask], chose[~mask])
    assert not torch.equal(chose[mask], given[mask])
    everything = KeptTokens(given, torch.ones_like(mask))
    steps = drawn_by(module, vqvae, requested, VarSampling(smooth=smooth), everything)
    torch.testing.assert_close(steps[-1].f_BZHH, vqvae.quantize.decode(given))


def test_a_single_scale_has_the_guidance_of_the_last_scale():
    """With one scale, k / (K - 1) is undefined."""
    module, vqvae = pair(patch_nums=(4,))
    requested = requests(3)
    (step,) = drawn_by(module, vqvae, requested, VarSampling(guidance=2.0))
    labels = torch.tensor([request.label for request in requested])
    shown = vqvae.quantize.teacher_input(step.ids_BS)
    null_class = torch.full_like(labels, CLASSES)
    expected = apply_guidance(module(labels, shown), module(null_class, shown), 2.0)
    torch.testing.assert_close(step.logits_BSV, expected, rtol=1e-4, atol=1e-4)


# From logits to codes ----------------------------------------------------------------------------


def test_draws_follow_the_softmax():
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0]).expand(1, 200_000, 4)
    uniform = torch.rand(1, 200_000, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(sample_ids(logits, uniform)[0], minlength=4) / 200_000
    torch.testing.assert_close(shares, logits[0, 0].softmax(-1), atol=4e-3, rtol=0)
    assert shares[2] == 0


@given(st.integers(0, 2**32), st.sampled_from([0.0, 1 - 2**-24]), st.integers(1, 6))
def test_the_smallest_and_largest_random_numbers_draw_only_allowed_codes(seed, end, top_k):
    logits = 40 * torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(seed))
    allowed = filter_logits(logits, top_k, 0.9)
    ids = sample_ids(allowed, torch.full((1, 3), end))
    assert torch.isfinite(allowed.gather(-1, ids[..., None])).all()


@given(st.integers(0, 2**32), st.integers(0, 9), st.floats(0, 1))
def test_filters_keep_the_likeliest_codes(seed, k, p):
    logits = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
    kept = torch.isfinite(filter_logits(logits, k, p))
    assert kept.gather(-1, logits.argmax(-1, keepdim=True)).all()
    least_kept = logits.masked_fill(~kept, torch.inf).amin(-1)
    most_dropped = logits.masked_fill(kept, -torch.inf).amax(-1)
    assert (least_kept >= most_dropped).all()
    if k:
        assert (kept.sum(-1) <= k).all()


def test_all_ties_at_rank_k_are_kept():
    logits = torch.tensor([[[1.0, 0.0, 1.0, 1.0]]])
    assert torch.isfinite(filter_logits(logits, 2, 0)).tolist() == [[[True, False, True, True]]]


def test_top_p_counts_every_tie_at_rank_k():
    """Rows with ties take another code path; the result equals that of one sort of all rows."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-4, 4, (4, 16, 12), generator=generator) / 2
    logits[::2] += torch.randn(2, 16, 12, generator=generator)  # together with rows without ties
    for k in (1, 3, 7):
        least = logits.topk(k).values[..., -1:]
        alone = filter_logits(logits.masked_fill(logits < least, -torch.inf), 0, 0.8)
        shares = filter_logits(logits, k, 0.8).softmax(-1).sort(-1).values
        torch.testing.assert_close(shares, alone.softmax(-1).sort(-1).values)


def mixture(logits, uniform, k: int, scales: int, codes):
    at = VarSampling(smooth=True).at_scale(k, scales)
    return mix_codes(logits, uniform, at.sharpening, at.tau, codes)


def test_a_smooth_sample_averages_allowed_codes_and_is_nearly_one_code_at_the_end():
    codes = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([[[0.0, 1.0, -torch.inf, 2.0, 0.5]]])
    uniform = torch.rand(1, 1, 5, generator=torch.Generator().manual_seed(1))
    sharp = mixture(logits, uniform, 9, 10, codes)
    assert (sharp - codes).norm(dim=-1).min() < 1e-3
    soft = mixture(logits, uniform, 0, 10, codes)
    without = mixture(logits, uniform, 0, 10, codes.index_fill(
        0, torch.tensor([2]), 1e6
    ))  # fmt: skip
    assert torch.equal(soft, without)


def test_a_random_number_of_0_gives_a_finite_mixture():
    codes = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([[[-torch.inf, 1.0, -torch.inf]]])
    found = mixture(logits, torch.zeros(1, 1, 3), 0, 3, codes)
    assert torch.equal(found[0], codes[1:2])


@pytest.mark.parametrize("extreme", [{"guidance": 1e38}, {"temperature": 1e-39}])
def test_settings_that_leave_no_finite_logits_are_refused(extreme):
    module, vqvae = pair()
    with pytest.raises(ValueError, match=r"the logits of scale \d are not finite"):
        drawn_by(module, vqvae, requests(2), VarSampling(rising=False, **extreme))


# Settings ----------------------------------------------------------------------------------------


def test_guidance_rises_linearly_unless_constant_or_given_per_scale():
    steps = VarSampling(guidance=1.5).steps(4)
    assert [at.guidance for at in steps] == [0, 0.5, 1.0, 1.5]
    assert [at.guidance for at in VarSampling(guidance=2.0, rising=False).steps(3)] == [2, 2, 2]
    assert [at.guidance for at in VarSampling(guidance=(0, 4, 1)).steps(3)] == [0, 4, 1]
    released = [at.tau for at in VarSampling(smooth=True).steps(3)]
    assert released == pytest.approx([0.27, 0.27 * 0.525, 0.27 * 0.05])


def test_a_list_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"top_k = \[1, 2\]: 2 values, but the model has 3 scales"):
        VarSampling(top_k=(1, 2)).steps(3)


def test_an_unknown_class_is_refused_before_sampling_starts():
    module, vqvae = pair()
    with pytest.raises(
        ValueError, match="unknown classes 9, 12: the model has classes 0 to 7, and 8 is"
    ):
        next(
            sample(
                spec_of(module, vqvae),
                module,
                vqvae,
                [Request(n, 0) for n in (8, 12, 9)],
                VarSampling(),
                0,
                batch=2,
            )
        )


def test_the_kv_cache_is_allocated_once():
    """Keys and values of all scales are written into one allocation."""
    module, vqvae = pair()
    cached = VARSampler(module, vqvae.quantize.pyramid, torch.tensor([1, 2]), [0.0, 0.0, 0.0])
    before = cached.cache.data_ptr()
    cached.logits(0, None)
    first = cached.cache[:, :, :, :, :1].clone()
    cached.logits(1, torch.zeros(2, 4, 4))
    assert cached.cache.data_ptr() == before
    assert torch.equal(cached.cache[:, :, :, :, :1], first)
