"""Compute multipliers: known factors are recovered, intervals cover, incomparable runs refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.interpolate import CubicSpline

from analysis import FLOOR, LOGIT, PURE, SURFACE, FitError
from analysis.comparison.compute_multiplier import Family, multiplier, multiplier_of_tables
from analysis.comparison.joint_fit import best_shift, pool_points
from analysis.comparison.separate import size_for
from analysis.fitting.objectives import HUBER, SQUARES

A_COMPUTE, B_COMPUTE = np.geomspace(1e6, 1e9, 7), np.geomspace(2e6, 3e9, 7)


def loss(x, E=2.0, alpha=0.3):
    return E + (x / 1e5) ** -alpha


def families(m=3.0, E=2.0, noise=0.0, seed=0, alpha=0.3, alpha_b=None):
    """AR needs `m` times the compute of VAR for the same loss."""
    scatter = np.exp(np.random.default_rng(seed).normal(0, noise, (2, 7)))
    return (
        Family("VAR", A_COMPUTE, loss(A_COMPUTE, E, alpha) * scatter[0]),
        Family("AR", B_COMPUTE, loss(B_COMPUTE / m, E, alpha_b or alpha) * scatter[1]),
    )


@pytest.mark.parametrize(
    ("law", "objective"), [(PURE, "squares"), (PURE, "huber"), (FLOOR, "squares")]
)
def test_a_noise_free_factor_is_recovered_jointly_and_at_every_loss(law, objective):
    found = multiplier(*families(E=2.0 * law.floor), law, objective, resamples=20)
    assert found.value == pytest.approx(3, rel=1e-6)
    assert found.interval.low == pytest.approx(3, rel=1e-4)
    assert found.interval.high == pytest.approx(3, rel=1e-4)
    assert [each.value for each in found.at] == pytest.approx([3] * 5, rel=1e-4)
    assert found.shape.admissible
    assert found.joint.alpha == pytest.approx(0.3, rel=1e-5)


@settings(max_examples=6, deadline=None)
@given(m=st.floats(0.05, 20), unit_x=st.floats(1e-9, 1e9), unit_y=st.floats(1e-3, 1e3))
def test_the_factor_does_not_depend_on_units_and_swapping_families_inverts_it(m, unit_x, unit_y):
    a, b = families(m, E=0, noise=0.01)
    pairs = ((a.x, a.y), (b.x, b.y))
    moved = tuple((x * unit_x, y * unit_y) for x, y in pairs)
    swapped = pairs[::-1]
    tries = [np.log(m) - 0.7, np.log(m) + 0.4]
    plain, scaled = (best_shift(pool_points(PURE, *p, SQUARES), tries) for p in (pairs, moved))
    back = best_shift(pool_points(PURE, *swapped, SQUARES), -np.array(tries))
    assert scaled.shift == pytest.approx(plain.shift, abs=1e-6)
    assert back.shift == pytest.approx(-plain.shift, abs=1e-6)


def test_the_public_result_does_not_depend_on_units():
    a, b = families(noise=0.005)
    plain = multiplier(a, b, resamples=20)
    scaled = multiplier(
        *(Family(each.name, each.x * 1e12, each.y / 0.693) for each in (a, b)), resamples=20
    )
    assert scaled.value == pytest.approx(plain.value, rel=1e-5)
    assert scaled.interval.low == pytest.approx(plain.interval.low, rel=1e-3)
    assert [each.value for each in scaled.at] == pytest.approx(
        [e.value for e in plain.at], rel=1e-4
    )


@pytest.mark.parametrize(("law", "noise"), [(PURE, 0.02), (FLOOR, 0.003)])
def test_the_interval_of_the_factor_has_nominal_coverage(law, noise):
    """400 simulated pairs, solved in one call; the next test checks the ends of the interval."""
    a, b = families(E=2.0 * law.floor)
    pooled = pool_points(law, (a.x, a.y), (b.x, b.y), SQUARES)
    truth = pooled.at(np.log(3)).theta[0]
    z = pooled.data.points.z + np.random.default_rng(0).normal(0, noise, (400, 14))
    many = replace(pooled, data=replace(pooled.data, points=replace(pooled.data.points, z=z)))
    shifts = np.log(3) + np.linspace(-0.6, 0.6, 17)
    objective = np.stack([many.at(shift, truth).objective for shift in shifts])  # (17, 400)
    finer = np.linspace(shifts[0], shifts[-1], 2001)
    least = CubicSpline(shifts, objective)(finer).min(0)
    free = pooled.degrees_of_freedom
    limit = 1 + stats.f.ppf(0.95, 1, free) / free
    assert free == 14 - len(law.names) - 1
    assert 0.92 <= np.mean(objective[8] <= least * limit) <= 0.98


def test_interval_ends_are_where_the_sum_of_squares_reaches_the_f_limit():
    """A pure law with a factor is a straight line in logs, so numpy gives the same interval."""
    a, b = families(E=0, noise=0.02)
    found = multiplier(a, b, PURE, resamples=2, level=0.9)
    u = np.log(np.concatenate([a.x, b.x]))
    of_b = np.repeat([0.0, 1.0], 7)
    log_y = np.log(np.concatenate([a.y, b.y]))
    line, misfit, _, _ = np.linalg.lstsq(np.column_stack([u * 0 + 1, u, of_b]), log_y, rcond=None)
    assert np.log(found.value) == pytest.approx(-line[2] / line[1], abs=1e-6)
    for end in (found.interval.low, found.interval.high):
        held = np.column_stack([u * 0 + 1, u - np.log(end) * of_b])
        risen = np.linalg.lstsq(held, log_y, rcond=None)[1][0] / misfit[0] - 1
        assert risen == pytest.approx(stats.f.ppf(0.9, 1, 11) / 11, rel=1e-3)
    own = np.column_stack([u * 0 + 1, u, of_b, of_b * u])
    apart = np.linalg.lstsq(own, log_y, rcond=None)[1][0]
    expected = (misfit[0] - apart) / (apart / 10)
    np.testing.assert_allclose(found.shape.F, expected, rtol=1e-6)
    assert found.shape.p == pytest.approx(stats.f.sf(expected, 1, 10), rel=1e-6)


def test_bootstrap_intervals_of_other_objectives_contain_the_factor():
    found = multiplier(*families(E=0, noise=0.01, seed=4), PURE, "huber", resamples=100)
    assert "bootstrap" in found.interval.method
    assert found.interval.low < 3 < found.interval.high
    assert found.interval.low > 2


def test_an_outlier_moves_the_least_squares_factor_but_hardly_the_huber_factor():
    a, b = families(E=0, noise=0.001)
    spoiled = b.y * np.where(np.arange(7) == 3, 1.2, 1)
    moved = {
        objective.name: abs(
            best_shift(pool_points(PURE, (a.x, a.y), (b.x, spoiled), objective), [1.0]).shift
            - np.log(3)
        )
        for objective in (SQUARES, HUBER)
    }
    assert moved["huber"] < 0.1 * moved["squares"]


def test_families_with_different_exponents_have_a_factor_that_depends_on_the_loss():
    found = multiplier(*families(E=0, alpha=0.3, alpha_b=0.2, noise=0.005), PURE, resamples=50)
    assert not found.shape.admissible
    assert "m changes with the loss" in found.summary
    falling = [each.value for each in sorted(found.at, key=lambda each: -each.loss)]
    assert falling == sorted(falling)  # the family with the larger exponent gains at lower losses
    for each in found.at:
        exact = 3 * 1e5 * each.loss ** (-1 / 0.2) / (1e5 * each.loss ** (-1 / 0.3))
        assert each.interval.low <= each.value <= each.interval.high
        assert each.value == pytest.approx(exact, rel=0.2)


def test_the_sentence_names_the_more_efficient_family():
    found = multiplier(*families(E=0), PURE, resamples=2)
    assert found.summary.startswith("VAR needs 1/3 of AR's compute for the same loss")


def test_losses_that_only_one_family_reached_are_refused_unless_allowed():
    a, b = families(E=0)
    with pytest.raises(FitError, match=r"loss 0\.01 is outside the range that both VAR and AR"):
        multiplier(a, b, PURE, losses=[0.01], resamples=2)
    found = multiplier(a, b, PURE, losses=[0.01], extrapolate=True, resamples=2)
    assert found.at[0].value == pytest.approx(3, rel=1e-6)
    apart = Family("far", b.x * 1e6, loss(b.x * 1e6, 0))
    with pytest.raises(FitError, match="no loss was reached by both"):
        multiplier(a, apart, PURE, resamples=2)
    assert multiplier(a, apart, PURE, extrapolate=True, resamples=2).value == pytest.approx(
        1, rel=1e-6
    )


def test_a_family_of_three_runs_uses_the_shape_of_the_other():
    a, b = families(m=5)
    few = Family("DiT", b.x[2:5], b.y[2:5])
    found = multiplier(a, few, FLOOR, resamples=2)
    assert found.value == pytest.approx(5, rel=1e-5)
    assert found.separate is None
    assert found.at == ()
    assert "DiT alone: " in found.refused[0]
    assert "cannot be tested" in found.summary


@pytest.mark.parametrize(
    ("a", "law", "message"),
    [
        (Family("x", [1.0, 2, 3], [3.0, np.nan, 1]), PURE, "x: x and y must be finite"),
        (Family("x", [1.0, 1, 1], [3.0, 2, 1]), PURE, "x has 1 sizes"),
        (Family("x", [1.0, 2], [3.0, 2, 1]), PURE, "of equal length"),
        (Family("x", [1.0, 2], [3.0, 2]), SURFACE, "a multiplier needs a law of one variable"),
    ],
)
def test_points_without_a_multiplier_have_a_reason(a, law, message):
    with pytest.raises(FitError, match=message):
        multiplier(a, families()[1], law)


def tables(**columns_of_b):
    return tuple(
        pd.DataFrame({"family": f.name, "train_flops": f.x, "val_loss": f.y, "fid": 10 * f.y})
        .assign(tokenizer="vq", data="imagenet")
        .assign(**(columns_of_b if f.name == "AR" else {}))
        for f in families(E=0)
    )


def test_losses_of_other_tokens_or_data_are_not_comparable_but_images_are():
    with pytest.raises(FitError, match=r"val_loss .* with different tokenizer \(rq, vq\)"):
        multiplier_of_tables(*tables(tokenizer="rq"), "val_loss", law=PURE)
    with pytest.raises(FitError, match=r"fid .* with different data"):
        multiplier_of_tables(*tables(data="cifar10"), "fid", law=PURE)
    found = multiplier_of_tables(*tables(tokenizer="rq"), "fid", law=PURE)
    assert found.value == pytest.approx(3, rel=1e-6)
    assert (found.a, found.b) == ("VAR", "AR")
    with pytest.raises(FitError, match="table of VAR lacks the columns inception_score"):
        multiplier_of_tables(*tables(), "inception_score", law=PURE)


def test_the_size_for_a_loss_inverts_each_law():
    for law, values in (
        (PURE, {"A": 30.0, "alpha": 0.2}),
        (FLOOR, {"A": 30.0, "alpha": 0.2, "E": 1.5}),
        (LOGIT, {"A": 30.0, "alpha": 0.2}),
    ):
        y = float(law.predict(4e5, values))
        assert size_for(law, values, y) == pytest.approx(4e5)
    assert size_for(FLOOR, {"A": 1.0, "alpha": 0.2, "E": 1.5}, 1.4) == np.inf
