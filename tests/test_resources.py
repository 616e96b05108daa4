"""Resources of a stage: GPUs, micro-batches, hours, parts; and invalid settings."""

import io
import json
from pathlib import Path

import pytest
from conftest import trial
from rich.console import Console

from pipelines.cli.terminal.plan import plan_table
from pipelines.execution.slurm.resources import (
    encoding_parts,
    encoding_resources,
    memory_bytes,
    trial_resources,
)
from pipelines.execution.speeds.throughput import throughput_on
from pipelines.execution.status import overview
from pipelines.execution.tasks import arrays_of, tasks_of
from pipelines.planning.cost import plan_rows, plan_summary, price_on
from pipelines.stages.graph import of_kind, sweep_stages
from pipelines.stages.registry import TOKENS, TRIAL
from pipelines.workspace.settings import Cluster, Settings, SettingsError, load_settings
from pipelines.workspace.store import Home, part_folders
from pipelines.workspace.sweeps import find_sweep
from var_scaling.experiment.ledger import trial_ledger

H100 = Cluster(partition="gpu", nodes=8)
BOX = Cluster(partition="main", device="cpu", poll_seconds=1)


def paper(depth: int):
    return next(t for t in find_sweep("imagenet256").trials if t.model.depth == depth)


@pytest.mark.parametrize("depth", [6, 16, 24, 30])
def test_a_trial_gets_a_number_of_gpus_that_divides_its_batch_and_meets_the_time(depth):
    t, got = paper(depth), trial_resources(paper(depth), H100)
    assert t.batch_size % got.processes == 0
    assert got.nodes == 1 or got.processes_per_node == H100.gpus_per_node
    fixed, each = memory_bytes(t)
    share = t.batch_size // got.processes
    micro_batch_size = got.micro_batch_size or share
    assert fixed + micro_batch_size * each < H100.gpu_memory_gb * 1e9
    assert got.minutes <= 60 * H100.wall_hours


def test_a_shorter_time_uses_more_gpus_but_the_same_batch():
    taken = [
        trial_resources(paper(30), H100.model_copy(update={"finish_within_hours": hours}))
        for hours in (1000, 200, 100, 40)
    ]
    assert [one.processes for one in taken] == sorted({one.processes for one in taken})


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"d30": 7}, "does not divide the global batch of 1024"),
        ({"d30": 128}, "more than nodes x gpus_per_node = 8 x 8"),
        ({"d30": 1024}, "more than nodes x gpus_per_node"),
    ],
)
def test_invalid_numbers_of_gpus_are_refused_with_the_trial(requested, message):
    with pytest.raises(SettingsError, match=message):
        trial_resources(paper(30), H100.model_copy(update={"trial_gpus": requested}))


def test_a_model_that_fits_no_gpu_is_refused_before_submission():
    small = H100.model_copy(update={"gpu_memory_gb": 24})
    with pytest.raises(SettingsError, match=r"d30 needs about \d+ GB on each GPU"):
        trial_resources(paper(30), small)


def test_less_memory_for_activations_and_optimizer_makes_a_model_fit():
    small = H100.model_copy(update={"gpu_memory_gb": 48})
    with pytest.raises(
        SettingsError, match="recompute_activations = true and shard_optimizer = true"
    ):
        trial_resources(paper(30), small)
    both = {"recompute_activations": True, "shard_optimizer": True}
    with pytest.raises(SettingsError, match="or set shard_optimizer = true"):
        trial_resources(paper(30), small.model_copy(update={"recompute_activations": True}))
    fits = trial_resources(paper(30), small.model_copy(update=both))
    assert fits.processes > 8
    d30 = paper(30)
    parameters = trial_ledger(d30)["params_total"]
    assert memory_bytes(d30)[0] - memory_bytes(d30, shards=8)[0] == 7 * parameters
    # A third forward pass is the fourth part of the step.
    plain, twice = (
        throughput_on(cluster).rate(d30, 16, 4) for cluster in (H100, H100.model_copy(update=both))
    )
    assert twice.flops_per_second == pytest.approx(0.75 * plain.flops_per_second)


def test_trials_with_equal_resources_share_an_array(tmp_path):
    trials = of_kind(sweep_stages(Home(tmp_path), find_sweep("imagenet256")), TRIAL)
    arrays = [array.tasks for array in arrays_of(trials, H100)]
    alone = {units[0].resources.processes: [u.folder.name for u in units] for units in arrays}
    assert alone[1] == ["d16", "d14", "d12", "d10", "d8", "d6"]
    micro_batch_size = {
        u.folder.name: u.resources.micro_batch_size for units in arrays for u in units
    }
    assert micro_batch_size["d16"] < micro_batch_size["d6"]


def test_encoding_is_split_into_parts_of_about_an_hour_that_do_not_change(tmp_path):
    home = Home(tmp_path)
    (stage,) = (
        stage
        for stage in of_kind(sweep_stages(home, find_sweep("imagenet256")), TOKENS)
        if stage.config.split == "train"
    )
    t, data = stage.config.tokenizer, stage.config.data
    parts = encoding_parts(t, data, data.train_images, H100)
    assert 32 <= parts <= 64  # in fp32
    # 20.5 million images at 485 a second (benchmarks/measured/gpu_h200.json): 11.7 hours.
    assert encoding_parts(_encoding_in(t, "bf16"), data, data.train_images, H100) == 12
    assert len(tasks_of(stage, H100)) == parts
    part_folders(stage.directory, count=3)[0].mkdir(parents=True)
    assert len(tasks_of(stage, H100)) == 3


def test_the_memory_estimate_covers_the_saved_activations_of_a_block():
    """Bytes saved for the backward pass, counted at a small size."""
    import torch
    from torch.nn import functional as F

    from var_scaling.models.var.model import VAR
    from var_scaling.training.world import recompute_activations

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
    recompute_activations(model)
    # The backward pass saves those of one block at a time.
    recomputed = kept(5) - kept(4) + each / t.model.depth
    assert 0.6 < recomputed / memory_bytes(t, recompute=True)[1] < 1.1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gpus = 4", r"clusters.a.gpus: no such field; allowed: account, array_parallelism"),
        ("gpus_per_node = -1", r"clusters.a.gpus_per_node = -1: .*greater than or equal to 0"),
        ("wall_hours = 0.01", r"wall_hours = 0.01 is 36 s: too short for signal_seconds = 120"),
    ],
)
def test_a_wrong_cluster_is_refused_with_file_key_and_allowed_values(tmp_path, line, message):
    file = tmp_path / "var-scaling.toml"
    file.write_text(f'[clusters.a]\npartition = "p"\n{line}\n')
    with pytest.raises(SettingsError, match=message) as error:
        load_settings(file)
    assert str(file) in str(error.value)


def test_an_unknown_cluster_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match=r"no \[clusters.b\] .* allowed are local, a"):
        Settings(clusters={"a": BOX}).cluster("b")


def test_averaged_weights_need_four_more_bytes_per_parameter():
    plain, averaged = (memory_bytes(trial(weight_average=decay))[0] for decay in (0.0, 0.999))
    assert averaged - plain == 4 * trial_ledger(trial())["params_total"]


# Precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "relative"),
    [
        ({}, {"bf16": 1, "fp16": 1, "tf32": 495 / 989, "fp32": 67 / 989}),
        ({"peak_tflops": 312, "peak_tflops_tf32": 156, "peak_tflops_fp32": 19.5},
         {"bf16": 1, "fp16": 1, "tf32": 0.5, "fp32": 0.0625}),
        ({"device": "cpu"}, {"bf16": 1, "fp16": 1, "tf32": 1, "fp32": 1}),
    ],
)  # fmt: skip
def test_the_peak_depends_on_the_precision_on_a_gpu_only(changes, relative):
    cluster = H100.model_copy(update=changes)
    assert {name: cluster.relative_peak(name) for name in relative} == pytest.approx(relative)


def test_a_plan_reckons_trials_and_encoding_in_their_precision(tmp_path):
    """In hours, jobs, wall time and price; the FLOPs are the same."""
    cluster = H100.model_copy(update={"price_per_gpu_hour": 2.0})
    price, found = price_on(cluster), {}
    for precision in ("fp16", "tf32", "fp32"):
        base = find_sweep("imagenet256")
        t = _encoding_in(base.trials[0].tokenizer, precision).model_copy(
            update={"precision": precision}
        )
        trials = tuple(
            one.model_copy(update={"tokenizer": t, "precision": precision}) for one in base.trials
        )
        sweep = base.model_copy(update={"trials": trials})
        stages = sweep_stages(Home(tmp_path), sweep)
        rows = plan_rows(sweep, overview(stages), price, cluster)
        summary = plan_summary(sweep, stages, rows, price)
        (encoding,) = (one for one in summary["before"] if one["stage"].startswith("tokens"))
        (stage,) = (one for one in of_kind(stages, TOKENS) if one.config.split == "train")
        tasks = tasks_of(stage, cluster)
        found[precision] = encoding, summary, rows[0], len(tasks), tasks[0].resources.minutes
        assert encoding["precision"] == precision
        assert summary["price"] == pytest.approx(2 * summary["gpu_hours"])
        assert rows[0]["price"] == pytest.approx(2 * rows[0]["gpu_hours"])
        console = Console(width=300, record=True, file=io.StringIO())
        console.print(plan_table(sweep, stages, rows, price, cluster))
        assert "those of fp32 and TF32 are lower" in console.export_text()
    half, tf32, fp32 = (found[precision] for precision in ("fp16", "tf32", "fp32"))
    # A trial reaches the same share of each peak. Shares of the encoder, measured: 11, 17, 29 %.
    for other, slower, share in ((tf32, 989 / 495, 0.17), (fp32, 989 / 67, 0.29)):
        assert other[0]["flops"] == half[0]["flops"]
        encoding, whole, trial = (
            other[number]["gpu_hours"] / half[number]["gpu_hours"] for number in (0, 1, 2)
        )
        assert trial == pytest.approx(slower)
        assert encoding == pytest.approx(slower * 0.11 / share)
        assert encoding < whole < trial
    assert half[3] < tf32[3] < fp32[3]
    assert trial_hours(fp32[2]) == pytest.approx(trial_hours(half[2]) * 989 / 67)


def _encoding_in(t, precision: str):
    return t.model_copy(update={"encode_precision": precision})


def trial_hours(row: dict) -> float:
    """GPU-hours of all its jobs."""
    return row["hours"] * row["processes"]


def test_the_wall_time_of_a_job_that_encodes_follows_from_its_precision():
    minutes = [encoding_resources(1e18, H100, precision).minutes for precision in ("bf16", "fp32")]
    # 1e18 FLOPs are 2.7 h at 10.5 % of 989 TFLOP/s, 14.3 h at 29 % of 67; a quarter is added.
    assert minutes == [4 * 60, 24 * 60]


@pytest.mark.parametrize("family", ["var", "ar", "dit"])
def test_the_estimated_memory_is_what_eager_steps_needed_on_a_gpu_or_up_to_a_quarter_more(family):
    path = Path(__file__).parent.parent / "benchmarks" / "measured" / "gpu_h200.json"
    rows = json.loads(path.read_text())["training"]
    base = {"var": "d16", "ar": "llamagen-b", "dit": "dit-b-2"}[family]
    sweep = find_sweep("imagenet256" if family == "var" else "imagenet256_families")
    trial = next(one for one in sweep.trials if one.name == base)
    for row in rows:
        if row["family"] == family and row["way"] == "ours":
            network = {"depth": row["depth"]}
            if family == "var":
                network["drop_path_per_depth"] = 0.0
            else:
                network |= {"fixed_width": None, "fixed_heads": None}
            model = trial.model.model_copy(update=network)
            fixed, each = memory_bytes(trial.model_copy(update={"model": model}))
            assert 1 <= (fixed + row["batch"] * each) / row["peak_bytes"] < 1.25
