"""Model selection, hold-outs and counting: the true law is preferred, or none if undecided."""

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from analysis import FLOOR, PURE, REPEATED, SURFACE, FitError, fit_law
from analysis.selection.counting import by_convention, exponent_spread
from analysis.selection.holdout import CutRefused, HeldOut, leave_largest_out, rolling
from analysis.selection.influence import influence
from analysis.selection.select import aicc, choose, curvature_of
from analysis.selection.verdict import Evidence, verdict_of

SIZES = 1e6 * np.arange(1, 13.0) ** 3


def simulated(E, alpha=0.3, noise=0.003, seed=1, x=SIZES):
    return (E + (x / 1e5) ** -alpha) * np.exp(np.random.default_rng(seed).normal(0, noise, len(x)))


def test_an_irreducible_loss_is_found_even_if_the_correlation_without_it_is_high():
    found = choose(SIZES, simulated(2.0), fixed_floor=1.0)
    assert found.preferred == "floor"
    assert found.verdict.startswith("the law with E is preferred: AICc favours the law with E by ")
    assert "largest size, left out of the fit, missed by " in found.verdict
    pure, floor = found.get("pure"), found.get("floor")
    assert pure.fit.r < -0.94
    assert "Pearson r hardly differs between laws" in found.judgement.remarks[0]
    assert floor.E_interval.low < 2 < floor.E_interval.high
    assert floor.aicc < pure.aicc - 10
    assert abs(floor.held_out.relative_error) < abs(pure.held_out.relative_error)
    assert floor.rolling_error < pure.rolling_error
    assert floor.r2 > pure.r2
    assert found.curvature.t > 5
    assert "the fixed E = 1 is outside" in found.judgement.remarks[1]
    assert [row["law"] for row in found.rows()] == ["pure", "floor", "floor fixed"]


@pytest.mark.parametrize("seed", [0, 2])
def test_the_pure_law_is_preferred_if_there_is_no_irreducible_loss(seed):
    found = choose(SIZES, simulated(0.0, alpha=0.2, seed=seed))
    assert found.preferred == "pure"
    assert found.get("floor").E_interval.low == 0


def test_six_points_with_little_curvature_prefer_neither_law():
    x = np.geomspace(1e6, 2e7, 6)
    found = choose(x, simulated(0.3, noise=0.01, x=x, seed=5))
    assert found.preferred is None
    assert found.verdict.startswith("these data do not decide: ")


def test_three_points_cannot_fit_an_irreducible_loss_and_the_verdict_says_so():
    found = choose(SIZES[:3], simulated(1.0)[:3])
    assert [each.name for each in found.candidates] == ["pure"]
    assert "the law with an irreducible loss E cannot be fitted" in found.verdict
    assert found.get("pure").influence == ()
    with pytest.raises(FitError, match="NaN"):
        choose(SIZES, np.full(12, np.nan))


def test_an_error_rate_is_also_fitted_with_a_law_of_odds():
    odds = 3 * (SIZES[:8] / 1e5) ** -0.2
    found = choose(SIZES[:8], odds / (1 + odds), error_rate=True)
    assert found.get("logit").aicc < found.get("pure").aicc - 10
    assert found.get("logit").fit.alpha == pytest.approx(0.2)
    assert any(
        message.startswith("the law of the odds: AICc favours the law of the odds by ")
        for message in found.judgement.remarks
    )


def test_information_criteria_do_not_depend_on_units():
    x, y = SIZES[:7], simulated(1.0, noise=0.01)[:7]
    plain, scaled = choose(x, y), choose(x * 1e-9, y / 0.693)
    assert scaled.preferred == plain.preferred
    for one, other in zip(plain.candidates, scaled.candidates, strict=True):
        assert other.aicc == pytest.approx(one.aicc, abs=1e-6)
        assert other.rolling_error == pytest.approx(one.rolling_error, rel=1e-4)
        assert other.held_out.relative_error == pytest.approx(one.held_out.relative_error, abs=1e-7)


@pytest.mark.parametrize(("law", "k"), [(PURE, 3), (FLOOR, 4)])
def test_aicc_equals_its_formula(law, k):
    y = simulated(1.0, noise=0.01)
    correction = 2 * k + 2 * k * (k + 1) / (12 - k - 1)
    squares, absolute = (fit_law(law, SIZES, y, name) for name in ("squares", "absolute"))
    misfit = 12 * np.log(np.sum(squares.residuals**2) / 12)
    assert aicc(squares) == pytest.approx(misfit + correction)
    misfit = 24 * np.log(np.sum(np.abs(absolute.residuals)) / 12)
    assert aicc(absolute) == pytest.approx(misfit + correction)
    assert aicc(fit_law(PURE, SIZES[:4], y[:4], "squares")) is None


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2])
def test_the_huber_likelihood_is_a_density_at_its_best_width(noise):
    fit = fit_law(PURE, SIZES, simulated(0.0, noise=noise), "huber")
    loss = fit.objective.value(fit.residuals)
    s = loss.mean() * np.geomspace(0.3, 5, 3000)

    def unnormalised(r, s):
        return np.exp(-fit.objective.value(np.abs(r)) / s)

    best = s[np.argmin([_minus_two(loss, each, unnormalised) for each in s[::30]]) * 30]
    expected = _minus_two(loss, best, unnormalised) + 2 * 3 + 24 / 8
    assert aicc(fit) == pytest.approx(expected, abs=0.02)


def _minus_two(loss, s, density):
    widest = 40 * (np.sqrt(s) + s / 1e-3)
    inside = integrate.quad(density, 0, 1e-3, args=(s,))[0]
    total = 2 * (inside + integrate.quad(density, 1e-3, 1e-3 + widest, args=(s,), limit=200)[0])
    return 2 * len(loss) * np.log(total) + 2 * loss.sum() / s


def test_the_curvature_test_equals_the_t_test_of_a_quadratic_term():
    y = simulated(1.0, noise=0.01)
    found = curvature_of(SIZES, y)
    u = np.log(SIZES)
    theta, covariance = np.polyfit(u, np.log(y), 2, cov=True)
    assert found.coefficient == pytest.approx(theta[0])
    assert found.standard_error == pytest.approx(np.sqrt(covariance[0, 0]), rel=1e-6)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.t), 9))
    assert curvature_of(SIZES[:3], y[:3]) is None


@pytest.mark.parametrize("objective", ["squares", "huber"])
@pytest.mark.parametrize("law", [PURE, FLOOR])
def test_influence_equals_a_refit_without_each_point(law, objective):
    y = simulated(1.0, noise=0.01)
    fit = fit_law(law, SIZES, y, objective)
    found = influence(fit)
    assert [each.point for each in found] == list(range(12))
    for each in found[::3]:
        others = np.arange(12) != each.point
        again = fit_law(law, SIZES[others], y[others], objective)
        assert each.alpha_change == pytest.approx(again.alpha - fit.alpha, abs=1e-6)
        change = again.predict(SIZES[-1]) / fit.predict(SIZES[-1]) - 1
        assert each.prediction_change == pytest.approx(change, abs=1e-7)
        if law.floor:
            assert each.E_change == pytest.approx(again.E - fit.E, abs=1e-5)


@pytest.mark.parametrize("law", [PURE, FLOOR])
def test_influence_of_many_runs_of_a_size_equals_a_refit_without_each(law):
    # 49 runs: eight of each of six sizes, and one of a seventh.
    sizes = np.append(np.repeat(SIZES[::2], 8), SIZES[-1] * 2)
    noise = np.random.default_rng(4).normal(0, 0.01, 49)
    y = (1.0 + 30 * sizes**-0.3) * np.exp(noise)
    fit = fit_law(law, sizes, y, "squares")
    assert fit.data.points.distinct is not None
    for each in influence(fit)[::6]:
        others = np.arange(49) != each.point
        again = fit_law(law, sizes[others], y[others], "squares")
        assert each.alpha_change == pytest.approx(again.alpha - fit.alpha, abs=1e-7)
        change = np.log(again.predict(sizes) / fit.predict(sizes))
        assert each.prediction_change == pytest.approx(np.expm1(change[-1]), abs=1e-7)
        variance = float(fit.residuals @ fit.residuals) / (49 - fit.free)
        distance = float(change @ change) / (fit.free * variance)
        assert each.distance == pytest.approx(distance, rel=1e-4)


def test_influence_of_a_straight_line_equals_cooks_distance():
    y = simulated(0.0, noise=0.01)
    fit = fit_law(PURE, SIZES, y, "squares")
    u = np.log(SIZES) - np.log(SIZES).mean()
    leverage = 1 / 12 + u**2 / (u @ u)
    variance = fit.residuals @ fit.residuals / 10
    expected = fit.residuals**2 / (2 * variance) * leverage / (1 - leverage) ** 2
    assert [each.distance for each in influence(fit)] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(FitError, match="no degree of freedom"):
        influence(fit_law(PURE, SIZES[:3], y[:3]))


def evidence(aicc=0.0, held_out=0.0, scatter=0.001, E_span=None):
    return Evidence(aicc, held_out, None, scatter, 1.0, E_span, -0.99)


def test_the_words_name_the_law_that_each_criterion_favours():
    """A difference with a sign alone, "AICc +30.0 for the law with E", was read as support."""
    against = verdict_of(evidence(0, 0.002), evidence(30, -0.03, 0.001, (0, 0.1)), None, 3.0)
    assert "AICc favours the law without E by 30" in against.summary
    neither = verdict_of(evidence(1), evidence(0, 0.0, 0.001, (1, 2)), None, 3.0)
    assert "AICc favours neither law (difference 1.0)" in neither.summary
    text = "missed by -3.00% with E, +0.20% without E"
    assert text in against.summary


@pytest.mark.parametrize(
    ("pure", "floor", "bend", "preferred", "doubt"),
    [
        ((10, -0.03), (0, 0.002, 0.001, (1, 2)), (5, 0.001), "floor", ""),
        ((0, 0.002), (5, -0.03, 0.001, (0, 0.1)), (0.1, 0.9), "pure", ""),
        ((1, -0.03), (0, 0.002, 0.001, (1, 2)), (5, 0.001), None, "AICc differs by less than 2"),
        ((10, 0.002), (0, -0.03, 0.001, (1, 2)), (5, 0.001), None, "the criteria disagree"),
        (
            (0, 0.001),
            (9, 0.001, 0.001, (0, 2.5)),
            (1, 0.3),
            None,
            "may be 83% of the lowest measured loss",
        ),
        (
            (0, 0.001),
            (9, 0.001, 0.001, (0, np.inf)),
            (1, 0.3),
            None,
            "may be nearly all of the lowest measured loss",
        ),
        ((0, 0.001), (9, 0.001, 0.001, (0, 0.1)), (-4, 0.002), None, "curves downwards"),
        ((0, 0.002), (5, -0.0025, 0.001, (0, 0.1)), (0.1, 0.9), "pure", ""),  # within scatter
    ],
)
def test_a_law_is_preferred_only_if_all_evidence_agrees(pure, floor, bend, preferred, doubt):
    found = verdict_of(evidence(*pure), evidence(*floor), bend, least_loss=3.0)
    assert found.preferred == preferred
    assert doubt in found.summary


def test_rolling_predicts_every_size_above_every_cut():
    y = simulated(2.0, noise=0.0)
    found = rolling(FLOOR, SIZES[:8], y[:8], "squares", intervals=False)
    assert {(each.sizes, each.points[0]) for each in found} == {
        (cut, point) for cut in range(4, 8) for point in range(cut, 8)
    }
    for each in found:
        assert each.relative_error == pytest.approx(0, abs=1e-6)
        assert (each.cut, each.x) == (SIZES[each.sizes - 1], SIZES[each.points[0]])
    assert all(
        each.relative_error < 0 for each in rolling(PURE, SIZES, simulated(2.0), intervals=False)
    )  # a straight line falls too far


def test_a_hold_out_records_whether_its_interval_covered():
    y = simulated(2.0)[:6]
    found = rolling(FLOOR, SIZES[:6], y, "squares", max_cuts=1)
    assert len(found) == 2
    for each in found:
        assert each.interval.level == 0.95
        assert each.covered == (each.interval.low <= each.measured <= each.interval.high)
    y[-1] *= 1.5
    assert rolling(PURE, SIZES[:6], y, "squares")[-1].covered is False


def test_a_cut_with_too_few_runs_is_recorded_with_the_reason():
    N, D = np.repeat(SIZES, 3), np.tile([1e9, 4e9, 2e10], 12)
    D[:18] = N[:18] * 20  # below, N and D rise together
    y = 1.7 + (N / 1e5) ** -0.3 + (D / 1e6) ** -0.25
    kept = dict(order=N, intervals=False, max_cuts=4)
    found = rolling(SURFACE, (N, D), y, "squares", **kept)
    refused = [each for each in found if isinstance(each, CutRefused)]
    assert refused
    assert "log N and log D are collinear" in refused[0].reason
    held = [each for each in found if isinstance(each, HeldOut)]
    assert max(abs(each.relative_error) for each in held) < 1e-3
    last = leave_largest_out(SURFACE, (N, D), y, "squares", order=N * D)
    assert last.points == (35,)
    assert last.x == N[-1] * D[-1]


def test_several_runs_of_the_largest_size_count_as_their_mean():
    x, y = np.repeat(SIZES[:6], 2), np.repeat(simulated(0.0)[:6], 2)
    y[-2:] = 0.1, 0.3
    found = leave_largest_out(PURE, x, y, "squares")
    assert found.measured == pytest.approx(0.2)
    assert (found.sizes, found.runs, found.points) == (5, 10, (10, 11))
    y[0] = np.nan
    with pytest.raises(FitError, match="point 0 is nan"):
        leave_largest_out(PURE, x, y)


def table(**columns):
    w, d = 64.0 * np.arange(2, 14, 2), np.arange(2.0, 14, 2)
    frame = pd.DataFrame(
        {
            "params_embedding": 1700 * w,
            "params_attention": 4 * w * w * d,
            "params_mlp": 8 * w * w * d,
            "params_adaln": 6 * w * w * d,
            "params_head": 4096 * w,
            "params_blocks": 18 * w * w * d,
        }
    )
    frame["params_total"] = frame.params_blocks + frame.params_embedding + frame.params_head
    frame["train_flops"] = frame.params_mlp**1.1
    frame["train_flops_6n_total"] = frame.params_total * 1e6
    frame["val_loss"] = (frame.params_blocks / 1e3) ** -0.2
    return frame.assign(**columns)


def test_the_exponent_is_refitted_for_every_counting_convention_of_the_table():
    found = {(each.variable, each.name): each for each in by_convention(table(), "val_loss", PURE)}
    blocks, total = found["N", "blocks"], found["N", "total"]
    assert blocks.alpha == pytest.approx(0.2)
    assert blocks.ratio == 1
    assert total.alpha > 0.21  # embeddings and head are a larger share of small models
    assert total.ratio == pytest.approx(total.alpha / blocks.alpha)
    assert total.interval.low < total.alpha < total.interval.high
    assert found["N", "attention and MLP"].alpha == pytest.approx(0.2)
    assert found["N", "without embeddings and head"].alpha == pytest.approx(0.2)
    assert found["C", "model FLOPs"].alpha == pytest.approx(0.2 / 1.1)
    missing = found["C", "dense mask"]
    assert missing.fit is None
    assert "column missing: train_flops_dense_mask" in missing.refused
    message = exponent_spread(tuple(found.values()), "N")
    assert "0.2 (" in message
    assert "without AdaLN" in message


def test_all_counting_conventions_of_a_variable_use_the_same_runs():
    flops = table().train_flops.where(np.arange(6) != 2)
    total = table().train_flops_6n_total.where(np.arange(6) != 4)
    frame = table(train_flops=flops, train_flops_6n_total=total)
    found = {(each.variable, each.name): each for each in by_convention(frame, "val_loss", PURE)}
    assert found["C", "model FLOPs"].fit.points == 5
    assert found["C", "model FLOPs"].rows_left_out == 1
    assert found["C", "6 N D, N total"].refused == "unknown (NaN) in 1 of 5 rows"
    assert found["N", "total"].fit.points == 6
    with pytest.raises(ValueError, match="no column 'fid'"):
        by_convention(frame, "fid", PURE)


def test_points_use_the_chosen_counting_and_surfaces_the_data_of_the_table():
    def half(rows, column):
        return rows[rows[column] > rows[column].median()]

    found = by_convention(table(), "val_loss", PURE, select=half)
    assert found[0].fit.points == 3
    refused = by_convention(table(), "val_loss", SURFACE)
    assert {each.variable for each in refused} == {"N"}
    assert "needs the columns tokens_seen" in refused[0].refused
    assert "epochs" in by_convention(table(tokens_seen=1e9), "val_loss", REPEATED)[0].refused
