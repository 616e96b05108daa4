"""The files of a set do not depend on the number of processes or on interruptions."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_home import ADDRESS, context_in, small_home

from pipelines.sampling.draw import DrawOptions, sample_set
from pipelines.sampling.export import export_npz
from pipelines.sampling.request import SampleOptions, plan_set
from pipelines.sampling.store import SampleFolder
from pipelines.stages.attempt import Stopped
from pipelines.workspace.store import ConfigMismatchError
from var_scaling.disk import DONE, is_done, read_json, write_json
from var_scaling.experiment.sample_set import CHUNK, Rejection, Request, SampleSet
from var_scaling.generation.reject import accept
from var_scaling.models.var.config import VarSampling
from var_scaling.weights import WeightsError, file_sha256, load_tensors, save_tensors

HASH = "0" * 64


def record(**changes) -> SampleSet:
    fields = {
        "name": "s", "seed": 0, "classes": (0, 2, 5), "model_classes": 8, "count": 50,
        "sampling": VarSampling(), "weights_sha256": HASH, "tokenizer_sha256": HASH,
    }  # fmt: skip
    return SampleSet(**{**fields, **changes})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _alone_and_quick(home, monkeypatch):
    """Without sets of other tests and without fsync; the page cache survives a killed process."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    shutil.rmtree(home.root / ADDRESS / "samples", ignore_errors=True)


def requested(home, count: int = 9, **words):
    return plan_set(context_in(home), ADDRESS, SampleOptions(count=count, **words))


def make(home, plan, options=None, stop=lambda done: False, report_progress=lambda *progress: None):
    return sample_set(context_in(home), plan, options or DrawOptions(), stop, report_progress)


def pictures(plan) -> dict[str, bytes]:
    root = plan.folder / "images"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


# Order and names -------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 40))
def test_chunks_cover_all_requests_once_and_a_smaller_set_is_a_prefix(count, more):
    def drawn(expected):
        return [request for chunk in range(expected.chunks) for request in expected.chunk(chunk)]

    small, large = record(count=count), record(count=count + more)
    assert sorted(drawn(small), key=str) == sorted(
        (Request(label, index) for label in (0, 2, 5) for index in range(count)), key=str
    )
    assert drawn(large)[: small.drawn] == drawn(small)
    assert {len(small.chunk(chunk)) for chunk in range(small.chunks - 1)} <= {CHUNK}
    assert large.extends(small)
    assert not small.extends(large)
    assert not large.model_copy(update={"seed": 1}).extends(small)


def test_the_rejection_rate_is_an_exact_decimal():
    """In binary 7 / 0.07 is a little more than 100."""
    by = Rejection(rate=0.07, classifier="c", classifier_sha256=HASH)
    assert record(count=7, rejection=by).candidates == 100
    assert record(count=1, rejection=by).candidates == 15


def test_a_file_is_named_by_class_and_index():
    assert record().file(Request(5, 12)) == "0005/00012.png"
    assert record(classes=(8,)).file(Request(8, 0)) == "none/00000.png"


# The same files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(home):
    """The files of nine images of each of eight classes: two chunks, the second not full."""
    plan = requested(home, name="undisturbed")
    assert make(home, plan) == []
    return pictures(plan)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_files_do_not_depend_on_the_batch_size(home, undisturbed, batch):
    plan = requested(home)
    assert make(home, plan, DrawOptions(batch=batch)) == []
    assert pictures(plan) == undisturbed
    assert len(undisturbed) == 72


def test_parts_in_any_order_make_the_set_and_the_last_one_finishes_it(home, undisturbed):
    plan = requested(home)
    assert make(home, plan, DrawOptions(part=(1, 2))) == [0]
    assert not is_done(plan.folder)
    assert make(home, plan, DrawOptions(part=(0, 2))) == []
    assert is_done(plan.folder)
    assert pictures(plan) == undisturbed


def test_a_larger_count_does_not_change_existing_images(home, undisturbed):
    plan = requested(home, count=3)
    make(home, plan)
    before = {path: path.stat() for path in (plan.folder / "images").rglob("*.png")}
    grown = requested(home)
    make(home, grown)
    assert pictures(grown) == undisturbed
    assert len(before) == 24
    for path, stat in before.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert read_json(grown.folder / DONE)["images"] == 72


def test_a_different_or_smaller_set_with_the_same_name_is_refused(home):
    make(home, requested(home, count=2))
    with pytest.raises(ConfigMismatchError, match=r"seed: recorded 0, expected 1"):
        make(home, requested(home, count=2, seed=1))
    with pytest.raises(ConfigMismatchError, match=r"sampling.guidance: recorded 1.5, expected 2.0"):
        make(home, requested(home, count=3, sampling={"guidance": 2.0}))
    with pytest.raises(ConfigMismatchError, match="has 2 images of each class already"):
        make(home, requested(home, count=1))


def test_weights_that_changed_after_the_plan_are_refused(tmp_path):
    own = small_home(tmp_path)
    plan = requested(own, count=1)
    weights = own.root / ADDRESS / "weights.safetensors"
    state = load_tensors(weights, file_sha256(weights))
    save_tensors({name: value + 1 for name, value in state.items()}, weights)
    with pytest.raises(WeightsError, match="is not the file that was trained or imported"):
        make(own, plan)
    done = own.root / ADDRESS / DONE
    write_json(done, {**read_json(done), "weights_sha256": file_sha256(weights)})
    with pytest.raises(ConfigMismatchError, match=r"the weights file had SHA-256 .* and has"):
        make(own, plan)
    assert not plan.folder.exists()  # an invalid request does not reserve the name


# Interrupted -------------------------------------------------------------------------------------


def test_a_stopped_set_keeps_its_images_and_resumes(home, undisturbed):
    plan = requested(home)
    with pytest.raises(Stopped, match="10 of 72 images are on disk"):
        make(home, plan, DrawOptions(batch=5), stop=lambda done: done >= 10)
    assert len(pictures(plan)) == 10
    reported = []
    make(
        home,
        plan,
        DrawOptions(batch=62),
        report_progress=lambda what, done, total: reported.append(done),
    )
    assert reported == [10, 72]  # none of the ten images was drawn again
    assert pictures(plan) == undisturbed


def killed_in_the_middle(home, plan, batch: int, at_mark: int) -> int:
    """The images of a process that is killed after the given number of marked chunks."""
    process = multiprocessing.get_context("fork").Process(
        target=make, args=(home, plan, DrawOptions(batch=batch))
    )
    process.start()
    chunks = plan.folder / "chunks"
    while not chunks.exists() or len(list(chunks.glob("*.json"))) < at_mark:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not is_done(plan.folder)
    return len(pictures(plan))


def after_a_kill(home, count: int, batch: int, at_mark: int) -> tuple[dict, dict]:
    plan, other = requested(home, count), requested(home, count, name="undisturbed")
    left = killed_in_the_middle(home, plan, batch, at_mark)
    assert left < plan.config.images
    make(home, plan)
    make(home, other)
    return pictures(plan), pictures(other)


def test_a_set_of_200_images_is_the_same_after_a_kill(home):
    killed, undisturbed = after_a_kill(home, count=25, batch=16, at_mark=1)
    assert killed == undisturbed


@pytest.mark.thorough
def test_a_set_of_2000_images_is_the_same_after_a_kill(home):
    killed, undisturbed = after_a_kill(home, count=250, batch=64, at_mark=15)
    assert killed == undisturbed


def test_damaged_files_in_the_folder_are_replaced(home, undisturbed):
    plan = requested(home)
    make(home, plan)
    (plan.folder / DONE).unlink()
    images, chunks = plan.folder / "images", plan.folder / "chunks"
    half = images / "0003" / "00002.png"
    half.write_bytes(half.read_bytes()[:100])
    (images / "0004" / "00001.png").unlink()
    mark = chunks / "00001.json"
    mark.write_text(mark.read_text()[:80])
    reported = []
    make(home, plan, report_progress=lambda what, done, total: reported.append(done))
    assert reported[0] == 62  # the second chunk has no mark, two images of the first are damaged
    assert pictures(plan) == undisturbed
    assert is_done(plan.folder)
    for rubbish in ("null", "[]", '{"images": 3, "lives": []}', "\0\0"):
        mark.write_text(rubbish)
        assert SampleFolder(plan.folder, plan.config).stored_images(1) == {}


# What comes with the images ----------------------------------------------------------------------


def test_the_manifest_lists_every_image_and_its_settings(home):
    plan = requested(home, count=2, classes="1,none")
    make(home, plan, DrawOptions(strips=3))
    manifest = read_json(plan.folder / "manifest.json")
    assert [image["file"] for image in manifest["images"]] == [
        "images/0001/00000.png", "images/none/00000.png",
        "images/0001/00001.png", "images/none/00001.png",
    ]  # fmt: skip
    assert manifest["set"] == plan.config.model_dump(mode="json")
    assert manifest["devices"] == ["cpu"]
    assert manifest["seconds"] > 0
    for name, rows in (("grid", 2), ("strips", 3)):
        with Image.open(plan.folder / f"{name}.png") as picture:
            assert picture.height > rows * 64  # 16 px samples, enlarged four times


def test_strips_end_with_the_final_image(home):
    plan = requested(home, count=1, classes="1")
    make(home, plan, DrawOptions(strips=1))
    with Image.open(plan.folder / "strips.png") as picture:
        strips = np.asarray(picture)
    with Image.open(plan.folder / "images" / "0001" / "00000.png") as picture:
        whole = np.asarray(picture.resize((64, 64), Image.Resampling.NEAREST))
    found = [
        (y, x)
        for y in range(strips.shape[0] - 63)
        for x in range(strips.shape[1] - 63)
        if (strips[y, x] == whole[0, 0]).all() and (strips[y : y + 64, x : x + 64] == whole).all()
    ]
    assert len(found) == 1


def test_the_npz_is_in_the_order_of_the_manifest(home, tmp_path):
    plan = requested(home, count=2, classes="1,4")
    make(home, plan)
    export_npz(plan.folder, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as archive:
        assert archive["arr_0"].shape == (4, 16, 16, 3)
        assert archive["arr_0"].dtype == np.uint8
        assert archive["arr_1"].tolist() == [1, 4, 1, 4]
        with Image.open(plan.folder / "images" / "0004" / "00001.png") as picture:
            assert (archive["arr_0"][3] == np.asarray(picture)).all()


# Rejection ---------------------------------------------------------------------------------------


def test_of_equal_scores_the_first_drawn_is_kept():
    scores = {Request(0, i): score for i, score in enumerate((0.5, 0.1, 0.5, 0.9))}
    scores |= {Request(1, i): 0.3 for i in range(4)}
    kept, thresholds = accept(scores, 2)
    assert kept == [Request(0, 0), Request(1, 0), Request(1, 1), Request(0, 3)]
    assert thresholds == {0: 0.5, 1: 0.3}
    with pytest.raises(ValueError, match="class 0: 4 candidates, but 5 must be kept"):
        accept(scores, 5)


@pytest.fixture
def class_map(tmp_path) -> Path:
    """Eight of the seeded extractor's sixteen outputs."""
    (tmp_path / "map.json").write_text(json.dumps(list(range(8, 16))))
    return tmp_path / "map.json"


def test_rejection_keeps_the_highest_scores_and_records_them(home, class_map):
    words = {
        "reject": 0.4, "classifier": "seeded", "class_map": class_map, "classes": "0-2",
    }  # fmt: skip
    plan = requested(home, count=4, **words)
    make(home, plan, DrawOptions(batch=3))
    manifest = read_json(plan.folder / "manifest.json")
    rejection = manifest["rejection"]
    assert rejection["candidates"] == 10
    assert rejection["rate_real"] == 0.4
    assert len(list((plan.folder / "candidates").rglob("*.png"))) == 30
    assert set(pictures(plan)) == {i["file"].removeprefix("images/") for i in manifest["images"]}
    for label in range(3):
        of_class = [i for i in manifest["images"] if i["class"] == label]
        least = rejection["thresholds"][f"{label:04d}"]
        assert len(of_class) == 4
        assert min(image["score"] for image in of_class) == least
        thrown = rejection["rejected"][f"{label:04d}"]
        assert len(thrown) == 6
        assert max(thrown.values()) <= least
    for image in manifest["images"]:
        drawn = plan.folder / "candidates" / Path(image["file"]).relative_to("images")
        assert drawn.read_bytes() == (plan.folder / image["file"]).read_bytes()
    without = requested(home, count=10, name="plain", classes="0-2")
    make(home, without)
    plain = pictures(without)
    assert all(plain[name] == content for name, content in pictures(plan).items())
    grown = requested(home, count=5, **words)
    make(home, grown)
    assert len(pictures(grown)) == 15


def test_invalid_rejection_options_are_refused(home, tmp_path, class_map):
    for words, message in (
        ({"reject": 0.5}, "none is named. Give --classifier FILE.pth"),
        ({"reject": 1.5, "classifier": "seeded"}, "above 0 and at most 1"),
        ({"reject": 0.5, "classifier": "seeded"}, "16 outputs, the model 8 classes"),
        (
            {"reject": 0.5, "classifier": "seeded", "classes": "none"},
            "of --classes none have no class",
        ),
        ({"classifier": "seeded"}, "give --reject RATE too"),
    ):
        with pytest.raises(ValueError, match=message):
            requested(home, **words)
    for text, message in (
        ("[1, 2", "not valid JSON"),
        ("[1, 2]", "expected 8 outputs, one for each class, from 0 to 15; it has 2"),
        ("[1, 2, 3, 4, 5, 6, 7, 16]", "among them 16"),
        ('["a"]', "a JSON list of whole numbers"),
    ):
        class_map.write_text(text)
        with pytest.raises(ValueError, match=message):
            requested(home, reject=0.5, classifier="seeded", class_map=class_map)


@pytest.mark.thorough
def test_a_resnet_from_a_file_can_reject(home, tmp_path):
    import torch

    from var_scaling.evaluation.resnet import ResNet

    torch.manual_seed(0)
    file = tmp_path / "resnet18.pth"
    torch.save(ResNet("resnet18", classes=8).state_dict(), file)
    found = []
    for batch in (1, 4):
        plan = requested(
            home, 2, name=f"by{batch}", classes="0,1", reject=0.5, classifier=str(file)
        )
        make(home, plan, DrawOptions(batch=batch))
        found.append(read_json(plan.folder / "manifest.json"))
    assert found[0]["rejection"]["classifier"] == "resnet18"
    assert found[0]["rejection"]["thresholds"] == found[1]["rejection"]["thresholds"]
    assert [one["score"] for one in found[0]["images"]] == [
        one["score"] for one in found[1]["images"]
    ]
