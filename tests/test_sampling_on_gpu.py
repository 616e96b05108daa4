"""How sampling uses a GPU, tested without one: nothing waits for the device between two steps.

On the meta device tensors have no values: a sampler that needs one raises an error there, and the
code paths are those of a GPU.
"""

from dataclasses import replace

import pytest
import torch
from conftest import tokenizer
from small_home import ADDRESS, context_in, small_home
from test_generation import CLASSES, requests, restless
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.sampling.request import SampleOptions, plan_set
from pipelines.sampling.settings import with_default_precision
from pipelines.stages.context import ProcessContext
from pipelines.workspace.address import finished_folder, read_generator
from var_scaling.generation.sample import RequestDraws, decode_images, sample
from var_scaling.models.ar.config import ArModel, ArSampling
from var_scaling.models.base import ModelSpec
from var_scaling.models.dit.config import DitModel, DitSampling
from var_scaling.models.logits import filter_logits, filter_without_waiting, sample_ids
from var_scaling.models.registry import family_of
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.pyramid import Pyramid
from var_scaling.randomness import seed_for
from var_scaling.tokenizer.groups import group_size, in_groups
from var_scaling.tokenizer.model import MultiScaleVQVAE

CPU, META = torch.device("cpu"), torch.device("meta")
SCALES, ONE_SCALE = (1, 2, 4), (4,)
VAR_SETTINGS = VarSampling(guidance=1.5, top_k=9, top_p=0.9)
KINDS = [
    (VarModel(depth=2, width_per_depth=8), VAR_SETTINGS, SCALES),
    (VarModel(depth=2, width_per_depth=8), VarSampling(guidance=(1.0, 0.0, 0.0)), SCALES),
    (VarModel(depth=2, width_per_depth=8), VarSampling(smooth=True, top_p=0.5), SCALES),
    (ArModel(depth=2), ArSampling(guidance=1.0, top_k=9, top_p=0.9), ONE_SCALE),
    (DitModel(depth=2), DitSampling(steps=6), SCALES),
    (DitModel(depth=2), DitSampling(steps=6, sampler="sde"), SCALES),
    (DitModel(depth=2, prediction="epsilon"), DitSampling(steps=6), SCALES),
]


def subject(config, patch_nums):
    t = tokenizer(pyramid=Pyramid(patch_nums=patch_nums))
    spec = ModelSpec(config, t, CLASSES)
    return spec, restless(family_of(config).build(spec, 0)), restless(MultiScaleVQVAE(t))


class CpuIndices(TorchDispatchMode):
    """Raises an error if a tensor of a device is indexed by a tensor of the CPU: a copy."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.index.Tensor:
            assert all(index is None or index.device == args[0].device for index in args[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("config", "sampling", "patch_nums"), KINDS)
def test_no_step_of_a_sampler_needs_a_value_before_the_last(
    config, sampling, patch_nums, monkeypatch
):
    spec, network, vqvae = subject(config, patch_nums)
    network, quantizer = network.to(META), vqvae.to(META).quantize
    checks = []

    def record(finite, settings):
        checks.append((len(finite), torch.stack(list(finite.values())).device))

    for family in ("var", "ar", "dit"):
        monkeypatch.setattr(f"var_scaling.models.{family}.sampler.raise_if_not_finite", record)
    draws = RequestDraws(0, requests(5), META)
    labels = torch.zeros(5, dtype=torch.int64, device=META)
    drawn = family_of(config).sample(spec, network, quantizer, labels, sampling, draws)
    frames = len(family_of(config).frames(spec, sampling))
    with CpuIndices():
        for _ in range(frames - 1):
            next(drawn)
            assert not checks
        last = next(drawn)
    assert last.grid_BZHH.shape == (5, 4, 4, 4)
    assert checks == [(1 if config.family == "ar" else frames, META)]
    assert next(drawn, None) is None


def test_the_test_above_detects_a_sampler_that_waits(monkeypatch):
    spec, network, vqvae = subject(*(KINDS[0][i] for i in (0, 2)))
    network, quantizer = network.to(META), vqvae.to(META).quantize
    labels = torch.zeros(5, dtype=torch.int64, device=META)
    draws = RequestDraws(0, requests(5), META)
    # The path of a CPU, which looks for ties at each scale.
    on_cpu = torch.device("cpu")
    monkeypatch.setattr(
        "var_scaling.models.var.sampler.filter_logits",
        lambda logits, k, p: logits if (logits.isfinite().any()) else logits.to(on_cpu),
    )
    drawn = family_of(spec.config).sample(spec, network, quantizer, labels, VAR_SETTINGS, draws)
    with pytest.raises(RuntimeError, match="meta"):
        list(drawn)


# Filters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [0, 1, 7, 40, 64, 99])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 1.0])
def test_the_filters_of_a_gpu_keep_the_same_codes(top_k, top_p):
    logits = torch.randn(3, 50, 64, generator=torch.Generator().manual_seed(0)) * 3
    expected = filter_logits(logits, top_k, top_p)
    assert torch.equal(filter_without_waiting(logits, top_k, top_p), expected)


def test_of_equal_logits_at_the_border_the_filters_of_a_gpu_keep_all():
    """bf16 logits have many ties: the codes kept on a CPU are among those kept on a GPU."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(200, 8, 64, generator=generator) * 2).bfloat16().float().mul(4).round()
    for top_k, top_p in ((9, 0.0), (9, 0.7), (0, 0.7), (30, 0.95)):
        kept, expected = (
            function(logits, top_k, top_p) for function in (filter_without_waiting, filter_logits)
        )
        more = kept.isfinite() & expected.isinf()
        assert not (kept.isinf() & expected.isfinite()).any()
        least = expected.masked_fill(expected.isinf(), torch.inf).amin(-1, keepdim=True)
        assert (logits == least)[more].all()
        assert (top_p == 0) == (not more.any())


def test_ties_of_the_kth_logit_count_for_top_p():
    """0.4, and six codes of 0.1: top-k 2 keeps all seven, top-p 0.5 the first and one more."""
    logits = torch.tensor([0.4, *[0.1] * 6]).log()[None, None]
    assert filter_without_waiting(logits, 2, 0.0).isfinite().all()
    assert filter_without_waiting(logits, 2, 0.3).isfinite().sum() == 1
    assert filter_without_waiting(logits, 2, 0.55).isfinite().all()


def test_logits_that_are_not_finite_give_a_valid_id():
    """An id beyond the codebook would end a GPU's process at the lookup."""
    logits = torch.tensor([[[torch.nan, 0.0, 1.0], [torch.inf, 0.0, 1.0]]])
    ids = sample_ids(logits, torch.tensor([[0.5, 0.5]]))
    assert ((ids >= 0) & (ids < 3)).all()


# Random numbers -----------------------------------------------------------------------------------


def test_the_numbers_of_all_steps_are_those_of_each_request_and_step():
    requested, shapes = requests(4), [(1,), (4,), (3, 20)]
    draws = RequestDraws(7, requested, CPU)
    together = draws.uniforms("token", shapes)
    for step, shape in enumerate(shapes):
        rows = []
        for request in requested:
            seed = seed_for(7, "sample token", request.label, request.index, step)
            rows.append(torch.rand(shape, generator=torch.Generator().manual_seed(seed)))
        assert torch.equal(together[step], torch.stack(rows))
        assert torch.equal(draws.uniform("token", step, shape), together[step])
    normal = draws.normal("noise", 0, (3, 20))
    alone = RequestDraws(7, requested[2:3], CPU).normal("noise", 0, (3, 20))
    assert torch.equal(normal[2:3], alone)


# Groups -------------------------------------------------------------------------------------------


def test_groups_are_large_and_not_filled_up_on_a_gpu():
    gpu = torch.device("cuda")
    assert group_size(256**2 * 160, gpu) == 25
    assert group_size(16**2 * 32, gpu) > 10_000
    assert group_size(256**2 * 160, CPU) == 1
    sizes = []

    def double(part):
        sizes.append(len(part))
        return 2 * part

    rows = torch.arange(7.0)
    assert torch.equal(in_groups(double, 4, rows), 2 * rows)
    in_groups(double, 4, rows.to(META))
    assert sizes == [4, 4, 4, 3]


# Precision ----------------------------------------------------------------------------------------


class Casts(TorchDispatchMode):
    """Counts how often each parameter is cast."""

    def __init__(self, network):
        super().__init__()
        self.counts = {parameter.data_ptr(): 0 for parameter in network.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.counts:
            self.counts[args[0].data_ptr()] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("config", "sampling", "patch_nums"), KINDS[::3])
def test_weights_are_cast_once_a_batch(config, sampling, patch_nums):
    spec, network, vqvae = subject(config, patch_nums)
    half = sampling.model_copy(update={"precision": "bf16"})
    with Casts(network) as casts:
        list(sample(spec, network, vqvae, requests(3), half, 0, 3))
    assert max(casts.counts.values()) == 1
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_sampling_in_bf16_agrees_with_fp32():
    spec, network, vqvae = subject(VarModel(depth=2, width_per_depth=8), SCALES)

    def drawn(precision, seed=0):
        sampling = VAR_SETTINGS.model_copy(update={"precision": precision})
        return next(sample(spec, network, vqvae, requests(16), sampling, seed, 16))

    exact, half, other = drawn("fp32"), drawn("bf16"), drawn("fp32", 1)
    equal = (exact.ids_BL == half.ids_BL).double().mean()
    assert 0.8 < equal < 1
    assert equal > 2 * (exact.ids_BL == other.ids_BL).double().mean()


def test_the_decoder_runs_in_tf32_beside_a_transformer_in_bf16(monkeypatch):
    _, _, vqvae = subject(VarModel(depth=2, width_per_depth=8), SCALES)
    allowed = []
    decode = vqvae.decode_grids

    def record(grids):
        allowed.append(torch.backends.cudnn.allow_tf32)
        return decode(grids)

    monkeypatch.setattr(vqvae, "decode_grids", record)
    grids = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    images = [decode_images(vqvae, grids, precision) for precision in ("fp32", "bf16", "tf32")]
    assert allowed == [False, True, True]
    # A CPU has no TF32.
    assert all(torch.equal(images[0], other) for other in images)


def test_on_a_gpu_the_record_of_a_set_has_the_precision_of_the_training(tmp_path, monkeypatch):
    home = small_home(tmp_path)
    on_cpu = context_in(home)
    on_gpu = replace(on_cpu, process=ProcessContext(device="cuda"))
    trial = read_generator(finished_folder(on_cpu.home, ADDRESS))
    half = trial.model_copy(update={"precision": "bf16"})
    assert with_default_precision({}, half, "cuda") == {"precision": "bf16"}
    assert with_default_precision({"precision": "fp32"}, half, "cuda") == {"precision": "fp32"}
    assert with_default_precision({"top_k": 3}, half, "cpu") == {"top_k": 3}
    monkeypatch.setattr("pipelines.sampling.request.read_generator", lambda folder: half)
    for context, options, expected in (
        (on_cpu, SampleOptions(), "fp32"),
        (on_gpu, SampleOptions(), "bf16"),
        (on_gpu, SampleOptions(sampling={"precision": "fp32"}), "fp32"),
        (on_cpu, SampleOptions(device="cuda"), "bf16"),  # by jobs on a cluster
        (on_gpu, SampleOptions(device="cpu"), "fp32"),
    ):
        assert plan_set(context, ADDRESS, options).config.sampling.precision == expected
