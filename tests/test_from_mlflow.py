"""The table of a sweep is the same from disk and from MLflow; and third-party experiments."""

from itertools import product

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import trial

from analysis.table.mlflow import from_mlflow
from analysis.table.schema import BY_NAME, NATIVE_COLUMNS
from analysis.table.table import TableError, load_results, load_table
from pipelines.evaluation.scores import NUMBER_COLUMNS, TEXT_COLUMNS, Fidelity, save_fidelity
from pipelines.evaluation.throughput import BenchmarkResult, save_benchmark
from pipelines.results.table import arrow_table, rows_of, schedule_class, write_results
from pipelines.tracking.mirror import Mirror
from pipelines.tracking.mlflow import MLflowTracker
from pipelines.workspace.store import Home, init_run_dir
from var_scaling.disk import write_json
from var_scaling.evaluation.rates import Machine, SamplingSpeed, Timing
from var_scaling.experiment import Sweep
from var_scaling.metrics import MetricsLog
from var_scaling.models.var.config import VarModel
from var_scaling.recipe import Optimiser

SWEEP = Sweep(
    name="s",
    question="?",
    trials=tuple(
        trial(name=f"d{depth}", seed=depth, model=VarModel(depth=depth, width_per_depth=8))
        for depth in (1, 2, 3)
    ),
)


MEASURED = {
    "fid", "inception_score", "kid", "fidelity_recall", "fidelity_samples", "fidelity_set",
    "fidelity_reference", "speed_machine", "sampling_images_per_second",
    "sampling_latency_seconds",
}  # fmt: skip


def line(step: int, depth: int) -> dict:
    scores = {"loss": 3.3 - depth / 10 - step / 99, "loss_last": 3.1, "loss_stderr": 1 / 700}
    scores |= {"error": 0.9, "error_last": 0.7 + 0.1 / depth, "error_stderr": 0.01}
    if step == 12:
        scores |= {"loss_no_label": 3.5, "error_no_label": 0.95}
    clock = {"seconds": step / 3, "images_per_second": 24.0, "tokens_seen": step * 8 * 21}
    lists = {"loss_parts": [3.0, 2.5, 1 / 3], "error_parts": [0.9, 0.8, 0.7]}
    return {**scores, **lists, **clock, "images_scored": 100, "evaluation_flops": 10**9}


def measure(folder) -> None:
    """Results of `fidelity` and `speed`, with the seeded extractor."""
    (folder / "samples" / "default").mkdir(parents=True)
    inception = {"fid": 12.5, "inception_score": 3.25, "kid": -1 / 3, "recall": 0.75}
    for found, reference in (({"fd_seeded": 2.0}, "adm.npz 0a"), (inception, "leaves-train")):
        one = Fidelity(
            images="set default", set="default", scores=found, samples=24, references=600,
            counts={}, extractor="any", extractor_sha256="a", reference=reference,
            reference_sha256="b", commit=None, time="2026", seconds=1.0, device="cpu",
        )  # fmt: skip
        save_fidelity(folder / "samples" / "default", one)
    timing = Timing.of([0.3])
    way = {"precision": "fp32", "guidance": 1.5, "whole": timing}
    save_benchmark(
        folder,
        BenchmarkResult(
            machine=Machine(name="m", device="cpu", threads=2, torch="2"), weights_sha256="0",
            tokenizer_sha256="0", commit=None, time="2026", seconds=1.0, peaks=(), training=(),
            sampling=(SamplingSpeed(batch=1, images_per_second=1 / 0.3, **way),),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    """Three trials, the last one half trained, in a home and its mirror."""
    home = Home(tmp_path_factory.mktemp("home"))
    write_json(home.tokens("t", "leaves", "train") / "manifest.json", {"images": 600})
    for t in SWEEP.trials:
        folder = home.trial("s", t.name)
        init_run_dir(folder, "trial.json", t)
        write_json(folder / "provenance.json", {"attempts": [{"commit": "12e45"}]})
        log = MetricsLog(folder / "metrics.jsonl")
        for step in (3, 6, 12)[: 2 if t.name == "d3" else 3]:
            log("train", step - 1, {"loss": 4.0 / step, "seconds": 1.0, "images_per_second": 9.0})
            log("validation", step, line(step, t.model.depth))
        log.close()
        if t.name != "d3":
            write_json(folder / "done.json", {"status": "done"})
        if t.name == "d1":
            measure(folder)
    write_results(home, SWEEP)
    return home


@pytest.fixture(scope="module")
def mirror(home) -> Mirror:
    mirror = Mirror(home, SWEEP, MLflowTracker(home))
    mirror.catch_up()
    return mirror


def test_the_table_from_mlflow_equals_the_table_from_disk(home, mirror):
    disk = load_results(home.sweep("s") / "results.parquet")
    mirror.publish_law({"law/x/alpha": 0.1}, {"law": ["x"], "alpha": [0.1]}, [])
    found = from_mlflow(mirror.tracker.client, "s")
    for ours, other in ((disk.finals, found.finals), (disk.rows, found.rows)):
        shared = [name for name in BY_NAME if other[name].notna().any()]
        assert {*NATIVE_COLUMNS, "val_loss_parts", "train_loss", "commit", "attempts"} <= set(
            shared
        )
        assert {name for name in (*NUMBER_COLUMNS, *TEXT_COLUMNS) if name in shared} == MEASURED
        for name in sorted(MEASURED):  # only of the end of one run
            assert other[name].notna().tolist().count(True) == 1
        ours, other = (f.sort_values(["trial", "step"], ignore_index=True) for f in (ours, other))
        rates = [f.pop("learning_rate") for f in (ours, other)]  # the mirror shows four digits
        np.testing.assert_allclose(*rates, rtol=1e-3)
        shared.remove("learning_rate")
        pd.testing.assert_frame_equal(ours[shared], other[shared], check_exact=True)
    assert found.finals.trial.tolist() == ["d1", "d2"]
    assert found.dropped == ("run law: logged no score",)
    assert found.source == "MLflow experiment s"


def test_missing_and_empty_experiments_have_different_messages(mirror):
    with pytest.raises(TableError, match=r"no MLflow experiment 'none'; there are: Default, s"):
        from_mlflow(mirror.tracker.client, "none")
    mirror.tracker.client.create_experiment("void")
    with pytest.raises(TableError, match="void: there is no run in it"):
        from_mlflow(mirror.tracker.client, "void")


def test_a_third_party_experiment_is_read_with_its_own_column_names(mirror):
    client = mirror.tracker.client
    place = client.create_experiment("theirs")
    for size in (1e6, 2e6):
        run = client.create_run(place, run_name="gpt").info.run_id
        client.log_param(run, "n_params", size)
        for step in (100, 200):
            client.log_metric(run, "eval_loss", 3 - step / 1e3, step=step)
            client.log_metric(run, "tokens", step * 512.0, step=step - 1)
            client.log_metric(run, "learning_rate", 1 / step, step=step)
        client.set_terminated(run, "FINISHED")
    once = client.create_run(place, run_name="once").info.run_id
    client.log_param(once, "n_params", 3e6)
    client.log_metric(once, "eval_loss", 2.5)
    client.set_terminated(once, "FINISHED")
    with pytest.raises(TableError, match=r"no run logged a score .*there are: eval_loss, learning"):
        from_mlflow(client, "theirs")
    with pytest.raises(TableError, match="there is no 'test_loss'; there are: eval_loss"):
        from_mlflow(client, "theirs", {"test_loss": "val_loss"})
    names = {"eval_loss": "val_loss", "n_params": "params_total", "tokens": "tokens_seen"}
    finals = from_mlflow(client, "theirs", names).finals
    assert finals.params_total.tolist() == [1e6, 2e6, 3e6]
    assert finals.val_loss.tolist() == [2.8, 2.8, 2.5]
    assert finals.tokens_seen.tolist()[:2] == [200 * 512.0] * 2
    assert finals.learning_rate.tolist()[:2] == [0.01, 0.01]
    assert finals.trial.nunique() == 3  # runs with equal names are distinguished by their ids


def test_a_row_has_its_schedule_and_its_number_of_unique_tokens(home):
    rows = rows_of(home, SWEEP)
    assert {row["unique_tokens"] for row in rows} == {600 * 21}
    assert {row["schedule"] for row in rows} == {
        "warm-up 0.04 from 0.005, plateau 0.7, linear to 0.02"
    }


def test_runs_with_one_schedule_class_differ_only_in_peak_and_length():
    from var_scaling.training.optim import learning_rate_at

    shapes: dict[str, set] = {}
    choices = product(
        [(0.0, 0.1), (0.3, 0.1), (0.3, 1.0)],
        ["linear", "cosine", "exponential", "two_slopes"],
        [0.3, 0.6, 1.0],
        [0.1, 0.3, 1.0],
        [1e-3, 2.0],
    )
    for (warm_up, warm_up_from), decay, plateau, final, peak in choices:
        if decay != "two_slopes" or plateau < 1:
            changes = {"decay": decay, "plateau": plateau, "final": final, "warm_up": warm_up}
            optimiser = Optimiser(learning_rate=peak, warm_up_from=warm_up_from, **changes)
            rates = [learning_rate_at(optimiser, step, 30) / peak for step in range(30)]
            shape = tuple(round(rate, 9) for rate in rates)
            shapes.setdefault(schedule_class(optimiser), set()).add(shape)
    assert {len(shape) for shape in shapes.values()} == {1}
    assert len(shapes) == 3 * (4 * 2 * 2 + 1)


def test_flops_of_the_papers_models_fit_the_file(home, tmp_path):
    row = rows_of(home, SWEEP)[-1]
    huge = {**row, "train_flops": 3 * 10**21, "train_flops_mlp": 10**21}
    pq.write_table(arrow_table([huge]), tmp_path / "t.parquet")
    assert load_table(tmp_path / "t.parquet").rows.train_flops.tolist() == [3e21]
