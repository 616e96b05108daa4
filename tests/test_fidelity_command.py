"""`fidelity` of a set, tokenizer or folder equals the library functions on the same images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CLASSES, SMALL, bring
from PIL import Image
from typer.testing import CliRunner

from pipelines.cli import main as cli
from pipelines.cli.fidelity import cautions
from pipelines.evaluation import reference_stats as references
from pipelines.evaluation import scores as measured
from pipelines.evaluation.fid import FidelityOptions, measure_fidelity
from pipelines.evaluation.reference_stats import CropOptions, real_data, real_images, reference_of
from pipelines.evaluation.scores import Fidelity, comparable, fidelities, has_row, save_fidelity
from pipelines.evaluation.throughput import BenchmarkResult, save_benchmark
from pipelines.results.table import write_results
from pipelines.sampling.draw import DrawOptions, sample_set
from pipelines.sampling.request import SampleOptions, plan_set
from pipelines.stages.attempt import Stopped
from pipelines.stages.context import RunContext, StopFile
from pipelines.tracking import sync as mirror
from pipelines.workspace.settings import Settings, Weights, load_settings
from pipelines.workspace.store import Home
from sweeps.smoke import sweep
from var_scaling.data.dead_leaves import DeadLeavesSource
from var_scaling.data.decode import crop, resized
from var_scaling.data.order import spread_rows
from var_scaling.datasets import DeadLeaves, ImageFiles
from var_scaling.disk import read_json
from var_scaling.evaluation.extractors import INCEPTION_FILE, INCEPTION_SHA256, seeded_extractor
from var_scaling.evaluation.fidelity import compare
from var_scaling.evaluation.rates import Machine, SamplingSpeed, Timing, TrainingSpeed
from var_scaling.evaluation.statistics import Statistics, StatisticsError
from var_scaling.metrics import MetricsLog
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.weights import WeightsError, file_sha256

FEW = FidelityOptions(images=200)
DATA = sweep.trials[0].data
TRAIN = f"{DATA.name}-train-200"


def report_progress(what: str, done: int, total: int) -> None:
    assert done <= total


def context_in(home, settings=None) -> RunContext:
    return RunContext(Home(home), settings or Settings(), StopFile(home / "stop"))


def drawn(context: RunContext, address: str, stop=lambda done: False, **requested):
    """A finished set of samples; its folder."""
    plan = plan_set(context, address, SampleOptions(**requested))
    assert sample_set(context, plan, DrawOptions(), stop, report_progress) == []
    return plan.folder


@pytest.fixture(scope="module")
def context(smoke):
    """`smoke`, with a set of 40 samples of its second model."""
    context = context_in(smoke)
    drawn(context, "smoke/d2", count=5)
    return context


def gathered(images: np.ndarray) -> Statistics:
    extractor = seeded_extractor()
    found = Statistics(extractor)
    found.add(extractor(torch.from_numpy(images)), np.arange(len(images)))
    return found


def pictures(folder, images: np.ndarray) -> None:
    for number, image in enumerate(images):
        path = folder / f"{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def leaves(split: str, count: int) -> np.ndarray:
    assert isinstance(DATA, DeadLeaves)
    source = DeadLeavesSource(DATA, split)
    return source.images(spread_rows(source.rows, count))


# A set of samples ---------------------------------------------------------------------------------


def test_fidelity_equals_the_library_functions_on_the_same_images(context):
    found = measure_fidelity(context, "smoke/d2", FEW, report_progress)
    folder = context.home.root / "smoke" / "d2" / "samples" / "default"
    files = sorted((folder / "images").glob("*/*.png"), key=lambda path: (path.stem, path.parent))
    fake = gathered(np.stack([np.asarray(Image.open(path)) for path in files]))
    line = compare(fake, gathered(leaves("train", 200)), seeded_extractor())
    expected = {name: value for name, value in line.items() if isinstance(value, float)}
    assert found.fidelity.scores == pytest.approx(expected, rel=1e-9)
    assert {"fd_seeded", "score_seeded", "kd_seeded", "precision_seeded"} <= set(expected)
    assert not {"fid", "inception_score", "kid"} & set(found.fidelity.scores)
    assert (found.fidelity.samples, found.fidelity.references) == (40, 200)
    assert (found.fidelity.reference, found.kept_in) == (TRAIN, folder)


def test_a_repeated_measurement_is_stored_once_and_reuses_the_reference(context, monkeypatch):
    folder = context.home.root / "smoke" / "d2" / "samples" / "default"
    first = measure_fidelity(context, "smoke/d2", FEW, report_progress).fidelity
    monkeypatch.setattr(
        references, "save_statistics", None
    )  # computing the statistics again would call it
    again = measure_fidelity(context, "smoke/d2", FEW, report_progress).fidelity
    assert again.scores == first.scores
    assert [one for one in fidelities(folder) if one.reference == TRAIN] == [again]
    monkeypatch.undo()
    measure_fidelity(context, "smoke/d2", replace(FEW, against="validation"), report_progress)
    assert len(fidelities(folder)) == 2


def test_statistics_of_other_images_are_refused_under_the_same_name(context):
    measure_fidelity(context, "smoke/d2", FEW, report_progress)
    other = DATA.model_copy(update={"seed": 77})
    with pytest.raises(StatisticsError, match=r"'seed': 2(.|\n)*'seed': 77(.|\n)*Move .* away"):
        reference_of(context, other, "train", seeded_extractor(), 200, report_progress)


def test_external_statistics_give_the_scores_that_they_allow(context, tmp_path):
    ours = measure_fidelity(context, "smoke/d2", FEW, report_progress).fidelity
    kept = next(context.home.reference(f"{TRAIN}-16px-seeded").glob("*.npz"))
    with np.load(kept) as arrays:
        np.savez(tmp_path / "adm.npz", mu=arrays["mu"], sigma=arrays["sigma"], mu_s=np.ones(7))
    requested = FidelityOptions(reference=tmp_path / "adm.npz")
    theirs = measure_fidelity(context, "smoke/d2", requested, report_progress).fidelity
    assert theirs.scores["fd_seeded"] == pytest.approx(ours.scores["fd_seeded"], rel=1e-9)
    assert "kd_seeded" not in theirs.scores
    head = file_sha256(tmp_path / "adm.npz")[:8]
    assert (theirs.reference, theirs.references) == (f"adm.npz {head}", None)
    # Our own files have all statistics, in any folder.
    whole = measure_fidelity(
        context, "smoke/d2", FidelityOptions(reference=kept), report_progress
    ).fidelity
    assert whole.scores == ours.scores
    (tmp_path / "torn.npz").write_bytes(kept.read_bytes()[:900])
    with pytest.raises(StatisticsError, match=r"torn\.npz: damaged"):
        measure_fidelity(
            context, "smoke/d2", FidelityOptions(reference=tmp_path / "torn.npz"), report_progress
        )


def test_two_files_with_one_name_are_different_references(context, tmp_path):
    folder = context.home.root / "smoke" / "d2" / "samples" / "default"
    before, found = fidelities(folder), []
    for scale in (1.0, 2.0):
        path = tmp_path / str(scale) / "stats.npz"
        path.parent.mkdir()
        width = seeded_extractor().width
        np.savez(path, mu=np.zeros(width), sigma=scale * np.eye(width))
        found.append(
            measure_fidelity(
                context, "smoke/d2", FidelityOptions(reference=path), report_progress
            ).fidelity
        )
    assert [one for one in fidelities(folder) if one not in before] == found
    assert comparable(found, found[0]) == found[:1]


def test_a_reference_does_not_claim_more_images_than_exist(context):
    data = DATA.model_copy(update={"name": "few", "validation_images": 12})
    names = [
        reference_of(context, data, "validation", seeded_extractor(), images, report_progress).name
        for images in (50_000, 12, 13, 11)
    ]
    assert names == ["few-validation"] * 3 + ["few-validation-11"]


def test_without_inceptions_weights_the_error_names_the_expected_file(context, tmp_path):
    for weights in (Weights(), Weights(inception=tmp_path / "absent.pth")):
        without = replace(context, settings=Settings(weights=weights))
        with pytest.raises(WeightsError) as error:
            measure_fidelity(
                without, "smoke/d2", FidelityOptions(extractor="inception"), report_progress
            )
        for message in (INCEPTION_FILE, "95,628,359 bytes", INCEPTION_SHA256):
            assert message in str(error.value)
    with pytest.raises(WeightsError, match="no such file"):  # a given file is required
        measure_fidelity(without, "smoke/d2", FidelityOptions(), report_progress)


def test_an_unfinished_set_is_refused(context):
    with pytest.raises(Stopped):
        drawn(context, "smoke/d1", stop=lambda done: done >= 64, count=20)
    words = r"1 of 3 chunks.*var-scaling sample smoke/d1 --name default --count 20"
    with pytest.raises(ValueError, match=words):
        measure_fidelity(context, "smoke/d1", FEW, report_progress)
    with pytest.raises(ValueError, match="no set of samples 'best'; its sets are default"):
        measure_fidelity(context, "smoke/d2", replace(FEW, set="best"), report_progress)


# Results ------------------------------------------------------------------------------------------


def test_results_have_the_scores_of_the_largest_set_of_a_finished_model(context, smoke):
    larger = drawn(context, "smoke/d2", name="larger", count=6)
    for name in ("default", "larger"):
        measure_fidelity(context, "smoke/d2", replace(FEW, set=name), report_progress)
    ours = measure_fidelity(
        context, "smoke/d2", replace(FEW, set="larger"), report_progress
    ).fidelity
    inception = {
        "images": ours.images,
        "extractor": "inception",
        "time": "2020-01-01T00:00:00Z",
        "scores": {"fid": 9.0, "inception_score": 2.0, "kid": -1e-3, "precision": 0.5,
                   "recall": 0.25},
    }  # fmt: skip
    save_fidelity(larger, ours.model_copy(update=inception))
    elsewhere = {"reference": "adm.npz", "references": None, "scores": {"fd_seeded": 1.0}}
    save_fidelity(larger, ours.model_copy(update=elsewhere))
    timing = Timing.of([0.5])
    rows = [
        SamplingSpeed(precision="fp32", guidance=1.5, batch=batch, whole=timing,
                      images_per_second=2.0 * batch)
        for batch in (1, 8)
    ]  # fmt: skip
    learning = TrainingSpeed(precision="fp32", micro_batch=8, step=timing, tokens_per_second=99.0)
    save_benchmark(
        smoke / "smoke" / "d2",
        BenchmarkResult(
            machine=Machine(name="m", device="cpu", threads=1, torch="2"),
            weights_sha256="0", tokenizer_sha256="0", commit=None, time="2020", seconds=1.0,
            peaks=(), sampling=tuple(rows), training=(learning,),
        ),
    )  # fmt: skip
    write_results(context.home, sweep)
    table = pq.read_table(smoke / "smoke" / "results.parquet").to_pylist()
    [end] = [row for row in table if row["trial"] == "d2" and row["step"] == row["steps"]]
    assert {name: end[name] for name in measured.columns(smoke / "smoke" / "d2")} == {
        "fid": 9.0, "inception_score": 2.0, "kid": -1e-3, "fidelity_precision": 0.5,
        "fidelity_recall": 0.25, "fd_seeded": ours.scores["fd_seeded"], "fidelity_samples": 48,
        "fidelity_set": "larger", "fidelity_reference": TRAIN,
        "speed_machine": "m, 1 thread", "sampling_images_per_second": 16.0,
        "sampling_latency_seconds": 0.5, "training_tokens_per_second": 99.0,
    }  # fmt: skip
    assert end["precision"] == "fp32"
    assert end["sampling_peak_memory_bytes"] is None
    others = [row for row in table if row is not end]
    assert others
    assert {row["fidelity_samples"] for row in others} == {None}


def looked(tmp_path, name: str, samples: int, time: str, **changes) -> Fidelity:
    """A result of `fidelity` for that set of the model in `tmp_path`."""
    known = {
        "images": f"set {name}", "set": name, "scores": {"fid": 2.0}, "samples": samples,
        "references": 600, "counts": {}, "extractor": "inception", "extractor_sha256": "a",
        "reference": "leaves-train", "reference_sha256": "b", "commit": None, "time": time,
        "seconds": 1.0, "device": "cpu",
    }  # fmt: skip
    one = Fidelity.model_validate(known | changes)
    folder = tmp_path / "samples" / name
    folder.mkdir(parents=True, exist_ok=True)
    save_fidelity(folder, one)
    return one


def test_of_sets_with_one_size_the_default_set_has_the_results_row(tmp_path):
    looked(tmp_path, "default", 80, "2026")
    looked(tmp_path, "guided", 80, "2027")
    assert measured.columns(tmp_path)["fidelity_set"] == "default"
    looked(tmp_path, "large", 90, "2025")
    assert measured.columns(tmp_path)["fidelity_set"] == "large"


@pytest.mark.parametrize(
    ("samples", "changes", "message"),
    [
        (
            4_990,
            {},
            ("upwards", "10 splits of about 499,", "leaves-train was computed by this project"),
        ),
        (9_999, {}, ("upwards", "leaves-train was computed by this project")),
        (10_000, {"references": None}, ("has only moments",)),
        (10_000, {"scores": {"fd_seeded": 1.0}}, ()),
    ],
)
def test_misleading_comparisons_are_warned_about(tmp_path, samples, changes, message):
    found = cautions(looked(tmp_path, "default", samples, "2026", **changes))
    assert len(found) == len(message)
    assert all(word in line for word, line in zip(message, found, strict=True))


# A tokenizer, a folder, other data ---------------------------------------------------------------


def test_a_lossless_tokenizer_has_distance_0(context, monkeypatch):
    worse = measure_fidelity(context, "tokenizers/tiny-smoke", FEW, report_progress)
    monkeypatch.setattr(MultiScaleVQVAE, "encode", lambda self, images: images)
    monkeypatch.setattr(MultiScaleVQVAE, "decode", lambda self, images: images)
    best = measure_fidelity(context, "tokenizers/tiny-smoke", FEW, report_progress)
    assert best.fidelity.scores["fd_seeded"] == pytest.approx(0, abs=1e-9)
    assert best.fidelity.scores["precision_seeded"] == 1
    assert worse.fidelity.scores["fd_seeded"] > 0.1
    assert best.fidelity.reference == f"{DATA.name}-validation-200"
    assert fidelities(context.home.tokenizer("tiny-smoke")) == [best.fidelity]


def test_a_folder_of_images_is_scored_and_not_changed(context, tmp_path):
    folder = tmp_path / "mine"
    pictures(folder, leaves("validation", 60))
    before = sorted(folder.rglob("*"))
    requested = FidelityOptions(images=60, against=f"{DATA.name}-validation")
    found = measure_fidelity(context, str(folder), requested, report_progress)
    assert found.fidelity.scores["fd_seeded"] == pytest.approx(0, abs=1e-9)
    assert found.fidelity.images == "folder mine"
    assert (found.kept_in, sorted(folder.rglob("*"))) == (None, before)
    with pytest.raises(ValueError, match="its reference images are not known"):
        measure_fidelity(context, str(folder), FidelityOptions(), report_progress)
    for size, message in (((20, 20), "20 px, but 000.png has 16"), ((16, 18), "crop to squares")):
        Image.new("RGB", size).save(folder / "2" / "odd.jpg")
        with pytest.raises(ValueError, match=message):
            measure_fidelity(context, str(folder), requested, report_progress)


def test_a_reference_uses_the_centre_crop_of_each_training_image_once(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        originals = generator.integers(0, 256, (6, 20, 24, 3), np.uint8)
        pictures(tmp_path / "data" / split, originals)
        if split == "train":
            centres = [crop(resized(Image.fromarray(one), 16, 1.25), 16) for one in originals]
    context = context_in(tmp_path / "home", Settings(data={"noise": tmp_path / "data"}))
    own = ImageFiles(name="noise", side=16, classes=3, crops=4, enlarge=1.25, flip=True)
    data = real_data(context, "noise", "train", 16, own, CropOptions())
    found = real_images(context, data, "train").images(np.arange(6), np.arange(6))
    assert sorted(found.tolist()) == sorted(np.stack(centres).tolist())
    assert reference_of(
        context, data, "train", seeded_extractor(), 50_000, report_progress
    ).name == ("noise-train-x1.25")
    # Without a record the images of the folder are used as they are.
    anew = real_data(context, "noise", "validation", 8, None, CropOptions(validation_share=0.5))
    assert (anew.side, anew.classes, anew.enlarge, anew.crops) == (8, 3, 1.0, 0)
    with pytest.raises(ValueError, match=r"no such images; add \[data\] other"):
        real_data(context, "other", "train", 8, None, CropOptions())


def test_an_imported_model_is_compared_with_the_given_data(files, tmp_path):
    home = tmp_path / "home"
    noise = np.random.default_rng(0).integers(0, 256, (9, SMALL.side, SMALL.side, 3), np.uint8)
    for split in ("train", "val"):
        pictures(tmp_path / "noise" / split, noise)
    bring(home, *files)
    context = context_in(home, Settings(data={"noise": tmp_path / "noise"}))
    folder = drawn(context, "imported/it", count=1)
    with pytest.raises(ValueError, match="are not known: give --against NAME-train"):
        measure_fidelity(context, "imported/it", FidelityOptions(), report_progress)
    found = measure_fidelity(
        context, "imported/it", FidelityOptions(against="noise-train"), report_progress
    )
    assert (found.fidelity.samples, found.fidelity.references) == (CLASSES, 9)
    assert measured.columns(folder.parent.parent)["fidelity_reference"] == "noise-train"
    assert not has_row(folder.parent.parent)  # until it is evaluated
    MetricsLog(folder.parent.parent / "metrics.jsonl")("validation", 0, {"loss": 1.0})
    assert has_row(folder.parent.parent)


@pytest.mark.parametrize(
    ("address", "requested", "message"),
    [
        ("nowhere/d1", FidelityOptions(), "neither SWEEP/TRIAL"),
        (
            "smoke/d2",
            FidelityOptions(against="leaves"),
            "allowed are NAME-train and NAME-validation",
        ),
        (
            "smoke/d2",
            FidelityOptions(against="-train"),
            "allowed are NAME-train and NAME-validation",
        ),
        ("smoke/d2", FidelityOptions(against="other-train"), "no such images"),
        (
            "smoke/d2",
            FidelityOptions(against="train", crop=CropOptions(enlarge=1.1)),
            "are generated at 16 px",
        ),
        (
            "smoke/d2",
            FidelityOptions(against="train", reference=Path("any.npz")),
            "exclude each other",
        ),
        (
            "tokenizers/tiny-smoke",
            FidelityOptions(set="default"),
            "only models have sets of samples",
        ),
    ],
)
def test_invalid_measurements_are_refused_with_a_message(context, address, requested, message):
    with pytest.raises(ValueError, match=message):
        measure_fidelity(context, address, requested, report_progress)


# The command --------------------------------------------------------------------------------------


def test_the_command_prints_the_extractor_and_the_scores(context, smoke, tmp_path, monkeypatch):
    brought = []
    monkeypatch.setattr(mirror, "mirror_model", lambda *given: brought.append(given[2]))
    (tmp_path / "one.toml").write_text("[local]\ncpus = 1\n")
    monkeypatch.setenv("VAR_SCALING_SETTINGS", str(tmp_path / "one.toml"))
    words = ["fidelity", "smoke/d2", "--images", "200", "--home", str(smoke)]
    done = CliRunner().invoke(cli.app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    folder = smoke / "smoke" / "d2" / "samples" / "default"
    assert found in read_json(folder / "fidelity.json")["measured"]
    assert "is no FID and can be compared only with that of the same network" in done.stderr
    shown = CliRunner().invoke(cli.app, words)
    assert f"{found['scores']['fd_seeded']:.5g}" in shown.stdout
    assert "the Fréchet distance is biased upwards, the more the fewer images" in shown.stdout
    assert brought == ["smoke/d2"] * 2
    assert "was not evaluated" not in done.stderr
    (smoke / "smoke" / "d2" / "metrics.jsonl").rename(tmp_path / "away")
    unevaluated = CliRunner().invoke(cli.app, [*words, "--json"])
    (tmp_path / "away").rename(smoke / "smoke" / "d2" / "metrics.jsonl")
    assert json.loads(unevaluated.stdout)["scores"] == found["scores"]
    assert "to appear in a results table, run var-scaling evaluate smoke/d2" in unevaluated.stderr


def test_relative_weight_paths_start_at_the_settings_file(tmp_path):
    path = tmp_path / "var-scaling.toml"
    path.write_text('[weights]\ninception = "a.pth"\nclassifier = "/b.pth"\nlpips = ["c.pth"]\n')
    found = load_settings(path).weights
    assert {key: str(path) for key, path in found.files()} == {
        "inception": str(tmp_path / "a.pth"), "classifier": "/b.pth",
        "lpips": str(tmp_path / "c.pth"),
    }  # fmt: skip
