"""An edit changes only the hole, reuses finished results, and refuses invalid requests."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import tokenizer, trial
from PIL import Image

from pipelines.cli import main as cli
from pipelines.tracking import sync as mirror
from pipelines.workspace.store import Home, init_run_dir
from var_scaling.data.decode import decode
from var_scaling.disk import DONE, read_json, write_json
from var_scaling.experiment import ImportedModel
from var_scaling.experiment.sample_set import Request
from var_scaling.generation.blend import Window
from var_scaling.generation.edit import (
    encode_square,
    generate_edits,
    scene_to_enlarge,
    scene_to_paint,
)
from var_scaling.generation.masks import Box, box_hole
from var_scaling.models.var.config import VarSampling
from var_scaling.models.var.model import VAR
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.weights import file_sha256, save_weights

T = tokenizer()  # 16 px, maps of side 1, 2, 4
TRIALS = (trial(), trial(name="no-null", class_dropout_prob=0.0))
IMPORTED = ImportedModel(
    name="it", tokenizer=T, model=TRIALS[0].model, classes=TRIALS[0].classes, sha256="0" * 64
)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(folder: Path, height: int = 21, width: int = 27, seed: int = 0) -> Path:
    path = folder / "picture.png"
    Image.fromarray(noise(height, width, seed)).save(path)
    return path


def shown(path: Path) -> np.ndarray:
    return np.asarray(decode(path.read_bytes()))


@pytest.fixture(scope="module")
def models():
    modules = VAR(TRIALS[0].model, T, TRIALS[0].classes, seed=1), MultiScaleVQVAE(T, seed=1)
    return tuple(module.eval().requires_grad_(False) for module in modules)


@pytest.fixture(scope="module")
def home(tmp_path_factory, models) -> Path:
    """A home with untrained models that are marked as finished."""
    at = Home(tmp_path_factory.mktemp("home"))
    places = [(at.tokenizer(T.name), "tokenizer.json", T, models[1])]
    places += [(at.trial("s", one.name), "trial.json", one, models[0]) for one in TRIALS]
    places += [(at.imported("it"), "model.json", IMPORTED, models[0])]
    for folder, file, record, model in places:
        folder.mkdir(parents=True)
        init_run_dir(folder, file, record)
        save_weights(model, folder / "weights.safetensors")
        hashed = file_sha256(folder / "weights.safetensors")
        write_json(folder / DONE, {"status": "done", "weights_sha256": hashed})
    return at.root


class CommandResult(NamedTuple):
    code: int
    out: str
    errors: str
    mirrored: list[str]  # the address of each call


@pytest.fixture
def command(home, tmp_path, monkeypatch, capsys):
    """Run `var-scaling edit` in this process; returns its exit code and output."""
    monkeypatch.chdir(tmp_path)
    mirrored: list[str] = []
    monkeypatch.setattr(mirror, "mirror_model", lambda at, how, model, warn: mirrored.append(model))

    def run(*words: object, model: str = "s/d2", at: Path = home) -> CommandResult:
        line = ["var-scaling", "edit", model, *map(str, words), "--home", str(at)]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as end:
            cli.main()
        result = capsys.readouterr()
        done, mirrored[:] = list(mirrored), []
        return CommandResult(int(end.value.code or 0), result.out, result.err, done)

    return run


def folder_of(home: Path, name: str, model: str = "s/d2") -> Path:
    return home / model / "edits" / name


# What is kept ------------------------------------------------------------------------------------

BOX = Box(9, 4, 17, 13)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("kind", ["in-paint", "out-paint", "super-resolve"])
def test_kept_tokens_equal_those_of_the_picture_at_every_scale(kind, smooth, models):
    if kind == "super-resolve":
        scene = scene_to_enlarge(noise(9, 11), T)
    else:
        outpaint = kind == "out-paint"
        box = Box(4, 2, 20, 16) if outpaint else BOX
        scene = scene_to_paint(noise(21, 27), box_hole(box, 27, 21, outpaint), T, outpaint)
    own_L = encode_square(models[1], scene.square_HH3)[0]
    requests = [Request(TRIALS[0].classes, index) for index in range(3)]
    sampling = VarSampling(guidance=0.0, smooth=smooth)
    found = list(
        generate_edits(TRIALS[0].spec, *models, scene, requests, sampling, seed=0, batch=2)
    )
    ids_BL = torch.cat([part.ids_BL for part in found])
    kept = torch.stack([part.all() for part in scene.keep_L.split(T.pyramid.lengths)])
    assert kept.tolist() == [True, kind == "super-resolve", False]
    assert 0 < scene.keep_L[5:].sum() < 16 or kind == "super-resolve"
    assert torch.equal(ids_BL[:, scene.keep_L], own_L[scene.keep_L].expand(3, -1))
    drawn_BL = ids_BL[:, ~scene.keep_L]
    assert (drawn_BL != own_L[~scene.keep_L]).any(1).all()
    assert len(drawn_BL.unique(dim=0)) == 3  # all results differ


MODES = ("1", "L", "LA", "P", "RGBA", "I;16", "CMYK")


def in_mode(mode: str, path: Path) -> Path:
    rgb = Image.fromarray(noise(23, 31, seed=3))
    if mode == "I;16":
        wide = np.random.default_rng(3).integers(0, 65536, (23, 31), dtype=np.uint16)
        image = Image.fromarray(wide)
    else:
        image = rgb.convert(mode)
    if "A" in mode:
        image.putalpha(rgb.getchannel(0))
    image.save(path)
    return path


@pytest.mark.parametrize("mode", MODES)
def test_an_edit_does_not_change_pixels_outside_the_hole(mode, command, home, tmp_path):
    path = in_mode(mode, tmp_path / ("p.tif" if mode == "CMYK" else "p.png"))
    name = f"mode-{MODES.index(mode)}"
    result = command(path, "--in-paint", "9,4,17,13", "--count", 1, "--name", name)
    assert result.code == 0, result.errors
    folder, hole = folder_of(home, name), box_hole(BOX, 31, 23)
    original, kept = shown(folder / "original.png"), shown(folder / "kept-0.png")
    assert np.array_equal(original, shown(path))
    assert np.array_equal(kept[~hole], original[~hole])
    assert (kept[hole] != original[hole]).any(1).mean() > 0.8
    assert shown(folder / "generated-0.png").shape == (16, 16, 3)
    assert (shown(folder / "hole.png")[~hole] == original[~hole]).all()


def test_with_blank_the_result_does_not_depend_on_the_content_of_the_hole(home, command, tmp_path):
    """Without --blank the kept tokens depend on the hole, because the encoder sees it."""
    hole, one = box_hole(BOX, 27, 21), noise(21, 27)
    other = one.copy()
    other[hole] = 255 - other[hole]
    results = {}
    for name, pixels in (("one", one), ("other", other)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        result = command(
            tmp_path / f"{name}.png", "--in-paint", "9,4,17,13", "--count", 1, "--blank"
        )
        assert result.code == 0, result.errors
        results[name] = [
            (folder_of(home, name) / file).read_bytes()
            for file in ("generated-0.png", "kept-0.png")
        ]
    assert results["one"] == results["other"]
    full, empty = (
        [scene_to_paint(pixels, hole, T, blank=blank) for pixels in (one, other)]
        for blank in (False, True)
    )
    assert np.array_equal(empty[0].square_HH3, empty[1].square_HH3)
    assert not np.array_equal(full[0].square_HH3, full[1].square_HH3)


def test_super_resolution_of_a_small_picture_keeps_its_coarse_scales(command, home, tmp_path):
    path = picture(tmp_path, 8, 10)
    for name, words, kept in (("fine", (), 2), ("coarse", ("--keep-scales", 1), 1)):
        result = command(path, "--super-resolve", "--count", 2, "--name", name, *words)
        assert result.code == 0, result.errors
        manifest = read_json(folder_of(home, name) / "manifest.json")
        assert manifest["scales"] == [
            {"side": side, "kept": side**2 * (k < kept), "drawn": side**2 * (k >= kept)}
            for k, side in enumerate(T.pyramid.patch_nums)
        ]
        assert manifest["hole"] is None
    square = Image.fromarray(shown(path)[:, 1:9]).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(shown(folder_of(home, "fine") / "enlarged.png"), np.asarray(square))
    files = {path.name for path in folder_of(home, "fine").iterdir()}
    assert files == {
        "edit.json", "original.png", "enlarged.png", "generated-0.png", "generated-1.png",
        "results.json", "sheet.png", "manifest.json", "done.json", "lock",
    }  # fmt: skip


# Once, and under one name ------------------------------------------------------------------------


def written(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every picture."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.glob("*.png"))}


def test_a_repeated_edit_is_reused_and_a_different_one_needs_another_name(command, home, tmp_path):
    words = (picture(tmp_path), "--in-paint", "20%,20%,60%,60%", "--class", 2, "--name", "again")
    result = command(*words)
    assert (result.code, result.mirrored) == (0, ["s/d2"])
    folder = folder_of(home, "again")
    before = written(folder)
    assert len(before) == 4 + 4 + 3
    result = command(*words)
    assert (result.code, written(folder), result.mirrored) == (0, before, [])
    assert "class 2, guidance 1.5; " in result.out
    assert "nothing was redone" in result.out

    # Existing results are reused; missing ones are made again and are equal.
    for name in (DONE, "manifest.json", "sheet.png", "generated-1.png", "kept-3.png"):
        (folder / name).unlink()
    assert "nothing was redone" not in command(*words).out
    after = written(folder)
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    for name in ("generated-0.png", "kept-2.png"):
        assert after[name] == before[name]

    for more, difference in (
        (("--seed", 1), "seed: recorded 0, expected 1"),
        (("--in-paint", "20%,20%,60%,50%"), "box[]: recorded"),
        (("--top-k", 3), "sampling.top_k: recorded 900, expected 3"),
    ):
        result = command(*words, *more)
        assert result.code == 3
        assert "already belongs to a different edit" in result.errors
        assert difference.replace("[]", "") in result.errors
    picture(tmp_path, seed=5)
    assert "image_sha256" in command(*words).errors
    assert written(folder) == after


def boxed(command, tmp_path, name: str, *more: object, box: str = "9,4,17,13") -> CommandResult:
    return command(picture(tmp_path), "--in-paint", box, "--name", name, "--count", 2, *more)


@pytest.mark.parametrize("lost", ["sheet.png", "hole.png", "manifest.json", "kept-1.png"])
def test_lost_files_of_a_finished_edit_are_made_again(lost, command, home, tmp_path):
    name = f"lost-{lost.partition('.')[0]}"
    assert boxed(command, tmp_path, name).code == 0
    folder = folder_of(home, name)
    before = {path: content for path, (content, _) in written(folder).items()}
    (folder / lost).unlink()
    assert "nothing was redone" not in boxed(command, tmp_path, name).out
    assert {path: content for path, (content, _) in written(folder).items()} == before
    assert (folder / "manifest.json").exists()
    assert "nothing was redone" in boxed(command, tmp_path, name).out


def test_pictures_that_are_damaged_or_of_another_edit_are_never_reused(command, home, tmp_path):
    assert boxed(command, tmp_path, "true").code == 0
    assert boxed(command, tmp_path, "false", box="4,4,12,12").code == 0
    folder = folder_of(home, "false")
    for name in ("edit.json", DONE):
        (folder / name).unlink()
    (folder / "kept-mine.png").write_bytes(b"a person's own")
    assert boxed(command, tmp_path, "false").code == 0
    assert (folder / "kept-mine.png").read_bytes() == b"a person's own"
    for index in (0, 1):
        for name in (f"generated-{index}.png", f"kept-{index}.png"):
            expected = (folder_of(home, "true") / name).read_bytes()
            assert (folder / name).read_bytes() == expected
            # Truncated, or one bit flipped.
            for broken in (
                expected[:50],
                expected[:-20] + bytes([expected[-20] ^ 1]) + expected[-19:],
            ):
                (folder / name).write_bytes(broken)
                assert boxed(command, tmp_path, "false").code == 0
                assert (folder / name).read_bytes() == expected


def test_an_edit_that_failed_before_its_first_result_does_not_reserve_its_name(
    command, home, tmp_path, monkeypatch
):
    with monkeypatch.context() as failing:
        failing.setattr("pipelines.editing.edit.generate_edits", lambda *_: [][0])
        with pytest.raises(IndexError):
            boxed(command, tmp_path, "failed", "--class", 1)
    assert boxed(command, tmp_path, "failed", "--class", 2).code == 0
    assert read_json(folder_of(home, "failed") / "edit.json")["label"] == 2
    assert boxed(command, tmp_path, "failed", "--class", 1).code == 3
    # A model that cannot be loaded does not reserve the name.
    weights = home / "s" / "no-null" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    words = ("--in-paint", "9,4,17,13", "--class", 1, "--name", "unloaded")
    result = command(tmp_path / "picture.png", *words, model="s/no-null")
    weights.write_bytes(content)
    assert (result.code, "is not the file that was trained" in result.errors) == (2, True)
    assert not (folder_of(home, "unloaded", "s/no-null") / "edit.json").exists()


def test_a_larger_count_adds_to_the_existing_results(command, home, tmp_path, monkeypatch):
    assert boxed(command, tmp_path, "more").code == 0
    folder = folder_of(home, "more")
    before = written(folder)
    with (
        monkeypatch.context() as failing
    ):  # a larger count that failed does not invalidate the results
        failing.setattr("pipelines.editing.edit.generate_edits", lambda *_: [][0])
        with pytest.raises(IndexError):
            boxed(command, tmp_path, "more", "--count", 300)
    assert boxed(command, tmp_path, "more", "--count", 3).code == 0
    after = written(folder)
    assert set(after) - set(before) == {"generated-2.png", "kept-2.png"}
    for name in ("generated-0.png", "kept-1.png"):
        assert after[name] == before[name]
    assert len(read_json(folder / "manifest.json")["images"]) == 3
    result = boxed(command, tmp_path, "more")
    assert (result.code, "has 3 results already. Ask for --count 3 or more" in result.errors) == (
        3, True,
    )  # fmt: skip


def test_the_part_of_a_small_picture_outside_its_square_is_reported(command, tmp_path):
    words = (picture(tmp_path, 8, 16), "--super-resolve", "--count", 1, "--name")
    result = command(*words, "oblong")
    assert "sees 8 × 8 px from x 4, y 0: 50% of the image is outside" in result.errors
    assert ": 1 result, unconditional" in result.out
    assert command(*words, "asked", "--window", "0,0,8").errors == ""


def test_the_manifest_records_the_request_and_the_weights(command, home, tmp_path):
    mask = np.zeros((21, 27), np.uint8)
    mask[4:13, 9:17] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    words = ("--mask", tmp_path / "mask.png", "--count", 1, "--class", 0, "--json")
    result = command(picture(tmp_path), *words, "--name", "masked")
    printed = json.loads(result.out)
    folder = folder_of(home, "masked")
    assert printed.pop("folder") == str(folder)
    assert printed == read_json(folder / "manifest.json")
    edit = printed["edit"]
    assert edit == read_json(folder / "edit.json")
    assert edit["image_sha256"] == file_sha256(tmp_path / "picture.png")
    assert edit["mask_sha256"] == file_sha256(tmp_path / "mask.png")
    assert edit["weights_sha256"] == file_sha256(home / "s" / "d2" / "weights.safetensors")
    assert edit["window"] == [2, 0, 21]  # the largest square with the hole at its centre
    assert printed["images"] == [
        {"index": 0, "class": 0, "files": ["generated-0.png", "kept-0.png"]}
    ]
    assert printed["hole"]["shown_to_encoder"] is True
    # A box of the same pixels gives the same images.
    boxed = ("--in-paint", "9,4,17,13", "--count", 1, "--class", 0, "--name", "boxed")
    assert command(tmp_path / "picture.png", *boxed).code == 0
    for file in ("generated-0.png", "kept-0.png"):
        assert (folder_of(home, "boxed") / file).read_bytes() == (folder / file).read_bytes()


def test_the_part_outside_the_window_is_unchanged_and_reported(command, home, tmp_path):
    words = ("--out-paint", "0,5,20,15", "--window", "0,0,16", "--count", 1, "--name", "part")
    result = command(picture(tmp_path), *words)
    assert result.code == 0
    assert "the model sees 16 × 16 px from x 0, y 0: 74% of the hole is outside" in result.errors
    folder = folder_of(home, "part")
    changed = (shown(folder / "kept-0.png") != shown(folder / "original.png")).any(2)
    unseen = np.ones((21, 27), bool)
    Window(0, 0, 16).crop(unseen)[:] = False
    assert not changed[unseen].any()
    assert not changed[5:15, :16].any()
    assert changed[:4, :16].mean() > 0.8


def test_an_imported_model_can_edit(command, home, tmp_path):
    words = (picture(tmp_path), "--out-paint", "4,2,20,16", "--count", 1, "--name", "too")
    result = command(*words, model="imported/it")
    assert result.code == 0, result.errors
    folder = folder_of(home, "too", "imported/it")
    assert result.out.splitlines()[-1] == str(folder / "sheet.png")
    kept, original = (shown(folder / f"{name}.png") for name in ("kept-0", "original"))
    assert np.array_equal(kept[2:16, 4:20], original[2:16, 4:20])
