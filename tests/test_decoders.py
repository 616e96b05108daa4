"""The content of a file, not its name, selects the decoder; only allowed formats are decoded."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from small_home import ADDRESS, small_home
from typer.testing import CliRunner

from pipelines.cli import main as cli
from var_scaling.data.dataset import open_images
from var_scaling.data.decode import FORMATS, Undecodable, decode
from var_scaling.datasets import ImageFiles, ReadOptions
from var_scaling.generation.masks import open_mask

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 16 16
%%EndComments
0 0 16 16 rectfill
%%EOF
"""


def as_format(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 99, 9)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A fake `gs` first in PATH; returns a file that exists once it was started."""
    from PIL import EpsImagePlugin

    folder, started = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not searched for yet
    return started


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])
def test_every_format_that_is_named_is_read(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    pixels = np.asarray(decode(as_format(kind)), dtype=int)
    assert pixels.shape == (16, 16, 3)
    assert abs(pixels - (9, 99, 9)).max() < 8


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "TGA", "SGI", "DDS", "IM", "MSP", "XBM"])
def test_other_formats_are_refused(kind, ghostscript):
    image = Image.new("1" if kind in ("MSP", "XBM") else "RGB", (16, 16))
    out = io.BytesIO()
    image.save(out, kind)
    for read in (decode, open_mask):
        with pytest.raises(Undecodable, match=r"that is read \(PNG, JPEG, WEBP"):
            read(out.getvalue())
    assert not ghostscript.exists()


def test_the_message_names_the_format_by_its_first_bytes():
    with pytest.raises(Undecodable, match=r"that is read \(PNG, .*\); it looks like EPS$"):
        decode(EPS)
    with pytest.raises(Undecodable, match=r"^not an image format that is read \(PNG, .*\)$"):
        decode(b"words")


def test_an_eps_named_cat_jpg_starts_no_ghostscript_in_a_survey(tmp_path, ghostscript):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(60):
            (tmp_path / "pets" / name / f"{i}.png").write_bytes(as_format("PNG"))
    (tmp_path / "pets" / "cat" / "cat.jpg").write_bytes(EPS)
    data = ImageFiles(name="pets", side=16, classes=2, validation_share=0.01)
    open_images(
        data,
        "train",
        ReadOptions(tmp_path / "pets", tmp_path / "survey", 0, lambda *reported: None),
    )
    rejected = (tmp_path / "survey" / "rejected.csv").read_text()
    assert 'cat/cat.jpg,cat,"not an image format' in rejected
    assert "it looks like EPS" in rejected
    assert not ghostscript.exists()


@pytest.mark.parametrize("words", [("--in-paint", "25%,25%,75%,75%"), ("--mask", "mask.png")])
def test_an_eps_named_cat_jpg_starts_no_ghostscript_in_an_edit(
    tmp_path, ghostscript, words, monkeypatch
):
    home = small_home(tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    Path("mask.png").write_bytes(EPS)
    Path("cat.jpg").write_bytes(as_format("JPEG") if "--mask" in words else EPS)
    requested = ["edit", ADDRESS, "cat.jpg", *words, "--home", str(home.root)]
    done = CliRunner().invoke(cli.app, requested)
    assert "it looks like EPS" in str(done.exception)
    assert not ghostscript.exists()


def test_an_eps_named_cat_jpg_starts_no_ghostscript_in_fidelity(tmp_path, ghostscript):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "cat.jpg").write_bytes(EPS)
    requested = ["fidelity", str(tmp_path / "mine"), "--against", "pets-train"]
    done = CliRunner().invoke(cli.app, [*requested, "--home", str(tmp_path / "home")])
    assert "cat.jpg: not an image format" in str(done.exception)
    assert not ghostscript.exists()


def test_every_image_open_restricts_the_formats():
    """A call of `Image.open` without `formats` would let the content select any decoder."""
    root = Path(__file__).parent.parent
    rooms = ("var_scaling", "pipelines", "analysis", "sweeps", "benchmarks")
    calls = [
        (path.name, line)
        for room in rooms
        for path in (root / room).rglob("*.py")
        for line in path.read_text().splitlines()
        if "Image.open(" in line or "imread(" in line
    ]
    assert calls
    assert [(name, line) for name, line in calls if "formats=" not in line] == []
