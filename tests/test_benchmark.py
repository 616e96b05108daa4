"""Measured training steps: `benchmark` measures each size of a sweep, and `plan` uses them."""

import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import COMMAND, trial
from slurm_site import Site
from small_home import context_in
from three_families import sweep as three

from pipelines.cli.terminal.speed import benchmark_table
from pipelines.evaluation import training_benchmark
from pipelines.evaluation.benchmark_job import benchmark_task
from pipelines.evaluation.training_benchmark import (
    cluster_cases,
    local_cases,
    not_measured,
    run,
    sizes_done,
)
from pipelines.execution.slurm.resources import trial_rate, trial_resources
from pipelines.execution.speeds.benchmarks import (
    StepBenchmark,
    cluster_hardware,
    local_hardware,
    read_benchmarks,
    save_benchmark,
    size_of,
)
from pipelines.execution.speeds.throughput import (
    ASSUMED,
    MEASURED,
    SET,
    assumed_utilisation,
    cluster_throughput,
    throughput_on,
)
from pipelines.workspace.settings import Cluster, Local, Settings
from pipelines.workspace.store import Home
from pipelines.workspace.sweeps import find_sweep
from var_scaling.accounting import total
from var_scaling.disk import is_done, read_json
from var_scaling.evaluation import training_step
from var_scaling.evaluation.bench import Bench
from var_scaling.evaluation.rates import Machine, MatmulPeak, Timing, TrainingSpeed
from var_scaling.evaluation.training_step import step_speed
from var_scaling.training import loop

CPU = torch.device("cpu")
MATMUL = MatmulPeak(precision="fp32", side=256, flops_per_second=1e12)
BOX = Cluster(partition="main", device="cpu", gpus_per_node=2, peak_tflops=0.1)
H100 = Cluster(partition="gpu", nodes=8)
THREE = """
from three_families import sweep as three
sweep = three.model_copy(update={"scorings": (), "trials": three.trials[:6]})
"""


def ticking(step: float = 1.0) -> Bench:
    """A clock that advances by `step` seconds at each call."""
    ticks = itertools.count()
    return Bench(CPU, seconds=4.0, clock=lambda: next(ticks) * step)


@pytest.fixture
def command(command, monkeypatch, tmp_path):
    """`command` in a folder with the sweep mine.py, with a home of its own."""
    (tmp_path / "mine.py").write_text(THREE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: command(*words, "--home", tmp_path / "runs")


def measured(one, hardware, flops_per_second: float, micro_batch=None, **changes) -> StepBenchmark:
    """A made measurement of `one`, with all its batch in one process."""
    size = size_of(one, one.batch_size, micro_batch or one.batch_size)
    settings = {
        "size_fingerprint": size.fingerprint(),
        "size": size,
        "hardware": hardware,
        "machine": Machine(name="GPU", device=hardware.device, threads=1, torch="2"),
        "host": "h",
        "commit": None,
        "time": "2026-01-01T00:00:00Z",
        "seconds": 1.0,
        "peak_flops": 1e15,
        "matmul": MATMUL,
        "speed": TrainingSpeed(
            precision=one.precision,
            micro_batch=size.micro_batch,
            step=Timing.of([1.0]),
            model_flops=int(flops_per_second),
            mfu=flops_per_second / 1e15,
        ),
    }
    return StepBenchmark(**{**settings, **changes})


def paper(depth: int):
    return next(t for t in find_sweep("imagenet256").trials if t.model.depth == depth)


# Timing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", three.trials[:5], ids=lambda one: one.name)
def test_a_step_of_every_family_is_timed_in_the_training_loop(one):
    speed = step_speed(one, 4, 2e12, MATMUL, ticking())
    assert speed.missing is None
    assert speed.step == Timing.of([1.0] * 4)
    assert speed.images_per_second == one.batch_size
    assert speed.model_flops == one.batch_size * total(one.family.training_flops(one.spec))
    assert speed.mfu == pytest.approx(speed.model_flops / 2e12)
    assert speed.micro_batch == 4


def test_a_failed_compilation_is_recorded_and_shown(monkeypatch):
    def fail(*inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda method, **options: fail)
    speed = step_speed(trial(), 4, 2e12, MATMUL, ticking(), compile_network=True)
    assert speed.step is not None
    assert speed.compile_error == "RuntimeError: no compiler"
    result = measured(trial(), local_hardware(Local()), 1e12, speed=speed)
    case = training_benchmark.BenchmarkCase(("d2",), trial(), 4)
    caption = str(benchmark_table("mine", [(case, result)]).caption)
    assert "Not compiled, because compilation failed: RuntimeError: no compiler." in caption
    assert step_speed(trial(), 4, 2e12, MATMUL, ticking()).compile_error is None


def test_the_timed_step_has_the_micro_batches_and_the_optimizer_of_training(monkeypatch):
    passes, updates = [], []
    family = type(trial().family)
    loss, step = family.loss, training_step.train.__globals__["ScheduledOptimizer"].step

    def counted_loss(self, spec, network, quantizer, batch, draws):
        passes.append(len(batch.labels_B))
        return loss(self, spec, network, quantizer, batch, draws)

    def counted_step(self, number):
        updates.append(number)
        return step(self, number)

    monkeypatch.setattr(family, "loss", counted_loss)
    monkeypatch.setattr(training_step.train.__globals__["ScheduledOptimizer"], "step", counted_step)
    speed = step_speed(trial(), 3, 1e12, MATMUL, ticking())
    # Three steps of warm-up and four that are timed; the eight images in passes of 3, 3 and 2.
    assert updates == list(range(3 + speed.step.repeats))
    assert passes == [3, 3, 2] * len(updates)


def test_steps_that_a_gpu_reports_together_are_divided_by_their_number(monkeypatch):
    monkeypatch.setitem(loop._STEPS_PER_READ, "cpu", 10)  # as on a GPU
    speed = step_speed(trial(), 8, 1e12, MATMUL, ticking(0.5))
    assert speed.step.median_seconds == 0.05


def test_a_size_that_does_not_fit_into_memory_is_a_row_without_numbers(monkeypatch):
    def exhausted(*words, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training_step, "train", exhausted)
    speed = step_speed(trial(), 8, 1e12, MATMUL, ticking())
    assert (speed.missing, speed.step, speed.mfu) == ("out of memory", None, None)


def test_other_errors_of_a_step_are_not_hidden(monkeypatch):
    def broken(*words, **options):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(training_step, "train", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        step_speed(trial(), 8, 1e12, MATMUL, ticking())


def test_a_step_that_exceeds_the_budget_at_the_peak_is_not_begun(monkeypatch):
    monkeypatch.setattr(training_step, "train", None)
    slow = MATMUL.model_copy(update={"flops_per_second": 1e3})
    assert step_speed(trial(), 8, 1e12, slow, ticking()).missing.startswith("skipped: about")


# Sizes -------------------------------------------------------------------------------------------


def test_trials_of_one_size_are_measured_once_and_seeds_and_rates_are_no_size():
    one = trial()
    rate = one.optimiser.model_copy(update={"learning_rate": 1e-5})
    same = [one, one.model_copy(update={"name": "seed", "seed": 1})]
    same += [one.model_copy(update={"name": "rate", "optimiser": rate, "steps": 99})]
    other = [
        one.model_copy(update={"name": "half", "precision": "bf16"}),
        one.model_copy(update={"name": "batch", "batch_size": 16}),
        one.model_copy(update={"name": "average", "weight_average": 0.9}),
        one.model_copy(update={"name": "deep", "model": one.model.at_depth(3)}),
    ]
    sweep = three.model_copy(update={"scorings": (), "trials": (*same, *other)})
    cases = local_cases(sweep, Local())
    assert next(case.trials for case in cases) == ("d2", "seed", "rate")
    assert len(cases) == 1 + len(other)


def test_a_batch_is_divided_among_the_processes_of_this_machine():
    sweep = three.model_copy(update={"scorings": (), "trials": three.trials[:1]})
    (case,) = local_cases(sweep, Local(processes=2, micro_batch_size=3))
    assert (case.size.images, case.size.micro_batch) == (4, 3)
    with pytest.raises(
        ValueError, match=r"processes = 3: does not divide the batch of 8 of var-d1"
    ):
        local_cases(sweep, Local(processes=3))


def test_sizes_on_a_cluster_are_those_of_its_jobs_and_one_too_large_is_reported():
    small = H100.model_copy(update={"gpu_memory_gb": 30})
    cases = cluster_cases(find_sweep("imagenet256"), small, throughput_on(small))
    unfit = {case.trials[0]: case.unfit for case in cases if case.unfit}
    assert "d30 needs about" in unfit["d30"]
    for case in cases:
        if case.unfit is None:
            resources = trial_resources(paper(case.trial.model.depth), small)
            assert case.size.images * resources.processes == 768
            assert case.size.micro_batch == (resources.micro_batch_size or case.size.images)


# Throughput --------------------------------------------------------------------------------------


def test_assumed_utilisation_is_what_was_measured_on_a_gpu_and_rises_with_width():
    path = Path(__file__).parent.parent / "benchmarks" / "measured" / "gpu_h200.json"
    results = json.loads(path.read_text())
    for way, compiled in (("ours", False), ("ours, compiled", True)):
        measured_share = {
            (r["family"], r["depth"]): r["mfu_of_datasheet"]
            for r in results["training"]
            if r["way"] == way
        }
        assumed = {
            depth: assumed_utilisation(64 * depth, "cuda", compiled) for depth in (6, 16, 24)
        }
        for depth, share in assumed.items():
            assert share == pytest.approx(measured_share["var", depth], rel=0.02)
        shares = [assumed_utilisation(width, "cuda", compiled) for width in range(8, 4096, 8)]
        assert shares == sorted(shares)
        assert 0 < shares[0] < shares[-1] < 0.45


def test_a_measured_size_is_preferred_and_a_setting_overrides_all():
    one, hardware = paper(16), cluster_hardware("h100", H100)
    known = (
        measured(one, hardware, 3e14, micro_batch=64),
        measured(one, hardware, 2e14, micro_batch=8),
    )
    rates = throughput_on(H100, known)
    rate = rates.rate(one, one.batch_size, 64)
    assert (rate.basis, rate.flops_per_second, rate.utilisation) == (MEASURED, 3e14, 0.3)
    assert rate.micro_batch is None
    near = rates.rate(one, one.batch_size, 12)  # by ratio nearer to 8
    assert (near.flops_per_second, near.micro_batch) == (2e14, 8)
    assert rates.rate(paper(6), 768, 64).basis == ASSUMED
    half = one.model_copy(update={"precision": "bf16"})
    assert rates.rate(half, 768, 64).basis == ASSUMED
    fixed = throughput_on(H100.model_copy(update={"utilisation": 0.4}), known)
    rate = fixed.rate(one, one.batch_size, 64)
    assert (rate.basis, rate.utilisation) == (SET, pytest.approx(0.4))


def test_gpus_and_hours_follow_from_the_measurement():
    one, hardware = paper(16), cluster_hardware("h100", H100)
    slow, fast = (throughput_on(H100, (measured(one, hardware, flops),)) for flops in (2e13, 6e14))
    few, many = (trial_resources(one, H100, rates).processes for rates in (fast, slow))
    assert few == 1 < many
    flops = 2.3e20
    hours = [trial_rate(one, 8, H100, rates).hours(flops, 8) for rates in (fast, slow)]
    assert hours[1] == pytest.approx(30 * hours[0])


def test_measurements_of_another_partition_are_not_used(tmp_path):
    home, one = Home(tmp_path), paper(16)
    save_benchmark(home, measured(one, cluster_hardware("h100", H100), 3e14))
    assert len(cluster_throughput(home, "h100", H100).measured) == 1
    for changes in ({"partition": "old"}, {"constraint": "a100"}, {"device": "cpu"}):
        other = H100.model_copy(update=changes)
        assert cluster_throughput(home, "h100", other).measured == ()
    assert cluster_throughput(home, "other", H100).measured == ()


def test_a_new_measurement_replaces_that_of_the_same_size_only(tmp_path):
    home, hardware = Home(tmp_path), local_hardware(Local())
    save_benchmark(home, measured(paper(16), hardware, 1e12))
    save_benchmark(home, measured(paper(6), hardware, 2e12))
    save_benchmark(home, measured(paper(16), hardware, 3e12))
    assert sorted(one.flops_per_second for one in read_benchmarks(home, hardware)) == [2e12, 3e12]


# The command -------------------------------------------------------------------------------------


def test_a_sweep_is_measured_once_and_plan_uses_it(command, tmp_path, monkeypatch):
    words = ("benchmark", "./mine.py", "--seconds", "0.01")
    code, out, err = command(*words)
    assert code == 0, err
    assert "three on local: training steps" in out
    assert "6 sizes measured now" in out
    (file,) = (tmp_path / "runs" / "benchmarks").glob("local-*.json")
    assert len(read_json(file)["measured"]) == 6
    with monkeypatch.context() as patch:
        patch.setattr(training_benchmark, "measure", None)  # a call would fail
        code, out, err = command(*words)
        assert code == 0, err
        assert "nothing to measure" in out
    results = read_benchmarks(Home(tmp_path / "runs"), local_hardware(Local()))
    expected = {one.size_fingerprint: one.flops_per_second for one in results}
    plan = json.loads(command("plan", "./mine.py", "--json")[1])
    assert len(plan["trials"]) == 6
    for row, one in zip(plan["trials"], three.trials, strict=False):
        flops = expected[size_of(one, one.batch_size, one.batch_size).fingerprint()]
        assert (row["throughput"], row["flops_per_second"]) == ("measured", flops)
        assert row["gpu_hours"] == pytest.approx(row["train_flops"] / flops / 3600)
    assert " measured" in command("plan", "./mine.py")[1]
    code, out, _ = command(*words, "--again", "--only", "var-d1")
    assert "1 size measured now" in out


def test_the_result_is_valid_json(command):
    words = ("benchmark", "./mine.py", "--only", "dit-d1", "--seconds", "0.01", "--json")
    first, second = (json.loads(command(*words)[1]) for _ in range(2))
    assert [size["measured_now"] for size in (*first["sizes"], *second["sizes"])] == [True, False]
    (size,) = second["sizes"]
    assert size["trials"] == ["dit-d1"]
    assert size["missing"] is None
    assert size["benchmark"]["size"]["model"]["family"] == "dit"
    assert size["flops_per_second"] > 0


def test_a_size_without_memory_is_reported_and_the_others_are_measured(command, monkeypatch):
    train = training_step.train

    def exhausted_by_depth_2(one, *words, **options):
        if one.model.depth == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(one, *words, **options)

    monkeypatch.setattr(training_step, "train", exhausted_by_depth_2)
    words = ("benchmark", "./mine.py", "--only", "var-d1", "--only", "var-d2", "--seconds", "0.01")
    code, out, err = command(*words)
    assert code == 0, err
    assert "out of memory" in out
    assert "1 size measured now, 1 without numbers" in out
    plan = json.loads(command("plan", "./mine.py", "--json")[1])["trials"]
    bases = {row["trial"]: row["throughput"] for row in plan}
    assert (bases["var-d1"], bases["var-d2"]) == ("measured", "assumed")
    monkeypatch.setattr(training_step, "train", train)
    assert "1 size measured now:" in command(*words)[1]  # only the one without numbers


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("benchmark", "nosuch"), "no sweep is called 'nosuch'; available are"),
        (("benchmark", "smoke", "--on", "moon"), "--on moon: no [clusters.moon]"),
        (("benchmark", "smoke", "--only", "d99"), "smoke has no trial d99"),
        (("plan", "smoke", "--on", "local"), "run `var-scaling benchmark smoke` first"),
    ],
)
def test_bad_input_is_refused_in_words(command, words, message):
    code, _, err = command(*words)
    assert (code, message in err) == (2, True), err


def test_a_damaged_file_is_refused_with_its_name(command, tmp_path):
    assert command("benchmark", "./mine.py", "--only", "var-d1", "--seconds", "0.01")[0] == 0
    (file,) = (tmp_path / "runs" / "benchmarks").glob("local-*.json")
    file.write_text(file.read_text().replace('"host"', '"hots"'))
    code, _, err = command("plan", "./mine.py")
    assert code == 2
    assert file.name in err
    assert "move the file away" in err


def test_the_plan_of_a_cluster_shows_the_resources_and_the_basis_of_each_row(command, tmp_path):
    (tmp_path / "var-scaling.toml").write_text(
        '[clusters.h100]\npartition = "gpu"\nnodes = 8\nprice_per_gpu_hour = 2.5\n'
    )
    one = paper(6)
    home = Home(tmp_path / "runs")
    save_benchmark(home, measured(one, cluster_hardware("h100", H100), 2e14, micro_batch=384))
    code, out, err = command("plan", "imagenet256", "--on", "h100")
    assert code == 0, err
    d6, d30 = (
        next(line for line in out.splitlines() if line.startswith(n)) for n in (" d6", " d30")
    )
    assert "20%" in d6
    assert "44%" in d30
    rows = json.loads(command("plan", "imagenet256", "--on", "h100", "--json")[1])["trials"]
    assert [row["throughput"] for row in rows[:2]] == ["measured", "assumed"]
    for row in rows:
        assert row["price"] == pytest.approx(2.5 * row["gpu_hours"])
        assert row["hours"] == pytest.approx(row["gpu_hours"] / row["processes"])


# As a job ----------------------------------------------------------------------------------------


def test_a_job_measures_its_sizes_and_a_requeued_one_the_rest(tmp_path):
    home, settings = Home(tmp_path), Settings(clusters={"box": BOX})
    sweep = three.model_copy(update={"scorings": (), "trials": three.trials[:3]})
    cases = cluster_cases(sweep, BOX, throughput_on(BOX))
    task = benchmark_task(home, "three", cases, "box", BOX, 0.01)
    assert (task.resources.processes, task.resources.gpus_per_node) == (1, 1)
    context = context_in(home, settings)
    stopping = replace(context, requested_signal=lambda: training_step.Signal.STOP)
    with pytest.raises(training_benchmark.Stopped, match="stopped after 1 of 3 sizes"):
        run(stopping, json.loads(json.dumps(task.payload)))
    assert (len(sizes_done(task.folder)), task.done) == (1, False)
    hardware = cluster_hardware("box", BOX)
    (first,) = read_benchmarks(home, hardware)
    assert run(context, task.payload) == "done"
    assert task.done
    fewer = benchmark_task(home, "three", cases[1:], "box", BOX, 0.01)
    assert fewer.folder == task.folder  # so that a second command finds a job that still runs
    found = read_benchmarks(home, hardware)
    assert first in found  # it was not measured a second time
    assert {one.peak_flops for one in found} == {1e11}
    assert not_measured(home, hardware, cases) == []


@pytest.mark.slurm
def test_a_sweep_is_measured_by_one_job_on_slurm(slurm, tmp_path):
    site = Site(slurm, tmp_path)
    before = site.submissions()
    words = ("benchmark", "--on", "box", "--seconds", "0.3")
    done = site.call(*words, "--dirty", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    sizes = json.loads(done.stdout)["sizes"]
    assert [(size["missing"], size["measured_now"]) for size in sizes] == [(None, True)] * 3
    assert site.submissions() == before + 1
    again = site.call(*words)
    assert again.returncode == 0, again.stderr
    assert "nothing to measure" in again.stdout
    assert site.submissions() == before + 1
    plan = json.loads(site.call("plan", "--on", "box", "--json").stdout)["trials"]
    assert {row["throughput"] for row in plan} == {"measured"}
    (folder,) = (one for one in (site.home / "benchmarks" / "jobs").iterdir() if is_done(one))
    logs = [*COMMAND, "logs", f"benchmarks/jobs/{folder.name}", "--home", str(site.home)]
    shown = subprocess.run(logs, capture_output=True, text=True, env=site.environment)
    assert "step of d1" in shown.stdout
    redone = site.call(*words, "--dirty", "--again")
    assert redone.returncode == 0, redone.stderr
    assert "3 sizes measured now" in redone.stdout
