"""`var-scaling sample`: options, locks between processes, and interruptions."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import psutil
import pytest
from conftest import COMMAND, bring, tokenizer, trial
from rich.console import Console
from small_home import ADDRESS, context_in, small_home

from pipelines.cli import main as cli
from pipelines.cli.terminal.images import image_progress
from pipelines.sampling.draw import DrawOptions
from pipelines.sampling.jobs import job_folders, sample_tasks
from pipelines.sampling.request import SampleOptions, plan_set, read_classes, read_part
from pipelines.workspace import job_log as jobs
from pipelines.workspace.settings import Cluster
from pipelines.workspace.store import file_lock
from var_scaling.disk import DONE, is_done, read_json, write_json

MIRRORED: list[str] = []  # the address of each call


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _alone_and_quick(home, monkeypatch):
    """Without sets of other tests, fsync and MLflow."""
    MIRRORED.clear()
    monkeypatch.setattr(
        "pipelines.tracking.sync.mirror_model", lambda *arguments: MIRRORED.append(arguments[2])
    )
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    shutil.rmtree(home.root / ADDRESS / "samples", ignore_errors=True)


@pytest.fixture
def sample(home, monkeypatch, capsys):
    """Run `sample` in this process; returns its exit code and output."""

    def call(*words: str) -> tuple[int, str]:
        whole = ["var-scaling", "sample", *words, "--home", str(home.root)]
        monkeypatch.setattr(sys, "argv", whole)
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, " ".join((out + err).split())

    return call


def pictures(folder: Path) -> dict[str, bytes]:
    root = folder / "images"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


# Options ----------------------------------------------------------------------------------------


def test_classes_and_ranges_are_parsed():
    assert read_classes("0,1,5-8", 10) == (0, 1, 5, 6, 7, 8)
    assert read_classes("8,1-3,2", 10) == (1, 2, 3, 8)
    assert read_classes("all", 3) == (0, 1, 2)
    assert read_classes("none", 3) == (3,)
    assert read_classes("1,none", 3) == (1, 3)
    assert read_classes(None, 16) == tuple(range(16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has 1,000 classes: choose some"),
        ("", "'' is not a class"),
        ("dog", "'dog' is not a class; allowed: 0,1,5-8 or all or none"),
        ("-3", "'-3' is not a class"),
        ("8-5", "8-5: the first number is larger than the last"),
        ("5-1000", "has classes 0 to 999; there is no class 1000"),
    ],
)
def test_invalid_classes_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_classes(text, 1000)


def test_parts_are_parsed():
    assert read_part("2/8") == (1, 8)
    for text in ("9/8", "0/8", "2", "a/b", "1/0"):
        with pytest.raises(ValueError, match=f"--part {text}: must be I/N"):
            read_part(text)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["grid/d9"], 2, "no finished model or tokenizer in this folder"),
        (["d2"], 2, "an address is SWEEP/TRIAL"),
        ([ADDRESS, "--classes", "8"], 2, "the model has classes 0 to 7; there is no class 8"),
        ([ADDRESS, "--count", "0"], 2, "--count 0: must be at least 1"),
        ([ADDRESS, "--top-k", "1,2"], 2, "2 values, but the model has 3 scales"),
        ([ADDRESS, "--guidance", "-1"], 2, "--guidance"),
        ([ADDRESS, "--guidance", "0,1,2", "--constant-guidance"], 2, "has a value for each scale"),
        ([ADDRESS, "--classes", "none", "--guidance", "2"], 2, "guidance needs a class"),
        ([ADDRESS, "--part", "9/8"], 2, "--part 9/8: must be I/N"),
        ([ADDRESS, "--part", "1/2", "--processes", "2"], 2, "a part is drawn by one process"),
        ([ADDRESS, "--on", "moon"], 2, "no [clusters.moon]"),
        ([ADDRESS, "--jobs", "2"], 2, "need --on CLUSTER"),
        ([ADDRESS, "--npz", "."], 2, "is a directory"),
        ([ADDRESS, "--npz", "a.npz", "--on", "moon", "--detach"], 2, "--detach does not wait"),
        (
            [ADDRESS, "--count", "1250001"],
            2,
            "the set would draw 10,000,008 images; at most 10,000,000",
        ),
        ([ADDRESS, "--reject", "0"], 2, "above 0 and at most 1"),
        ([ADDRESS, "--name", "My Set"], 2, "name = 'My Set'"),
    ],
)
def test_invalid_requests_are_refused_and_leave_no_files(home, sample, words, code, message):
    found = sample(*words)
    assert message in found[1]
    assert found[0] == code
    assert not (home.root / ADDRESS / "samples").exists()


def test_a_model_without_class_dropout_is_sampled_without_guidance(tmp_path):
    own = small_home(tmp_path, trial(tokenizer=tokenizer(), class_dropout_prob=0.0))
    place = context_in(own)
    with pytest.raises(
        ValueError, match="class_dropout_prob = 0, so it cannot sample without a class"
    ):
        plan_set(place, ADDRESS, SampleOptions(classes="none"))
    assert plan_set(place, ADDRESS, SampleOptions()).config.sampling.guidance == 0


@pytest.mark.thorough
def test_an_imported_model_is_sampled_like_a_trial(files, tmp_path):
    bring(tmp_path, *files)
    plan = plan_set(context_in(small_home(tmp_path)), "imported/it", SampleOptions(count=1))
    assert plan.folder == tmp_path / "imported" / "it" / "samples" / "default"
    assert plan.config.classes == (0, 1, 2)


# Here --------------------------------------------------------------------------------------------


def test_a_finished_set_requested_again_is_not_drawn_again(home, sample, tmp_path):
    words = [ADDRESS, "--classes", "0-2", "--count", "2", "--strips", "1"]
    code, message = sample(*words, "--npz", str(tmp_path / "out.npz"))
    assert code == 0, message
    folder = home.root / ADDRESS / "samples" / "default"
    assert f"6 images in {folder / 'images'}" in message
    assert "6 of 6 images" in message
    assert {path.name for path in folder.iterdir()} == {
        "sampling.json", "chunks", "images", "manifest.json", "grid.png", "strips.png",
        "done.json", "lock",
    }  # fmt: skip
    assert (tmp_path / "out.npz").exists()
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert sample(*words)[0] == 0
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert sample(*words, "--seed", "1") == (
        3,
        f"error: {folder} already belongs to a different sampling: seed: recorded 0, expected 1 "
        "Give the new one another name, or move the folder away.",
    )


def test_a_set_is_mirrored_once_and_before_it_is_exported(home, sample, tmp_path):
    words = [ADDRESS, "--classes", "0", "--count", "1"]
    (tmp_path / "file").touch()
    code, message = sample(*words, "--npz", str(tmp_path / "file" / "out.npz"))
    assert code == 1
    assert MIRRORED == [ADDRESS]
    code, message = sample(*words)
    assert "1 image in" in message
    assert MIRRORED == [ADDRESS]  # no new files
    sample(*words, "--strips", "1")
    (home.root / ADDRESS / "samples" / "default" / "grid.png").unlink()
    sample(*words)
    assert MIRRORED == [ADDRESS] * 3


def test_ignored_options_are_reported(home, sample, tmp_path, monkeypatch):
    words = [ADDRESS, "--count", "9"]
    out = tmp_path / "out.npz"
    code, message = sample(*words, "--part", "1/2", "--npz", str(out))
    assert "--npz and --strips are written only when the set is done" in message
    assert not out.exists()
    assert sample(*words)[0] == 0
    code, message = sample(*words, "--processes", "4")
    assert (code, "it has 2: only 2 of 4 processes are used" in message) == (0, True), message
    (tmp_path / "box.toml").write_text('[clusters.box]\npartition = "p"\n')
    monkeypatch.setenv("VAR_SCALING_SETTINGS", str(tmp_path / "box.toml"))
    code, message = sample(*words, "--on", "box", "--strips", "1")
    assert code == 2
    assert "no job is left to draw strips. The same command without --on box draws them" in message
    assert sample(*words, "--on", "box")[0] == 0
    assert sample(*words, "--strips", "1")[0] == 0
    code, message = sample(*words, "--on", "box", "--strips", "2")
    assert (code, "no job drew strips" in message) == (0, True)


def test_a_part_reports_the_chunks_of_the_other_parts(home, sample):
    words = [ADDRESS, "--count", "9"]
    code, message = sample(*words, "--part", "1/2")
    assert code == 0
    assert "This part is done. Chunks still missing: 1 of 2" in message
    assert "72 images in" in sample(*words, "--part", "2/2")[1]


def test_a_set_that_another_process_draws_is_refused(home, sample):
    folder = home.root / ADDRESS / "samples" / "default"
    with file_lock(folder):
        code, message = sample(ADDRESS)
    assert code == 4
    assert f"in use by pid {os.getpid()}" in message


@pytest.mark.slow
def test_two_processes_make_the_same_files_as_one(home, sample):
    assert sample(ADDRESS, "--count", "25", "--name", "one")[0] == 0
    code, message = sample(ADDRESS, "--count", "25", "--name", "two", "--processes", "2")
    assert code == 0, message
    samples = home.root / ADDRESS / "samples"
    assert pictures(samples / "one") == pictures(samples / "two")
    seconds = read_json(samples / "two" / "manifest.json")["seconds"]
    assert seconds > 0


def begun(home, *words: str) -> subprocess.Popen:
    """Start `sample` in the background and wait for some complete chunks."""
    process = subprocess.Popen(
        [*COMMAND, "sample", ADDRESS, "--count", "2000", *words, "--home", str(home.root)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    chunks = home.root / ADDRESS / "samples" / "default" / "chunks"
    deadline = time.monotonic() + 100
    while not chunks.exists() or len(list(chunks.glob("*.json"))) < 3:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--processes", "2")])
def test_ctrl_c_keeps_all_images_and_prints_how_to_resume(home, words):
    process = begun(home, *words)
    os.killpg(process.pid, signal.SIGINT)  # to the whole process group, as a terminal does
    message = process.communicate(timeout=60)[0]
    assert process.returncode == 130, message
    assert "of 16,000 images are on disk. To resume: var-scaling sample grid/d2" in message
    folder = home.root / ADDRESS / "samples" / "default"
    marked = sum(len(read_json(path)["images"]) for path in folder.glob("chunks/*.json"))
    assert len(pictures(folder)) == marked
    assert not (folder / "stop").exists()


@pytest.mark.slow
def test_no_worker_outlives_its_parent(home):
    process = begun(home, "--processes", "2")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(children, timeout=20)
    assert left == []


@pytest.mark.slow
def test_a_killed_process_is_reported_and_the_other_images_are_kept(home):
    process = begun(home, "--processes", "2")
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    workers[0].kill()
    message = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "it ended with signal SIGKILL" in message
    assert "is kept. Fix the error, then resume with: var-scaling sample" in message


def test_without_a_terminal_progress_is_printed_at_intervals():
    now, console = [0.0], Console(record=True, width=100, file=StringIO())
    with image_progress(console, lambda: now[0]) as tell:
        for done in range(0, 1001, 10):
            tell("samples x", done, 1000)
            now[0] += 1
    lines = console.export_text().splitlines()
    assert lines[0] == "samples x: 0 of 1,000 images"
    assert lines[1] == "samples x: 210 of 1,000 images  10 images/s, 79 s left"
    assert lines[-1] == "samples x: 1,000 of 1,000 images  10 images/s"
    assert len(lines) == 6


# As jobs -----------------------------------------------------------------------------------------


def tasks_of(home, count: int, parts: int):
    plan = plan_set(context_in(home), ADDRESS, SampleOptions(count=count))
    return plan, sample_tasks(plan, DrawOptions(), parts, trial(), Cluster(partition="p"))


def test_there_is_one_job_per_part_and_at_most_one_per_chunk(home):
    plan, units = tasks_of(home, 25, 3)
    assert [unit.name for unit in units] == [
        f"samples grid/d2/default {number} of 3" for number in (1, 2, 3)
    ]
    assert len({unit.resources for unit in units}) == 1  # one array
    assert [unit.folder for unit in units] == job_folders(plan, 3)
    assert len(tasks_of(home, 25, 64)[1]) == plan.config.chunks == 4
    assert units[0].payload["part"] == [0, 3]
    assert not any(unit.done for unit in units)
    for unit in units:
        write_json(unit.folder / DONE, {"status": "done"})
    assert [unit.done for unit in units] == [False, True, True]  # the set was not completed


def test_a_job_without_guidance_requests_less_time(home, monkeypatch):
    monkeypatch.setattr("pipelines.sampling.jobs.encoding_resources", lambda flops, *rest: flops)
    plan, flops = plan_set(context_in(home), ADDRESS, SampleOptions(count=1)), []
    for guidance in (1.5, (0.0, 0.0, 0.1), 0.0, (0.0,) * 3):
        sampling = plan.config.sampling.model_copy(update={"guidance": guidance})
        changed = replace(plan, config=plan.config.model_copy(update={"sampling": sampling}))
        (unit,) = sample_tasks(changed, DrawOptions(), 1, trial(), Cluster(partition="p"))
        flops.append(unit.resources)
    guided, some, none, zeros = flops
    assert guided == some > none == zeros


def test_a_set_with_an_active_job_is_not_submitted_again(home):
    from pipelines.sampling.jobs import other_job

    plan, units = tasks_of(home, 25, 2)
    jobs.note(
        units[1].folder, "submitting", submission="s", cluster="box", index=1, code="c",
        resources={},
    )  # fmt: skip
    assert other_job(plan, units, "box") == ""
    for mine, cluster in ((tasks_of(home, 25, 3)[1], "box"), (units, "moon")):
        assert "attach to it with --on box --jobs 2" in other_job(plan, mine, cluster)


def test_each_job_draws_its_part_and_the_last_one_finishes_the_set(home):
    from pipelines.sampling.jobs import run

    plan, units = tasks_of(home, 9, 2)
    from pipelines.sampling.store import SampleFolder

    SampleFolder(plan.folder, plan.config).init_run_dir()
    place = context_in(home)
    for unit in units:
        assert not is_done(plan.folder)
        assert run(place, unit.payload) == "done"
    assert is_done(plan.folder)
    assert all(unit.done for unit in units)
    # A part with lost images is not finished.
    before = pictures(plan.folder)
    (plan.folder / DONE).unlink()
    for name in ("0001/00000.png", "0001/00008.png"):
        (plan.folder / "images" / name).unlink()
    assert run(place, units[0].payload) == "done"
    assert [unit.done for unit in units] == [True, False]
    assert run(place, units[1].payload) == "done"
    assert is_done(plan.folder)
    assert pictures(plan.folder) == before
