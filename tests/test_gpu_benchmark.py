"""The benchmark of a GPU, with small sizes on a CPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
# Not installed on the machines with a GPU where the benchmark runs.
ABSENT = (
    "ray", "submitit", "mlflow", "pandas", "matplotlib", "typer", "rich", "jinja2", "psutil", "PIL",
    "torchmetrics", "scipy", "pyarrow",
)  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark as a module, without its compiled parts."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = import_module("gpu")
    monkeypatch.setattr(module, "SMALL", replace(module.SMALL, compiled=(), compiled_checks=()))
    return module


def run(gpu, monkeypatch, folder, *words):
    """The results of the benchmark, and its exit status or message."""
    out = folder / "gpu.json"
    given = ["gpu.py", "--small", "--device", "cpu", "--out", str(out), *words]
    monkeypatch.setattr("sys.argv", given)
    threads, status = torch.get_num_threads(), None
    try:
        gpu.main()
    except SystemExit as exit_:
        status = exit_.code
    finally:
        torch.set_num_threads(threads)
    return json.loads(out.read_text()), status


@pytest.mark.slow
def test_timings_are_marked_as_comparable_if_the_results_agree(gpu, monkeypatch, tmp_path):
    found, status = run(gpu, monkeypatch, tmp_path, "--only", "d16", "correct")
    assert status is None
    assert [row["way"] for row in found["training"]] == ["released", "ours"]
    assert all(row["comparable"] for row in (*found["training"], *found["ratio"]))
    ways = {(row["way"], row["precision"]) for row in found["correct"] if row["agrees"]}
    assert ways >= {("ours", p) for p in ("fp32", "tf32", "fp16", "bf16")}
    assert ways >= {("released", "fp32"), ("released", "bf16"), ("tokenizer", "fp32")}


@pytest.mark.slow
def test_timings_are_not_comparable_if_the_results_differ(gpu, monkeypatch, tmp_path):
    released = import_module("released").Released
    block = released.block
    monkeypatch.setattr(
        released, "block", staticmethod(lambda *x: block(*x[:3], torch.zeros_like(x[3])))
    )  # every token attends to all others
    found, status = run(gpu, monkeypatch, tmp_path, "--only", "d16", "correct", "d6")
    assert "errors or differences" in status
    differ = {row["way"] for row in found["correct"] if not row["agrees"]}
    assert differ == {"released"}
    timed = (*found["training"], *found["ratio"])  # before and after the check
    assert len(timed) == 6
    assert not any(row["comparable"] for row in timed)
    assert "not comparable" in found["errors"][0]["error"]


def test_a_failing_section_does_not_stop_the_others(gpu, monkeypatch, tmp_path):
    def broken(*given):
        raise ValueError("a kernel failed\nsecond line")

    monkeypatch.setattr(gpu, "time_ours", broken)
    found, status = run(gpu, monkeypatch, tmp_path, "--only", "d16", "memory")
    assert status is not None
    assert found["errors"][0]["error"] == "ValueError: a kernel failed"
    assert "in broken" in found["errors"][0]["trace"]
    assert [row["way"] for row in found["training"]] == ["released"]
    assert len(found["memory"]) == 2


def test_a_section_that_would_exceed_the_time_is_skipped(gpu, monkeypatch, tmp_path):
    found, status = run(gpu, monkeypatch, tmp_path, "--minutes", "0")
    assert status is None
    assert {row["why"] for row in found["skipped"]} == {"0 s are left"}
    assert {"d16", "resume"} <= {row["section"] for row in found["skipped"]}


def test_a_measurement_that_takes_too_long_is_stopped(gpu, monkeypatch, tmp_path):
    report = gpu.Report(tmp_path / "gpu.json", minutes=1)
    monkeypatch.setattr(gpu, "LEAST_LIMIT", 0.05)

    def endless():
        while True:
            try:
                sum(range(1000))
            except Exception:  # noqa: BLE001  as a compiler's, of which all errors are caught
                continue

    gpu.measure(gpu.Measurement("d16", "endless", 0.0, endless), report)
    assert report.results["skipped"][0]["why"].startswith("took more than 0 s")


@pytest.mark.slow
def test_the_benchmark_runs_without_the_packages_that_a_gpu_machine_lacks(tmp_path):
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    sections = ("sampling", "encoding", "d6", "d24", "families", "resume", "memory", "kernels")
    out = tmp_path / "gpu.json"
    subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--small", "--out", str(out), "--only", *sections],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    )
    found = json.loads(out.read_text())
    assert "errors" not in found
    assert "skipped" not in found
    assert [row["batch"] for row in found["sampling"] if row["precision"] == "fp32"] == [1, 4]
    assert {row["precision"] for row in found["encoding"]} == {"fp32", "tf32", "bf16", "fp16"}
    assert len(found["decoding"]) == 2
    steps = {(row["family"], row["depth"]) for row in found["training"]}
    assert steps == {("var", 1), ("var", 3), ("ar", 1), ("ar", 2), ("dit", 1), ("dit", 2)}
    assert all(row["median_seconds"] > 0 for row in found["training"])
    assert [row["agrees"] for row in found["resume"]] == [True]
    assert {row["micro_batch"] for row in found["memory"]} == {8}
    assert found["kernels"][0]["kernels"] > 100
