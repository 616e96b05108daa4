"""A set of samples is repaired after changes to its folder by users, disks and processes."""

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
from pipelines.sampling.draw import DrawOptions, sample_set
from pipelines.sampling.finalize import finalize_set, read_image
from pipelines.sampling.processes import ProcessFailed
from pipelines.sampling.request import SampleOptions, plan_set
from pipelines.sampling.run import conflicting_part, sample_locally
from pipelines.sampling.store import ProcessShare, SampleFolder
from pipelines.stages.context import ProcessContext
from pipelines.workspace.store import ConfigMismatchError, FolderInUseError, file_lock, in_use
from var_scaling.disk import DONE, is_done, read_json, write_json

QUIET = DrawOptions(), lambda done: False, lambda *message: None


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return small_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _alone_and_quick(home, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    shutil.rmtree(home.root / ADDRESS / "samples", ignore_errors=True)


def requested(home, count: int = 2, **words):
    return plan_set(
        context_in(home), ADDRESS, SampleOptions(count=count, **{"classes": "0-2", **words})
    )


def make(home, plan) -> list[int]:
    return sample_set(context_in(home), plan, *QUIET)


def pictures(plan) -> dict[str, bytes]:
    root = plan.folder / "images"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.png")}


def turned_over(path: Path) -> None:
    """Flip one bit; the length stays the same."""
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])


# A count that was a mistake ----------------------------------------------------------------------


def failing(*reported):
    raise RuntimeError("no GPU")


def test_a_larger_count_that_was_not_reached_can_be_reverted(home, monkeypatch):
    plan, larger = requested(home), requested(home, 500)
    make(home, plan)
    before = pictures(plan)
    with monkeypatch.context() as broken:
        broken.setattr("pipelines.sampling.draw.load_sampler", failing)
        with pytest.raises(RuntimeError):
            make(home, larger)
    assert is_done(plan.folder)  # no image was drawn, so the set is still done
    (plan.folder / "strips.png").touch()
    SampleFolder(larger.folder, larger.config).init_run_dir()
    assert not is_done(plan.folder)
    assert not (plan.folder / "strips.png").exists()  # of another count
    assert make(home, plan) == []
    assert is_done(plan.folder)
    assert pictures(plan) == before
    with pytest.raises(ConfigMismatchError, match="has 2 images of each class already"):
        make(home, requested(home, 1))


def test_a_process_that_draws_an_outdated_count_does_not_finish_the_set(home):
    plan, larger = requested(home), requested(home, 3)

    def grow(what, done, total):
        if done == total:
            SampleFolder(larger.folder, larger.config).init_run_dir()

    with pytest.raises(ConfigMismatchError, match="count: recorded 3, expected 2"):
        sample_set(context_in(home), plan, DrawOptions(), lambda done: False, grow)
    assert not is_done(plan.folder)
    assert make(home, larger) == []


def test_images_without_a_record_belong_to_no_set(home):
    plan, other = requested(home), requested(home, seed=1)
    make(home, other)
    for name in ("sampling.json", DONE):
        (other.folder / name).unlink()
    assert make(home, plan) == []
    known = requested(home, name="known")
    make(home, known)
    assert pictures(plan) == pictures(known)


# Lost and damaged --------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False])
def test_an_image_damaged_without_a_change_of_length_is_drawn_again(home, finished):
    plan = requested(home)
    make(home, plan)
    before = pictures(plan)
    turned_over(plan.folder / "images" / "0001" / "00001.png")
    assert pictures(plan) != before
    if finished:  # images are checked only if another file is missing
        (plan.folder / "grid.png").unlink()
    else:
        (plan.folder / DONE).unlink()
    assert make(home, plan) == []
    assert pictures(plan) == before
    assert is_done(plan.folder)


def test_damaged_images_of_a_set_with_rejection_are_made_again(home, tmp_path):
    (tmp_path / "map.json").write_text("[8, 9, 10, 11, 12, 13, 14, 15]")
    words = {"reject": 0.5, "classifier": "seeded", "class_map": tmp_path / "map.json"}
    plan = requested(home, **words)
    make(home, plan)
    before = pictures(plan)
    turned_over(plan.folder / "candidates" / next(iter(before)))
    (plan.folder / "images" / list(before)[-1]).unlink()
    assert make(home, plan) == []
    assert pictures(plan) == before


def test_a_set_on_a_faulty_disk_is_not_marked_as_finished(home, monkeypatch):
    plan = requested(home)
    monkeypatch.setattr(SampleFolder, "damaged", lambda at, found: list(found)[:1])
    outcome = sample_locally(context_in(home), plan, DrawOptions(), 1, lambda *message: None)
    assert (
        "files of 1 chunk were written twice and are missing or damaged again"
        in outcome.failures["default"]
    )
    assert not is_done(plan.folder)


@pytest.mark.parametrize("lost", ["grid.png", "manifest.json", "images/0002/00001.png"])
def test_a_set_with_lost_files_is_not_done(home, lost):
    plan = requested(home)
    make(home, plan)
    before = pictures(plan)
    (plan.folder / lost).unlink()
    assert make(home, plan) == []
    assert (plan.folder / lost).exists()
    assert pictures(plan) == before
    assert is_done(plan.folder)


def test_an_unreadable_picture_is_reported(tmp_path):
    path = tmp_path / "00001.png"
    Image.effect_noise((16, 16), 50).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match=r"00001\.png: "):
        read_image(path)


def test_a_folder_in_place_of_a_chunk_mark_counts_as_no_mark(home):
    plan = requested(home)
    at = SampleFolder(plan.folder, plan.config)
    at.mark_path(0).mkdir(parents=True)
    assert at.stored_images(0) == {}


# Beside others -----------------------------------------------------------------------------------


def candidates(home, tmp_path) -> SampleFolder:
    """A set with rejection and all its candidates, without a model."""
    (tmp_path / "map.json").write_text("[8, 9, 10, 11, 12, 13, 14, 15]")
    words = {"reject": 0.5, "classifier": "seeded", "class_map": tmp_path / "map.json"}
    plan = requested(home, 8, **words)
    at = SampleFolder(plan.folder, plan.config)
    at.init_run_dir()
    image = np.zeros((16, 16, 3), np.uint8)
    for chunk in range(plan.config.chunks):
        made = {one: at.write(one, image, one.index / 100) for one in plan.config.chunk(chunk)}
        at.mark(chunk, made, ProcessShare(len(made), 1.0, "cpu", None, "h"))
    return at


def test_finishing_a_set_with_rejection_does_not_touch_other_files(home, tmp_path):
    at = candidates(home, tmp_path)
    of_class = at.folder / "images" / "0000"
    of_class.mkdir(parents=True)
    (of_class / "00000.png").write_bytes(b"of a smaller count")
    others = [of_class / name for name in (".00009.png.node7.12", "notes.txt", "best.png")]
    for path in others:
        path.write_bytes(b"another's")
    (of_class / "00099.png").mkdir()
    assert finalize_set(at, "a/b") == []
    assert not (of_class / "00000.png").exists()
    assert all(path.read_bytes() == b"another's" for path in others)
    assert (of_class / "00099.png").is_dir()


def test_two_processes_can_finish_a_set_with_rejection_at_once(home, tmp_path):
    at, context = candidates(home, tmp_path), multiprocessing.get_context("fork")
    gate = context.Barrier(2)

    def end() -> None:
        gate.wait()
        sys.exit(len(finalize_set(at, "a/b")))

    for _ in range(3):
        shutil.rmtree(at.folder / "images", ignore_errors=True)
        ending = [context.Process(target=end) for _ in range(2)]
        for process in ending:
            process.start()
        for process in ending:
            process.join(60)
        assert [process.exitcode for process in ending] == [0, 0]
    assert len(list((at.folder / "images").rglob("*.png"))) == at.config.images


def test_old_partial_files_of_killed_processes_are_removed(home):
    plan = requested(home)
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


def test_parts_can_be_drawn_at_once_but_not_a_part_and_the_whole_set(home):
    plan, quiet = requested(home, 30), lambda *message: None
    met = []

    def meet(what, done, total):
        if met:
            return
        met.append(what)
        place = context_in(home)
        assert in_use(plan.folder)
        with pytest.raises(FolderInUseError, match="which draws part 1-of-2"):
            sample_locally(place, plan, DrawOptions(), 1, quiet)
        assert sample_locally(place, plan, DrawOptions(part=(1, 2)), 1, quiet).missing
        assert "part 1/2 of this set is being drawn" in conflicting_part(plan.folder, (1, 3))
        assert conflicting_part(plan.folder, (1, 2)) == ""

    sample_locally(context_in(home), plan, DrawOptions(part=(0, 2)), 1, meet)
    assert met
    assert is_done(plan.folder) or make(home, plan) == []
    with file_lock(plan.folder), pytest.raises(FolderInUseError, match=f"pid {os.getpid()}"):
        sample_locally(context_in(home), plan, DrawOptions(part=(0, 2)), 1, quiet)
    assert conflicting_part(plan.folder, (0, 3)) == ""


def test_a_killed_process_loses_at_most_one_mark_interval_and_one_batch(home):
    plan = requested(home, 8)
    place = replace(context_in(home), process=ProcessContext(save_every=0.0))
    at, marked = SampleFolder(plan.folder, plan.config), []

    def look(done: int) -> bool:
        marked.append((done, len(at.stored_images(0))))
        return False

    sample_set(place, plan, DrawOptions(batch=6), look, lambda *message: None)
    assert marked == [(0, 0), (6, 0), (12, 6), (18, 12)]
    shares = list(at.process_shares())
    assert sum(share.images for share in shares) == plan.config.images == 24
    other = replace(requested(home, 8, name="other"))
    marked.clear()
    at = SampleFolder(other.folder, other.config)
    sample_set(context_in(home), other, DrawOptions(batch=6), look, lambda *message: None)
    assert [count for _, count in marked] == [0] * 4  # nor after every batch


# Several processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["says", "dies"])
def test_if_one_process_fails_the_others_are_stopped(home, tmp_path, way):
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
    reported = []
    message = {"says": "ValueError: no", "dies": "it ended with exit code 1"}[way]
    with pytest.raises(ProcessFailed, match=f"process 1 of 2: {message}"):
        sample_processes._run_until_done(
            workers, requested(home), 0, lambda what, done, total: reported.append(done), stop
        )
    assert stop.exists()
    for process in workers.values():
        process.join(30)
        assert process.exitcode is not None


def test_a_process_exits_when_its_parent_exits(home, tmp_path, monkeypatch):
    """Also a process that never writes to its pipe."""
    context, note = multiprocessing.get_context("fork"), tmp_path / "pid"

    def stuck(*reported):
        write_json(note, os.getpid())
        time.sleep(600)

    monkeypatch.setattr(sample_processes, "load_sampler", stuck)

    def parent() -> None:
        hears, says = context.Pipe(duplex=False)
        words = (says, context_in(home), requested(home), DrawOptions(), [0])
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


def test_a_failed_worker_prints_its_traceback_to_stderr(home, monkeypatch, capfd):
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(sample_processes, "load_sampler", failing)
    hears, says = context.Pipe(duplex=False)
    words = (says, context_in(home), requested(home), DrawOptions(), [0])
    worker = context.Process(target=sample_processes._work, args=words)
    worker.start()
    assert hears.recv() == ("failed", "RuntimeError: no GPU")
    worker.join(30)
    assert "in failing" in capfd.readouterr().err
