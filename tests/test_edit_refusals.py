"""Invalid edits are refused before a file is written; and the layout of the sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_editing import command as command
from test_editing import folder_of, noise, picture
from test_editing import home as home
from test_editing import models as models

from pipelines.editing.request import edit_name
from pipelines.editing.sheet import sheet

# Refused in words --------------------------------------------------------------------------------

BOXED = ("--in-paint", "9,4,17,13")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give one of --in-paint BOX, --out-paint BOX, --mask FILE, --super-resolve"),
        ((*BOXED, "--super-resolve"), "--super-resolve, not --in-paint and --super-resolve"),
        (("--in-paint", "9,4,17"), "'9,4,17': expected left,top,right,bottom"),
        (("--in-paint", "9,4,40,13"), "reaches outside the picture, which is 27 px wide and 21"),
        (("--in-paint", "0,0,27,21"), "nothing of it would be kept"),
        (("--in-paint", "1,1,20,20"), "each of the 4 × 4 cells"),
        (("--mask", "small.png"), "the mask is 3 × 3 px, the picture 27 × 21"),
        (("--mask", "black.png"), "the mask keeps all of the picture"),
        (("--mask", "words.txt"), "words.txt: not an image"),
        (("--super-resolve",), "has 21 px on its shorter side, the model's images 16"),
        ((*BOXED, "--window", "0,0,40"), "does not lie within the picture"),
        ((*BOXED, "--window", "0,0,12"), "cuts the hole"),
        ((*BOXED, "--feather", "9"), "feather 9 px: must be 0 to 5"),
        (
            (*BOXED, "--keep-scales", "1"),
            "--keep-scales with --in-paint: is only an option of --super",
        ),
        (("--super-resolve", "--feather", "1"), "there is no hole to blend"),
        ((*BOXED, "--mask-by", "alpha"), "--mask-by with --in-paint: is only an option of --mask"),
        ((*BOXED, "--class", "8"), "--class 8: the model has classes 0 to 7"),
        ((*BOXED, "--guidance", "2"), "guidance 2: guidance needs a class: give it"),
        ((*BOXED, "--class", "1", "--guidance", "1,2"), "2 values, but the model has 3 scales"),
        ((*BOXED, "--class", "1", "--guidance", "a"), "--guidance a: must be a number, or one"),
        ((*BOXED, "--top-p", "1.5"), "--top-p 1.5: Input should be less than or equal to 1"),
        ((*BOXED, "--name", "A b"), "name = 'A b'"),
    ],
)
def test_an_invalid_edit_is_refused_before_any_file_is_written(
    words, message, command, home, tmp_path
):
    Image.new("L", (3, 3), 255).save(tmp_path / "small.png")
    Image.new("L", (27, 21)).save(tmp_path / "black.png")
    (tmp_path / "words.txt").write_text("words")
    path = picture(tmp_path).rename(tmp_path / "refused.png")
    result = command(path, *words)
    assert (result.code, message in result.errors) == (2, True), result.errors
    assert not folder_of(home, "refused").exists()


def test_a_model_without_class_dropout_needs_a_class(command, home, tmp_path):
    words = (picture(tmp_path), *BOXED, "--count", 1)
    result = command(*words, model="s/no-null")
    assert result.code == 2
    assert "without a class. Give the class of the new content: --class N, 0 to 7" in result.errors
    result = command(*words, "--class", 1, "--guidance", 1.5, model="s/no-null")
    assert (result.code, "has no unconditional prediction" in result.errors) == (2, True)
    result = command(*words, "--class", 1, model="s/no-null")
    assert (result.code, "class 1, guidance 0; " in result.out) == (0, True)


def test_a_file_that_is_not_an_image_is_refused_by_name(command, tmp_path):
    (tmp_path / "a.png").write_bytes(b"PNG?")
    result = command(tmp_path / "a.png", *BOXED)
    assert (result.code, "a.png: not an image format" in result.errors) == (2, True)
    assert command(tmp_path / "absent.png", *BOXED).code == 2


def test_an_edit_is_named_after_its_file():
    assert edit_name(Path("/x/My Cat (1).JPG")) == "my-cat-1"
    assert edit_name(Path("Ünïcode ☃.png")) == "unicode"
    with pytest.raises(ValueError, match="give --name"):
        edit_name(Path("__.png"))


# The sheet ---------------------------------------------------------------------------------------


def test_small_pictures_are_enlarged_by_pixel_replication_and_large_ones_shrunk():
    small, large = noise(3, 5), noise(40, 1000)
    paper = sheet([[("small", small)], [("large", large), ("small too", small)]])
    zoomed = small.repeat(26, axis=0).repeat(26, axis=1)
    height, width = zoomed.shape[:2]
    places = np.argwhere((paper == zoomed[0, 0]).all(2))
    assert any(
        np.array_equal(paper[y : y + height, x : x + width], zoomed) for y, x in places[:2000]
    )
    assert paper.shape[1] == 3 * 8 + 256 + 130
