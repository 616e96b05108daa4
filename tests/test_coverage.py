"""Intervals of whole tables: simulated coverage, lack of fit, and the frontier's law."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.compute_optimal.approach import from_minima
from analysis.compute_optimal.cost import six_nd
from analysis.compute_optimal.frontier import frontier, run_ends
from analysis.compute_optimal.frontier_band import (
    NOT_CALIBRATED,
    RESAMPLED,
    frontier_interval,
    surface_path,
)
from analysis.compute_optimal.isoflop import isoflops
from analysis.coverage import (
    COMMON,
    METRIC,
    RICHER,
    SIZE,
    SURFACE_VALUES,
    TRUE,
    designs,
    simulated_coverage,
)
from analysis.fitting.fit import fit_law
from analysis.fitting.laws import FLOOR, SURFACE
from analysis.uncertainty.bootstrap import bootstrap, bootstrap_of_surface
from analysis.uncertainty.intervals import covers, interval

ISO, CURVES, GRID, ONE_LENGTH = designs()
EXPONENT = (
    SURFACE_VALUES["alpha"]
    * SURFACE_VALUES["beta"]
    / (SURFACE_VALUES["alpha"] + SURFACE_VALUES["beta"])
)
LADDER = replace(ONE_LENGTH, curves=False)  # ends of runs of one length: neither curves nor surface


def table(design, world=TRUE, seed=0):
    return design.rows(world, np.random.default_rng(seed))


def law_of(design, world=TRUE, seed=0):
    rows = table(design, world, seed)
    points = frontier(rows, METRIC, params=SIZE)
    fit = fit_law(FLOOR, points.flops[points.of_law], points.loss[points.of_law], "squares")
    return fit, points, surface_path(rows, points)


def test_the_true_frontier_has_the_exponents_of_the_closed_form():
    log_C, log_N, log_L = TRUE.path
    assert np.polyfit(log_C, log_N, 1)[0] == pytest.approx(0.28 / 0.62, abs=1e-4)
    reducible = np.log(np.exp(log_L) - SURFACE_VALUES["E"])
    assert -np.polyfit(log_C, reducible, 1)[0] == pytest.approx(EXPONENT, abs=1e-6)


def test_censored_points_bend_the_law_and_are_left_out():
    fit, points, _ = law_of(CURVES, replace(TRUE, noise=1e-9))
    assert fit.alpha == pytest.approx(EXPONENT, abs=1e-3)
    assert pytest.approx(SURFACE_VALUES["E"], abs=0.01) == fit.E
    bent = fit_law(FLOOR, points.flops, points.loss, "squares")
    assert bent.alpha > EXPONENT + 0.01


def test_the_law_of_the_frontier_has_the_interval_of_the_surface():
    fit, points, path = law_of(CURVES)
    found = frontier_interval(fit, "alpha", points, path)
    assert "optima of the surface" in found.method
    # The points of a curve are no independent runs: as if they were, the interval is too narrow.
    profile = interval(fit, "alpha")
    assert found.high - found.low > 1.5 * (profile.high - profile.low)


def test_the_law_of_the_frontier_follows_from_the_surface_and_lies_in_its_interval():
    """The points of a frontier are upper bounds: on a grid their own fit is far from the truth."""
    for design in (ISO, CURVES, GRID, ONE_LENGTH):
        of_points, points, path = law_of(design)
        law = path.law(of_points)
        for name in ("alpha", "E"):
            found = frontier_interval(law, name, points, path)
            assert found.low < law[name] < found.high
        assert law.alpha == pytest.approx(EXPONENT, abs=0.015)
        assert (law.points, law.data.x is of_points.data.x) == (of_points.points, True)
        assert f"give α = {of_points.alpha:.3g} and E = {of_points.E:.3g}" in law.flags[-1]
        assert law.rms_relative_error >= of_points.rms_relative_error
    assert abs(law_of(GRID)[0].alpha - EXPONENT) > 0.02


def test_the_law_with_e_is_the_least_loss_of_the_surface_and_a_fixed_e_is_kept():
    rows = table(GRID)
    points = frontier(rows, METRIC, params=SIZE)
    of_points = fit_law(FLOOR, points.flops, points.loss, "squares", floor=1.5)
    path = surface_path(rows, points, floor=1.5)
    law = path.law(of_points)
    assert law.E == path.surface.E == 1.5
    a, b = path.surface["alpha"], path.surface["beta"]
    assert law.alpha == pytest.approx(a * b / (a + b), rel=1e-6)
    N, D = path.at(1e20)
    assert law.predict(1e20) == pytest.approx(float(path.surface.predict((N, D))), rel=1e-9)
    assert pytest.approx(1e20, rel=1e-6) == 6 * N * D


def test_curves_of_one_length_have_a_surface_of_the_points_inside_runs():
    fit, _, path = law_of(ONE_LENGTH, replace(TRUE, noise=1e-9))
    assert "24 runs with their curves" in path.method
    # Smoothing and interpolation of the curves bend them a little.
    for name, value in (("alpha", EXPONENT), ("E", SURFACE_VALUES["E"])):
        found = path.interval(fit, name)
        assert found.low == pytest.approx(value, rel=3e-3)
        assert found.high == pytest.approx(value, rel=3e-3)


def test_without_a_surface_runs_are_resampled_and_upper_bounds_are_marked():
    of_one_seed = ONE_LENGTH.seed == 0
    few = replace(
        ONE_LENGTH,
        N=ONE_LENGTH.N[of_one_seed],
        D=ONE_LENGTH.D[of_one_seed],
        seed=ONE_LENGTH.seed[of_one_seed],
    )
    fit, points, path = law_of(few)
    assert path is None
    resampled = frontier_interval(fit, "alpha", points, path).method
    assert "bootstrap over 8 runs" in resampled
    assert RESAMPLED in resampled
    fit, points, path = law_of(LADDER)
    assert path is None
    assert points.censored.all()
    assert NOT_CALIBRATED in frontier_interval(fit, "alpha", points, path).method


def test_cells_are_drawn_where_the_surface_misses_their_means():
    def both(world):
        ends = run_ends(table(GRID, world), METRIC, SIZE)
        inputs = (ends[SIZE].to_numpy(), ends.tokens_seen.to_numpy())
        fit = fit_law(SURFACE, inputs, ends[METRIC], "squares")
        return bootstrap(fit, 400), bootstrap_of_surface(fit, 400)

    runs, by_rule = both(TRUE)
    assert by_rule.method == runs.method == "bootstrap over 90 runs"
    assert all((by_rule.values[name] == each).all() for name, each in runs.values.items())
    runs, by_rule = both(replace(COMMON, shared=0.02))
    assert by_rule.method == (
        "bootstrap over 30 cells, widened by t(25), because of the lack of fit"
    )
    for name in runs.values:
        assert by_rule.standard_error(name) > 1.3 * runs.standard_error(name)


def test_budgets_that_scatter_more_than_their_noise_widen_approach_2():
    def exponent(shared):
        world = replace(TRUE, noise=0.001, shared=shared)
        ends = run_ends(table(ISO, world, seed=1), METRIC, SIZE)
        found = isoflops(ends[SIZE], ends.train_flops, ends[METRIC], cost=six_nd())
        return from_minima(found).a_interval

    calm, disturbed = exponent(0.0), exponent(0.01)
    assert "pooled residuals, t(" in calm.method
    assert "scatter of the budgets" in disturbed.method
    assert disturbed.high - disturbed.low > 4 * (calm.high - calm.low)


def test_a_profile_counts_sizes_where_the_law_misses_their_means():
    ends = run_ends(table(LADDER, replace(COMMON, shared=0.02)), METRIC, SIZE)
    fit = fit_law(FLOOR, ends[SIZE], ends[METRIC], "squares")
    found = interval(fit, "alpha")
    assert found.method == "profile, F(1, 5) of the lack of fit"
    # The same as a fit to the means of the sizes.
    groups = ends.groupby(SIZE)[METRIC].agg(lambda loss: float(np.exp(np.log(loss).mean())))
    means = fit_law(FLOOR, groups.index.to_numpy(), groups.to_numpy(), "squares")
    expected = interval(means, "alpha")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-3)
    # Runs that agree with the law keep all their degrees of freedom.
    ends = run_ends(table(LADDER, seed=1), METRIC, SIZE)
    fit = fit_law(FLOOR, ends[SIZE], ends[METRIC], "squares")
    assert interval(fit, "alpha").method == "profile, F(1, 21)"
    assert covers(fit, "alpha", fit.alpha)


def test_a_few_simulations_cover_most_of_the_time():
    """All intervals of a table miss together, so the bounds are wide."""
    found = {each.quantity: each for each in simulated_coverage(ISO, TRUE, 12)}
    assert all(each.simulations + each.failed == 12 for each in found.values())
    assert found["approach 1: a"].simulations == 0  # only the ends of runs are known
    stated = [each.covered for each in found.values() if each.simulations]
    assert len(stated) == len(found) - 2
    assert min(stated) >= 0.5


def test_under_a_richer_law_the_coverage_is_stated():
    assert all(
        each.simulations + each.failed == 1 for each in simulated_coverage(CURVES, RICHER, 1)
    )


@pytest.mark.slow
@pytest.mark.parametrize("design", designs(), ids=["isoflop", "curves", "grid", "one length"])
def test_intervals_cover_under_the_true_law(design):
    """The bound is 95 % less four standard errors of 60 simulations."""
    found = simulated_coverage(design, TRUE, 60, seed=1)
    poor = {each.quantity: each.covered for each in found
            if each.simulations and "not calibrated" not in each.method
            and each.covered < 0.95 - 4 * 0.0281}  # fmt: skip
    assert poor == {}
