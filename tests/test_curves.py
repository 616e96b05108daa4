"""Thinned training curves: which lines of a log are copied to the tracker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tracking.curves import Curve

STEPS = 1_000


def lines(every: int, evaluations: tuple[int, ...] = (), last: int = STEPS) -> list[dict]:
    train = [{"kind": "train", "step": step} for step in range(every, last + 1, every)]
    scores = [{"kind": "validation", "step": step} for step in evaluations]
    return sorted(train + scores, key=lambda line: (line["step"], line["kind"]))


def steps(chosen: list[dict], kind: str) -> list[int]:
    return [line["step"] for line in chosen if line["kind"] == kind]


def test_a_thinned_curve_keeps_its_ends_the_evaluations_and_the_lines_before_them():
    log = lines(5, evaluations=(125, 252, 500, 1000))
    chosen = Curve(STEPS, 10, {}).choose(log, ended=True)
    assert steps(chosen, "validation") == [125, 252, 500, 1000]
    evenly = [5, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    assert steps(chosen, "train") == sorted([*evenly, 125, 250])
    assert chosen == [line for line in log if line in chosen]  # in the order of the log


def test_all_points_are_every_line():
    log = lines(5, evaluations=(125, 1000))
    assert Curve(STEPS, "all", {}).choose(log, ended=False) == log


@pytest.mark.parametrize("ended", [True, False])
def test_the_last_line_of_a_training_that_stopped_early_is_kept(ended):
    chosen = Curve(STEPS, 2, {}).choose(lines(5, last=445), ended)
    assert steps(chosen, "train") == ([5, 445] if ended else [5])


def test_lines_that_a_resumed_training_writes_again_are_left_out():
    curve = Curve(STEPS, "all", {"train": 50, "validation": 40})
    chosen = curve.choose(lines(10, evaluations=(40, 60), last=70), ended=False)
    assert steps(chosen, "train") == [60, 70]
    assert steps(chosen, "validation") == [60]


@given(
    cuts=st.lists(st.integers(0, 210), max_size=8),
    points=st.one_of(st.just("all"), st.integers(1, 300)),
    evaluations=st.sets(st.integers(1, STEPS), max_size=6),
    restarts=st.booleans(),
)
def test_the_choice_does_not_depend_on_when_the_log_is_read(cuts, points, evaluations, restarts):
    log = lines(5, tuple(evaluations))
    whole = Curve(STEPS, points, {}).choose(log, ended=True)
    curve, chosen, read = Curve(STEPS, points, {}), [], 0
    for cut in sorted(cuts):
        chosen += curve.choose(log[read:cut], ended=False)
        read = max(read, cut)
        if restarts:  # another process continues, and reads the log from its beginning
            curve, read = Curve(STEPS, points, curve.copied), 0
    chosen += curve.choose(log[read:], ended=True)
    assert chosen == whole
