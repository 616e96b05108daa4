"""Speed: rates, FLOPs, skipped rows, and the results file."""

import itertools
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import bring, tokenizer, trial
from small_home import small_home
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.evaluation.throughput import (
    BenchmarkResult,
    benchmark_columns,
    read_benchmarks,
    save_benchmark,
)
from var_scaling.accounting import total
from var_scaling.config import ImportedTokenizer
from var_scaling.disk import read_json, write_json
from var_scaling.evaluation.bench import Bench, matmul_peak
from var_scaling.evaluation.memory import PeakMemory, memory_shortage
from var_scaling.evaluation.rates import (
    Machine,
    MatmulPeak,
    Memory,
    SamplingSpeed,
    Timing,
    TrainingSpeed,
)
from var_scaling.evaluation.speed import Subject, sampling_speeds, training_speeds
from var_scaling.models.base import ModelSpec
from var_scaling.models.var.accounting import (
    var_batch_flops,
    var_sampling_flops,
    var_training_flops,
)
from var_scaling.models.var.config import VarModel, VarSampling
from var_scaling.models.var.model import VAR
from var_scaling.models.var.sampler import VARSampler
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE

CLASSES = 8
CPU = torch.device("cpu")
PEAKS = {"fp32": MatmulPeak(precision="fp32", side=256, flops_per_second=1e9)}


def subject(patch_nums=(1, 2, 4), **changes) -> Subject:
    t = tokenizer(pyramid=Pyramid(patch_nums=patch_nums))
    spec = ModelSpec(VarModel(depth=2, width_per_depth=8, **changes), t, CLASSES)
    return Subject(
        spec,
        VAR(spec.config, t, CLASSES, seed=0).eval().requires_grad_(False),
        MultiScaleVQVAE(t).eval().requires_grad_(False),
    )


def ticking(step: float = 1.0) -> Bench:
    """A clock that advances by `step` seconds at each call."""
    ticks = itertools.count()
    return Bench(CPU, seconds=4.0, clock=lambda: next(ticks) * step)


# FLOPs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "weights", [(0, 0, 0), (0, 1, 2), (1, 1, 1), (1, 0, 0), (2, 1, 0), (1, 0, 2)]
)
def test_sampling_flops_equal_those_that_torch_counts(weights, shared):
    one = subject(shared_adaln=shared)
    pyramid, labels = one.spec.tokenizer.pyramid, torch.arange(5)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        cached = VARSampler(one.model, pyramid, labels, list(weights))
        for k, length in enumerate(pyramid.lengths):
            cached.logits(k, torch.zeros(5, length, 4) if k else None)
    unconditional_rows = len(cached.cond_RC) - 5
    assert (
        var_batch_flops(one.model.config, one.spec.tokenizer, weights, 5, unconditional_rows)
        == counter.get_total_flops()
    )


def test_guided_sampling_needs_less_than_twice_the_unguided_flops():
    one = subject()
    config = one.model.config
    once, twice = (
        total(var_sampling_flops(config, one.spec.tokenizer, guided)) for guided in (False, True)
    )
    assert var_batch_flops(config, one.spec.tokenizer, (0, 0, 0), 7, 0) == 7 * once
    assert 7 * once < var_batch_flops(config, one.spec.tokenizer, (0, 1, 2), 7, 1) < 7 * twice
    # A single image saves only the second embedding of its input.
    embedded = 2 * 20 * one.spec.tokenizer.code_channels * config.width
    assert var_batch_flops(config, one.spec.tokenizer, (0, 1, 2), 1, 1) == twice - embedded


# Timing ------------------------------------------------------------------------------------------


def test_a_rate_is_work_divided_by_median_seconds():
    one = subject()
    (row,) = sampling_speeds(one, [("fp32", 1.5)], [2], PEAKS, ticking())
    assert row.whole == Timing.of([1.0, 1.0, 1.0])
    assert row.images_per_second == 2.0
    weights = (0, 0.75, 1.5)
    flops = var_batch_flops(one.model.config, one.spec.tokenizer, weights, 2, 1)
    assert row.model_flops == flops < row.computed_flops
    assert row.computed_flops == var_batch_flops(
        one.model.config, one.spec.tokenizer, weights, 2, 3
    )
    assert row.transformer_mfu == pytest.approx(flops / 1e9)
    (step,) = training_speeds(one, ["fp32"], [3], PEAKS, ticking(0.5))
    assert step.step.median_seconds == 0.5
    assert step.tokens_per_second == 3 * 21 / 0.5
    assert step.model_flops == 3 * total(var_training_flops(one.model.config, one.spec.tokenizer))
    assert step.mfu == pytest.approx(step.model_flops / 0.5 / 1e9)


def test_without_a_measured_peak_there_is_no_utilisation():
    (row,) = sampling_speeds(subject(), [("fp32", 0.0)], [1], {}, ticking())
    assert row.images_per_second == 1.0
    assert row.transformer_mfu is None


def test_timing_of_training_does_not_change_the_model():
    one = subject()
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    (row,) = training_speeds(one, ["bf16"], [2], PEAKS, ticking())
    assert row.tokens_per_second
    assert all(torch.equal(value, before[name]) for name, value in one.model.state_dict().items())


@pytest.mark.parametrize(
    ("step", "repeats"),
    [(0.125, 32), (1.0, 4), (2.0, 3), (5.0, 3), (6.5, 2), (100.0, 1)],
)
def test_repeats_fill_the_budget_and_are_at_least_three_within_its_triple(step, repeats):
    done: list[int] = []
    timing = ticking(step).measure(lambda: done.append(1))
    assert timing.repeats == repeats
    assert len(done) == timing.repeats + 1  # the first run is not timed
    assert timing.least_seconds == step


def test_the_matmul_peak_is_the_best_over_all_sizes():
    peak = matmul_peak("fp32", ticking(0.5))
    assert peak == MatmulPeak(precision="fp32", side=256, flops_per_second=2 * 256**3 / 0.5)


def test_all_implementations_of_the_sampling_benchmark_draw_the_same_tokens(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    benchmark = import_module("sampling")
    t = ImportedTokenizer(
        name="t",
        sha256="0" * 64,
        codebook_size=64,
        code_channels=4,
        pyramid=Pyramid(patch_nums=(1, 2, 3)),
    )
    model, quantizer = benchmark.random_model(VarModel(depth=2, width_per_depth=16), t)
    for guidance in (0.0, 1.5):
        sampling = VarSampling(guidance=guidance)
        drawn = [
            benchmark.run(implementation, model, quantizer, 3, sampling).steps
            for implementation in benchmark.IMPLEMENTATIONS.values()
        ]
        for ours, *theirs in zip(*drawn, strict=True):
            assert all(torch.equal(ours.ids_BS, step.ids_BS) for step in theirs)
            for step in theirs:
                torch.testing.assert_close(step.logits_BSV, ours.logits_BSV, rtol=1e-4, atol=1e-4)


# Refusals ----------------------------------------------------------------------------------------


def test_a_batch_that_is_too_large_for_memory_gives_a_row_with_the_reason():
    one = subject()

    def full(block, given):
        if len(given[0]) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")

    one.model.blocks[0].register_forward_pre_hook(full)
    small, large = sampling_speeds(one, [("fp32", 0.0)], [40, 4], PEAKS, ticking())
    assert (small.batch, small.missing, small.images_per_second) == (4, None, 4.0)
    assert (large.batch, large.missing) == (40, "out of memory")
    assert large.whole is None
    assert large.images_per_second is None


def test_other_errors_are_not_reported_as_out_of_memory():
    one = subject()

    def broken(block, given):
        raise RuntimeError("shapes differ")

    one.model.blocks[0].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(sampling_speeds(one, [("fp32", 0.0)], [4], PEAKS, ticking()))


def test_a_batch_above_the_free_cpu_memory_is_not_tried():
    if not (message := memory_shortage(1 << 60, CPU)):
        pytest.skip("this machine does not tell what is free")
    assert message.startswith("out of memory: needs 1152921504.6 GB or more")
    assert memory_shortage(1, CPU) is None
    row, *_ = sampling_speeds(subject(), [("fp32", 0.0)], [10**12], PEAKS, ticking())
    assert row.missing.startswith("out of memory: needs ")


def test_a_batch_that_would_take_too_long_is_skipped():
    one = subject()
    alone, more = sampling_speeds(one, [("fp32", 0.0)], [1, 2], PEAKS, ticking(8.0))
    assert (alone.images_per_second, alone.whole.repeats) == (1 / 8, 1)
    assert (more.images_per_second, more.missing) == (
        None,
        "skipped: about 16 s per repeat, but the budget is 4 s",
    )


def test_the_peak_memory_includes_memory_that_was_released():
    watermark = PeakMemory(CPU)
    torch.ones(64 << 20, dtype=torch.uint8).sum()
    grown = watermark.read().process_growth_bytes
    if grown is None:
        pytest.skip("this system does not tell a process's peak")
    assert 60 << 20 < grown < 1 << 30


# The file ----------------------------------------------------------------------------------------


def measured(
    name="EPYC", time="2026-11-23T00:00:00Z", rate=10.0, memory=None, batches=(1, 8)
) -> BenchmarkResult:
    timing = Timing.of([2 / rate])
    rows = tuple(
        SamplingSpeed(
            precision="fp32", guidance=guidance, batch=batch, whole=timing, transformer=timing,
            decoder=timing, images_per_second=batch * rate, memory=Memory(gpu_peak_bytes=memory),
        )
        for guidance in (0.0, 1.5) for batch in batches
    )  # fmt: skip
    missing = SamplingSpeed(precision="fp32", guidance=1.5, batch=64, missing="out of memory")
    return BenchmarkResult(
        machine=Machine(name=name, device="cpu", threads=1, torch="2.13"),
        weights_sha256="a",
        tokenizer_sha256="b",
        commit=None,
        time=time,
        seconds=2.0,
        peaks=tuple(PEAKS.values()),
        sampling=(*rows, missing),
        training=(
            TrainingSpeed(
                precision="fp32", micro_batch=8, step=timing, tokens_per_second=5.0, mfu=0.25
            ),
        ),
    )


def test_the_file_has_the_latest_results_of_each_machine(tmp_path):
    first, again = measured(), measured(time="2026-11-23T02:00:00Z", rate=20.0)
    other = measured(name="H200", time="2026-11-23T01:00:00Z", memory=5)
    save_benchmark(tmp_path, first)
    assert read_benchmarks(tmp_path) == [first]
    save_benchmark(tmp_path, other)
    assert read_benchmarks(tmp_path) == [first, other]
    assert benchmark_columns(tmp_path)["sampling_peak_memory_bytes"] == 5
    save_benchmark(tmp_path, again)
    assert read_benchmarks(tmp_path) == [other, again]
    assert benchmark_columns(tmp_path) == {
        "speed_machine": "EPYC, 1 thread",
        "sampling_images_per_second": 160.0,
        "sampling_latency_seconds": 0.1,
        "training_tokens_per_second": 5.0,
        "training_mfu": 0.25,
    }


def test_a_new_measurement_keeps_other_rows_unless_the_weights_changed(tmp_path):
    first = measured()
    part = measured(time="2026-11-23T02:00:00Z", rate=20.0, batches=(8, 16))
    part = part.model_copy(update={"sampling": part.sampling[:-1], "training": ()})
    save_benchmark(tmp_path, first)
    save_benchmark(tmp_path, part)
    left, again = read_benchmarks(tmp_path)
    assert again == part
    assert [(row.guidance, row.batch) for row in left.sampling] == [(0, 1), (1.5, 1), (1.5, 64)]
    assert (left.training, left.time) == (first.training, first.time)
    assert benchmark_columns(tmp_path) == {
        "speed_machine": "EPYC, 1 thread",
        "sampling_images_per_second": 320.0,
        "sampling_latency_seconds": 0.2,
        "training_tokens_per_second": 5.0,
        "training_mfu": 0.25,
    }
    other = part.model_copy(update={"weights_sha256": "c", "time": "2026-11-23T03:00:00Z"})
    save_benchmark(tmp_path, other)
    assert read_benchmarks(tmp_path) == [other]


def test_without_measurements_there_are_no_columns_and_other_formats_are_refused(tmp_path):
    assert benchmark_columns(tmp_path) == {}
    write_json(tmp_path / "speed.json", {"format": 2, "measured": []})
    with pytest.raises(ValueError, match=r"speed\.json: format 2, this version reads 1"):
        read_benchmarks(tmp_path)
    write_json(tmp_path / "speed.json", {"format": 1, "measured": [{"machine": "x"}]})
    with pytest.raises(ValueError, match="this field is required"):
        read_benchmarks(tmp_path)


def command(home, *words: str) -> str:
    requested = [
        "imported/it",
        "--seconds",
        "0.05",
        "--batches",
        "2,1",
        "--home",
        str(home),
        *words,
    ]
    done = CliRunner().invoke(app, ["speed", *requested], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_speed_command_prints_tables_and_writes_the_file(tmp_path, files):
    home = tmp_path / "home"
    bring(home, *files, patch_nums=(1, 2))
    found = BenchmarkResult.model_validate_json(
        command(home, "--micro-batches", "2", "--json", "--precisions", "tf32,fp32")
    )
    ways = [(row.precision, row.guidance, row.batch) for row in found.sampling]
    assert ways == list(itertools.product(["fp32", "tf32"], [0.0, 1.5], [1, 2]))
    assert [(row.precision, row.micro_batch) for row in found.training] == [
        ("fp32", 2),
        ("tf32", 2),
    ]
    assert [peak.precision for peak in found.peaks] == ["fp32", "tf32"]
    assert found.machine.device == "cpu"
    folder = home / "imported" / "it"
    assert read_benchmarks(folder) == [found]
    shown = command(home, "--no-training", "--guidance", "0")
    assert found.machine.name in shown
    assert "micro-batch" not in shown
    left, kept = read_json(folder / "speed.json")["measured"]
    assert kept["training"] == []
    assert {row["guidance"] for row in kept["sampling"]} == {0.0}
    assert kept["weights_sha256"] == found.weights_sha256
    assert len(left["sampling"]) == len(found.sampling) - len(kept["sampling"])


def test_a_model_without_class_dropout_is_timed_without_guidance(tmp_path):
    home = small_home(tmp_path / "home", trial(class_dropout_prob=0))
    words = ["grid/d2", "--seconds", "0.01", "--batches", "1", "--no-training", "--json"]
    words += ["--home", str(home.root)]
    done = CliRunner().invoke(app, ["speed", *words], catch_exceptions=False)
    assert [row["guidance"] for row in json.loads(done.output)["sampling"]] == [0.0]
    with pytest.raises(ValueError, match="guidance 2: d2 was trained with class_dropout_prob = 0"):
        CliRunner().invoke(app, ["speed", *words, "--guidance", "2"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batches", "0,4"], "--batches 0,4: must be whole numbers of at least 1"),
        (["--micro-batches", "x"], "--micro-batches x"),
        (["--precisions", "fp32,fp8"], "fp8: allowed are fp32, tf32, bf16, fp16"),
    ],
)
def test_invalid_speed_options_are_refused(tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(
            app, ["speed", "s/t", "--home", str(tmp_path), *words], catch_exceptions=False
        )
