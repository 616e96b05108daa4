"""Options are followed exactly or refused; files on disk never override an option."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, bring, tokenizer, trial, var_state
from PIL import Image
from small_home import context_in, small_home

from pipelines.evaluation.fid import FidelityOptions, measure_fidelity
from pipelines.evaluation.reference_stats import CropOptions, real_data, reference_of
from pipelines.results.table import write_results
from pipelines.stages.stages import run_tokens
from pipelines.workspace.address import imported_sweep, read_tokenizer
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from var_scaling.datasets import DeadLeaves, ImageFiles
from var_scaling.disk import read_json
from var_scaling.evaluation.extractors import seeded_extractor
from var_scaling.models.var.config import VarModel


def silent(what: str, done: int, total: int) -> None:
    """Ignore progress reports."""


def picture_folder(root: Path, side: int = 24, splits=("train", "val"), count: int = 8) -> Path:
    """Images whose border differs from their centre, so that another crop gives another image."""
    generator = np.random.default_rng(0)
    for split in splits:
        for name in ("a", "b", "c"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def imported(files, tmp_path, monkeypatch) -> Home:
    """A home with the imported model `it`, and images called pictures."""
    picture_folder(tmp_path / "data" / "pictures")
    monkeypatch.setenv("VAR_SCALING_DATA", str(tmp_path / "data"))
    torch.save(var_state(VarModel(depth=1, width_per_depth=8)), files[1])
    bring(tmp_path / "home", *files)
    return Home(tmp_path / "home")


def scores(command, home: Home, *words: object, address: str = "imported/it") -> dict:
    code, out, err = command("evaluate", address, "--json", "--home", home.root, *words)
    assert code == 0, err
    found = json.loads(out)
    return {k: v for k, v in found.items() if k != "class_order"}


# evaluate -----------------------------------------------------------------------------------------


def test_each_crop_is_scored_as_requested(command, imported, files, tmp_path):
    """The result depends neither on the order of the calls nor on existing files."""
    cuts = (("--enlarge", "1.5"), ("--enlarge", "1.0"), (), ("--enlarge", "1.5"))
    found = [scores(command, imported, "--data", "pictures", *cut) for cut in cuts]
    assert found[0] == found[3]
    assert len({one["loss"] for one in found}) == 3
    assert [one["cut"]["enlarge"] for one in found] == [1.5, 1.0, 1.125, 1.5]
    for number, cut in enumerate(cuts[:3]):
        bring(tmp_path / f"fresh{number}", *files)
        fresh = Home(tmp_path / f"fresh{number}")
        assert scores(command, fresh, "--data", "pictures", *cut) == found[number]


def test_a_repeated_request_reuses_its_tokens(command, imported):
    words = ("--data", "pictures", "--enlarge", "1.5")
    first = scores(command, imported, *words)
    (tokens,) = imported.root.glob("tokens/it/*/tokens.npy")
    before = tokens.stat().st_mtime_ns
    assert scores(command, imported, *words) == first
    assert tokens.stat().st_mtime_ns == before


def test_tokens_of_a_sweep_are_reused_only_for_their_own_crop(command, imported, monkeypatch):
    own = ImageFiles(name="pictures", side=SMALL.side, classes=3, enlarge=1.5)
    t = read_tokenizer(imported.tokenizer("it"))
    run_tokens(context_in(imported, settings_of(imported)), t, own, "validation")
    usual = imported.tokens("it", "pictures", "validation")
    same = scores(command, imported, "--data", "pictures", "--enlarge", "1.5")
    assert [path.name for path in usual.parent.iterdir()] == [usual.name]
    other = scores(command, imported, "--data", "pictures", "--enlarge", "1.0")
    assert same["loss"] != other["loss"]
    assert read_json(usual / "manifest.json")["data"]["enlarge"] == 1.5
    assert len(list(usual.parent.iterdir())) == 2


def settings_of(home: Home) -> Settings:
    return Settings(data={"pictures": home.root.parent / "data" / "pictures"})


def test_a_trial_is_scored_with_its_own_crop_or_the_requested_one(command, tmp_path, monkeypatch):
    picture_folder(tmp_path / "data" / "sky")
    monkeypatch.setenv("VAR_SCALING_DATA", str(tmp_path / "data"))
    data = ImageFiles(name="sky", side=16, classes=3, enlarge=1.25)
    home = small_home(tmp_path / "home", trial(tokenizer=tokenizer(data=data), data=data))
    own, same, other = (
        scores(command, home, *words, address="grid/d2")
        for words in ((), ("--data", "sky", "--enlarge", "1.25"), ("--enlarge", "1.0"))
    )
    assert own == same
    assert own["cut"]["enlarge"] == 1.25
    assert other["cut"]["enlarge"] == 1.0
    assert other["loss"] != own["loss"]


def test_generated_images_cannot_be_cropped_differently(command, tmp_path):
    home = small_home(tmp_path / "home")
    for option, value in (("--enlarge", "1.5"), ("--validation-share", "0.2")):
        code, _, err = command("evaluate", "grid/d2", option, value, "--home", home.root)
        assert code == 2
        assert f"{option}: applies to image files only" in err


def test_each_share_of_held_out_images_is_scored_as_requested(
    command, imported, tmp_path, monkeypatch
):
    whole = picture_folder(tmp_path / "alone" / "all", splits=("",), count=40)
    monkeypatch.setenv("VAR_SCALING_DATA", str(whole.parent))
    shares = ("0.2", "0.5", "0.2")
    found = [
        scores(command, imported, "--data", "all", "--validation-share", share) for share in shares
    ]
    assert found[0] == found[2]
    assert found[0]["images_scored"] < found[1]["images_scored"]
    assert found[1]["cut"]["validation_share"] == 0.5
    # A survey is still protected: its files must not change.
    time.sleep(0.01)
    os.remove(whole / "a" / "0.png")
    words = ("evaluate", "imported/it", "--data", "all", "--enlarge", "2", "--home", imported.root)
    for share in ("0.2", "0.5"):
        code, _, err = command(*words, "--validation-share", share)
        assert (code, "the files have changed since they were surveyed" in err) == (2, True), err


def test_a_damaged_survey_is_refused(command, imported):
    scores(command, imported, "--data", "pictures")
    kept = imported.image_listing("pictures", "validation") / "kept.npy"
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    words = ("evaluate", "imported/it", "--data", "pictures", "--enlarge", "2")
    code, _, err = command(*words, "--home", imported.root)
    assert code == 2
    assert f"{kept} is damaged: its SHA-256 is" in err


def test_no_law_is_fitted_to_models_scored_on_different_crops(command, imported, files):
    bring(imported.root, *files, name="other")
    torch.save(var_state(VarModel(depth=2, width_per_depth=8)), files[1])
    bring(imported.root, *files, name="second")
    scores(command, imported, "--data", "pictures", "--enlarge", "1.5")
    scores(command, imported, "--data", "pictures", "--enlarge", "1.0", address="imported/second")
    with pytest.raises(
        ValueError, match=r"different crops or splits: it with enlarge 1\.5.*second with"
    ):
        write_results(imported, imported_sweep(imported))
    scores(command, imported, "--data", "pictures", "--enlarge", "1.5", address="imported/second")
    assert write_results(imported, imported_sweep(imported))


# fidelity -----------------------------------------------------------------------------------------


def test_a_requested_crop_also_applies_to_the_images_of_the_model(tmp_path):
    picture_folder(tmp_path / "data")
    place = context_in(Home(tmp_path / "home"), Settings(data={"sky": tmp_path / "data"}))
    own = ImageFiles(name="sky", side=16, classes=3, enlarge=1.25, validation_share=0.1)
    found = real_data(place, "sky", "train", 16, own, CropOptions(1.5, 0.3))
    assert (found.enlarge, found.validation_share) == (1.5, 0.3)
    found = real_data(place, "sky", "train", 16, own, CropOptions())
    assert (found.enlarge, found.validation_share) == (1.25, 0.1)


def test_two_shares_have_two_references(tmp_path):
    picture_folder(tmp_path / "data", splits=("",), count=20)
    place = context_in(Home(tmp_path / "home"), Settings(data={"sky": tmp_path / "data"}))
    found = []
    for share in (0.3, 0.6, 0.3):
        data = real_data(place, "sky", "train", 16, None, CropOptions(validation_share=share))
        found.append(reference_of(place, data, "train", seeded_extractor(), 50_000, silent))
    assert found[0].statistics.count > found[1].statistics.count
    assert found[0].sha256 == found[2].sha256 != found[1].sha256
    assert found[0].name != found[1].name


def test_generated_images_with_ambiguous_names_are_refused(tmp_path):
    home = Home(tmp_path / "home")
    place = context_in(home)
    for name, seed in (("one", 0), ("two", 1)):
        data = DeadLeaves(name="leaves", side=16, train_images=100, seed=seed)
        folder = home.tokenizer(name)
        folder.mkdir(parents=True)
        record = tokenizer(name=name, data=data)
        (folder / "tokenizer.json").write_text(record.model_dump_json())
    with pytest.raises(
        ValueError, match="the tokenizers one, two were trained on different images"
    ):
        real_data(place, "leaves", "train", 16, None, CropOptions())


@pytest.mark.parametrize(
    ("requested", "option"),
    [
        ({"images": 10}, "--images"),
        ({"crop": CropOptions(enlarge=1.5)}, "--enlarge"),
        ({"crop": CropOptions(validation_share=0.5)}, "--validation-share"),
    ],
)
def test_options_that_contradict_a_reference_file_are_refused(tmp_path, requested, option):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "1.png")
    expected = FidelityOptions(reference=tmp_path / "statistics.npz", **requested)
    with pytest.raises(ValueError, match=f"{option}: has no effect on the statistics"):
        measure_fidelity(context_in(Home(tmp_path / "home")), str(folder), expected, silent)


# Options that would have been dropped -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("fit", "smoke", "--column", "a=val_loss"),
            "--column: only for a table; smoke is not a .csv",
        ),
        (("fit", "smoke", "--complete", "tokens_seen"), "--complete: only for a table"),
        (("fit", "smoke", "--out", "there"), "--out: only for a table"),
        (
            ("plan", "smoke", "--on", "box", "--tflops", "9"),
            "--tflops 9: leave it out with --on box",
        ),
        (("status", "smoke", "--watch", "--json"), "--watch with --json"),
        (
            ("ui", "--port", "5005"),
            "--port 5005: leave it out, because var-scaling.toml names the server http://mlflow.example",
        ),
    ],
)
def test_an_option_without_effect_is_refused(command, tmp_path, monkeypatch, words, message):
    (tmp_path / "var-scaling.toml").write_text(
        '[clusters.box]\npartition = "p"\n[mlflow]\nuri = "http://mlflow.example"\n'
    )
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*words, "--home", tmp_path / "home")
    assert (code, message in err) == (2, True), err


def test_plan_uses_the_given_options(command, tmp_path):
    words = ("plan", "smoke", "--json", "--home", tmp_path / "home")
    hours = {}
    for tflops in (None, "400", "200"):
        option = () if tflops is None else ("--tflops", tflops)
        hours[tflops] = json.loads(command(*words, *option)[1])
    assert hours["400"] != hours["200"]
    of_basis = {
        tflops: {row["throughput"] for row in plan["trials"]} for tflops, plan in hours.items()
    }
    assert of_basis == {None: {"assumed"}, "400": {"set"}, "200": {"set"}}


def test_report_prints_json_if_requested(command, smoke, monkeypatch):
    monkeypatch.setattr("pipelines.report.publish.publish", lambda *words, **options: {})
    code, out, err = command("report", "smoke", "--json", "--home", smoke)
    assert code == 0, err
    assert json.loads(out) == {"report": str(smoke / "smoke" / "report" / "index.html")}


def test_retry_on_another_cluster_is_refused_while_a_driver_runs(command, tmp_path, monkeypatch):
    from pipelines.workspace import driver_lock as driver

    home = Home(tmp_path / "home")
    with driver.hold_driver_lock(home.sweep("smoke"), "local", False):
        code, _, err = command("retry", "smoke", "--on", "box", "--home", home.root)
    assert (code, "--on box:" in err) == (2, True), err
