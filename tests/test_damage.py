"""Damaged files of finished stages are detected when used, reported, and repaired."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import bring, numbers
from typer.testing import CliRunner

from pipelines.cli import main as cli
from pipelines.execution.status import overview
from pipelines.results.table import rows_of
from pipelines.stages import stages
from pipelines.stages.context import ProcessContext, RunContext, StopFile
from pipelines.stages.graph import sweep_stages
from pipelines.workspace.address import read_tokenizer
from pipelines.workspace.damage import damage_in, mark_done
from pipelines.workspace.log_end import latest_line
from pipelines.workspace.settings import Settings
from pipelines.workspace.store import Home
from pipelines.workspace.sweeps import find_sweep
from var_scaling.disk import DONE, file_sha256, read_json, write_json
from var_scaling.tokenizer.cache_files import CacheError
from var_scaling.weights import WeightsError

SWEEP = find_sweep("smoke")
TOKENIZER = "tokenizers/tiny-smoke"


@pytest.fixture
def home(smoke, tmp_path) -> Home:
    """A copy of a finished `smoke` for this test, with the times of its files."""
    shutil.copytree(smoke, tmp_path / "home", symlinks=True)
    return Home(tmp_path / "home")


def context(home: Home) -> RunContext:
    return RunContext(home, Settings(), StopFile(home.root / "stop"))


def command(home: Home, *words: str) -> str:
    """The output of a command that succeeds."""
    done = CliRunner().invoke(cli.app, [*words, "--home", str(home.root)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def flip_bit(path: Path, at: int = -5) -> tuple[str, str]:
    """Flip one bit of `path`; its hash before and after."""
    before = file_sha256(path)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    return before, file_sha256(path)


def cut_short(path: Path, share: float = 0.5) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def begin_anew(home: Home, folder: Path) -> None:
    """Remove the done file of the stage in `folder`, so that it must run again."""
    shutil.rmtree(folder)


# Weights are hashed where they are used -----------------------------------------------------------


def test_a_trial_does_not_train_on_damaged_tokenizer_weights(home):
    recorded, found = flip_bit(home.root / TOKENIZER / "weights.safetensors")
    begin_anew(home, home.trial("smoke", "d1"))
    with pytest.raises(WeightsError) as refused:
        stages.run_trial(context(home), "smoke", SWEEP.trials[0])
    for part in (f"{TOKENIZER}/weights.safetensors", recorded, found):
        assert part in str(refused.value)
    assert not (home.trial("smoke", "d1") / DONE).exists()


def test_images_are_not_encoded_with_damaged_weights(home):
    recorded, found = flip_bit(home.root / TOKENIZER / "weights.safetensors")
    t, data = SWEEP.token_sets[0]
    begin_anew(home, home.tokens(t.name, data.name, "validation"))
    with pytest.raises(WeightsError, match=f"{found}.*{recorded}"):
        stages.run_tokens(context(home), t, data, "validation")


@pytest.mark.parametrize("damage", [flip_bit, cut_short])
@pytest.mark.parametrize("address", [TOKENIZER, "smoke/d1"])
def test_damaged_weights_are_not_exported(home, tmp_path, address, damage):
    damage(home.root / address / "weights.safetensors")
    words = ["export", address, str(tmp_path / "out.pth"), "--home", str(home.root)]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code != 0
    assert f"{address}/weights.safetensors is" in str(done.exception)
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    "words",
    [("sample", "smoke/d1", "--count", "1"), ("evaluate", "smoke/d1"), ("speed", "smoke/d1")],
)
@pytest.mark.parametrize("address", [TOKENIZER, "smoke/d1"])
def test_no_command_uses_damaged_weights(home, words, address):
    recorded, found = flip_bit(home.root / address / "weights.safetensors")
    done = CliRunner().invoke(cli.app, [*words, "--home", str(home.root)])
    assert isinstance(done.exception, ValueError)
    assert recorded in str(done.exception)
    assert found in str(done.exception)


def test_reconstructions_of_damaged_weights_are_not_scored(home):
    flip_bit(home.root / TOKENIZER / "weights.safetensors")
    words = ["fidelity", TOKENIZER, "--images", "8", "--home", str(home.root)]
    assert "weights.safetensors is" in str(CliRunner().invoke(cli.app, words).exception)


def test_truncated_weights_are_refused_with_a_message(home):
    """Also if the recorded hash is that of the truncated file."""
    weights = home.root / TOKENIZER / "weights.safetensors"
    cut_short(weights)
    marker = {**read_json(weights.parent / DONE), "weights_sha256": file_sha256(weights)}
    mark_done(weights.parent, marker, ())
    begin_anew(home, home.trial("smoke", "d1"))
    with pytest.raises(WeightsError, match="damaged, or not a safetensors file"):
        stages.run_trial(context(home), "smoke", SWEEP.trials[0])


# Tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["tokens.npy", "labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [flip_bit, cut_short, Path.unlink])
def test_a_trial_does_not_train_on_damaged_tokens(home, file, damage):
    t, data = SWEEP.token_sets[0]
    folder = home.tokens(t.name, data.name, "train")
    damage(folder / file)
    begin_anew(home, home.trial("smoke", "d1"))
    with pytest.raises(CacheError, match=f"{folder}.*delete the folder"):
        stages.run_trial(context(home), "smoke", SWEEP.trials[0])


def test_only_the_first_process_of_a_job_computes_the_checksums(home, monkeypatch):
    from var_scaling.tokenizer import cache_files

    t, data = SWEEP.token_sets[0]
    folder = home.tokens(t.name, data.name, "train")
    expected = stages.cache_description(home, t, data, "train")
    shards = []
    monkeypatch.setattr(cache_files, "checksum", lambda tokens, shard: shards.append(shard))
    cache_files.open_cache(folder, expected, check=False)
    assert shards == []
    with pytest.raises(TypeError):
        cache_files.open_cache(folder, expected)
    assert shards == [0]
    monkeypatch.setattr(cache_files, "_refuse_damaged", lambda *words: None)
    for rank, computed in ((1, [0]), (0, [0, 0])):
        process = ProcessContext(rank=rank, world_size=2)
        stages._open_tokens(replace(context(home), process=process), SWEEP.trials[0], "train")
        assert shards == computed


# done.json records what results rest on -----------------------------------------------------------


def test_the_done_file_records_length_and_hash_of_every_essential_file(home):
    tokens = ("manifest.json", "tokens.npy", "labels.npy")
    expected = {
        TOKENIZER: ("weights.safetensors", "tokenizer.json", "metrics.jsonl"),
        "smoke/d3": ("weights.safetensors", "trial.json", "metrics.jsonl"),
        "tokens/tiny-smoke/dead-leaves-smoke-train": tokens,
        "tokens/tiny-smoke/dead-leaves-smoke-validation": tokens,
    }
    for address, names in expected.items():
        folder = home.root / address
        files = read_json(folder / DONE)["files"]
        assert set(files) == set(names)
        for name in names:
            content = folder / name
            assert files[name] == {
                "bytes": content.stat().st_size,
                "sha256": file_sha256(content),
            }


def test_an_import_records_its_files(tmp_path, files):
    bring(tmp_path, *files)
    for address, record in (("tokenizers/it", "tokenizer.json"), ("imported/it", "model.json")):
        folder = tmp_path / address
        assert set(read_json(folder / DONE)["files"]) == {record, "weights.safetensors"}
        flip_bit(folder / record)
        assert f"{record} is damaged" in str(damage_in(folder))


PLACES = [
    (TOKENIZER, "weights.safetensors", "damaged"),
    (TOKENIZER, "metrics.jsonl", "to repair"),
    ("tokens/tiny-smoke/dead-leaves-smoke-train", "tokens.npy", "damaged"),
    ("tokens/tiny-smoke/dead-leaves-smoke-validation", "manifest.json", "damaged"),
    ("smoke/d3", "weights.safetensors", "damaged"),
    ("smoke/d3", "metrics.jsonl", "to repair"),
    ("smoke/d3", "done.json", "damaged"),
]


@pytest.mark.parametrize("damage", [flip_bit, cut_short])
@pytest.mark.parametrize(("address", "file", "state"), PLACES)
def test_status_names_the_damaged_file_and_the_repair(home, address, file, state, damage):
    assert {view.state for view in overview(sweep_stages(home, SWEEP))} == {"done"}
    folder = home.root / address
    damage(folder / file, *([3] if file == "done.json" and damage is flip_bit else []))
    shown = json.loads(command(home, "status", "smoke", "--json"))["stages"]
    (stage,) = (one for one in shown if one["state"] != "done")
    assert stage["state"] == state
    assert stage["name"].endswith(folder.name)
    assert f"{folder / file} is damaged" in stage["note"]
    assert "To repair it: " in stage["note"]


def test_a_copy_of_a_home_with_new_times_is_not_damaged(smoke, tmp_path):
    shutil.copytree(smoke, tmp_path / "home", copy_function=shutil.copyfile)
    assert {view.state for view in overview(sweep_stages(Home(tmp_path / "home"), SWEEP))} == {
        "done"
    }


def test_a_home_without_recorded_files_can_be_read(home):
    for marker in home.root.rglob(DONE):
        kept = {k: v for k, v in read_json(marker).items() if k not in ("files", "seconds")}
        write_json(marker, kept)
    assert {view.state for view in overview(sweep_stages(home, SWEEP))} == {"done"}
    flip_bit(home.trial("smoke", "d2") / "weights.safetensors")
    (view,) = (one for one in overview(sweep_stages(home, SWEEP)) if one.state != "done")
    assert (view.name, view.state) == ("d2", "damaged")
    flip_bit(home.trial("smoke", "d2") / "weights.safetensors")
    log = home.trial("smoke", "d3") / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    (view,) = (one for one in overview(sweep_stages(home, SWEEP)) if one.state != "done")
    assert view.state == "to repair"
    assert "the evaluation after step 120 is missing" in view.note


# The final evaluation is computed again -----------------------------------------------------------


def lose_the_end(log: Path) -> None:
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-3]))


def change_a_digit(log: Path) -> None:
    """Change the last loss without changing the length of the file."""
    lines = log.read_bytes().splitlines(keepends=True)
    before = lines[-1]
    lines[-1] = re.sub(rb'("(?:loss|psnr_db)": )\d', rb"\g<1>9", before)
    assert lines[-1] != before
    log.write_bytes(b"".join(lines))


@pytest.mark.parametrize("damage", [lose_the_end, change_a_digit, Path.unlink])
def test_the_final_evaluation_of_a_trial_is_computed_again(home, smoke, damage):
    folder = home.trial("smoke", "d3")
    trial = next(one for one in SWEEP.trials if one.name == "d3")
    log = folder / "metrics.jsonl"
    damage(log)
    assert stages.run_trial(context(home), "smoke", trial) == "done"
    intact = smoke / "smoke" / "d3" / "metrics.jsonl"
    if damage is change_a_digit:
        assert numbers(log) == numbers(intact)
    (again, first) = (latest_line(path, "validation") for path in (log, intact))
    clock = ("time_ms", "seconds", "images_per_second", "flops_per_second")
    assert {k: v for k, v in again.items() if k not in clock} == {
        k: v for k, v in first.items() if k not in clock
    }
    assert again["seconds"] == pytest.approx(first["seconds"])
    assert damage_in(folder) is None
    repaired = read_json(folder / DONE)["repaired"]
    assert [list(one["files"]) for one in repaired] == [["metrics.jsonl"]]
    rows = [row for row in rows_of(home, SWEEP) if row["trial"] == "d3"]
    assert (rows[-1]["status"], rows[-1]["step"], rows[-1]["damage"]) == ("done", 120, None)
    assert stages.run_trial(context(home), "smoke", trial) == "done"  # no damage remains
    assert len(read_json(folder / DONE)["repaired"]) == 1


@pytest.mark.parametrize("damage", [lose_the_end, change_a_digit])
def test_the_final_evaluation_of_a_tokenizer_is_computed_again(home, smoke, damage):
    folder = home.root / TOKENIZER
    damage(folder / "metrics.jsonl")
    assert stages.run_tokenizer(context(home), read_tokenizer(folder)) == "done"
    (again, first) = (
        latest_line(path / TOKENIZER / "metrics.jsonl", "validation") for path in (home.root, smoke)
    )
    for name in ("psnr_db", "codes_used_all", "perplexity_per_scale", "images_seen"):
        assert again[name] == first[name]
    assert damage_in(folder) is None


def test_no_evaluation_is_computed_from_damaged_weights(home):
    folder = home.trial("smoke", "d3")
    lose_the_end(folder / "metrics.jsonl")
    flip_bit(folder / "weights.safetensors")
    trial = next(one for one in SWEEP.trials if one.name == "d3")
    assert damage_in(folder).repaired_by_run is False
    before = (folder / "metrics.jsonl").read_bytes()
    assert stages.run_trial(context(home), "smoke", trial) == "done"
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_run_repairs_what_it_can_and_names_the_rest(home):
    """By the command, with Ray: one truncated log, one flipped bit in the weights of a trial."""
    lose_the_end(home.trial("smoke", "d3") / "metrics.jsonl")
    flip_bit(home.trial("smoke", "d2") / "weights.safetensors")
    words = ["run", "smoke", "--home", str(home.root)]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 1
    assert "trial d3: " in done.output
    assert "the final evaluation is computed again" in done.output
    assert "Damaged and not repaired: trial d2" in done.output
    assert damage_in(home.trial("smoke", "d3")) is None
    assert damage_in(home.trial("smoke", "d2")) is not None


# The law says so ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_fit_and_report_name_every_damaged_stage(home):
    """A damaged log removes its trial from the law; damaged weights do not affect the scores."""
    lose_the_end(home.trial("smoke", "d3") / "metrics.jsonl")
    flip_bit(home.trial("smoke", "d2") / "weights.safetensors")
    flip_bit(home.root / TOKENIZER / "weights.safetensors")
    words = ["fit", "smoke", "--json", "--home", str(home.root)]
    done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    laws = json.loads(done.stdout)
    assert laws["sizes"] == 3
    (left_out,) = {line.partition(": ")[2] for line in laws["dropped"] if "d3" in line}
    places = ("smoke/d2/weights.safetensors", f"{TOKENIZER}/weights.safetensors")
    for where in places:
        assert any(f"{where} is damaged" in note for note in laws["notes"]), where
    assert set(laws["damaged"]) == {"tokenizer tiny-smoke", "trial d2", "trial d3"}
    page = (home.root / "smoke" / "report" / "index.html").read_text()
    assert "d3/metrics.jsonl is damaged" in left_out
    for where in ("smoke/d3/metrics.jsonl", *places):
        assert f"{where} is damaged" in page
        assert f"{where} is damaged" in done.stderr
    assert done.stderr.count("To repair it: ") == 3
