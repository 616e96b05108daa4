"""Laws: known parameters are recovered in any units, and fits are optima."""

import warnings

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from analysis.fitting import search, solver
from analysis.fitting.fit import Fit, NotConverged, fit_law
from analysis.fitting.initialization import starting_points
from analysis.fitting.laws import (
    FLOOR,
    INTERACTION,
    LAWS,
    LOGIT,
    PURE,
    REPEATED,
    RISING,
    SIGMOID,
    SURFACE,
    TIED,
    VARYING,
    Law,
)
from analysis.fitting.objectives import OBJECTIVES
from analysis.fitting.points import FitError, check_points
from analysis.fitting.search import solve
from analysis.fitting.terms import terms_of

SIZES = 1152.0 * np.arange(1, 13) ** 3
QUICK = settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
objectives = st.sampled_from(sorted(OBJECTIVES))
exponents = st.floats(0.01, 1.5)
log_units = st.floats(-12, 12)


def grid(side=6, decades=2.0):
    """A Kaplan-like grid of sizes and data."""
    N, D = np.meshgrid(10 ** np.linspace(6, 6 + decades, side), 10 ** np.linspace(8, 10, side))
    return N.ravel(), D.ravel()


def surface(N, D, E=1.7, A=1.5, alpha=0.34, B=1.2, beta=0.28):
    """Losses of order 1, for N and D above their smallest values."""
    return E + A * (N / N.min()) ** -alpha + B * (D / D.min()) ** -beta


def noisy(y, noise=0.01, seed=0):
    return y * np.exp(np.random.default_rng(seed).normal(0, noise, len(y)))


def loss(objective, law, x, y, values, weights=1.0):
    """The objective in its own units, implemented again from its definition."""
    r = np.log(law.predict(x, values)) - np.log(y)
    each = {
        "squares": r**2,
        "absolute": np.abs(r),
        "huber": np.where(np.abs(r) < 1e-3, r**2 / 2, 1e-3 * np.abs(r) - 5e-7),
    }[objective]
    return float((weights * each).sum())


def cases():
    """A noisy problem for each law: (law, x, y, true values)."""
    N, D = grid()
    U = np.full(len(N), 8e8)
    line = {"A": 4.0, "alpha": 0.12}
    floored = {"A": 8.0, "alpha": 0.25, "E": 1.5}
    plane = {"A": 30.0, "alpha": 0.2, "B": 200.0, "beta": 0.3, "E": 1.5}
    passes = {**plane, "R_star": 6.0}
    odds = {"A": 5.0, "alpha": 0.15}
    tied = {"A": 100.0, "alpha": 0.28, "B": 250.0, "E": 1.5}
    varying = {"A": 30.0, "alpha": 0.2, "B": 40.0, "beta": 0.2, "E": 1.5}
    varying |= {"gamma": 0.3, "delta": 0.01}
    crossed = {"A": 30.0, "alpha": 0.2, "B": 40.0, "beta": 0.3, "E": 1.5, "gamma": 0.12}
    score = {"L0": 2.6, "k": 4.0, "E": 0.25, "S": 0.8}
    losses = np.linspace(1.8, 3.6, 20)
    for law, x, values, noise in (
        (PURE, SIZES, line, 0.01), (FLOOR, SIZES, floored, 0.004), (LOGIT, SIZES, odds, 0.01),
        (SURFACE, (N, D), plane, 0.01), (REPEATED, (N, D, U), passes, 0.003),
        (TIED, (N, D), tied, 0.01), (INTERACTION, (N, D), crossed, 0.003),
        (VARYING, (N, D), varying, 0.003),
        (RISING, 10 ** np.linspace(18, 22, 9), {"k": 0.3, "a": 0.48}, 0.05),
        (SIGMOID, losses, score, 0.005),
    ):  # fmt: skip
        yield law, x, noisy(law.predict(x, values), noise, seed=len(law.name)), values


@QUICK
@given(
    alpha=exponents, decades=st.floats(0.5, 5), count=st.integers(3, 60),
    x_unit=log_units, y_unit=log_units, objective=objectives,
)  # fmt: skip
def test_a_pure_law_is_recovered(alpha, decades, count, x_unit, y_unit, objective):
    x = 10 ** np.linspace(x_unit, x_unit + decades, count)
    y = 10**y_unit * (x / x[0]) ** -alpha
    fit = fit_law(PURE, x, y, objective)
    assert fit.alpha == pytest.approx(alpha, rel=1e-6)
    assert fit.A / (10**y_unit * x[0] ** alpha) == pytest.approx(1, rel=1e-6)
    assert fit.r == pytest.approx(-1)
    assert fit.predict(x) == pytest.approx(y, rel=1e-8)


@QUICK
@given(
    alpha=exponents, share=st.sampled_from([0.0, 0.01, 0.3, 3.0, 30.0]),
    decades=st.floats(0.5, 5), count=st.integers(4, 60),
    x_unit=log_units, y_unit=log_units, objective=objectives,
)  # fmt: skip
def test_a_law_with_irreducible_loss_is_recovered(
    alpha, share, decades, count, x_unit, y_unit, objective
):
    x = 10 ** np.linspace(x_unit, x_unit + decades, count)
    y = 10**y_unit * (share + (x / x[0]) ** -alpha)
    fit = fit_law(FLOOR, x, y, objective)
    assert fit.certificate.converged
    assert fit.predict(x) == pytest.approx(y, rel=1e-6)
    # The rounding error of E and α is larger if the points have less curvature.
    bend = alpha * np.log(x[-1] / x[0]) * alpha / (1 + share)
    assert fit.alpha == pytest.approx(alpha, rel=1e-6 + 1e-6 / bend)
    assert fit.E / 10**y_unit == pytest.approx(share, rel=1e-5 / bend, abs=1e-4 + 1e-6 / bend)


@QUICK
@given(
    alpha=st.floats(0.1, 1.2), beta=st.floats(0.1, 1.2), E=st.sampled_from([0.0, 0.5, 2.0, 20.0]),
    decades=st.floats(1, 4), n_unit=log_units, d_unit=log_units, y_unit=log_units,
    objective=objectives,
)  # fmt: skip
def test_a_surface_is_recovered(alpha, beta, E, decades, n_unit, d_unit, y_unit, objective):
    N, D = grid(side=5, decades=decades)
    y = surface(N, D, E=E, alpha=alpha, beta=beta)
    fit = fit_law(SURFACE, (N * 10**n_unit, D * 10**d_unit), y * 10**y_unit, objective)
    assert fit["alpha"] == pytest.approx(alpha, rel=1e-4)
    assert fit["beta"] == pytest.approx(beta, rel=1e-4)
    assert fit.E / 10**y_unit == pytest.approx(E, rel=1e-4, abs=1e-3)


@QUICK
@given(
    alpha=st.floats(0.1, 0.8), beta=st.floats(0.15, 0.8), E=st.sampled_from([0.3, 1.7]),
    R_star=st.floats(2, 30), y_unit=log_units, n_unit=log_units, objective=objectives,
)  # fmt: skip
def test_a_law_of_repeated_data_is_recovered(alpha, beta, E, R_star, y_unit, n_unit, objective):
    N, D = grid(side=7)
    values = {"A": 1e6**alpha, "alpha": alpha, "B": 1e8**beta, "beta": beta, "E": E}
    U = np.where(np.arange(len(D)) % 2, 2e8, 1e9)
    y = REPEATED.predict((N, D, U), {**values, "R_star": R_star})
    fit = fit_law(REPEATED, (N * 10**n_unit, D, U), y * 10**y_unit, objective)
    assert fit["R_star"] == pytest.approx(R_star, rel=1e-3)
    assert fit["beta"] == pytest.approx(beta, rel=1e-3)
    assert fit.E / 10**y_unit == pytest.approx(E, rel=1e-3)


@QUICK
@given(
    alpha=exponents, odds=st.floats(-3, 2), decades=st.floats(0.5, 5), count=st.integers(3, 60),
    x_unit=log_units, objective=objectives,
)  # fmt: skip
def test_a_law_of_odds_is_recovered(alpha, odds, decades, count, x_unit, objective):
    x = 10 ** np.linspace(x_unit, x_unit + decades, count)
    share = 10**odds * (x / x[0]) ** -alpha
    fit = fit_law(LOGIT, x, share / (1 + share), objective)
    assert fit.alpha == pytest.approx(alpha, rel=1e-5)
    assert ((fit.predict(x) > 0) & (fit.predict(x) < 1)).all()


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_one_point_more_than_parameters_is_enough_and_one_fewer_is_refused(law: Law):
    count = len(law.names) + 1
    N = 1e6 * np.array([1, 1, 4, 4, 16, 16, 64.0, 3.0])[:count]
    D = 1e8 * np.array([1, 30, 3, 90, 1, 30, 10.0, 5.0])[:count]
    one = np.linspace(1.8, 3.6, count) if law.sigmoid else SIZES[:count]
    x = {1: one, 2: (N, D), 3: (N, D, np.full(count, 4e8))}[len(law.variables)]
    values = {"A": 30.0, "alpha": 0.3, "B": 200.0, "beta": 0.3, "E": 1.5, "R_star": 6.0}
    values |= {"gamma": 0.1, "delta": 0.01, "k": 3.0, "a": 0.5, "L0": 2.6, "S": 2.0}
    y = law.predict(x, {name: values[name] for name in law.names})
    fit = fit_law(law, x, y, "squares", strict=False)
    assert fit.rms_relative_error < 1e-4
    fewer = x[:-1] if len(law.variables) == 1 else tuple(each[:-1] for each in x)
    with pytest.raises(FitError, match=f"parameters and only {count - 1} points"):
        fit_law(law, fewer, y[:-1], "squares")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("law", "x", "y", "values"), [*cases()], ids=LAWS)
class TestAnOptimum:
    """Properties of the optimum of each law and objective on noisy points."""

    def test_the_fitted_objective_is_no_worse_than_at_the_truth_or_nearby(
        self, law, x, y, values, objective
    ):
        fit = fit_law(law, x, y, objective)
        best = loss(objective, law, x, y, fit.values)
        assert best == pytest.approx(fit.certificate.objective, rel=1e-8)
        assert best <= loss(objective, law, x, y, values)
        generator = np.random.default_rng(1)
        for width in 10.0 ** generator.uniform(-6, -0.5, 200):
            factor = np.exp(generator.normal(0, width, len(law.names)))
            near = {name: fit[name] * f for name, f in zip(law.names, factor, strict=True)}
            assert loss(objective, law, x, y, near) >= best * (1 - 1e-9)

    def test_the_gradient_at_the_optimum_is_0_by_finite_differences(
        self, law, x, y, values, objective
    ):
        fit = fit_law(law, x, y, objective)
        best = loss(objective, law, x, y, fit.values)
        for name in law.names:
            sides = []
            for factor in (1 + 1e-6, 1 - 1e-6):
                there = {**fit.values, name: fit[name] * factor}
                sides.append((loss(objective, law, x, y, there) - best) / 1e-6)
            if objective == "absolute":  # a corner: the objective rises on both sides
                assert min(sides) >= -1e-6 * best
            else:
                steepest = loss(objective, law, x, y, {**fit.values, name: fit[name] * 1.01})
                assert abs(sides[0] - sides[1]) / 2 < 1e-3 * (steepest - best) / 0.01 + 1e-12

    def test_the_fit_does_not_depend_on_weight_scale_point_order_or_units(
        self, law, x, y, values, objective
    ):
        generator = np.random.default_rng(2)
        weights = 10 ** generator.uniform(-1, 1, len(y))
        one = fit_law(law, x, y, objective, weights=weights)
        order = generator.permutation(len(y))
        arrays = [each[order] for each in law.arrays(x)]
        again = arrays[0] if len(law.variables) == 1 else tuple(arrays)
        for factor in (1e-6, 1e6):
            two = fit_law(law, again, y[order], objective, weights=factor * weights[order])
            for name in law.names:
                assert two[name] == pytest.approx(one[name], rel=1e-5), name
            assert two.certificate.objective == pytest.approx(one.certificate.objective)

    def test_a_point_of_weight_2_equals_two_points(self, law, x, y, values, objective):
        weights = np.where(np.arange(len(y)) % 3, 1.0, 2.0)
        twice = np.repeat(np.arange(len(y)), weights.astype(int))
        arrays = [each[twice] for each in law.arrays(x)]
        repeated = fit_law(
            law, arrays[0] if len(law.variables) == 1 else tuple(arrays), y[twice], objective
        )
        weighted = fit_law(law, x, y, objective, weights=weights)
        assert loss(objective, law, x, y, weighted.values, weights) == pytest.approx(
            loss(objective, law, x, y, repeated.values, weights), rel=1e-7
        )
        assert "exact duplicates" in " ".join(repeated.flags)


def test_a_least_absolute_fit_interpolates_as_many_points_as_parameters():
    for law, x, y, _ in cases():
        fit = fit_law(law, x, y, "absolute")
        assert (np.abs(fit.residuals) < 1e-8).sum() == len(law.names), law.name
        assert fit.certificate.gradient < 1e-6


def test_an_outlier_moves_the_least_squares_fit_most():
    y = noisy(1.5 + 8 * SIZES**-0.25, 0.002)
    spoilt = np.where(np.arange(len(y)) == 7, 1.2 * y, y)
    moved = {
        name: abs(fit_law(FLOOR, SIZES, spoilt, name).alpha - fit_law(FLOOR, SIZES, y, name).alpha)
        for name in OBJECTIVES
    }
    assert moved["squares"] > 5 * max(moved["huber"], moved["absolute"])


@QUICK
@given(alpha=exponents, E=st.sampled_from([0.0, 0.2, 4.5]), objective=objectives)
def test_with_a_fixed_irreducible_loss_the_other_parameters_are_recovered(alpha, E, objective):
    x = SIZES / SIZES[0]
    fit = fit_law(FLOOR, x, E + 2 * x**-alpha, objective, floor=E)
    assert (fit.alpha, fit.A, fit.E) == pytest.approx((alpha, 2, E), rel=1e-6)
    assert (fit.floor, fit.free) == (E, 2)
    assert not fit.flags


def test_a_fixed_irreducible_loss_is_no_better_than_a_fitted_one():
    y = noisy(1.5 + 8 * SIZES**-0.25, 0.004)
    free = fit_law(FLOOR, SIZES, y)
    for floor in (0, 0.5, 1.0, free.E, 1.7):
        held = fit_law(FLOOR, SIZES, y, floor=floor)
        assert pytest.approx(floor) == held.E
        assert held.certificate.objective >= free.certificate.objective * (1 - 1e-9)
    assert fit_law(FLOOR, SIZES, y, floor=free.E).alpha == pytest.approx(free.alpha, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_points_without_irreducible_loss_are_flagged_and_get_the_pure_law(objective):
    y = noisy(8 * SIZES**-0.1 * np.exp(-0.002 * np.log(SIZES / SIZES[0]) ** 2), 1e-4)
    fit = fit_law(FLOOR, SIZES, y, objective)
    assert fit.E == 0
    assert fit.flags == ("E went to zero: these points do not support an irreducible loss",)
    assert fit.alpha == pytest.approx(fit_law(PURE, SIZES, y, objective).alpha, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(4))
def test_nearly_straight_points_have_an_optimum(objective, seed):
    """With little curvature A and E are nearly redundant; the optimum is often at E = 0."""
    N, D = grid(side=3)
    y = noisy(4 + 0.02 * (N / 1e6) ** -0.3 + 0.02 * (D / 1e8) ** -0.4, 5e-4, seed)
    fit = fit_law(SURFACE, (N, D), y, objective)
    assert fit.certificate.converged
    without = fit_law(SURFACE, (N, D), y, objective, floor=0)
    assert fit.certificate.objective <= without.certificate.objective * (1 + 2e-5)


def test_many_more_starts_find_no_better_optimum():
    for law, x, y, _ in cases():
        fit = fit_law(law, x, y)
        assert fit.certificate.agreed >= 0.5
        points = fit.data.points
        generator = np.random.default_rng(3)
        starts = fit.theta + generator.normal(0, 0.7, (60, len(fit.theta)))
        best = solve(points, fit.data.weights[None], starts[:, None], fit.objective)
        scale = fit.certificate.objective / 1e-3  # the objectives of the solver are divided by δ
        assert best.objective[0] >= scale * (1 - 1e-6), law.name


def test_vectorised_refits_equal_separate_fits():
    y = noisy(1.5 + 8 * SIZES**-0.25, 0.004)
    fit = fit_law(FLOOR, SIZES, y)
    weights = np.random.default_rng(4).uniform(0.2, 3, (5, len(y)))
    starts = starting_points(fit.data.points, fit.data.weights, None)
    batch = fit.data.columns(solve(fit.data.points, weights, starts[:, None], fit.objective).theta)
    for row, w in enumerate(weights):
        alone = fit_law(FLOOR, SIZES, y, weights=w)
        assert batch["alpha"][row] == pytest.approx(alone.alpha, rel=1e-6)
        assert batch["E"][row] == pytest.approx(alone.E, rel=1e-6)


@pytest.mark.parametrize("law", [PURE, FLOOR, LOGIT, SURFACE])
def test_terms_of_runs_of_one_size_are_bitwise_those_of_each_run(law):
    generator = np.random.default_rng(0)
    few = [generator.uniform(1e6, 1e9, 4)[np.arange(24) % 4] for _ in law.variables]
    y = generator.uniform(0.3, 0.9, 24)
    points = check_points(law, few if len(few) > 1 else few[0], y).points
    theta = generator.normal(0, 0.3, (3, points.parameters))
    together = terms_of(points, theta, points.z)
    points.__dict__["distinct"] = None  # evaluated for each run
    alone = terms_of(points, theta, points.z)
    assert together.residual.tobytes() == alone.residual.tobytes()
    assert together.residual.flags.c_contiguous, "sums over points add in the same order"
    for one, other in zip(together.shares, alone.shares, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("law", [PURE, FLOOR, LOGIT])
def test_the_form_of_the_paper_is_the_same_law(law):
    values = {"A": 3.0, "alpha": 0.23} | ({"E": 1.5} if law.floor else {})
    fit = fit_law(law, SIZES, law.predict(SIZES, values))
    power = (fit.paper_beta * SIZES) ** -fit.alpha
    if law.odds:
        power = power / (1 + power)
    assert fit.E + power == pytest.approx(fit.predict(SIZES), rel=1e-9)
    assert fit_law(SURFACE, grid(), surface(*grid())).paper_beta is None


def test_losses_that_do_not_fall_have_neither_correlation_nor_paper_form():
    fit = fit_law(PURE, SIZES, np.full(12, 3.0))
    assert fit.alpha == pytest.approx(0, abs=1e-9)
    assert np.isnan(fit.r)
    assert np.isnan(fit.r2)
    assert fit.paper_beta is None
    twisted = fit_law(FLOOR, SIZES, np.full(12, 3.0))
    assert "nearly redundant" in " ".join(twisted.flags)


def test_an_exponent_at_its_bound_is_flagged():
    y = np.where(np.arange(12) < 1, 9.0, 3 + 1e-3 * np.arange(12) % 3)
    fit = fit_law(FLOOR, SIZES[0] * 1.02 ** np.arange(12), y, strict=False)
    assert "alpha at its upper bound" in fit.flags


def test_epochs_that_all_count_fully_put_r_star_at_its_bound():
    N, D = grid()
    y = noisy(surface(N, D), 1e-5)
    fit = fit_law(REPEATED, (N, D, np.full(len(N), 1e9)), y, "squares", strict=False)
    assert "R_star at its upper bound" in fit.flags or fit["R_star"] > 100


def test_a_fit_that_did_not_converge_is_an_error_or_flagged(monkeypatch):
    monkeypatch.setattr(solver, "_MAX_ITERATIONS", 1)
    x, y = grid(), noisy(surface(*grid()))
    with pytest.raises(NotConverged, match=r"did not converge: relative gradient .* 10 starts"):
        fit_law(SURFACE, x, y)
    fit = fit_law(SURFACE, x, y, strict=False)
    assert not fit.certificate.converged
    assert any(flag.startswith("NOT CONVERGED: gradient") for flag in fit.flags)


def test_starts_that_disagree_are_flagged(monkeypatch):
    real = search.minimise

    def scattered(*given, **named):
        ends = real(*given, **named)
        ends.objective[1:] += 1
        return ends

    monkeypatch.setattr(search, "minimise", scattered)
    fit = fit_law(SURFACE, grid(), noisy(surface(*grid())))
    assert "only 10% of 10 starts reached the best optimum" in fit.flags


def test_a_fit_describes_its_points_and_range():
    fit: Fit = fit_law(FLOOR, np.repeat(SIZES, 2), noisy(np.repeat(1.5 + 8 * SIZES**-0.25, 2)))
    assert (fit.points, fit.sizes, fit.free) == (24, 12, 3)
    assert fit.decades == pytest.approx(np.log10(12**3))
    assert fit.residuals == pytest.approx(np.log(fit.data.y / fit.predict(fit.data.x)))
    written = fit.as_dict()
    assert written["values"] == fit.values
    assert written["units"] == {"A": "[L] [x]^alpha", "alpha": "1", "E": "[L]"}
    assert (written["objective"], written["delta"]) == ("huber", 1e-3)


def test_no_fit_raises_numeric_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for law, x, y, _ in cases():
            for objective in OBJECTIVES:
                fit_law(law, x, y, objective)
        fit_law(FLOOR, SIZES, 8 * SIZES**-0.1)
