"""A trial that starts from another trial's checkpoint after a step."""

import json
import sys

import pandas as pd
import pytest
from conftest import tokenizer, trial
from pydantic import ValidationError
from safetensors.torch import load_file

from pipelines.cli.main import main
from pipelines.execution.tasks import largest_first
from pipelines.results.table import write_results
from pipelines.stages.context import RunContext, StopFile
from pipelines.stages.graph import Need, sweep_stages
from pipelines.stages.stages import run_stage
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import ConfigMismatchError, Home
from var_scaling.experiment import Sweep, Trial
from var_scaling.experiment.trial import Start
from var_scaling.metrics import read_metrics

T = tokenizer(steps=6)
TRUNK = trial(name="trunk", tokenizer=T, keep_steps=(4, 8), class_dropout_prob=0.5)


def branch(name: str, step: int, **changes) -> Trial:
    start = Start(trial=TRUNK, step=step)
    return TRUNK.model_copy(update={"name": name, "keep_steps": (), "start": start, **changes})


SAME, LONG = branch("same", 4), branch("long", 8, steps=16)
SWEEP = Sweep(name="branches", question="?", trials=(LONG, SAME, TRUNK))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    """The sweep, run stage by stage in the order of dependencies."""
    home = Home(tmp_path_factory.mktemp("branches"))
    context = RunContext(home, Settings(), StopFile(home.root / "stop"))
    for stage in largest_first(sweep_stages(home, SWEEP)):
        assert run_stage(stage, context) == "done"
    write_results(home, SWEEP)
    return home


def test_a_branch_depends_on_a_step_of_its_trunk(tmp_path):
    stages = {stage.name: stage for stage in sweep_stages(Home(tmp_path), SWEEP)}
    assert Need("branches/trunk", 8) in stages["long"].needs
    assert Need("branches/trunk", 4) in stages["same"].needs
    order = [stage.name for stage in largest_first(tuple(stages.values()))]
    assert order.index("trunk") < order.index("long")
    # A sweep of the branch alone also has the stage of its trunk.
    alone = sweep_stages(Home(tmp_path), SWEEP.model_copy(update={"trials": (LONG,)}))
    assert "branches/trunk" in {stage.address for stage in alone}


def test_a_branch_with_the_settings_of_its_trunk_ends_bitwise_equal(home):
    trunk, same = (
        load_file(home.trial("branches", name) / "weights.safetensors")
        for name in ("trunk", "same")
    )
    assert all(trunk[name].equal(same[name]) for name in trunk)


def test_a_branch_logs_its_own_steps_and_counts_those_of_its_trunk(home):
    lines = read_metrics(home.trial("branches", "long") / "metrics.jsonl")
    assert min(line["step"] for line in lines) == 9
    assert lines[-1]["images_seen"] == 16 * 8
    rows = pd.read_parquet(home.sweep("branches") / "results.parquet").set_index("trial")
    starts = rows.start.fillna("").to_dict()
    assert starts == {"trunk": "", "same": "trunk@4", "long": "trunk@8"}


def test_kept_checkpoints_remain_and_a_changed_trunk_is_a_mismatch(home):
    kept = home.trial("branches", "trunk") / "kept"
    assert sorted(path.name for path in kept.iterdir()) == [
        "step-000000004.pt", "step-000000008.pt",
    ]  # fmt: skip
    other = TRUNK.model_copy(update={"seed": 5})
    changed = LONG.model_copy(update={"start": Start(trial=other, step=8)})
    context = RunContext(home, Settings(), StopFile(home.root / "stop"))
    alone = Sweep(name="branches", question="?", trials=(changed,))
    (stage,) = [one for one in sweep_stages(home, alone) if one.name == "long"]
    with pytest.raises(ConfigMismatchError, match=r"start\.trial\.seed: recorded 0, expected 5"):
        run_stage(stage, context)


def test_a_missing_checkpoint_is_reported(home):
    late = branch("late", 8)
    (stage,) = [
        one
        for one in sweep_stages(home, Sweep(name="branches", question="?", trials=(late,)))
        if one.name == "late"
    ]
    context = RunContext(home, Settings(), StopFile(home.root / "stop"))
    path = home.trial("branches", "trunk") / "kept" / "step-000000008.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(
        ValueError, match=r"step-000000008.pt: cannot read a checkpoint to start from"
    ):
        run_stage(stage, context)
    path.unlink()
    with pytest.raises(ValueError, match="trunk kept no checkpoint of step 8"):
        run_stage(stage, context)
    path.write_bytes(whole)
    assert run_stage(stage, context) == "done"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": Start(trial=TRUNK, step=5)}, "step 5 is not among the keep_steps of trunk"),
        ({"steps": 8}, "step 8 must be below steps = 8"),
        ({"batch_size": 4}, "trunk has a different batch_size"),
        ({"name": "trunk"}, "trunk cannot start from itself"),
        ({"keep_steps": (4, 99)}, r"keep_steps = \[4, 99\]: expected ascending steps up to 16"),
        ({"keep_steps": (8, 4)}, r"keep_steps = \[8, 4\]: expected ascending steps up to 16"),
    ],
)
def test_an_invalid_start_is_refused_with_a_message(changes, message):
    with pytest.raises(ValidationError, match=message):
        LONG.model_copy(update=changes)


def test_the_record_of_a_branch_survives_json():
    text = LONG.model_dump_json()
    assert Trial.model_validate_json(text) == LONG
    assert json.loads(text)["start"]["step"] == 8


@pytest.mark.parametrize("verb", ["status", "run", "fit"])
def test_a_home_of_an_older_format_is_refused_in_one_sentence(tmp_path, capsys, monkeypatch, verb):
    """Format 1 had no field `format`, and `family` was outside `model`."""
    old = Home(tmp_path / "old")
    path = old.trial("smoke", "d1") / "trial.json"
    path.parent.mkdir(parents=True)
    record = json.loads(TRUNK.model_dump_json())
    del record["format"], record["model"]["family"]
    path.write_text(json.dumps({**record, "family": "var"}))
    (path.parent / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    monkeypatch.setattr(sys, "argv", ["var-scaling", verb, "smoke", "--home", str(old.root)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 3
    message = " ".join(capsys.readouterr().err.split())
    assert message.endswith("use the version that wrote it, or another --home")
    assert "has format 1, but this version of the code reads format 2" in message
