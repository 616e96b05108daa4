"""Stages of a sweep: each directory once, after its dependencies, with exact names."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import images, tokenizer, trial

from pipelines.execution import control as intervene
from pipelines.execution import local as orchestrate
from pipelines.execution.tasks import (
    arrays_of,
    largest_first,
    refuse_unready,
    tasks_of,
    work_folders,
)
from pipelines.stages.context import RunContext, StopFile
from pipelines.stages.graph import Need, refuse_mismatch, sweep_stages
from pipelines.stages.registry import SPLITS, TOKENIZER, TOKENS
from pipelines.stages.stages import run_tokenizer, run_tokens, run_trial
from pipelines.workspace import driver_lock as driver
from pipelines.workspace import job_log as jobs
from pipelines.workspace.settings import Cluster, Settings
from pipelines.workspace.store import ConfigMismatchError, Home, file_lock, init_run_dir
from pipelines.workspace.sweeps import find_sweep
from var_scaling.config import ImportedTokenizer
from var_scaling.datasets import ImageFiles
from var_scaling.experiment import ImportedModel, Sweep
from var_scaling.experiment.scoring import Scoring
from var_scaling.models.var.config import VarSampling

BOX = Cluster(partition="main", device="cpu", poll_seconds=1)
BROUGHT = ImportedTokenizer(name="brought", sha256="a" * 64)


def sweep_of(*trials, imported=(), name="s") -> Sweep:
    return Sweep(name=name, question="?", trials=trials, imported=imported)


def test_each_stage_of_a_sweep_occurs_once_after_its_dependencies(tmp_path):
    home = Home(tmp_path)
    one, two = (trial(name=name) for name in ("b", "a"))
    stages = sweep_stages(home, sweep_of(one, two))
    t, data = one.tokenizer.name, one.data.name
    tokens = [f"tokens/{t}/{data}-{split}" for split in ("train", "validation")]
    assert [stage.address for stage in stages] == [f"tokenizers/{t}", *tokens, "s/b", "s/a"]
    assert [stage.directory for stage in stages] == [tmp_path / s.address for s in stages]
    context = {stage.address: number for number, stage in enumerate(stages)}
    for number, stage in enumerate(stages):
        assert all(context[need.address] < number for need in stage.needs)
    assert stages[-1].needs == tuple(Need(each) for each in (f"tokenizers/{t}", *tokens))


@pytest.mark.parametrize("name", ["smoke", "quickstart", "imagenet256"])
def test_stages_use_the_directories_of_the_home(name, tmp_path):
    home, sweep = Home(tmp_path), find_sweep(name)
    expected = {home.tokenizer(each.tokenizer.name) for each in sweep.trials}
    expected |= {
        home.tokens(each.tokenizer.name, each.data.name, split)
        for each in sweep.trials
        for split in ("train", "validation")
    }
    expected |= {home.trial(sweep.name, each.name) for each in sweep.trials}
    assert {stage.directory for stage in sweep_stages(home, sweep)} == expected


def test_imported_stages_are_never_run(tmp_path):
    home = Home(tmp_path)
    model = ImportedModel(
        name="theirs", tokenizer=BROUGHT, model=trial().model, classes=10, sha256="b" * 64
    )
    stages = sweep_stages(home, sweep_of(imported=(model,)))
    assert [(stage.title, stage.provided) for stage in stages] == [
        ("tokenizer brought", True), ("imported theirs", True),
    ]  # fmt: skip
    assert [tasks_of(stage, BOX) for stage in stages] == [[], []]
    refuse_unready(stages, "local")  # no trial needs it
    # A tokenizer that an imported model and a trial share is trained for the trial.
    own = trial()
    shared = model.model_copy(update={"tokenizer": own.tokenizer})
    for sweep in (sweep_of(own, imported=(shared,)), sweep_of(own)):
        assert not sweep_stages(home, sweep)[0].provided


def test_a_trial_with_a_missing_imported_tokenizer_is_refused_before_a_stage_runs(tmp_path):
    brought = BROUGHT.model_copy(update={"pyramid": tokenizer().pyramid, "multipliers": (1, 2, 2)})
    over = trial(tokenizer=brought, data=images(side=brought.side))
    stages = sweep_stages(Home(tmp_path), sweep_of(over))
    with pytest.raises(ValueError, match=r"var-scaling import VQVAE.pth --as brought"):
        refuse_unready(stages, "local")


def test_only_directories_with_a_different_config_are_refused(tmp_path):
    home, one = Home(tmp_path), trial()
    stages = sweep_stages(home, sweep_of(one))
    refuse_mismatch(stages)
    init_run_dir(stages[-1].directory, "trial.json", one.model_copy(update={"seed": 7}))
    refuse_mismatch(
        stages
    )  # for example after a failure before the first step: no results would be lost
    (stages[-1].directory / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ConfigMismatchError, match="seed: recorded 7, expected 0"):
        refuse_mismatch(stages)
    refuse_mismatch(stages[:-1])


@pytest.mark.parametrize("left", ["checkpoint/step-1.pt", "done.json", "job", "lock"])
def test_a_directory_with_results_a_job_or_a_lock_cannot_change_its_config(left, tmp_path):
    home, one = Home(tmp_path), trial()
    stages = sweep_stages(home, sweep_of(one))
    folder = stages[-1].directory
    init_run_dir(folder, "trial.json", one.model_copy(update={"seed": 7}))
    with ExitStack() as stack:
        if left == "job":
            submitted(folder)
        elif left == "lock":
            stack.enter_context(file_lock(folder))
        else:
            (folder / left).parent.mkdir(exist_ok=True)
            (folder / left).write_text('{"status": "done"}')
        with pytest.raises(ConfigMismatchError, match="seed: recorded 7, expected 0"):
            refuse_mismatch(stages)


def test_a_trial_that_failed_before_its_first_step_can_run_with_another_config(tmp_path):
    """The advice of the error was to change the config."""
    home, one = Home(tmp_path), trial()
    context = RunContext(home, Settings(), StopFile(tmp_path / "stop"))
    with pytest.raises((OSError, ValueError)):  # the tokens do not exist yet
        run_trial(context, "s", one.model_copy(update={"batch_size": 4}))
    run_tokenizer(context, one.tokenizer)
    for split in SPLITS:
        run_tokens(context, one.tokenizer, one.data, split)
    refuse_mismatch(sweep_stages(home, sweep_of(one)))
    assert run_trial(context, "s", one) == "done"


def test_trials_with_equal_dependencies_share_an_array_largest_first(tmp_path):
    home = Home(tmp_path)
    small, large = trial(name="small"), trial(name="large", steps=500)
    stages = sweep_stages(home, sweep_of(small, large))
    assert [stage.name for stage in largest_first(stages)][-2:] == ["large", "small"]
    arrays = arrays_of(stages, BOX)
    names = [[unit.name for unit in array.tasks] for array in arrays]
    alone = [[stage.title] for stage in stages if stage.name not in ("small", "large")]
    assert names == [*alone, ["trial large", "trial small"]]
    assert arrays[-1].needs == stages[-1].needs


def test_a_stage_comes_after_its_dependencies_regardless_of_size(tmp_path):
    """For example a trial that starts from the checkpoint of a smaller one."""
    home = Home(tmp_path)
    stages = sweep_stages(home, sweep_of(trial(name="parent"), trial(name="branch", steps=500)))
    *before, parent, branch = stages
    branch = replace(branch, needs=(*branch.needs, Need(parent.address, step=6)))
    assert largest_first((*before, parent, branch))[-2:] == [parent, branch]
    arrays = arrays_of((*before, parent, branch), BOX)
    assert [array.tasks[0].name for array in arrays[-2:]] == ["trial parent", "trial branch"]


def test_each_part_of_tokens_has_a_folder_and_belongs_to_its_stage(tmp_path):
    stages = sweep_stages(Home(tmp_path), sweep_of(trial()))
    tokens = stages[1]
    assert tokens.kind == TOKENS
    (tokens.directory / "parts" / "000-of-003").mkdir(parents=True)
    found = work_folders(stages)
    parts = [f"{tokens.title} {number} of 3" for number in (1, 2, 3)]
    assert list(found)[:5] == [stages[0].title, tokens.title, *parts]
    assert all(found[name][0] is tokens for name in parts)


def cancelled(stages, sweep: Path, *only: str) -> list[str]:
    message: list[str] = []
    intervene.cancel(stages, sweep, frozenset(only), True, message.append)
    return message


def submitted(folder: Path) -> None:
    resources = {"nodes": 1, "processes_per_node": 1, "minutes": 5}
    facts = {"submission": "x", "cluster": "box", "index": None, "code": "c"}
    jobs.note(folder, "submitting", **facts, resources=resources)


def test_a_name_that_is_the_prefix_of_another_is_not_confused_with_it(tmp_path):
    """A regression: tokens of `leaves` in use prevented the cancellation of `leaves-big`."""
    home = Home(tmp_path)
    mine = sweep_stages(home, sweep_of(trial(data=images(name="leaves-big")), name="mine"))
    other = sweep_stages(home, sweep_of(trial(), name="other"))
    for stage in mine:
        submitted(stage.directory)
    driven = tuple(stage.address for stage in other)
    with driver.hold_driver_lock(home.sweep("other"), "box", stages=driven):
        message = cancelled(mine, home.sweep("mine"))
    shared = {stage.address for stage in mine} & set(driven)
    assert shared == {mine[0].address}  # only the tokenizer
    assert [line for line in message if "not cancelled" in line] == [
        f"{mine[0].title}: not cancelled, sweep other needs it"
    ]
    assert len(message) == len(mine)


def test_only_selects_a_stage_with_all_its_parts(tmp_path):
    home = Home(tmp_path)
    stages = sweep_stages(home, sweep_of(trial()))
    tokens = stages[1]
    for part in ("000-of-002", "001-of-002"):
        submitted(tokens.directory / "parts" / part)
    message = cancelled(stages, home.sweep("s"), tokens.name)
    assert [line.partition(":")[0] for line in message] == [
        f"{tokens.title} 1 of 2", f"{tokens.title} 2 of 2",
    ]  # fmt: skip


@pytest.mark.slow
def test_only_stages_that_failed_themselves_are_reported(tmp_path):
    """Two trials fail with one text; a stage that waits for a failed tokenizer did not fail."""
    home, context = (
        Home(tmp_path),
        RunContext(Home(tmp_path), Settings(), StopFile(tmp_path / "no")),
    )
    one = trial(name="a")
    run_tokenizer(context, one.tokenizer)
    for split in SPLITS:
        run_tokens(context, one.tokenizer, one.data, split)
    tokens = home.tokens(one.tokenizer.name, one.data.name, "train") / "tokens.npy"
    content = bytearray(tokens.read_bytes())
    content[-1] ^= 1
    tokens.write_bytes(content)
    nowhere = ImageFiles(name="nowhere", side=16, classes=8)
    lost = trial(name="c", data=nowhere, tokenizer=tokenizer(name="lost", data=nowhere))
    stages = sweep_stages(home, sweep_of(one, trial(name="b"), lost))
    outcome = orchestrate.run(stages, home.sweep("s"), home, Settings(), lambda views: None)
    assert set(outcome.failures) == {"tokenizer lost", "trial a", "trial b"}
    assert outcome.failures["trial a"] == outcome.failures["trial b"]
    assert "nowhere" in outcome.failures["tokenizer lost"]


def test_extractors_share_one_set_of_samples_that_the_first_stage_draws(tmp_path):
    scoring = Scoring(
        name="plain",
        sampling=(VarSampling(guidance=0),),
        count=1,
        extractors=("seeded", "classifier"),
    )
    sweep = sweep_of(trial(name="a"), trial(name="b")).model_copy(update={"scorings": (scoring,)})
    stages = {stage.address: stage for stage in sweep_stages(Home(tmp_path), sweep)}
    for name in ("a", "b"):
        first, then = (stages[f"s/{name}/scores/plain-{network}"] for network in scoring.extractors)
        assert Need(first.address) not in first.needs
        assert Need(first.address) in then.needs
        assert Need(f"networks/{first.config.trial.data.name}") in then.needs


def test_a_stage_starts_only_after_its_dependencies_have_ended(tmp_path):
    home = Home(tmp_path)
    stages = {stage.address: stage for stage in sweep_stages(home, sweep_of(trial(name="a")))}
    queue = largest_first(tuple(stages.values()))
    taken, without = [], set()
    first = orchestrate._next(queue, (), without)
    assert first.kind == TOKENIZER
    assert orchestrate._next(queue, [first], without) is None
    assert len(queue) == 3  # all are waiting
    while (stage := orchestrate._next(queue, (), without)) is not None:
        taken.append(stage.name)
        if stage.address.endswith("-train"):
            without.add(stage.address)  # it failed
    assert "a" not in taken
    assert queue == []
    assert "s/a" in without
