"""The frontier: its points are optimal, censored points are marked."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.compute_optimal.allocation import approaches
from analysis.compute_optimal.cost import CostError, cost_of, six_nd
from analysis.compute_optimal.frontier import (
    FrontierError,
    MixedSchedules,
    frontier,
    non_dominated,
    run_ends,
)
from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR
from analysis.table.runs import run_names

SIZES = np.geomspace(1e6, 1e9, 10)


def surface(N, D):
    return 1.8 + 400 * N**-0.34 + 410 * D**-0.28


def curves(sizes=SIZES, noise=0.0, luck=0.0, seeds=1, points=60, seed=0, **changes):
    """Runs of 200 tokens per weight at a constant rate; `luck` is an error that a run shares."""
    generator = np.random.default_rng(seed)
    rows = []
    for N in sizes:
        for s in range(seeds):
            step = np.unique(np.geomspace(1, 1000, points).astype(int))
            D = 200 * N * step / 1000
            off = generator.normal(0, luck) + generator.normal(0, noise, len(step))
            rows.append(
                pd.DataFrame(
                    {
                        "trial": f"N{N:.3g}-s{s}", "seed": s, "step": step, "steps": 1000,
                        "tokens_seen": D, "params_blocks": N, "train_flops": 6 * N * D,
                        "val_loss": surface(N, D) * np.exp(off), "schedule": "constant", **changes,
                    }
                )
            )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def grid(lengths=(5, 10, 20, 40, 80), **changes):
    """Final points of runs with a decaying schedule, several lengths per size."""
    rows = curves(schedule="cosine", **changes)
    parts = []
    for tokens in lengths:
        part = rows[rows.step == 1000].copy()
        part["tokens_seen"] = tokens * part.params_blocks
        part["train_flops"] = 6 * part.params_blocks * part.tokens_seen
        part["val_loss"] = surface(part.params_blocks, part.tokens_seen)
        part["trial"] += f"-{tokens}"
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=30))
def test_frontier_points_are_not_dominated_and_all_others_are(pairs):
    points = pd.DataFrame(pairs, columns=["train_flops", "val_loss"])
    kept = non_dominated(points, "val_loss").to_numpy()
    for C, L in pairs:
        beats = (kept[:, 0] <= C) & (kept[:, 1] <= L)
        assert beats.any()
    for C, L in kept:
        assert ((kept[:, 0] <= C) & (kept[:, 1] <= L)).sum() == 1


def test_the_order_of_rows_does_not_matter():
    rows = curves(noise=0.003, luck=0.004, seeds=2)
    one, other = (frontier(t, "val_loss") for t in (rows, rows.sample(frac=1, random_state=3)))
    pd.testing.assert_frame_equal(one.rows(), other.rows())


def test_the_frontier_of_curves_is_the_smallest_loss_for_each_compute():
    found = frontier(curves(np.geomspace(1e6, 1e9, 60), points=200), "val_loss", warm_up=0.1)
    best = 1.8 + optimal_reducible(found.flops)
    own = ~found.censored
    assert own.sum() > 20
    cut_short = ["best from the start" in why for why in found.why]  # because of the warm-up
    assert np.log(found.loss / best)[cut_short].max() > 0.003
    assert found.loss[own] == pytest.approx(best[own], rel=2e-3)
    assert (found.loss[own] > best[own] * (1 - 1e-6)).all()


def optimal_reducible(C):
    D = np.geomspace(1e5, 1e13, 4000)
    N = C[:, None] / (6 * D)
    return (400 * N**-0.34 + 410 * D**-0.28).min(1)


def test_a_size_that_was_best_when_it_stopped_is_censored_and_so_are_the_edges():
    rows = curves()
    stopped = np.isclose(rows.params_blocks, SIZES[4]) & (rows.step > 200)
    found = frontier(rows[~stopped], "val_loss", warm_up=0)
    why = dict(zip(np.round(np.log(found.size), 6), found.why, strict=True))
    assert "still the best when its record ended" in why[round(np.log(SIZES[4]), 6)]
    assert all("smallest" in w for w in np.array(found.why)[found.size == SIZES[0]])
    assert found.censored[found.size == SIZES[-1]].all()
    assert "still the best when its record ended" in found.why[-1]
    assert not found.censored[np.isclose(found.size, SIZES[7])].any()
    last = found.flops[np.isclose(found.size, SIZES[4])].max()
    after = found.flops > last
    assert any("when its record ended, may be better" in w for w in np.array(found.why)[after])


def test_runs_of_one_length_give_a_bound_everywhere():
    found = frontier(grid(lengths=(20,)), "val_loss")
    assert found.censored.all()
    assert len(found.flops) == len(SIZES)
    assert not found.within_runs


def test_intermediate_points_of_a_decaying_run_are_left_out():
    rows = curves(schedule="cosine")
    assert frontier(rows, "val_loss").step.tolist() == [1000] * len(SIZES)
    assert set(frontier(rows, "val_loss", within_runs=True).step) != {1000}
    assert frontier(rows.assign(schedule="warm-up 0.02, constant"), "val_loss").within_runs
    assert frontier(rows.drop(columns="schedule"), "val_loss").schedule == "not recorded"


def test_a_run_that_has_not_ended_is_left_out_with_its_reason():
    rows = curves(schedule="cosine")
    cut = rows[(rows.trial != rows.trial.iloc[0]) | (rows.step < 900)]
    found = frontier(cut, "val_loss")
    assert len(found.flops) == len(SIZES) - 1
    assert any("has not ended" in reason for reason in found.dropped)
    assert len(run_ends(cut, "val_loss")) == len(SIZES) - 1


def test_several_schedules_are_refused_unless_one_is_selected():
    rows = pd.concat([curves(SIZES[::2]), curves(SIZES[1::2], schedule="cosine")])
    with pytest.raises(MixedSchedules, match=r"constant \(5 runs\), cosine \(5 runs\)"):
        frontier(rows, "val_loss")
    found = frontier(rows, "val_loss", schedule="cosine")
    assert found.schedule == "cosine"
    assert sum("another schedule" in reason for reason in found.dropped) == 5
    with pytest.raises(FrontierError, match="no run has the schedule linear"):
        frontier(rows, "val_loss", schedule="linear")


def isoflop_runs(seeds: int = 3) -> pd.DataFrame:
    """Runs of six budgets, four sizes each; 6 N D of whole numbers, and one name for all seeds."""
    rows = []
    for budget in np.geomspace(1e18, 1e21, 6):
        best = np.sqrt(budget / 120)
        for N in (best * np.geomspace(0.3, 3, 4)).astype(int):
            D = int(budget / 6 / N)
            rows += [
                {
                    "trial": f"C{budget:.0e}", "seed": seed, "params_blocks": N, "tokens_seen": D,
                    "train_flops": 6.0 * N * D, "val_loss": surface(N, D) * (1 + 1e-3 * seed),
                }
                for seed in range(seeds)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def test_budgets_that_differ_by_rounding_are_one_compute():
    runs = isoflop_runs(seeds=1)
    assert runs.train_flops.nunique() > 12
    found = frontier(runs, "val_loss")
    assert len(found.flops) == 6
    # The lowest loss of each budget, whatever the order of the rounding.
    lowest = runs.groupby(runs.train_flops.map("{:.1e}".format)).val_loss.min()
    np.testing.assert_allclose(np.sort(found.loss), np.sort(lowest))


def test_runs_that_share_a_name_all_count():
    """The best seed of each budget is on the frontier, and the approaches use every run."""
    runs = isoflop_runs()
    found = frontier(runs.sample(frac=1, random_state=0), "val_loss")
    assert len(found.candidates.runs) == len(runs) == 72
    np.testing.assert_allclose(found.loss, frontier(isoflop_runs(seeds=1), "val_loss").loss)
    assert len(run_ends(runs, "val_loss")) == 72
    both = approaches(runs, "val_loss", resamples=50)
    assert both.fit is not None
    assert both.fit.points == 72
    assert {name for name in found.trial if "seed 0" in name} == set(found.trial)


def test_runs_that_differ_in_no_column_are_told_apart_by_their_order():
    runs = isoflop_runs().drop(columns="seed")
    names = run_names(runs)
    assert names.nunique() == 72
    assert names.iloc[:2].str.endswith((" (1)", " (2)")).all()
    # Rows of one run at several steps stay one run.
    assert run_names(curves(sizes=SIZES[:2], points=5)).nunique() == 2


def test_points_with_unknown_compute_or_in_warm_up_are_dropped_with_a_reason():
    rows = curves()
    rows.loc[rows.trial == "N1e+07-s0", "train_flops"] = np.nan
    found = frontier(rows, "val_loss")
    assert "N1e+07-s0" not in found.trial
    assert "N1e+07-s0: 49 rows: train_flops is not a positive number" in found.dropped
    assert any("warm-up" in reason for reason in found.dropped)
    assert found.step.min() >= 49
    assert frontier(rows, "val_loss", least_flops=1e18).flops.min() >= 1e18
    with pytest.raises(FrontierError, match="no point of val_loss is left"):
        frontier(rows, "val_loss", least_flops=1e30)
    with pytest.raises(FrontierError, match="columns missing: params_total, loss"):
        frontier(rows, "loss", params="params_total")


def test_smoothing_removes_noise_and_keeps_the_curve():
    exact = frontier(curves(points=400), "val_loss", per_decade=5)
    smooth = frontier(curves(points=400), "val_loss", smoothing=0, per_decade=5)
    assert exact.loss == pytest.approx(smooth.loss, rel=1e-3)

    def too_low(smoothing):
        """The bias of the frontier below the noise-free curves by the noise, in logs."""
        found = frontier(curves(points=200, noise=0.02, seeds=6), "val_loss", smoothing=smoothing)
        return np.mean(np.log(found.loss / surface(found.size, found.tokens)))

    assert too_low(0) < -0.02
    assert -0.012 < too_low(0.05) < 0


def test_there_are_k_points_per_decade_and_the_last_has_the_most_compute():
    rows = curves(points=400)
    found = frontier(rows, "val_loss", per_decade=4)
    assert np.diff(np.log10(found.flops)) == pytest.approx(0.25)
    assert found.flops[-1] == pytest.approx(rows.train_flops.max())
    assert len(found.flops) > 15


def test_the_frontier_does_not_depend_on_the_number_of_evaluations():
    many, few = (frontier(curves(points=p), "val_loss", smoothing=0) for p in (800, 100))
    assert many.flops[-45:] == pytest.approx(few.flops[-45:])
    assert many.loss[-45:] == pytest.approx(few.loss[-45:], rel=1e-3)
    assert (many.size[-45:] == few.size[-45:]).mean() > 0.9


def test_the_checklist_states_how_points_were_selected():
    message = frontier(curves(), "val_loss").checklist()
    assert message["schedule"] == "constant"
    assert (message["smoothing"], message["warm_up"], message["per_decade"]) == (0.05, 0.05, 10)
    assert message["points"] >= message["censored"] > 0


# The law ---------------------------------------------------------------------------------------


def test_the_law_along_the_frontier_has_the_surfaces_exponent_and_floor():
    found = frontier(curves(np.geomspace(1e6, 1e9, 40), points=150), "val_loss")
    fitted = found.of_law
    law = fit_law(FLOOR, found.flops[fitted], found.loss[fitted], "squares")
    assert law.alpha == pytest.approx(0.34 * 0.28 / 0.62, abs=0.003)
    assert pytest.approx(1.8, abs=0.05) == law.E


# Cost ------------------------------------------------------------------------------------------


def counted(sizes=SIZES):
    """FLOPs per token of a network with a head: not a power of N."""
    D = 20 * sizes
    return pd.DataFrame(
        {
            "params_blocks": sizes,
            "tokens_seen": D,
            "train_flops": (6 * sizes + 3e4 * sizes**0.5) * D,
        }
    )


def test_the_cost_of_a_table_interpolates_its_rows_and_can_be_inverted():
    rows = counted()
    cost = cost_of(pd.concat([rows, rows]).sample(frac=1, random_state=0))
    assert cost(rows.params_blocks, rows.tokens_seen) == pytest.approx(rows.train_flops.to_numpy())
    N, C = np.geomspace(1e4, 1e12, 50), 1e20
    assert cost(N, cost.tokens(N, C)) == pytest.approx(np.full(50, C))
    between = np.geomspace(*SIZES[[0, -1]], 200)
    truth = 6 * between + 3e4 * between**0.5
    assert cost.per_token(between) == pytest.approx(truth, rel=1e-3)
    step = 1e-5
    slope = np.log(cost.per_token(N * (1 + step)) / cost.per_token(N)) / np.log1p(step)
    assert cost.exponent(N) == pytest.approx(slope, abs=1e-3)
    assert "10 sizes" in cost.name


def test_the_cost_6nd_states_which_parameters_it_counts():
    assert six_nd()(2.0, 3.0) == pytest.approx(36)
    assert six_nd(2).tokens(5.0, 100.0) == pytest.approx(10)
    assert "forward and backward" in six_nd().name
    with pytest.raises(CostError, match="positive"):
        six_nd(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t.assign(train_flops=t.train_flops * 1.02)]), "differ by 2.0%"),
        (lambda t: t.assign(train_flops=t.tokens_seen / t.params_blocks), "do not rise"),
        (lambda t: t.iloc[:1], "only"),
        (lambda t: t.assign(train_flops=np.nan), "no row has"),
        (lambda t: t.drop(columns="tokens_seen"), "columns tokens_seen"),
    ],
)
def test_an_invalid_cost_is_refused(change, message):
    with pytest.raises(CostError, match=message):
        cost_of(change(counted()))


def test_sizes_that_differ_by_rounding_are_one_size():
    rows = counted()
    hair = rows.assign(params_blocks=rows.params_blocks * (1 + 1e-6))
    assert len(cost_of(pd.concat([rows, hair])).sizes) == len(SIZES)
