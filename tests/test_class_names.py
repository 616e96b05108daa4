"""Class names come from the data, are stored with the model, and can replace class numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, SMALL, bring, tokenizer, trial
from PIL import Image
from small_home import ADDRESS, context_in, small_home

from pipelines.report.images import report_images
from pipelines.sampling import finalize as sample_end
from pipelines.sampling.rejection import read_class_map
from pipelines.sampling.request import SampleOptions, plan_set, read_classes
from pipelines.stages.context import RunContext, StopFile
from pipelines.stages.graph import sweep_stages
from pipelines.stages.stages import cache_description, run_tokenizer, run_tokens, run_trial
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from var_scaling.class_names import load_names, read_names, save_names, short_class_label
from var_scaling.datasets import ImageFiles
from var_scaling.disk import DONE, read_json, write_json
from var_scaling.experiment import Sweep
from var_scaling.tokenizer.cache_files import open_cache

PLANES = ("10", "airplane", "automobile")  # sorted like folders
EIGHT = ("10", "airplane", "all", "cat", "Cat, wild", "dog", "dog", "5-8")


def picture_folder(root: Path, names=PLANES, side: int = 16, splits=("train", "val")) -> None:
    generator = np.random.default_rng(0)
    for split in splits:
        for name in names:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(0, 256, (side, side, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


# Where they are kept ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> RunContext:
    """A home with a tokenizer and the trial s/d2, trained on three classes of a folder."""
    root = tmp_path_factory.mktemp("names")
    picture_folder(root / "data" / "sky")
    settings = Settings(data={"sky": root / "data" / "sky"})
    context = RunContext(Home(root / "home"), settings, StopFile(root / "stop"))
    one = its_trial()
    run_tokenizer(context, one.tokenizer)
    for split in ("train", "validation"):
        run_tokens(context, one.tokenizer, one.data, split)
    assert run_trial(context, "s", one) == "done"
    return context


def its_trial():
    data = ImageFiles(name="sky", side=16, classes=3)
    return trial(tokenizer=tokenizer(data=data, steps=3), data=data, steps=2)


def test_class_names_are_stored_with_survey_tokens_tokenizer_and_trial(trained):
    home = trained.home
    for split in ("train", "validation"):
        assert read_json(home.image_listing("sky", split) / DONE)["classes"] == list(PLANES)
        manifest = read_json(home.tokens("t", "sky", split) / "manifest.json")
        assert manifest["classes"] == list(PLANES)
    for folder in (home.tokenizer("t"), home.trial("s", "d2")):
        assert load_names(folder, 3) == PLANES
        assert read_json(folder / "classes.json")["data"] == "sky"
        with pytest.raises(ValueError, match="has 3 names; the model has 8 classes"):
            load_names(folder, 8)


def test_tokens_of_an_older_version_without_class_names_can_be_opened(trained, tmp_path):
    home = Home(tmp_path / "home")
    shutil.copytree(trained.home.root, home.root)
    shutil.rmtree(home.trial("s", "d2"))
    one = its_trial()
    for split in ("train", "validation"):
        path = home.tokens("t", "sky", split) / "manifest.json"
        manifest = read_json(path)
        del manifest["classes"]
        write_json(path, manifest)
        expected = cache_description(home, one.tokenizer, one.data, split)
        assert open_cache(path.parent, expected).images == 24
    context = RunContext(home, trained.settings, StopFile(tmp_path / "stop"))
    assert run_trial(context, "s", one) == "done"
    assert load_names(home.trial("s", "d2"), 3) is None


def test_joined_parts_of_tokens_keep_their_class_names(trained, tmp_path):
    home = Home(tmp_path / "home")
    shutil.copytree(trained.home.root / "tokenizers", home.root / "tokenizers")
    context, one = RunContext(home, trained.settings, StopFile(tmp_path / "stop")), its_trial()
    for part in (0, 1):
        run_tokens(context, one.tokenizer, one.data, "train", (part, 2))
    folders = home.tokens("t", "sky", "train"), trained.home.tokens("t", "sky", "train")
    assert read_json(folders[0] / "manifest.json") == read_json(folders[1] / "manifest.json")


def test_a_trial_that_is_copied_elsewhere_is_sampled_by_name(trained, tmp_path, command):
    for folder in ("tokenizers/t", "s/d2"):
        shutil.copytree(trained.home.root / folder, tmp_path / folder)
    at = ("--count", 1, "--home", tmp_path)
    code, _, message = command("sample", "s/d2", "--classes", "plane", *at)
    assert code == 2
    assert "'plane' is none of the 3 classes; similar (1): 1 airplane" in message
    assert command("sample", "s/d2", "--classes", "Airplane,name:10", *at)[0] == 0
    images = read_json(tmp_path / "s/d2/samples/default/manifest.json")["images"]
    assert [(one["class"], one["class_name"]) for one in images] == [(0, "10"), (1, "airplane")]
    code, _, message = command("sample", "s/d2", "--classes", "10", *at)
    assert (code, "the model has classes 0 to 2; there is no class 10" in message) == (2, True)


# What may be said ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("cat", (3,)),
        ("CAT", (3,)),
        ("1,cat,none", (1, 3, 8)),
        ("5-7", (5, 6, 7)),
        ("name:5-8", (7,)),
        ("name:10", (0,)),
        ("all", tuple(range(8))),
        ("name:all", (2,)),
        ("Cat, wild", (4,)),
        ("airplane, cat, wild,0", (0, 1, 4)),
        ("name:Cat, wild,cat", (3, 4)),
        ("name:airplane", (1,)),
    ],
)
def test_class_names_and_numbers_are_distinguished(text, labels):
    assert read_classes(text, 8, EIGHT) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "has classes 0 to 7; there is no class 10"),
        ("5-8", "has classes 0 to 7; there is no class 8"),
        ("dog", r"'dog' names 2 classes \(5 dog, 6 dog\); give the number"),
        ("plane", r"'plane' is none of the 8 classes; similar \(1\): 1 airplane$"),
        ("wild", r"similar \(1\): 4 Cat, wild"),
        ("zzz", "'zzz' is none of the 8 classes; the first is 0 10"),
        ("name:3", "'3' is none of the 8 classes"),
    ],
)
def test_unknown_and_ambiguous_names_are_refused_with_similar_names(text, message):
    with pytest.raises(ValueError, match=message):
        read_classes(text, 8, EIGHT)


def test_models_without_class_names_accept_numbers_only(tmp_path):
    context = context_in(small_home(tmp_path))
    assert plan_set(context, ADDRESS, SampleOptions(classes="1,3")).config.classes == (1, 3)
    with pytest.raises(
        ValueError, match=r"'cat' is not a class.*No class names .* generated images have none"
    ):
        plan_set(context, ADDRESS, SampleOptions(classes="cat"))
    save_names(context.home.root / ADDRESS, EIGHT, "d")
    assert plan_set(context, ADDRESS, SampleOptions(classes="cat")).config.classes == (3,)


def test_a_class_map_may_use_class_names(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"automobile": 7, "name:10": 5, "1": 6}))
    assert read_class_map(path, 3, PLANES) == (5, 6, 7)
    for content, message in (
        ({"plane": 1}, "'plane' is none of the 3 classes"),
        ({"airplane": 1, "1": 2}, "'1' is class 1 airplane, which the file has twice"),
        ({"airplane": 1}, "2 classes are missing, the first is 0 10"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            read_class_map(path, 3, PLANES)


# Where they are shown -----------------------------------------------------------------------------


@pytest.fixture
def eight(tmp_path) -> Home:
    home = small_home(tmp_path / "home")
    save_names(home.root / ADDRESS, EIGHT, "d")
    return home


def test_grid_and_strips_show_the_class_names(eight, command, monkeypatch):
    seen = {}
    for name in ("grid", "strips"):
        real = getattr(sample_end, name)

        def spy(rows, *words, name=name, real=real):
            seen[name] = [row[0] for row in rows]
            return real(rows, *words)

        monkeypatch.setattr(sample_end, name, spy)
    words = ("--classes", "cat,airplane,none", "--count", 1, "--strips", 2)
    assert command("sample", ADDRESS, *words, "--home", eight.root)[0] == 0
    assert seen == {
        "grid": ["1 airplane", "3 cat", "none"],
        "strips": ["1 airplane #0", "3 cat #0"],
    }
    images = read_json(eight.root / ADDRESS / "samples/default/manifest.json")["images"]
    assert [one.get("class_name") for one in images] == ["airplane", "cat", None]
    code, _, message = command("sample", ADDRESS, "--classes", "cats", "--home", eight.root)
    assert (code, "3 cat" in message) == (2, True)


def test_an_edit_takes_a_name_and_records_it(eight, command, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    words = ("edit", ADDRESS, tmp_path / "a.png", "--in-paint", "6,6,12,12", "--home", eight.root)
    code, out, _ = command(*words, "--count", 1, "--class", "airplane")
    assert (code, "class 1 airplane, guidance" in out) == (0, True)
    folder = eight.root / ADDRESS / "edits" / "a"
    assert read_json(folder / "edit.json")["label"] == 1
    (one,) = read_json(folder / "manifest.json")["images"]
    assert (one["class"], one["class_name"]) == (1, "airplane")
    code, _, message = command(*words, "--class", "dog")
    assert (code, "--class dog: 'dog' names 2 classes (5 dog, 6 dog)" in message) == (2, True)
    sweep = Sweep(name="grid", question="?", trials=(trial(),))
    ((caption, _),) = report_images(sweep_stages(eight, sweep)).made[0].pictures
    assert "in-paint, class 1 airplane, guidance" in caption


def test_long_names_and_names_without_utf8_fit_in_the_label():
    long = ("n" * 80, b"caf\xe9".decode(errors="surrogateescape"), "a\x1b[2Jb")
    assert short_class_label(0, long) == "0 " + "n" * 27 + "…"
    assert short_class_label(1, long) == "1 caf\\udce9"
    assert short_class_label(2, long) == "2 a\\x1b[2Jb"
    assert (
        sample_end.grid([(short_class_label(1, long), [np.zeros((8, 8, 3), np.uint8)])], "t").ndim
        == 3
    )


# Models from elsewhere ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '["tench", "shark", "ray"]'),
        ("a.json", '{"0": ["n01", "tench"], "2": ["n03", "ray"], "1": ["n02", "shark"]}'),
        ("a.json", '{"names": ["tench", "shark", "ray"]}'),
        ("a.txt", "tench\nshark\n\nray\n"),
    ],
)
def test_names_are_read_from_the_usual_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_names(tmp_path / name, 3) == ("tench", "shark", "ray")
    with pytest.raises(ValueError, match="has 3 names; the model has 4 classes"):
        read_names(tmp_path / name, 4)


@pytest.mark.parametrize("content", ["no json", '{"0": 1}', "[1]", '{"1": "a", "2": "b"}'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a.json: (must be a JSON list|not readable)"):
        read_names(tmp_path / "a.json", 1)


def test_an_imported_model_can_get_class_names_later_and_exports_them(files, tmp_path, command):
    (tmp_path / "names.txt").write_text("tench\nshark\nray\n")
    at = ("--home", tmp_path / "home")
    code, _, message = command("import", *files, "--as", "it", *at, "--sides", "1,2")
    assert (code, "To name them, run the same command with --classes FILE" in message) == (0, True)
    again = ("import", *files, "--as", "it", "--sides", "1,2", "--classes", tmp_path / "names.txt")
    code, _, message = command(*again, *at)
    assert (code, message) == (0, "")
    assert load_names(tmp_path / "home/imported/it", CLASSES) == ("tench", "shark", "ray")
    code, out, _ = command("export", "imported/it", tmp_path / "out.pth", *at)
    assert (code, "out.classes.json" in out) == (0, True)
    assert read_names(tmp_path / "out.classes.json", 3) == ("tench", "shark", "ray")
    (tmp_path / "names.txt").write_text("tench\n")
    code, _, message = command(*again, *at)
    assert (code, "has 1 names; the model has 3 classes" in message) == (2, True)
    code, _, message = command("import", files[0], "--as", "v", *again[-4:], *at)
    assert (code, "a VQVAE has no classes" in message) == (2, True)


def test_evaluate_warns_if_the_order_of_classes_is_unknown(files, tmp_path, command, monkeypatch):
    monkeypatch.setenv("VAR_SCALING_DATA", str(tmp_path / "data"))
    picture_folder(tmp_path / "data" / "sea", ("ray", "shark", "tench"), SMALL.side, ("val",))
    home = Home(tmp_path / "home")
    bring(home.root, *files)
    words = ("evaluate", "imported/it", "--data", "sea", "--json", "--home", home.root)
    for names, doubt in (
        (None, "the order of the model's classes cannot be compared with the data's"),
        (("n1", "n2", "n3"), "the model's classes have other names than the data's (class 0: n1, "),
        (("ray", "shark", "tench"), None),
    ):
        save_names(home.imported("it"), names, "released")
        code, out, message = command(*words)
        assert code == 0, message
        assert (doubt is None and message == "") or doubt in message
        assert doubt is None or doubt in json.loads(out)["class_order"]
    assert "class_order" not in json.loads(out)
    save_names(home.imported("it"), ("tench", "shark", "ray"), "released")
    code, _, message = command(*words)
    assert code == 2
    assert "in a different order (class 0 tench of the model is ray of the data)" in message
