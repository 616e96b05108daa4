"""The compiled training step: the same losses, one graph for all blocks, resume, and failure."""

import pytest
import torch
from conftest import goes_on, numbers, random_cache, stops_after, tokenizer, trial
from torch._dynamo.utils import counters

from pipelines.stages.attempt import Attempt
from pipelines.stages.context import ProcessContext, local_process
from pipelines.workspace.provenance import attempts
from pipelines.workspace.settings import Cluster, Local, compiles
from var_scaling.metrics import MetricsLog
from var_scaling.models.ar.config import tiny_ar
from var_scaling.models.dit.config import tiny_dit
from var_scaling.models.var.config import VarModel
from var_scaling.pyramid import Pyramid
from var_scaling.tokenizer.model import MultiScaleVQVAE
from var_scaling.training import compilation
from var_scaling.training.loop import Interrupted
from var_scaling.training.trial import train
from var_scaling.training.world import World

pytestmark = pytest.mark.usefixtures("one_thread")
ONE_SCALE = tokenizer(pyramid=Pyramid(patch_nums=(4,)))
LONG = tokenizer(pyramid=Pyramid(patch_nums=(1, 2, 4, 8)), multipliers=(1, 2))
VAR = VarModel(depth=3, width_per_depth=8, gamma_init=1e-1, drop_path_per_depth=0.1)
TRIALS = {
    "var": trial(model=VAR),
    "var, parts of attention": trial(model=VAR, tokenizer=LONG),
    "ar": trial(model=tiny_ar(3), tokenizer=ONE_SCALE),
    "dit": trial(model=tiny_dit(3), tokenizer=ONE_SCALE),
}


@pytest.fixture
def eager_backend(monkeypatch):
    """torch traces the graphs as always, but runs them without the inductor, which takes long."""
    compile_method = torch.compile

    def without_inductor(method, fullgraph, dynamic, options):
        return compile_method(method, fullgraph=fullgraph, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_inductor)


def run(folder, t, compiled=True, poll_signal=goes_on, world=None):
    """The trained model and the calls of `on_compiled`."""
    quantizer = MultiScaleVQVAE(t.tokenizer).quantize.requires_grad_(False)
    caches = [random_cache(images, seed, t.tokenizer) for images, seed in ((50, 1), (20, 2))]
    for cache in caches:  # for DiT
        cache.manifest["latents"] = {"mean": [0.0] * 4, "deviation": [1.0] * 4}
    log, ended = MetricsLog(folder / "metrics.jsonl"), []
    counters.clear()
    try:
        trained = train(
            t, quantizer, *caches, folder / "checkpoint", log, 1e9, poll_signal, world or World(),
            compile_network=compiled, on_compiled=ended.append,
        )  # fmt: skip
    finally:
        log.close()
    return trained.model, ended


def losses(folder) -> list[float]:
    return [line["loss"] for line in numbers(folder / "metrics.jsonl")]


def compare(tmp_path, t, world=None):
    """Assert that compiled and eager training agree; returns the number of compiled graphs."""
    eager, _ = run(tmp_path / "eager", t, compiled=False, world=world)
    compiled, ended = run(tmp_path / "compiled", t, world=world)
    assert ended == [None]
    # Over all steps and evaluations: training amplifies differences of rounding.
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)
    assert list(compiled.state_dict()) == list(eager.state_dict())
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("name", TRIALS)
def test_all_blocks_share_one_graph_and_no_step_compiles_another(name, tmp_path, eager_backend):
    # One for the blocks, one for the head with the loss. 12 steps and 2 evaluations add none.
    assert compare(tmp_path, TRIALS[name]) == 2


def test_each_size_of_a_micro_batch_has_its_graphs_before_the_first_step(tmp_path, eager_backend):
    # Micro-batches of 3, 3 and 2 rows.
    assert compare(tmp_path, TRIALS["var"], World(micro_batch_size=3)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_the_inductor_gives_the_losses_of_eager_code(name, tmp_path):
    compare(tmp_path, TRIALS[name])


@pytest.mark.slow
def test_a_resumed_compiled_trial_ends_bitwise_equal(tmp_path):
    t = trial(model=VAR, precision="bf16", weight_average=0.9)
    whole, _ = run(tmp_path / "whole", t)
    for _ in range(2):
        with pytest.raises(Interrupted, match="of 12"):
            run(tmp_path / "torn", t, poll_signal=stops_after(4))
    torn, _ = run(tmp_path / "torn", t)
    for one, other in zip(whole.parameters(), torn.parameters(), strict=True):
        assert torch.equal(one, other)
    assert losses(tmp_path / "whole") == losses(tmp_path / "torn")


def test_a_failure_of_the_compiler_leaves_an_eager_training(tmp_path, monkeypatch):
    calls = []

    def fails(method, **options):
        def compiled(*inputs):
            calls.append(method)
            raise RuntimeError("no working C++ compiler\nsecond line")

        return compiled

    eager, _ = run(tmp_path / "eager", trial(), compiled=False)
    monkeypatch.setattr(torch, "compile", fails)
    model, ended = run(tmp_path / "failed", trial())
    assert len(calls) == 1  # not tried again
    assert ended == ["RuntimeError: no working C++ compiler"]
    for one, other in zip(eager.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


class Branches(torch.nn.Module):
    """Its forward depends on a number in a tensor, which no single graph can express."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_method_that_needs_several_graphs_is_a_failure(eager_backend):
    network = Branches()
    error = compilation.compile_network(network, lambda: network(torch.ones(2)))
    assert error is not None
    assert error.startswith("UserError") or error.startswith("Unsupported")
    assert network(-torch.ones(2)).tolist() == [1, 1]


def test_the_compilation_is_in_the_provenance_and_a_failure_is_printed(tmp_path, capsys):
    attempt = Attempt(tmp_path, ProcessContext(), lambda: None)
    attempt.begin({})
    attempt.note_compilation(None)
    assert attempts(tmp_path)[-1]["compiled"] is True
    assert capsys.readouterr().out == ""
    attempt.note_compilation("CppCompileError: no compiler")
    recorded = attempts(tmp_path)[-1]
    assert recorded["compiled"] is False
    assert recorded["compile_error"] == "CppCompileError: no compiler"
    assert "continues with eager code, which is slower: CppComp" in capsys.readouterr().out


def test_training_is_compiled_on_gpus_unless_the_settings_say_otherwise():
    assert not compiles(Local())
    assert compiles(Local(device="cuda"))
    assert not compiles(Local(device="cuda", compile=False))
    assert local_process(Local(compile=True)).compile
    assert compiles(Cluster(partition="p"))
    assert not compiles(Cluster(partition="p", compile=False))
    assert not compiles(Cluster(partition="p", device="cpu", gpus_per_node=0))
