"""A set of samples outlives what people, disks and other processes do to its folder."""

import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from small_home import ADDRESS, context_in, small_home

from pipelines.sampling import processes as sample_processes
from pipelines.sampling.draw import How, sample_set
from pipelines.sampling.finalize import end_set, read_image
from pipelines.sampling.processes import ProcessFailed
from pipelines.sampling.request import SampleOptions, plan_set
from pipelines.sampling.run import here, other_split
from pipelines.sampling.store import ProcessShare, SampleFolder
from pipelines.stages.context import ProcessContext
from pipelines.workspace.store import Busy, ConfigMismatchError, file_lock, in_use
from var_scaling.disk import DONE, is_done, read_json, write_json

QUIET = How(), lambda done: False, lambda *said: None


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _alone_and_quick(home, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    shutil.rmtree(home.root / ADDRESS / "samples", ignore_errors=True)


def asked(home, count: int = 2, **words):
    return plan_set(
        context_in(home), ADDRESS, SampleOptions(count=count, **{"classes": "0-2", **words})
    )


def make(home, plan) -> list[int]:
    return sample_set(context_in(home), plan, *QUIET)


def pictures(plan) -> dict[str, bytes]:
    root = plan.folder / "images"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


def turned_over(path: Path) -> None:
    """One bit of it, at the same length."""
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])


# A count that was a mistake ----------------------------------------------------------------------


def failing(*told):
    raise RuntimeError("no GPU")


def test_a_larger_count_that_was_not_reached_can_be_taken_back(home, monkeypatch):
    plan, larger = asked(home), asked(home, 500)
    make(home, plan)
    before = pictures(plan)
    with monkeypatch.context() as broken:
        broken.setattr("pipelines.sampling.draw.make_ready", failing)
        with pytest.raises(RuntimeError):
            make(home, larger)
    assert is_done(plan.folder)  # nothing was drawn: nothing was given up
    (plan.folder / "strips.png").touch()
    SampleFolder(larger.folder, larger.wanted).init_run_dir()
    assert not is_done(plan.folder)
    assert not (plan.folder / "strips.png").exists()  # of another count
    assert make(home, plan) == []
    assert is_done(plan.folder)
    assert pictures(plan) == before
    with pytest.raises(ConfigMismatchError, match="has 2 images of each class already"):
        make(home, asked(home, 1))


def test_who_draws_a_count_that_is_no_longer_wanted_does_not_end_the_set(home):
    plan, larger = asked(home), asked(home, 3)

    def grow(what, done, total):
        if done == total:
            SampleFolder(larger.folder, larger.wanted).init_run_dir()

    with pytest.raises(ConfigMismatchError, match="count: recorded 3, wanted 2"):
        sample_set(context_in(home), plan, How(), lambda done: False, grow)
    assert not is_done(plan.folder)
    assert make(home, larger) == []


def test_images_without_a_record_belong_to_no_set(home):
    plan, other = asked(home), asked(home, seed=1)
    make(home, other)
    for name in ("sampling.json", DONE):
        (other.folder / name).unlink()
    assert make(home, plan) == []
    known = asked(home, name="known")
    make(home, known)
    assert pictures(plan) == pictures(known)


# Lost and damaged --------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
def test_an_image_damaged_at_its_length_is_drawn_again_in_the_same_call(home, finished):
    plan = asked(home)
    make(home, plan)
    before = pictures(plan)
    turned_over(plan.folder / "images" / "0001" / "00001.png")
    assert pictures(plan) != before
    if finished:  # then something else has to be missing for anybody to look
        (plan.folder / "grid.png").unlink()
    else:
        (plan.folder / DONE).unlink()
    assert make(home, plan) == []
    assert pictures(plan) == before
    assert is_done(plan.folder)


def test_of_a_rejected_set_too(home, tmp_path):
    (tmp_path / "map.json").write_text("[8, 9, 10, 11, 12, 13, 14, 15]")
    words = {"reject": 0.5, "classifier": "seeded", "class_map": tmp_path / "map.json"}
    plan = asked(home, **words)
    make(home, plan)
    before = pictures(plan)
    turned_over(plan.folder / "candidates" / next(iter(before)))
    (plan.folder / "images" / list(before)[-1]).unlink()
    assert make(home, plan) == []
    assert pictures(plan) == before


def test_a_disk_that_keeps_nothing_right_is_no_finished_set(home, monkeypatch):
    plan = asked(home)
    monkeypatch.setattr(SampleFolder, "damaged", lambda at, found: list(found)[:1])
    outcome = here(context_in(home), plan, How(), 1, lambda *said: None)
    assert "does not keep what is written: 1 of its chunks, twice" in outcome.failures["default"]
    assert not is_done(plan.folder)


@pytest.mark.parametrize("lost", ["grid.png", "manifest.json", "images/0002/00001.png"])
def test_a_set_of_which_something_was_lost_is_not_done(home, lost):
    plan = asked(home)
    make(home, plan)
    before = pictures(plan)
    (plan.folder / lost).unlink()
    assert make(home, plan) == []
    assert (plan.folder / lost).exists()
    assert pictures(plan) == before
    assert is_done(plan.folder)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "00001.png"
    Image.effect_noise((16, 16), 50).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match=r"00001\.png: "):
        read_image(path)


def test_a_folder_in_the_place_of_a_mark_notes_nothing(home):
    plan = asked(home)
    at = SampleFolder(plan.folder, plan.wanted)
    at.mark_path(0).mkdir(parents=True)
    assert at.look(0) == {}


# Beside others -----------------------------------------------------------------------------------


def candidates(home, tmp_path) -> SampleFolder:
    """A rejected set whose candidates are all there, without a model."""
    (tmp_path / "map.json").write_text("[8, 9, 10, 11, 12, 13, 14, 15]")
    words = {"reject": 0.5, "classifier": "seeded", "class_map": tmp_path / "map.json"}
    plan = asked(home, 8, **words)
    at = SampleFolder(plan.folder, plan.wanted)
    at.init_run_dir()
    image = np.zeros((16, 16, 3), np.uint8)
    for chunk in range(plan.wanted.chunks):
        made = {one: at.write(one, image, one.index / 100) for one in plan.wanted.chunk(chunk)}
        at.mark(chunk, made, ProcessShare(len(made), 1.0, "cpu", None, "h"))
    return at


def test_ending_a_rejected_set_leaves_alone_what_is_none_of_its_samples(home, tmp_path):
    at = candidates(home, tmp_path)
    of_class = at.folder / "images" / "0000"
    of_class.mkdir(parents=True)
    (of_class / "00000.png").write_bytes(b"of a smaller count")
    others = [of_class / name for name in (".00009.png.node7.12", "notes.txt", "best.png")]
    for path in others:
        path.write_bytes(b"another's")
    (of_class / "00099.png").mkdir()
    assert end_set(at, "a/b") == []
    assert not (of_class / "00000.png").exists()
    assert all(path.read_bytes() == b"another's" for path in others)
    assert (of_class / "00099.png").is_dir()


def test_two_that_end_a_rejected_set_at_once_both_can(home, tmp_path):
    at, context = candidates(home, tmp_path), multiprocessing.get_context("fork")
    gate = context.Barrier(2)

    def end() -> None:
        gate.wait()
        sys.exit(len(end_set(at, "a/b")))

    for _ in range(3):
        shutil.rmtree(at.folder / "images", ignore_errors=True)
        ending = [context.Process(target=end) for _ in range(2)]
        for process in ending:
            process.start()
        for process in ending:
            process.join(60)
        assert [process.exitcode for process in ending] == [0, 0]
    assert len(list((at.folder / "images").rglob("*.png"))) == at.wanted.images


def test_what_killed_processes_left_goes_when_it_is_old(home):
    plan = asked(home)
    make(home, plan)
    images = plan.folder / "images" / "0001"
    old, new = images / ".00001.png.node7.12", images / ".00001.png.node7.13"
    mine = images / ".hidden.png"
    for path in (old, new, mine):
        path.touch()
    for path in (old, mine):
        os.utime(path, (time.time() - 4000,) * 2)
    (plan.folder / DONE).unlink()
    make(home, plan)
    assert [path.exists() for path in (old, new, mine)] == [False, True, True]


def test_a_part_and_the_whole_are_not_drawn_at_once_but_parts_are(home):
    plan, quiet = asked(home, 30), lambda *said: None
    met = []

    def meet(what, done, total):
        if met:
            return
        met.append(what)
        place = context_in(home)
        assert in_use(plan.folder)
        with pytest.raises(Busy, match="which draws part 1-of-2"):
            here(place, plan, How(), 1, quiet)
        assert here(place, plan, How(part=(1, 2)), 1, quiet).missing
        assert "part 1/2 of this set is being drawn" in other_split(plan.folder, (1, 3))
        assert other_split(plan.folder, (1, 2)) == ""

    here(context_in(home), plan, How(part=(0, 2)), 1, meet)
    assert met
    assert is_done(plan.folder) or make(home, plan) == []
    with file_lock(plan.folder), pytest.raises(Busy, match=f"pid {os.getpid()}"):
        here(context_in(home), plan, How(part=(0, 2)), 1, quiet)
    assert other_split(plan.folder, (0, 3)) == ""


def test_a_process_that_is_killed_loses_no_more_than_a_while_and_a_batch(home):
    plan = asked(home, 8)
    place = replace(context_in(home), process=ProcessContext(save_every=0.0))
    at, marked = SampleFolder(plan.folder, plan.wanted), []

    def look(done: int) -> bool:
        marked.append((done, len(at.look(0))))
        return False

    sample_set(place, plan, How(batch=6), look, lambda *said: None)
    assert marked == [(0, 0), (6, 0), (12, 6), (18, 12)]
    shares = list(at.shares())
    assert sum(share.images for share in shares) == plan.wanted.images == 24
    other = replace(asked(home, 8, name="other"))
    marked.clear()
    at = SampleFolder(other.folder, other.wanted)
    sample_set(context_in(home), other, How(batch=6), look, lambda *said: None)
    assert [count for _, count in marked] == [0] * 4  # not after every batch either


# Several processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["says", "dies"])
def test_where_one_process_fails_the_others_are_asked_to_leave(home, tmp_path, way):
    context, stop = multiprocessing.get_context("fork"), tmp_path / "stop"

    def fails(says) -> None:
        if way == "says":
            says.send(("failed", "ValueError: no"))
        os._exit(way == "dies")

    def waits(says) -> None:
        until = time.monotonic() + 30
        while not stop.exists() and time.monotonic() < until:
            time.sleep(0.02)
        says.send(("done", str(7 if stop.exists() else 0)))

    workers = {}
    for name, target in (("1", fails), ("2", waits)):
        hears, says = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(says,), name=name, daemon=True)
        process.start()
        says.close()
        workers[hears] = process
    told = []
    said = {"says": "ValueError: no", "dies": "it ended with exit code 1"}[way]
    with pytest.raises(ProcessFailed, match=f"process 1 of 2: {said}"):
        sample_processes._run_until_done(
            workers, asked(home), 0, lambda what, done, total: told.append(done), stop
        )
    assert stop.exists()
    for process in workers.values():
        process.join(30)
        assert process.exitcode is not None


def test_a_process_leaves_with_the_one_that_started_it(home, tmp_path, monkeypatch):
    """It hears of it by no pipe here: it never comes to say a word."""
    context, note = multiprocessing.get_context("fork"), tmp_path / "pid"

    def stuck(*told):
        write_json(note, os.getpid())
        time.sleep(600)

    monkeypatch.setattr(sample_processes, "make_ready", stuck)

    def parent() -> None:
        hears, says = context.Pipe(duplex=False)
        words = (says, context_in(home), asked(home), How(), [0])
        worker = context.Process(target=sample_processes._work, args=words)
        worker.start()
        worker.join()
        hears.close()

    started = context.Process(target=parent)
    started.start()
    until = time.monotonic() + 60
    while not note.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    worker = psutil.Process(read_json(note))
    started.kill()
    started.join()
    try:
        _, left = psutil.wait_procs([worker], timeout=20)
        assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        if worker.is_running():
            worker.kill()


def test_a_worker_tells_on_stderr_where_it_failed(home, monkeypatch, capfd):
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(sample_processes, "make_ready", failing)
    hears, says = context.Pipe(duplex=False)
    words = (says, context_in(home), asked(home), How(), [0])
    worker = context.Process(target=sample_processes._work, args=words)
    worker.start()
    assert hears.recv() == ("failed", "RuntimeError: no GPU")
    worker.join(30)
    assert "in failing" in capfd.readouterr().err
