"""A folder tree or a set of Parquet files is read correctly or refused with a message."""

import csv
import io
import json
import os
import socket
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.evaluation.image_sets import image_set
from pipelines.evaluation.reference_stats import CropOptions
from pipelines.stages.context import RunContext, StopFile
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from var_scaling.data.dataset import open_images
from var_scaling.data.listing import DataError, fingerprint, list_images
from var_scaling.datasets import ImageFiles, ReadOptions


def encoded(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (shade % 256, shade // 256, 0)).save(out, "PNG")
    return out.getvalue()


def plant(root, *paths):
    """Write a small image at each path, and text at paths with another suffix."""
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        is_image = file.suffix in (".png", ".jpg", "")
        file.write_bytes(encoded(number) if is_image else b"words")


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)


def found(root, split="train", share=0.0) -> list[tuple[str, str]]:
    """(name, class) of each image."""
    listing = list_images(root, split, share)
    names = listing.classes or [str(number) for number in range(99)]
    return [
        (name, names[label])
        for name, label in zip(listing.names, listing.labels.tolist(), strict=True)
    ]


def opened(root, tmp_path, split="train", **changes):
    data = ImageFiles(**{"name": "pets", "side": 8, "classes": 2, **changes})
    return open_images(
        data, split, ReadOptions(root, tmp_path / "survey" / split, 0, lambda *words: None)
    )


# Folders ------------------------------------------------------------------------------------------


def test_classes_are_numbered_by_code_point_as_in_image_folder(tmp_path):
    names = ["0", "1", "10", "11", "2", "B", "a", "é"]
    plant(tmp_path, *(f"train/{name}/x.png" for name in reversed(names)))
    listing = list_images(tmp_path, "train", 0.0)
    assert listing.classes == names
    assert listing.labels.tolist() == list(range(8))


def test_a_linked_folder_is_read_at_every_depth(tmp_path):
    plant(tmp_path, "elsewhere/a.png", "elsewhere/deep/b.png", "set/train/cat/c.png")
    link(tmp_path / "set" / "train" / "cat" / "more", tmp_path / "elsewhere")
    link(tmp_path / "set" / "train" / "dog", tmp_path / "other")
    plant(tmp_path, "other/d.png")
    assert found(tmp_path / "set") == [
        ("train/cat/c.png", "cat"),
        ("train/cat/more/a.png", "cat"),
        ("train/cat/more/deep/b.png", "cat"),
        ("train/dog/d.png", "dog"),
    ]
    link(tmp_path / "linked-set", tmp_path / "set")
    assert found(tmp_path / "linked-set") == found(tmp_path / "set")


def test_the_example_of_nested_links_has_eleven_images(tmp_path):
    plant(tmp_path, *(f"set/{name}/{i}.png" for name in "abc" for i in range(10)), "one/11.png")
    link(tmp_path / "set" / "b" / "more", tmp_path / "one")
    both = found(tmp_path / "set", "train", 0.3) + found(tmp_path / "set", "validation", 0.3)
    assert [sum(name == one for _, name in both) for one in "abc"] == [10, 11, 10]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_a_link_to_a_parent_folder_is_refused(tmp_path, target):
    plant(tmp_path, "set/train/cat/a.png", "set/train/dog/a.png")
    link(tmp_path / "set" / "train" / "cat" / "back", target)
    with pytest.raises(DataError, match=r"cat/back: is a symbolic link to .*that contains it"):
        list_images(tmp_path / "set", "train", 0.0)


@pytest.mark.parametrize(
    ("at", "target"),
    [
        ("train/cat/more", "../dog"),  # the images of one class under another
        ("train/cat/b.png", "../dog/a.png"),
        ("train/cat/b.png", "a.png"),  # the same image twice in one class
        ("train/emu", "cat"),  # one folder, two classes
    ],
)
def test_an_image_listed_twice_through_links_is_refused(tmp_path, at, target):
    plant(tmp_path, "train/cat/a.png", "train/dog/a.png")
    link(tmp_path / at, target)
    with pytest.raises(DataError, match=r"would be read twice, as train/\S+ and train/\S+"):
        list_images(tmp_path, "train", 0.0)


@pytest.mark.parametrize(
    ("at", "target"), [("val", "train"), ("val/cat", "../train/cat"), ("val/cat/b.png", "")]
)
def test_an_image_in_train_and_validation_by_a_link_is_refused(tmp_path, at, target):
    plant(tmp_path, "train/cat/a.png", "train/dog/a.png")
    if at != "val":
        plant(tmp_path, "val/dog/z.png")
    link(tmp_path / at, target or tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(DataError, match="in both train and validation, through symbolic links"):
        list_images(tmp_path, "train", 0.0)


def test_a_validation_folder_may_be_a_link_to_the_unused_test_folder(tmp_path):
    plant(tmp_path, "train/cat/a.png", "test/cat/b.png")
    link(tmp_path / "val", "test")
    assert found(tmp_path, "validation") == [("val/cat/b.png", "cat")]


def test_a_pool_of_files_linked_into_classes_is_read(tmp_path):
    plant(tmp_path, *(f"pool/{i}.png" for i in range(4)))
    for i in range(4):
        link(tmp_path / "set" / "train" / f"class{i % 2}" / f"{i}.png", tmp_path / f"pool/{i}.png")
    assert [name for _, name in found(tmp_path / "set")] == ["class0"] * 2 + ["class1"] * 2


@pytest.mark.parametrize("at", ["train/emu", "train/cat/more", "train"])
def test_a_broken_link_is_refused(tmp_path, at):
    plant(tmp_path, "train/cat/a.png" if at != "train" else "val/cat/a.png")
    link(tmp_path / at, tmp_path / "unmounted")
    with pytest.raises(
        DataError, match=rf"{at}: is a symbolic link to .*unmounted, which does not"
    ):
        list_images(tmp_path, "train", 0.0)


def test_the_survey_lists_broken_links_to_images(tmp_path):
    plant(tmp_path, *(f"set/train/{name}/{i}.png" for name in "ab" for i in range(60)))
    link(tmp_path / "set" / "train" / "a" / "lost.png", tmp_path / "lost.png")
    assert opened(tmp_path / "set", tmp_path).rows == 120
    assert "train/a/lost.png,a,[Errno 2]" in (tmp_path / "survey/train/rejected.csv").read_text()


def test_an_unreadable_folder_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    plant(tmp_path, "train/cat/a.png", "train/cat/locked/b.png")
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"cat/locked: cannot be read \(Permission denied\)"):
        list_images(tmp_path, "train", 0.0)


def test_a_pipe_or_socket_among_the_images_is_reported(tmp_path):
    plant(tmp_path, "train/cat/a.png")
    os.mkfifo(tmp_path / "train" / "cat" / "b.png")
    with pytest.raises(DataError, match=r"cat/b.png: is neither a file nor a folder"):
        list_images(tmp_path, "train", 0.0)
    os.unlink(tmp_path / "train" / "cat" / "b.png")
    with socket.socket(socket.AF_UNIX) as one, monkey_cwd(tmp_path / "train" / "cat"):
        one.bind("c")
    with pytest.raises(DataError, match=r"cat/c: is neither a file nor a folder"):
        list_images(tmp_path, "train", 0.0)


class monkey_cwd:
    """Bind a socket by a relative path, since its path has at most 107 bytes."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        self.before = os.getcwd()
        os.chdir(self.folder)

    def __exit__(self, *error):
        os.chdir(self.before)


# Which folders are splits, which are classes ------------------------------------------------------


@pytest.mark.parametrize("names", [("Train", "VAL"), ("TRAINING", "Test"), ("train", "Valid")])
def test_names_of_splits_are_case_insensitive(tmp_path, names):
    plant(tmp_path, f"{names[0]}/cat/a.png", f"{names[1]}/cat/b.png")
    assert found(tmp_path) == [(f"{names[0]}/cat/a.png", "cat")]
    assert found(tmp_path, "validation") == [(f"{names[1]}/cat/b.png", "cat")]


def test_a_test_split_is_ignored_if_there_is_a_validation_split(tmp_path):
    plant(tmp_path, *(f"{split}/cat/a.png" for split in ("train", "val", "test")))
    plant(tmp_path, "unlabeled/a.png", "docs/readme.txt", "__MACOSX/train/._a.png", "notes.txt")
    assert found(tmp_path, "validation") == [("val/cat/a.png", "cat")]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/c/a.png", "val/c/a.png", "validation/c/a.png"], "validation and val both name"),
        (["train/c/a.png", "training/c/a.png", "val/c/a.png"], "train and training both name"),
        (["train/c/a.png", "Train/c/a.png"], "Train and train both name the train split"),
        (["train/c/a.png", "cats/a.png"], r"split 'train', and images outside .* cats/a.png"),
        (["train/c/a.png", "val/c/a.png", "cats/a.png"], r"images outside .* cats/a.png"),
        (["train/c/a.png", "val/c/a.png", "a.png"], r"images outside of any split .*: a.png"),
        (["val/c/a.png", "cats/a.png"], r"split 'val', and images outside"),
        (
            ["train/c/a.png", "train/a.png"],
            r"1 image file outside of the class folders.*a.png",
        ),
        (["train/a.png", "val/a.png"], "1 image file outside of the class folders"),
        (["cat/a.png", "dog/a.png", "b.jpg"], r"1 image file outside .*b.jpg"),
        (["set/train/c/a.png", "set/val/c/a.png"], r"'set' would be a class, but holds .* 'train'"),
        (["x/y/Train/c/a.png"], r"'x' would be a class, but holds the folder 'y/Train'"),
        (["cat/train/a.png", "cat/test/a.png"], r"'cat' would be a class, but holds .* 'test'"),
        (["train/train/c/a.png"], r"'train' would be a class, but holds the folder 'c'"),
        (["train/c/a.png", "train/emu/readme"], None),
        (["images/a.png", "masks/a.png"], r"'images' is next to 'masks'"),
        (["train/cat/images/a.png", "train/cat/Masks/a.png"], r"cat: .*'images' .*'Masks'"),
        (["train/c/a.png", "data/0.parquet"], r"Parquet files \(data/0.parquet\) and image files"),
        (["a.png"], "1 image file outside of the class folders"),
    ],
)
def test_a_tree_that_can_be_read_in_two_ways_is_refused(tmp_path, paths, message):
    plant(tmp_path, *paths)
    if message is None:
        assert len(found(tmp_path)) == 2
        return
    for split in ("train", "validation"):
        for share in (0.0, 0.3):
            with pytest.raises(DataError, match=message):
                list_images(tmp_path, split, share)


def test_a_validation_split_without_training_images_is_refused(tmp_path):
    plant(tmp_path, *(f"val/{name}/{i}.png" for name in "ab" for i in range(9)))
    assert len(found(tmp_path, "validation")) == 18
    for share in (0.0, 0.5):
        with pytest.raises(DataError, match=r"no train split .*only a validation split"):
            list_images(tmp_path, "train", share)


def test_a_class_may_be_named_train(tmp_path):
    vehicles = [f"{name}/{i}.png" for name in ("bus", "car", "train") for i in range(20)]
    plant(tmp_path, *(f"whole/{path}" for path in vehicles))
    listing = list_images(tmp_path / "whole", "train", 0.2)
    assert listing.classes == ["bus", "car", "train"]
    plant(tmp_path, *(f"split/{split}/{path}" for split in ("train", "val") for path in vehicles))
    assert list_images(tmp_path / "split", "train", 0.0).classes == ["bus", "car", "train"]
    assert found(tmp_path / "split")[-1] == ("train/train/9.png", "train")


def test_system_folders_are_not_classes(tmp_path):
    plant(tmp_path, "train/cat/a.png", "train/__MACOSX/cat/._a.png", "train/cat/@eaDir/a/T.jpg")
    (tmp_path / "train" / "lost+found").mkdir()
    assert found(tmp_path) == [("train/cat/a.png", "cat")]


@pytest.mark.parametrize(
    "names",
    [("Cat", "cat"), [unicodedata.normalize(form, "né") for form in ("NFC", "NFD")]],
    ids=["capitals", "unicode"],
)
def test_class_names_that_look_alike_are_refused(tmp_path, names):
    plant(tmp_path, *(f"train/{name}/a.png" for name in names))
    with pytest.raises(DataError, match="differ only in capitals or in the Unicode form"):
        list_images(tmp_path, "train", 0.0)
    plant(tmp_path / "two", f"train/{names[0]}/a.png", f"val/{names[1]}/a.png")
    with pytest.raises(DataError, match="differ only in case or Unicode form: '"):
        list_images(tmp_path / "two", "train", 0.0)


def test_upper_and_lower_case_letters_are_different_classes(tmp_path):
    plant(tmp_path, *(f"train/{name}/x.png" for name in "aAbB"))
    assert list_images(tmp_path, "train", 0.0).classes == ["A", "B", "a", "b"]


def test_a_class_name_that_is_not_utf8_can_be_used_and_shown(tmp_path):
    name = b"caf\xe9".decode(errors="surrogateescape")
    plant(tmp_path, "set/train/tea/a.png", f"set/train/{name}/a.png")
    source = opened(tmp_path / "set", tmp_path)
    assert (source.classes, source.rows) == ([name, "tea"], 2)
    with pytest.raises(DataError, match=r"found: caf\\udce9, tea") as error:
        opened(tmp_path / "set", tmp_path, classes=3)
    assert str(error.value).encode()


# What is an image -------------------------------------------------------------------------------


def test_other_files_are_listed_but_not_as_damaged(tmp_path):
    plant(tmp_path, *(f"set/train/{name}/{i}.png" for name in "ab" for i in range(3)))
    for name in ("Thumbs.db", "desktop.ini", "notes.txt", "labels.json", "0.xml"):
        plant(tmp_path, f"set/train/a/{name}")
    assert opened(tmp_path / "set", tmp_path).rows == 6
    with open(tmp_path / "survey" / "train" / "rejected.csv") as file:
        listed = [row["image"] for row in csv.DictReader(file)]
    assert len(listed) == 5
    (tmp_path / "set" / "train" / "b" / "c.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"1 of 12 images do not decode.*c\.png"):
        opened(tmp_path / "set", tmp_path / "again")


def test_a_class_without_a_single_image_is_refused(tmp_path):
    plant(tmp_path, "set/train/a/1.png", "set/train/notes/a.txt", "set/train/notes/b.json")
    with pytest.raises(DataError, match=r"no file of class 1 notes is an image; .*rejected.csv"):
        opened(tmp_path / "set", tmp_path)


# Parquet ----------------------------------------------------------------------------------------

INT, IMAGE = pa.int64(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(path, labels=(0, 1), names=None, first=0, label=INT, image=IMAGE, bytes_=True):
    """A row for each label; files with different `first` share no image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    text = json.dumps({"info": {"features": features}})
    schema = pa.schema([("image", image), ("label", label)])
    if names is not None:
        schema = schema.with_metadata({"huggingface": text})
    rows = [
        {"image": {"bytes": encoded(first + i) if bytes_ else None, "path": "a.png"}, "label": one}
        for i, one in enumerate(labels)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def several(root, *paths, **how):
    for number, path in enumerate(paths):
        parquet(root / path, first=10 * number, **how)


@pytest.mark.parametrize(
    ("paths", "train", "validation"),
    [
        # The file name has priority over folders, and the nearest folder over the others.
        (["test/train-0.parquet", "test/test-0.parquet"], [0], [1]),
        (["train/test-set/0.parquet", "val/0.parquet"], [0], [1]),
        (["train/a/0.parquet", "train/validation/0.parquet"], [0], [1]),
        (["Train-00000-of-00001.parquet", "TEST-00000-of-00001.parquet"], [0], [1]),
        (["train_0.parquet", "train_1.parquet", "test.parquet"], [0, 1], [2]),
        (["train.parquet/part-0.parquet", "test.parquet/part-0.parquet"], [0], [1]),
        (["train.PARQUET", "val.parquet", "test.parquet"], [0], [1]),
        (["train.parquet", "test.parquet", "extra-0.parquet"], [0], [1]),
    ],
)
def test_the_split_of_a_file_is_the_nearest_split_name_in_its_path(
    tmp_path, paths, train, validation
):
    several(tmp_path, *paths)
    for split, numbers in (("train", train), ("validation", validation)):
        files = {name.rpartition(":")[0] for name, _ in found(tmp_path, split)}
        assert files == {paths[number] for number in numbers}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([f"train-0000{i}-of-00009.parquet" for i in (0, 1, 2, 4, 5, 6, 7, 8)], r"missing: 3\."),
        (["train-00001-of-00002.parquet"], r"of the 2 shards .* missing: 0\."),
        (["train/0000.parquet", "train/0002.parquet"], r"missing: 1\."),
        (["a/train-0-of-1.parquet", "b/train-0-of-1.parquet"], "shard 0 exists twice"),
        (["train-0-of-1.parquet", "train-0-of-1 (1).parquet"], "shard 0 exists twice"),
        (["train-0-of-2.parquet", "train-0-of-1.parquet"], "one of 2 shards, others are of 1"),
        (["train-0-of-1.parquet", "train.parquet"], "is next to shards of the same name"),
        (["train-0.parquet", "training-0.parquet"], "train and training both name the train"),
        (["train.parquet", "val.parquet", "valid.parquet"], "val and valid both name"),
        (["train.parquet", "val.parquet", "more.parquet"], "the name of more.parquet has no split"),
        (["val.parquet"], "no train split .*only a validation split"),
    ],
)
def test_parquet_files_of_different_sets_are_refused(tmp_path, paths, message):
    several(tmp_path, *paths)
    for share in (0.0, 0.3):
        with pytest.raises(DataError, match=message):
            list_images(tmp_path, "train", share)


def test_parquet_sets_numbered_from_one_or_by_year_are_complete(tmp_path):
    several(tmp_path / "one", "train-1-of-2.parquet", "train-2-of-2.parquet", "val.parquet")
    several(tmp_path / "years", "train/2019.parquet", "train/2021.parquet", "val.parquet")
    assert len(found(tmp_path / "one")) == len(found(tmp_path / "years")) == 4


@pytest.mark.parametrize("copy", ["train-copy.parquet", "test.parquet"])
def test_a_parquet_file_that_occurs_twice_is_refused(tmp_path, copy):
    parquet(tmp_path / "train.parquet")
    parquet(tmp_path / copy)
    with pytest.raises(DataError, match="have identical content"):
        list_images(tmp_path, "train", 0.0)


def test_a_linked_folder_of_parquet_is_found(tmp_path):
    several(tmp_path / "elsewhere", "train.parquet", "test.parquet")
    link(tmp_path / "set" / "data", tmp_path / "elsewhere")
    assert found(tmp_path / "set")[0] == ("data/train.parquet:0", "0")


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (["a", "b"], ["b", "a"], r"has 2 classes \(b, a\), train-0.parquet has 2 classes \(a, b\)"),
        (["a", "b"], ["a", "b", "c"], "equal labels may be different classes"),
        (["a", "b"], None, "has no class names, train-0.parquet has 2"),
        (None, ["a", "b"], "equal labels may be different classes"),
        ({"0": "a", "1": "b"}, None, "are not a list of strings"),
    ],
)
def test_files_that_name_their_classes_differently_are_refused(tmp_path, one, other, message):
    parquet(tmp_path / "train-0.parquet", names=one)
    parquet(tmp_path / "train-1.parquet", names=other, first=9)
    with pytest.raises(DataError, match=message):
        list_images(tmp_path, "train", 0.0)


def test_named_and_unnamed_splits_are_not_compared_by_number(tmp_path):
    parquet(tmp_path / "train.parquet", names=["a", "b"])
    parquet(tmp_path / "test.parquet", first=9)
    with pytest.raises(DataError, match="the files of validation have no class names"):
        list_images(tmp_path, "validation", 0.0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"labels": ("cat", "dog"), "label": pa.string()}, "label is string; needed"),
        ({"labels": (0, None)}, "no label in 1 row"),
        ({"labels": (0, -1)}, "is negative"),
        ({"labels": (0.0, 1.0), "label": pa.float32()}, "label is float; needed"),
        ({"labels": (True, False), "label": pa.bool_()}, "label is bool; needed"),
        ({"labels": (1, 2)}, "3 classes found, data 'pets' has classes = 2"),
        ({"labels": (1, 1)}, "1 of 2 classes have no training image: 0"),
        ({"labels": (0, 0), "names": ["a", "b"]}, "have no training image: 1 b"),
        ({"bytes_": False}, r"holds no image bytes"),
        ({"image": pa.struct([("bytes", pa.string())])}, "image is .*; needed: image a struct"),
    ],
)
def test_label_and_image_columns_of_another_type_are_refused(tmp_path, how, message):
    if "image" in how:
        path = tmp_path / "set" / "train.parquet"
        path.parent.mkdir()
        table = pa.table({"image": pa.array([{"bytes": "x"}], how["image"]), "label": [0]})
        pq.write_table(table, path)
    else:
        parquet(tmp_path / "set" / "train.parquet", **how)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "set", tmp_path)


def test_the_label_column_is_not_guessed(tmp_path):
    table = pa.table({"image": pa.array([{"bytes": b"x"}]), "fine_label": [0]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"columns are image, fine_label; needed: image .* label"):
        list_images(tmp_path, "train", 0.0)


# What was surveyed by an older version goes on ----------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "share", "train", "validation"),
    [
        ("f", 0.0, "f2c149e54532", "e314d1e77152"),
        ("w", 0.3, "66e1ba1d2862", "e9296512246b"),
        ("p", 0.0, "a614207936c5", "56584db89f64"),
    ],
)
def test_fingerprints_of_valid_sets_do_not_change(tmp_path, folder, share, train, validation):
    """Values of the version that did not follow links: surveys of that version remain valid."""
    classes = ("0", "1", "10", "2", "é")
    several_classes = [f"{k}/{i}.png" for k in classes for i in range(11)]
    plant(
        tmp_path, *(f"f/{split}/{path}" for split in ("train", "val") for path in several_classes)
    )
    plant(tmp_path, "f/train/10/nested/z.png", "f/train/notes.txt", "f/test/0/a.png")
    plant(tmp_path, "f/train/2/Thumbs.db", *(f"w/{k}/{i}.png" for k in "ab" for i in range(11)))
    for i in range(11):
        parquet(tmp_path / f"p/data/train-{i:05d}-of-00011.parquet", (0, 1, 2), ["a", "b", "c"], i)
    parquet(tmp_path / "p/data/test-00000-of-00001.parquet", (2, 1), ["a", "b", "c"], 999)
    for split, value in (("train", train), ("validation", validation)):
        assert fingerprint(list_images(tmp_path / folder, split, share)) == value


def test_a_survey_without_class_names_is_reused(tmp_path):
    plant(tmp_path, "set/train/a/1.png", "set/train/b/1.png")
    opened(tmp_path / "set", tmp_path)
    done = tmp_path / "survey" / "train" / "done.json"
    noted = json.loads(done.read_text())
    assert noted.pop("classes") == ["a", "b"]
    done.write_text(json.dumps(noted))
    assert opened(tmp_path / "set", tmp_path).classes == ["a", "b"]
    assert "classes" not in json.loads(done.read_text())


# A folder to be measured --------------------------------------------------------------------------


def test_fidelity_counts_linked_images_and_images_of_every_suffix(tmp_path):
    plant(tmp_path, "set/a.png", "set/b/c.jpg", "elsewhere/d.png", "set/.hidden/e.png")
    link(tmp_path / "set" / "more", tmp_path / "elsewhere")
    Image.new("RGB", (8, 8)).save(tmp_path / "set" / "f.webp")
    context = RunContext(Home(tmp_path / "home"), Settings(), StopFile(tmp_path / "stop"))
    assert image_set(context, str(tmp_path / "set"), None, None, 10, CropOptions()).count == 4
    link(tmp_path / "set" / "b" / "back", "..")
    with pytest.raises(DataError, match="is a symbolic link to"):
        image_set(context, str(tmp_path / "set"), None, None, 10, CropOptions())
