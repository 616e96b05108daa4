"""Images: generated as pure functions of seed and row, or decoded as a viewer shows them."""

import io
import json
import struct
import time
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from var_scaling.data.dataset import open_images
from var_scaling.data.dead_leaves import DeadLeavesSource
from var_scaling.data.decode import Undecodable, crop, decode, resized
from var_scaling.data.listing import DataError, list_images
from var_scaling.data.loader import in_order
from var_scaling.data.order import batch_rows
from var_scaling.datasets import ImageFiles, ReadOptions


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def silent(what: str, done: int, total: int) -> None:
    """Ignore progress reports."""


# Dead leaves ----------------------------------------------------------------------------------


def test_an_image_does_not_depend_on_the_other_rows_requested():
    source = DeadLeavesSource(images(), "train")
    whole = source.images(np.arange(100))
    some = np.array([93, 7, 7, 0])
    assert np.array_equal(source.images(some), whole[some])


@pytest.mark.parametrize("changes", [{"seed": 1}, {"split": "validation"}])
def test_another_seed_or_split_gives_another_image(changes):
    split = changes.pop("split", "train")
    other = DeadLeavesSource(images(**changes), split).images(np.arange(32))
    first = DeadLeavesSource(images(), "train").images(np.arange(32))
    assert (other != first).any(axis=(1, 2, 3)).mean() > 0.9


def test_all_images_of_the_stream_differ():
    drawn = DeadLeavesSource(images(train_images=2000), "train").images(np.arange(2000))
    different = len({image.tobytes() for image in drawn})
    assert different > 1900  # some images have one colour, since one leaf covers them


def test_the_colours_depend_on_the_class():
    data = images(train_images=800)
    source = DeadLeavesSource(data, "train")
    drawn = source.images(np.arange(800))
    of_class = [{tuple(c) for c in drawn[source.labels == k].reshape(-1, 3)} for k in range(8)]
    assert all(len(colours) <= data.colours for colours in of_class)
    assert not set.intersection(*of_class)


# Order ----------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_every_row_occurs_once_per_epoch(count, batch, seed):
    steps = -(-3 * count // batch)
    pairs = [batch_rows(count, batch, seed, step) for step in range(steps)]
    rows, epochs = (np.concatenate(part)[: 3 * count] for part in zip(*pairs, strict=True))
    for epoch in range(3):
        assert sorted(rows[epochs == epoch]) == list(range(count))


def test_epochs_and_seeds_differ_in_order():
    first = batch_rows(100, 100, 0, 0)[0]
    assert not np.array_equal(first, batch_rows(100, 100, 0, 1)[0])
    assert not np.array_equal(first, batch_rows(100, 100, 1, 0)[0])
    assert np.array_equal(first, batch_rows(100, 100, 0, 0)[0])


# Decoding -------------------------------------------------------------------------------------


def test_16_bit_gray_is_scaled_not_clipped():
    samples = np.array([[0, 257 * 100], [257 * 200, 65535]], dtype=np.uint16)
    pixels = np.asarray(decode(encoded(Image.fromarray(samples))))
    assert pixels[..., 0].tolist() == [[0, 100], [200, 255]]
    assert (pixels == pixels[..., :1]).all()


def test_transparent_pixels_become_white():
    hidden = np.zeros((2, 2, 4), dtype=np.uint8)
    hidden[..., 0], hidden[0, :, 3] = 255, 255
    pixels = np.asarray(decode(encoded(Image.fromarray(hidden))))
    assert pixels[0].tolist() == [[255, 0, 0]] * 2
    assert pixels[1].tolist() == [[255, 255, 255]] * 2


def test_a_transparent_palette_entry_becomes_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    pixels = np.asarray(decode(encoded(image, transparency=0)))
    assert pixels.tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_transparent_gray_becomes_white():
    image = Image.new("LA", (1, 1), (10, 0))
    assert np.asarray(decode(encoded(image))).tolist() == [[[255, 255, 255]]]


def test_a_rotated_photograph_is_turned_upright():
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255  # left half white; after a quarter turn clockwise the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode(encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95))
    assert upright.size == (8, 16)
    assert np.asarray(upright)[:6].mean() > 240 > 15 > np.asarray(upright)[10:].mean()


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "shown"),
    [
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("P", 0, "GIF", (0, 0, 0)),
        ("RGB", (1, 2, 3), "BMP", (1, 2, 3)),
        ("I", 257 * 9, "TIFF", (9, 9, 9)),
    ],
)
def test_every_image_mode_is_converted_to_the_visible_colours(mode, colour, kind, shown):
    pixels = np.asarray(decode(encoded(Image.new(mode, (4, 4), colour), kind)))
    assert pixels.shape == (4, 4, 3)
    assert tuple(pixels[0, 0]) == shown


def test_16_bit_rgb_keeps_its_upper_half():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8080, 0x0000)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row))
    assert np.asarray(decode(png + chunk(b"IEND", b""))).tolist() == [[[255, 128, 0]]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image at all",
        encoded(Image.effect_noise((64, 64), 50))[:-900],
        encoded(Image.new("F", (2, 2), 0.5), "TIFF"),
    ],
    ids=["empty", "text", "truncated", "float"],
)
def test_images_that_cannot_be_decoded_are_refused_with_a_reason(content):
    with pytest.raises(Undecodable, match=r"\w"):
        decode(content)


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 2000), (15, 17), (500, 300)])
def test_images_of_any_size_become_squares(size):
    image = Image.effect_noise(size, 60).convert("RGB")
    assert crop(resized(image, 16, 1.0), 16, None, flip=False).shape == (16, 16, 3)
    where = np.random.default_rng(0)
    assert crop(resized(image, 16, 1.125), 16, where, flip=True).shape == (16, 16, 3)


def test_the_centre_crop_is_centred():
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, 16:32] = 200
    assert (crop(resized(Image.fromarray(pixels), 16, 1.0), 16, None, flip=False) == 200).all()


# Folders and Parquet --------------------------------------------------------------------------


def folder_of(root, classes=("cat", "dog"), count=3, split="train"):
    for label, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            colour = (100 * label, i, 0)
            Image.new("RGB", (20, 20), colour).save(root / split / name / f"{i}.png")


def record(**changes) -> ImageFiles:
    return ImageFiles(**{"name": "pets", "side": 16, "classes": 2, **changes})


def opened(root, tmp_path, split="train", workers=0, **changes):
    survey = tmp_path / "survey" / split
    return open_images(record(**changes), split, ReadOptions(root, survey, workers, silent))


def test_a_hostile_folder_is_read_or_its_bad_files_listed_without_a_crash(tmp_path):
    root = tmp_path / "pets"
    folder_of(root, count=300)
    cat = root / "train" / "cat"
    noise = encoded(Image.effect_noise((64, 64), 50))
    (cat / "torn.png").write_bytes(noise[: len(noise) // 2])
    (cat / "zero.jpg").touch()
    (cat / "text.jpg").write_text("hello")
    (cat / "x.jpg").mkdir()
    (cat / "._0.png").write_bytes(b"AppleDouble")
    (root / "train" / ".DS_Store").touch()
    (root / "train" / ".hidden").mkdir()
    (cat / "ünï cödé\n'\";.png").write_bytes(encoded(Image.new("CMYK", (9, 9)), "TIFF"))
    (cat / b"bytes-\xff.png".decode(errors="surrogateescape")).write_bytes(noise)
    (cat / "wide.png").write_bytes(encoded(Image.effect_noise((2000, 3), 9)))
    (cat / "dot.png").write_bytes(encoded(Image.new("RGBA", (1, 1), (9, 9, 9, 0))))
    source = opened(root, tmp_path, workers=2)
    assert source.rows == 600 + 4
    rejected = (tmp_path / "survey" / "train" / "rejected.csv").read_text().splitlines()
    assert len(rejected) == 1 + 3
    assert any("zero.jpg,cat,empty file" in line for line in rejected)
    every = source.images(np.arange(source.rows), np.zeros(source.rows, dtype=int))
    assert every.shape == (604, 16, 16, 3)
    assert sorted(set(source.labels)) == [0, 1]


def test_too_many_undecodable_files_fail_with_the_first_of_them(tmp_path):
    root = tmp_path / "pets"
    folder_of(root)
    (root / "train" / "dog" / "9.png").write_text("no")
    with pytest.raises(DataError, match=r"1 of 7 images do not decode.*rejected.csv.*9\.png"):
        opened(root, tmp_path)
    assert "dog/9.png,dog," in (tmp_path / "survey" / "train" / "rejected.csv").read_text()


def test_a_survey_is_made_once_and_changed_files_are_refused(tmp_path):
    root = tmp_path / "pets"
    folder_of(root)
    seen = []
    survey = tmp_path / "survey"
    reading = ReadOptions(root, survey, 0, lambda *words: seen.append(words))
    args = (record(), "train", reading)
    open_images(*args)
    first = len(seen)
    assert open_images(*args).rows == 6
    assert len(seen) == first
    (root / "train" / "dog" / "new.png").write_bytes(encoded(Image.new("RGB", (4, 4))))
    with pytest.raises(DataError, match="changed since they were surveyed"):
        open_images(*args)


def test_each_missing_folder_has_its_own_message(tmp_path):
    with pytest.raises(DataError, match=r"has no path.*\[data\] pets.*VAR_SCALING_DATA"):
        opened(None, tmp_path)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        opened(tmp_path / "nowhere", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        opened(tmp_path / "file", tmp_path)
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "val").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        opened(tmp_path / "empty", tmp_path)


def test_an_empty_class_and_a_wrong_count_of_classes_are_refused(tmp_path):
    root = tmp_path / "pets"
    folder_of(root)
    folder_of(root, split="val")
    with pytest.raises(DataError, match="2 classes found, data 'pets' has classes = 3"):
        opened(root, tmp_path, classes=3)
    (root / "train" / "emu").mkdir()
    with pytest.raises(DataError, match="class 'emu' holds no images"):
        opened(root, tmp_path, classes=3)


def test_without_a_validation_split_a_share_of_the_images_is_held_out(tmp_path):
    root = tmp_path / "pets"
    folder_of(root, count=50)
    with pytest.raises(DataError, match=r"no validation split.*val, valid, test.*validation_share"):
        opened(root, tmp_path, split="validation")
    parts = {split: list_images(root, split, 0.2).names for split in ("train", "validation")}
    assert not set(parts["train"]) & set(parts["validation"])
    assert len(parts["train"]) + len(parts["validation"]) == 100
    assert 5 < len(parts["validation"]) < 40


def parquet(path, rows, schema=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2)


def rows_of(count, classes=2):
    return [
        {
            "image": {"bytes": encoded(Image.new("RGB", (20, 20), (i, 0, 0))), "path": None},
            "label": i % classes,
        }
        for i in range(count)
    ]


def test_parquet_rows_are_read_in_any_order_over_files_and_groups(tmp_path):
    rows = rows_of(9)
    parquet(tmp_path / "p" / "data" / "train-00000-of-00002.parquet", rows[:5])
    parquet(tmp_path / "p" / "data" / "train-00001-of-00002.parquet", rows[5:])
    parquet(tmp_path / "p" / "data" / "test-00000-of-00001.parquet", rows[:2])
    source = opened(tmp_path / "p", tmp_path)
    order = np.array([8, 0, 4, 5, 3])
    assert source.images(order, np.zeros(5, dtype=int))[:, 0, 0, 0].tolist() == order.tolist()
    assert source.labels.tolist() == [i % 2 for i in range(9)]
    assert opened(tmp_path / "p", tmp_path, split="validation").rows == 2


def test_invalid_parquet_files_have_their_own_messages(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "train.parquet").write_text("no parquet")
    (folder / "test.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"train\.parquet: not readable as Parquet"):
        opened(folder, tmp_path)
    parquet(folder / "train.parquet", [{"img": 1, "label": 2}])
    with pytest.raises(DataError, match="columns are img, label; needed: image"):
        opened(folder, tmp_path)
    parquet(folder / "train.parquet", [{"image": {"path": "x"}, "label": 2}])
    with pytest.raises(DataError, match="needed: image a struct with the field bytes"):
        opened(folder, tmp_path)
    unlabelled = [{**row, "label": -1} for row in rows_of(2)]
    parquet(folder / "train.parquet", unlabelled)
    with pytest.raises(DataError, match="is negative"):
        opened(folder, tmp_path)


def test_a_crop_depends_only_on_the_image_and_the_crop_number(tmp_path):
    root = tmp_path / "pets"
    folder_of(root)
    for path in (root / "train").rglob("*.png"):
        Image.effect_noise((40, 30), 90).convert("RGB").save(path)
    source = opened(root, tmp_path, crops=2, enlarge=1.5, flip=True)
    rows = np.array([1, 1, 1, 1])
    one, two, again, next_ = source.images(rows, np.array([0, 1, 2, 3]))
    assert np.array_equal(one, again)
    assert np.array_equal(two, next_)
    assert not np.array_equal(one, two)


def test_all_crops_of_an_image_in_turn_are_decoded_once(tmp_path, monkeypatch):
    folder_of(tmp_path / "pets")
    source, read = opened(tmp_path / "pets", tmp_path, crops=3, enlarge=1.5), []
    one_by_one = [source.images(np.array([r // 3]), np.array([r % 3]))[0] for r in range(6)]
    original = source._read
    monkeypatch.setattr(source, "_read", lambda row: read.append(row) or original(row))
    together = source.images(np.arange(6) // 3, np.arange(6) % 3)
    assert read == [0, 1]
    assert np.array_equal(together, one_by_one)


def test_splits_of_different_classes_are_refused(tmp_path):
    root = tmp_path / "pets"
    folder_of(root)
    folder_of(root, classes=("ant", "cat"), split="val")
    with pytest.raises(DataError, match=r"different classes \(not in both: ant, dog\)"):
        opened(root, tmp_path)


def test_labels_above_the_number_of_named_classes_are_refused(tmp_path):
    feature = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata=metadata,
    )
    parquet(tmp_path / "p" / "train.parquet", rows_of(6, classes=3), schema)
    with pytest.raises(DataError, match="label 2, but the files name 2 classes"):
        opened(tmp_path / "p", tmp_path)


def test_a_validation_split_may_lack_the_last_of_unnamed_classes(tmp_path):
    parquet(tmp_path / "p" / "train.parquet", rows_of(6, classes=3))
    parquet(tmp_path / "p" / "test.parquet", rows_of(2, classes=2))
    assert opened(tmp_path / "p", tmp_path, split="validation", classes=3).rows == 2


def test_transparent_16_bit_gray_becomes_white():
    samples = np.array([[257 * 128, 257 * 10]], dtype=np.uint16)
    png = encoded(Image.fromarray(samples))
    body = struct.pack(">H", 257 * 128)
    clear = struct.pack(">I", 2) + b"tRNS" + body + struct.pack(">I", zlib.crc32(b"tRNS" + body))
    at = png.index(b"IDAT") - 4
    pixels = np.asarray(decode(png[:at] + clear + png[at:]))
    assert pixels[0, :, 0].tolist() == [255, 10]


# Reading ahead --------------------------------------------------------------------------------


def test_threads_read_ahead_in_the_order_of_the_keys():
    started = []

    def read(key: int) -> int:
        started.append(key)
        time.sleep(0.002 * (key % 3))
        return 2 * key

    values = in_order(read, range(20), workers=0, threads=3)
    assert next(values) == 0
    assert max(started) <= 4  # at most three values ahead of the next one
    assert list(values) == [2 * key for key in range(1, 20)]


def test_an_error_of_a_reading_thread_is_raised_in_its_place():
    values = in_order(lambda key: 1 // (key - 2), range(5), workers=0, threads=2)
    assert [next(values), next(values)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(values)
