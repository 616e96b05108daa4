"""Compute multipliers: a known one is recovered, its interval covers, unequal grounds are told."""

import numpy as np
import pandas as pd
import pytest

from analysis.comparison.families import (
    curves,
    multiplier,
    multipliers,
    spread,
    unequal_grounds,
    with_arms,
)
from analysis.report.families import sets_compared

SIZES = {2: 3, 3: 3, 4: 3, 6: 1}  # depth: runs


def table(factor: float, noise: float = 0.0, seed: int = 0, **changes) -> pd.DataFrame:
    """Two families of equal law, of which B needs `factor` times the compute."""
    generator = np.random.default_rng(seed)
    rows = []
    for arm, more in (("A", 1.0), ("B", factor)):
        for depth, runs in SIZES.items():
            flops = 1e10 * depth**3
            for run in range(runs):
                score = 2.0 * (flops / more / 1e11) ** -0.15
                score *= np.exp(noise * generator.standard_normal())
                rows.append(
                    {
                        "arm": arm, "trial": f"{arm}-d{depth}-s{run}", "distance": score,
                        "train_flops": flops, "data": "leaves", "samples": 2048,
                        "reference": "leaves-validation", "extractor": "seeded", "guidance": 0.0,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 5.0])
def test_a_known_multiplier_is_recovered(factor):
    rows = table(factor, noise=1e-6)
    both = {(one.arm, one.against): one for one in multipliers(rows, "distance", "train_flops")}
    assert both["B", "A"].value == pytest.approx(factor, rel=1e-3)
    assert both["A", "B"].value == pytest.approx(1 / factor, rel=1e-3)
    assert both["B", "A"].told_apart == (factor != 1.0)


def test_beyond_what_both_reached_nothing_is_said():
    rows = table(2.0, noise=1e-6)
    rows.loc[rows.arm == "B", "distance"] *= 10
    one = multipliers(rows, "distance", "train_flops")[0]
    assert one.value is None
    assert not one.told_apart
    assert "not reached: B comes to" in one.said


def test_a_larger_size_that_is_no_better_is_passed_over():
    rows = table(1.0)
    rows.loc[(rows.arm == "A") & (rows.train_flops == rows.train_flops.max()), "distance"] = 9.0
    found = curves(rows, "distance", "train_flops")["A"]
    best = np.log(found.cost[found.log_score.argmin()])
    assert found.log_cost_at(np.array([found.log_score.min()]))[0] == pytest.approx(best)
    assert np.isnan(found.log_cost_at(np.array([found.log_score.min() - 0.1]))[0])


def test_the_spread_is_that_of_runs_of_one_size():
    deviation, free = spread(table(2.0, noise=0.05, seed=1), "distance", "train_flops")
    assert free == 12
    assert 0.025 < deviation < 0.1
    with pytest.raises(ValueError, match="no size was run with several seeds"):
        spread(table(2.0).drop_duplicates(["arm", "train_flops"]), "distance", "train_flops")


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_the_interval_holds_the_multiplier_as_often_as_it_says(noise):
    covered, simulations = 0, 400
    for seed in range(simulations):
        rows = table(2.0, noise=noise, seed=seed)
        found = curves(rows, "distance", "train_flops")
        deviation, free = spread(rows, "distance", "train_flops")
        one = multiplier(found["B"], found["A"], deviation, free, resamples=300, seed=seed)
        covered += one.low <= 2.0 <= one.high
    assert 0.92 <= covered / simulations <= 0.975


def test_grounds_that_differ_are_told():
    assert unequal_grounds(table(2.0)) == ()
    mixed = table(2.0)
    mixed.loc[mixed.arm == "B", "guidance"] = 1.5
    mixed.loc[mixed.arm == "B", "train_flops"] *= 2
    said = unequal_grounds(mixed)
    assert said[0] == "strengths of guidance differ: 0.0, 1.5"
    assert said[1].startswith("sizes have other budgets: A up to")


def test_a_score_that_is_no_positive_number_is_refused():
    rows = table(2.0)
    rows.loc[3, "distance"] = -0.1
    with pytest.raises(ValueError, match=r"distance = -0\.1"):
        curves(rows, "distance", "train_flops")


def test_the_report_says_the_multiplier_once_and_what_is_unequal(tmp_path):
    rows = table(2.0, noise=0.01, seed=3).assign(
        family=lambda frame: frame.arm.map({"A": "var", "B": "dit"}), tokenizer="t", raw=False,
        set="plain", depth=2, params_total=1000, images_seen=80_000, sampling_flops=1e6,
        bits_per_image=210.0, floor=0.5, loss_unit="x",
    )  # fmt: skip
    (found,) = sets_compared(rows, tmp_path, ("svg",))
    (sentence,) = found.sentences
    assert sentence.startswith("dit needs ")
    assert float(sentence.split()[2]) == pytest.approx(2.0, rel=0.2)
    assert found.cautions == ()
    assert [row["arm"] for row in found.table] == ["var"] * 4 + ["dit"] * 4
    assert (tmp_path / "families_plain.svg").exists()
    raw = rows.assign(raw=rows.family == "dit")
    assert set(with_arms(raw).arm) == {"var", "dit, raw weights"}
