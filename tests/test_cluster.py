"""What a cluster needs of us, without a cluster: resources, ledgers, locks, attempts, snapshots."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMAND, images, tokenizer, trial

from pipelines import driver, jobs, launch, snapshot
from pipelines.attempt import FAILED, PULSE, Attempt, Stopped, Superseded, at_work
from pipelines.collect import overview, state_of
from pipelines.place import Place, Seat, StopFile
from pipelines.provenance import attempts, lost
from pipelines.reconcile import Reconciler
from pipelines.resources import encoding_parts, memory_bytes, trial_resources
from pipelines.settings import Cluster, Settings, SettingsError, load_settings
from pipelines.slurm import Queue, Seen, SlurmAway
from pipelines.snapshot import DirtyTree, Snapshot, take_snapshot
from pipelines.stages import run_tokenizer, run_tokens
from pipelines.store import Busy, Home, held
from pipelines.sweeps import find_sweep
from pipelines.units import Unit, token_units, trial_arrays
from var_scaling.config import Sweep
from var_scaling.disk import write_json
from var_scaling.training.loop import Wish

H100 = Cluster(partition="gpu", nodes=8)
BOX = Cluster(partition="main", device="cpu", poll_seconds=1)


def paper(depth: int):
    return next(t for t in find_sweep("imagenet256").trials if t.model.depth == depth)


# Resources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [6, 16, 24, 30])
def test_a_trial_gets_gpus_that_divide_its_batch_and_finish_in_time(depth):
    t, got = paper(depth), trial_resources(paper(depth), H100)
    assert t.batch % got.processes == 0
    assert got.nodes == 1 or got.processes_per_node == H100.gpus_per_node
    fixed, each = memory_bytes(t)
    share = t.batch // got.processes
    at_once = got.at_once or share
    assert fixed + at_once * each < H100.gpu_memory_gb * 1e9
    assert got.minutes <= 60 * H100.wall_hours


def test_more_haste_takes_more_gpus_and_never_another_batch():
    taken = [
        trial_resources(paper(30), H100.model_copy(update={"finish_within_hours": hours}))
        for hours in (1000, 200, 100, 40)
    ]
    assert [one.processes for one in taken] == sorted({one.processes for one in taken})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"d30": 7}, "does not divide the global batch of 1024"),
        ({"d30": 128}, "more than nodes x gpus_per_node = 8 x 8"),
        ({"d30": 1024}, "more than nodes x gpus_per_node"),
    ],
)
def test_gpus_that_cannot_be_are_refused_by_name(asked, message):
    with pytest.raises(SettingsError, match=message):
        trial_resources(paper(30), H100.model_copy(update={"trial_gpus": asked}))


def test_a_model_that_fits_no_gpu_is_refused_before_anything_is_spent():
    small = H100.model_copy(update={"gpu_memory_gb": 24})
    with pytest.raises(SettingsError, match=r"d30 needs about \d+ GB on each GPU"):
        trial_resources(paper(30), small)


def test_trials_that_ask_slurm_for_the_same_share_an_array(tmp_path):
    arrays = trial_arrays(Home(tmp_path), find_sweep("imagenet256"), H100)
    alone = {
        key[0].processes: [unit.folder.name for unit in units] for key, units in arrays.items()
    }
    assert alone[1] == ["d16", "d14", "d12", "d10", "d8", "d6"]
    at_once = {u.folder.name: u.resources.at_once for units in arrays.values() for u in units}
    assert at_once["d16"] < at_once["d6"]


def test_encoding_is_spread_over_about_an_hour_each_and_stays_as_it_was_begun(tmp_path):
    sweep = find_sweep("imagenet256")
    t, data = sweep.token_sets[0]
    parts = encoding_parts(t, data, data.train_images, H100)
    assert 2 <= parts <= 16
    home = Home(tmp_path)
    assert len(token_units(home, t, data, "train", H100)) == parts
    home.part(home.tokens(t.name, data.name, "train"), 0, 3).mkdir(parents=True)
    assert len(token_units(home, t, data, "train", H100)) == 3


def test_the_estimate_of_memory_covers_what_a_block_keeps():
    """Bytes that the backward pass finds saved, counted at a small size."""
    import torch
    from torch.nn import functional as F

    from var_scaling.models.var import VAR

    t = trial(model=trial().model.model_copy(update={"depth": 4, "width_per_depth": 32}))
    model = VAR(t.model, t.tokenizer, t.classes, 0)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept(batch: int) -> int:
        seen: dict[int, int] = {}
        alive = []

        def note(x):
            alive.append(x)
            if x.untyped_storage().data_ptr() not in own:
                seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        length = t.tokenizer.pyramid.length
        shown = torch.zeros(batch, length - 1, t.tokenizer.code_channels)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            logits = model(torch.zeros(batch, dtype=torch.long), shown)
            F.cross_entropy(logits.flatten(0, 1), torch.zeros(batch * length, dtype=torch.long))
        return sum(seen.values())

    each = kept(5) - kept(4)
    assert 0.6 < each / memory_bytes(t)[1] < 1.1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gpus = 4", r"clusters.a.gpus: no such field; allowed: account, array_parallelism"),
        ("gpus_per_node = -1", r"clusters.a.gpus_per_node = -1: .*greater than or equal to 0"),
        ("wall_hours = 0.01", r"wall_hours = 0.01 is 36 s: too short for signal_seconds = 120"),
    ],
)
def test_a_wrong_cluster_is_refused_with_file_key_and_what_is_allowed(tmp_path, line, message):
    file = tmp_path / "var-scaling.toml"
    file.write_text(f'[clusters.a]\npartition = "p"\n{line}\n')
    with pytest.raises(SettingsError, match=message) as error:
        load_settings(file)
    assert str(file) in str(error.value)


def test_an_unknown_cluster_names_those_there_are():
    with pytest.raises(SettingsError, match=r"no \[clusters.b\] .* there is local, a"):
        Settings(clusters={"a": BOX}).cluster("b")


# The ledger -----------------------------------------------------------------------------------


def submitting(folder: Path, submission: str = "s", cluster: str = "box", index=None) -> None:
    jobs.note(
        folder, "submitting", submission=submission, cluster=cluster, index=index, code="c",
        resources={},
    )  # fmt: skip


def test_half_a_line_of_a_killed_writer_counts_for_nothing(tmp_path):
    submitting(tmp_path)
    with open(tmp_path / "jobs.jsonl", "a") as file:
        file.write('{"event": "submit')
    assert jobs.latest(tmp_path).job is None
    jobs.note(tmp_path, "submitted", submission="s", job="7")
    assert jobs.latest(tmp_path).job == "7"


class Scripted(Reconciler):
    """A reconciler whose Slurm says what the test says, and takes every job."""

    def __init__(self, tmp_path: Path, queue: dict[str, Seen] | None = None):
        home = Home(tmp_path)
        folder = home.sweep("s")
        with driver.driving(folder, "box") as me:
            pass
        write_json(folder / driver.LOCK, vars(me))
        settings = Settings(clusters={"box": BOX.model_copy(update={"poll_seconds": 1e-6})})
        super().__init__(home, folder, settings, "box", Snapshot(tmp_path, "c"), {}, me)
        self.says, self.taken, self.later = queue, [], 1

    def _look(self) -> None:
        self.queue = None if self.says is None else Queue(self.says, time.time() + self.later)

    def _accounted(self, record):
        return None

    def _submit(self, units):
        for unit in units:
            name = f"n{len(self.taken)}"
            submitting(unit.folder, name)
            jobs.note(unit.folder, "submitted", submission=name, job=name)
            self.taken.append(unit.name)
        return {}


@pytest.fixture
def unit(tmp_path) -> Unit:
    folder = tmp_path / "s" / "d1"
    folder.mkdir(parents=True)
    return Unit("trial d1", folder, folder, trial_resources(trial(), BOX), {})


def seen(job: str, state: str, name: str = "var-scaling-s") -> dict[str, Seen]:
    return {job: Seen(job, name, state, "n1", "")}


def twice(reconciler: Reconciler, unit: Unit) -> dict[str, str]:
    """Two looks: the first that finds a job over waits for the disk to settle."""
    reconciler.step([unit])
    return reconciler.step([unit])


def test_what_is_done_is_never_submitted(tmp_path, unit):
    write_json(unit.folder / "done.json", {"status": "done"})
    reconciler = Scripted(tmp_path, {})
    assert reconciler.step([unit]) == {}
    assert reconciler.taken == []


def test_silence_of_slurm_concludes_nothing(tmp_path, unit):
    submitting(unit.folder)
    jobs.note(unit.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, None)
    assert twice(reconciler, unit) == {}
    assert reconciler.taken == []


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"])
def test_a_job_that_lives_is_attached_to(tmp_path, unit, state):
    submitting(unit.folder)
    jobs.note(unit.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", state))
    assert twice(reconciler, unit) == {}
    assert reconciler.taken == []


def test_a_driver_killed_between_asking_and_hearing_finds_its_job_by_name(tmp_path, unit):
    submitting(unit.folder, index=1)
    reconciler = Scripted(tmp_path, {**seen("9_1", "RUNNING"), **seen("9_0", "RUNNING")})
    reconciler.later = 100
    assert reconciler.step([unit]) == {}
    assert reconciler.taken == []
    assert jobs.latest(unit.folder).job == "9_1"


def test_a_job_that_slurm_never_got_is_submitted_once_sbatch_must_have_returned(tmp_path, unit):
    submitting(unit.folder)
    reconciler = Scripted(tmp_path, {})
    reconciler.step([unit])
    assert reconciler.taken == []  # another driver may be asking just now
    reconciler.later = 100
    reconciler.step([unit])
    assert reconciler.taken == ["trial d1"]


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "TIMEOUT", "FAILED", "BOOT_FAIL"])
def test_a_job_that_died_without_a_word_is_submitted_again(tmp_path, unit, state):
    submitting(unit.folder)
    jobs.note(unit.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", state))
    twice(reconciler, unit)
    assert reconciler.taken == ["trial d1"]


def test_it_is_given_up_after_three_deaths_without_progress_and_not_with_it(tmp_path, unit):
    reconciler = Scripted(tmp_path, {})
    failed: dict[str, str] = {}
    reconciler.step([unit])
    for step in (10, 20, 30, 40):  # it gets further each time
        checkpoint = unit.folder / "checkpoint" / f"step-{step:09d}.pt"
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()
        assert twice(reconciler, unit) == {}
    assert len(reconciler.taken) == 5
    for _ in range(6):
        failed |= reconciler.step([unit])
    assert len(reconciler.taken) == 7
    assert "ended 3 times (GONE at last) without a word" in failed["trial d1"]


@pytest.mark.parametrize(
    ("state", "words"), [("CANCELLED", "was cancelled"), ("OUT_OF_MEMORY", "memory_gb_per_gpu")]
)
def test_some_ends_wait_for_retry(tmp_path, unit, state, words):
    submitting(unit.folder)
    jobs.note(unit.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", state))
    assert words in twice(reconciler, unit)["trial d1"]
    assert reconciler.taken == []
    jobs.note(unit.folder, "retry")
    reconciler.step([unit])
    assert reconciler.taken == ["trial d1"]


def test_an_error_is_reported_if_it_is_of_this_job(tmp_path, unit):
    submitting(unit.folder)
    jobs.note(unit.folder, "submitted", submission="s", job="7")
    failure = {"error": "ValueError: no", "life": "7.2", "rank": 3}
    write_json(unit.folder / FAILED, failure)
    reconciler = Scripted(tmp_path, seen("7", "FAILED"))
    assert twice(reconciler, unit) == {"trial d1": "ValueError: no (rank 3)"}
    assert state_of(unit.folder)[0] == "failed"


def test_an_error_of_an_earlier_job_is_not(tmp_path, unit):
    submitting(unit.folder)
    jobs.note(unit.folder, "submitted", submission="s", job="7")
    write_json(unit.folder / FAILED, {"error": "ValueError: no", "life": "6.0", "rank": 0})
    reconciler = Scripted(tmp_path, seen("7", "NODE_FAIL"))
    assert twice(reconciler, unit) == {}
    assert reconciler.taken == ["trial d1"]


def test_an_id_under_another_name_is_not_our_job(tmp_path, unit):
    submitting(unit.folder)
    jobs.note(unit.folder, "submitted", submission="s", job="7")
    reconciler = Scripted(tmp_path, seen("7", "RUNNING", name="somebody-elses"))
    twice(reconciler, unit)
    assert reconciler.taken == ["trial d1"]


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL", "BOOT_FAIL"])
def test_what_is_nobodys_fault_is_never_held_against_a_stage(tmp_path, unit, state):
    """However often it is preempted before its first save."""
    reconciler = Scripted(tmp_path, {})
    reconciler.step([unit])
    for number in range(5):
        reconciler.says = seen(f"n{number}", state, name=f"var-scaling-n{number}")
        assert twice(reconciler, unit) == {}
    assert len(reconciler.taken) == 6


def test_active_by_accounts_alone_is_a_runaway_and_not_waited_for(tmp_path, unit, monkeypatch):
    from pipelines import slurm

    submitting(unit.folder)
    jobs.note(unit.folder, "submitted", submission="s", job="7")
    monkeypatch.setattr(slurm, "accounts", lambda names: seen("7", "RUNNING"))
    monkeypatch.setattr(Scripted, "_accounted", Reconciler._accounted)
    reconciler = Scripted(tmp_path, {})
    twice(reconciler, unit)
    assert reconciler.taken == ["trial d1"]


def test_cancelled_before_it_was_submitted_it_is_not(tmp_path, unit):
    jobs.note(unit.folder, "cancelled", reason="it was cancelled")
    reconciler = Scripted(tmp_path, {})
    assert reconciler.step([unit]) == {"trial d1": "it was cancelled"}
    assert state_of(unit.folder) == ("cancelled", "it was cancelled")
    jobs.note(unit.folder, "retry")
    reconciler.step([unit])
    assert reconciler.taken == ["trial d1"]


def test_a_stage_that_this_machine_is_at_is_not_submitted(tmp_path, unit):
    reconciler = Scripted(tmp_path, {})
    with held(unit.folder):
        assert reconciler.step([unit]) == {}
    assert reconciler.taken == []


def test_parts_that_nobody_joined_are_joined_by_one_more_job(tmp_path):
    whole = tmp_path / "tokens"
    parts = tuple(whole / "parts" / f"00{k}-of-002" for k in range(2))
    for part in parts:
        part.mkdir(parents=True)
        write_json(part / "done.json", {"status": "done"})
    asks = trial_resources(trial(), BOX)
    units = [
        Unit("tokens 1 of 2", parts[0], whole, asks, {}, parts),
        Unit("tokens 2 of 2", parts[1], whole, asks, {}),
    ]
    assert [unit.done for unit in units] == [False, True]
    reconciler = Scripted(tmp_path, {})
    reconciler.step(units)
    reconciler.step(units)
    assert reconciler.taken == ["tokens 1 of 2"]
    write_json(whole / "done.json", {"status": "done"})
    assert all(unit.done for unit in units)


class Sbatch:
    """Slurm's answers to sbatch, one after the other; an exception is raised."""

    def __init__(self, *answers):
        self.answers, self.sizes = list(answers), []

    def __call__(self, units, *rest):
        self.sizes.append(len(units))
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        return [f"{len(self.sizes)}_{k}" for k in range(len(units))]


def array(tmp_path: Path, size: int) -> list[Unit]:
    asks = trial_resources(trial(), BOX)
    folders = [tmp_path / "s" / f"d{k}" for k in range(size)]
    return [Unit(f"trial {f.name}", f, f, asks, {}) for f in folders]


def test_more_than_may_be_submitted_goes_in_smaller_arrays(tmp_path, monkeypatch):
    sbatch = Sbatch(launch.TooMany("MaxSubmitJob"), launch.TooMany("MaxSubmitJob"))
    monkeypatch.setattr(launch, "submit", sbatch)
    monkeypatch.setattr(Scripted, "_submit", Reconciler._submit)
    reconciler, units = Scripted(tmp_path, {}), array(tmp_path, 8)
    for _ in range(4):
        reconciler.not_before = 0.0
        assert reconciler.step(units) == {}
    assert sbatch.sizes[:3] == [8, 4, 2]


def test_what_slurm_refuses_for_good_is_a_failure_in_its_words(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "submit", Sbatch(launch.Refused("Invalid account")))
    monkeypatch.setattr(Scripted, "_submit", Reconciler._submit)
    reconciler, units = Scripted(tmp_path, {}), array(tmp_path, 2)
    assert reconciler.step(units) == {unit.name: "Invalid account" for unit in units}
    assert reconciler.step(units) == {unit.name: "Invalid account" for unit in units}


def test_a_silent_slurmctld_is_asked_again_less_and_less_often(tmp_path, monkeypatch):
    sbatch = Sbatch(*[launch.Delayed("Unable to contact")] * 3)
    monkeypatch.setattr(launch, "submit", sbatch)
    monkeypatch.setattr(Scripted, "_submit", Reconciler._submit)
    reconciler, units = Scripted(tmp_path, {}), array(tmp_path, 1)
    waits = []
    for _ in range(3):
        reconciler.not_before = 0.0
        reconciler.step(units)
        waits.append(reconciler.patience)
    assert waits[1:] == [2 * waits[0], 4 * waits[0]]
    assert "Unable to contact" in (tmp_path / "s" / "driver.note").read_text()
    reconciler.not_before = time.time() + 60
    reconciler.step(units)
    assert len(sbatch.sizes) == 3  # not before its time


# The driver -----------------------------------------------------------------------------------


def test_of_two_drivers_the_second_is_told_of_the_first(tmp_path):
    with (
        driver.driving(tmp_path, "box"),
        pytest.raises(Busy, match=f"pid {os.getpid()} on {socket.gethostname()}, on box"),
        driver.driving(tmp_path, "box"),
    ):
        pass
    with driver.driving(tmp_path, "box"):  # it let go
        pass


def test_a_driver_whose_place_was_taken_notices(tmp_path):
    with driver.driving(tmp_path, "box") as first:
        with driver.driving(tmp_path, "box", take_over=True) as second:
            with pytest.raises(Busy, match="this driver leaves"):
                driver.still_driving(tmp_path, first)
            driver.still_driving(tmp_path, second)
        assert driver.owner(tmp_path) is None


def forged(folder: Path, **changes) -> None:
    with driver.driving(folder, "box") as me:
        record = {**vars(me), **changes}
    write_json(folder / driver.LOCK, record)


@pytest.mark.parametrize("changes", [{"pid": 2**22 - 1}, {"born": "1"}])
def test_a_driver_that_died_here_holds_nothing(tmp_path, changes):
    forged(tmp_path, **changes)
    with driver.driving(tmp_path, "box"):
        assert driver.alive(tmp_path) is not None


@pytest.mark.parametrize("changes", [{"host": "login2"}, {"boot": "earlier"}, {"realm": "0 1"}])
def test_a_driver_elsewhere_is_dead_after_two_minutes_of_silence(tmp_path, changes):
    """Elsewhere is another machine, its life before, another user, another container."""
    forged(tmp_path, **changes)
    with pytest.raises(Busy, match="is driven by"), driver.driving(tmp_path, "box"):
        pass
    past = time.time() - 200
    os.utime(tmp_path / driver.LOCK, (past, past))
    with driver.driving(tmp_path, "box"):
        pass


# Attempts -------------------------------------------------------------------------------------


def goes_on() -> Wish:
    return Wish.GO_ON


def test_the_newest_attempt_counts_and_the_older_notices(tmp_path):
    old, new = (Attempt(tmp_path, Seat(alone=False), goes_on) for _ in range(2))
    old.begin({})
    note = old.log()
    note("train", 1, {"loss": 1.0})
    new.begin({})
    for act in (lambda: old.heed(2), lambda: note("train", 2, {}), lambda: old.finish({})):
        with pytest.raises(Superseded, match="attempt 2 is at it now"):
            act()
    assert new.heed(1) == Wish.GO_ON
    assert not (tmp_path / "done.json").exists()


def test_what_a_killed_attempt_did_in_vain_is_counted(tmp_path):
    first, second = (Attempt(tmp_path, Seat(), goes_on) for _ in range(2))
    first.begin({"job": "1"})
    first.heed(41)
    write_json(tmp_path / PULSE, {"step": 100, "seconds_per_step": 0.5, "time": 0.0})
    second.begin({"job": "2"})
    second.heed(81)  # it went on from step 80
    assert lost(tmp_path) == (20, 10.0)
    assert attempts(tmp_path)[0]["reached"] == 100
    assert "lost_steps" not in attempts(tmp_path)[1]


def test_of_several_processes_the_first_to_fail_is_the_cause(tmp_path):
    for rank, said in ((1, "the cause"), (0, "a connection was closed")):
        seat = Seat(rank=rank, size=2, alone=False, life="7.0")
        with pytest.raises(ValueError, match=said), at_work(tmp_path, seat, goes_on):
            raise ValueError(said)
    left = json.loads((tmp_path / FAILED).read_text())
    assert (left["error"], left["rank"]) == ("ValueError: the cause", 1)
    with at_work(tmp_path, Seat(alone=False, life="7.1"), goes_on):  # its next life starts afresh
        assert not (tmp_path / FAILED).exists()


def test_who_was_interrupted_has_not_failed(tmp_path):
    from var_scaling.training.loop import Interrupted

    with pytest.raises(Stopped), at_work(tmp_path, Seat(), goes_on):
        raise Interrupted("asked to")
    assert not (tmp_path / FAILED).exists()


# Tokens in parts ------------------------------------------------------------------------------


def test_tokens_encoded_in_parts_are_those_encoded_at_once(tmp_path, monkeypatch):
    from var_scaling.tokenizer import cache, encode

    monkeypatch.setattr(encode, "SHARD", 64)
    monkeypatch.setattr(cache, "SHARD", 64)
    t, data = tokenizer(), images()
    homes = [Home(tmp_path / name) for name in ("whole", "parts")]
    place = [Place(home, Settings(), StopFile(tmp_path / "stop")) for home in homes]
    run_tokenizer(place[0], t)
    homes[1].tokenizer(t.name).parent.mkdir(parents=True)
    homes[1].tokenizer(t.name).symlink_to(homes[0].tokenizer(t.name))
    run_tokens(place[0], t, data, "train")
    whole = [home.tokens(t.name, data.name, "train") for home in homes]
    for number in (2, 0, 3):
        run_tokens(place[1], t, data, "train", (number, 4))
    view = next(v for v in overview(homes[1], one_trial(t)) if v.name.endswith("leaves-train"))
    assert (view.state, view.note) == ("waiting", "3 of 4 parts")
    run_tokens(place[1], t, data, "train", (1, 4))
    for name in ("tokens.npy", "labels.npy", "done.json"):
        assert (whole[0] / name).read_bytes() == (whole[1] / name).read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in whole]
    assert manifests[0] == manifests[1]
    assert np.load(whole[1] / "tokens.npy").shape == (600, 21)


def one_trial(t):
    return Sweep(name="s", question="?", trials=(trial(tokenizer=t),))


# The code -------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e", *words],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A small checkout in the place of ours."""
    root = tmp_path / "checkout"
    for room in snapshot.ROOMS:
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").write_text("x = 1\n")
    (root / "notes.txt").write_text("not code\n")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    monkeypatch.setattr(snapshot, "ROOT", root)
    return root


def test_a_snapshot_is_the_code_at_its_commit_and_stays(checkout, tmp_path):
    home = Home(tmp_path / "runs")
    (checkout / "notes.txt").write_text("changed\n")  # no code: no matter
    first = take_snapshot(home, dirty=False)
    assert (first.folder / "pipelines" / "__init__.py").read_text() == "x = 1\n"
    (checkout / "pipelines" / "__init__.py").write_text("x = 2\n")
    git(checkout, "commit", "-qam", "two")
    second = take_snapshot(home, dirty=False)
    assert first.code != second.code
    assert (first.folder / "pipelines" / "__init__.py").read_text() == "x = 1\n"


def test_changed_code_is_refused_or_kept_with_the_difference(checkout, tmp_path):
    home = Home(tmp_path / "runs")
    (checkout / "pipelines" / "__init__.py").write_text("x = 2\n")
    (checkout / "sweeps" / "new.py").write_text("y = 1\n")
    with pytest.raises(DirtyTree, match=r"(?s)pipelines/__init__.py.*sweeps/new.py"):
        take_snapshot(home, dirty=False)
    kept = take_snapshot(home, dirty=True)
    assert (kept.folder / "pipelines" / "__init__.py").read_text() == "x = 2\n"
    assert (kept.folder / "sweeps" / "new.py").exists()
    patch = (kept.folder / "changes.patch").read_text()
    assert "-x = 1" in patch
    assert "+y = 1" in patch
    status = subprocess.run(
        ["git", "-C", str(checkout), "status", "--porcelain"], capture_output=True, text=True
    ).stdout
    assert status == " M pipelines/__init__.py\n?? sweeps/new.py\n"  # the index is as it was
    assert take_snapshot(home, dirty=True) == kept


# The command line -----------------------------------------------------------------------------


def test_status_of_a_hundred_trials_is_quick_and_knows_no_torch(tmp_path):
    """Counted, not timed: one process asks Slurm once, and no heavy package is loaded."""
    (tmp_path / "many.py").write_text(
        "from sweeps.smoke import sweep as smoke\n"
        "trials = tuple(smoke.trials[0].model_copy(update={'name': f't{k}'}) for k in range(100))\n"
        "sweep = smoke.model_copy(update={'name': 'many', 'trials': trials})\n"
    )
    home = tmp_path / "runs"
    for k in range(100):
        submitting(home / "many" / f"t{k}", index=k)
        jobs.note(home / "many" / f"t{k}", "submitted", submission="s", job=f"7_{k}")
    asked = tmp_path / "asked"
    (tmp_path / "squeue").write_text(
        f"#!/bin/sh\necho once >> {asked}\n"
        'for k in $(seq 0 98); do echo "7_$k|var-scaling-s|RUNNING|n$k|None"; done\n'
    )
    (tmp_path / "squeue").chmod(0o755)
    code = (
        "import sys\nfrom pipelines import cli\n"
        f"sys.argv = ['v', 'status', {str(tmp_path / 'many.py')!r}, '--home', {str(home)!r},"
        " '--json']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'submitit', 'pandas') if m in sys.modules])\n"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    said, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    stages = {one["name"]: one for one in json.loads(said)["stages"] if one["kind"] == "trial"}
    assert stages["t5"]["state"] == "running"
    assert stages["t5"]["node"] == "n5"
    assert stages["t99"]["state"] == "stopped"  # Slurm knows it no more
    assert asked.read_text() == "once\n"


def test_asked_for_a_cluster_that_cannot_be_it_says_why(tmp_path):
    (tmp_path / "var-scaling.toml").write_text('[clusters.a]\npartition = "p"\n')
    for words, said in (
        (["run", "smoke", "--on", "b"], "no [clusters.b] in var-scaling.toml; there is local, a"),
        (["run", "smoke", "--only", "d9"], "smoke has no trial d9; there are d1, d2, d3, d4"),
        (["run", "smoke", "--detach"], "--detach leaves jobs to Slurm"),
        (["logs", "smoke/d1"], "no job of a cluster has worked here"),
    ):
        done = subprocess.run(
            [*COMMAND, *words, "--home", str(tmp_path / "runs")],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert said in done.stderr.replace("\n", " ")


def test_slurm_that_is_not_there_is_away(monkeypatch):
    from pipelines import slurm

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SlurmAway, match="squeue is not on this machine"):
        slurm.queue()
    assert slurm.look() is None


def test_a_signal_asks_and_a_second_word_is_not_lost():
    from pipelines.job import _Signals

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        signals = _Signals()
        os.kill(os.getpid(), signal.SIGTERM)
        assert [signals(), signals()] == [Wish.SAVE, Wish.GO_ON]
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert [signals(), signals()] == [Wish.STOP, Wish.STOP]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
