"""The training loop: schedules, bitwise resume, non-finite values, micro-batches, processes."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import goes_on, numbers, stops_after, tokenizer, trial

from pipelines.stages.context import RunContext, local_process
from pipelines.workspace.settings import Local, Settings
from pipelines.workspace.store import Home
from var_scaling.metrics import MetricsLog, read_metrics
from var_scaling.models.var.model import VAR
from var_scaling.recipe import Optimiser
from var_scaling.tokenizer.cache import TokenCache
from var_scaling.training import checkpoint
from var_scaling.training.distributed import join
from var_scaling.training.loop import (
    Diverged,
    Interrupted,
    Journal,
    MeanStats,
    Signal,
    Stopwatch,
    log_steps,
    updates,
)
from var_scaling.training.optim import (
    ScheduledOptimizer,
    adamw,
    learning_rate_at,
    precision_context,
    weight_decay_at,
)
from var_scaling.training.trial import batch_loss, loss_of, train
from var_scaling.training.world import World

# Schedules ------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_stays_constant_and_decays():
    o = Optimiser(learning_rate=2.0, warm_up=0.1, warm_up_from=0.5, plateau=0.5, final=0.1)
    rates = [learning_rate_at(o, step, 101) for step in range(101)]
    assert rates[0] == pytest.approx(1.0)
    assert max(rates) == rates[20] == rates[54] == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.2)
    assert all(late <= early for early, late in pairwise(rates[55:]))


def test_weight_decay_follows_a_cosine_over_all_steps():
    o = Optimiser(learning_rate=1.0, weight_decay=0.04, final_weight_decay=0.08)
    assert weight_decay_at(o, 0, 101) == pytest.approx(0.04)
    assert weight_decay_at(o, 50, 101) == pytest.approx(0.06)
    assert weight_decay_at(o, 100, 101) == pytest.approx(0.08)


def test_only_matrices_have_weight_decay():
    model = VAR(trial().model, tokenizer(), 8, seed=0)
    groups = adamw(model, trial().optimiser).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["decayed"] for p in group["params"]}
    plain = {names[id(p)] for group in groups if not group["decayed"] for p in group["params"]}
    assert {"class_emb.weight", "word_embed.weight", "head.weight"} <= decayed
    assert {"pos_start", "pos_1LC", "lvl_embed.weight", "blocks.0.attn.scale_mul_1H11"} <= plain
    assert all(name.endswith("weight") for name in decayed)
    assert decayed | plain == set(names.values())


# The loop -------------------------------------------------------------------------------------


def journal_in(folder, start=0) -> Journal:
    journal = Journal(folder, lambda *words: None, lambda done, seconds: {}, 1e9, World())
    journal.start = start
    return journal


def test_a_non_finite_loss_ends_the_run_at_its_step(tmp_path):
    def update(step):
        return {"loss": torch.tensor(float("nan") if step == 3 else 1.0)}

    steps = updates(update, journal_in(tmp_path, start=1), 9, goes_on)
    assert [next(steps)[0], next(steps)[0]] == [2, 3]
    with pytest.raises(Diverged, match="loss = nan at step 4 of 9"):
        next(steps)


def test_stats_of_several_steps_are_read_together(tmp_path):
    """As on a GPU: before each pause, after every fourth step and after the last."""
    signals = {8: Signal.CHECKPOINT}
    polled = []

    def poll_signal(done):
        polled.append(done)
        return signals.get(done, Signal.CONTINUE)

    journal = journal_in(tmp_path)
    journal.steps_per_read = 4
    update = lambda step: {"loss": torch.tensor(float(step))}  # noqa: E731
    means = {}
    for done, signal in updates(update, journal, 10, poll_signal, pauses={3}):
        assert signal == signals.get(done, Signal.CONTINUE)
        means[done] = journal.means.pop()["loss"]
    assert means == {3: 1.0, 4: 3.0, 8: 5.5, 10: 8.5}
    assert polled == [3, 4, 8, 10]


def test_a_late_read_names_the_step_that_diverged(tmp_path):
    journal = journal_in(tmp_path)
    journal.steps_per_read = 5
    update = lambda step: {"loss": 1 / torch.tensor(1.0 - step)}  # noqa: E731
    with pytest.raises(Diverged, match="loss = inf at step 2 of 9"):
        next(updates(update, journal, 9, goes_on))


def test_a_checkpoint_written_in_the_background_has_the_state_of_its_step(tmp_path):
    journal, weight = journal_in(tmp_path), torch.zeros(3)
    journal.in_background = True

    def update(step):
        weight.add_(1)
        return {"loss": weight.mean()}

    for done, _ in updates(update, journal, 6, goes_on):
        journal.save(done, {"weight": weight})
    assert checkpoint.latest(tmp_path)["weight"].tolist() == [6.0] * 3
    before = torch.load(tmp_path / checkpoint.checkpoint_name(5))
    assert before["weight"].tolist() == [5.0] * 3


def test_an_error_of_a_background_write_ends_the_training(tmp_path, monkeypatch):
    def fails(*words):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save", fails)
    journal = journal_in(tmp_path)
    journal.in_background = True
    steps = updates(lambda step: {"loss": torch.ones(())}, journal, 3, goes_on)
    next(steps)
    journal.save(1, {})
    next(steps)
    with pytest.raises(OSError, match="disk full"):
        journal.save(2, {})


class Product(torch.nn.Module):
    def __init__(self, start: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2,), start))

    def forward(self, by: list[float]) -> torch.Tensor:
        return (self.weight * torch.tensor(by)).sum()


def descent_of(module, precision="fp32", grad_clip=2.0) -> ScheduledOptimizer:
    o = Optimiser(
        learning_rate=0.1, betas=(0.0, 0.0), weight_decay=0.0, warm_up=0.0, grad_clip=grad_clip
    )
    return ScheduledOptimizer(module, o, steps=100, precision=precision)


def test_a_non_finite_gradient_changes_no_weight():
    module = Product(1.0)
    module([1.0, float("inf")]).backward()
    found = descent_of(module).step(0)
    assert not torch.isfinite(found["grad_norm"])
    assert torch.equal(module.weight, torch.ones(2))


def test_a_flag_of_the_fused_update_replaces_the_wait_for_the_norm():
    """As on a GPU: the same updates as with the wait, and none if a gradient is not finite."""
    modules = [Product(1.0), Product(1.0)]
    optimizers = [descent_of(module) for module in modules]
    optimizers[1].waits = False
    for step, by in enumerate([[1.0, 2.0], [float("inf"), 1.0], [3.0, -1.0]]):
        for module, optimizer in zip(modules, optimizers, strict=True):
            module(by).backward()
            optimizer.step(step)
        assert torch.equal(modules[0].weight, modules[1].weight)
    assert torch.isfinite(modules[1].weight).all()


def test_the_gradient_is_clipped_to_its_norm():
    module = Product(0.0)
    optimizer, taken = descent_of(module), []
    optimizer.adamw.register_step_pre_hook(lambda *_: taken.append(module.weight.grad.clone()))
    module([30.0, 40.0]).backward()
    assert optimizer.step(0)["grad_norm"] == pytest.approx(50)
    torch.testing.assert_close(taken, [torch.tensor([1.2, 1.6])])


def test_the_gradient_of_a_step_sums_all_backward_passes():
    module = Product(0.0)
    optimizer = descent_of(module, grad_clip=1e9)
    for step in (0, 1):
        for by in ([3.0, 0.0], [0.0, 4.0]):
            optimizer.scale(module(by)).backward()
        assert optimizer.step(step)["grad_norm"] == pytest.approx(5)


def test_half_precision_scales_its_loss_and_backs_off_instead_of_ending(tmp_path):
    module, journal = Product(1.0), journal_in(tmp_path)
    optimizer = descent_of(module, "fp16")

    def step(by: list[float], number: int):
        optimizer.scale(module(by)).backward()
        return optimizer.step(number)

    found = step([3.0, 4.0], 0)
    assert found["grad_norm"] == pytest.approx(5)  # unscaled before it is clipped
    before = module.weight.detach().clone()
    found = step([1.0, 3e38], 1)
    assert (found["skipped"], found["loss_scale"]) == (1, 2**10)
    journal.add(1, found)
    journal.read_stats(99, Signal.CONTINUE)
    assert journal.means.pop() == {"skipped": 1, "loss_scale": 2**10}  # no norm
    assert torch.equal(module.weight, before)
    assert optimizer.scaler.get_scale() == 2**10
    again = descent_of(Product(1.0), "fp16")
    again.restore(optimizer.state())
    assert again.scaler.get_scale() == 2**10
    for number in range(2, 14):  # an infinity at every loss scale ends the run
        journal.add(number, step([1.0, float("inf")], number))
    with pytest.raises(Diverged, match="grad_norm = inf at step 12 of 99"):
        journal.read_stats(99, Signal.CONTINUE)


def test_train_seconds_count_training_only_over_all_attempts():
    now = [100.0]
    watch = Stopwatch(seconds=5.0, save_every=10.0, clock=lambda: now[0])
    now[0] = 103.0
    with watch.paused():
        now[0] = 150.0
        assert watch.seconds() == 8.0
    now[0] = 151.0
    assert watch.seconds() == 9.0
    assert watch.save_is_due()
    watch.saved()
    assert not watch.save_is_due()


def test_logged_means_cover_the_steps_since_the_last_line():
    window = MeanStats()
    window.add({"loss": 1.0})
    window = MeanStats(json.loads(json.dumps(window.sums)))
    window.add({"loss": 3.0})
    assert window.pop() == {"loss": 2.0}
    window.add({"loss": 7.0})
    assert window.pop() == {"loss": 7.0}


def test_the_last_step_is_always_logged():
    assert max(log_steps(7)) == 7
    assert max(log_steps(12_345)) == 12_345


# Trials ---------------------------------------------------------------------------------------


def run(folder, quantizer, token_cache, poll_signal=goes_on, save_every=1e9, t=None, world=None):
    log = MetricsLog(folder / "metrics.jsonl")
    t = t or trial()
    caches = token_cache(50, seed=1), token_cache(20, seed=2)
    try:
        words = (folder / "checkpoint", log, save_every, poll_signal, world or World())
        return train(t, quantizer, *caches, *words).model
    finally:
        log.close()


def test_a_resumed_trial_ends_bitwise_equal(tmp_path, quantizer, token_cache):
    whole = run(tmp_path / "whole", quantizer, token_cache)
    for _ in range(3):
        with pytest.raises(Interrupted, match="of 12"):
            run(tmp_path / "torn", quantizer, token_cache, poll_signal=stops_after(2))
    torn = run(tmp_path / "torn", quantizer, token_cache)
    for one, other in zip(whole.parameters(), torn.parameters(), strict=True):
        assert torch.equal(one, other)
    assert numbers(tmp_path / "whole" / "metrics.jsonl") == numbers(
        tmp_path / "torn" / "metrics.jsonl"
    )


def test_a_trial_killed_between_checkpoints_repeats_its_steps_exactly(
    tmp_path, quantizer, token_cache, monkeypatch
):
    whole = run(tmp_path / "whole", quantizer, token_cache)

    class Killed(BaseException):
        pass

    def dies_at_seven(trial_, *rest):
        if rest[-2] == 7:
            raise Killed
        return loss_of(trial_, *rest)

    monkeypatch.setattr("var_scaling.training.trial.loss_of", dies_at_seven)
    with pytest.raises(Killed):
        run(tmp_path / "torn", quantizer, token_cache, save_every=0.0)
    monkeypatch.undo()
    for path in sorted((tmp_path / "torn" / "checkpoint").glob("*"))[1:]:
        path.unlink()  # as if the last checkpoint had not been written yet
    torn = run(tmp_path / "torn", quantizer, token_cache)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), torn.parameters(), strict=True)
    )
    assert numbers(tmp_path / "whole" / "metrics.jsonl") == numbers(
        tmp_path / "torn" / "metrics.jsonl"
    )


def test_a_checkpoint_signal_saves_and_training_continues(tmp_path, quantizer, token_cache):
    folder, seen = tmp_path / "checkpoint", []

    def poll_signal(done: int) -> Signal:
        seen.append((done, [int(path.stem[5:]) for path in sorted(folder.glob("*.pt"))]))
        return Signal.CHECKPOINT if done in (3, 4, 12) else Signal.CONTINUE

    whole = run(tmp_path, quantizer, token_cache, poll_signal)
    kept = [[]] * 3 + [[3]] + [[3, 4]] * 8
    assert seen == list(
        zip(range(1, 13), kept, strict=True)
    )  # the signal is polled once after every step
    assert checkpoint.latest(folder)["step"] == 4  # the last step writes no checkpoint
    went_on = run(tmp_path, quantizer, token_cache)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), went_on.parameters(), strict=True)
    )


def test_a_stop_signal_after_the_last_step_has_no_effect(tmp_path, quantizer, token_cache):
    run(tmp_path, quantizer, token_cache, stops_after(11))
    with pytest.raises(Interrupted, match="d2 stopped after step 11 of 12"):
        run(tmp_path / "earlier", quantizer, token_cache, stops_after(10))
    assert checkpoint.latest(tmp_path / "checkpoint") is None
    assert checkpoint.latest(tmp_path / "earlier" / "checkpoint")["step"] == 11


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_gradient_accumulation_equals_the_whole_batch(
    micro_batch_size, tmp_path, quantizer, token_cache, monkeypatch
):
    t, requested = trial(class_dropout_prob=0.5), []
    whole = run(tmp_path / "whole", quantizer, token_cache, t=t)
    batch = TokenCache.batch

    def spy(cache, rows, epochs):
        requested.extend(zip(rows, epochs, strict=True))
        return batch(cache, rows, epochs)

    monkeypatch.setattr(TokenCache, "batch", spy)
    run(tmp_path / "again", quantizer, token_cache, t=t)
    in_order = requested.copy()
    requested.clear()
    parts = run(
        tmp_path / "parts",
        quantizer,
        token_cache,
        t=t,
        world=World(micro_batch_size=micro_batch_size),
    )
    assert requested == in_order
    lines = [numbers(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    for name in ("loss", "grad_norm"):
        curves = [[line.get(name, 0.0) for line in each] for each in lines]
        np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    if micro_batch_size == t.batch_size:  # a single micro-batch
        assert lines[0] == lines[1]
        assert all(
            torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True)
        )


def test_half_precision_is_scaled_in_every_micro_batch(tmp_path, quantizer, token_cache):
    t = trial(precision="fp16")
    for name, world in (("whole", World()), ("parts", World(micro_batch_size=3))):
        run(tmp_path / name, quantizer, token_cache, t=t, world=world)
    curves = [
        [line["loss"] for line in numbers(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    ]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3)


def test_micro_batches_are_consecutive_slices_of_the_local_batch():
    assert World(rank=1, size=2, micro_batch_size=3).micro_batches(16) == [
        slice(8, 11), slice(11, 14), slice(14, 16),
    ]  # fmt: skip
    assert World(rank=1, size=2).micro_batches(16) == [World(rank=1, size=2).share(16)]
    assert World(micro_batch_size=99).micro_batches(16) == [slice(0, 16)]


# Meeting --------------------------------------------------------------------------------------


def test_a_rendezvous_timeout_names_the_file_and_the_seconds(tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(TimeoutError, match=r"meeting\.json: process 0 did not write it within 0 s"):
        join(1, 2, cpu, tmp_path / "meeting.json", "127.0.0.1", timeout_s=0.0)
    with pytest.raises(
        TimeoutError, match=r"meeting\.json: not all 2 processes connected to 127.0.0.1"
    ):
        join(0, 2, cpu, tmp_path / "meeting.json", "127.0.0.1", timeout_s=0.1)


def test_a_single_process_joins_no_process_group(tmp_path):
    assert join(0, 1, torch.device("cpu"), tmp_path / "meeting.json", "nowhere") == World()
    assert list(tmp_path.iterdir()) == []
    settings = {"micro_batch_size": 4, "recompute_activations": True, "shard_optimizer": True}
    process = local_process(Local(**settings))
    with RunContext(Home(tmp_path), Settings(), lambda: Signal.CONTINUE, process).world() as world:
        assert world == World(**settings)


def test_a_trial_learns_two_sequences(tmp_path, quantizer, token_cache):
    """Two token sequences, one for each class: the loss must fall to almost nothing."""
    patterns = token_cache(2).tokens
    labels = np.arange(40) % 2
    cache = TokenCache(patterns[labels], labels, 1, {})
    t = trial(steps=150, class_dropout_prob=0.0, evaluations=1)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    train(t, quantizer, cache, cache, tmp_path / "c", log, 1e9, goes_on, World())
    scores = [
        line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "validation"
    ]
    assert scores[-1]["loss"] < 0.1
    assert scores[-1]["error"] < 0.01


def test_dropped_labels_depend_only_on_seed_and_step(quantizer, token_cache):
    t, cache = trial(class_dropout_prob=0.5), token_cache(50)
    seen = []

    class Spy(VAR):
        def forward(self, labels_B, *rest):
            seen.append(labels_B)
            return super().forward(labels_B, *rest)

    model = Spy(t.model, tokenizer(), 8, seed=0)
    for step in (0, 1, 0):
        batch_loss(t, model, quantizer, cache, step, slice(None))
    assert torch.equal(seen[0], seen[2])
    dropped = torch.cat([batch == 8 for batch in seen[:2]]).float().mean()
    assert 0.1 < dropped < 0.9


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_every_precision_trains_close_to_the_full_one_and_resumes_bitwise(
    precision, tmp_path, quantizer, token_cache
):
    full = run(tmp_path / "full", quantizer, token_cache)
    t = trial(precision=precision)
    whole = run(tmp_path / "whole", quantizer, token_cache, t=t)
    with pytest.raises(Interrupted):
        run(tmp_path / "torn", quantizer, token_cache, poll_signal=stops_after(5), t=t)
    torn = run(tmp_path / "torn", quantizer, token_cache, t=t)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), torn.parameters(), strict=True)
    )
    assert all(p.dtype == torch.float32 for p in whole.parameters())
    same = [torch.equal(a, b) for a, b in zip(whole.parameters(), full.parameters(), strict=True)]
    assert all(same) == (precision == "tf32")  # a CPU has no tensor cores
    losses = [
        [line["loss"] for line in numbers(tmp_path / name / "metrics.jsonl")]
        for name in ("full", "whole")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_the_last_evaluation_is_also_unconditional(tmp_path, quantizer, token_cache):
    run(tmp_path, quantizer, token_cache)
    first, last = [
        line for line in numbers(tmp_path / "metrics.jsonl") if line["kind"] == "validation"
    ]
    assert "loss_no_label" not in first
    assert last["loss_no_label"] > 0
    assert last["evaluation_flops"] == 2 * first["evaluation_flops"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_is_restored_after_its_context(precision):
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    with precision_context(precision, torch.device("cpu")):
        assert [switch.allow_tf32 for switch in switches] == [precision != "fp32"] * 2
    assert [switch.allow_tf32 for switch in switches] == before
