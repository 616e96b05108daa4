"""Compute multipliers: a known one is recovered, its interval covers, unequal grounds are told."""

import numpy as np
import pandas as pd
import pytest

from analysis.comparison.conditions import (
    conditions,
    crossed,
    of_pairs,
    order_in_words,
    places,
    reversals,
    robustness,
)
from analysis.comparison.families import (
    IncomparableArms,
    curves,
    multiplier,
    multipliers,
    spread,
    unequal_grounds,
)
from analysis.report.families import families_shown

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
                        "arm": arm, "depth": depth, "width": 8 * depth,
                        "trial": f"{arm}-d{depth}-s{run}", "distance": score,
                        "train_flops": flops, "data": "leaves", "samples": 2048,
                        "reference": "leaves-validation", "extractor": "seeded", "guidance": 0.0,
                        "extractor_sha256": "e", "tokenizer_recipe": "r",
                    }
                )  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 5.0])
def test_a_known_multiplier_is_recovered(factor):
    rows = table(factor, noise=1e-6)
    both = {(one.arm, one.against): one for one in multipliers(rows, "distance", "train_flops")}
    assert both["B", "A"].value == pytest.approx(factor, rel=1e-3)
    assert both["A", "B"].value == pytest.approx(1 / factor, rel=1e-3)
    assert both["B", "A"].distinguishable == (factor != 1.0)


def test_beyond_what_both_reached_nothing_is_said():
    rows = table(2.0, noise=1e-6)
    rows.loc[rows.arm == "B", "distance"] *= 10
    one = multipliers(rows, "distance", "train_flops")[0]
    assert one.value is None
    assert not one.distinguishable
    assert "not reached: B comes to" in one.said


def test_a_larger_size_that_is_no_better_is_passed_over():
    rows = table(1.0)
    rows.loc[(rows.arm == "A") & (rows.train_flops == rows.train_flops.max()), "distance"] = 9.0
    found = curves(rows, "distance", "train_flops")["A"]
    best = np.log(found.cost[found.log_score.argmin()])
    assert found.log_cost_at(np.array([found.log_score.min()]))[0] == pytest.approx(best)
    assert np.isnan(found.log_cost_at(np.array([found.log_score.min() - 0.1]))[0])


def test_the_spread_is_that_of_runs_of_one_size():
    deviation, free = spread(table(2.0, noise=0.05, seed=1), "distance")
    assert free == 12
    assert 0.025 < deviation < 0.1
    with pytest.raises(ValueError, match="no size was run with several seeds"):
        spread(table(2.0).drop_duplicates(["arm", "train_flops"]), "distance")


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "noise"), [(2.0, 0.01), (6.5, 0.067), (2.0, 0.133)])
def test_the_interval_holds_the_multiplier_as_often_as_it_says(factor, noise):
    covered, told, simulations = 0, 0, 400
    for seed in range(simulations):
        rows = table(factor, noise=noise, seed=seed)
        found = curves(rows, "distance", "train_flops")
        deviation, free = spread(rows, "distance")
        one = multiplier(found["B"], found["A"], deviation, free, resamples=200, seed=seed)
        if one.value is None or one.narrow:  # said in the report
            continue
        told += 1
        covered += one.low <= factor <= one.high
    assert told > simulations / 2
    assert 0.92 <= covered / told <= 0.975


def test_a_factor_of_arms_that_hardly_overlap_is_marked():
    rows = table(15.0, noise=0.05, seed=3)
    one = {(m.arm, m.against): m for m in multipliers(rows, "distance", "train_flops")}["B", "A"]
    assert one.narrow
    assert "the true factor may be larger" in one.said


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


FAMILIES = {"A": "var", "B": "dit"}


def scored(factor: float = 2.0, **changes) -> pd.DataFrame:
    """Rows as images.parquet has them."""
    rows = table(factor, noise=0.01, seed=3).assign(
        family=lambda frame: frame.arm.map(FAMILIES), tokenizer="t", raw=False, chooses=False,
        set="plain", averaged=lambda frame: frame.family == "dit", sampling_seed=0,
        params_total=lambda frame: 1000 * frame.depth, images_seen=80_000, epochs=1.0,
        sampling_flops=lambda frame: 1e6 * frame.depth, bits_per_image=210.0,
        floor=0.05, floor_stderr=0.001, loss_unit="x", distance_stderr=0.01,
        settings="no guidance", sweep="s", seed=0, latency_seconds=np.nan,
        images_per_second=np.nan,
    )  # fmt: skip
    rows = rows.assign(
        train_flops_dense_mask=rows.train_flops * 1.1, train_flops_6n_total=rows.train_flops * 0.9
    )
    return rows.drop(columns="arm").assign(**changes)


def raw_of(rows: pd.DataFrame, factor: float) -> pd.DataFrame:
    """The last weights of DiT in a set of their own, `factor` times as far away."""
    own = rows[rows.family == "dit"]
    return own.assign(raw=True, set="plain-raw", distance=own.distance * factor)


def test_the_section_begins_with_what_can_be_cited(tmp_path):
    shown = families_shown(scored(), tmp_path, ("svg",))
    (sentence,) = shown.heads[0].sentences
    assert sentence.startswith("dit needs ")
    assert float(sentence.split()[2]) == pytest.approx(2.0, rel=0.2)
    assert shown.orders == [
        {"network that looks": "seeded", "nearest to real images first": "var < dit"}
    ]
    assert shown.heads[0].cautions == ()
    assert shown.heads[0].undetermined == ()
    assert shown.partial == ""
    assert [row["arm"] for row in shown.heads[0].table] == ["var"] * 4 + ["dit"] * 4
    assert (tmp_path / "families_plain-seeded-network.svg").exists()
    (row,) = shown.currencies
    assert row["pair"] == "dit over var"
    assert row["training FLOPs"].startswith("2")
    assert shown.holds.startswith("None of the 3 other ways")


def test_networks_and_last_weights_are_conditions_of_their_own(tmp_path):
    rows = scored()
    both = pd.concat([rows, rows.assign(extractor="classifier"), raw_of(rows, 0.5)])
    found = conditions(both)
    assert [one.name for one in found] == [
        "plain, seeded network",
        "plain, last weights, seeded network",
        "plain, classifier network",
    ]
    assert set(found[1].rows.arm) == {"var", "dit"}
    assert found[1].rows[found[1].rows.arm == "dit"].raw.all()
    held = robustness(found)
    assert held.order.tolist() == ["var < dit"] * 4 + ["dit < var"] * 4 + ["var < dit"] * 4
    turned = (("var", "dit"),)
    assert held.reversed.tolist() == [()] * 4 + [turned] * 4 + [()] * 4
    assert held.measure.tolist() == (["distance"] * 3 + ["above reconstructions"]) * 3
    below = robustness(conditions(rows.assign(floor=9.0)))  # no sample is above such a floor
    assert set(below.measure) == {"distance"}
    shown = families_shown(both, tmp_path, ("svg",), unscored=("var-d6/plain-seeded",))
    assert shown.holds.startswith("The first row does not hold: 4 of the 11 other ways")
    assert "(var and dit)" in shown.holds
    assert shown.partial.startswith("Not finished: 1 sets of samples are not scored yet (var-d6/")
    assert [one.name for one in shown.heads] == [found[0].name, found[2].name]
    assert [one.name for one in shown.rest] == [found[1].name]


def test_settings_are_chosen_by_other_samples_than_those_reported():
    rows = scored()
    grid = []
    for settings, guidance, lucky in (("g 0", 0.0, 1.0), ("g 1", 1.0, 0.8), ("g 2", 2.0, 1.5)):
        drawn = rows.assign(settings=settings, guidance=guidance, distance=rows.distance * lucky)
        grid.append(drawn.assign(set=f"report {settings}"))
        # In what chooses, DiT is best with g 2: that must be followed, though the rest says g 1.
        other = np.where(rows.family == "dit", 0.1, 1.0) if settings == "g 2" else 1.0
        grid.append(drawn.assign(set=f"choose {settings}", chooses=True, sampling_seed=1,
                                 distance=lambda f, o=other: f.distance * o))  # fmt: skip
    best = conditions(pd.concat(grid))[-1]
    assert best.set == "best of the grid"
    assert best.settings == {"var": "g 1", "dit": "g 2"}
    assert not best.rows.chooses.any()


def test_other_rulers_are_refused_unless_asked_for(tmp_path):
    rows = scored()
    rows.loc[rows.family == "dit", "data"] = "other-leaves"
    (condition,) = conditions(rows)
    with pytest.raises(IncomparableArms, match="images differ: leaves, other-leaves"):
        of_pairs(condition)
    (asked,) = of_pairs(condition, unequal=True)
    assert asked.value == pytest.approx(2.0, rel=0.2)
    shown = families_shown(rows, tmp_path, ("svg",))
    assert shown.heads[0].sentences[0].startswith("Not compared, for the arms were measured by")
    assert "images differ: leaves, other-leaves" in shown.heads[0].cautions
    drawn = (tmp_path / "families_plain-seeded-network.svg").read_text()
    assert "Not equal: images differ" in drawn


def test_a_tie_is_called_one():
    rows = table(1.0, noise=0.05, seed=2)
    (condition,) = conditions(scored().assign(distance=rows.distance.to_numpy()))
    first, other = placed = places(condition)
    assert not first.distinguishable_from(other)
    assert "≈" in order_in_words(placed)
    low, high = first.interval
    assert low < first.distance < high
    assert reversals(placed, tuple(reversed(placed))) == ()


def test_curves_that_cross_are_told(tmp_path):
    rows = scored(3.0)
    last = (rows.family == "dit") & (rows.depth == 6)
    rows.loc[last, "distance"] *= 0.6
    (condition,) = conditions(rows)
    (pair,) = of_pairs(condition)
    assert pair.arm == "dit"
    assert crossed(pair, places(condition))
    (sentence,) = families_shown(rows, tmp_path, ("svg",)).heads[0].sentences
    assert sentence.endswith("the curves cross.")
    (straight,) = conditions(scored(3.0))
    assert not crossed(of_pairs(straight)[0], places(straight))


def test_the_error_of_a_floor_counts_where_it_is_subtracted():
    (condition,) = conditions(scored(3.0))
    (sure,) = conditions(scored(3.0, floor_stderr=0.0))
    (vague,) = conditions(scored(3.0, floor_stderr=1.0))
    assert places(sure, score="distance") == places(vague, score="distance")
    assert order_in_words(places(sure, score="above")) == "var < dit"
    assert order_in_words(places(vague, score="above")) == "var ≈ dit"
    assert order_in_words(places(condition, score="above")) == "var < dit"


def test_arms_of_one_size_whose_steps_were_rounded_are_at_one_budget():
    rows = scored()
    rows = rows[rows.train_flops == rows.train_flops.min()]
    rows.loc[rows.family == "dit", "train_flops"] *= 1.002
    (condition,) = conditions(rows)
    assert [one.arm for one in places(condition)] == ["var", "dit"]
    rows.loc[rows.family == "dit", "train_flops"] *= 2
    (condition,) = conditions(rows)
    assert [one.arm for one in places(condition)] == ["var"]
    assert len(robustness((condition,)).counted) == 2  # the others count it as before


def test_a_first_size_that_is_not_the_worst_loses_no_pair():
    rows = table(1.0, noise=1e-6)
    rows.loc[(rows.arm == "A") & (rows.depth == 3), "distance"] *= 2
    for one in multipliers(rows, "distance", "train_flops"):
        assert one.value is None or np.isfinite(one.value)
    rows = scored().assign(distance=rows.distance.to_numpy())
    assert len(of_pairs(conditions(rows)[0])) == 1


def test_a_cost_that_does_not_grow_with_size_is_no_currency(tmp_path):
    with pytest.raises(ValueError, match="images_seen does not grow with the size"):
        curves(scored().assign(arm="A"), "distance", "images_seen")
    (row,) = families_shown(scored(), tmp_path, ("svg",)).currencies
    assert row["images seen"] == "–"


def test_last_weights_are_not_mixed_with_averaged_ones():
    rows = scored()
    some = raw_of(rows, 0.5).iloc[:3]
    assert [one.weights for one in conditions(pd.concat([rows, some]))] == ["as published"]
    twice = pd.concat([rows, raw_of(rows, 0.5), raw_of(rows, 0.5).assign(set="again-raw")])
    last = conditions(twice)[1].rows
    assert len(last) == len(rows)


def test_distances_by_other_weights_of_a_network_have_no_order(tmp_path):
    rows = scored()
    rows.loc[rows.family == "dit", "extractor_sha256"] = "another"
    shown = families_shown(rows, tmp_path, ("svg",))
    assert shown.orders[0]["nearest to real images first"].startswith("not compared: weights of")
    assert shown.robustness == []
    assert "cannot be told" in shown.holds


def test_a_table_of_an_earlier_version_says_so():
    with pytest.raises(ValueError, match="has no chooses, averaged: it is of an earlier version"):
        conditions(scored().drop(columns=["chooses", "averaged"]))


def test_where_samples_were_timed_the_section_has_their_frontier(tmp_path):
    assert families_shown(scored(), tmp_path, ("svg",)).frontier is None
    timed = scored(latency_seconds=lambda rows: rows.train_flops * 1e-12, images_per_second=90.0)
    shown = families_shown(timed, tmp_path, ("svg",))
    assert shown.frontier is not None
    drawn = (tmp_path / "families_frontier.svg").read_text()
    assert "seconds of one sample alone" in drawn
    assert "seconds an image, best batch" in drawn
