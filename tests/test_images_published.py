"""Samples, edits and their scores are published to MLflow and the report once per change."""

import math
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import SMALL, trial
from PIL import Image
from test_report import frame

from analysis.study import study
from analysis.table.table import check
from pipelines.evaluation.scores import Fidelity, save_fidelity
from pipelines.evaluation.throughput import BenchmarkResult, save_benchmark
from pipelines.report.images import report_images
from pipelines.results.artifacts import artifacts_in
from pipelines.stages.graph import sweep_stages
from pipelines.tracking.mirror import Mirror
from pipelines.tracking.mlflow import MLflowTracker, client
from pipelines.tracking.sync import mirror_model
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home, init_run_dir
from var_scaling.disk import write_json
from var_scaling.evaluation.rates import (
    Machine,
    MatmulPeak,
    Memory,
    SamplingSpeed,
    Timing,
    TrainingSpeed,
)
from var_scaling.experiment import ImportedModel, Sweep
from var_scaling.experiment.sample_set import SampleSet
from var_scaling.models.var.config import VarModel, VarSampling

TRIALS = tuple(
    trial(name=f"d{depth}", model=VarModel(depth=depth, width_per_depth=8)) for depth in (2, 10, 4)
)
SWEEP = Sweep(name="s", question="?", trials=TRIALS)
SHA = "a" * 64
HASHES = {"weights_sha256": SHA, "tokenizer_sha256": SHA}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> Path:
    """An MLflow database for all tests of this file; creating one takes seconds."""
    home = Home(tmp_path_factory.mktemp("database"))
    client(home)
    return home.root / "mlflow.db"


@pytest.fixture
def home(tmp_path, empty_database) -> Home:
    """A home of three finished trials."""
    return with_trials(Home(tmp_path / "home"), empty_database)


def with_trials(home: Home, empty_database: Path) -> Home:
    for one in TRIALS:
        folder = home.trial("s", one.name)
        init_run_dir(folder, "trial.json", one)
        (folder / "weights.safetensors").touch()
        write_json(folder / "done.json", {"status": "done"})
    shutil.copy(empty_database, home.root / "mlflow.db")
    return home


@pytest.fixture(scope="module")
def few():
    """A study of three sizes, small but sufficient for the whole page."""
    return study(check(frame(depths=(1, 2, 3), seeds=(0,))))


def picture(path: Path, colour: str = "red", size=(64, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def samples(home: Home, name: str = "default", of: str = "d2", **changes) -> Path:
    """A set in the format of `sample`."""
    folder = home.trial("s", of) / "samples" / name
    requested = {"seed": 7, "classes": tuple(range(8)), "model_classes": 8, "count": 3}
    expected = SampleSet(name=name, **{**requested, "sampling": VarSampling(), **HASHES, **changes})
    init_run_dir(folder, "sampling.json", expected)
    picture(folder / "grid.png")
    picture(folder / "strips.png", "blue")
    write_json(folder / "done.json", {})
    return folder


def edit(home: Home, name: str = "leaf", of: str = "d2") -> Path:
    folder = home.trial("s", of) / "edits" / name
    picture(folder / "sheet.png", "green")
    requested = {"kind": "in-paint", "label": 3, "seed": 1, "sampling": VarSampling().model_dump()}
    write_json(folder / "edit.json", requested)
    write_json(folder / "done.json", {})
    return folder


def looked(folder: Path, **scores: float) -> None:
    """A result of `fidelity` in `folder`."""
    save_fidelity(folder, Fidelity(
        images=folder.name, set=folder.name, scores=scores, samples=24, references=600, counts={},
        extractor="seeded", extractor_sha256=SHA, reference="leaves-train", reference_sha256=SHA,
        commit=None, time="2026-01-02T03:04:05Z", seconds=1.0, device="cpu",
    ))  # fmt: skip


def timed(folder: Path) -> None:
    """A result of `speed` in `folder`; the larger batch did not fit into memory."""
    half = Timing(median_seconds=0.5, least_seconds=0.4, most_seconds=0.9, repeats=3)
    way = {"precision": "fp32", "guidance": 1.5}
    save_benchmark(folder, BenchmarkResult(
        machine=Machine(name="Box (R) 2", device="cpu", threads=1, torch="2"), **HASHES,
        commit=None, time="2026-01-02T03:04:05Z", seconds=2.0,
        peaks=(MatmulPeak(precision="fp32", side=64, flops_per_second=1e9),),
        sampling=(
            SamplingSpeed(batch=1, whole=half, images_per_second=2.0, transformer_mfu=0.25, **way),
            SamplingSpeed(batch=64, missing="out of memory", **way),
        ),
        training=(
            TrainingSpeed(
                precision="fp32", micro_batch=8, step=half, images_per_second=16.0,
                tokens_per_second=336.0, mfu=0.5, memory=Memory(process_growth_bytes=3_000_000),
            ),
        ),
    ))  # fmt: skip


def later(path: Path, seconds: float = 60) -> None:
    """Change the modification time of `path`, as if it had been written later."""
    at = path.stat().st_mtime_ns + int(seconds * 1e9)
    os.utime(path, ns=(at, at))


def run_of(mirror: Mirror, name: str = "d2"):
    (found,) = [
        run
        for run in mirror.tracker.client.search_runs([mirror.tracker.experiment("s")])
        if run.data.tags["var_scaling.address"] == f"s/{name}"
    ]
    return found


def artifacts(mirror: Mirror, place: str, name: str = "d2") -> list[str]:
    run = run_of(mirror, name).info.run_id
    folder = mirror.tracker.home.root / "mlartifacts" / "s" / run / "artifacts"
    return sorted(str(path.relative_to(folder)) for path in (folder / place).glob("*"))


def caught_up(home: Home) -> tuple[Mirror, list[str]]:
    """A synchronised mirror, and the files that it uploaded, without reconstructions."""
    mirror, sent = Mirror(home, SWEEP, MLflowTracker(home)), []
    send = mirror.tracker.artifact

    def artifact(run: str, file: Path, place: str = "") -> None:
        sent.append(f"{place or None}/{file.name}")
        send(run, file, place)

    mirror.tracker.artifact = artifact
    mirror.catch_up()
    return mirror, sent


# MLflow ----------------------------------------------------------------------------------------


def test_artifacts_made_after_a_run_ended_are_uploaded_once(home):
    assert caught_up(home)[1] == []
    looked(samples(home), fd_seeded=1.5, kd_seeded=-0.25)
    edit(home)
    mirror, sent = caught_up(home)
    assert sent == [
        "samples/default/grid.png",
        "samples/default/strips.png",
        "samples/default/fidelity.json",
        "edits/leaf/sheet.png",
    ]
    assert artifacts(mirror, "edits/leaf") == ["edits/leaf/sheet.png"]
    assert artifacts(mirror, "samples/default", "d2")[1:] == [
        "samples/default/grid.png",
        "samples/default/strips.png",
    ]
    run = run_of(mirror)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {
        "fidelity/default/fd_seeded": 1.5,
        "fidelity/default/kd_seeded": -0.25,
        "fidelity/default/samples": 24.0,
        "fd_seeded": 1.5,  # as in the results row
        "fidelity_samples": 24.0,
    }
    assert run.data.tags["fidelity_reference"] == "leaves-train"
    mirror.catch_up()
    again, sent = caught_up(home)
    assert sent == []
    history = again.tracker.client.get_metric_history(run.info.run_id, "fidelity/default/fd_seeded")
    assert [point.value for point in history] == [1.5]


def test_only_changed_artifacts_are_uploaded_again_and_the_latest_number_counts(home):
    looked(samples(home), fd_seeded=1.5)
    samples(home, "other")
    caught_up(home)
    looked(home.trial("s", "d2") / "samples/default", fd_seeded=0.5)
    later(home.trial("s", "d2") / "samples/default/fidelity.json")
    mirror, sent = caught_up(home)
    assert {place.rpartition("/")[0] for place in sent} == {"samples/default"}
    assert run_of(mirror).data.metrics["fidelity/default/fd_seeded"] == 0.5
    later(home.trial("s", "d2") / "samples/other/grid.png")
    assert caught_up(home)[1] == ["samples/other/grid.png", "samples/other/strips.png"]


def test_a_home_without_its_database_fills_a_new_one(home, tmp_path, empty_database):
    looked(samples(home), fd_seeded=1.5)
    first, sent = caught_up(home)
    moved = Home(tmp_path / "moved")  # MLflow keeps a deleted file open for its process
    shutil.copytree(home.root, moved.root, ignore=shutil.ignore_patterns("ml*"))
    shutil.copy(empty_database, moved.root / "mlflow.db")
    second, sent_again = caught_up(moved)
    assert sent_again == sent
    assert run_of(first).data.metrics == run_of(second).data.metrics


def test_an_unfinished_set_is_not_published(home):
    (samples(home) / "done.json").unlink()
    assert artifacts_in(home.trial("s", "d2")) == []
    assert caught_up(home)[1] == []


def test_scores_of_two_references_have_different_names(home):
    folder = samples(home)
    looked(folder, fid=9.0, kid=0.25)
    assert run_of(caught_up(home)[0]).data.metrics["fidelity/default/kid"] == 0.25
    save_fidelity(folder, Fidelity(
        images="default", set="default", scores={"fid": 3.0}, samples=24, references=None,
        counts={}, extractor="inception", extractor_sha256=SHA, reference="ADM's (256).npz",
        reference_sha256=SHA, commit=None, time="2027-01-01T00:00:00Z", seconds=1.0, device="cpu",
    ))  # fmt: skip
    (made,) = artifacts_in(home.trial("s", "d2"))
    assert made.metrics() == {
        "fidelity/default/fid": 3.0,
        "fidelity/default/samples": 24,
        "fidelity/default/leaves-train/fid": 9.0,
        "fidelity/default/leaves-train/kid": 0.25,
        "fidelity/default/leaves-train/samples": 24,
        "fidelity/default/ADM-s-256-.npz/fid": 3.0,
        "fidelity/default/ADM-s-256-.npz/samples": 24,
    }
    later(folder / "fidelity.json")
    mirror, _ = caught_up(home)  # MLflow accepts the names
    reported = run_of(mirror).data.metrics
    assert {name: reported[name] for name in made.metrics()} == made.metrics()
    # MLflow cannot delete metrics: outdated ones become NaN.
    assert {name for name, value in reported.items() if math.isnan(value)} == {
        "fidelity/default/kid", "kid",
    }  # fmt: skip
    assert run_of(mirror).data.tags["fidelity_reference"] == "ADM's (256).npz"


def test_speed_is_published_by_machine_without_numbers_for_missing_rows(home):
    timed(home.trial("s", "d2"))
    mirror, _ = caught_up(home)
    known = run_of(mirror).data.metrics
    assert known["sampling_latency_seconds"] == 0.5
    assert run_of(mirror).data.tags["speed_machine"] == "Box (R) 2, 1 thread"
    assert (
        known["speed/Box-R-2-1-thread/sampling/fp32/guidance-1.5/batch-1/transformer_mfu"] == 0.25
    )
    assert known["speed/Box-R-2-1-thread/training/fp32/batch-8/tokens_per_second"] == 336.0
    assert not [name for name in known if "batch-64" in name]


def test_a_command_publishes_its_own_model_and_a_failure_is_a_warning(home, empty_database):
    samples(home)
    message: list[str] = []
    mirror_model(home, Settings(), "s/d2", message.append)
    mirror = Mirror(home, SWEEP, MLflowTracker(home))
    assert len(mirror.tracker.client.search_runs([mirror.tracker.experiment("s")])) == 1
    assert len(artifacts(mirror, "samples/default")) == 2
    mirror_model(home, Settings(), "s/nothing", message.append)
    assert len(message) == 1
    assert "MLflow mirror: ValueError" in message[0]


def test_scores_of_a_tokenizer_are_published_in_its_own_run(home):
    mirror_model(home, Settings(), "tokenizers/t", pytest.fail)
    folder = home.tokenizer("t")
    write_json(folder / "done.json", {"status": "done"})
    looked(folder, fd_seeded=2.5)
    mirror_model(home, Settings(), "tokenizers/t", pytest.fail)
    mirror = Mirror(home, SWEEP, MLflowTracker(home))
    (run,) = mirror.tracker.client.search_runs([mirror.tracker.experiment("tokenizers")])
    assert run.data.metrics["fidelity/reconstructions/fd_seeded"] == 2.5
    (row,) = report_images(sweep_stages(home, SWEEP)).fidelity
    assert row["model"] == "tokenizers/t"
    mirror_model(home, Settings(), "tokenizers/unused", pytest.fail)


def test_an_imported_model_has_a_run_after_its_first_artifact(home):
    model = ImportedModel(
        name="it",
        model=VarModel(depth=2, width_per_depth=8),
        tokenizer=SMALL,
        classes=3,
        sha256=SHA,
    )
    folder = home.imported("it")
    init_run_dir(folder, "model.json", model)
    (folder / "weights.safetensors").touch()
    write_json(folder / "done.json", {"status": "done"})
    sweep = Sweep(name="imported", question="?", trials=(), imported=(model,))
    Mirror(home, sweep, MLflowTracker(home)).catch_up()
    names = [one.name for one in client(home).search_experiments()]
    assert "imported" not in names
    timed(folder)
    for _ in range(2):
        mirror_model(home, Settings(), "imported/it", pytest.fail)
    mirror = Mirror(home, sweep, MLflowTracker(home))
    (run,) = mirror.tracker.client.search_runs([mirror.tracker.experiment("imported")])
    assert run.info.status == "FINISHED"
    assert run.data.params["sha256"] == SHA
    assert run.data.metrics["training_mfu"] == 0.5


def table(page: str, anchor: str) -> dict[str, list[str]]:
    """A table of the page, by heading."""
    found = re.search(rf'<table id="{anchor}">.*?</table>', page, re.DOTALL)
    assert found is not None
    head, *rows = [
        re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in found.group().split("<tr>")[1:]
    ]
    return {name: [row[i] for row in rows] for i, name in enumerate(head)}
