"""The report shows samples with captions, fidelity and speed."""

import json
from dataclasses import replace

import pytest
from PIL import Image
from test_images_published import SHA, SWEEP, edit, looked, samples, table, timed
from test_images_published import empty_database as empty_database
from test_images_published import few as few
from test_images_published import home as home
from test_report import FACTS, assert_sound, written

from analysis.table.table import TableError
from pipelines.report import publish
from pipelines.report.facts import facts_of
from pipelines.report.images import artifact_folders, report_images
from pipelines.results.artifacts import combined_stamp
from pipelines.stages.graph import sweep_stages
from pipelines.workspace.store import Home
from var_scaling.disk import write_json
from var_scaling.experiment.sample_set import Rejection
from var_scaling.models.var.config import VarSampling

# The report --------------------------------------------------------------------------------------


def test_the_largest_models_come_first_and_the_others_are_listed(home):
    for name in ("default", "a", "b"):
        samples(home, name, "d10")
    samples(home, of="d4")
    edit(home, of="d2")
    found = report_images(sweep_stages(home, SWEEP))
    assert [made.name for made in found.made] == ["s/d10", "s/d4", "s/d2"]
    first = [caption for caption, _ in found.made[0].pictures]
    assert first[0] == (
        "s/d10, samples default: 3 of each of 8 classes, guidance 1.5, rising from 0, seed 7"
    )
    assert "intermediate steps" in first[1]
    assert found.made[0].unshown == "Also on disk: samples/b."
    (sheet,) = found.made[2].pictures
    assert sheet[0].startswith("s/d2, edit leaf: in-paint, class 3, guidance 1.5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": (8,)}, "3 without a class, guidance 1.5"),
        ({"classes": (5,)}, "3 of class 5"),
        ({"sampling": VarSampling(guidance=2.0, rising=False)}, "guidance 2.0, seed"),
        ({"sampling": VarSampling(guidance=(0.0, 1.0, 2.0))}, "guidance 0.0 1.0 2.0, seed"),
        ({"sampling": VarSampling(guidance=0.0)}, "classes, no guidance, seed"),
        ({"sampling": VarSampling(top_k=0, smooth=True)}, "top_k 0, smooth, seed"),
    ],
)
def test_captions_state_the_sampling_settings(home, changes, message):
    samples(home, **changes)
    (made,) = report_images(sweep_stages(home, SWEEP)).made
    assert message in made.pictures[0][0]


def test_the_page_has_pictures_and_tables(home, few, tmp_path):
    best = Rejection(rate=0.25, classifier="resnet", classifier_sha256=SHA)
    chosen = samples(home, of="d10", rejection=best)
    looked(chosen, fd_seeded=1.5, kd_seeded=-0.25, kd_seeded_std=0.011)
    looked(samples(home, of="d4"), fid=12.25)
    timed(home.trial("s", "d4"))
    facts = replace(FACTS, **report_images(sweep_stages(home, SWEEP))._asdict())
    page = written(tmp_path, few, facts=facts)
    assert_sound(page)
    assert page.count('src="data:image/png;base64,') == 4
    fidelity = table(page, "fidelity-table")
    assert fidelity["model"] == ["s/d10", "s/d4"]
    assert fidelity["fd_seeded"] == ["1.5", "–"]
    assert fidelity["kd_seeded"] == ["-0.25 ± 0.011", "–"]
    assert fidelity["FID"] == ["–", "12.25"]
    assert fidelity["drawn"] == [
        "guidance 1.5, rising from 0, seed 7, the best 0.25 by resnet",
        "guidance 1.5, rising from 0, seed 7",
    ]
    assert fidelity["reference"] == ["leaves-train, 600 images"] * 2
    speed = table(page, "speed-table")
    assert speed["images/s"] == ["2", "out of memory", "16"]
    assert speed["least to most"] == ["0.4 to 0.9", "–", "0.4 to 0.9"]
    assert speed["MFU"] == ["25.0%", "–", "50.0%"]
    assert speed["memory"] == ["–", "–", "+3 MB"]


def test_a_page_without_pictures_has_no_section_for_them(home, few, tmp_path):
    facts = replace(FACTS, **report_images(sweep_stages(home, SWEEP))._asdict())
    page = written(tmp_path, few, facts=facts)
    assert 'id="samples"' not in page
    assert 'id="speed"' not in page


def test_a_picture_that_is_too_large_is_shrunk_with_a_note(home, few, tmp_path):
    noise = Image.effect_noise((1000, 2000), 90)
    noise.save(samples(home) / "grid.png")
    facts = replace(FACTS, **report_images(sweep_stages(home, SWEEP))._asdict())
    page = written(tmp_path, few, facts=facts)
    assert page.count('src="data:image/jpeg;base64,') == 1
    assert 'width="800" height="1600"' in page
    assert page.count("(reduced for this page)") == 1


def test_new_pictures_mark_the_page_and_the_mirror_as_outdated(home):
    laws = {
        "format": publish.LAWS_FORMAT,
        "objective": "squares",
        "results_fingerprint": "r",
        "made": None,
    }
    report = publish.report_path(home, SWEEP)
    report.parent.mkdir()
    report.touch()
    write_json(home.sweep("s") / "laws.json", laws)
    publish.save_mirrored(home, SWEEP, laws)
    assert publish.publish(home, SWEEP, "r", again=False) == laws
    samples(home)
    with pytest.raises((TableError, FileNotFoundError)):  # it would write the page again
        publish.publish(home, SWEEP, "r", again=False)
    new = {**laws, "made": {"stamp": combined_stamp(artifact_folders(sweep_stages(home, SWEEP)))}}
    assert publish.mirrored(home, SWEEP, laws)
    assert not publish.mirrored(home, SWEEP, new)
    assert facts_of(SWEEP, sweep_stages(home, SWEEP)).made[0].name == "s/d2"


def test_the_report_shows_whether_the_quality_of_the_tokenizer_still_rises(tmp_path):
    home = Home(tmp_path)
    folder = home.tokenizer(SWEEP.trials[0].tokenizer.name)
    folder.mkdir(parents=True)
    usage = {"codes_used_all": 1.0, "used_per_scale": [1.0], "perplexity_per_scale": [9.0]}
    lines = [
        {"kind": "validation", "step": step, "psnr_db": psnr, **usage}
        for step, psnr in ((400, 20.0), (500, 20.75))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = facts_of(SWEEP, sweep_stages(home, SWEEP)).tokenizers
    assert shown[0]["its last rise"] == "+0.75 dB in the last 100 steps"
    (folder / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert facts_of(SWEEP, sweep_stages(home, SWEEP)).tokenizers[0]["its last rise"] == "–"
