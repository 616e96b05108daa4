"""Recorded calls of samplers, tested without a GPU.

Instead of a CUDA graph, a recording runs the Python function again, on the tensors of the recorded
call only. A number that changes between two calls and is not in a tensor is then wrong.
"""

import gc
import weakref

import pytest
import torch
from test_generation import requests
from test_sampling_on_gpu import META, ONE_SCALE, SCALES, CpuIndices, subject
from torch import nn

from pipelines.stages.context import ProcessContext, RunContext, local_process
from pipelines.workspace.settings import Local
from var_scaling.generation.sample import RequestDraws, sample
from var_scaling.models.ar.config import ArModel, ArSampling
from var_scaling.models.ar.sampler import ARSampler
from var_scaling.models.dit.config import DitModel, DitSampling
from var_scaling.models.registry import family_of
from var_scaling.models.static_calls import StaticCalls, cast_weights, static_calls
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.models.var.sampler import VARSampler

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = VarModel(depth=2, width_per_depth=8)
LLAMA = ArModel(depth=2, block="llama", positions="rotary", embedding="table", hidden_multiple=8)
CASES = {
    "var": (SMALL, VarSampling(guidance=1.5, top_k=9, top_p=0.9), SCALES),
    "var, no guidance": (SMALL, VarSampling(guidance=0.0), SCALES),
    "var, first scale guided": (SMALL, VarSampling(guidance=(2.0, 0.0, 0.0)), SCALES),
    "var, guidance by scale": (SMALL, VarSampling(guidance=(0.0, 2.0, 0.0)), SCALES),
    "var, shared AdaLN": (
        VarModel(depth=2, width_per_depth=8, shared_adaln=True),
        VarSampling(guidance=(0.5, 1.0, 2.0), smooth=True),
        SCALES,
    ),
    "ar": (ArModel(depth=2), ArSampling(guidance=1.0, top_k=9, top_p=0.9), ONE_SCALE),
    "ar, no guidance": (ArModel(depth=2), ArSampling(guidance=0.0), ONE_SCALE),
    "ar, llama": (LLAMA, ArSampling(guidance=1.0), ONE_SCALE),
    "ar, residual codes": (ArModel(depth=2), ArSampling(guidance=1.0), (4, 4)),
    "dit": (DitModel(depth=2), DitSampling(steps=6, guidance=1.0), SCALES),
    "dit, no guidance": (DitModel(depth=2), DitSampling(steps=6, guidance=0.0), SCALES),
    "dit, guidance by time": (
        DitModel(depth=2),
        DitSampling(steps=6, guidance=2.0, interval=(0.3, 0.8), sampler="sde"),
        SCALES,
    ),
    "dit, variance": (
        DitModel(depth=2, prediction="epsilon", learned_variance=True),
        DitSampling(steps=6, guidance=1.0, sampler="sde"),
        SCALES,
    ),
}


class Rerun:
    """Records a function by keeping it; counts recordings and replays."""

    def __init__(self):
        self.recorded = self.replayed = 0
        self.outputs = []  # weak references

    def __call__(self, function):
        self.recorded += 1
        output = function().clone()
        if output.is_floating_point():
            output.fill_(torch.nan)  # a graph computes nothing while it is recorded
        self.outputs.append(weakref.ref(output))

        def replay():
            self.replayed += 1
            output.copy_(function())

        return output, replay


@pytest.fixture(autouse=True)
def few_keys(monkeypatch):
    """AR's 16 tokens need several recordings."""
    monkeypatch.setattr("var_scaling.models.ar.sampler._KEYS", 6)


def drawn(one, sampling, calls, images=11, batch=3):
    """Ids (None if there are none) and images, in four batches, of which the last is smaller."""
    spec, network, vqvae = one
    parts = list(sample(spec, network, vqvae, requests(images), sampling, 0, batch, calls=calls))
    ids = [part.ids_BL for part in parts if part.ids_BL is not None]
    return torch.cat(ids) if ids else None, torch.cat([part.images_BWW3 for part in parts])


def case(name, precision="fp32"):
    config, sampling, patch_nums = CASES[name]
    return subject(config, patch_nums), sampling.model_copy(update={"precision": precision})


def assert_equal(one, other):
    assert (one[0] is None) == (other[0] is None)
    assert one[0] is None or torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


# Samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_recorded_calls_give_the_same_samples(name):
    one, sampling = case(name)
    rerun = Rerun()
    recorded = drawn(one, sampling, StaticCalls(lambda: rerun, pytest.fail))
    assert_equal(recorded, drawn(one, sampling, StaticCalls()))
    assert 0 < rerun.recorded < rerun.replayed


@pytest.mark.parametrize("name", ["var", "var, shared AdaLN", "dit, guidance by time"])
def test_in_half_precision_too(name):
    one, sampling = case(name, "bf16")
    recorded = drawn(one, sampling, StaticCalls(Rerun, pytest.fail))
    assert_equal(recorded, drawn(one, sampling, StaticCalls()))


@pytest.mark.parametrize("name", ["ar", "ar, llama"])
def test_of_ar_in_half_precision_most_tokens_are_equal(name):
    """Its recorded attention reads more keys, with the weight 0, so it rounds differently."""
    one, sampling = case(name, "bf16")
    recorded, plain = (
        drawn(one, sampling, calls)[0] for calls in (StaticCalls(Rerun, pytest.fail), StaticCalls())
    )
    assert (recorded == plain).double().mean() > 0.9


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ar")])
def test_logits_of_ar_do_not_depend_on_how_many_keys_a_call_reads(name):
    (_, network, _), sampling = case(name)
    generator, labels = torch.Generator().manual_seed(0), torch.arange(3)
    static, plain = (ARSampler(network, labels, sampling.guidance) for _ in range(2))
    with torch.no_grad():
        for sampler in (static, plain):
            sampler.logits(0, None)
        for position in range(1, network.tokens):
            if network.config.embedding == "codes":
                previous = torch.randn(3, 1, 4, generator=generator)
            else:
                previous = torch.randint(32, (3, 1), generator=generator)
            keys = min(network.tokens, 5 * (position // 5 + 1))
            torch.testing.assert_close(
                static.static_logits(keys, torch.tensor([position]), previous),
                plain.logits(position, previous),
                atol=1e-5,
                rtol=1e-4,
            )
    torch.testing.assert_close(static.cache, plain.cache, atol=1e-5, rtol=1e-4)


def test_a_call_is_recorded_when_it_is_repeated_and_replayed_for_all_later_batches():
    one, sampling = case("var")
    for images, recorded, replayed in (
        (3, 0, 0),  # a single batch
        (6, 3, 3),  # in the second batch the three scales
        (9, 4, 7),  # in the third also its beginning
        (11, 4, 7),  # a short last batch is not recorded
        (12, 4, 11),
    ):
        rerun = Rerun()
        drawn(one, sampling, StaticCalls(lambda: rerun, pytest.fail), images)  # noqa: B023
        assert (rerun.recorded, rerun.replayed) == (recorded, replayed)


def test_samples_do_not_depend_on_the_batch_size():
    one, sampling = case("var")
    alone, together = (
        drawn(one, sampling, StaticCalls(Rerun, pytest.fail), images=10, batch=batch)
        for batch in (1, 4)
    )
    assert_equal(alone, together)


@pytest.mark.parametrize("name", ["var", "ar", "dit, guidance by time"])
def test_no_step_needs_a_value_before_the_last(name, monkeypatch):
    (spec, network, vqvae), sampling = case(name)
    network, quantizer = network.to(META), vqvae.to(META).quantize
    family, rerun, checks = family_of(spec.config), Rerun(), []
    monkeypatch.setattr(
        f"var_scaling.models.{family.name.lower()}.sampler.raise_if_not_finite",
        lambda finite, settings: checks.append(finite),
    )
    calls, labels = StaticCalls(lambda: rerun, pytest.fail), torch.zeros(5, dtype=int, device=META)
    with CpuIndices():
        for _ in range(3):
            draws = RequestDraws(0, requests(5), META)
            list(family.sample(spec, network, quantizer, labels, sampling, draws, None, calls))
    assert len(checks) == 3
    assert rerun.replayed > rerun.recorded > 0


# Failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["var", "ar", "dit, guidance by time"])
@pytest.mark.parametrize("good", [0, 1])
def test_if_recording_fails_sampling_continues_and_says_why(name, good):
    """Also after `good` calls were recorded and replayed in the same batch."""
    one, sampling = case(name)

    class Fails(Rerun):
        def __call__(self, function):
            if self.recorded == good:
                function()
                try:
                    raise RuntimeError("operation not permitted while capturing\nsecond line")
                finally:  # as torch.cuda.graph does
                    raise ValueError("the capture is invalid")
            return super().__call__(function)

    reported = []
    calls = StaticCalls(Fails, reported.append)
    assert_equal(drawn(one, sampling, calls), drawn(one, sampling, StaticCalls()))
    assert reported == [
        "CUDA graphs failed, so sampling continues without them, slower: RuntimeError: operation "
        "not permitted while capturing"
    ]
    assert not calls.active
    assert all(parameter.dtype == torch.float32 for parameter in one[1].parameters())
    assert torch.is_autocast_cache_enabled()


def test_without_another_way_a_failure_is_a_warning():
    one, sampling = case("var")
    calls = StaticCalls(lambda: lambda function: 1 / 0)
    with pytest.warns(UserWarning, match=r"without them, slower: ZeroDivisionError: division"):
        drawn(one, sampling, calls)


def test_the_tests_above_detect_a_number_that_is_not_in_a_tensor():
    calls, labels = StaticCalls(Rerun, pytest.fail), torch.zeros(1)
    calls.sampler(0, lambda: Blocks(), labels)
    right, wrong = [], []
    for number in range(4):
        right.append(calls("right", lambda given: 2 * given, torch.tensor(float(number))).item())
        wrong.append(calls("wrong", lambda n=number: torch.tensor(2.0 * n)).item())
    assert right == [0, 2, 4, 6]
    assert wrong == [0, 2, 2, 2]


# Weights and memory -------------------------------------------------------------------------------


class Blocks:
    def __init__(self, blocks=()):
        self.blocks = blocks

    def restart(self, labels_B):
        return labels_B


def test_recorded_calls_read_one_cast_of_the_weights():
    block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    calls, seen = StaticCalls(Rerun, pytest.fail), []

    def function(x):
        seen.append((block[0].weight, block[1].weight.data, block[1].bias.data))
        return block(x)

    calls.sampler(0, lambda: Blocks([block]), torch.zeros(1))
    original, x = block[1].weight.data, torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        results = [calls("call", function, x).clone() for _ in range(4)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert [weight.dtype for _, weight, _ in seen] == [torch.float32] + [torch.bfloat16] * 4
    assert len({(weight.data_ptr(), bias.data_ptr()) for _, weight, bias in seen[1:]}) == 1
    assert all(norm.dtype == torch.float32 for norm, _, _ in seen)
    assert block[1].weight.data.data_ptr() == original.data_ptr()


def test_without_autocast_no_weight_is_copied():
    block, weights = nn.Linear(4, 4), {}
    with cast_weights([block], weights):
        assert block.weight.dtype == torch.float32
    assert [copy.data_ptr() for copy in weights.values()] == [
        parameter.data_ptr() for parameter in block.parameters()
    ]


def test_the_memory_of_recordings_is_freed_at_the_end_and_at_another_batch_size():
    spec, network, vqvae = case("var")[0]
    rerun = Rerun()
    gc.disable()  # freed at once, not by a later search for cycles
    try:
        calls = StaticCalls(lambda: rerun, pytest.fail)
        parts = sample(spec, network, vqvae, requests(8), CASES["var"][1], 0, 3, calls=calls)
        next(parts), next(parts)
        assert all(output() is not None for output in rerun.outputs)
        next(parts)  # two images
        assert len(rerun.outputs) == 3
        assert all(output() is None for output in rerun.outputs)
        drawn((spec, network, vqvae), CASES["var"][1], calls)
        del calls, parts
        assert all(output() is None for output in rerun.outputs)
    finally:
        gc.enable()


def test_the_cache_of_a_sampler_is_used_again():
    _, network, vqvae = case("var")[0]
    calls, labels = StaticCalls(Rerun, pytest.fail), torch.arange(3)

    def make():
        return VARSampler(network, vqvae.quantize.pyramid, labels, [1.0, 1.0, 1.0])

    first, second = (calls.sampler("key", make, labels + shift) for shift in (0, 1))
    assert first is second
    expected = VARSampler(network, vqvae.quantize.pyramid, labels + 1, [1.0, 1.0, 1.0])
    assert torch.equal(first.cond_RC, expected.cond_RC)
    for one, other in zip(first.finer_adaln, expected.finer_adaln, strict=True):
        assert torch.equal(one, other)


# The switch ---------------------------------------------------------------------------------------


def test_cuda_graphs_are_for_gpus_and_can_be_disabled():
    assert static_calls(torch.device("cuda")).active
    assert not static_calls(torch.device("cpu")).active
    assert not static_calls(META).active
    assert local_process(Local(device="cuda")).cuda_graphs
    process = local_process(Local(device="cuda", cuda_graphs=False))
    assert process == ProcessContext(**{**vars(process), "cuda_graphs": False})
    assert not static_calls(torch.device("cuda"), process.cuda_graphs).active


def test_the_reason_of_a_failure_is_printed_with_the_folder(tmp_path, monkeypatch, capsys):
    context = RunContext(tmp_path, None, lambda: None, ProcessContext(device="cuda"))
    monkeypatch.setattr(RunContext, "device", lambda self: torch.device("cuda"))
    calls = context.static_calls(tmp_path / "set")
    calls.recorder = lambda: lambda function: 1 / 0
    one, sampling = case("var")
    drawn(one, sampling, calls)
    assert capsys.readouterr().out.startswith(
        f"{tmp_path / 'set'}: CUDA graphs failed, so sampling"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["var", "var, shared AdaLN", "ar", "ar, llama", "dit, variance"])
def test_on_a_gpu_graphs_give_the_samples_of_plain_calls(name, precision):
    """To rounding, which can change a token."""
    (spec, network, vqvae), sampling = case(name, precision)
    gpu = torch.device("cuda")
    one = spec, network.to(gpu), vqvae.to(gpu)
    calls = static_calls(gpu, report=pytest.fail)
    plain, recorded = drawn(one, sampling, StaticCalls()), drawn(one, sampling, calls)
    assert calls.active
    if plain[0] is not None:
        assert (plain[0] == recorded[0]).double().mean() > 0.9
    difference = (plain[1].double() - recorded[1].double()).abs().mean()
    assert difference < 0.1 * plain[1].double().std()
