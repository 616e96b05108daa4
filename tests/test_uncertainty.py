"""Intervals equal textbook formulas where they exist, and have nominal coverage elsewhere."""

import numpy as np
import pytest
from scipy import stats

from analysis import FLOOR, LOGIT, PURE, SURFACE, FitError, fit_law
from analysis.fitting.verify import certify
from analysis.uncertainty.bootstrap import bootstrap, scheme_for, seed_noise
from analysis.uncertainty.coverage import _batched, coverage, coverage_of_depths
from analysis.uncertainty.intervals import covers, covers_at, interval, prediction_interval

SIZES = 1152.0 * np.arange(1, 9) ** 3
TRUE = {"A": 2e-4**-0.2, "alpha": 0.2, "E": 1.5}


def noisy(seed, x=SIZES, noise=0.004):
    generator = np.random.default_rng(seed)
    return FLOOR.predict(x, TRUE) * np.exp(generator.normal(0, noise, len(x)))


def test_intervals_of_a_straight_line_equal_the_textbook_formula():
    y = noisy(1)
    fit = fit_law(PURE, SIZES, y, "squares")
    line = stats.linregress(np.log(SIZES), np.log(y))
    t = stats.t.ppf(0.975, 6)
    found = interval(fit, "alpha")
    assert (found.low, found.high) == pytest.approx(
        (-line.slope - t * line.stderr, -line.slope + t * line.stderr), rel=1e-4
    )
    found = interval(fit, "A")
    ends = np.exp(line.intercept + np.array([-t, t]) * line.intercept_stderr)
    assert (found.low, found.high) == pytest.approx(tuple(ends), rel=1e-4)
    assert found.method == "profile, F(1, 6)"
    assert found.basis == "8 points, 8 sizes, 2.7 decades"


def test_predictions_of_a_straight_line_equal_the_textbook_formula():
    y, at = noisy(2), 1e7
    fit = fit_law(PURE, SIZES, y, "squares")
    u = np.log(SIZES) - np.log(SIZES).mean()
    lever = 1 / 8 + (np.log(at) - np.log(SIZES).mean()) ** 2 / (u @ u)
    s = np.sqrt(fit.residuals @ fit.residuals / 6)
    for new_run, spread in ((True, 1 + lever), (False, lever)):
        found = prediction_interval(fit, at, new_run=new_run)
        half = stats.t.ppf(0.975, 6) * s * np.sqrt(spread)
        ends = fit.predict(at) * np.exp([-half, half])
        assert (found.low, found.high) == pytest.approx(tuple(ends), rel=1e-4)


@pytest.mark.parametrize("objective", ["squares", "huber"])
def test_the_ends_of_an_interval_are_where_it_stops_covering(objective):
    fit = fit_law(FLOOR, SIZES, noisy(3), objective)
    for name in ("alpha", "E", "A") if objective == "squares" else ("alpha",):
        found = interval(fit, name)
        assert found.low < fit[name] < found.high
        width = found.high - found.low
        for value, inside in (
            (found.low + 0.01 * width, True), (found.low - 0.01 * width, False),
            (found.high - 0.01 * width, True), (found.high + 0.01 * width, False),
        ):  # fmt: skip
            assert covers(fit, name, value) is inside
    run = prediction_interval(fit, 1e7)
    law = prediction_interval(fit, 1e7, new_run=False)
    assert run.low < law.low < fit.predict(1e7) < law.high < run.high
    assert covers_at(fit, 1e7, run.high * 0.999)
    assert not covers_at(fit, 1e7, run.high * 1.001)


def test_intervals_do_not_depend_on_units():
    y = noisy(4)
    here = interval(fit_law(FLOOR, SIZES, y, "squares"), "E")
    there = interval(fit_law(FLOOR, SIZES * 1e-9, y * 1e3, "squares"), "E")
    assert (there.low, there.high) == pytest.approx((1e3 * here.low, 1e3 * here.high), rel=1e-3)


def test_an_irreducible_loss_that_may_be_0_has_an_interval_from_0():
    y = PURE.predict(SIZES, {"A": 9.0, "alpha": 0.1})
    fit = fit_law(FLOOR, SIZES, y * np.exp(np.random.default_rng(0).normal(0, 0.01, 8)), "squares")
    found = interval(fit, "E")
    assert found.low == 0
    assert found.high > 0


def test_without_noise_the_interval_is_the_truth():
    fit = fit_law(FLOOR, SIZES, FLOOR.predict(SIZES, TRUE), "squares")
    found = interval(fit, "alpha")
    assert (found.low, found.high) == pytest.approx((0.2, 0.2), abs=1e-6)


def test_an_interval_of_a_fixed_parameter_is_refused():
    fixed = fit_law(FLOOR, SIZES, noisy(1), floor=1.5)
    with pytest.raises(FitError, match="E is not a fitted parameter"):
        interval(fixed, "E")
    with pytest.raises(FitError, match="gamma is not"):
        interval(fixed, "gamma")
    with pytest.raises(FitError, match="x must be one point"):
        prediction_interval(fixed, [1e6, 1e7])


@pytest.mark.parametrize("count", [8, 12, 20])
def test_nominal_95_percent_is_between_92_and_97_in_500_simulations(count):
    for found in coverage_of_depths(count, 0.2, 1.5, 0.004, simulations=500):
        assert 0.92 <= found.covered <= 0.97, found


def test_vectorised_coverage_equals_single_intervals():
    """`coverage` is a vectorised form of `covers`, not another definition."""
    generator = np.random.default_rng(0)
    drawn = generator.normal(0, 0.01, (12, 9))
    inside = dict(_batched(FLOOR, TRUE, SIZES, FLOOR.predict(SIZES, TRUE), 1e7,
                           float(FLOOR.predict(1e7, TRUE)), drawn))  # fmt: skip
    for k, residual in enumerate(drawn):
        y = FLOOR.predict(SIZES, TRUE) * np.exp(residual[:-1])
        fit = fit_law(FLOOR, SIZES, y, "squares")
        for name in FLOOR.names:
            assert inside[name][k] == covers(fit, name, TRUE[name])
        run = float(FLOOR.predict(1e7, TRUE) * np.exp(residual[-1]))
        assert inside["new run"][k] == covers_at(fit, 1e7, run)


def test_a_bootstrap_is_deterministic_and_brackets_the_fit():
    fit = fit_law(FLOOR, SIZES, noisy(3), "squares")
    first, again = bootstrap(fit, 500), bootstrap(fit, 500)
    assert np.array_equal(first.values["alpha"], again.values["alpha"])
    for name in ("alpha", "E"):
        found = first.interval(name)
        assert found.low < fit[name] < found.high
    assert first.predict(1e7).shape == (500,)
    assert first.predict(np.array([1e6, 1e7, 1e8])).shape == (500, 3)
    assert first.rejected > 0  # some resamples have too few sizes


def test_resampled_optima_equal_those_of_refits():
    y = noisy(5)
    fit = fit_law(FLOOR, SIZES, y, "squares")
    drawn = bootstrap(fit, 20, seed=7)
    generator = np.random.default_rng(7)
    done = 0
    while done < 20:
        counts = generator.multinomial(8, np.full(8, 1 / 8))
        if (counts > 0).sum() < 4:
            continue
        chosen = np.repeat(np.arange(8), counts)
        refit = fit_law(FLOOR, SIZES[chosen], y[chosen], "squares")
        assert drawn.values["alpha"][done] == pytest.approx(refit.alpha, abs=1e-5)
        done += 1


def shared_by_seed(generator, sizes=6, seeds=8):
    """Runs of all sizes for each seed; the runs of a seed have a common error."""
    x = np.tile(SIZES[:sizes], seeds)
    seed = np.repeat(np.arange(seeds), sizes)
    noise = generator.normal(0, 0.01, seeds)[seed] + generator.normal(0, 0.002, len(x))
    return x, seed, PURE.predict(x, {"A": 9.0, "alpha": 0.1}) * np.exp(noise)


def test_runs_with_one_seed_are_resampled_together():
    """The uncertainty of the level depends on the number of seeds, not on that of runs."""
    spread, by_seed, by_run = [], [], []
    for k in range(60):
        x, seed, y = shared_by_seed(np.random.default_rng(k))
        fit = fit_law(PURE, x, y, "squares")
        spread.append(np.log(fit.predict(SIZES[3])))
        if k < 12:
            drawn = bootstrap(fit, 400, clusters=seed)
            by_seed.append(np.log(drawn.predict(SIZES[3])).std())
            by_run.append(np.log(bootstrap(fit, 400).predict(SIZES[3])).std())
    assert np.mean(by_seed) == pytest.approx(np.std(spread), rel=0.35)
    assert np.mean(by_run) < 0.6 * np.std(spread)
    assert drawn.method == "bootstrap over 8 seeds"


def test_stratified_intervals_keep_every_size_and_are_not_too_narrow():
    x = np.repeat(SIZES[:4], 2)
    spread, found = [], []
    for k in range(80):
        y = PURE.predict(x, {"A": 9.0, "alpha": 0.1})
        y = y * np.exp(np.random.default_rng(k).normal(0, 0.01, 8))
        fit = fit_law(PURE, x, y, "squares")
        spread.append(fit.alpha)
        if k < 30:
            found.append(bootstrap(fit, 300, strata=x).standard_error("alpha"))
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(np.std(spread), rel=0.3)


def test_the_resampling_scheme_follows_from_the_runs():
    assert scheme_for(SIZES, np.zeros(8)) == {}
    assert set(scheme_for(np.tile(SIZES, 2), np.repeat([0, 1], 8))) == {"strata"}
    assert set(scheme_for(np.tile(SIZES, 5), np.repeat(np.arange(5), 8))) == {"clusters"}


def test_resampling_that_varies_nothing_is_refused():
    fit = fit_law(PURE, SIZES, noisy(1))
    with pytest.raises(FitError, match="one cluster"):
        bootstrap(fit, clusters=np.zeros(8))
    with pytest.raises(FitError, match="no stratum has two"):
        bootstrap(fit, strata=SIZES)
    with pytest.raises(FitError, match="3 labels for 8 points"):
        bootstrap(fit, clusters=[1, 2, 3])


def test_seed_noise_is_the_variance_within_sizes():
    generator = np.random.default_rng(0)
    x = np.tile(SIZES, 6)
    y = FLOOR.predict(x, TRUE) * np.exp(generator.normal(0, 0.01, 48))
    noise = seed_noise(x, y, np.repeat(np.arange(6), 8))
    assert noise.low < 0.01 < noise.high
    assert noise.degrees_of_freedom == 40
    assert noise.shared < 0.006
    shared = seed_noise(*(lambda x, seed, y: (x, y, seed))(*shared_by_seed(generator, seeds=20)))
    assert shared.shared == pytest.approx(0.01, rel=0.5)
    assert seed_noise(SIZES, y[:8], np.zeros(8)) is None
    # One run is missing and another was run twice: the number of runs alone does not show it.
    seeds = np.repeat(np.arange(6), 8)
    seeds[0] = 1
    assert seed_noise(x, y, seeds).shared is None


def test_a_misfit_larger_than_the_seed_noise_is_detected():
    generator = np.random.default_rng(1)
    x, seed = np.tile(SIZES, 4), np.repeat(np.arange(4), 8)
    y = FLOOR.predict(x, TRUE) * np.exp(generator.normal(0, 0.003, 32))
    assert seed_noise(x, y, seed, fit_law(PURE, x, y, "squares")).misfit_p < 1e-3
    assert seed_noise(x, y, seed, fit_law(FLOOR, x, y, "squares")).misfit_p > 0.01


def test_the_coverage_of_the_bootstrap_can_be_simulated():
    found = {
        one.quantity: one
        for one in coverage(FLOOR, TRUE, SIZES, 0.004, 1e7, method="bootstrap", simulations=5)
    }
    assert found["alpha"].method == "bootstrap"
    assert found["alpha"].covered > 0.5
    with pytest.raises(ValueError, match="must be profile or bootstrap"):
        coverage(FLOOR, TRUE, SIZES, 0.004, 1e7, method="jackknife")


def test_a_claimed_optimum_is_compared_with_the_optimum():
    y = noisy(6)
    best = fit_law(FLOOR, SIZES, y)
    assert certify(FLOOR, SIZES, y, best.values).is_optimum
    found = certify(FLOOR, SIZES, y, {**best.values, "E": 1.2})
    assert not found.is_optimum
    assert found.excess > 0.1
    assert "NOT an optimum" in found.summary
    with pytest.raises(FitError, match="no value for E"):
        certify(FLOOR, SIZES, y, {"A": 1.0, "alpha": 0.1})


def test_laws_of_every_kind_have_intervals():
    error = LOGIT.predict(SIZES, {"A": 30.0, "alpha": 0.05})
    error = error * np.exp(np.random.default_rng(0).normal(0, 1e-4, 8))
    found = interval(fit_law(LOGIT, SIZES, error, "squares"), "alpha")
    assert found.low < 0.05 < found.high
    N, D = (axis.ravel() for axis in np.meshgrid(SIZES[::2], 1e6 * 2.0 ** np.arange(5)))
    values = {"A": 5.0, "alpha": 0.3, "B": 400.0, "beta": 0.4, "E": 1.5}
    y = SURFACE.predict((N, D), values)
    y = y * np.exp(np.random.default_rng(1).normal(0, 0.002, len(y)))
    fit = fit_law(SURFACE, (N, D), y, "squares")
    for name in ("alpha", "beta", "E"):
        found = interval(fit, name)
        assert found.low < fit[name] < found.high
    run = prediction_interval(fit, (1e7, 1e8))
    assert run.low < SURFACE.predict((1e7, 1e8), values) < run.high
