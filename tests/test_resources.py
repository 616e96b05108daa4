"""Resources of a stage: GPUs, micro-batches, hours, parts; and invalid settings."""

import pytest
from conftest import trial

from pipelines.execution.slurm.resources import encoding_parts, memory_bytes, trial_resources
from pipelines.execution.tasks import arrays_of, tasks_of
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


def test_trials_with_equal_resources_share_an_array(tmp_path):
    trials = of_kind(sweep_stages(Home(tmp_path), find_sweep("imagenet256")), TRIAL)
    arrays = [array.tasks for array in arrays_of(trials, H100)]
    alone = {units[0].resources.processes: [u.folder.name for u in units] for units in arrays}
    assert alone[1] == ["d10", "d8", "d6"]
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
    assert 2 <= parts <= 16
    assert len(tasks_of(stage, H100)) == parts
    part_folders(stage.directory, count=3)[0].mkdir(parents=True)
    assert len(tasks_of(stage, H100)) == 3


def test_the_memory_estimate_covers_the_saved_activations_of_a_block():
    """Bytes saved for the backward pass, counted at a small size."""
    import torch
    from torch.nn import functional as F

    from var_scaling.models.var.model import VAR

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
